//! The merged view of lower directories, read without mounting: what OverlayFS would show of the same stack.
//!
//! A name is looked for from the top; a whiteout or anything that is no directory hides what is below, directories
//! merge until one is opaque. Everything is reached beneath the lowers' descriptors, no symbolic link is followed.
//! Mounts below a lower are not entered, as OverlayFS does not show them: as root we read a private clone of each
//! lower's mount, where they are absent; without the right to clone, a directory that is a mount point counts as empty.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, StatxFlags, fgetxattr, fstat, openat, openat2,
    stat, statat, statx,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::layer::{self, Marks, Opaque};

/// `STATX_ATTR_MOUNT_ROOT`: the inode is the root of a mount.
const MOUNT_ROOT: u64 = 0x2000;

/// A stack of lowers, opened for reading.
#[derive(Debug)]
pub struct Stack {
    lowers: Vec<Lower>,
    marks: Marks,
    /// A directory of the overlay itself, should a lower contain it: shown as empty.
    hidden: Option<(u64, u64)>,
    noatime: AtomicBool,
    /// So many at the top were written by fuse-overlayfs, which where it may not make whiteouts hides by names: `.wh.NAME`
    /// hides NAME, `.wh..wh..opq` all that is below the directory.
    pub of_fuse: usize,
}

#[derive(Debug)]
struct Lower {
    fd: OwnedFd,
    path: PathBuf,
    /// Whether `fd` is of a clone of the mount, in which nothing is mounted on anything.
    cloned: bool,
}

/// A directory of the merged view.
#[derive(Debug)]
pub struct Dir {
    /// The directories that merge into it, top first; none if the view has no directory of this name.
    layers: Vec<Layer>,
    /// Its attributes: those of the topmost.
    stat: Option<Stat>,
    /// It is to be taken for empty.
    closed: bool,
    /// There is none, because something that is no directory was found first: a whiteout, or an entry of the view.
    blocked: bool,
}

#[derive(Debug)]
struct Layer {
    fd: OwnedFd,
    /// Read when it is asked for: mostly nothing lies below it, and then it says nothing.
    mark: OnceLock<Opaque>,
    /// Its place in `Stack::lowers`.
    lower: usize,
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: CString,
    /// Its type, never unknown.
    pub kind: FileType,
    /// Which of the directory's layers it stands in: the topmost that has it.
    pub layer: usize,
}

impl Dir {
    /// A directory that the stack does not have: nothing is in it.
    pub fn absent() -> Self {
        Dir { layers: Vec::new(), stat: None, closed: true, blocked: false }
    }

    /// The attributes; `None` if the stack has no such directory.
    pub fn stat(&self) -> Option<&Stat> {
        self.stat.as_ref()
    }

    /// The open directory in the layer that an [`Entry`] or [`Stack::lookup`] named.
    pub fn layer(&self, layer: usize) -> BorrowedFd<'_> {
        self.layers[layer].fd.as_fd()
    }

    /// The topmost open directory; `None` if the stack has no such directory.
    pub fn top(&self) -> Option<BorrowedFd<'_>> {
        self.layers.first().map(|layer| layer.fd.as_fd())
    }

    /// Whether there is none because something that is no directory was found first; [`Stack::lookup`] says what.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Which of the stack's lowers the layer is of that an [`Entry`] or [`Stack::lookup`] named.
    pub fn lower_of(&self, layer: usize) -> usize {
        self.layers[layer].lower
    }

    /// How many descriptors it holds.
    pub fn descriptors(&self) -> usize {
        self.layers.len()
    }

    /// Which of the stack's lowers merge into it.
    pub fn lowers(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.lower).collect()
    }
}

impl Stack {
    /// Opens the lowers (bottom first, as everywhere). `hidden` is a directory that is shown as empty wherever it
    /// appears: the overlay's own, which would else be copied into itself. `marks` are those that the layers are read by.
    pub fn open(lowers: &[PathBuf], marks: Marks, hidden: Option<&Path>) -> Result<Self> {
        allow_descriptors(lowers.len());
        let opened = lowers.iter().rev().map(|path| {
            let (fd, cloned) = open_alone(path).with_context(|| format!("lower {}", path.display()))?;
            Ok(Lower { fd, path: path.clone(), cloned })
        });
        let lowers = opened.collect::<Result<Vec<_>>>()?;
        let hidden = match hidden {
            Some(dir) => {
                let stat = stat(dir).with_context(|| dir.display().to_string())?;
                Some((stat.st_dev, stat.st_ino))
            }
            None => None,
        };
        let noatime = AtomicBool::new(rustix::process::geteuid().is_root());
        Ok(Stack { lowers, marks, hidden, noatime, of_fuse: 0 })
    }

