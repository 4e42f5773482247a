//! `overlay/<id>/`: the record of an overlay, its lock, its state, and how it comes and goes.
//!
//! An overlay comes with its lock file: that stands at `overlay/.new-<id>` while `overlay/<id>` is being made, and moves
//! into it as `lock` when all is there: mounted, and with its record. It goes by a rename to `overlay/.gone-<random>` once
//! it is unmounted, and is deleted there. So an overlay is whole or known by a name in `overlay/` not to be, whenever a
//! process is killed. What a killed process left, [`reap`], with which `mount`, `umount` and `ls` begin, unmounts and
//! deletes, unless a living process holds its lock.
//!
//! The record says what was done; whether it still holds (somebody unmounted by hand, the machine was restarted) is
//! asked of the kernel every time: see [`state()`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::child::{After, Place};
use crate::doc::{Backend, DocPath, Overlay, UserNamespace};
use crate::state::{self, DataRoot, Durability, Lock};
use crate::{PROGRAM, applied, assemble, child, exit, freeze, holder, mountpoint, parts, remove, sys};

/// How the name of the lock file of an overlay begins while it is being made; its id follows.
const NEW: &str = ".new-";
/// How the directory of an overlay that is being deleted begins.
const GONE: &str = ".gone-";

/// Whether an overlay is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its merged view is there.
    Mounted,
    /// It was unmounted with `--keep`.
    Kept,
    /// The record says mounted, but it is not: the machine was restarted, or somebody unmounted it by hand.
    Stale,
    /// Something that is not ours is mounted over the merged directory.
    Covered,
    /// It was unmounted with `--lazy`: out of sight, perhaps in use still, and to be deleted.
    Lazy,
}

impl State {
    /// The word for it in tables.
    pub fn name(self) -> &'static str {
        match self {
            State::Mounted => "mounted",
            State::Kept => "kept",
            State::Stale => "stale",
            State::Covered => "covered",
            State::Lazy => "lazy",
        }
    }
}

/// The directory of an overlay.
pub fn dir(root: &DataRoot, id: &str) -> PathBuf {
    root.overlays().join(id)
}

/// The record in an overlay's directory, its paths those of the directory (a data directory may be moved); `None` where
/// there is no record. An error names the file that is corrupt.
pub fn read(dir: &Path) -> Result<Option<Overlay>> {
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    let marker = dir.with_file_name(format!("{NEW}{id}"));
    let file = dir.join("overlay.json");
    let read = match state::read_json::<Overlay>(&file) {
        // The record is being written this moment: the overlay is not there yet.
        Err(_) if fs::symlink_metadata(marker).is_ok() => return Ok(None),
        // If it was finished between the two, it is whole now.
        Err(_) => state::read_json(&file),
        read => read,
    };
    let Some(mut overlay) = read? else { return Ok(None) };
    overlay.id = id.into_owned();
    place(&mut overlay, dir);
    Ok(Some(overlay))
}

/// What stands in `overlay/` under an id.
#[derive(Debug)]
pub enum Found {
    /// A whole overlay.
    Whole(Box<Overlay>),
    /// One that another process is making, or was making when it was killed.
    Unfinished,
    /// A directory without a record, or nothing.
    Missing,
}

/// Looks an overlay up by its id, without a lock: others may make it and remove it meanwhile.
pub fn look(root: &DataRoot, id: &str) -> Result<Found> {
    let dir = dir(root, id);
    // The record is written before the mark of an unfinished one goes. So where neither was there, in this order, it may
    // have been finished in between, and then the second look finds it.
    for _ in 0..2 {
        if let Some(overlay) = read(&dir)? {
            return Ok(Found::Whole(Box::new(overlay)));
        }
        if is_unfinished(root, id) {
            return Ok(Found::Unfinished);
        }
    }
    Ok(Found::Missing)
}

/// Sets the paths of an overlay to those in its directory.
pub fn place(overlay: &mut Overlay, dir: &Path) {
    overlay.merged = overlay.at.clone().unwrap_or_else(|| DocPath(dir.join("merged")));
    let in_memory = overlay.tmpfs.is_some();
    let base = if in_memory { dir.join("tmpfs") } else { dir.to_path_buf() };
    overlay.upper = DocPath(base.join("upper"));
    overlay.work = DocPath(base.join("work"));
    let covers = overlay.branch.as_ref().map_or_else(|| dir.to_path_buf(), |branch| dir.with_file_name(&branch.origin));
    if let Some(cover) = &mut overlay.cover {
        *cover = DocPath(covers.join("cover"));
    }
    for (number, held) in overlay.held.iter_mut().enumerate() {
        *held = DocPath(freeze::place(&covers, number));
    }
    for (number, mount) in overlay.mounts.iter_mut().enumerate() {
        parts::place_mount(mount, in_memory, dir, &covers, number);
    }
}

