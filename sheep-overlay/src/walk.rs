//! Two trees walked side by side: the merged view of the lowers, and one real directory tree (the copy's destination, or
//! what `diff` compares with the lowers).
//!
//! Directories still to be visited hold on to their open parent only while few descriptors are in use; beyond that they
//! are found again from the root, so that a tree of any width and depth needs a bounded number of descriptors.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, openat};

use crate::stack::{Dir, Stack};

/// How many descriptors directories may keep open for their children.
const KEPT: usize = 256;

/// A directory in both trees.
#[derive(Debug)]
pub struct Pair {
    /// In the merged view of the lowers.
    pub lower: Dir,
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
    parent: Option<Arc<Pair>>,
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
        let root = Arc::new(Pair { lower: stack.root()?, real, kept: kept.clone(), weight: 0 });
        Ok(Walk { stack, root, real_name, kept })
    }

    /// The root, to be visited.
    pub fn root_pending(&self) -> Pending {
        self.pending(Vec::new())
    }

    /// A directory to be visited, known by nothing but its path.
    pub fn pending(&self, path: Vec<u8>) -> Pending {
        Pending { path, parent: None }
    }

    /// Notes that the directory `name` in `parent` (at `path`) is to be visited.
    pub fn pend(&self, parent: &Arc<Pair>, path: &[u8], name: &[u8]) -> Pending {
        let keep = parent.weight == 0 || self.kept.load(Ordering::Relaxed) <= KEPT;
        Pending { path: join(path, name), parent: keep.then(|| parent.clone()) }
    }

    /// Opens a directory that was noted. The root is opened by an empty path.
    pub fn enter(&self, pending: &Pending) -> Result<Arc<Pair>> {
        if pending.path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(parent) = &pending.parent {
            let at = pending.path.iter().rposition(|byte| *byte == b'/');
            let (path, name) = match at {
                Some(at) => (&pending.path[..at], &pending.path[at + 1..]),
                None => (&[][..], &pending.path[..]),
            };
            return self.step(parent, path, name);
        }
        let mut at = self.root.clone();
        let mut length = 0;
        for name in pending.path.split(|byte| *byte == b'/') {
            at = self.step(&at, &pending.path[..length], name)?;
            length += name.len() + usize::from(length > 0);
        }
        Ok(at)
    }

    fn step(&self, parent: &Pair, path: &[u8], name: &[u8]) -> Result<Arc<Pair>> {
        let name = CString::new(name).context("a name with a NUL")?;
        let lower = self.stack.child(&parent.lower, &name, path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let real = openat(&parent.real, &name, flags, Mode::empty())
            .with_context(|| self.describe_real(&join(path, name.to_bytes())))?;
        let weight = lower.descriptors() + 1;
        self.kept.fetch_add(weight, Ordering::Relaxed);
        Ok(Arc::new(Pair { lower, real, kept: self.kept.clone(), weight }))
    }

    /// Where `path` is in the real tree, for messages.
    pub fn describe_real(&self, path: &[u8]) -> String {
        format!("{}/{}", self.real_name, String::from_utf8_lossy(path))
    }
}

/// `path/name`; `name` alone where `path` is the root's.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    if !path.is_empty() {
        joined.extend_from_slice(path);
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}
