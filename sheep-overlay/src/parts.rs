//! The parts of a new overlay: which mounts below its lowers become trees of their own, which are bound as they are, and
//! what goes into the covers.
//!
//! OverlayFS shows an empty directory where something is mounted below a lower. So each such mount gets an overlay of its own,
//! mounted in its place in the merged view; what is the kernel's own (proc, sys, dev) is bound as it is; of a file
//! that is mounted on a file a copy is bound in its place. Where OverlayFS refuses a file system as a
//! lower, it is bound read-only, and said so (see [`crate::assemble`]).
//!
//! In a user namespace the kernel refuses a lower with mounts below it altogether, for these are locked together with what
//! they cover (mount_namespaces(7)). Such a directory is shown entry by entry: each directory in it is a tree of its own, and what
//! is no directory is put into its cover.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::backend::kernel;
use crate::cover::{Cover, Put};
use crate::doc::{DocPath, How, Mount, MountRoot, Overlay};
use crate::layer::{self, Marks, Opaque};
use crate::lowers::{Lower, open_path};
use crate::mountinfo::{self, Entry};
use crate::{cover, exit, remove, upper};

/// File systems of the kernel's own: their files are no data, and a copy of them has no meaning.
const PSEUDO: [&str; 22] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
];

/// What else is asked for, beside the stack.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The overlay's directory.
    pub dir: &'a Path,
    /// Where all overlays of the data directory are: never part of a view.
    pub overlays: &'a Path,
    /// Whether mounts below the lowers are part of the view.
    pub recursive: bool,
    /// Whether the mount is made in a user namespace.
    pub user_namespace: bool,
}

/// A tree that is being planned.
#[derive(Debug, Default)]
struct Tree {
    /// From the merged directory on, relative; empty for the root.
    at: PathBuf,
    /// Bottom first.
    lowers: Vec<PathBuf>,
    split: bool,
}

struct Plan<'a> {
    wanted: Wanted<'a>,
    below: Vec<Entry>,
    /// Hidden, from the merged directory on.
    hide: Vec<PathBuf>,
    trees: Vec<Tree>,
    /// What is bound: from the merged directory on, what, and how.
    bound: Vec<(PathBuf, PathBuf, How)>,
}

/// Plans the parts of a new overlay on `lowers`, and makes their directories: notes them in `overlay.mounts`, `cover` and
/// `split`. Errors where a path that is to be hidden is in something that is bound.
pub fn plan(overlay: &mut Overlay, lowers: &[Lower], wanted: Wanted<'_>) -> Result<()> {
    let table = mountinfo::read()?;
    let mut below = Vec::new();
    for lower in lowers {
        below.extend(mountinfo::below(&table, &lower.path));
    }
    let inside =
        |path: &Path| lowers.iter().find_map(|lower| path.strip_prefix(&lower.path).ok().map(Path::to_path_buf));
    let mut hide: Vec<PathBuf> = overlay.hide.iter().map(|path| relative(path)).collect();
    // A lower may hold the data directory: the overlay would show its own workings, and overlays would be stacked on overlays.
    if let Some(own) = inside(wanted.overlays) {
        hide.push(own);
    }
    if below.is_empty() && hide.is_empty() {
        return Ok(());
    }
    let mut plan = Plan { wanted, below, hide, trees: Vec::new(), bound: Vec::new() };
    plan.below
        .retain(|entry| !plan.hide.iter().any(|hidden| inside(&entry.point).is_some_and(|at| at.starts_with(hidden))));
    let paths: Vec<PathBuf> = lowers.iter().map(|lower| lower.path.clone()).collect();
    plan.root(&paths)?;
    plan.cover_hidden()?;
    plan.note(overlay)
}

