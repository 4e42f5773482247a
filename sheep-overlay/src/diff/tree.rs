//! The walk that finds the changes: the overlay's own tree beside the merged view of the lowers.
//!
//! OverlayFS keeps changes in the upper, where a name that is not there is as in the lowers; in an opaque directory it is
//! deleted. A copy is like an upper in which every directory is opaque and nothing a whiteout, only that much of it was
//! never touched, and need not be compared; a btrfs snapshot is such a copy whose inodes are the lower's own.
//!
//! Nothing is asked of the lowers but what stands in the tree, so the time goes with the changes; for a copy, with its size.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Stat, StatxFlags, fstat, statat, statx};
use rustix::io::Errno;

use super::compare::{Compare, Entry};
use super::{Aspect, Depth, Kind, rename};
use crate::backend::copy::note::{Directories, Note};
use crate::doc::{Backend, Overlay};
use crate::inode::Inode;
use crate::layer::{self, Marks};
use crate::paths::join;
use crate::record;
use crate::stack::{self, Stack};
use crate::trees::Tree;
use crate::walk::{Pair, Pending, Walk, names_in};

/// The inode number of the empty directory that stands in a btrfs snapshot for a subvolume of the original, and that of
/// the root of every subvolume.
const EMPTY_SUBVOLUME: u64 = 2;
const SUBVOLUME_ROOT: u64 = 256;

/// A change of one tree.
#[derive(Debug)]
pub(super) struct Found {
    /// From the tree's root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub what: Vec<Aspect>,
    /// The old path, of what was renamed.
    pub from: Option<Vec<u8>>,
    /// The lower that has what was there before, by its place in the stack.
    pub lower: Option<usize>,
    /// The layer that has what is there now, by its place in the other stack, where there is one.
    pub layer: usize,
    /// Its type now, or what it was before it was deleted.
    pub file_type: FileType,
    /// The attributes before and now, as far as they were looked at.
    pub old: Option<Box<Stat>>,
    pub new: Option<Box<Stat>>,
}

/// How a tree keeps changes.
enum Kept {
    /// As OverlayFS, or fuse-overlayfs, writes an upper.
    Upper,
    /// It is a copy; the note says when it was made, and of which directories.
    Copy(Note, Directories),
    /// It is a btrfs snapshot.
    Snapshot,
}

/// A directory still to be looked at.
struct Visit {
    pending: Pending,
    /// A name that is not here is deleted; else it is as in the lowers.
    exact: bool,
    /// It is in the directory that was copied here.
    in_place: bool,
}

struct Diff<'a> {
    walk: &'a Walk,
    compare: Compare<'a>,
    kept: &'a Kept,
    marks: Marks,
    listing: Vec<MaybeUninit<u8>>,
    found: Vec<Found>,
}

/// The changes in a tree of an overlay, in no order, with the stack of its lowers.
pub(super) fn changes(overlay: &Overlay, tree: &Tree, depth: Depth) -> Result<(Vec<Found>, Stack)> {
    let is_root = tree.prefix.is_empty();
    // Where it was made, which with --at is not where it is seen.
    let made = record::dir_of(overlay).join("merged");
    let (real, own, kept) = match overlay.backend {
        Backend::Copy if is_root => {
            let (note, directories) = Note::read(&made)?;
            (&*made, made.parent(), Kept::Copy(note, directories))
        }
        Backend::Btrfs if is_root => (&*made, None, Kept::Snapshot),
        _ => (&*tree.upper, None, Kept::Upper),
    };
    let marks = Marks::of(overlay);
    let walk = open(real, tree, marks, own)?;
    let note = if let Kept::Copy(note, _) = &kept { Some(note) } else { None };
    let compare = Compare::new(&walk.stack, note, overlay.backend == Backend::Fuse, depth);
    let listing = vec![MaybeUninit::uninit(); 32 << 10];
    let mut diff = Diff { walk: &walk, compare, kept: &kept, marks, listing, found: Vec::new() };
    diff.run()?;
    let mut found = diff.found;
    let identity = match kept {
        Kept::Upper => rename::Identity::Origin(marks),
        Kept::Snapshot => rename::Identity::Inode,
        Kept::Copy(..) => rename::Identity::None,
    };
    let places = rename::Places { old: &walk.stack, new: rename::New::Tree(&walk.root.real), name: &walk.real_name };
    rename::pair_up(places, &mut diff.compare, identity, &mut found)?;
    Ok((found, walk.stack))
}

fn open(real: &Path, tree: &Tree, marks: Marks, own: Option<&Path>) -> Result<Walk> {
    let name = real.display().to_string();
    // What is mounted somewhere in a copy is no part of it.
    let (real, _) = stack::open_alone(real).with_context(|| name.clone())?;
    Walk::new(Stack::open(&tree.lowers, marks, own)?, real, name)
}

