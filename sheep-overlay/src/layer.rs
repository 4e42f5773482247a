//! The on-disk layer format, as OverlayFS reads and writes it (Documentation/filesystems/overlayfs.rst in the kernel's
//! sources). This module alone knows it; everything else asks here.
//!
//! - A *whiteout* hides an entry of the layers below: a character device 0/0, or ("xattr whiteout") an empty regular
//!   file with the xattr `overlay.whiteout` in a directory whose `overlay.opaque` is `x`.
//! - An *opaque* directory hides the whole directory below: `overlay.opaque` is `y`.
//! - The kernel reads these xattrs as `trusted.overlay.*`, or as `user.overlay.*` when mounted with `userxattr`. We write
//!   opaque marks as both where we may, so that a layer means the same to root and in a user namespace; a mark that only
//!   one of them sees would make deleted files reappear.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, fgetxattr, fsetxattr, mknodat, openat, statat};
use rustix::io::Errno;
use rustix::path::Arg;

/// The name spaces in which OverlayFS keeps its marks: for privileged mounts, and for those with `userxattr`.
pub const XATTR_PREFIXES: [&str; 2] = ["trusted.overlay.", "user.overlay."];

/// The opaque mark in both name spaces, the privileged one first.
const OPAQUE: [&CStr; 2] = [c"trusted.overlay.opaque", c"user.overlay.opaque"];

/// The whiteout mark of an empty regular file, in both name spaces.
const WHITEOUT: [&CStr; 2] = [c"trusted.overlay.whiteout", c"user.overlay.whiteout"];

/// What a directory's `overlay.opaque` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// Nothing: the directory is merged with those below.
    No,
    /// `y`: the directories below are hidden.
    Yes,
    /// `x`: merged, but files in it may be xattr whiteouts.
    HasXattrWhiteouts,
}

/// Whether this xattr is OverlayFS's own bookkeeping and no part of a file as a user sees it.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    XATTR_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Whether what `stat` describes is a whiteout in its first form, the character device 0/0.
pub fn is_device_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether `name` in the directory `dir` is a whiteout of either form. `stat` is the entry's own (not followed);
/// `dir_mark` is what [`opaque`] says of `dir`. Errors are those of the system calls.
pub fn is_whiteout<D: AsFd, N: Arg + Copy>(dir: D, name: N, stat: &Stat, dir_mark: Opaque) -> io::Result<bool> {
    if is_device_whiteout(stat) {
        return Ok(true);
    }
    let may_be_marked = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
    if dir_mark != Opaque::HasXattrWhiteouts || !may_be_marked {
        return Ok(false);
    }
    let file =
        openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut value = [0u8; 1];
    Ok(WHITEOUT.iter().any(|mark| matches!(fgetxattr(&file, *mark, &mut value), Ok(_) | Err(Errno::RANGE))))
}

/// What the opaque mark of an open directory says, in whichever name space it stands. A directory on a file system
/// without xattrs has none.
pub fn opaque<D: AsFd>(dir: D) -> io::Result<Opaque> {
    for mark in OPAQUE {
        let mut value = [0u8; 1];
        match fgetxattr(&dir, mark, &mut value) {
            Ok(1) if value == *b"y" => return Ok(Opaque::Yes),
            Ok(1) if value == *b"x" => return Ok(Opaque::HasXattrWhiteouts),
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Opaque::No)
}

/// Whether an open directory hides those below it.
pub fn is_opaque<D: AsFd>(dir: D) -> io::Result<bool> {
    Ok(opaque(dir)? == Opaque::Yes)
}

/// Makes the whiteout `name` in the directory `dir`. A character device 0/0 is no device that could be opened, so plain
/// users may make it too (since Linux 4.18). Errors: `EEXIST` where the name is taken, and those of mknod(2).
pub fn make_whiteout<D: AsFd, N: Arg>(dir: D, name: N) -> io::Result<()> {
    Ok(mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// Marks an open directory as opaque, in both name spaces where we may and where the file system has them. At least one
/// mark must stick: an opaque directory that is not marked would show what was deleted.
pub fn set_opaque<D: AsFd>(dir: D) -> io::Result<()> {
    let mut done = false;
    let mut refusal = Errno::OPNOTSUPP;
    for mark in OPAQUE {
        match fsetxattr(&dir, mark, b"y", XattrFlags::empty()) {
            Ok(()) => done = true,
            Err(error @ (Errno::PERM | Errno::OPNOTSUPP)) => refusal = error,
            Err(error) => return Err(error.into()),
        }
    }
    if done { Ok(()) } else { Err(refusal.into()) }
}

/// The status of `name` in `dir`, a symbolic link not followed.
pub fn stat_entry<D: AsFd, N: Arg>(dir: D, name: N) -> io::Result<Stat> {
    Ok(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::state::new_id;

    #[test]
    fn marks_are_read_as_they_are_written() {
        let dir = std::env::temp_dir().join(format!("sheep-layer-{}", new_id().unwrap()));
        fs::create_dir_all(dir.join("d")).unwrap();
        let open = File::open(dir.join("d")).unwrap();
        assert_eq!(opaque(&open).unwrap(), Opaque::No);
        make_whiteout(&open, "gone").unwrap();
        fs::write(dir.join("d/empty"), "").unwrap();
        for (name, want) in [("gone", true), ("empty", false)] {
            let stat = stat_entry(&open, name).unwrap();
            assert_eq!(is_whiteout(&open, name, &stat, Opaque::No).unwrap(), want, "{name}");
        }
        set_opaque(&open).unwrap();
        assert!(is_opaque(&open).unwrap());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn bookkeeping_is_told_from_data() {
        assert!(is_overlay_xattr(b"trusted.overlay.opaque") && is_overlay_xattr(b"user.overlay.redirect"));
        assert!(!is_overlay_xattr(b"user.overlayish") && !is_overlay_xattr(b"security.capability"));
    }
}
