//! Snapshots: where the lower is a btrfs subvolume, a writable snapshot of it (ioctl(2), linux/btrfs.h) is a copy that is
//! made at once and shares everything.
//!
//! A subvolume inside the lower is an empty directory in the snapshot.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, fstatfs, openat, unlinkat};
use rustix::io::Errno;

use super::kernel::Refused;
use crate::sys;

/// `BTRFS_SUPER_MAGIC`
const MAGIC: u64 = 0x9123_683E;
/// `BTRFS_FIRST_FREE_OBJECTID`: the inode number of a subvolume's root.
const ROOT_INODE: u64 = 256;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes `dir/name`, where there is an empty directory or nothing, a writable snapshot of `lower`. On failure there is
/// an empty directory.
pub fn snapshot(lower: &Path, dir: &Path, name: &CStr) -> Result<(), Refused> {
    let refused = |step: &str| {
        let step = format!("{step} {}", lower.display());
        move |errno| Refused::new(errno, step, "")
    };
    let source = openat(CWD, lower, DIRECTORY, Mode::empty()).map_err(refused("open"))?;
    let fs = fstatfs(&source).map_err(refused("statfs"))?;
    let inode = fstat(&source).map_err(refused("stat"))?.st_ino;
    if fs.f_type as u64 != MAGIC || inode != ROOT_INODE {
        return Err(Refused::new(Errno::INVAL, format!("snapshot of {}", lower.display()), "it is no btrfs subvolume"));
    }
    let place = openat(CWD, dir, DIRECTORY, Mode::empty()).map_err(refused("open the place of the snapshot of"))?;
    match unlinkat(&place, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(refused("rmdir the place of the snapshot of")(e)),
    }
    sys::btrfs_snapshot(&source, &place, name).map_err(|errno| {
        // As it was: who goes on by another way finds what he expects.
        let _ = rustix::fs::mkdirat(&place, name, Mode::RWXU);
        let reason = if errno == Errno::XDEV { "it is on another file system than the data directory" } else { "" };
        Refused::new(errno, format!("snapshot of {}", lower.display()), reason)
    })
}

/// Deletes the subvolume `dir/name` at once. Errors with `EPERM` or `EACCES` where the user may not (without the mount option
/// user_subvol_rm_allowed); it can be emptied and removed like a directory then.
pub fn delete(dir: &Path, name: &CStr) -> Result<(), Errno> {
    sys::btrfs_delete(&openat(CWD, dir, DIRECTORY, Mode::empty())?, name)
}