impl Diff<'_> {
    fn run(&mut self) -> Result<()> {
        let exact = !matches!(self.kept, Kept::Upper);
        let mut visits = vec![Visit { pending: self.walk.root_pending(), exact, in_place: true }];
        // The last first: then the directories kept open are those of one branch.
        while let Some(visit) = visits.pop() {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let pair = match self.walk.enter(&visit.pending) {
                Ok(pair) => pair,
                // Deleted since its parent was read.
                Err(error) if is_gone(&error) && !visit.pending.path.is_empty() => continue,
                Err(error) => return Err(error),
            };
            let path = &visit.pending.path;
            self.directory(&pair, &visit, &mut visits).with_context(|| self.walk.describe_real(path))?;
        }
        Ok(())
    }

    fn directory(&mut self, pair: &std::sync::Arc<Pair>, visit: &Visit, visits: &mut Vec<Visit>) -> Result<()> {
        let path = &visit.pending.path;
        let own = self.itself(pair, visit)?;
        let mut exact = visit.exact || own.opaque;
        let mut names = HashSet::new();
        let mut deleted = Vec::new();
        for (name, kind) in names_in(&pair.real, &mut self.listing)? {
            if self.compare.fuse && matches!(self.kept, Kept::Upper) && name.to_bytes().starts_with(b".wh.") {
                // Where fuse-overlayfs may not make whiteouts, it marks by names.
                match &name.to_bytes()[4..] {
                    b".wh..opq" => exact = true,
                    hidden => deleted.push(CString::new(hidden)?),
                }
                continue;
            }
            if kind == FileType::Directory {
                let pending = self.walk.pend(pair, path, name.to_bytes());
                visits.push(Visit { pending, exact, in_place: own.in_place });
            } else {
                self.entry(pair, path, &name, kind, own.in_place)
                    .with_context(|| name.to_string_lossy().into_owned())?;
            }
            if exact && !own.untouched {
                names.insert(name);
            }
        }
        for name in deleted {
            if let Some((layer, stat)) = self.walk.stack.lookup(&pair.lower, &name, path)? {
                self.deleted(pair, join(path, name.to_bytes()), layer, FileType::from_raw_mode(stat.st_mode), None);
            }
        }
        if exact && !own.untouched {
            let devices_left_out = matches!(self.kept, Kept::Copy(note, _) if note.devices_left_out);
            for entry in self.walk.stack.list(&pair.lower, path, &mut self.listing)? {
                let device = matches!(entry.kind, FileType::CharacterDevice | FileType::BlockDevice);
                let expected = !(device && devices_left_out);
                if expected && !names.contains(&entry.name) {
                    self.deleted(pair, join(path, entry.name.to_bytes()), entry.layer, entry.kind, None);
                }
            }
        }
        Ok(())
    }

    /// What became of a directory itself.
    fn itself(&mut self, pair: &Pair, visit: &Visit) -> Result<Own> {
        let path = &visit.pending.path;
        let mut own = Own { opaque: false, untouched: false, in_place: false };
        let (Some(lower), Some(lower_stat)) = (pair.lower.top(), pair.lower.stat()) else {
            let (kind, instead) = match &pair.instead {
                Some(instead) => (Kind::Type, Some(instead)),
                None => (Kind::Added, None),
            };
            let mut found = found(path.clone(), kind, FileType::Directory);
            if let Some((lower, stat)) = instead {
                (found.lower, found.old) = (Some(*lower), Some(Box::new(*stat)));
            }
            self.found.push(found);
            return Ok(own);
        };
        let stat = fstat(&pair.real)?;
        let mut anew;
        match self.kept {
            Kept::Upper => anew = visit.exact,
            Kept::Copy(note, directories) => {
                // A rename stamps the directory itself: one that was not touched was not moved here.
                own.untouched = visit.in_place && note.is_untouched(&stat);
                own.in_place = own.untouched || (visit.in_place && directories.get(path) == Some(&stat.st_ino));
                // The number of a directory that was deleted may have been given out again.
                anew = !own.in_place || (!own.untouched && born_after(&pair.real, note));
            }
            Kept::Snapshot if stat.st_ino == EMPTY_SUBVOLUME && lower_stat.st_ino == SUBVOLUME_ROOT => {
                own.untouched = true;
                return Ok(own);
            }
            Kept::Snapshot => {
                own.untouched = same_inode(lower_stat, &stat);
                anew = lower_stat.st_ino != stat.st_ino;
            }
        }
        if own.untouched {
            return Ok(own);
        }
        let real = Inode::Open(pair.real.as_fd());
        let (what, marked) = self.compare.directories(Inode::Open(lower), lower_stat, real, &stat)?;
        if marked && matches!(self.kept, Kept::Upper) {
            own.opaque = layer::is_opaque(&pair.real, self.marks)?
                || (self.compare.fuse && layer::is_opaque_to_fuse(&pair.real)?);
        }
        anew = (anew || own.opaque) && !path.is_empty();
        if anew || !what.is_empty() {
            let mut found = found(path.clone(), if anew { Kind::Opaque } else { Kind::Modified }, FileType::Directory);
            found.what = what;
            found.lower = pair.lower.lowers().first().copied();
            self.found.push(found);
        }
        Ok(own)
    }

    /// What became of a name that is no directory.
    fn entry(&mut self, pair: &Pair, path: &[u8], name: &CStr, kind: FileType, in_place: bool) -> Result<()> {
        let stat_real = || match statat(&pair.real, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Deleted since the directory was read.
            Err(Errno::NOENT) => Ok(None),
            stat => stat.map(Some),
        };
        let mut real = None;
        if let Kept::Copy(note, _) = self.kept {
            real = stat_real()?;
            let Some(stat) = &real else { return Ok(()) };
            // Most of a copy is as it was copied.
            if in_place && note.is_untouched(stat) {
                return Ok(());
            }
        }
        let lower = self.walk.stack.lookup(&pair.lower, name, path)?;
        // What is new need not be looked at, where only that is asked.
        let is_new = lower.is_none() && kind != FileType::CharacterDevice;
        if real.is_none() && !(is_new && self.compare.depth == Depth::Kinds) {
            real = stat_real()?;
            if real.is_none() {
                return Ok(());
            }
        }
        let is_whiteout = |stat: &Stat| matches!(self.kept, Kept::Upper) && layer::is_device_whiteout(stat);
        if real.as_ref().is_some_and(is_whiteout) {
            if let Some((layer, stat)) = lower {
                let kind = FileType::from_raw_mode(stat.st_mode);
                self.deleted(pair, join(path, name.to_bytes()), layer, kind, Some(stat));
            }
            return Ok(());
        }
        let (Some((layer, lower)), Some(stat)) = (lower, real) else {
            let mut found = found(join(path, name.to_bytes()), Kind::Added, kind);
            found.new = real.map(Box::new);
            self.found.push(found);
            return Ok(());
        };
        if matches!(self.kept, Kept::Snapshot) && same_inode(&lower, &stat) {
            return Ok(());
        }
        let kind = if FileType::from_raw_mode(lower.st_mode) == FileType::from_raw_mode(stat.st_mode) {
            Kind::Modified
        } else {
            Kind::Type
        };
        let what = if kind == Kind::Modified {
            let lower = Entry { dir: pair.lower.layer(layer), name, stat: &lower };
            self.compare.entries(lower, Entry { dir: pair.real.as_fd(), name, stat: &stat })?
        } else {
            Vec::new()
        };
        if kind == Kind::Type || !what.is_empty() {
            let mut found = found(join(path, name.to_bytes()), kind, FileType::from_raw_mode(stat.st_mode));
            found.what = what;
            found.lower = Some(pair.lower.lower_of(layer));
            (found.old, found.new) = (Some(Box::new(lower)), Some(Box::new(stat)));
            self.found.push(found);
        }
        Ok(())
    }

    fn deleted(&mut self, pair: &Pair, path: Vec<u8>, layer: usize, kind: FileType, stat: Option<Stat>) {
        let mut found = found(path, Kind::Deleted, kind);
        found.lower = Some(pair.lower.lower_of(layer));
        found.old = stat.map(Box::new);
        self.found.push(found);
    }
}

/// What a directory is, beside what changed of it.
struct Own {
    /// It hides the directory below.
    opaque: bool,
    /// It is as it was copied, and so are the names in it.
    untouched: bool,
    /// It is the very directory that was copied here.
    in_place: bool,
}

pub(super) fn found(path: Vec<u8>, kind: Kind, file_type: FileType) -> Found {
    Found { path, kind, what: Vec::new(), from: None, lower: None, layer: 0, file_type, old: None, new: None }
}

fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.root_cause().downcast_ref::<Errno>(), Some(&Errno::NOENT | &Errno::NOTDIR))
}

/// Whether an inode of a snapshot is the lower's, and was not touched since the snapshot was made.
fn same_inode(lower: &Stat, real: &Stat) -> bool {
    let of = |stat: &Stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec, stat.st_size, stat.st_mode);
    of(lower) == of(real)
}

/// Whether a directory was made after the copy was; false where the file system does not know.
fn born_after(dir: impl AsFd, note: &Note) -> bool {
    let Ok(stat) = statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME) else { return false };
    let born = (stat.stx_btime.tv_sec, i64::from(stat.stx_btime.tv_nsec));
    stat.stx_mask & StatxFlags::BTIME.bits() != 0 && born > note.to
}
