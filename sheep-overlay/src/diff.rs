//! `diff`: what changed in an overlay against its lowers.
//!
//! What counts as a change is the same for all backends, so that the same deeds give the same output:
//!
//! - `A`: the lowers have no such path. An added directory is listed, and everything in it.
//! - `D`: the lowers have it, the overlay has not. A deleted directory is one line.
//! - `M`: another mode, owner, content, link target, device number, or set of xattrs (ACLs and capabilities among them);
//!   for what is no directory, another modification time too, and more hard links. A directory whose entries changed is
//!   not a change itself. A file that was copied up and is as before is none either: opening it for writing does that.
//! - `T`: another type. What was in a directory that is none any more is not listed.
//! - `R`: what is no directory, deleted at one path and added at another, with the same content and attributes.
//! - `O`: a directory made anew in the place of one of the lowers; what that had and this has not is `D` besides.
//!
//! Hard links: a copy keeps them, so a write through one name changes them all; OverlayFS breaks them (`index=off`).
//! There the two differ, as what they show differs.

mod between;
mod compare;
mod patch;
mod rename;
mod show;
mod tree;

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::doc::{How, Mount, Overlay};
use crate::history::{self, Point, Span};
use crate::layer::Marks;
use crate::paths::join;
use crate::rotate;
use crate::stack::Stack;
use crate::trees::{self, Tree};

pub use compare::{Compare, Entry, same_bytes};
pub use patch::run as patch;
pub(crate) use patch::{Hunks, is_text};
pub use show::{document, escaped, human, line, run};

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the merged directory, beginning with `/`.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: Kind,
    /// In what it differs from before, sorted; only of what was modified, renamed (then xattrs at most), or made anew.
    pub what: Vec<Aspect>,
    /// The old path, of what was renamed.
    pub from: Option<PathBuf>,
    /// The lower directory that has what was there before; none for what was added.
    pub layer: Option<PathBuf>,
    /// How many bytes the content, or the link's target, had before; none for anything but files and symbolic links.
    pub old_size: Option<u64>,
    /// How many it has now.
    pub size: Option<u64>,
    /// Its type now, or what it was before it was deleted.
    pub file_type: FileType,
}

impl Change {
    /// Whether it is a directory that was not there before, in the place of nothing or of something else.
    pub fn makes_directory(&self) -> bool {
        self.file_type == FileType::Directory && matches!(self.kind, Kind::Added | Kind::Type)
    }
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is not in the lowers.
    Added,
    /// It differs from what the lowers have.
    Modified,
    /// The lowers have it, the merged view has not.
    Deleted,
    /// It is of another type than what the lowers have.
    Type,
    /// The lowers have it at another path, and there the merged view has nothing.
    Renamed,
    /// A directory that hides the lowers' of the same path instead of changing it.
    Opaque,
}

impl Kind {
    /// Every kind, as sums list them.
    pub const ALL: [Kind; 6] = [Kind::Added, Kind::Modified, Kind::Deleted, Kind::Type, Kind::Renamed, Kind::Opaque];

    /// The letter for it in lines.
    pub fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Modified => 'M',
            Kind::Deleted => 'D',
            Kind::Type => 'T',
            Kind::Renamed => 'R',
            Kind::Opaque => 'O',
        }
    }

    /// The word for it in documents.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Added => "added",
            Kind::Modified => "modified",
            Kind::Deleted => "deleted",
            Kind::Type => "type",
            Kind::Renamed => "renamed",
            Kind::Opaque => "opaque",
        }
    }
}

/// In what an inode can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// The bytes of a file.
    Content,
    /// Where a symbolic link leads.
    Target,
    /// The number of a device.
    Device,
    /// How many bytes a file has.
    Size,
    /// The permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Extended attributes other than ACLs.
    Xattr,
    /// The access control list, or a directory's default one.
    Acl,
    /// The modification time.
    Times,
    /// The number of hard links.
    Links,
}

