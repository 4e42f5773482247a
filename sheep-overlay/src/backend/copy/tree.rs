//! What each thread does: directories, and the entries in them.
//!
//! A directory's times are right once its own entries are there, whatever is still to be made further down. So whoever
//! makes the last entry finishes the directory.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::data::{Content, PIECE, Ways};
use super::links::{Claim, Key};
use super::{Job, interruptible, note};
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::paths::join;
use crate::stack::{Entry, open_beneath};
use crate::walk::{Pair, Pending};

/// A part of the copy that one thread does.
pub(super) enum Task {
    /// Make a directory's entries, subdirectories still empty.
    Directory(Pending),
    /// Make some of its entries.
    Entries(Arc<OpenDir>, Vec<Entry>),
}

/// A directory whose entries are being made.
pub(super) struct OpenDir {
    pair: Arc<Pair>,
    path: Vec<u8>,
    /// Parts of its entries that are not made yet.
    parts: AtomicUsize,
}

/// More entries than this are shared out between threads.
const PART: usize = 64;

/// A thread and its buffers.
pub(super) struct Worker<'a> {
    job: &'a Job,
    content: Vec<u8>,
    xattrs: Vec<u8>,
    listing: Vec<MaybeUninit<u8>>,
    ways: Ways,
}

impl<'a> Worker<'a> {
    pub(super) fn new(job: &'a Job) -> Self {
        Worker {
            job,
            content: vec![0; PIECE],
            xattrs: Vec::new(),
            listing: vec![MaybeUninit::uninit(); 32 << 10],
            ways: Ways::new(job.only_shared),
        }
    }

    pub(super) fn run(mut self) {
        self.job.queue.work(|task| match task {
            Task::Directory(pending) => self.directory(pending),
            Task::Entries(dir, entries) => self.entries(&dir, &entries),
        });
    }

    fn directory(&mut self, pending: Pending) -> Result<()> {
        let walk = &self.job.walk;
        let pair = walk.enter(&pending)?;
        let path = pending.path;
        let mut entries = walk.stack.list(&pair.lower, &path, &mut self.listing)?;
        let (dirs, mut rest) = {
            let rest = entries.extract_if(.., |entry| entry.kind != FileType::Directory).collect::<Vec<_>>();
            (entries, rest)
        };
        for dir in &dirs {
            mkdirat(&pair.real, &dir.name, Mode::RWXU)
                .with_context(|| walk.describe_real(&join(&path, dir.name.to_bytes())))?;
        }
        let pending: Vec<_> = dirs.iter().map(|dir| walk.pend(&pair, &path, dir.name.to_bytes())).collect();
        self.job.queue.add(pending.into_iter().map(Task::Directory));

        let parts = AtomicUsize::new(rest.len().div_ceil(PART).max(1));
        let dir = Arc::new(OpenDir { pair, path, parts });
        while rest.len() > PART {
            let part = rest.split_off(rest.len() - PART);
            self.job.queue.add([Task::Entries(dir.clone(), part)]);
        }
        self.entries(&dir, &rest)
    }

    fn entries(&mut self, dir: &OpenDir, entries: &[Entry]) -> Result<()> {
        for entry in entries {
            interruptible()?;
            if self.job.queue.has_failed() {
                return Ok(());
            }
            match entry.kind {
                FileType::RegularFile => self.file(dir, entry)?,
                _ => self.other(dir, entry)?,
            }
        }
        if dir.parts.fetch_sub(1, Ordering::AcqRel) == 1 && !dir.path.is_empty() {
            self.finish(dir).with_context(|| self.job.walk.describe_real(&dir.path))?;
        }
        Ok(())
    }

    /// A directory's own attributes, once nothing more is made in it. The root's come last of all.
    fn finish(&mut self, dir: &OpenDir) -> Result<()> {
        let (Some(stat), Some(from)) = (dir.pair.lower.stat(), dir.pair.lower.top()) else {
            bail!("it is not in the lowers any more");
        };
        Inode::Open(from).list_xattrs(&mut self.xattrs)?;
        let to = Inode::Open(dir.pair.real.as_fd());
        let mode = self.job.losses.apply(&self.job.defaults, Inode::Open(from), to, stat, &self.xattrs, None)?;
        // What its owner may not search or write cannot be filled, nor linked from, unless we are root.
        let late = mode & 0o700 != 0o700;
        to.chmod(mode | 0o700)?;
        let made = fstat(&dir.pair.real)?;
        let mut list = self.job.directories.lock().unwrap_or_else(PoisonError::into_inner);
        note::add_directory(&mut list, &dir.path, made.st_ino);
        if late {
            let mut modes = self.job.late_modes.lock().unwrap_or_else(PoisonError::into_inner);
            modes.push((dir.path.clone(), mode));
        }
        Ok(())
    }

