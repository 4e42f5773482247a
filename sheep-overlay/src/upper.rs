//! The upper of a new overlay.

use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, getxattr, listxattr, setxattr,
    utimensat,
};
use rustix::io::Errno;

use crate::inode::xattr_names;
use crate::layer;
use crate::lowers::Lower;

/// Gives the upper the mode, owner, times and extended attributes of the topmost lower: the root of the merged view is
/// the upper itself.
pub fn take_attributes(lower: &Lower, upper: &Path) -> Result<()> {
    let from = &lower.stat;
    let apply = || -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(from.st_uid), Gid::from_raw(from.st_gid));
        match chownat(CWD, upper, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
            // Not root: the copy backend will be taken, and sees to it itself.
            Err(Errno::PERM | Errno::INVAL) => {}
            done => done?,
        }
        chmodat(CWD, upper, Mode::from_raw_mode(from.st_mode), AtFlags::empty())?;
        copy_xattrs(lower, upper)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: from.st_atime, tv_nsec: from.st_atime_nsec as _ },
            last_modification: Timespec { tv_sec: from.st_mtime, tv_nsec: from.st_mtime_nsec as _ },
        };
        utimensat(CWD, upper, &times, AtFlags::SYMLINK_NOFOLLOW)
    };
    apply().with_context(|| format!("take over the attributes of {}", lower.path.display()))
}

/// All but OverlayFS's own, which say something about the lower's place in its stack.
fn copy_xattrs(lower: &Lower, upper: &Path) -> Result<(), Errno> {
    // The descriptor names a directory and no more (`O_PATH`): /proc makes a path of it.
    let lower = format!("/proc/self/fd/{}", lower.fd.as_raw_fd());
    let mut names = Vec::with_capacity(65536);
    match listxattr(&lower, spare_capacity(&mut names)) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed?,
    };
    let mut value = Vec::with_capacity(65536);
    for name in xattr_names(&names).filter(|name| !layer::is_overlay_xattr(name.to_bytes())) {
        value.clear();
        match getxattr(&lower, name, spare_capacity(&mut value)) {
            // Removed a moment ago.
            Err(Errno::NODATA) => continue,
            read => read?,
        };
        match setxattr(upper, name, &value, XattrFlags::empty()) {
            // A label or attribute that this file system, or this user, may not set.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes a directory of an overlay that a crash, or somebody, removed.
pub fn ensure_dir(dir: &Path) -> Result<()> {
    match rustix::fs::mkdir(dir, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("mkdir {}", dir.display())),
    }
}