impl Aspect {
    /// The word for it in documents.
    pub fn name(self) -> &'static str {
        match self {
            Aspect::Content => "content",
            Aspect::Target => "target",
            Aspect::Device => "device",
            Aspect::Size => "size",
            Aspect::Mode => "mode",
            Aspect::Owner => "owner",
            Aspect::Xattr => "xattr",
            Aspect::Acl => "acl",
            Aspect::Times => "times",
            Aspect::Links => "links",
        }
    }
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Which paths changed, and how; not all that is in [`Change::what`], nor the sizes.
    Kinds,
    /// All that a [`Change`] has.
    Everything,
    /// The same for who is to carry all of it elsewhere: times count to the nanosecond, and those of directories too.
    Exact,
}

/// The changes of an overlay, mounted or kept, sorted by the bytes of their paths. What is changed meanwhile may or may
/// not be among them.
pub fn changes(overlay: &Overlay) -> Result<Vec<Change>> {
    changes_to(overlay, Depth::Everything)
}

/// Like [`changes`], looking only as closely as is asked.
pub fn changes_to(overlay: &Overlay, depth: Depth) -> Result<Vec<Change>> {
    changes_between(overlay, Span::WHOLE, depth)
}

/// The changes between two states of an overlay. Errors with not found (3) where there is no such snapshot.
pub fn changes_between(overlay: &Overlay, span: Span, depth: Depth) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let sides = [span.from, span.to].map(|point| layers_at(overlay, point));
    let [before, after] = sides;
    let (before, after) = (before?, after?);
    for (number, tree) in trees::of(overlay).into_iter().enumerate() {
        let only_upper = span == Span::WHOLE && tree.frozen.is_empty();
        if only_upper && lies_elsewhere(&tree) {
            continue;
        }
        let found = if only_upper {
            tree::changes(overlay, &tree, depth)
        } else {
            between::changes(Marks::of(overlay), &tree.lowers, &before[number], &after[number], depth)
        };
        match found {
            Ok((found, stack)) => changes.extend(found.into_iter().map(|found| change(&tree.prefix, &stack, found))),
            // A part that its user cannot read, or that is gone by now, he has not changed either.
            Err(error) if !tree.prefix.is_empty() && is_untouched(&tree) && is_closed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let files = overlay.mounts.iter().enumerate().map(|(number, mount)| file_mount(overlay, span, number, mount));
    changes.extend(files.filter_map(Result::transpose).collect::<Result<Vec<_>>>()?);
    changes.sort_unstable_by(|a, b| bytes(&a.path).cmp(bytes(&b.path)));
    Ok(changes)
}

/// The changes from what a stack of layers shows to what another one does (each bottom first), sorted by the bytes of their paths.
/// Layers that both begin with are only looked at where those above them differ. `layer` of a change is a layer of the first stack.
/// A directory counts by what it shows: that it hides another one is no change of its own.
pub fn changes_of_stacks(old: &[PathBuf], new: &[PathBuf], marks: Marks, depth: Depth) -> Result<Vec<Change>> {
    let (found, stack) = between::changes(marks, &[], old, new, depth)?;
    let mut changes: Vec<Change> = found.into_iter().map(|found| change(b"", &stack, found)).collect();
    changes.retain(|change| change.kind != Kind::Opaque || !change.what.is_empty());
    changes.iter_mut().filter(|change| change.kind == Kind::Opaque).for_each(|change| change.kind = Kind::Modified);
    changes.sort_unstable_by(|a, b| bytes(&a.path).cmp(bytes(&b.path)));
    Ok(changes)
}

/// The layers on the lowers of each tree that make up a state of an overlay, bottom first.
fn layers_at(overlay: &Overlay, point: Point) -> Result<Vec<Vec<PathBuf>>> {
    let number = match point {
        Point::Lowers => return Ok(vec![Vec::new(); trees::of(overlay).len()]),
        Point::Now => return Ok(trees::of(overlay).iter().map(Tree::layers).collect()),
        Point::Snapshot(number) => number,
    };
    history::check(overlay, number)?;
    Ok(trees::on(overlay, number).into_iter().map(|tree| tree.frozen).collect())
}

fn change(prefix: &[u8], stack: &Stack, found: tree::Found) -> Change {
    Change {
        path: from_top(prefix, &found.path),
        kind: found.kind,
        what: found.what,
        from: found.from.map(|from| from_top(prefix, &from)),
        layer: found.lower.map(|lower| stack.lower(lower).to_path_buf()),
        old_size: found.old.as_deref().and_then(size),
        size: found.new.as_deref().and_then(size),
        file_type: found.file_type,
    }
}

/// Whether a part, of which no snapshot has anything, has no changes, only lies on another directory than it was made for: what was
/// mounted there is unmounted, or others made the directory anew. Its root is as it was, and differs from what is there now.
fn lies_elsewhere(tree: &Tree) -> bool {
    let (Some(made_for), Some(lower)) = (tree.root, tree.lowers.last()) else { return false };
    let is = |path: &Path, test: &dyn Fn(&Metadata) -> bool| std::fs::symlink_metadata(path).is_ok_and(|it| test(&it));
    is(lower, &|lower| (lower.ino(), lower.mode()) != (made_for.inode, made_for.mode))
        && is(&tree.upper, &|upper| upper.mode() == made_for.mode)
        && is_untouched(tree)
}

fn is_untouched(tree: &Tree) -> bool {
    std::fs::read_dir(&tree.upper).is_ok_and(|mut entries| entries.next().is_none())
}

fn is_closed(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Errno>(), Some(&Errno::ACCESS | &Errno::NOENT))
}

