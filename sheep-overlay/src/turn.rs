//! An overlay goes on in an empty upper: what `snapshot` and `reset` have in common.
//!
//! Where it is mounted, another stack comes in the place of the mounted one: at once, by a mount beneath the old one (see
//! [`crate::switch`]), or where that cannot be, after the old one is unmounted. Where it is not, the next mount has it.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::backend::kernel;
use crate::doc::{Backend, Overlay, Pending};
use crate::lowers::{self, Lower};
use crate::record::{self, State};
use crate::state::DataRoot;
use crate::{exit, find, mountpoint, rotate, switch, sys, take_up, trees, umount, view};

/// How a mounted overlay came to its new stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Live {
    /// There was no moment without the view.
    Beneath,
    /// It was unmounted, and mounted again.
    Remounted,
    /// It is not mounted: the next mount has it.
    NextMount,
}

/// Puts the upper of an overlay aside, as `plan` says of its record. Errors with busy (4) where somebody uses it, and with usage
/// (2) where its changes are in no upper; then all is as it was.
pub fn turn(root: &DataRoot, id: &str, plan: impl FnOnce(&Overlay) -> Result<Pending>) -> Result<(Overlay, Live)> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    let overlay = record::read(&dir)?.ok_or_else(|| find::no_such(id))?;
    sys::catch_interrupts()?;
    let mut overlay = rotate::settled(&dir, overlay)?;
    check(&overlay)?;
    let pending = plan(&overlay)?;
    if pending.snapshot.is_some() {
        check_height(&overlay)?;
    }
    let state = record::state(&overlay)?;
    match state {
        State::Mounted | State::Kept => {}
        State::Stale => {
            if let Some(who) = umount::still_in_use(&overlay, &dir)? {
                return Err(exit::busy(format!("still mounted, and in use by {who}")));
            }
        }
        State::Covered => return Err(take_up::covered(&overlay)),
        State::Lazy => return Err(exit::busy("unmounted lazily, and is to be deleted; 'sheep-overlay gc' does that")),
    }
    umount::refuse_if_stacked_on(root, &dir, true)?;
    if state != State::Mounted {
        if overlay.tmpfs.is_some() && mountpoint::at(&dir.join("tmpfs"))?.is_none() {
            return Err(exit::not_found("its changes were in memory, and are gone"));
        }
        return Ok((while_unmounted(overlay, &dir, pending)?, Live::NextMount));
    }
    let guests = crate::holder::guests(&overlay);
    if !guests.is_empty() {
        return Err(exit::busy(format!("in use by {}", crate::busy::in_words(guests))));
    }
    if dir.join("entered").exists()
        && let Some(who) = crate::busy::users_elsewhere(&overlay.merged)
    {
        return Err(exit::busy(format!("in use by {who}")));
    }
    if switch::is_possible(&overlay, &dir)
        && let Some(done) = rotate::inside(&overlay, &dir, || at_once(&overlay, &dir, pending.clone()))?
    {
        return Ok((done, Live::Beneath));
    }
    if overlay.tmpfs.is_some() && overlay.user_namespace.is_some() {
        return Err(exit::usage(
            "its changes are in memory, and it has mounts below its lower or is a view of /: that cannot be mounted again",
        ));
    }
    unmount(&overlay, &dir)?;
    (overlay.mount_id, overlay.holder) = (None, None);
    let before = overlay.clone();
    let done = while_unmounted(overlay, &dir, pending.clone());
    let mounted = match done {
        Ok(done) => again(root, done, &dir).map_err(|error| (error, true)),
        Err(error) => Err((error, false)),
    };
    let (error, is_done) = match mounted {
        Ok(done) => return Ok((done, Live::Remounted)),
        Err(failed) => failed,
    };
    if is_done && pending.snapshot.is_none() {
        return Err(error.context("it went back, but could not be mounted"));
    }
    if is_done {
        let begun = Overlay { pending: Some(pending), ..before.clone() };
        rotate::inside(&before, &dir, || {
            record::write(&dir, &begun)?;
            rotate::backward(&begun)?;
            record::write(&dir, &before)
        })?;
    }
    again(root, before, &dir).context("undo")?;
    Err(error)
}

