//! The on-disk layer format: what OverlayFS writes into an upper directory and reads from lower ones
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). This module alone knows it.
//!
//! - A *whiteout* hides the name below it: a character device 0/0, or, in a directory marked `overlay.opaque` = `x`, an
//!   empty regular file with the xattr `overlay.whiteout`.
//! - An *opaque* directory (`overlay.opaque` = `y`) hides the whole directory below it instead of merging with it. It
//!   needs no whiteouts, and one inside it confuses the kernel.
//! - `overlay.redirect` names the lower path a renamed directory still merges with; `overlay.metacopy` marks a file of
//!   which only the attributes were copied up. Sheep mounts with both off and refuses layers that depend on them.
//! - `overlay.origin`, `impure`, `nlink`, `upper`, `uuid`, `protattr` are the kernel's own notes, of no meaning in a copy.
//!
//! Each of these xattrs exists as `trusted.overlay.*` (an ordinary mount, by root) and `user.overlay.*` (a mount with
//! `userxattr`, as a user namespace needs). A mount reads one of the two and takes the other for plain data, so a layer
//! made by root carries its marks in both: a mark that only one of them sees would make deleted files reappear.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FileType, Mode, Stat, XattrFlags, fgetxattr, fsetxattr, lgetxattr, mknodat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::doc::Overlay;

/// The prefixes of every OverlayFS xattr.
pub const XATTR_PREFIXES: [&str; 2] = ["trusted.overlay.", "user.overlay."];
/// On a directory: `y` hides the directory below, `x` announces xattr whiteouts in this one.
pub const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// On an empty regular file in a directory marked `x`: it is a whiteout.
pub const WHITEOUT: [&str; 2] = ["trusted.overlay.whiteout", "user.overlay.whiteout"];
/// On a directory: the lower path it merges with, where that is not its own.
pub const REDIRECT: [&str; 2] = ["trusted.overlay.redirect", "user.overlay.redirect"];
/// On a regular file: its content is in a lower layer.
pub const METACOPY: [&str; 2] = ["trusted.overlay.metacopy", "user.overlay.metacopy"];

/// How the notes begin that fuse-overlayfs keeps in an upper.
pub const FUSE_XATTR_PREFIX: &[u8] = b"user.fuseoverlayfs.";

/// Which of the two sets of xattrs a mount reads; the other one is plain data to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`: mounts by root of the initial user namespace.
    Trusted = 0,
    /// `user.overlay.*`: mounts with `userxattr`.
    User = 1,
}

impl Marks {
    /// The marks in the layers of an overlay.
    pub fn of(overlay: &Overlay) -> Self {
        if overlay.user_xattrs { Marks::User } else { Self::of_this_process() }
    }

    /// The marks that an overlay mounted by this process would go by.
    pub fn of_this_process() -> Self {
        // Only the initial user namespace maps every id to itself; in others root has no trusted xattrs.
        let every_id = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
        let initial = fs::read_to_string("/proc/self/uid_map").is_ok_and(every_id);
        if rustix::process::geteuid().is_root() && initial { Marks::Trusted } else { Marks::User }
    }
}

/// What a directory's `overlay.opaque` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// Nothing: it merges with the directory below.
    No,
    /// `y`: it hides the directory below.
    Yes,
    /// `x`: it merges, and may contain xattr whiteouts.
    HasXattrWhiteouts,
}

/// Reads the mark of an open directory (not `O_PATH`). A directory on a file system without xattrs has none.
pub fn opaque<D: AsFd>(dir: D, marks: Marks) -> io::Result<Opaque> {
    let mut value = [0u8; 2];
    match fgetxattr(dir, OPAQUE[marks as usize], &mut value) {
        Ok(1) if value[0] == b'y' => Ok(Opaque::Yes),
        Ok(1) if value[0] == b'x' => Ok(Opaque::HasXattrWhiteouts),
        // The kernel takes any other value for no mark.
        Ok(_) | Err(Errno::RANGE | Errno::NODATA | Errno::NOTSUP) => Ok(Opaque::No),
        Err(e) => Err(e.into()),
    }
}

/// Whether an open directory hides the one below it.
pub fn is_opaque<D: AsFd>(dir: D, marks: Marks) -> io::Result<bool> {
    Ok(opaque(dir, marks)? == Opaque::Yes)
}

