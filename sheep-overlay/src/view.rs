//! An overlay seen in the place of its lower: in a mount namespace of its own, the merged view lies over the lower, so that
//! absolute paths lead into it too. Where the lower is `/`, the view becomes the root.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, mkdir};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::pivot_root;

use crate::doc::{DocPath, Overlay};
use crate::mountpoint;
use crate::state::DataRoot;
use crate::sys;

/// Where a command that runs in the overlay finds it: the directory of `--at`, or the place of the one lower; `None` for
/// several lowers and for layers of images, which have no place of their own: these are seen in the merged directory.
pub fn place(root: &DataRoot, overlay: &Overlay) -> Option<PathBuf> {
    place_below(root.path(), overlay)
}

/// Like [`place`], by the path of the data directory.
pub fn place_below(data: &Path, overlay: &Overlay) -> Option<PathBuf> {
    match (&overlay.at, overlay.lower.as_slice()) {
        (Some(at), _) => Some(at.0.clone()),
        (None, [only]) if !only.starts_with(data) => Some(only.0.clone()),
        _ => None,
    }
}

/// Where the lower is seen, in an overlay's directory, by those for whom the overlay lies over it.
fn kept_lower(dir: &Path) -> PathBuf {
    dir.join("lower")
}

/// Shows the lower in the overlay's directory `dir` as well, before the overlay is laid over it: who is inside can still compare
/// the two. Nothing to be done where the overlay has no place of its own, or takes the root's.
pub fn keep_lower(root: &DataRoot, overlay: &Overlay, dir: &Path) -> Result<()> {
    let (Some(place), [lower]) = (place(root, overlay), overlay.lower.as_slice()) else { return Ok(()) };
    if place == Path::new("/") || !lower.starts_with(&place) {
        return Ok(());
    }
    let point = kept_lower(dir);
    let keep = || -> rustix::io::Result<()> {
        match mkdir(&point, Mode::RWXU) {
            Err(e) if e != Errno::EXIST => return Err(e),
            _ => {}
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, &**lower, flags)?;
        sys::make_private(&tree)?;
        move_mount(&tree, "", CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    keep().with_context(|| format!("show the lower in {}", point.display()))
}

/// The overlay with its lowers where they are seen from here: for who is inside, not where they were.
pub fn from_here(overlay: &Overlay, dir: &Path) -> Result<Overlay> {
    let mut overlay = overlay.clone();
    let point = kept_lower(dir);
    let [lower] = overlay.lower.as_slice() else { return Ok(overlay) };
    if mountpoint::at(&point)?.is_none() {
        return Ok(overlay);
    }
    let top = lower.0.clone();
    let seen = |path: &DocPath| match path.strip_prefix(&top) {
        Ok(inside) if inside.as_os_str().is_empty() => DocPath(point.clone()),
        Ok(inside) => DocPath(point.join(inside)),
        Err(_) => path.clone(),
    };
    overlay.lower = overlay.lower.iter().map(seen).collect();
    for mount in &mut overlay.mounts {
        mount.lower = mount.lower.iter().map(seen).collect();
    }
    Ok(overlay)
}

/// Lays the merged view over its place, in the mount namespace that this process has for itself. The mounts there get
/// what the namespace that they came from gets, and nothing goes back.
pub fn show(overlay: &Overlay, place: &Path) -> Result<()> {
    if *place == *overlay.merged {
        return Ok(());
    }
    if place == Path::new("/") {
        return become_root(&overlay.merged).with_context(|| format!("pivot_root {}", overlay.merged.display()));
    }
    let lay_over = || -> rustix::io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, &*overlay.merged, flags)?;
        sys::make_private(&tree)?;
        move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    lay_over().with_context(|| format!("show the overlay in {}", place.display()))
}

/// pivot_root(2) with one directory for both, as its manual page has it: the old root lies under the new one, and is
/// let go of.
fn become_root(merged: &Path) -> Result<()> {
    std::env::set_current_dir(merged)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Cuts this process's new mount namespace off: what is mounted here is not seen in the one it came from.
pub fn cut_off() -> Result<()> {
    let how = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", how).context("make the mounts of a new namespace slaves")
}
