//! Two trees walked side by side: the merged view of the lowers, and one real directory tree (the copy's destination, or
//! what `diff` compares with the lowers).
//!
//! Directories still to be visited hold on to their open parent only while few descriptors are in use; beyond that it is
//! opened again from the root, so that a tree of any width and depth needs a bounded number of descriptors.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, openat, statat};

use crate::paths::{join, split};
use crate::stack::{Dir, Stack, open_beneath};

/// How many descriptors directories may keep open for their children.
const KEPT: usize = 256;

/// A directory in both trees.
#[derive(Debug)]
pub struct Pair {
    /// In the merged view of the lowers.
    pub lower: Dir,
    /// What the lowers have in its place, where that is no directory: the lower, by its place in the stack, and the
    /// attributes.
    pub instead: Option<(usize, Stat)>,
    /// The real directory, opened for reading.
    pub real: OwnedFd,
    kept: Arc<AtomicUsize>,
    weight: usize,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// A directory to be visited.
#[derive(Debug)]
pub struct Pending {
    /// From the root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    parent: Parent,
}

#[derive(Debug)]
enum Parent {
    Open(Arc<Pair>),
    /// To be opened again; these lowers merge into it.
    Closed(Vec<usize>),
}

/// The walk: the stack, the two roots, and the count of descriptors.
#[derive(Debug)]
pub struct Walk {
    /// The lowers.
    pub stack: Stack,
    /// The root directory.
    pub root: Arc<Pair>,
    /// What the real tree is called in messages.
    pub real_name: String,
    kept: Arc<AtomicUsize>,
}

impl Walk {
    /// A walk of `stack` and the tree below `real`.
    pub fn new(stack: Stack, real: OwnedFd, real_name: String) -> Result<Self> {
        let kept = Arc::new(AtomicUsize::new(0));
        let root = Arc::new(Pair { lower: stack.root()?, instead: None, real, kept: kept.clone(), weight: 0 });
        Ok(Walk { stack, root, real_name, kept })
    }

    /// The root, to be visited.
    pub fn root_pending(&self) -> Pending {
        Pending { path: Vec::new(), parent: Parent::Closed(Vec::new()) }
    }

    /// Notes that the directory `name` in `parent` (at `path`) is to be visited.
    pub fn pend(&self, parent: &Arc<Pair>, path: &[u8], name: &[u8]) -> Pending {
        let keep = parent.weight == 0 || self.kept.load(Ordering::Relaxed) <= KEPT;
        let parent = if keep { Parent::Open(parent.clone()) } else { Parent::Closed(parent.lower.lowers()) };
        Pending { path: join(path, name), parent }
    }

    /// Opens a directory that was noted.
    pub fn enter(&self, pending: &Pending) -> Result<Arc<Pair>> {
        if pending.path.is_empty() {
            return Ok(self.root.clone());
        }
        let (path, name) = split(&pending.path);
        match &pending.parent {
            Parent::Open(parent) => self.step(parent, path, name),
            Parent::Closed(lowers) => {
                let lower = self.stack.reopen(lowers, path)?;
                let real = open_beneath(&self.root.real, path).with_context(|| self.describe_real(path))?;
                self.step(&self.pair(lower, None, real), path, name)
            }
        }
    }

    fn pair(&self, lower: Dir, instead: Option<(usize, Stat)>, real: OwnedFd) -> Pair {
        let weight = lower.descriptors() + 1;
        self.kept.fetch_add(weight, Ordering::Relaxed);
        Pair { lower, instead, real, kept: self.kept.clone(), weight }
    }

    fn step(&self, parent: &Pair, path: &[u8], name: &[u8]) -> Result<Arc<Pair>> {
        let name = CString::new(name).context("a name with a NUL")?;
        let lower = self.stack.child(&parent.lower, &name, path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let real = openat(&parent.real, &name, flags, Mode::empty())
            .with_context(|| self.describe_real(&join(path, name.to_bytes())))?;
        let instead = if lower.is_blocked() { self.stack.lookup(&parent.lower, &name, path)? } else { None };
        let instead = instead.map(|(layer, stat)| (parent.lower.lower_of(layer), stat));
        Ok(Arc::new(self.pair(lower, instead, real)))
    }

    /// Where `path` is in the real tree, for messages.
    pub fn describe_real(&self, path: &[u8]) -> String {
        format!("{}/{}", self.real_name, String::from_utf8_lossy(path))
    }
}

/// The names in a directory that is at its beginning, with their types, which are never unknown. `buffer` is scratch space.
pub fn names_in(dir: impl AsFd, buffer: &mut [MaybeUninit<u8>]) -> rustix::io::Result<Vec<(CString, FileType)>> {
    let mut names = Vec::new();
    let mut entries = RawDir::new(&dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
            kind => kind,
        };
        names.push((name.to_owned(), kind));
    }
    Ok(names)
}
