//! Conflicts: what is at a path of the target is not what the change was made from.
//!
//! Where the target is the overlay's own lower, that is told by times: a change of a file, of its attributes or of its name
//! stamps its `ctime`, which nobody can set back. What is later than the overlay was made by somebody else, unless `apply` itself left it. Where the target
//! is another directory, what is there is compared with what the lowers have.

use std::collections::HashSet;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::target::{Target, There, is_mounted_on};
use crate::applied::known::Known;
use crate::carry::open_file;
use crate::diff::{Change, Kind, same_bytes};
use crate::doc::Overlay;
use crate::inode::changed;
use crate::layer::Marks;
use crate::listing::{Listing, Seen};
use crate::paths::{bare, inside, join, split};
use crate::shown::{Entry, Shown};
use crate::stack::{Dir, Stack};
use crate::trees::{self, Tree};
use crate::walk::names_in;
use crate::{branch, state};

/// What stands against a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theirs {
    /// It was changed there too.
    Changed,
    /// It was deleted there.
    Deleted,
    /// There is something already.
    Added,
    /// The directory that it belongs in is not there.
    NoDirectory,
    /// The directory that it belongs in is a link there, or no directory at all.
    NotADirectory,
    /// Something is mounted there.
    Mounted,
}

impl Theirs {
    /// The word for it in documents.
    pub fn name(self) -> &'static str {
        match self {
            Theirs::Changed => "changed",
            Theirs::Deleted => "deleted",
            Theirs::Added => "added",
            Theirs::NoDirectory => "noDirectory",
            Theirs::NotADirectory => "notADirectory",
            Theirs::Mounted => "mounted",
        }
    }

    /// Whether the overlay's side can be taken.
    pub fn can_be_overruled(self) -> bool {
        !matches!(self, Theirs::NotADirectory | Theirs::Mounted)
    }
}

/// A moment, seconds and nanoseconds.
pub type Moment = (i64, i64);

/// What the judging goes by.
pub struct Judge<'a> {
    target: &'a Target,
    shown: &'a Shown,
    /// The lowers of each tree, where the target is another directory.
    before: Vec<(Tree, Stack)>,
    since: Moment,
    known: &'a Known,
    /// What the lowers had, where that was listed.
    listing: Option<Listing>,
}

impl<'a> Judge<'a> {
    /// Opens what is needed.
    pub fn new(overlay: &Overlay, dir: &Path, target: &'a Target, shown: &'a Shown, known: &'a Known) -> Result<Self> {
        let mut before = Vec::new();
        if !target.own || !overlay.held.is_empty() {
            for tree in trees::of(overlay) {
                let stack = Stack::open(&tree.lowers, Marks::of(overlay), None)?;
                before.push((tree, stack));
            }
        }
        let listing = if target.own { Listing::read(&branch::origin(overlay, dir))? } else { None };
        let since = state::moment(overlay.since.as_ref().unwrap_or(&overlay.created))?;
        Ok(Judge { target, shown, before, since, known, listing })
    }

    /// What stands against a change; `None` where nothing does.
    pub fn against(&self, change: &Change) -> Result<Option<Theirs>> {
        let path = bare(&change.path);
        if self.shown.is_mounted_file(&path) {
            return Ok(Some(Theirs::Mounted));
        }
        let found = match change.kind {
            Kind::Renamed => {
                let from = change.from.as_deref().map(bare).unwrap_or_default();
                match self.to_delete(&from)? {
                    None => self.to_add(&path, change)?,
                    against => against,
                }
            }
            Kind::Added => self.to_add(&path, change)?,
            Kind::Deleted => self.to_delete(&path)?,
            Kind::Modified | Kind::Type | Kind::Opaque => self.to_change(&path, change)?,
        };
        Ok(found)
    }

    fn to_add(&self, path: &[u8], change: &Change) -> Result<Option<Theirs>> {
        let there = match self.target.look(path)? {
            There::Nothing if self.was_deleted(path)? => return Ok(Some(Theirs::Deleted)),
            There::Nothing => return Ok(None),
            There::NoDirectory(why) => return Ok(Some(no_directory(why))),
            There::Entry(there) => there,
        };
        if is_mounted_on(&there)? {
            return Ok(Some(Theirs::Mounted));
        }
        if change.file_type == FileType::Directory && is_dir(&there.stat) {
            return Ok(None);
        }
        let ours = self.shown.must(path)?;
        Ok(if !is_dir(&there.stat) && same(&ours, &there)? { None } else { Some(Theirs::Added) })
    }

    fn to_delete(&self, path: &[u8]) -> Result<Option<Theirs>> {
        let there = match self.target.look(path)? {
            There::Nothing | There::NoDirectory(Errno::NOENT) => return Ok(None),
            There::NoDirectory(why) => return Ok(Some(no_directory(why))),
            There::Entry(there) => there,
        };
        self.is_as_before(path, &there)
    }

