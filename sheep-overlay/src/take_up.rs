//! `mount --id ID` of an overlay that is there but not mounted (`umount --keep`, a restart, a holder that was killed): its
//! upper is taken up again, with all changes.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::backend::fuse;
use crate::backend::kernel::{self, Refused};
use crate::child::{self, After, Place};
use crate::cli::BackendChoice;
use crate::doc::{Backend, Overlay};
use crate::lowers::{self, Lower};
use crate::mount::{Request, Undo};
use crate::record::{self, State};
use crate::state::{self, DataRoot};
use crate::trees::Tree;
use crate::{
    access, assemble, choose, exit, find, holder, mountpoint, quota, rotate, stacked, sys, trees, upper, view,
};

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
    let before = rotate::settled(&dir, before)?;
    match record::state(&before)? {
        State::Kept | State::Stale => {}
        State::Mounted => {
            return Err(exit::busy(format!("upper is in use: overlay {id} is mounted on {}", before.merged.display())));
        }
        State::Covered => return Err(covered(&before)),
        State::Lazy => {
            return Err(exit::busy(format!(
                "overlay {id} was unmounted lazily and is to be deleted; 'sheep-overlay gc' does that"
            )));
        }
    }
    check_same(&before, request)?;
    refuse_if_in_use(&before, &dir)?;
    let _layers = root.lock_layers_for_use()?;
    let lowers = lowers_for(root, &dir, &before)?;
    check_lowers(&before, request, &lowers)?;
    sys::catch_interrupts()?;
    let mut overlay = before.clone();
    overlay.read_only = request.read_only;
    overlay.boot_id = Some(state::boot_id()?);
    overlay.mount_id = None;
    overlay.holder = None;
    if before.backend == Backend::Kernel {
        overlay.volatile = request.volatile || before.tmpfs.is_some();
    }
    if let Some(size) = request.size {
        quota::change(&dir, size)?;
        overlay.size = Some(size);
    }
    let mounted = mount(root, &before, &mut overlay, &dir, &lowers);
    if let Err(error) = mounted.and_then(|()| record::write(&dir, &overlay)) {
        undo(&overlay, &dir)?;
        record::write(&dir, &before)?;
        return Err(error);
    }
    Ok((overlay, Undo::Restore(Box::new(before))))
}

/// Mounts an overlay that is not mounted: `overlay` is its record as it is to be, `before` as it is.
pub fn mount(root: &DataRoot, before: &Overlay, overlay: &mut Overlay, dir: &Path, lowers: &[Lower]) -> Result<()> {
    match before.backend {
        Backend::Copy | Backend::Btrfs => return mount_copy(overlay, dir),
        Backend::Kernel | Backend::Fuse => {}
    }
    if before.user_namespace.is_some() {
        return by_holder(root, before, overlay, dir, lowers);
    }
    if before.backend == Backend::Fuse && mountpoint::at(&before.merged).is_err() {
        // A mount whose process was killed is in the way.
        fuse::unmount(&before.merged).map_err(anyhow::Error::from)?;
    }
    prepare_upper(before, dir)?;
    // First the record, then the mount, then its id: whatever is killed, the mount is known as ours.
    record::write(dir, overlay)?;
    if before.backend == Backend::Fuse {
        choose::mount_fuse(overlay)?;
        return stacked::note_use(root, &overlay.id, lowers);
    }
    assemble::mount(overlay, lowers, kernel::in_user_namespace()).map_err(|error| {
        match error.downcast_ref::<Refused>() {
            Some(refused) => choose::fault(refused, error.to_string(), lowers),
            None => error,
        }
    })?;
    stacked::note_use(root, &overlay.id, lowers)
}

fn by_holder(root: &DataRoot, before: &Overlay, overlay: &mut Overlay, dir: &Path, lowers: &[Lower]) -> Result<()> {
    let Some(namespace) = &before.user_namespace else { return Ok(()) };
    let file = holder::file(dir);
    let heir = if record::in_this_boot(before)? { holder::heir(before) } else { None };
    if let Some(heir) = heir {
        // Its mounts are there still, kept by a process that runs in them.
        let (mount_id, pid) = child::run(Place::Of(&heir, true), After::Hold(&file), || Ok(before.mount_id))?;
        overlay.mount_id = mount_id;
        overlay.read_only = before.read_only;
        overlay.volatile = before.volatile;
        overlay.holder = Some(holder::describe(pid.as_raw())?);
        return Ok(());
    }
    let guests = holder::guests(before);
    if record::in_this_boot(before)? && !guests.is_empty() {
        return Err(exit::busy(format!("upper is in use: still mounted for {}", crate::busy::in_words(guests))));
    }
    if rustix::process::geteuid().is_root() {
        return Err(exit::usage(format!("overlay {} is an ordinary user's own: let that user mount it", before.id)));
    }
    prepare_upper(before, dir)?;
    let (made, pid) = child::run(Place::New(namespace, true), After::Hold(&file), || {
        let lowers = lowers::open_again(lowers)?;
        let mut overlay = overlay.clone();
        view::keep_lower(root, &overlay, dir)?;
        assemble::mount(&mut overlay, &lowers, true)?;
        if let Some(place) = view::place(root, &overlay) {
            view::show(&overlay, &place)?;
        }
        Ok(overlay)
    })?;
    *overlay = made;
    overlay.holder = Some(holder::describe(pid.as_raw())?);
    Ok(())
}

