//! What is mounted on a directory, asked of the kernel by `statx` (a microsecond) and not by parsing mountinfo.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, open_tree};

/// `f_type` of OverlayFS in `statfs`.
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8), which rustix has no name for yet. Where the kernel does not know it, it answers the
/// `STATX_MNT_ID` asked for beside it: an id that is used again later, but holds while the mount stands.
const MNT_ID_UNIQUE: u32 = 0x4000;

/// The mount whose root a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount {
    /// `STATX_MNT_ID_UNIQUE`, or `STATX_MNT_ID` before Linux 6.8; `None` before 5.8.
    pub id: Option<u64>,
}

/// The mount on `dir`, the topmost if there are several; `None` where `dir` is not a mount point or not there.
pub fn at(dir: &Path) -> Result<Option<Mount>> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
    let found = match statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, wanted) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("statx {}", dir.display())),
    };
    let is_root = if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    } else {
        // Before Linux 5.8 the devices of a directory and its parent tell (not for bind mounts of one file system, of
        // which this program makes only the read-only copy).
        let parent = dir.parent().unwrap_or(dir);
        let above =
            statx(CWD, parent, AtFlags::NO_AUTOMOUNT, StatxFlags::empty()).with_context(|| "statx".to_owned())?;
        (above.stx_dev_major, above.stx_dev_minor) != (found.stx_dev_major, found.stx_dev_minor)
    };
    let has_id = found.stx_mask & (MNT_ID_UNIQUE | StatxFlags::MNT_ID.bits()) != 0;
    Ok(is_root.then_some(Mount { id: has_id.then_some(found.stx_mnt_id) }))
}

/// The id, as in [`Mount`], of the mount that the file behind `path` is on; symbolic links (also those of /proc) are
/// followed.
pub fn id_behind(path: &Path) -> Option<u64> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
    let found = statx(CWD, path, AtFlags::NO_AUTOMOUNT, wanted).ok()?;
    (found.stx_mask & (MNT_ID_UNIQUE | StatxFlags::MNT_ID.bits()) != 0).then_some(found.stx_mnt_id)
}

/// Whether `dir` is on an OverlayFS.
pub fn is_overlayfs(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type as u64 == OVERLAYFS_MAGIC)
}

/// Keeps what is mounted on `dir`, and below it, from spreading to other mount namespaces.
pub fn make_private(dir: &Path) -> Result<()> {
    rustix::mount::mount_change(dir, MountPropagationFlags::PRIVATE)
        .with_context(|| format!("make {} private", dir.display()))
}

/// Shows `dir` on `point` (which may be `dir` itself), read-only if so wanted.
pub fn bind(dir: &Path, point: &Path, read_only: bool) -> Result<()> {
    rustix::mount::mount_bind(dir, point).with_context(|| format!("bind {} to {}", dir.display(), point.display()))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    let restrict = || match read_only {
        true => rustix::mount::mount_remount(point, flags, c"")
            .with_context(|| format!("remount {} read-only", point.display())),
        false => Ok(()),
    };
    let done = restrict().and_then(|()| make_private(point));
    if done.is_err() {
        let _ = unmount(point);
    }
    done
}

/// A mount of the same file system that nobody can reach: while it is held, an umount does not end the file system.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// Holds the file system that is mounted on `dir`; `None` where that is not possible, which harms nobody.
///
/// OverlayFS syncs the file system of the upper when it ends. Where the upper is to be deleted, it is deleted first and
/// the hold let go then: the kernel has no thrown-away data to write any more.
pub fn hold(dir: &Path) -> Option<Hold> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, dir, flags).ok().map(Hold)
}

/// Why something is still mounted.
#[derive(Debug)]
pub enum NotUnmounted {
    /// Somebody uses it (`EBUSY`).
    Busy,
    /// Anything else.
    Failed(anyhow::Error),
}

impl From<NotUnmounted> for anyhow::Error {
    fn from(reason: NotUnmounted) -> Self {
        match reason {
            NotUnmounted::Busy => crate::exit::busy("in use"),
            NotUnmounted::Failed(error) => error,
        }
    }
}

/// Unmounts what is mounted on `dir` and makes sure that it is gone. Never lazily: where this succeeds, nothing reaches
/// the upper through the mount any more in this mount namespace, and it may be deleted.
pub fn unmount(dir: &Path) -> Result<(), NotUnmounted> {
    match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        Err(Errno::BUSY) => return Err(NotUnmounted::Busy),
        Err(e) => {
            return Err(NotUnmounted::Failed(anyhow::Error::from(e).context(format!("umount {}", dir.display()))));
        }
    }
    let nothing_left = || match at(dir)? {
        None => Ok(()),
        Some(_) => bail!("{}: another mount lay under the one unmounted; nothing is deleted", dir.display()),
    };
    nothing_left().map_err(NotUnmounted::Failed)
}

/// Takes what is mounted on `dir`, and all that is mounted below, out of sight at once, whoever uses it still.
pub fn detach(dir: &Path) -> Result<()> {
    rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .with_context(|| format!("umount {} lazily", dir.display()))
}