    fn to_change(&self, path: &[u8], change: &Change) -> Result<Option<Theirs>> {
        let there = match self.target.look(path)? {
            // Applied before, and made anew in the overlay since.
            There::Nothing if self.target.own && self.known.is_gone(path) => return Ok(None),
            There::Nothing => return Ok(Some(Theirs::Deleted)),
            There::NoDirectory(why) => return Ok(Some(no_directory(why))),
            There::Entry(there) => there,
        };
        if change.file_type == FileType::Directory && change.kind != Kind::Type {
            return Ok(match is_dir(&there.stat) {
                false => Some(Theirs::Changed),
                true if self.target.own && self.attributes_changed(path, &there.stat) => Some(Theirs::Changed),
                true => None,
            });
        }
        match self.is_as_before(path, &there)? {
            Some(Theirs::Changed) if !is_dir(&there.stat) && same(&self.shown.must(path)?, &there)? => Ok(None),
            against => Ok(against),
        }
    }

    /// Every change in a directory stamps both of its times, one of its attributes only the one.
    fn attributes_changed(&self, path: &[u8], stat: &Stat) -> bool {
        match self.listed(path) {
            Some(listed) => !listed.is_some_and(|listed| listed.is(&Seen::of(stat))) && !self.known.has(path, stat),
            None => self.is_anothers(path, stat) && changed(stat) != modified(stat),
        }
    }

    /// What the listing has of a path; `None` where there is no listing.
    fn listed(&self, path: &[u8]) -> Option<Option<&Seen>> {
        let (place, inside) = self.target.place_of(path);
        let entries = self.listing.as_ref()?.of(&self.target.places()[place].path)?;
        Some(entries.get(inside))
    }

    /// Whether somebody else has deleted what the overlay was made over.
    fn was_deleted(&self, path: &[u8]) -> Result<bool> {
        if !self.target.own || self.known.is_gone(path) {
            return Ok(false);
        }
        if let Some(listed) = self.listed(path) {
            return Ok(listed.is_some());
        }
        let Some((stack, dir, name, above)) = self.before(path)? else { return Ok(false) };
        Ok(stack.lookup(&dir, &name, &above)?.is_some())
    }

    /// What stands against what is at a path of the target being replaced or deleted.
    fn is_as_before(&self, path: &[u8], there: &Entry) -> Result<Option<Theirs>> {
        if is_mounted_on(there)? {
            return Ok(Some(Theirs::Mounted));
        }
        let is_new = |path: &[u8], stat: &Stat| self.is_anothers(path, stat);
        let same = match (self.target.own, self.before.is_empty()) {
            (true, true) => !any_below(path, there, &is_new)?,
            (true, false) => !any_below(path, there, &is_new)? || self.same_as_lowers(path, there)?,
            (false, _) => self.same_as_lowers(path, there)?,
        };
        Ok((!same).then_some(Theirs::Changed))
    }

    fn same_as_lowers(&self, path: &[u8], there: &Entry) -> Result<bool> {
        let Some((stack, dir, name, path)) = self.before(path)? else { return Ok(false) };
        let Some((layer, stat)) = stack.lookup(&dir, &name, &path)? else { return Ok(false) };
        let lower = Entry { dir: dir.layer(layer).try_clone_to_owned()?, name: name.clone(), stat };
        if !is_dir(&stat) || !is_dir(&there.stat) {
            return same(&lower, there);
        }
        let below = stack.child(&dir, &name, &path)?;
        let there = open_child(there)?;
        same_trees(stack, &below, &join(&path, name.to_bytes()), there)
    }

    /// Where a path of the merged view is in the lowers: the directory, and the name in it.
    #[allow(clippy::type_complexity)]
    fn before(&self, path: &[u8]) -> Result<Option<(&Stack, Dir, CString, Vec<u8>)>> {
        let found = self.before.iter().rev().find_map(|(tree, stack)| Some((inside(path, &tree.prefix)?, stack)));
        let Some((inside, stack)) = found else { return Ok(None) };
        let (above, name) = split(inside);
        let name = CString::new(if name.is_empty() { b"." } else { name })?;
        Ok(Some((stack, stack.find(above)?, name, above.to_vec())))
    }
}