/// A path given by a user, from the merged directory on, without `.`, `..` and a leading slash.
pub fn relative(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

impl Plan<'_> {
    fn root(&mut self, lowers: &[PathBuf]) -> Result<()> {
        if let ([only], true) = (lowers, self.is_locked(lowers)) {
            return self.entry_by_entry(only, PathBuf::new());
        }
        if self.is_locked(lowers) {
            let names: Vec<String> = self.below.iter().map(|entry| entry.point.display().to_string()).collect();
            return Err(exit::usage(format!(
                "{} is mounted below a lower: in a user namespace only one lower may have mounts below it, not several that are stacked; \
                 be root, or use --backend copy",
                names.join(", ")
            )));
        }
        self.trees.push(Tree { lowers: lowers.to_vec(), ..Tree::default() });
        if !self.wanted.recursive {
            return Ok(());
        }
        // Parents come before what is mounted in them.
        let points: BTreeSet<PathBuf> = self
            .below
            .iter()
            .filter_map(|entry| lowers.iter().find_map(|lower| entry.point.strip_prefix(lower).ok()))
            .map(Path::to_path_buf)
            .collect();
        for at in points {
            if self.is_in_bound(&at) {
                continue;
            }
            let Some(entry) =
                self.below.iter().rev().find(|entry| lowers.iter().any(|lower| entry.point == lower.join(&at)))
            else {
                continue;
            };
            let (point, pseudo) = (entry.point.clone(), is_pseudo(entry, lowers));
            if !is_directory(&point) {
                self.bound.push((at, point, How::File));
            } else if pseudo {
                self.bound.push((at, point, How::Bind));
            } else if let lowers @ [_, ..] = &*layered(lowers, &at)? {
                self.trees.push(Tree { at, lowers: lowers.to_vec(), ..Tree::default() });
            }
        }
        Ok(())
    }

    /// Whether the kernel will not take one of the lowers because of the mounts below it.
    fn is_locked(&self, lowers: &[PathBuf]) -> bool {
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let refused = |lower: &PathBuf| open_tree(CWD, lower, clone).err() == Some(Errno::INVAL);
        self.wanted.user_namespace
            && lowers
                .iter()
                .any(|lower| self.below.iter().any(|entry| entry.point.starts_with(lower)) && refused(lower))
    }

    fn is_in_bound(&self, at: &Path) -> bool {
        self.bound.iter().any(|(bound, _, _)| at.starts_with(bound))
    }

    /// A directory with locked mounts below it.
    fn entry_by_entry(&mut self, dir: &Path, at: PathBuf) -> Result<()> {
        let names = match list(dir) {
            Ok(names) => names,
            Err(e) if at.as_os_str().is_empty() => return Err(e).with_context(|| format!("lower {}", dir.display())),
            // What this user cannot list he cannot overlay either.
            Err(_) => {
                self.bound.push((at, dir.to_path_buf(), How::ReadOnly));
                return Ok(());
            }
        };
        self.trees.push(Tree { at: at.clone(), lowers: vec![dir.to_path_buf()], split: true });
        for name in names {
            let (point, inside) = (dir.join(&name), at.join(&name));
            if self.hide.contains(&inside) || !is_directory(&point) {
                continue;
            }
            let mounted = self.below.iter().rev().find(|entry| entry.point == point);
            match mounted {
                Some(_) if !self.wanted.recursive => {}
                Some(entry) if is_pseudo(entry, &[dir.to_path_buf()]) => self.bound.push((inside, point, How::Bind)),
                _ if self.is_locked(std::slice::from_ref(&point)) => self.entry_by_entry(&point, inside)?,
                _ => self.trees.push(Tree { at: inside, lowers: vec![point], ..Tree::default() }),
            }
        }
        Ok(())
    }

    /// Covers each hidden path that is in the view with something empty. Where the lower is shown entry by entry it need
    /// not be shown at all.
    fn cover_hidden(&mut self) -> Result<()> {
        for hidden in &self.hide {
            if let Some((bound, _, how)) = self.bound.iter().find(|(bound, _, _)| hidden.starts_with(bound)) {
                let why = if *how == How::Bind { "bound into the view as it is" } else { "bound read-only" };
                return Err(exit::usage(format!("--hide /{}: /{} is {why}", hidden.display(), bound.display())));
            }
            let Some(tree) = self.trees.iter().rev().find(|tree| hidden.starts_with(&tree.at)) else { continue };
            let inside = hidden.strip_prefix(&tree.at).unwrap_or(hidden);
            if tree.split && inside.parent() == Some(Path::new("")) {
                continue;
            }
            let there = tree.lowers.iter().rev().find_map(|lower| std::fs::symlink_metadata(lower.join(inside)).ok());
            if let Some(there) = there {
                let name = if there.is_dir() { "empty" } else { "nothing" };
                self.bound.push((hidden.clone(), self.wanted.dir.join(name), How::Hidden));
            }
        }
        Ok(())
    }

    /// Makes the directories, and notes the parts.
    fn note(self, overlay: &mut Overlay) -> Result<()> {
        let mut mounts = Vec::new();
        for tree in &self.trees {
            let (top, number) = (tree.at.as_os_str().is_empty(), mounts.len());
            let place = if top { self.wanted.dir.to_path_buf() } else { part_dir(self.wanted.dir, number) };
            if !top {
                make_dirs(&place)?;
            }
            let (cover, left_out) = match self.cover(tree, &place) {
                Err(error) if !top && is_gone(&error) => {
                    start_part_anew(self.wanted.dir, number)?;
                    continue;
                }
                made => made?,
            };
            if top {
                (overlay.cover, overlay.split) = (cover, tree.split);
            } else {
                let mut mount = Mount {
                    path: absolute(&tree.at),
                    how: How::Overlay,
                    lower: tree.lowers.iter().map(|lower| lower.clone().into()).collect(),
                    upper: None,
                    work: None,
                    cover,
                    split: tree.split,
                    root: None,
                    reason: None,
                };
                place_mount(&mut mount, overlay.tmpfs.is_some(), self.wanted.dir, self.wanted.dir, number);
                for dir in mount.upper.iter().chain(&mount.work) {
                    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
                }
                match take_root(&tree.lowers, mount.upper.as_ref()) {
                    Err(error) if is_gone(&error) => {
                        start_part_anew(self.wanted.dir, number)?;
                        continue;
                    }
                    // What is shown entry by entry lies on its cover, which nobody exchanges.
                    root => mount.root = root?.filter(|_| !tree.split),
                }
                mounts.push(mount);
            }
            for name in left_out {
                let reason = Some("it cannot be copied by this user".to_owned());
                mounts.push(bound_mount(&tree.at.join(&name), self.lower_of(tree, &name), How::ReadOnly, reason));
            }
        }
        for (at, what, how) in &self.bound {
            mounts.push(self.bound(at, what, *how, mounts.len())?);
        }
        overlay.mounts = mounts;
        Ok(())
    }

    /// Notes something that is bound, and makes what is needed for it.
    fn bound(&self, at: &Path, what: &Path, how: How, number: usize) -> Result<Mount> {
        let mut how = how;
        let mut reason = match how {
            How::Bind => Some("it is the kernel's own"),
            How::ReadOnly => Some("it cannot be listed by this user"),
            How::File | How::Hidden | How::Overlay => None,
        };
        if how == How::Hidden {
            make_empty(self.wanted.dir)?;
        }
        if how == How::File {
            let place = part_dir(self.wanted.dir, number);
            make_dirs(&place)?;
            if !cover::copy_file(what, &place.join("file"))? {
                (how, reason) = (How::ReadOnly, Some("it cannot be copied by this user"));
            }
        }
        let mut mount = bound_mount(at, what.to_path_buf(), how, reason.map(str::to_owned));
        place_mount(&mut mount, false, self.wanted.dir, self.wanted.dir, number);
        Ok(mount)
    }

    fn lower_of(&self, tree: &Tree, name: &Path) -> PathBuf {
        tree.lowers.last().map(|lower| lower.join(name)).unwrap_or_default()
    }

    /// Makes the cover of a tree that is shown entry by entry. Also gives the entries for which there are only placeholders.
    fn cover(&self, tree: &Tree, place: &Path) -> Result<(Option<DocPath>, Vec<PathBuf>)> {
        if !tree.split {
            return Ok((None, Vec::new()));
        }
        let path = place.join("cover");
        let Some(lower) = tree.lowers.last() else { return Ok((None, Vec::new())) };
        let left_out = self.entries(tree, &Cover::make(&path, &crate::lowers::open_one(lower)?)?)?;
        Ok((Some(path.into()), left_out))
    }

    /// All entries of a directory that is shown entry by entry.
    fn entries(&self, tree: &Tree, cover: &Cover) -> Result<Vec<PathBuf>> {
        let mut left_out = Vec::new();
        for dir in &tree.lowers {
            let from = open_path(dir).with_context(|| dir.display().to_string())?;
            for name in list(dir)? {
                if self.hide.contains(&tree.at.join(&name)) {
                    continue;
                }
                let raw = CString::new(name.as_os_str().as_bytes())?;
                let describe = || dir.join(&name).display().to_string();
                let stat = match statat(&from, &*raw, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
                    Err(Errno::NOENT) => continue,
                    stat => stat.with_context(describe)?,
                };
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    cover.put_directory(&raw, &stat).with_context(describe)?;
                    continue;
                }
                match cover.put_entry(from.as_fd(), &raw).with_context(describe) {
                    Ok(Put::Placeholder) => left_out.push(name),
                    Ok(Put::Done) => {}
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(left_out)
    }
}

/// Whether an error is that something was there when the mounts or a directory were listed, and is not any more: with all of
/// `/` in the view, there is always something that comes and goes.
fn is_gone(error: &anyhow::Error) -> bool {
    exit::kind(error) == Some(exit::Kind::NotFound) || matches!(error.downcast_ref::<Errno>(), Some(&Errno::NOENT))
}

/// Deletes what was made for a part that is not to be; the next one gets its number.
fn start_part_anew(dir: &Path, number: usize) -> Result<()> {
    remove::tree(&dir.join("mounts"), &CString::new(number.to_string())?)
}

fn bound_mount(at: &Path, what: PathBuf, how: How, reason: Option<String>) -> Mount {
    let lower = vec![what.into()];
    Mount { path: absolute(at), how, lower, upper: None, work: None, cover: None, split: false, root: None, reason }
}

fn absolute(at: &Path) -> DocPath {
    Path::new("/").join(at).into()
}

/// Where the workings of a part are: its cover, and unless the changes are in memory its upper and work directory.
pub fn part_dir(dir: &Path, number: usize) -> PathBuf {
    dir.join("mounts").join(number.to_string())
}

/// Sets the paths of a part that are in the overlay's directory, or in that of the overlay that has the covers.
pub fn place_mount(mount: &mut Mount, tmpfs: bool, dir: &Path, covers: &Path, number: usize) {
    match mount.how {
        How::Overlay => {}
        How::File => {
            mount.upper = Some(part_dir(dir, number).join("file").into());
            return;
        }
        How::Bind | How::ReadOnly | How::Hidden => return,
    }
    let base = if tmpfs { part_dir(&dir.join("tmpfs"), number) } else { part_dir(dir, number) };
    mount.upper = Some(base.join("upper").into());
    mount.work = Some(base.join("work").into());
    if mount.cover.is_some() {
        mount.cover = Some(part_dir(covers, number).join("cover").into());
    }
}

/// What lies over hidden things: an empty directory and an empty file.
fn make_empty(dir: &Path) -> Result<()> {
    make_dirs(&dir.join("empty"))?;
    let nothing = dir.join("nothing");
    std::fs::write(&nothing, "").with_context(|| nothing.display().to_string())
}

fn make_dirs(dir: &Path) -> Result<()> {
    crate::state::make_private_dir(dir).with_context(|| dir.display().to_string())
}

/// The root of a part looks like that of its topmost lower, which is given.
fn take_root(lowers: &[PathBuf], to: Option<&DocPath>) -> Result<Option<MountRoot>> {
    let (Some(lower), Some(to)) = (lowers.last(), to) else { return Ok(None) };
    let lower = crate::lowers::open_one(lower)?;
    upper::take_attributes(&lower, to)?;
    Ok(Some(MountRoot { inode: lower.stat.st_ino, mode: lower.stat.st_mode }))
}

fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Whether a mount is the kernel's own. `/dev` counts as one however it is made.
fn is_pseudo(entry: &Entry, lowers: &[PathBuf]) -> bool {
    let dev = entry.point == Path::new("/dev") && lowers.iter().any(|lower| lower == Path::new("/"));
    dev || PSEUDO.contains(&entry.fs_type.as_str())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Errno> {
    let opened = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut names = Vec::new();
    let mut entries = RawDir::new(opened, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(PathBuf::from(OsStr::from_bytes(name)));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The directories at `at` that merge in the view of `lowers` (bottom first, as they are given back): a whiteout, an opaque
/// directory or anything that is no directory hides what is below it.
fn layered(lowers: &[PathBuf], at: &Path) -> Result<Vec<PathBuf>> {
    let marks = if kernel::in_user_namespace() { Marks::User } else { Marks::of_this_process() };
    let mut merging = Vec::new();
    'lowers: for lower in lowers.iter().rev() {
        let mut path = lower.clone();
        let mut hides = false;
        for part in at.components() {
            path.push(part);
            match openat(
                CWD,
                &path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(dir) => hides |= layer::opaque(&dir, marks)? == Opaque::Yes,
                Err(Errno::NOENT) => {
                    if hides {
                        break 'lowers;
                    }
                    continue 'lowers;
                }
                // A directory that this user cannot read has no marks that he could see.
                Err(Errno::ACCESS) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => break 'lowers,
                Err(e) => return Err(e).with_context(|| path.display().to_string()),
            }
        }
        merging.push(path);
        if hides {
            break;
        }
    }
    merging.reverse();
    Ok(merging)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_paths_begin_at_the_top_and_stay_inside() {
        for (given, want) in [("/a/b", "a/b"), ("a/b/", "a/b"), ("./a", "a"), ("../../a", "a"), ("/", "")] {
            assert_eq!(relative(Path::new(given)), Path::new(want), "{given}");
        }
    }
}