/// Unmounts an overlay that is to be mounted again. Errors with busy (4) where somebody uses it; then all is as it was.
pub fn unmount(overlay: &Overlay, dir: &Path) -> Result<()> {
    let held = if overlay.user_namespace.is_none() { switch::hold_all(overlay)? } else { Vec::new() };
    umount::unmount(overlay, dir)?;
    if let Err(error) = switch::freeze_all(overlay, &held) {
        let mount_id = mountpoint::at(&overlay.merged)?.and_then(|mount| mount.id);
        record::write(dir, &Overlay { mount_id, ..overlay.clone() })?;
        return Err(error);
    }
    Ok(())
}

/// What is refused wherever the overlay is.
pub fn check(overlay: &Overlay) -> Result<()> {
    if overlay.backend != Backend::Kernel {
        return Err(exit::usage(format!(
            "{} was made by the {} backend, whose changes are no layer; 'mount --backend kernel' makes one that has snapshots",
            overlay.id,
            overlay.backend.name()
        )));
    }
    if overlay.user_namespace.is_some() && rustix::process::geteuid().is_root() {
        return Err(exit::usage(format!("overlay {} is an ordinary user's own: let that user do it", overlay.id)));
    }
    Ok(())
}

/// The new stack has one layer more than the present one.
fn check_height(overlay: &Overlay) -> Result<()> {
    let most = trees::of(overlay).iter().map(|tree| tree.lowers.len() + tree.frozen.len() + 1).max();
    if most.is_some_and(|most| most >= kernel::MAX_LOWERS) {
        return Err(exit::usage(format!(
            "{0} has as many layers as the kernel stacks; 'sheep-overlay squash {0}' makes one of its snapshots",
            overlay.id
        )));
    }
    Ok(())
}

/// Of a mounted overlay; `None` where the kernel cannot do that, and then all is as it was.
fn at_once(overlay: &Overlay, dir: &Path, pending: Pending) -> Result<Option<Overlay>> {
    let points = switch::points(overlay, dir)?;
    switch::refuse_if_used(overlay, &points)?;
    let device = switch::device_of(&overlay.merged)?;
    let lowers = lowers_of(overlay, dir)?;
    let begun = Overlay { pending: Some(Pending { device: Some(device), ..pending.clone() }), ..overlay.clone() };
    record::write(dir, &begun)?;
    let mut done = rotate::done(&begun);
    let exchanged = rotate::forward(&begun).and_then(|()| switch::exchange(&mut done, &lowers, &points, device));
    match exchanged {
        Ok(true) => {
            record::write(dir, &done)?;
            rotate::clean_up(&done, &pending)?;
            Ok(Some(done))
        }
        undone => {
            rotate::backward(&begun)?;
            let mount_id = mountpoint::at(&overlay.merged)?.and_then(|mount| mount.id);
            record::write(dir, &Overlay { mount_id, ..overlay.clone() })?;
            undone.map(|_| None)
        }
    }
}

/// The lowers of a mounted overlay, opened where they are seen from here.
fn lowers_of(overlay: &Overlay, dir: &Path) -> Result<Vec<Lower>> {
    view::from_here(overlay, dir)?.base().iter().map(|lower| lowers::open_one(lower)).collect()
}

/// Of an overlay that is not mounted.
fn while_unmounted(overlay: Overlay, dir: &Path, pending: Pending) -> Result<Overlay> {
    rotate::inside(&overlay, dir, || {
        let begun = Overlay { pending: Some(pending.clone()), ..overlay.clone() };
        record::write(dir, &begun)?;
        let done = rotate::done(&begun);
        if let Err(error) = rotate::forward(&begun) {
            rotate::backward(&begun)?;
            record::write(dir, &overlay)?;
            return Err(error);
        }
        record::write(dir, &done)?;
        rotate::clean_up(&done, &pending)?;
        Ok(done)
    })
}

/// Mounts an overlay again that was unmounted for a moment: its record has neither a mount nor a holder. Copies of its mount in other
/// mount namespaces are read-only by now, and do no harm to an upper that is the same one as before.
pub fn again(root: &DataRoot, mut overlay: Overlay, dir: &Path) -> Result<Overlay> {
    let before = overlay.clone();
    let lowers = take_up::base_of(root, dir, &overlay)?;
    take_up::mount(root, &before, &mut overlay, dir, &lowers)?;
    record::write(dir, &overlay)?;
    Ok(overlay)
}
