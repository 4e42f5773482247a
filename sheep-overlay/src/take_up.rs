//! `mount --id ID` of an overlay that is there but not mounted (`umount --keep`, a restart): its upper is taken up again,
//! with all changes.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::backend::kernel;
use crate::cli::BackendChoice;
use crate::doc::{Backend, Overlay};
use crate::lowers::{self, Lower};
use crate::mount::{self, Request, Undo};
use crate::record::{self, State};
use crate::state::{self, DataRoot};
use crate::{exit, find, mountpoint, stacked, sys, upper};

/// Mounts an existing overlay again. Errors with busy (4) where it is mounted, here or anywhere.
pub fn run(root: &DataRoot, id: &str, request: &Request) -> Result<(Overlay, Undo)> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    let before = record::read(&dir)?.ok_or_else(|| {
        anyhow!(
            "{} has no overlay.json, so its lowers are not known; 'sheep-overlay umount {id}' deletes it",
            dir.display()
        )
    })?;
    match record::state(&before)? {
        State::Kept | State::Stale => {}
        State::Mounted => {
            return Err(exit::busy(format!("upper is in use: overlay {id} is mounted on {}", before.merged.display())));
        }
        State::Covered => return Err(covered(&before)),
    }
    check_backend(&before, request)?;
    let _layers = root.lock_layers_for_use()?;
    let recorded: Vec<PathBuf> = before.lower.iter().map(|lower| lower.0.clone()).collect();
    let lowers = lowers_for(root, &dir, &before, &recorded)?;
    check_lowers(&before, request, &lowers)?;
    sys::catch_interrupts()?;
    let mut overlay = before.clone();
    overlay.read_only = request.read_only;
    overlay.boot_id = Some(state::boot_id()?);
    overlay.mount_id = None;
    let mounted = match before.backend {
        Backend::Copy | Backend::Btrfs => mount_copy(&mut overlay, &dir),
        Backend::Kernel | Backend::Fuse => {
            overlay.volatile = request.volatile;
            prepare_upper(&before, &dir).and_then(|()| {
                // First the record, then the mount, then its id: whatever is killed, the mount is known as ours.
                record::write(&dir, &overlay)?;
                mount::mount_kernel(&mut overlay, &dir, &lowers).map_err(|refused| mount::fault(refused, &lowers))?;
                stacked::note_use(root, id, &lowers)
            })
        }
    };
    if let Err(error) = mounted.and_then(|()| record::write(&dir, &overlay)) {
        if mountpoint::at(&before.merged)?.is_some() {
            mountpoint::unmount(&before.merged).map_err(anyhow::Error::from)?;
        }
        record::write(&dir, &before)?;
        return Err(error);
    }
    Ok((overlay, Undo::Restore(Box::new(before))))
}

/// The error (4) where something else lies over a merged directory.
pub fn covered(overlay: &Overlay) -> anyhow::Error {
    let merged = overlay.merged.display();
    exit::busy(format!("{merged}: something that is not overlay {} is mounted there; unmount it first", overlay.id))
}

fn check_backend(before: &Overlay, request: &Request) -> Result<()> {
    let wanted = match request.backend {
        None | Some(BackendChoice::Auto) => return Ok(()),
        Some(BackendChoice::Kernel) => Backend::Kernel,
        Some(BackendChoice::Fuse) => Backend::Fuse,
        Some(BackendChoice::Btrfs) => Backend::Btrfs,
        Some(BackendChoice::Reflink | BackendChoice::Copy) => Backend::Copy,
    };
    if wanted == before.backend {
        return Ok(());
    }
    Err(exit::usage(format!(
        "overlay {} was made by the {} backend, and stays with it: another would not understand its changes",
        before.id,
        before.backend.name()
    )))
}

/// The recorded lowers, opened. A copy has all that it needs in itself.
fn lowers_for(root: &DataRoot, dir: &Path, before: &Overlay, recorded: &[PathBuf]) -> Result<Vec<Lower>> {
    match before.backend {
        Backend::Copy | Backend::Btrfs => Ok(Vec::new()),
        Backend::Kernel | Backend::Fuse => lowers::open(root, Some(dir), recorded),
    }
}

/// An upper is the difference from its lowers, and means nothing over others.
fn check_lowers(before: &Overlay, request: &Request, opened: &[Lower]) -> Result<()> {
    if request.lowers.is_empty() {
        return Ok(());
    }
    let same_place = |given: &PathBuf, recorded: &Path| {
        given == recorded || std::fs::canonicalize(given).is_ok_and(|given| given == recorded)
    };
    let recorded: Vec<&Path> = match opened {
        [] => before.lower.iter().map(|lower| &**lower).collect(),
        opened => opened.iter().map(|lower| lower.path.as_path()).collect(),
    };
    let equal = recorded.len() == request.lowers.len()
        && request.lowers.iter().zip(recorded).all(|(given, recorded)| same_place(given, recorded));
    if equal {
        return Ok(());
    }
    let lowers: Vec<String> = before.lower.iter().map(|lower| lower.display().to_string()).collect();
    Err(exit::usage(format!("overlay {} has other lowers: {}", before.id, lowers.join(" "))))
}

fn mount_copy(overlay: &mut Overlay, dir: &Path) -> Result<()> {
    if overlay.read_only {
        if !rustix::process::geteuid().is_root() {
            return Err(exit::usage("--read-only of a copy needs root: a plain user's copy is the user's to write"));
        }
        record::write(dir, overlay)?;
        mountpoint::bind_read_only(&overlay.merged)?;
        overlay.mount_id = mountpoint::at(&overlay.merged)?.and_then(|mount| mount.id);
    }
    Ok(())
}

/// Makes sure that nothing else uses the upper, and that it is fit to be mounted.
fn prepare_upper(before: &Overlay, dir: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() && kernel::in_use_elsewhere(&before.upper, dir) {
        return Err(exit::busy(format!(
            "upper is in use: overlay {} is still mounted in another mount namespace (a container's?)",
            before.id
        )));
    }
    for name in ["upper", "work", "merged"] {
        upper::ensure_dir(&dir.join(name))?;
    }
    if !kernel::volatile_marker(&before.work).exists() {
        return Ok(());
    }
    if !record::in_this_boot(before)? {
        return Err(anyhow!(
            "overlay {0} was volatile when the machine went down, so its changes may be torn; discard it with \
             'sheep-overlay umount {0}', or, if you must, save what is in {1} first",
            before.id,
            before.upper.display()
        ));
    }
    // Unmounted by hand, or by a umount that was killed: in this boot nothing is lost yet.
    kernel::settle_volatile(&before.upper, &before.work)
}