/// The directory of an overlay whose paths are set.
pub fn dir_of(overlay: &Overlay) -> &Path {
    let base = overlay.upper.0.parent().unwrap_or(Path::new("/"));
    if overlay.tmpfs.is_some() { base.parent().unwrap_or(base) } else { base }
}

/// Writes the first record of an overlay that is being made. No temporary file is needed: until the overlay is finished
/// nobody reads it.
///
/// It is not synced, for that would cost more than all the rest (milliseconds against half of one). But its write-out is
/// begun, so that on ext4 and XFS, once the disk has it, the next commit of the journal carries it along, and so does the one
/// that makes data durable which the user synced in the upper: changes that survive a power cut can be found again. A volatile
/// overlay promises nothing, and skips that too.
pub fn write_first(dir: &Path, overlay: &Overlay) -> Result<()> {
    let file = dir.join("overlay.json");
    let mut bytes = serde_json::to_vec(overlay)?;
    bytes.push(b'\n');
    let write = || -> io::Result<()> {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
        out.write_all(&bytes)?;
        if !overlay.volatile {
            sys::begin_writeback(&out)?;
        }
        Ok(())
    };
    write().with_context(|| format!("write {}", file.display()))
}

/// Replaces the record. It is whole after a power cut where it has snapshots, of which nobody else knows how they belong together;
/// else it differs from the old one only in what the kernel is asked about anyway, and is whole a moment later. A volatile
/// one promises nothing.
pub fn write(dir: &Path, overlay: &Overlay) -> Result<()> {
    let has_history = !overlay.snapshots.is_empty() || overlay.branch.is_some() || overlay.pending.is_some();
    let durability = match (overlay.volatile, has_history) {
        (true, _) => Durability::Rebuildable,
        (false, true) => Durability::Ordered,
        (false, false) => Durability::Begun,
    };
    state::write_json(&dir.join("overlay.json"), overlay, durability)
}

/// Replaces the record, and waits until that is on the disk: the overlay is to be kept, or something is to be deleted that the
/// old one has.
pub fn write_durably(dir: &Path, overlay: &Overlay) -> Result<()> {
    state::write_json(&dir.join("overlay.json"), overlay, Durability::Synced)
}

