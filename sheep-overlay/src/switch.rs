//! Another stack in the place of a mounted one, with no moment in which there is none: the new mount comes beneath the old
//! one (`MOVE_MOUNT_BENEATH`, Linux 6.5), and is seen when that goes.
//!
//! Nobody may use the old one then, for he would go on writing into what is a layer now. The kernel tells whether
//! somebody does, before and when it is unmounted; copies of the mount in other mount namespaces are looked for in /proc, and
//! become read-only.

use std::cell::Cell;
use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick,
    move_mount, open_tree,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::backend::kernel;
use crate::doc::{How, Overlay};
use crate::lowers::Lower;
use crate::mountpoint::{self, NotUnmounted};
use crate::{assemble, busy, exit, mountinfo, record, sys, umount};

/// What is mounted of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    /// What was there before.
    Old,
    /// What came in its place.
    New,
    /// Nothing.
    Nothing,
}

/// Where an overlay is mounted, in the mount namespace of this process: the merged directory, and of an ordinary user's the
/// place of its lower too.
pub fn points(overlay: &Overlay, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut points = vec![overlay.merged.0.clone()];
    if overlay.user_namespace.is_some()
        && let Some(place) = place(overlay, dir)
        && place != *overlay.merged
        && mountpoint::at(&place)?.is_some()
    {
        points.push(place);
    }
    Ok(points)
}

/// The place of an overlay (see [`crate::view::place`]), by its directory.
fn place(overlay: &Overlay, dir: &Path) -> Option<PathBuf> {
    let data = dir.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    crate::view::place_below(data, overlay)
}

/// Whether the stack of a mounted overlay can be exchanged like this: it has no parts, is nobody's root, and does not hide its
/// own lower.
pub fn is_possible(overlay: &Overlay, dir: &Path) -> bool {
    let hides = match (&overlay.user_namespace, &overlay.at) {
        (Some(_), _) => place(overlay, dir).is_some_and(|place| place == Path::new("/")),
        (None, Some(at)) => overlay.lower.iter().any(|lower| lower.starts_with(&**at)),
        (None, None) => false,
    };
    overlay.mounts.is_empty() && !hides
}

/// Errors with busy (4) where somebody uses what is mounted on one of the points.
pub fn refuse_if_used(overlay: &Overlay, points: &[PathBuf]) -> Result<()> {
    umount::until_not_busy(overlay, || {
        for point in points {
            touch(point);
            let asked = rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::EXPIRE);
            // It is marked as expired now, and a second such call would unmount it; whoever comes by takes the mark away.
            touch(point);
            match asked {
                Err(Errno::AGAIN) => {}
                Err(Errno::BUSY) => return Err(NotUnmounted::Busy),
                Ok(()) => return Err(NotUnmounted::Failed(anyhow::anyhow!("{} was unmounted", point.display()))),
                Err(e) => {
                    let error = anyhow::Error::from(e).context(format!("look at the mount on {}", point.display()));
                    return Err(NotUnmounted::Failed(error));
                }
            }
        }
        Ok(())
    })
}

fn touch(point: &Path) {
    let _ = fs::symlink_metadata(point.join("."));
}

/// The device of what is mounted on a directory: major and minor number.
pub fn device_of(merged: &Path) -> Result<(u32, u32)> {
    let stat = rustix::fs::stat(merged).with_context(|| merged.display().to_string())?;
    Ok((rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)))
}

/// Mounts what is recorded in the place of what is mounted on `points`, whose device is `old`, and notes the mount's id. False where
/// the kernel cannot do that. Then, and on failure, what was mounted is so still, but perhaps by another mount.
pub fn exchange(overlay: &mut Overlay, lowers: &[Lower], points: &[PathBuf], old: (u32, u32)) -> Result<bool> {
    let aside = record::dir_of(overlay).join("aside");
    let user_namespace = kernel::in_user_namespace();
    let mounts =
        assemble::with_stack(overlay, lowers, user_namespace, |stack| kernel::mount_beneath(stack, points, &aside))?;
    let Some(mounts) = mounts else { return Ok(false) };
    let hold = clone_of(&points[0]).with_context(|| points[0].display().to_string())?;
    let gone = Cell::new(0);
    let unmounted = umount::until_not_busy(overlay, || {
        while let Some(point) = points.get(gone.get()) {
            unmount_top(point)?;
            gone.set(gone.get() + 1);
        }
        Ok(())
    });
    let alone = unmounted.and_then(|()| freeze_elsewhere(&hold, old));
    if let Err(error) = alone {
        put_back(hold, mounts, points, gone.get(), &aside).context("undo")?;
        return Err(error);
    }
    drop(mounts);
    for point in points {
        mountpoint::make_private(point)?;
    }
    overlay.mount_id = mountpoint::at(&overlay.merged)?.and_then(|mount| mount.id);
    end_apart(hold, points);
    Ok(true)
}

/// Another mount namespace may have a copy of the mount, as it gets one of every mount when it is made; and through that could be
/// written still. Such copies become read-only, unless somebody uses one of them.
fn freeze_elsewhere(hold: &OwnedFd, device: (u32, u32)) -> Result<()> {
    let Some(keepers) = busy::keepers_of_device(device) else { return Ok(()) };
    if let Some(who) = busy::users_of_device(device) {
        return Err(exit::busy(format!("in use by {who}, in another mount namespace")));
    }
    reconfigure(hold, "ro").map_err(|e| match e {
        Errno::BUSY => exit::busy(format!("in use in the mount namespace of {keepers}")),
        e => anyhow::Error::from(e).context(format!("make its copy in the mount namespace of {keepers} read-only")),
    })
}