    fn file(&mut self, dir: &OpenDir, entry: &Entry) -> Result<()> {
        let stack = &self.job.walk.stack;
        let from_name = || stack.describe(&dir.pair.lower, entry.layer, &dir.path, &entry.name);
        let from_dir = dir.pair.lower.layer(entry.layer);
        let from = stack.open_at(from_dir, &entry.name, OFlags::empty()).with_context(from_name)?;
        let stat = fstat(&from).with_context(from_name)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            bail!("{}: changed while it was copied", from_name());
        }
        self.unless_linked(dir, entry, &stat, |worker| {
            let to_name = || worker.job.walk.describe_real(&join(&dir.path, entry.name.to_bytes()));
            let from_inode = Inode::Open(from.as_fd());
            from_inode.list_xattrs(&mut worker.xattrs).with_context(from_name)?;
            if worker.xattrs.len() > 1 {
                refuse_metacopy(&worker.xattrs).with_context(from_name)?;
            }
            // User xattrs are refused on a file that its owner may not write.
            let mode = stat.st_mode & 0o777 | if worker.xattrs.is_empty() { 0 } else { 0o200 };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let to = openat(&dir.pair.real, &entry.name, flags, Mode::from_raw_mode(mode)).with_context(to_name)?;
            let content = Content { from: &from, to: &to, stat: &stat, from_name, to_name };
            if content.copy(&mut worker.ways, &mut worker.content)? {
                worker.job.reflinked.store(true, Ordering::Relaxed);
            }
            let to = Inode::Open(to.as_fd());
            let (losses, defaults) = (&worker.job.losses, &worker.job.defaults);
            losses.apply(defaults, from_inode, to, &stat, &worker.xattrs, Some(mode)).with_context(to_name)?;
            Ok(true)
        })
    }

    /// What is not opened: symbolic links, devices, FIFOs, sockets.
    fn other(&mut self, dir: &OpenDir, entry: &Entry) -> Result<()> {
        let stack = &self.job.walk.stack;
        let from_name = || stack.describe(&dir.pair.lower, entry.layer, &dir.path, &entry.name);
        let from_dir = dir.pair.lower.layer(entry.layer);
        let stat = statat(from_dir, &entry.name, AtFlags::SYMLINK_NOFOLLOW).with_context(from_name)?;
        if FileType::from_raw_mode(stat.st_mode) != entry.kind {
            bail!("{}: changed while it was copied", from_name());
        }
        self.unless_linked(dir, entry, &stat, |worker| {
            let to_name = || worker.job.walk.describe_real(&join(&dir.path, entry.name.to_bytes()));
            let to_dir = dir.pair.real.as_fd();
            let mode = match entry.kind {
                FileType::Symlink => {
                    let target = readlinkat(from_dir, &entry.name, Vec::new()).with_context(from_name)?;
                    symlinkat(&target, to_dir, &entry.name).with_context(to_name)?;
                    None
                }
                kind => {
                    let mode = stat.st_mode & 0o777;
                    match mknodat(to_dir, &entry.name, kind, Mode::from_raw_mode(mode), stat.st_rdev) {
                        Err(Errno::PERM) if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) => {
                            return Ok(false);
                        }
                        made => made.with_context(to_name)?,
                    }
                    Some(mode)
                }
            };
            let (from, to) = (Inode::Named(from_dir, &entry.name), Inode::Named(to_dir, &entry.name));
            from.list_xattrs(&mut worker.xattrs).with_context(from_name)?;
            let (losses, defaults) = (&worker.job.losses, &worker.job.defaults);
            losses.apply(defaults, from, to, &stat, &worker.xattrs, mode).with_context(to_name)?;
            Ok(true)
        })
    }

    /// Makes an inode, or links to the copy where it was made under another of its names. `make` gives false for what
    /// cannot be made here.
    fn unless_linked(
        &mut self,
        dir: &OpenDir,
        entry: &Entry,
        stat: &Stat,
        make: impl FnOnce(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let job = self.job;
        let key: Key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink < 2 {
            return make(self).map(|made| self.count_device(made));
        }
        loop {
            let first = match job.links.claim(key) {
                Claim::Make => {
                    let made = make(self);
                    let path = join(&dir.path, entry.name.to_bytes());
                    job.links.settle(key, matches!(made, Ok(true)).then_some(&path[..]));
                    return made.map(|made| self.count_device(made));
                }
                Claim::Link(first) => first,
                Claim::LeftOut => {
                    self.count_device(false);
                    return Ok(());
                }
            };
            match self.link(&first, dir, &entry.name) {
                Err(Errno::MLINK) => job.links.forget(key, &first),
                linked => {
                    let name = || job.walk.describe_real(&join(&dir.path, entry.name.to_bytes()));
                    return linked.with_context(|| format!("{}: link to {}", name(), String::from_utf8_lossy(&first)));
                }
            }
        }
    }

    fn count_device(&self, made: bool) {
        if !made {
            self.job.devices_left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn link(&self, first: &[u8], dir: &OpenDir, name: &CStr) -> Result<(), Errno> {
        let root = &self.job.walk.root.real;
        match linkat(root, first, &dir.pair.real, name, AtFlags::empty()) {
            // A path longer than the kernel takes in one piece.
            Err(Errno::NAMETOOLONG) => {}
            done => return done,
        }
        let end = first.iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let (at, file) = (open_beneath(root, &first[..end])?, &first[end + 1..]);
        linkat(&at, file, &dir.pair.real, name, AtFlags::empty())
    }
}

fn refuse_metacopy(xattrs: &[u8]) -> Result<()> {
    let metacopy = |name: &CStr| layer::METACOPY.iter().any(|mark| mark.as_bytes() == name.to_bytes());
    match xattr_names(xattrs).any(metacopy) {
        false => Ok(()),
        true => Err(anyhow!("only its attributes are in this layer (overlay.metacopy); its content cannot be found")),
    }
}
