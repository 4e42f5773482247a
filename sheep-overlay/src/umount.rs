//! `umount`: the merged view goes, and the changes with it, unless they are kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::backend::{btrfs, fuse, kernel};
use crate::doc::{Backend, How, Overlay};
use crate::find::{self, Target};
use crate::mountpoint::{self, NotUnmounted};
use crate::record::{self, State};
use crate::state::DataRoot;
use crate::{
    PROGRAM, access, assemble, busy, cli, exit, freeze, holder, quota, rotate, stacked, take_up, tmpfs, trees,
};

/// Unmounts each overlay. After an error it goes on with the others; the first error is the result.
pub fn run(root: &DataRoot, args: &cli::Umount) -> Result<()> {
    let targets = find::targets(root, &args.targets.overlays, args.targets.from.as_deref())?;
    record::reap(root)?;
    // `umount .` from within: this process at least shall not be what keeps it busy.
    std::env::set_current_dir("/").context("chdir /")?;
    crate::for_each(targets, "umount", |target| one(root, target, args))
}

fn one(root: &DataRoot, target: Target, args: &cli::Umount) -> Result<()> {
    let id = target.id?;
    if args.lazy {
        return drop_lazily(root, &id).context(id);
    }
    if !args.keep {
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
    let mut _hold = None;
    match record::read(&dir)? {
        Some(overlay) => {
            let overlay = rotate::settled(&dir, overlay)?;
            _hold = if worth_a_hold(&overlay) { mountpoint::hold(&overlay.merged) } else { None };
            unmount(&overlay, &dir)?;
            end_workings(&overlay, &dir)?;
        }
        // Without a record (lost with the power) there is still what the kernel knows.
        None => {
            if let Some((_, process)) = holder::find(&dir)? {
                holder::end(&process)?;
            }
            assemble::unmount_all(&dir, None)?;
        }
    };
    record::discard(root, &dir)
}

/// What is not in the overlay's directory, or is no directory there, ends too.
fn end_workings(overlay: &Overlay, dir: &Path) -> Result<()> {
    tmpfs::unmount(dir)?;
    if overlay.size.is_some() {
        quota::release(dir);
    }
    if overlay.backend == Backend::Btrfs {
        // Where that is not allowed, it is deleted like any directory, file by file.
        let _ = btrfs::delete(dir, c"merged");
    }
    freeze::release(overlay, dir);
    Ok(())
}

/// Errors with busy (4) where another overlay has the one in `dir` as a lower or branched from it; with `mounted_only`, only
/// one that is mounted on its merged view counts.
pub fn refuse_if_stacked_on(root: &DataRoot, dir: &Path, mounted_only: bool) -> Result<()> {
    match stacked::user_of(root, dir, mounted_only)? {
        Some(user) => Err(exit::busy(format!("in use as a lower by overlay {user}; unmount that first"))),
        None => Ok(()),
    }
}

/// Whether the end of the mount would write changes to the disk that are about to be deleted. The hold costs an RCU grace
/// period, which an upper without changes does not repay.
fn worth_a_hold(overlay: &Overlay) -> bool {
    let writes = overlay.backend == Backend::Kernel
        && overlay.user_namespace.is_none()
        && !overlay.volatile
        && !overlay.read_only;
    writes && std::fs::read_dir(&overlay.upper).is_ok_and(|mut entries| entries.next().is_some())
}

/// Unmounts an overlay and keeps its upper; returns the record of what is kept.
pub fn keep_overlay(root: &DataRoot, id: &str) -> Result<Overlay> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    let mut overlay = rotate::settled(&dir, record::read(&dir)?.ok_or_else(|| find::no_such(id))?)?;
    refuse_if_stacked_on(root, &dir, true)?;
    if overlay.tmpfs.is_some() {
        return Err(exit::usage("its changes are in memory, and end with the mount: they cannot be kept"));
    }
    unmount(&overlay, &dir)?;
    // A volatile upper of an earlier boot stays marked: it may be torn.
    if overlay.volatile && record::in_this_boot(&overlay)? {
        access::with(&overlay, take_up::settle)?;
    }
    overlay.mount_id = None;
    overlay.boot_id = None;
    overlay.holder = None;
    record::write_durably(&dir, &overlay)?;
    Ok(overlay)
}

/// Takes an overlay out of sight, whoever uses it, and deletes it if nobody does. Else it is remembered as one to be
/// deleted when its last user is gone.
fn drop_lazily(root: &DataRoot, id: &str) -> Result<()> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    refuse_if_stacked_on(root, &dir, false)?;
    let mut overlay = rotate::settled(&dir, record::read(&dir)?.ok_or_else(|| find::no_such(id))?)?;
    match record::state(&overlay)? {
        State::Covered => return Err(take_up::covered(&overlay)),
        State::Mounted if record::is_copy(&overlay) => {
            unmount(&overlay, &dir)?;
        }
        State::Mounted => {
            // First it is written that nothing may be deleted, then it goes out of sight.
            overlay.lazy = true;
            record::write(&dir, &overlay)?;
            match holder::find(&dir)? {
                Some((_, process)) => holder::end(&process)?,
                None => mountpoint::detach(&overlay.merged)?,
            }
        }
        State::Kept | State::Stale | State::Lazy => {}
    }
    if let Some(who) = still_in_use(&overlay, &dir)? {
        exit::warn(
            PROGRAM,
            &format!("umount: {id}: still in use by {who}; 'sheep-overlay gc' deletes it when it is not"),
        );
        return Ok(());
    }
    discard_lazy(root, &overlay, &dir)
}