fn no_directory(why: Errno) -> Theirs {
    match why {
        Errno::NOENT => Theirs::NoDirectory,
        Errno::XDEV => Theirs::Mounted,
        _ => Theirs::NotADirectory,
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether something is true of an entry (at `path`), or of anything below it. What is mounted below counts as true.
pub fn any_below(path: &[u8], entry: &Entry, is: &dyn Fn(&[u8], &Stat) -> bool) -> Result<bool> {
    if is(path, &entry.stat) {
        return Ok(true);
    }
    if !is_dir(&entry.stat) {
        return Ok(false);
    }
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut pending = vec![(path.to_vec(), open_child(entry)?)];
    while let Some((path, dir)) = pending.pop() {
        for (name, _) in names_in(&dir, &mut buffer)? {
            let stat = match statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(true),
                Err(e) => return Err(e.into()),
            };
            let path = join(&path, name.to_bytes());
            if stat.st_dev != entry.stat.st_dev || is(&path, &stat) {
                return Ok(true);
            }
            if is_dir(&stat) {
                pending.push((path, open_named(&dir, &name)?));
            }
        }
    }
    Ok(false)
}

fn open_child(entry: &Entry) -> Result<OwnedFd> {
    open_named(&entry.dir, &entry.name)
}

fn open_named(dir: &OwnedFd, name: &CString) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, &**name, flags, Mode::empty()).with_context(|| name.to_string_lossy().into_owned())
}

/// Whether two entries are the same to who looks at type, permissions, and content, target or device number.
pub fn same(a: &Entry, b: &Entry) -> Result<bool> {
    let (kind, mode) = (FileType::from_raw_mode(a.stat.st_mode), |entry: &Entry| entry.stat.st_mode & 0o7777);
    if kind != FileType::from_raw_mode(b.stat.st_mode) || (kind != FileType::Symlink && mode(a) != mode(b)) {
        return Ok(false);
    }
    let target = |entry: &Entry| readlinkat(&entry.dir, &*entry.name, Vec::new());
    Ok(match kind {
        FileType::RegularFile => a.stat.st_size == b.stat.st_size && same_content(a, b)?,
        FileType::Symlink => target(a)? == target(b)?,
        FileType::CharacterDevice | FileType::BlockDevice => a.stat.st_rdev == b.stat.st_rdev,
        _ => true,
    })
}

fn same_content(a: &Entry, b: &Entry) -> Result<bool> {
    same_bytes(
        &open_file(&a.dir, &a.name, &a.stat)?,
        &open_file(&b.dir, &b.name, &b.stat)?,
        &mut Vec::new(),
        &mut Vec::new(),
    )
}

/// Whether a directory is, with all below it, what the lowers have.
fn same_trees(stack: &Stack, lower: &Dir, path: &[u8], there: OwnedFd) -> Result<bool> {
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let entries = stack.list(lower, path, &mut buffer)?;
    let ours: HashSet<CString> = names_in(&there, &mut buffer)?.into_iter().map(|(name, _)| name).collect();
    if entries.len() != ours.len() || !entries.iter().all(|entry| ours.contains(&entry.name)) {
        return Ok(false);
    }
    for entry in entries {
        let stat_of = |dir, name: &CString| statat(dir, &**name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT);
        let lower_dir = lower.layer(entry.layer);
        let (before, now) = (stat_of(lower_dir, &entry.name)?, stat_of(there.as_fd(), &entry.name)?);
        let same = if is_dir(&before) && is_dir(&now) {
            let below = stack.child(lower, &entry.name, path)?;
            same_trees(stack, &below, &join(path, entry.name.to_bytes()), open_named(&there, &entry.name)?)?
        } else {
            let before = Entry { dir: lower_dir.try_clone_to_owned()?, name: entry.name.clone(), stat: before };
            same(&before, &Entry { dir: there.try_clone()?, name: entry.name.clone(), stat: now })?
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Judge<'_> {
    /// Whether there is no directory at a path of the target.
    pub fn is_free(&self, path: &[u8]) -> Result<bool> {
        Ok(!matches!(self.target.look(path)?, There::Entry(ref there) if is_dir(&there.stat)))
    }

    /// Whether somebody else has changed something in the target.
    pub fn is_anothers(&self, path: &[u8], stat: &Stat) -> bool {
        if !self.target.own || self.known.has(path, stat) {
            return false;
        }
        match self.listed(path) {
            Some(listed) => listed.is_none_or(|listed| (listed.ino, listed.changed) != (stat.st_ino, changed(stat))),
            None => changed(stat) > self.since,
        }
    }

    /// Whether only the times of a directory were changed in the overlay, and the target has it as it was before.
    pub fn only_times(&self, path: &[u8], stat: &Stat) -> Result<bool> {
        let There::Entry(there) = self.target.look(path)? else { return Ok(false) };
        if !is_dir(&there.stat) || modified(&there.stat) == modified(stat) || self.is_anothers(path, &there.stat) {
            return Ok(false);
        }
        let Some((stack, dir, name, above)) = self.before(path)? else { return Ok(true) };
        let before = match name.to_bytes() {
            b"." => dir.stat().copied(),
            _ => stack.lookup(&dir, &name, &above)?.map(|(_, stat)| stat),
        };
        Ok(before.is_some_and(|before| is_dir(&before) && modified(&before) != modified(stat)))
    }
}

fn modified(stat: &Stat) -> Moment {
    (stat.st_mtime, stat.st_mtime_nsec as i64)
}
