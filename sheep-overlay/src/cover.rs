//! The cover: a layer of Sheep's own between the lowers and the upper of one tree.
//!
//! It takes things out of the view (a whiteout for each hidden path) and puts things in (a copy of a file that is mounted
//! on a file of the lower, which OverlayFS does not show). Directories on the way to these have the attributes of
//! the lowers' own, for the topmost directory's are the ones seen. Where the lower is shown entry by entry, the cover
//! holds all of its entries that are no directories, and an empty directory for each that is.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, ioctl_ficlone, linkat, mkdirat, mknodat, openat, readlinkat,
    statat, symlinkat,
};
use rustix::io::Errno;

use crate::inode::{Inode, xattr_names};
use crate::layer;

/// Above this a file of somebody else's is not copied into a cover, but mounted on its place, read-only.
const MUCH: i64 = 64 << 20;

/// A cover that is being made.
#[derive(Debug)]
pub struct Cover {
    dir: OwnedFd,
    path: PathBuf,
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
    /// Makes the directory of a cover.
    pub fn make(path: &Path) -> Result<Self> {
        rustix::fs::mkdir(path, Mode::RWXU).with_context(|| format!("mkdir {}", path.display()))?;
        let dir = openat(CWD, path, DIRECTORY, Mode::empty()).with_context(|| path.display().to_string())?;
        Ok(Cover { dir, path: path.to_path_buf() })
    }

    /// Hides `inside` (a path from the tree's root on). `lowers` are the tree's, top first; where none of them has it,
    /// there is nothing to hide.
    pub fn hide(&self, lowers: &[OwnedFd], inside: &Path) -> Result<()> {
        let Some(name) = last_name(inside)? else {
            return Err(anyhow!("{}: the whole view cannot be hidden", self.path.display()));
        };
        let Some(parent) = self.way_to(lowers, inside)? else { return Ok(()) };
        match layer::make_whiteout(&parent, &*name) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e).with_context(|| self.name_of(inside)),
            _ => Ok(()),
        }
    }

    /// Puts a copy of the file that `from` names, mounted at `inside`, into the cover.
    pub fn put_mounted(&self, lowers: &[OwnedFd], inside: &Path, from: &Path) -> Result<Put> {
        let (Some(name), Some(parent)) = (last_name(inside)?, self.way_to(lowers, inside)?) else {
            return Err(anyhow!("{}: nothing is below this mount", from.display()));
        };
        let at = from.parent().unwrap_or(Path::new("/"));
        let at = openat(CWD, at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| at.display().to_string())?;
        self.put(at.as_fd(), &name, parent.as_fd()).with_context(|| from.display().to_string())
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
                match copy(from, name, &stat, to)? {
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

    /// Opens the parent of `inside` in the cover, made with the attributes that the topmost lower's directories have;
    /// `None` where no lower has it.
    fn way_to(&self, lowers: &[OwnedFd], inside: &Path) -> Result<Option<OwnedFd>> {
        let mut at = openat(&self.dir, c".", DIRECTORY, Mode::empty())?;
        let mut sources: Vec<OwnedFd> =
            lowers.iter().map(|lower| lower.try_clone()).collect::<std::io::Result<_>>()?;
        let parent = inside.parent().unwrap_or(Path::new(""));
        for part in parent.components() {
            let Component::Normal(part) = part else { continue };
            let name = CString::new(part.as_bytes())?;
            sources = sources.iter().filter_map(|source| openat(source, &*name, BELOW, Mode::empty()).ok()).collect();
            let Some(top) = sources.first() else { return Ok(None) };
            match mkdirat(&at, &*name, Mode::RWXU) {
                Ok(()) => {
                    let stat = fstat(top)?;
                    // By the descriptor of the directory itself, which only names it.
                    attributes(Inode::Named(top.as_fd(), c"."), Inode::Named(at.as_fd(), &name), &stat)
                        .with_context(|| self.name_of(inside))?;
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(|| self.name_of(inside)),
            }
            at = openat(&at, &*name, BELOW, Mode::empty()).with_context(|| self.name_of(inside))?;
        }
        Ok(Some(at))
    }

    fn name_of(&self, inside: &Path) -> String {
        self.path.join(inside).display().to_string()
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const BELOW: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn last_name(inside: &Path) -> Result<Option<CString>> {
    inside.file_name().map(|name| CString::new(name.as_bytes()).context("a name with a NUL")).transpose()
}

enum Copied {
    Yes,
    /// It is another name of the same file.
    Linked,
    No,
}

/// Copies the content of a regular file: shares it (reflink), else makes another name of the file where it is this user's
/// own, else copies it. Not what cannot be read, or is too much.
fn copy(from: BorrowedFd<'_>, name: &CStr, stat: &Stat, to: BorrowedFd<'_>) -> Result<Copied> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = match openat(from, name, flags, Mode::empty()) {
        Ok(source) => source,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(Copied::No),
        Err(e) => return Err(e.into()),
    };
    let make = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(to, name, flags, Mode::RUSR | Mode::WUSR)
    };
    let target = make()?;
    if stat.st_size == 0 || ioctl_ficlone(&target, &source).is_ok() {
        return Ok(Copied::Yes);
    }
    rustix::fs::unlinkat(to, name, AtFlags::empty())?;
    // Nothing writes to what is in a lower.
    let own = stat.st_uid == rustix::process::geteuid().as_raw();
    if own && linkat(from, name, to, name, AtFlags::empty()).is_ok() {
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
