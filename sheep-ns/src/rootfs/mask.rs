//! Paths of the container that cannot be read, or not be written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use super::mount::{attach, clone_tree};
use super::{dev, resolve};
use crate::selinux::Label;
use crate::sys;

/// Hides the paths: a file behind /dev/null, a directory behind an empty one. What is not there needs no hiding.
/// `label` is that of the empty directories.
pub fn mask(root: BorrowedFd<'_>, paths: &[PathBuf], label: Option<&Label>) -> Result<()> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = find(root, path, "maskedPaths")? else { continue };
        let is_dir = resolve::is_dir(target.as_fd())?;
        let cover = if is_dir { &mut empty } else { &mut null };
        let make = || if is_dir { empty_dir(label) } else { null_file() };
        let cover = match cover {
            Some(first) => clone_tree(first.as_fd(), Path::new(""), false),
            None => Ok(make().with_context(|| format!("maskedPaths: {}", path.display()))?),
        }
        .and_then(|tree| attach(tree.as_fd(), target.as_fd()).map(|()| cover.get_or_insert(tree)));
        cover.with_context(|| format!("maskedPaths: {}", path.display()))?;
    }
    Ok(())
}

/// Makes the paths, with all that is mounted on and under them, read-only.
pub fn read_only(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let Some(target) = find(root, path, "readonlyPaths")? else { continue };
        clone_tree(target.as_fd(), Path::new(""), true)
            .map_err(anyhow::Error::from)
            .and_then(|tree| {
                sys::mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
                Ok(attach(tree.as_fd(), target.as_fd())?)
            })
            .with_context(|| format!("readonlyPaths: {}", path.display()))?;
    }
    Ok(())
}

fn find(root: BorrowedFd<'_>, path: &Path, what: &str) -> Result<Option<OwnedFd>> {
    match resolve::open(root, path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("{what}: {}", path.display())),
    }
}

/// The host's /dev/null. Read-only: reading and writing it are as ever, but its mode and owner are the host's.
fn null_file() -> Result<OwnedFd> {
    let tree = dev::null()?;
    let quiet = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), false, quiet, 0, 0)?;
    Ok(tree)
}

fn empty_dir(label: Option<&Label>) -> Result<OwnedFd> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(tmpfs.as_fd(), c"size", c"4k")?;
    fsconfig_set_string(tmpfs.as_fd(), c"mode", c"755")?;
    if let Some(label) = label {
        fsconfig_set_string(tmpfs.as_fd(), c"context", label.text())?;
    }
    fsconfig_create(tmpfs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
