//! `umount`: the merged view goes, and the changes with it, unless they are kept.

use std::path::Path;

use anyhow::{Context, Result};

use crate::backend::kernel;
use crate::doc::{Backend, Overlay};
use crate::find::{self, Target};
use crate::mountpoint::{self, NotUnmounted};
use crate::record::{self, State};
use crate::state::DataRoot;
use crate::{busy, cli, exit, stacked, take_up};

/// Unmounts each overlay. After an error it goes on with the others; the first error is the result.
pub fn run(root: &DataRoot, args: &cli::Umount) -> Result<()> {
    let targets = find::targets(root, &args.overlays, args.from.as_deref())?;
    record::reap(root)?;
    // `umount .` from within: this process at least shall not be what keeps it busy.
    std::env::set_current_dir("/").context("chdir /")?;
    crate::for_each(targets, "umount", |target| one(root, target, args.keep))
}

fn one(root: &DataRoot, target: Target, keep: bool) -> Result<()> {
    let id = target.id?;
    if !keep {
        return drop_overlay(root, &id).context(id);
    }
    let mut document = target.document;
    document.set("overlay", &keep_overlay(root, &id).with_context(|| id.clone())?)?;
    document.print("overlay", None)
}

/// Unmounts an overlay and deletes it, with its changes.
pub fn drop_overlay(root: &DataRoot, id: &str) -> Result<()> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    refuse_if_stacked_on(root, &dir, false)?;
    let _hold = match record::read(&dir)? {
        Some(overlay) => {
            let hold = if worth_a_hold(&overlay) { mountpoint::hold(&overlay.merged) } else { None };
            unmount(&overlay, &dir)?;
            hold
        }
        // Without a record (lost with the power) there is still what the kernel knows.
        None => {
            unmount_path(&dir.join("merged"), None)?;
            None
        }
    };
    record::discard(root, &dir)
}

fn refuse_if_stacked_on(root: &DataRoot, dir: &Path, mounted_only: bool) -> Result<()> {
    match stacked::user_of(root, dir, mounted_only)? {
        Some(user) => Err(exit::busy(format!("in use as a lower by overlay {user}; unmount that first"))),
        None => Ok(()),
    }
}

/// Whether the end of the mount would write changes to the disk that are about to be deleted. The hold costs an RCU grace
/// period, which an upper without changes does not repay.
fn worth_a_hold(overlay: &Overlay) -> bool {
    let writes = overlay.backend == Backend::Kernel && !overlay.volatile && !overlay.read_only;
    writes && std::fs::read_dir(&overlay.upper).is_ok_and(|mut entries| entries.next().is_some())
}

/// Unmounts an overlay and keeps its upper; returns the record of what is kept.
pub fn keep_overlay(root: &DataRoot, id: &str) -> Result<Overlay> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    let mut overlay = record::read(&dir)?.ok_or_else(|| find::no_such(id))?;
    refuse_if_stacked_on(root, &dir, true)?;
    unmount(&overlay, &dir)?;
    let marked = overlay.volatile && kernel::volatile_marker(&overlay.work).exists();
    // A volatile upper of an earlier boot stays marked: it may be torn.
    if marked && record::in_this_boot(&overlay)? {
        kernel::settle_volatile(&overlay.upper, &overlay.work)?;
    }
    overlay.mount_id = None;
    overlay.boot_id = None;
    record::write(&dir, &overlay)?;
    Ok(overlay)
}

/// Unmounts what is mounted of an overlay; that nothing is, is no error.
fn unmount(overlay: &Overlay, dir: &Path) -> Result<()> {
    match record::state(overlay)? {
        State::Covered => return Err(take_up::covered(overlay)),
        State::Kept => return Ok(()),
        State::Mounted => {}
        State::Stale => return unmounted_elsewhere(overlay, dir),
    }
    if overlay.backend == Backend::Copy {
        // Nothing but this keeps a copy from being pulled away under its users.
        if let Some(who) = busy::users_of_copy(&overlay.merged) {
            return Err(exit::busy(format!("in use by {who}")));
        }
        if !overlay.read_only {
            return Ok(());
        }
    }
    unmount_path(&overlay.merged, overlay.mount_id)
}

fn unmount_path(merged: &Path, mount_id: Option<u64>) -> Result<()> {
    if mount_id.is_none() && mountpoint::at(merged)?.is_none() {
        return Ok(());
    }
    // What is busy for a moment only (a closing file, a scanner) shows no user: then another try is worth it.
    for _ in 0..20 {
        match mountpoint::unmount(merged) {
            Ok(()) => return Ok(()),
            Err(NotUnmounted::Failed(error)) => return Err(error),
            Err(NotUnmounted::Busy) => {}
        }
        if let Some(who) = busy::users_of_mount(merged) {
            return Err(exit::busy(format!("in use by {who}")));
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err(exit::busy("in use by something that /proc does not show (the kernel: swap, a loop device, nfsd?)"))
}

/// The record says mounted and it is not: a restart, an umount by hand — or it is mounted in another mount namespace.
fn unmounted_elsewhere(overlay: &Overlay, dir: &Path) -> Result<()> {
    let may_live = overlay.backend == Backend::Kernel && rustix::process::geteuid().is_root();
    if may_live && record::in_this_boot(overlay)? && kernel::in_use_elsewhere(&overlay.upper, dir) {
        return Err(exit::busy("still mounted in another mount namespace, or unmounted lazily and in use"));
    }
    Ok(())
}