    /// The root of the merged view.
    pub fn root(&self) -> Result<Dir> {
        let mut dir = Dir::absent();
        for (lower, opened) in self.lowers.iter().enumerate() {
            let last = lower + 1 == self.lowers.len();
            let mut hides_rest = || -> Result<bool> {
                self.add(&mut dir, openat(&opened.fd, c".", DIRECTORY, Mode::empty())?, lower)?;
                Ok(!last && self.hides_below(&dir)?)
            };
            if hides_rest().with_context(|| format!("lower {}", opened.path.display()))? {
                break;
            }
        }
        // A lower that is the root of a mount is meant to be read; it is no mount below a lower.
        dir.closed = dir.stat.is_none();
        Ok(dir)
    }

    /// The directory `name` in `dir`; [`Dir::absent`] where the view has none. `path` is `dir`'s own, for messages.
    pub fn child(&self, dir: &Dir, name: &CStr, path: &[u8]) -> Result<Dir> {
        let mut child = Dir::absent();
        if dir.closed {
            return Ok(child);
        }
        for (at, layer) in dir.layers.iter().enumerate() {
            let last = at + 1 == dir.layers.len();
            let mut hides_rest = || -> Result<bool> {
                match self.open_at(layer.fd.as_fd(), name, OFlags::DIRECTORY) {
                    Ok(fd) => {
                        self.add(&mut child, fd, layer.lower)?;
                        Ok(last || child.closed || self.hides_below(&child)?)
                    }
                    Err(Errno::NOENT) if self.hides_by_name(layer, name)? => {
                        child.blocked = child.stat.is_none();
                        Ok(true)
                    }
                    Err(Errno::NOENT) => Ok(false),
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        child.blocked = child.stat.is_none();
                        Ok(true)
                    }
                    Err(e) => Err(e.into()),
                }
            };
            if hides_rest().with_context(|| self.describe(dir, at, path, name))? {
                break;
            }
            if child.stat.is_some() && self.is_redirected(&child) {
                let place = self.describe(dir, at, path, name);
                bail!(
                    "{place}: renamed in its layer (overlay.redirect); such a layer cannot be read without OverlayFS"
                );
            }
        }
        Ok(child)
    }

    /// Opens the directory `path` again, of which it is known what merges into it (see [`Dir::lowers`]).
    pub fn reopen(&self, lowers: &[usize], path: &[u8]) -> Result<Dir> {
        let mut dir = Dir::absent();
        for &lower in lowers {
            let opened = &self.lowers[lower];
            let added = open_beneath(&opened.fd, path)
                .map_err(anyhow::Error::from)
                .and_then(|fd| self.add(&mut dir, fd, lower));
            added.with_context(|| format!("lower {}/{}", opened.path.display(), String::from_utf8_lossy(path)))?;
        }
        Ok(dir)
    }

    /// Adds a layer to a directory.
    fn add(&self, dir: &mut Dir, fd: OwnedFd, lower: usize) -> Result<()> {
        if dir.stat.is_none() {
            let stat = fstat(&fd)?;
            dir.closed = self.hidden == Some((stat.st_dev, stat.st_ino));
            if !self.lowers[lower].cloned {
                let found = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
                dir.closed |= found.stx_attributes.bits() & MOUNT_ROOT != 0;
            }
            dir.stat = Some(stat);
        }
        dir.layers.push(Layer { fd, mark: OnceLock::new(), lower });
        Ok(())
    }

    /// Whether the last layer of a directory is opaque.
    fn hides_below(&self, dir: &Dir) -> Result<bool> {
        dir.layers.last().map_or(Ok(false), |layer| Ok(self.mark(layer)? == Opaque::Yes))
    }

    fn mark(&self, layer: &Layer) -> std::io::Result<Opaque> {
        match layer.mark.get() {
            Some(mark) => Ok(*mark),
            None => {
                let by_name = self.hides_by_name(layer, c".wh..opq")?;
                let by_fuse = || self.is_of_fuse(layer) && layer::is_opaque_to_fuse(&layer.fd).unwrap_or(false);
                let mark = if by_name || by_fuse() { Opaque::Yes } else { layer::opaque(&layer.fd, self.marks)? };
                Ok(*layer.mark.get_or_init(|| mark))
            }
        }
    }

    fn is_of_fuse(&self, layer: &Layer) -> bool {
        layer.lower < self.of_fuse
    }

    /// Whether a layer hides what others have of a name by a name of its own.
    fn hides_by_name(&self, layer: &Layer, name: &CStr) -> std::io::Result<bool> {
        if !self.is_of_fuse(layer) {
            return Ok(false);
        }
        let mark = [b".wh.", name.to_bytes()].concat();
        match statat(&layer.fd, &mark[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether an entry of a layer is a whiteout.
    fn is_whiteout(&self, layer: &Layer, name: &CStr, stat: &Stat) -> std::io::Result<bool> {
        // Of anything but an empty file the directory's mark need not be known.
        let may_be_marked = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
        let mark = if may_be_marked { self.mark(layer)? } else { Opaque::No };
        layer::is_whiteout(&layer.fd, name.to_bytes(), stat, mark, self.marks)
    }

    fn is_redirected(&self, dir: &Dir) -> bool {
        let redirect = layer::REDIRECT[self.marks as usize];
        // Its value does not matter.
        let has = |layer: &Layer| matches!(fgetxattr(&layer.fd, redirect, &mut [0u8; 1]), Ok(_) | Err(Errno::RANGE));
        dir.layers.last().is_some_and(has)
    }

    /// The entries of a directory, in no order. `buffer` is scratch space.
    pub fn list(&self, dir: &Dir, path: &[u8], buffer: &mut [MaybeUninit<u8>]) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if dir.closed {
            return Ok(entries);
        }
        let merges = dir.layers.len() > 1;
        let mut seen = HashSet::new();
        for (at, layer) in dir.layers.iter().enumerate() {
            let list = self.list_layer(layer, at, buffer, |entry, hides| {
                if merges && !seen.insert(entry.name.clone()) {
                    return;
                }
                if !hides {
                    entries.push(entry);
                }
            });
            list.with_context(|| self.describe(dir, at, path, c""))?;
        }
        Ok(entries)
    }

    fn list_layer(
        &self,
        layer: &Layer,
        at: usize,
        buffer: &mut [MaybeUninit<u8>],
        mut found: impl FnMut(Entry, bool),
    ) -> Result<()> {
        rustix::fs::seek(&layer.fd, rustix::fs::SeekFrom::Start(0))?;
        let mut entries = RawDir::new(&layer.fd, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if self.is_of_fuse(layer)
                && let Some(hidden) = name.to_bytes().strip_prefix(b".wh.")
            {
                found(Entry { name: CString::new(hidden)?, kind: FileType::Unknown, layer: at }, true);
                continue;
            }
            let (mut kind, mut hides) = (entry.file_type(), false);
            let may_be_marked = kind == FileType::RegularFile && self.mark(layer)? == Opaque::HasXattrWhiteouts;
            if may_be_marked || matches!(kind, FileType::CharacterDevice | FileType::Unknown) {
                let stat = statat(&layer.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                kind = FileType::from_raw_mode(stat.st_mode);
                hides = self.is_whiteout(layer, name, &stat)?;
            }
            found(Entry { name: name.to_owned(), kind, layer: at }, hides);
        }
        Ok(())
    }

    /// The names that stand in some of the layers of a directory, whiteouts among them, sorted.
    pub fn names_in(
        &self,
        dir: &Dir,
        path: &[u8],
        wanted: impl Fn(usize) -> bool,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<BTreeSet<CString>> {
        let mut names = BTreeSet::new();
        if dir.closed {
            return Ok(names);
        }
        for (at, layer) in dir.layers.iter().enumerate().filter(|(_, layer)| wanted(layer.lower)) {
            let list = self.list_layer(layer, at, buffer, |entry, _| {
                names.insert(entry.name);
            });
            list.with_context(|| self.describe(dir, at, path, c""))?;
        }
        Ok(names)
    }

    /// The directory at a path of the view; [`Dir::absent`] where it has none.
    pub fn find(&self, path: &[u8]) -> Result<Dir> {
        let mut dir = self.root()?;
        let mut at = 0;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            dir = self.child(&dir, &CString::new(part)?, &path[..at])?;
            if dir.stat().is_none() {
                return Ok(Dir::absent());
            }
            at += part.len() + usize::from(at > 0);
        }
        Ok(dir)
    }

    /// How many lowers there are.
    pub fn height(&self) -> usize {
        self.lowers.len()
    }

    /// What the view has under `name` in `dir`: the layer it stands in, and its attributes. `path` is `dir`'s own.
    pub fn lookup(&self, dir: &Dir, name: &CStr, path: &[u8]) -> Result<Option<(usize, Stat)>> {
        if dir.closed {
            return Ok(None);
        }
        for (at, layer) in dir.layers.iter().enumerate() {
            match statat(&layer.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let hides =
                        self.is_whiteout(layer, name, &stat).with_context(|| self.describe(dir, at, path, name))?;
                    return Ok(if hides { None } else { Some((at, stat)) });
                }
                Err(Errno::NOENT) if self.hides_by_name(layer, name)? => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e).with_context(|| self.describe(dir, at, path, name)),
            }
        }
        Ok(None)
    }

    /// The directory of a lower, by its place in the stack (see [`Dir::lower_of`]).
    pub fn lower(&self, lower: usize) -> &Path {
        &self.lowers[lower].path
    }

    /// Opens the directory `path` of one lower, whatever hides it in the view.
    pub fn open_dir_of(&self, lower: usize, path: &[u8]) -> Result<OwnedFd, Errno> {
        open_beneath(&self.lowers[lower].fd, path)
    }

    /// Opens `name` in an open directory for reading: never through a symbolic link, never waiting for a FIFO's writer,
    /// and as root without a trace in the access time (a lower is not ours to change).
    pub fn open_at(&self, dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | flags;
        if self.noatime.load(Ordering::Relaxed) {
            match openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => self.noatime.store(false, Ordering::Relaxed),
                opened => return opened,
            }
        }
        openat(dir, name, flags, Mode::empty())
    }

    /// Where `name` in `dir` (at `path` in the tree) is on disk, for messages.
    pub fn describe(&self, dir: &Dir, layer: usize, path: &[u8], name: &CStr) -> String {
        let lower = dir.layers.get(layer).map_or(Path::new(""), |layer| &self.lowers[layer.lower].path);
        let mut place = lower.display().to_string();
        for part in [path, name.to_bytes()] {
            if !part.is_empty() {
                place.push('/');
                place.push_str(&String::from_utf8_lossy(part));
            }
        }
        place
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory as the root of a private clone of its mount, in which nothing is mounted on anything, and gives
/// true; where that cannot be had (not root, an old kernel), as it is seen, and gives false.
pub fn open_alone(path: &Path) -> Result<(OwnedFd, bool), Errno> {
    match open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC) {
        Ok(tree) => Ok((openat(tree, c".", DIRECTORY, Mode::empty())?, true)),
        Err(_) => Ok((openat(CWD, path, DIRECTORY, Mode::empty())?, false)),
    }
}

/// Opens the directory `path` below `root` for reading, through no symbolic link. The path may be longer than the kernel
/// takes in one piece.
pub fn open_beneath(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_in_pieces(root.as_fd(), path, ResolveFlags::empty())
}

/// The same, and over no mount.
pub fn open_within(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_in_pieces(root.as_fd(), path, ResolveFlags::NO_XDEV)
}

fn open_in_pieces(root: BorrowedFd<'_>, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | resolve;
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let from = at.as_ref().map_or(root, |at| at.as_fd());
        if rest.len() < PIECE_OF_PATH {
            let last = if rest.is_empty() { &b"."[..] } else { rest };
            return openat2(from, last, DIRECTORY, Mode::empty(), resolve);
        }
        let end = rest[..PIECE_OF_PATH].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = Some(openat2(from, &rest[..end], flags, Mode::empty(), resolve)?);
        rest = &rest[end + 1..];
    }
}

/// Somewhat less than PATH_MAX.
const PIECE_OF_PATH: usize = 4000;

/// Every directory in use takes a descriptor for each lower that has it; the usual soft limit is 1024.
fn allow_descriptors(lowers: usize) {
    let wanted = 400 + 16 * lowers as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        // Where this is refused, opening one too many reports it.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum });
    }
}