/// Deletes an overlay that was unmounted lazily and is in use no more. The caller has its lock.
pub fn discard_lazy(root: &DataRoot, overlay: &Overlay, dir: &Path) -> Result<()> {
    end_workings(overlay, dir)?;
    record::discard(root, dir)
}

/// Who uses an overlay that is out of sight, in words; `None` where nobody does.
pub fn still_in_use(overlay: &Overlay, dir: &Path) -> Result<Option<String>> {
    if !record::in_this_boot(overlay)? {
        return Ok(None);
    }
    if overlay.user_namespace.is_some() {
        let guests = holder::guests(overlay);
        return Ok((!guests.is_empty()).then(|| busy::in_words(guests)));
    }
    let used = overlay.backend == Backend::Kernel
        && rustix::process::geteuid().is_root()
        && trees::of(overlay).iter().any(|tree| kernel::in_use_elsewhere(&tree.upper, dir));
    Ok(used.then(|| "a process".to_owned()))
}

/// Unmounts what is mounted of an overlay; that nothing is, is no error. Errors with busy (4) where somebody uses it.
pub fn unmount(overlay: &Overlay, dir: &Path) -> Result<()> {
    match record::state(overlay)? {
        State::Covered => return Err(take_up::covered(overlay)),
        State::Kept => return Ok(()),
        State::Mounted => {}
        State::Stale => return unmounted_elsewhere(overlay, dir),
        State::Lazy => {
            return match still_in_use(overlay, dir)? {
                Some(who) => Err(exit::busy(format!("unmounted lazily, and still in use by {who}"))),
                None => Ok(()),
            };
        }
    }
    if overlay.user_namespace.is_some() {
        return end_holder(overlay, dir);
    }
    if record::is_copy(overlay) {
        // Nothing but this keeps a copy from being pulled away under its users.
        if let Some(who) = busy::users_of_copy(&dir.join("merged")) {
            return Err(exit::busy(format!("in use by {who}")));
        }
        if !overlay.read_only && overlay.at.is_none() {
            return Ok(());
        }
    }
    if dir.join("entered").exists()
        && let Some(who) = busy::users_elsewhere(&overlay.merged)
    {
        return Err(exit::busy(format!("in use by {who}")));
    }
    if overlay.backend == Backend::Fuse {
        return until_not_busy(overlay, || fuse::unmount(&overlay.merged));
    }
    if overlay.mounts.is_empty() {
        return until_not_busy(overlay, || mountpoint::unmount(&overlay.merged));
    }
    let done = until_not_busy(overlay, || {
        assemble::unmount_parts(overlay)?;
        mountpoint::unmount(&overlay.merged)
    });
    if done.is_err() {
        put_back(overlay);
    }
    done
}

/// After an umount that failed in the middle: the parts that are gone are mounted again, so that the view is whole.
fn put_back(overlay: &Overlay) {
    if let Err(error) = assemble::mount_missing(overlay) {
        exit::print_line(PROGRAM, &error.context("undo"));
    }
}

/// Ends the holder, and with it the mounts, unless somebody is inside.
fn end_holder(overlay: &Overlay, dir: &Path) -> Result<()> {
    let guests = holder::guests(overlay);
    if !guests.is_empty() {
        return Err(exit::busy(format!("in use by {}", busy::in_words(guests))));
    }
    match holder::find(dir)? {
        Some((_, process)) => holder::end(&process),
        None => Ok(()),
    }
}

/// Tries it until it is not busy any more. What is busy for a moment only (a closing file, a scanner) shows no user: then another
/// try is worth it. Errors with busy (4), naming who it is.
pub fn until_not_busy(overlay: &Overlay, unmount: impl Fn() -> Result<(), NotUnmounted>) -> Result<()> {
    for attempt in 0..20 {
        match unmount() {
            Ok(()) => return Ok(()),
            Err(NotUnmounted::Failed(error)) => return Err(error),
            Err(NotUnmounted::Busy) => {}
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        // Who looks at every mount of the machine (another 'mount /') is gone in a moment too.
        if attempt < 3 {
            continue;
        }
        let points = |bound: bool| -> Vec<PathBuf> {
            let wanted = overlay.mounts.iter().filter(|part| (part.how != How::Overlay) == bound);
            wanted.map(|part| assemble::point_of(overlay, part)).collect()
        };
        if let Some(who) = busy::users_of_mount(&overlay.merged, &points(false), &points(true)) {
            return Err(exit::busy(format!("in use by {who}")));
        }
    }
    Err(exit::busy("in use by something that /proc does not show (the kernel: swap, a loop device, nfsd?)"))
}

/// The record says mounted and it is not: a restart, an umount by hand — or it is mounted in another mount namespace.
fn unmounted_elsewhere(overlay: &Overlay, dir: &Path) -> Result<()> {
    if let Some(who) = still_in_use(overlay, dir)? {
        let who = if overlay.user_namespace.is_some() {
            who
        } else {
            "another mount namespace, or lazily unmounted".to_owned()
        };
        return Err(exit::busy(format!("still mounted and in use: {who}")));
    }
    if overlay.backend == Backend::Fuse {
        // Its process was killed, and the mount is there for nobody.
        return fuse::unmount(&overlay.merged).map_err(anyhow::Error::from);
    }
    // Its parts may be mounted still.
    if overlay.user_namespace.is_none() {
        assemble::unmount_all(dir, None)?;
    }
    Ok(())
}
