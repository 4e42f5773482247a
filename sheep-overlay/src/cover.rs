//! The cover: a layer of Sheep's own in the place of a lower that is shown entry by entry.
//!
//! It holds all of the lower's entries that are no directories, and an empty directory for each that is, for a tree of its own
//! to be mounted on.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, ioctl_ficlone, linkat, mkdirat, mknodat, openat, readlinkat, statat,
    symlinkat,
};
use rustix::io::Errno;

use crate::inode::{Inode, xattr_names};
use crate::lowers::Lower;
use crate::{layer, upper};

/// Above this a file of somebody else's is not copied into a cover, but mounted on its place, read-only.
const MUCH: i64 = 64 << 20;

/// A cover that is being made.
#[derive(Debug)]
pub struct Cover {
    dir: OwnedFd,
}

/// What became of an entry that was to be put into a cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there.
    Done,
    /// It cannot be copied: an empty file holds its place, for the original to be mounted on.
    Placeholder,
}

impl Cover {
    /// Makes the directory of a cover, which looks like that of `lower`.
    pub fn make(path: &Path, lower: &Lower) -> Result<Self> {
        rustix::fs::mkdir(path, Mode::RWXU).with_context(|| format!("mkdir {}", path.display()))?;
        upper::take_attributes(lower, path)?;
        let dir = openat(CWD, path, DIRECTORY, Mode::empty()).with_context(|| path.display().to_string())?;
        Ok(Cover { dir })
    }

    /// Puts the entry `name` of a directory, which is no directory itself, at the top of the cover.
    pub fn put_entry(&self, from: BorrowedFd<'_>, name: &CStr) -> Result<Put> {
        self.put(from, name, self.dir.as_fd())
    }

    /// Makes an empty directory at the top of the cover, for something to be mounted on.
    pub fn put_directory(&self, name: &CStr, stat: &Stat) -> Result<()> {
        mkdirat(&self.dir, name, Mode::RWXU)?;
        Inode::Named(self.dir.as_fd(), name).chmod(stat.st_mode)?;
        Inode::Named(self.dir.as_fd(), name).set_times(stat)?;
        Ok(())
    }

    fn put(&self, from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>) -> Result<Put> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?,
            FileType::Fifo => mknodat(to, name, FileType::Fifo, Mode::from_raw_mode(stat.st_mode), 0)?,
            FileType::RegularFile => {
                match copy_as((from, name), &stat, (to, name), true)? {
                    Copied::Yes => {}
                    // It is the very file: nothing about it is to be set.
                    Copied::Linked => return Ok(Put::Done),
                    Copied::No => return placeholder(to, name),
                }
            }
            // Devices and sockets mean something only as they are.
            _ => return placeholder(to, name),
        }
        attributes(Inode::Named(from, name), Inode::Named(to, name), &stat)?;
        Ok(Put::Done)
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Copies the file `from`, which is mounted on a file of a lower, to `to`. False where that cannot be: it is no regular file,
/// or closed to this user, or much and another's.
pub fn copy_file(from: &Path, to: &Path) -> Result<bool> {
    let open = |path: &Path| -> Result<(OwnedFd, CString)> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let name = CString::new(path.file_name().unwrap_or_default().as_bytes())?;
        let dir = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| dir.display().to_string())?;
        Ok((dir, name))
    };
    let ((from, from_name), (to, to_name)) = (open(from)?, open(to)?);
    let stat = statat(&from, &*from_name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let copied = copy_as((from.as_fd(), &from_name), &stat, (to.as_fd(), &to_name), false)?;
    if copied == Copied::No {
        return Ok(false);
    }
    attributes(Inode::Named(from.as_fd(), &from_name), Inode::Named(to.as_fd(), &to_name), &stat)?;
    Ok(true)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    Yes,
    /// It is another name of the same file.
    Linked,
    No,
}

/// Copies the content of a regular file: shares it (reflink), else makes another name of the file where it is this user's
/// own, else copies it. Not what cannot be read, or is too much.
fn copy_as(
    (from, name): (BorrowedFd<'_>, &CStr),
    stat: &Stat,
    (to, to_name): (BorrowedFd<'_>, &CStr),
    may_link: bool,
) -> Result<Copied> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = match openat(from, name, flags, Mode::empty()) {
        Ok(source) => source,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(Copied::No),
        Err(e) => return Err(e.into()),
    };
    let make = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(to, to_name, flags, Mode::RUSR | Mode::WUSR)
    };
    let target = make()?;
    if stat.st_size == 0 || ioctl_ficlone(&target, &source).is_ok() {
        return Ok(Copied::Yes);
    }
    rustix::fs::unlinkat(to, to_name, AtFlags::empty())?;
    // Nothing writes to what is in a lower.
    let own = stat.st_uid == rustix::process::geteuid().as_raw();
    if own && may_link && linkat(from, name, to, to_name, AtFlags::empty()).is_ok() {
        return Ok(Copied::Linked);
    }
    if stat.st_size > MUCH && !own {
        return Ok(Copied::No);
    }
    std::io::copy(&mut File::from(source), &mut File::from(make()?))?;
    Ok(Copied::Yes)
}

fn placeholder(to: BorrowedFd<'_>, name: &CStr) -> Result<Put> {
    mknodat(to, name, FileType::RegularFile, Mode::empty(), 0)?;
    Ok(Put::Placeholder)
}

/// Owner, mode, xattrs (but for OverlayFS's own) and times; what this user may not set is left.
fn attributes(from: Inode<'_>, to: Inode<'_>, stat: &Stat) -> Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match to.chown(Some(stat.st_uid), Some(stat.st_gid)) {
        Err(e) if !is_not_allowed(&e) => return Err(e.into()),
        _ => {}
    }
    if kind != FileType::Symlink {
        match to.chmod(stat.st_mode) {
            Err(e) if !is_not_allowed(&e) => return Err(e.into()),
            _ => {}
        }
    }
    let mut names = Vec::new();
    let mut value = Vec::new();
    if from.list_xattrs(&mut names).is_ok() {
        for name in xattr_names(&names).filter(|name| !layer::is_overlay_xattr(name.to_bytes())) {
            if from.get_xattr(name, &mut value).is_ok() {
                match to.set_xattr(name, &value) {
                    Err(e) if !is_not_allowed(&e) && e.raw_os_error() != Some(libc::ENOTSUP) => return Err(e.into()),
                    _ => {}
                }
            }
        }
    }
    match to.set_times(stat) {
        Err(e) if !is_not_allowed(&e) => Err(e.into()),
        _ => Ok(()),
    }
}

fn is_not_allowed(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EINVAL))
}