/// Waits for the lock of an overlay; every change of it is made under this lock. `None` where there is no such overlay,
/// or no longer when its turn came. Errors with busy (4) where it is being made.
pub fn lock(root: &DataRoot, id: &str) -> Result<Option<Lock>> {
    let dir = dir(root, id);
    let file = dir.join("lock");
    loop {
        match file.try_exists() {
            Ok(true) => {}
            _ if fs::symlink_metadata(&dir).is_err() => return Ok(None),
            _ if marker(root, id).try_exists().is_ok_and(|exists| exists) => {
                return Err(exit::busy(format!("{id} is being made or undone by another process")));
            }
            // It was finished this moment; or somebody removed the lock file, which is then made anew.
            _ => {}
        }
        match Lock::exclusive(&file) {
            Ok(lock) if lock.is_at(&file) => return Ok(Some(lock)),
            // The directory was renamed away while this waited; by now there may be another of that name.
            Ok(_) => {}
            Err(e) if missing(&e) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Where the lock file of an overlay stands while it is being made.
fn marker(root: &DataRoot, id: &str) -> PathBuf {
    root.overlays().join(format!("{NEW}{id}"))
}

/// Whether an overlay is being made, or was when a process was killed.
fn is_unfinished(root: &DataRoot, id: &str) -> bool {
    fs::symlink_metadata(marker(root, id)).is_ok()
}

fn missing(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

/// What state an overlay is in.
pub fn state(overlay: &Overlay) -> Result<State> {
    let recorded = overlay.boot_id.is_some();
    if overlay.lazy {
        return Ok(State::Lazy);
    }
    if overlay.user_namespace.is_some() {
        return Ok(match holder::is_alive(dir_of(overlay))? {
            true => State::Mounted,
            false if recorded => State::Stale,
            false => State::Kept,
        });
    }
    let mount = match mountpoint::at(&overlay.merged) {
        // The process that served it was killed.
        Err(error) if overlay.backend == Backend::Fuse && error.downcast_ref::<Errno>() == Some(&Errno::NOTCONN) => {
            None
        }
        mount => mount?,
    };
    Ok(match mount {
        Some(mount) if is_ours(overlay, mount) => State::Mounted,
        Some(_) => State::Covered,
        None if !recorded => State::Kept,
        // A writable copy has no mount: it is in use from `mount` to `umount`, or to the end of the boot.
        None if is_copy(overlay) && overlay.at.is_none() && !overlay.read_only && in_this_boot(overlay)? => {
            State::Mounted
        }
        None => State::Stale,
    })
}

/// Whether the merged view is a tree of its own, and no mount.
pub fn is_copy(overlay: &Overlay) -> bool {
    matches!(overlay.backend, Backend::Copy | Backend::Btrfs)
}

fn is_ours(overlay: &Overlay, mount: mountpoint::Mount) -> bool {
    match (overlay.mount_id, &overlay.boot_id) {
        (Some(recorded), _) => mount.id == Some(recorded),
        // Between the mount and the writing of its id a process may be killed; and old kernels have no ids.
        (None, Some(_)) if overlay.backend == Backend::Kernel => mountpoint::is_overlayfs(&overlay.merged),
        (None, Some(_)) if overlay.backend == Backend::Fuse => true,
        (None, Some(_)) => overlay.read_only || overlay.at.is_some(),
        (None, None) => false,
    }
}

/// Whether the record was written in the boot that still runs.
pub fn in_this_boot(overlay: &Overlay) -> Result<bool> {
    match &overlay.boot_id {
        Some(recorded) => Ok(*recorded == state::boot_id()?),
        None => Ok(false),
    }
}

/// The overlay as documents show it: the mount's id only while the mount is there.
pub fn as_seen(mut overlay: Overlay, state: State) -> Overlay {
    if state != State::Mounted {
        overlay.mount_id = None;
        overlay.boot_id = None;
        overlay.holder = None;
    }
    overlay
}

/// An overlay that is being made. Dropped before [`Building::finish`], all of it is undone.
#[derive(Debug)]
pub struct Building {
    dir: PathBuf,
    marker: PathBuf,
    /// Held until the overlay is finished.
    lock: Option<Lock>,
    /// Whether `dir` is this one's to delete.
    made_dir: bool,
}

impl Building {
    /// Claims the id, locks it, and makes `overlay/<id>` with an empty upper, work and merged. Errors with busy (4) where
    /// the name is taken.
    pub fn begin(root: &DataRoot, id: &str) -> Result<Self> {
        let (dir, marker) = (dir(root, id), marker(root, id));
        let mut patience = 100;
        let lock = loop {
            match Lock::try_exclusive(&marker) {
                Ok(Some(lock)) if lock.is_at(&marker) => break lock,
                // Between its making and its locking a reaper took it for a leftover, or does so right now; or another
                // process is making an overlay of that name, which ends a moment later or much later.
                Ok(lock) if patience > 0 => {
                    patience -= 1;
                    if lock.is_none() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                Ok(_) => return Err(exit::busy(format!("{id} is being made by another process"))),
                Err(e) if missing(&e) => {
                    let overlays = root.overlays();
                    state::make_private_dir(&overlays).with_context(|| overlays.display().to_string())?;
                }
                Err(e) => return Err(e),
            }
        };
        let mut building = Building { dir, marker, lock: Some(lock), made_dir: false };
        make_dir(&building.dir).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => exit::busy(format!(
                "{id}: there is an overlay of that name already; 'sheep-overlay inspect {id}' shows it"
            )),
            _ => anyhow::Error::new(e).context(format!("mkdir {}", building.dir.display())),
        })?;
        building.made_dir = true;
        for name in ["upper", "work", "merged"] {
            let inner = building.dir.join(name);
            make_dir(&inner).with_context(|| format!("mkdir {}", inner.display()))?;
        }
        Ok(building)
    }

    /// The overlay's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// From here on the overlay is there.
    pub fn finish(mut self) -> Result<()> {
        let lock = self.dir.join("lock");
        fs::rename(&self.marker, &lock)
            .with_context(|| format!("rename {} to {}", self.marker.display(), lock.display()))?;
        self.lock = None;
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        let cleared = if self.made_dir { clear(&self.dir) } else { Ok(()) };
        // The marker goes last: what could not be deleted is still known as a leftover.
        if let Err(error) =
            cleared.and_then(|()| fs::remove_file(&self.marker).context(self.marker.display().to_string()))
        {
            exit::print_line(PROGRAM, &error.context("undo"));
        }
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(dir)
}

/// Deletes an overlay whose lock the caller holds and which is not mounted: everything in `overlay/<id>` is lost.
pub fn discard(root: &DataRoot, dir: &Path) -> Result<()> {
    let gone = root.overlays().join(format!("{GONE}{}", state::new_id()?));
    fs::rename(dir, &gone).with_context(|| format!("rename {} to {}", dir.display(), gone.display()))?;
    remove_all(&gone)
}

/// Deletes the directory of an overlay. What is in it may belong to this user's subordinate ids, which only a
/// user namespace of his may delete.
fn remove_all(dir: &Path) -> Result<()> {
    let done = remove::overlay(dir);
    let refused = |error: &anyhow::Error| {
        matches!(error.downcast_ref::<Errno>(), Some(&Errno::PERM | &Errno::ACCESS))
            && !rustix::process::geteuid().is_root()
    };
    match done {
        Err(error) if refused(&error) => {
            let namespace = UserNamespace::of_this_user();
            if namespace.is_single() {
                return Err(error);
            }
            child::run(Place::New(&namespace, false), After::End, || remove::overlay(dir)).map(drop)
        }
        done => done,
    }
}

/// Unmounts and deletes what processes left that were killed in the middle of `mount` or `umount`. What a living process
/// is working on is locked, and passed over; what cannot be deleted is reported on stderr and left to the next command.
pub fn reap(root: &DataRoot) -> Result<()> {
    applied::mend(root)?;
    for name in names(root)? {
        let name_of = |prefix: &str| name.to_str().and_then(|name| name.strip_prefix(prefix));
        let reaped = match (name_of(NEW), name_of(GONE)) {
            (Some(id), _) => reap_new(root, id),
            (_, Some(_)) => reap_gone(&root.overlays().join(&name)),
            (None, None) => Ok(()),
        };
        if let Err(error) = reaped {
            exit::print_line(PROGRAM, &error.context("leftover of a killed command"));
        }
    }
    Ok(())
}

fn reap_new(root: &DataRoot, id: &str) -> Result<()> {
    let (dir, marker) = (dir(root, id), marker(root, id));
    let Some(_lock) = lock_leftover(&marker)? else { return Ok(()) };
    // With a lock of its own inside, the overlay is another one, whole: only the claim to its name was left.
    if fs::symlink_metadata(dir.join("lock")).is_err() {
        clear(&dir)?;
    }
    match fs::remove_file(&marker) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| marker.display().to_string()),
        _ => Ok(()),
    }
}

fn reap_gone(dir: &Path) -> Result<()> {
    match lock_leftover(&dir.join("lock"))? {
        Some(_lock) => clear(dir),
        None => Ok(()),
    }
}

/// The lock of a leftover; `None` where a living process has it, or it is gone by now.
fn lock_leftover(file: &Path) -> Result<Option<Lock>> {
    match Lock::try_exclusive(file) {
        Ok(Some(lock)) if lock.is_at(file) => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err(e) if missing(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Unmounts and deletes the directory of an overlay that never became one.
fn clear(dir: &Path) -> Result<()> {
    // A holder of something that never came to be.
    if let Some((_, process)) = holder::find(dir)? {
        holder::end(&process)?;
    }
    // Written before the mount where that is not in the directory.
    let at = state::read_json::<Overlay>(&dir.join("overlay.json")).ok().flatten().and_then(|overlay| overlay.at);
    assemble::unmount_all(dir, at.as_deref())?;
    remove_all(dir)
}

/// The names in `overlay/`, in no order.
fn names(root: &DataRoot) -> Result<Vec<OsString>> {
    let overlays = root.overlays();
    let entries = match fs::read_dir(&overlays) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| overlays.display().to_string()),
    };
    entries.map(|entry| Ok(entry.with_context(|| overlays.display().to_string())?.file_name())).collect()
}

/// The ids of all overlays, sorted.
pub fn ids(root: &DataRoot) -> Result<Vec<String>> {
    let is_id = |name: &OsString| name.to_str().filter(|name| state::check_name(name).is_ok()).map(str::to_owned);
    let mut ids: Vec<String> = names(root)?.iter().filter_map(is_id).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Whether something stands in `overlay/` under this name.
pub fn exists(root: &DataRoot, id: &OsStr) -> bool {
    fs::symlink_metadata(root.overlays().join(id)).is_ok()
}