/// Whether a directory that fuse-overlayfs wrote hides the one below it, by whichever of its marks.
pub fn is_opaque_to_fuse<D: AsFd>(dir: D) -> io::Result<bool> {
    for mark in ["user.fuseoverlayfs.opaque", OPAQUE[Marks::User as usize], OPAQUE[Marks::Trusted as usize]] {
        let mut value = [0u8; 2];
        match fgetxattr(&dir, mark, &mut value) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::RANGE | Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

/// Whether what `stat` describes is a whiteout in its first form, the character device 0/0.
pub fn is_device_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether `name` in the directory `dir` is a whiteout of either form. `stat` is the entry's own (not followed);
/// `dir_mark` is what [`opaque`] says of `dir`: only a directory marked `x` has whiteouts by xattr.
pub fn is_whiteout<D: AsFd>(dir: D, name: &[u8], stat: &Stat, dir_mark: Opaque, marks: Marks) -> io::Result<bool> {
    if is_device_whiteout(stat) {
        return Ok(true);
    }
    let may_be_marked = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
    if dir_mark != Opaque::HasXattrWhiteouts || !may_be_marked {
        return Ok(false);
    }
    // By way of /proc, so that the file need neither be opened nor be readable.
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    match lgetxattr(&path[..], WHITEOUT[marks as usize], &mut [0u8; 1]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes the whiteout `name` in `dir`: a character device 0/0, which any user may make (since Linux 5.8). Errors with
/// `EEXIST` where the name is taken. Not for an opaque directory, which needs none.
pub fn make_whiteout<D: AsFd, N: Arg>(dir: D, name: N) -> io::Result<()> {
    Ok(mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// Marks an open directory (not `O_PATH`) opaque, in both namespaces where we may and where the file system has them.
/// At least one mark must stick: an opaque directory that is not marked would show what was deleted.
pub fn set_opaque<D: AsFd>(dir: D) -> io::Result<()> {
    let mut refusal = None;
    let mut done = false;
    for mark in OPAQUE {
        match fsetxattr(&dir, mark, b"y", XattrFlags::empty()) {
            Ok(()) => done = true,
            Err(error @ (Errno::PERM | Errno::NOTSUP)) => refusal = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match refusal {
        Some(error) if !done => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether an xattr is OverlayFS's own and no part of what the merged view shows.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    XATTR_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Whether an xattr is a note of OverlayFS or of fuse-overlayfs, and no data.
pub fn is_bookkeeping(name: &[u8]) -> bool {
    is_overlay_xattr(name) || name.starts_with(FUSE_XATTR_PREFIX)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{AtFlags, statat};

    use super::*;

    #[test]
    fn bookkeeping_is_told_from_data() {
        for name in ["trusted.overlay.opaque", "user.overlay.origin", "user.overlay.overlay.opaque"] {
            assert!(is_overlay_xattr(name.as_bytes()), "{name}");
        }
        for name in ["user.overlay", "trusted.overlayfs", "user.fuseoverlayfs.opaque", "security.capability", ""] {
            assert!(!is_overlay_xattr(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        let path = std::env::temp_dir().join(format!("sheep-layer-{}", crate::state::new_id().unwrap()));
        fs::create_dir(&path).unwrap();
        let dir = fs::File::open(&path).unwrap();
        let marks = Marks::of_this_process();
        assert_eq!(opaque(&dir, marks).unwrap(), Opaque::No);
        set_opaque(&dir).unwrap();
        assert!(is_opaque(&dir, marks).unwrap());
        assert!(is_opaque(&dir, Marks::User).unwrap(), "trusted.overlay where we may, user.overlay always");

        make_whiteout(&dir, "gone").unwrap();
        assert_eq!(make_whiteout(&dir, "gone").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for name in ["empty", "marked"] {
            fs::write(path.join(name), "").unwrap();
        }
        let marked = fs::File::open(path.join("marked")).unwrap();
        fsetxattr(&marked, WHITEOUT[marks as usize], b"y", XattrFlags::empty()).unwrap();
        let table = [
            ("gone", Opaque::No, true),
            ("marked", Opaque::No, false),
            ("marked", Opaque::HasXattrWhiteouts, true),
            ("empty", Opaque::HasXattrWhiteouts, false),
        ];
        for (name, mark, want) in table {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!(is_whiteout(&dir, name.as_bytes(), &stat, mark, marks).unwrap(), want, "{name} {mark:?}");
        }
        fs::remove_dir_all(path).unwrap();
    }
}
