//! The merged view by OverlayFS, put together from what the record says: the tree itself, then each mount below it in
//! its place.
//!
//! It is done by this process where it is root, else by the holder in its namespaces (see [`crate::holder`]).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

use crate::backend::fuse;
use crate::backend::kernel::{self, Refused, Stack};
use crate::doc::{Backend, How, Mount, Overlay};
use crate::lowers::{self, Lower};
use crate::mountpoint::{self, NotUnmounted};
use crate::parts::{self, Wanted};
use crate::{PROGRAM, branch, exit, history, idmap, mountinfo, quota, sys, tmpfs, upper};

/// Makes the upper of a new overlay and its parts, and mounts all of it. `lowers` are the overlay's, opened. On failure
/// nothing is left mounted; directories may be left in the overlay's, which the caller deletes.
pub fn make(overlay: &mut Overlay, lowers: &[Lower], wanted: Wanted<'_>) -> Result<()> {
    if let Some(size) = overlay.tmpfs {
        tmpfs::mount(wanted.dir, size)?;
    }
    let mut begin = || -> Result<()> {
        if let Some(top) = lowers.last() {
            upper::take_attributes(top, &overlay.upper)?;
        }
        if let Some(size) = overlay.size {
            quota::limit(wanted.dir, &[&overlay.upper, &overlay.work], size)?;
        }
        match overlay.branch {
            Some(_) => branch::make_parts(overlay)?,
            None => parts::plan(overlay, lowers, wanted)?,
        }
        mount(overlay, lowers, wanted.user_namespace)
    };
    let done = begin();
    if done.is_err() && overlay.tmpfs.is_some() {
        tmpfs::unmount(wanted.dir)?;
    }
    done
}

/// Mounts what is recorded, and notes the mount's id. On failure nothing is left mounted.
pub fn mount(overlay: &mut Overlay, lowers: &[Lower], user_namespace: bool) -> Result<()> {
    let mounted = with_stack(overlay, lowers, user_namespace, kernel::mount)?;
    overlay.mount_id = mounted.and_then(|mount| mount.id);
    overlay.backend = Backend::Kernel;
    overlay.user_xattrs = user_namespace;
    let mut parts = std::mem::take(&mut overlay.mounts);
    let done =
        parts.iter_mut().enumerate().try_for_each(|(number, part)| mount_part(overlay, number, part, user_namespace));
    overlay.mounts = parts;
    if let Err(error) = done {
        // The error that matters is the one already held; what is left mounted, the caller's undo finds.
        let _ = unmount_parts(overlay);
        let _ = mountpoint::unmount(&overlay.merged);
        return Err(error);
    }
    Ok(())
}

/// Opens the layers of the tree itself, and does `act` with them.
pub fn with_stack<T>(
    overlay: &Overlay,
    lowers: &[Lower],
    user_namespace: bool,
    act: impl FnOnce(&Stack) -> Result<T, Refused>,
) -> Result<T> {
    let idmapped = match &overlay.idmap {
        Some(map) => Some(idmap::apply(map, lowers)?),
        None => None,
    };
    let shown = if overlay.split { &[] } else { idmapped.as_deref().unwrap_or(lowers) };
    let frozen = history::layers(overlay, overlay.head).into_iter().map(|layer| layer.join("upper"));
    let own = open_own(overlay.cover.iter().map(|cover| cover.0.clone()).chain(frozen))?;
    let stack: Vec<&Lower> = shown.iter().chain(&own).collect();
    Ok(act(&Stack {
        lowers: &stack,
        upper: &overlay.upper,
        work: &overlay.work,
        merged: &overlay.merged,
        read_only: overlay.read_only,
        volatile: overlay.volatile,
        propagate: false,
        user_namespace,
    })?)
}

/// Opens layers of our own, which lie on the lowers.
fn open_own(layers: impl Iterator<Item = PathBuf>) -> Result<Vec<Lower>> {
    layers.map(|layer| lowers::open_one(&layer)).collect()
}

fn mount_part(overlay: &Overlay, number: usize, part: &mut Mount, user_namespace: bool) -> Result<()> {
    if sys::interrupted() {
        return Err(anyhow!("interrupted"));
    }
    let inside = part.path.strip_prefix("/").unwrap_or(&part.path).to_path_buf();
    // The way to it may lead over no link: a layer above could send it anywhere.
    let Some(target) = find(&overlay.merged, &inside)? else {
        exit::warn(
            PROGRAM,
            &format!("mount: {} is mounted on nothing that the view shows, and left out", part.path.display()),
        );
        return Ok(());
    };
    if part.how == How::Overlay {
        match mount_tree(overlay, number, part, &inside, user_namespace) {
            Ok(()) => return Ok(()),
            Err(error) => match error.downcast::<Refused>() {
                Ok(refused) => {
                    let reason = format!("OverlayFS does not take it: {refused}");
                    exit::warn(PROGRAM, &format!("mount: {} is read-only in the view ({reason})", part.path.display()));
                    (part.how, part.reason) = (How::ReadOnly, Some(reason));
                    (part.upper, part.work, part.cover) = (None, None, None);
                    part.lower.drain(..part.lower.len().saturating_sub(1));
                }
                // Unmounted or deleted since the table of mounts was read.
                Err(error) if exit::kind(&error) == Some(exit::Kind::NotFound) => return Ok(()),
                Err(error) => return Err(error),
            },
        }
    }
    let what = match (part.how, &part.upper, part.lower.last()) {
        (How::File, Some(copy), _) => copy,
        (_, _, Some(what)) => what,
        _ => return Ok(()),
    };
    let read_only = overlay.read_only || matches!(part.how, How::ReadOnly | How::Hidden);
    match bind(what, &target, read_only && part.how != How::Bind) {
        // Deleted since the table of mounts was read.
        Err(Errno::NOENT) if matches!(part.how, How::Bind | How::ReadOnly) => Ok(()),
        done => done.with_context(|| format!("bind {}", what.display())),
    }
}

