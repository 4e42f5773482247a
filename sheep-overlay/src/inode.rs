//! One inode and its attributes, named by a descriptor or by a name in an open directory. No symbolic link is ever
//! followed, and what must not be opened (devices, FIFOs, sockets) need not be.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::ffi::CStr;
use rustix::fs::{
    AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr,
    flistxattr, fsetxattr, futimens, lgetxattr, llistxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

/// How an inode is reached.
#[derive(Debug, Clone, Copy)]
pub enum Inode<'a> {
    /// By a descriptor that was opened for reading or writing.
    Open(BorrowedFd<'a>),
    /// By its name in a directory.
    Named(BorrowedFd<'a>, &'a CStr),
}

impl Inode<'_> {
    /// The names of all extended attributes, each ended by a NUL, into `names` (which is emptied first). A file system
    /// without xattrs has none.
    pub fn list_xattrs(self, names: &mut Vec<u8>) -> io::Result<()> {
        let list = |names: &mut [u8]| match self {
            Inode::Open(fd) => flistxattr(fd, names),
            Inode::Named(dir, name) => llistxattr(proc_path(dir, name), names),
        };
        match in_steps(names, list) {
            Ok(()) | Err(Errno::NOTSUP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The value of an extended attribute, into `value` (which is emptied first). Errors with `ENODATA` if absent.
    pub fn get_xattr(self, xattr: &CStr, value: &mut Vec<u8>) -> io::Result<()> {
        let get = |value: &mut [u8]| match self {
            Inode::Open(fd) => fgetxattr(fd, xattr, value),
            Inode::Named(dir, name) => lgetxattr(proc_path(dir, name), xattr, value),
        };
        Ok(in_steps(value, get)?)
    }

    /// Sets an extended attribute.
    pub fn set_xattr(self, xattr: &CStr, value: &[u8]) -> io::Result<()> {
        match self {
            Inode::Open(fd) => fsetxattr(fd, xattr, value, XattrFlags::empty())?,
            Inode::Named(dir, name) => lsetxattr(proc_path(dir, name), xattr, value, XattrFlags::empty())?,
        }
        Ok(())
    }

    /// Sets user and group; `None` leaves one as it is.
    pub fn chown(self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Inode::Open(fd) => fchown(fd, uid, gid)?,
            Inode::Named(dir, name) => chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?,
        }
        Ok(())
    }

    /// Sets the permission bits. Not for a symbolic link, which has none.
    pub fn chmod(self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Inode::Open(fd) => fchmod(fd, mode)?,
            // fchmodat(2) cannot be told to stay on a link before Linux 6.6; the name was made by us a moment ago.
            Inode::Named(dir, name) => chmodat(dir, name, mode, AtFlags::empty())?,
        }
        Ok(())
    }

    /// Sets access and modification times, with nanoseconds.
    pub fn set_times(self, stat: &Stat) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
            last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
        };
        match self {
            Inode::Open(fd) => futimens(fd, &times)?,
            Inode::Named(dir, name) => utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?,
        }
        Ok(())
    }
}

/// When an inode changed last, content, attributes and names included: its `ctime`, seconds and nanoseconds.
pub fn changed(stat: &Stat) -> (i64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec as i64)
}

/// Reads into `buffer` what a call gives: mostly little, and at most 64 KiB (XATTR_LIST_MAX, XATTR_SIZE_MAX). The kernel
/// makes a buffer of the same size for each call, so a small one comes first.
fn in_steps(buffer: &mut Vec<u8>, read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
    for room in [256, 65536] {
        buffer.resize(room, 0);
        match read(buffer) {
            Err(Errno::RANGE) if room == 256 => {}
            done => {
                buffer.truncate(*done.as_ref().unwrap_or(&0));
                return done.map(drop);
            }
        }
    }
    Ok(())
}

/// The names in a list that [`Inode::list_xattrs`] made.
pub fn xattr_names(list: &[u8]) -> impl Iterator<Item = &CStr> {
    list.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok())
}

/// The xattr calls know no directory descriptor before Linux 6.13; /proc gives them one.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}