fn reconfigure(mount: &OwnedFd, flag: &str) -> Result<(), Errno> {
    let fs = fspick(mount, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    fsconfig_set_flag(&fs, flag)?;
    fsconfig_reconfigure(&fs)
}

/// A mount of an overlay that is held while it is unmounted: where it was, its device, and another mount of the same.
pub type Held = (PathBuf, (u32, u32), OwnedFd);

/// Holds all file systems of an overlay, which is to be unmounted for a moment.
pub fn hold_all(overlay: &Overlay) -> Result<Vec<Held>> {
    let parts = overlay.mounts.iter().filter(|part| part.how == How::Overlay);
    let points = std::iter::once(overlay.merged.0.clone()).chain(parts.map(|part| assemble::point_of(overlay, part)));
    let mut held = Vec::new();
    for point in points {
        if mountpoint::at(&point)?.is_some() {
            let mount = clone_of(&point).with_context(|| point.display().to_string())?;
            held.push((point.clone(), device_of(&point)?, mount));
        }
    }
    Ok(held)
}

/// Once they are unmounted: makes them read-only where other mount namespaces have copies. Errors with busy (4) where one is used.
/// Then they are where they were, by other mounts.
pub fn freeze_all(overlay: &Overlay, held: &[Held]) -> Result<()> {
    let Err(error) = held.iter().try_for_each(|(_, device, mount)| freeze_elsewhere(mount, *device)) else {
        return Ok(());
    };
    let back = || -> Result<()> {
        for (point, _, mount) in held {
            // It may be one that was made read-only just now, which is as it was where that is undone.
            let _ = reconfigure(mount, "rw");
            move_mount(mount, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .with_context(|| point.display().to_string())?;
        }
        assemble::mount_missing(overlay)
    };
    back().context("undo")?;
    Err(error)
}

fn clone_of(point: &Path) -> Result<OwnedFd, Errno> {
    open_tree(CWD, point, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

fn unmount_top(point: &Path) -> Result<(), NotUnmounted> {
    match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(NotUnmounted::Busy),
        Err(e) => Err(NotUnmounted::Failed(anyhow::Error::from(e).context(format!("umount {}", point.display())))),
    }
}

/// Puts the old file system back on the points that it is gone from, and takes the new mounts out beneath it.
fn put_back(hold: OwnedFd, mounts: Vec<OwnedFd>, points: &[PathBuf], gone: usize, aside: &Path) -> Result<()> {
    let mut hold = Some(hold);
    for (number, (mount, point)) in mounts.into_iter().zip(points).enumerate() {
        if number < gone {
            let old = hold.take().map_or_else(|| clone_of(&points[0]), Ok)?;
            move_mount(&old, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        kernel::slip_out(mount, point, aside)?;
    }
    Ok(())
}

/// The name of a process that only waits for the end of a file system.
pub const SYNCER: &CStr = c"sheep-sync";

/// Lets go of an old overlay in a process of its own: the end of an overlay writes all that its file system has not written
/// yet, and nobody needs to wait for that.
fn end_apart(hold: OwnedFd, points: &[PathBuf]) {
    let Ok((gone, here)) = pipe_with(PipeFlags::CLOEXEC) else { return };
    // Where there is no process to be had, it is this one that waits.
    if !matches!(sys::fork(), Ok(None)) {
        drop(hold);
        // It ends with this process.
        std::mem::forget(here);
        return;
    }
    drop(here);
    // The last one to let go waits; and until the command has ended, nothing is to be in its way.
    let _ = rustix::io::read(&gone, &mut [0u8; 1]);
    let quiet = || -> Result<()> {
        nix::unistd::setsid()?;
        nix::sys::prctl::set_name(SYNCER)?;
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        for number in 0..3 {
            sys::duplicate_to(null.as_raw_fd(), number)?;
        }
        sys::close_all_but(hold.as_raw_fd())?;
        std::mem::forget(null);
        std::env::set_current_dir("/")?;
        if kernel::in_user_namespace() {
            // It is nobody who would keep the namespace of the holder, or what is mounted in it.
            unshare(CloneFlags::CLONE_NEWNS)?;
            for point in points {
                mountpoint::detach(point)?;
            }
        }
        Ok(())
    };
    let _ = quiet();
    drop(hold);
    sys::exit_child(0);
}

/// What is mounted on the points of an overlay after a process was killed in the middle of [`exchange`]. Where the new one is
/// there already, the old one goes. Errors with busy (4) where somebody uses that.
pub fn settle(points: &[PathBuf], old: (u32, u32)) -> Result<There> {
    let table = mountinfo::read()?;
    let on = |point: &PathBuf, is_old: bool| {
        table.iter().any(|entry| entry.point == *point && entry.fs_type == "overlay" && (entry.device == old) == is_old)
    };
    if !points.iter().any(|point| on(point, false)) {
        return Ok(if points.iter().any(|point| on(point, true)) { There::Old } else { There::Nothing });
    }
    for point in points.iter().filter(|point| on(point, true)) {
        unmount_top(point).map_err(|reason| match reason {
            NotUnmounted::Busy => {
                exit::busy(format!("{} is in use, so what was interrupted cannot be ended; leave it", point.display()))
            }
            NotUnmounted::Failed(error) => error,
        })?;
    }
    for point in points {
        mountpoint::make_private(point)?;
    }
    Ok(There::New)
}
