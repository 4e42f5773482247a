//! What an overlay has at the paths that changed, read where its changes are, without the merged view.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::doc::{How, Overlay};
use crate::history::Point;
use crate::layer::Marks;
use crate::paths::{bare, inside, join, split};
use crate::stack::{self, Stack, open_beneath};
use crate::trees::{self, Tree};
use crate::walk::names_in;
use crate::{diff, record};

/// The trees of an overlay, opened.
#[derive(Debug)]
pub struct Shown {
    trees: Vec<(Tree, Place)>,
    /// Files that are mounted on files: where each is in the view, and the copy that the view has of it.
    files: Vec<(Vec<u8>, PathBuf)>,
}

/// Where a tree has what it shows.
#[derive(Debug)]
enum Place {
    /// In one directory.
    Tree(OwnedFd),
    /// In the view of several layers.
    View(Stack),
}

/// Something that an overlay shows.
#[derive(Debug)]
pub struct Entry {
    /// The directory it stands in.
    pub dir: OwnedFd,
    /// Its name there; `.` for the root of a tree.
    pub name: CString,
    /// Its own attributes, no link followed.
    pub stat: Stat,
}

impl Shown {
    /// Opens the trees of an overlay (see [`crate::access::with`] for the rights that this takes).
    pub fn open(overlay: &Overlay) -> Result<Self> {
        let made = record::dir_of(overlay).join("merged");
        let place = |tree: &Tree| -> Result<Place> {
            if !tree.frozen.is_empty() {
                return Ok(Place::View(Stack::open(&tree.layers(), Marks::of(overlay), None)?));
            }
            let real = if record::is_copy(overlay) { &made } else { &tree.upper };
            let (fd, _) = stack::open_alone(real).with_context(|| real.display().to_string())?;
            Ok(Place::Tree(fd))
        };
        Self::with(overlay, trees::of(overlay), place)
    }

    /// Opens the trees of a state of an overlay, with all that is there, changed or not.
    pub fn open_at(overlay: &Overlay, point: Point) -> Result<Self> {
        let view = |tree: &Tree, layers: &[PathBuf]| -> Result<Place> {
            Ok(Place::View(Stack::open(&[&tree.lowers[..], layers].concat(), Marks::of(overlay), None)?))
        };
        match point {
            Point::Lowers => Self::with(overlay, trees::of(overlay), |tree| view(tree, &[])),
            Point::Now => Self::with(overlay, trees::of(overlay), |tree| view(tree, &tree.layers())),
            Point::Snapshot(number) => Self::with(overlay, trees::on(overlay, number), |tree| view(tree, &tree.frozen)),
        }
    }

    fn with(overlay: &Overlay, trees: Vec<Tree>, place: impl Fn(&Tree) -> Result<Place>) -> Result<Self> {
        let open = |tree: Tree| place(&tree).map(|place| (tree, place));
        let files = overlay.mounts.iter().filter(|mount| mount.how == How::File);
        let files = files.filter_map(|mount| Some((bare(&mount.path), mount.upper.as_ref()?.0.clone())));
        Ok(Shown { trees: trees.into_iter().map(open).collect::<Result<_>>()?, files: files.collect() })
    }

    /// Whether a path is that of a file that is mounted on another.
    pub fn is_mounted_file(&self, path: &[u8]) -> bool {
        self.files.iter().any(|(file, _)| file == path)
    }

    /// What is at a path that changed, or on the way to one. The path has no leading slash; empty is the root. `None` where
    /// there is nothing, or what is there was never changed.
    pub fn entry(&self, path: &[u8]) -> Result<Option<Entry>> {
        if let Some((_, copy)) = self.files.iter().find(|(file, _)| file == path) {
            let dir = copy.parent().unwrap_or(Path::new("/"));
            let (dir, _) = stack::open_alone(dir).with_context(|| dir.display().to_string())?;
            return stat_in(dir, CString::new(copy.file_name().unwrap_or_default().as_bytes())?);
        }
        let found = self.trees.iter().rev().find_map(|(tree, place)| Some((inside(path, &tree.prefix)?, place)));
        let Some((inside, place)) = found else { bail!("it is in no tree of the overlay") };
        let (dir, name) = split(inside);
        let name = CString::new(if name.is_empty() { b"." } else { name }).context("a name with a NUL")?;
        let root = match place {
            Place::Tree(root) => root,
            Place::View(stack) => return in_view(stack, dir, name),
        };
        match open_beneath(root, dir) {
            Ok(dir) => stat_in(dir, name),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("/{}", diff::escaped(dir))),
        }
    }

    /// All directories where the changes are, with their attributes, parents first: those of the lowers in which nothing
    /// changed are not among them, unless the overlay is a copy.
    pub fn directories(&self) -> Result<Vec<(Vec<u8>, Stat)>> {
        let mut found = Vec::new();
        for (tree, place) in &self.trees {
            match place {
                Place::Tree(root) => directories_below(&tree.prefix, root, &mut found)?,
                Place::View(stack) => directories_of(&tree.prefix, stack, &mut found)?,
            }
        }
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Like [`Shown::entry`], where there must be one.
    pub fn must(&self, path: &[u8]) -> Result<Entry> {
        self.entry(path)?.with_context(|| format!("/{}: it has gone, or was never copied up", diff::escaped(path)))
    }
}

fn directories_below(prefix: &[u8], root: &OwnedFd, found: &mut Vec<(Vec<u8>, Stat)>) -> Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); 16 << 10];
    let mut pending = vec![(prefix.to_vec(), root.try_clone()?)];
    while let Some((path, dir)) = pending.pop() {
        let shown = || format!("/{}", diff::escaped(&path));
        found.push((path.clone(), fstat(&dir)?));
        let names = names_in(&dir, &mut buffer).with_context(shown)?;
        for (name, _) in names.into_iter().filter(|(_, kind)| *kind == FileType::Directory) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&dir, &*name, flags, Mode::empty()) {
                Ok(inner) => pending.push((join(&path, name.to_bytes()), inner)),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e).with_context(shown),
            }
        }
    }
    Ok(())
}

fn directories_of(prefix: &[u8], stack: &Stack, found: &mut Vec<(Vec<u8>, Stat)>) -> Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut pending = vec![(Vec::new(), stack.root()?)];
    while let Some((path, dir)) = pending.pop() {
        let Some(stat) = dir.stat() else { continue };
        found.push((join(prefix, &path), *stat));
        for entry in stack.list(&dir, &path, &mut buffer)? {
            if entry.kind == FileType::Directory {
                pending.push((join(&path, entry.name.to_bytes()), stack.child(&dir, &entry.name, &path)?));
            }
        }
    }
    Ok(())
}

fn in_view(stack: &Stack, path: &[u8], name: CString) -> Result<Option<Entry>> {
    let dir = stack.find(path)?;
    let Some((layer, stat)) = stack.lookup(&dir, &name, path)? else { return Ok(None) };
    Ok(Some(Entry { dir: dir.layer(layer).try_clone_to_owned()?, name, stat }))
}

fn stat_in(dir: OwnedFd, name: CString) -> Result<Option<Entry>> {
    match statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Entry { dir, name, stat })),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e).with_context(|| name.to_string_lossy().into_owned()),
    }
}
