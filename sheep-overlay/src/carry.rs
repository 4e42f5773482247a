//! Faithful copies of single entries: type, content with its holes, hard links among what is carried, owner, mode, extended
//! attributes (ACLs and capabilities among them), times to the nanosecond. What cannot be kept is an error: who carries
//! changes somewhere must not lose any of them.
//!
//! Not carried: the notes of OverlayFS and of fuse-overlayfs, `chattr` flags, and security labels that this system sets by itself.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, linkat, mkdirat, mknodat, openat, readlinkat, symlinkat,
};
use rustix::io::Errno;

use crate::backend::copy::data::{Content, PIECE, Ways};
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::paths::split;
use crate::shown::Entry;
use crate::stack::open_beneath;

/// Labels that the kernel sets on new files; they say nothing of where a file came from.
const LABELS: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// Carries entries into one directory tree.
pub struct Carrier<'a> {
    /// The top of the tree, which hard links are made from.
    top: BorrowedFd<'a>,
    /// Files with several names, and the path of the first that was carried.
    linked: HashMap<(u64, u64), Vec<u8>>,
    ways: Ways,
    buffer: Vec<u8>,
    names: Vec<u8>,
}

impl<'a> Carrier<'a> {
    /// One that carries into the tree below `top`.
    pub fn new(top: BorrowedFd<'a>) -> Self {
        let (linked, ways) = (HashMap::new(), Ways::new(false));
        Carrier { top, linked, ways, buffer: vec![0; PIECE], names: Vec::new() }
    }

    /// Makes `name` in `dir` (at `path` from the top) like an entry. A directory is made empty and closed to others, its
    /// attributes are set with [`attributes`] when all is in it.
    pub fn put(&mut self, from: &Entry, dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<()> {
        let kind = FileType::from_raw_mode(from.stat.st_mode);
        if kind == FileType::Directory {
            return Ok(mkdirat(dir, name, Mode::RWXU)?);
        }
        let key = (from.stat.st_dev, from.stat.st_ino);
        if from.stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&key) {
                // In two steps: a path may be longer than the kernel takes in one piece.
                let (parent, first) = split(first);
                return Ok(linkat(open_beneath(self.top, parent)?, first, dir, name, AtFlags::empty())?);
            }
            self.linked.insert(key, path.to_vec());
        }
        match kind {
            FileType::RegularFile => return self.file(from, dir, name),
            FileType::Symlink => symlinkat(&readlinkat(&from.dir, &*from.name, Vec::new())?, dir, name)?,
            kind => mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, from.stat.st_rdev).map_err(|e| match e {
                Errno::PERM => anyhow::Error::from(e).context("only root may make a device"),
                e => e.into(),
            })?,
        }
        let (from_inode, to) = (Inode::Named(from.dir.as_fd(), &from.name), Inode::Named(dir, name));
        self.attributes(from_inode, to, &from.stat)
    }

    /// Like [`Carrier::put`] for a regular file that is to have another content.
    pub fn put_content(&mut self, from: &Entry, dir: BorrowedFd<'_>, name: &CStr, content: &[u8]) -> Result<()> {
        let source = open_file(&from.dir, &from.name, &from.stat)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        (&target).write_all(content)?;
        self.attributes(Inode::Open(source.as_fd()), Inode::Open(target.as_fd()), &from.stat)
    }

    fn file(&mut self, from: &Entry, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let source = open_file(&from.dir, &from.name, &from.stat)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        let shown = || from.name.to_string_lossy().into_owned();
        let content = Content { from: &source, to: &target, stat: &from.stat, from_name: shown, to_name: shown };
        content.copy(&mut self.ways, &mut self.buffer)?;
        self.attributes(Inode::Open(source.as_fd()), Inode::Open(target.as_fd()), &from.stat)?;
        let key = |stat: &Stat| (stat.st_size, stat.st_ctime, stat.st_ctime_nsec);
        if key(&fstat(&source)?) != key(&from.stat) {
            bail!("changed while it was copied");
        }
        Ok(())
    }

    fn attributes(&mut self, from: Inode<'_>, to: Inode<'_>, stat: &Stat) -> Result<()> {
        attributes(from, to, stat, &mut self.names)
    }
}

/// Opens the regular file `name` in a directory, whose `stat` was seen, for reading; as root or its owner without a trace in its access
/// time.
pub fn open_file(dir: impl AsFd, name: &CStr, stat: &Stat) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(&dir, name, flags, Mode::empty())?,
        opened => opened?,
    };
    let opened = fstat(&file)?;
    if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
        bail!("changed while it was read");
    }
    Ok(file)
}

/// Gives `to` owner, extended attributes, mode and times of `from`, whose `stat` is given, in the order that keeps them: a
/// change of owner takes set-id bits and capabilities away, and everything sets times. `names` is scratch space.
pub fn attributes(from: Inode<'_>, to: Inode<'_>, stat: &Stat, names: &mut Vec<u8>) -> Result<()> {
    to.chown(Some(stat.st_uid), Some(stat.st_gid)).context("chown")?;
    from.list_xattrs(names)?;
    let mut value = Vec::new();
    for name in xattr_names(names).filter(|name| !layer::is_bookkeeping(name.to_bytes())) {
        from.get_xattr(name, &mut value)?;
        match to.set_xattr(name, &value) {
            Err(_) if LABELS.contains(&name.to_bytes()) => {}
            done => done.with_context(|| format!("xattr {}", name.to_string_lossy()))?,
        }
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        to.chmod(stat.st_mode).context("chmod")?;
    }
    to.set_times(stat).context("utimensat")
}
