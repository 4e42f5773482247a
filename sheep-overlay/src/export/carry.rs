//! Faithful copies of single entries: type, content with its holes, hard links among what is copied, owner, mode, extended
//! attributes (ACLs and capabilities among them), times to the nanosecond. What cannot be kept is an error.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, linkat, mkdirat, mknodat, openat, readlinkat, symlinkat};
use rustix::io::Errno;

use super::archive::{is_as_before, open};
use super::merged::Found;
use crate::backend::copy::data::{Content, PIECE, Ways};
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::shown::split;
use crate::stack::open_beneath;

/// Copies entries into one directory tree.
pub struct Carrier<'a> {
    /// The top of the tree, which hard links are made from.
    top: BorrowedFd<'a>,
    /// Files with several names, and the first of them that was copied.
    linked: HashMap<(u64, u64), Vec<u8>>,
    ways: Ways,
    buffer: Vec<u8>,
    names: Vec<u8>,
}

impl<'a> Carrier<'a> {
    /// One that copies into the tree below `top`.
    pub fn new(top: BorrowedFd<'a>) -> Self {
        let (linked, ways) = (HashMap::new(), Ways::new(false));
        Carrier { top, linked, ways, buffer: vec![0; PIECE], names: Vec::new() }
    }

    /// Makes `name` in `dir` like an entry. A directory is made empty and closed to others; it gets its attributes by
    /// [`Carrier::attributes`] when all is in it.
    pub fn put(&mut self, from: &Found<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let stat = &from.stat;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return Ok(mkdirat(dir, name, Mode::RWXU)?);
        }
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&key) {
                let (parent, first) = split(first);
                return Ok(linkat(open_beneath(self.top, parent)?, first, dir, name, AtFlags::empty())?);
            }
            self.linked.insert(key, from.path.to_vec());
        }
        match kind {
            FileType::RegularFile => return self.file(from, dir, name),
            FileType::Symlink => symlinkat(&readlinkat(from.dir, from.name, Vec::new())?, dir, name)?,
            kind => mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev).map_err(|e| match e {
                Errno::PERM => anyhow::Error::from(e).context("only root may make a device"),
                e => e.into(),
            })?,
        }
        self.attributes(from, Inode::Named(dir, name))
    }

    fn file(&mut self, from: &Found<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let source: OwnedFd = open(from)?.into();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        let shown = || from.name.to_string_lossy().into_owned();
        let content = Content { from: &source, to: &target, stat: &from.stat, from_name: shown, to_name: shown };
        content.copy(&mut self.ways, &mut self.buffer)?;
        self.attributes(from, Inode::Open(target.as_fd()))?;
        if !is_as_before(&fstat(&source)?, &from.stat) {
            bail!("changed while it was read; export again");
        }
        Ok(())
    }

    /// Gives `to` owner, extended attributes, mode and times of an entry, in the order that keeps them: a change of owner
    /// takes set-id bits and capabilities away, and everything sets times.
    pub fn attributes(&mut self, from: &Found<'_>, to: Inode<'_>) -> Result<()> {
        to.chown(Some(from.stat.st_uid), Some(from.stat.st_gid)).context("chown")?;
        let source = Inode::Named(from.dir, from.name);
        source.list_xattrs(&mut self.names)?;
        let mut value = Vec::new();
        for name in xattr_names(&self.names).filter(|name| !layer::is_bookkeeping(name.to_bytes())) {
            source.get_xattr(name, &mut value)?;
            to.set_xattr(name, &value).with_context(|| format!("xattr {}", name.to_string_lossy()))?;
        }
        if FileType::from_raw_mode(from.stat.st_mode) != FileType::Symlink {
            to.chmod(from.stat.st_mode).context("chmod")?;
        }
        to.set_times(&from.stat).context("utimensat")
    }
}