fn mount_tree(overlay: &Overlay, number: usize, part: &Mount, inside: &Path, user_namespace: bool) -> Result<()> {
    let (Some(upper), Some(work)) = (&part.upper, &part.work) else { return Ok(()) };
    let mut lowers = Vec::new();
    if !part.split {
        for lower in &part.lower {
            lowers.push(lowers::open_one(lower)?);
        }
    }
    let lowers = match &overlay.idmap {
        Some(map) => idmap::apply(map, &lowers)?,
        None => lowers,
    };
    let frozen = history::layers(overlay, overlay.head).into_iter();
    let frozen = frozen.map(|layer| parts::part_dir(&layer, number).join("upper"));
    let own = open_own(part.cover.iter().map(|cover| cover.0.clone()).chain(frozen))?;
    let stack: Vec<&Lower> = lowers.iter().chain(&own).collect();
    kernel::mount(&Stack {
        lowers: &stack,
        upper,
        work,
        merged: &overlay.merged.join(inside),
        read_only: overlay.read_only,
        volatile: overlay.volatile,
        propagate: false,
        user_namespace,
    })?;
    Ok(())
}

/// The place of a part in the merged view, opened without following any link; `None` where there is none.
fn find(merged: &Path, inside: &Path) -> Result<Option<OwnedFd>> {
    let open = |dir: &OwnedFd| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(dir, inside, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    };
    let top = lowers::open_path(merged).with_context(|| merged.display().to_string())?;
    match open(&top) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e).with_context(|| merged.join(inside).display().to_string()),
    }
}

/// Binds `what`, with all that is mounted below it, onto an open directory or file.
fn bind(what: &Path, target: &OwnedFd, read_only: bool) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_NO_AUTOMOUNT;
    let tree = open_tree(CWD, what, flags)?;
    sys::make_private(&tree)?;
    if read_only {
        sys::make_read_only(&tree)?;
    }
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", target, "", how)
}

/// Mounts those parts of a mounted overlay again that are not there any more.
pub fn mount_missing(overlay: &Overlay) -> Result<()> {
    for (number, part) in overlay.mounts.iter().enumerate() {
        if mountpoint::at(&point_of(overlay, part))?.is_none() {
            mount_part(overlay, number, &mut part.clone(), overlay.user_xattrs)?;
        }
    }
    Ok(())
}

/// Where a part of an overlay is mounted.
pub fn point_of(overlay: &Overlay, part: &Mount) -> PathBuf {
    overlay.merged.join(part.path.strip_prefix("/").unwrap_or(&part.path))
}

/// Unmounts the parts of an overlay, the last first; what is no longer mounted is passed over.
pub fn unmount_parts(overlay: &Overlay) -> Result<(), NotUnmounted> {
    for part in overlay.mounts.iter().rev() {
        let point = point_of(overlay, part);
        if mountpoint::at(&point).map_err(NotUnmounted::Failed)?.is_none() {
            continue;
        }
        match part.how {
            How::Overlay | How::File => mountpoint::unmount(&point)?,
            // It is mounted elsewhere too, where nobody misses this view of it; it may have others below it.
            How::Bind | How::ReadOnly | How::Hidden => mountpoint::detach(&point).map_err(NotUnmounted::Failed)?,
        }
    }
    Ok(())
}

/// Unmounts everything that is mounted in an overlay's directory, or on `at` by it: what a killed command left.
pub fn unmount_all(dir: &Path, at: Option<&Path>) -> Result<()> {
    let table = mountinfo::read()?;
    let upper = dir.join("upper");
    // What is mounted on somebody else's directory is ours only if the kernel says that it has our upper.
    let at = at.filter(|at| table.iter().any(|entry| entry.point == **at && entry.has_upper(&upper)));
    let ours = |entry: &&mountinfo::Entry| {
        entry.point.starts_with(dir.join("merged"))
            || entry.point == dir.join("tmpfs")
            || at.is_some_and(|at| entry.point.starts_with(at))
    };
    let points: Vec<(PathBuf, bool)> =
        table.iter().filter(ours).map(|entry| (entry.point.clone(), entry.fs_type.starts_with("fuse"))).collect();
    for (point, is_fuse) in points.iter().rev() {
        if *is_fuse {
            fuse::unmount(point).map_err(anyhow::Error::from)?;
            continue;
        }
        match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            // Not there any more.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => return Err(exit::busy(format!("{} is still in use", point.display()))),
            Err(e) => return Err(e).with_context(|| format!("umount {}", point.display())),
        }
    }
    Ok(())
}