/// Unmounts what a failed attempt left.
fn undo(overlay: &Overlay, dir: &Path) -> Result<()> {
    if overlay.user_namespace.is_some() {
        return match holder::find(dir)? {
            Some((_, process)) => holder::end(&process),
            None => Ok(()),
        };
    }
    if overlay.backend == Backend::Fuse {
        return fuse::unmount(&overlay.merged).map_err(anyhow::Error::from);
    }
    if mountpoint::at(&overlay.merged)?.is_some() {
        assemble::unmount_parts(overlay).map_err(anyhow::Error::from)?;
        mountpoint::unmount(&overlay.merged).map_err(anyhow::Error::from)?;
    }
    Ok(())
}

/// The error (4) where something else lies over a merged directory.
pub fn covered(overlay: &Overlay) -> anyhow::Error {
    let merged = overlay.merged.display();
    exit::busy(format!("{merged}: something that is not overlay {} is mounted there; unmount it first", overlay.id))
}

/// What an overlay is made of stays as it was made.
fn check_same(before: &Overlay, request: &Request) -> Result<()> {
    let wanted = match request.backend {
        None | Some(BackendChoice::Auto) => before.backend,
        Some(BackendChoice::Kernel) => Backend::Kernel,
        Some(BackendChoice::Fuse) => Backend::Fuse,
        Some(BackendChoice::Btrfs) => Backend::Btrfs,
        Some(BackendChoice::Reflink | BackendChoice::Copy) => Backend::Copy,
    };
    if wanted != before.backend {
        return Err(exit::usage(format!(
            "overlay {} was made by the {} backend, and stays with it: another would not understand its changes",
            before.id,
            before.backend.name()
        )));
    }
    let hidden: Vec<PathBuf> = before.hide.iter().map(|path| path.0.clone()).collect();
    let others = [
        ("--at", request.at.is_some() && request.at.as_deref() != before.at.as_deref()),
        ("--hide", !request.hide.is_empty() && request.hide != hidden),
        ("--tmpfs", request.tmpfs.is_some()),
        ("--size", request.size.is_some() && before.size.is_none()),
        ("--idmap", request.idmap.is_some() && request.idmap != before.idmap),
    ];
    match others.iter().find(|(_, differs)| *differs) {
        Some((option, _)) => {
            Err(exit::usage(format!("{option}: overlay {} was made without, or otherwise, and stays so", before.id)))
        }
        None => Ok(()),
    }
}

/// The recorded lowers, opened. A copy has all that it needs in itself.
fn lowers_for(root: &DataRoot, dir: &Path, before: &Overlay) -> Result<Vec<Lower>> {
    match before.backend {
        Backend::Copy | Backend::Btrfs => Ok(Vec::new()),
        Backend::Kernel | Backend::Fuse => base_of(root, dir, before),
    }
}

/// What an overlay lies on, opened.
pub fn base_of(root: &DataRoot, dir: &Path, overlay: &Overlay) -> Result<Vec<Lower>> {
    if !overlay.held.is_empty() {
        return overlay.held.iter().map(|held| lowers::open_one(held)).collect();
    }
    let recorded: Vec<PathBuf> = overlay.lower.iter().map(|lower| lower.0.clone()).collect();
    lowers::open(root, Some(dir), &recorded)
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
        _ if !before.held.is_empty() => before.lower.iter().map(|lower| &**lower).collect(),
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
    if overlay.read_only && !rustix::process::geteuid().is_root() {
        return Err(exit::usage("--read-only of a copy needs root: a plain user's copy is the user's to write"));
    }
    record::write(dir, overlay)?;
    choose::bind_copy(overlay)
}

/// Makes sure that the upper is mounted nowhere else. Errors with busy (4).
fn refuse_if_in_use(before: &Overlay, dir: &Path) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let trees = trees::of(before);
    if root && before.backend == Backend::Kernel && trees.iter().any(|tree| kernel::in_use_elsewhere(&tree.upper, dir))
    {
        return Err(exit::busy(format!(
            "upper is in use: overlay {} is still mounted in another mount namespace{}",
            before.id,
            trees
                .iter()
                .find_map(|tree| crate::busy::keepers_of(&tree.upper))
                .map_or_else(|| " (a container's?)".to_owned(), |who| format!(", that of {who}"))
        )));
    }
    Ok(())
}

/// Makes sure that the upper is fit to be mounted.
fn prepare_upper(before: &Overlay, dir: &Path) -> Result<()> {
    if before.tmpfs.is_some() && mountpoint::at(&dir.join("tmpfs"))?.is_none() {
        return Err(anyhow!(
            "the changes of overlay {0} were in memory, and are gone; 'sheep-overlay umount {0}' deletes what is left",
            before.id
        ));
    }
    let trees = trees::of(before);
    upper::ensure_dir(&dir.join("merged"))?;
    for tree in &trees {
        upper::ensure_dir(&tree.upper)?;
        upper::ensure_dir(&tree.work)?;
    }
    if !before.volatile || !access::with(before, |overlay| Ok(trees::of(overlay).iter().any(is_marked)))? {
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
    access::with(before, settle)
}

fn is_marked(tree: &Tree) -> bool {
    layers(tree).any(|(_, work)| kernel::volatile_marker(&work).exists())
}

/// Uppers and their work directories: those of snapshots, which lie beside them as long as they are marked, and the present one.
fn layers(tree: &Tree) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let frozen = tree.frozen.iter().map(|upper| (upper.clone(), upper.with_file_name("work")));
    frozen.chain([(tree.upper.clone(), tree.work.clone())])
}

/// Makes what a volatile overlay wrote durable, and its uppers fit to be mounted again. The kernel closes its own part of
/// the work directory to all, so that this must be done with the rights of [`access::with`].
pub fn settle(overlay: &Overlay) -> Result<()> {
    let trees = trees::of(overlay);
    let marked = trees.iter().flat_map(layers).filter(|(_, work)| kernel::volatile_marker(work).exists());
    marked.into_iter().try_for_each(|(upper, work)| kernel::settle_volatile(&upper, &work))
}