/// What became of a file that is mounted on a file of a lower, of which the view has a copy.
fn file_mount(overlay: &Overlay, span: Span, number: usize, mount: &Mount) -> Result<Option<Change>> {
    let at = |point| file_at(overlay, point, number, mount);
    let (Some(old), Some(new)) = (at(span.from), at(span.to)) else { return Ok(None) };
    let (old, new) = (&*old, &*new);
    let stat = |path: &Path| std::fs::metadata(path).with_context(|| path.display().to_string());
    let before = match std::fs::metadata(old) {
        // What was mounted there has gone since, with the place that it was mounted on.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        before => before.with_context(|| old.display().to_string())?,
    };
    let after = stat(new)?;
    let mut what = Vec::new();
    let mut differs = |aspect: Aspect, differs: bool| {
        if differs {
            what.push(aspect);
        }
    };
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    differs(Aspect::Content, before.len() != after.len() || read(old)? != read(new)?);
    differs(Aspect::Size, before.len() != after.len());
    differs(Aspect::Mode, before.mode() != after.mode());
    differs(Aspect::Owner, (before.uid(), before.gid()) != (after.uid(), after.gid()));
    differs(Aspect::Times, (before.mtime(), before.mtime_nsec()) != (after.mtime(), after.mtime_nsec()));
    Ok((!what.is_empty()).then(|| Change {
        path: mount.path.0.clone(),
        kind: Kind::Modified,
        what,
        from: None,
        layer: old.parent().map(Path::to_path_buf),
        old_size: Some(before.len()),
        size: Some(after.len()),
        file_type: FileType::RegularFile,
    }))
}

/// Which file the view has in a state of the overlay in the place of one that is mounted on a file.
fn file_at(overlay: &Overlay, point: Point, number: usize, mount: &Mount) -> Option<PathBuf> {
    let lower = mount.lower.last().filter(|_| mount.how == How::File)?;
    match point {
        Point::Lowers => Some(lower.0.clone()),
        Point::Now => mount.upper.as_ref().map(|upper| upper.0.clone()),
        Point::Snapshot(head) => rotate::file_before(overlay, head, number, mount),
    }
}

/// A path in a tree as one from the merged directory on.
fn from_top(prefix: &[u8], path: &[u8]) -> PathBuf {
    let mut full = vec![b'/'];
    full.extend(join(prefix, path));
    PathBuf::from(OsStr::from_bytes(&full))
}

fn size(stat: &Stat) -> Option<u64> {
    let has = matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink);
    has.then(|| stat.st_size.try_into().unwrap_or_default())
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
