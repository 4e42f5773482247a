//! The upper put aside and an empty one in its place: what `snapshot` and `reset` do on the disk.
//!
//! First the record says what is to be done ([`Pending`]), then the directories are renamed, at last the record says that it is
//! done. Both records are whole after a power cut; what is renamed between them is not synced, for journals keep the order. Each step can be done
//! again, and undone; so a process that was killed leaves nothing that [`settled`] does not end or undo, with which every command
//! begins that finds such a record.
//!
//! Of each tree, `upper` and `work` go to `snapshots/LAYER/` (those of a part to `snapshots/LAYER/mounts/N/`), and
//! `upper.next` and `work.next`, made before, take their places. A file that is mounted on a file is copied: it stays where it
//! is mounted.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::child::{self, After, Place};
use crate::doc::{How, Mount, Overlay, Pending};
use crate::state::DataRoot;
use crate::switch::{self, There};
use crate::trees::Tree;
use crate::{
    cover, exit, find, history, holder, lowers, mountpoint, namespace, parts, quota, record, remove, state, trees,
    upper, view,
};

/// The two directories of a tree that are put aside.
const NAMES: [&str; 2] = ["upper", "work"];

/// Does `act` where the directories and mounts of an overlay can be changed: of an ordinary user's, in his namespaces.
pub fn inside<T: serde::Serialize + serde::de::DeserializeOwned>(
    overlay: &Overlay,
    dir: &Path,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(namespace) = &overlay.user_namespace else { return act() };
    let own = namespace::inode_of("/proc/self".as_ref(), "user");
    if own.is_some() && own == overlay.holder.map(|holder| holder.user_namespace) {
        return act();
    }
    if rustix::process::geteuid().is_root() {
        return Err(exit::usage(format!("overlay {} is an ordinary user's own: let that user do it", overlay.id)));
    }
    let holder = match holder::find(dir)? {
        Some((_, process)) => Some(process),
        None if record::in_this_boot(overlay)? => holder::heir(overlay),
        None => None,
    };
    let place = match &holder {
        Some(process) => Place::Of(process, true),
        None => Place::New(namespace, false),
    };
    child::run(place, After::End, act).map(|(done, _)| done)
}

/// The overlay as it is when what is pending is done.
pub fn done(overlay: &Overlay) -> Overlay {
    let mut overlay = overlay.clone();
    if let Some(pending) = overlay.pending.take() {
        overlay.snapshots.extend(pending.snapshot);
        overlay.head = pending.head;
    }
    overlay
}

/// Where a tree's directories are, and where they go.
fn moves(overlay: &Overlay, layer: &str) -> Vec<(Tree, PathBuf, PathBuf)> {
    let base = overlay.upper.parent().unwrap_or(Path::new("/"));
    let to = history::place(overlay).join(layer);
    let one = |tree: Tree| {
        let at = tree.upper.parent().unwrap_or(Path::new("/")).to_path_buf();
        let inside = at.strip_prefix(base).unwrap_or(Path::new(""));
        let aside = if inside.as_os_str().is_empty() { to.clone() } else { to.join(inside) };
        (tree, at, aside)
    };
    trees::of(overlay).into_iter().map(one).collect()
}

/// Puts the uppers aside as the overlay's record has it pending; what is done already is passed over.
pub fn forward(overlay: &Overlay) -> Result<()> {
    let Some(pending) = &overlay.pending else { return Ok(()) };
    let after = trees::on(overlay, pending.head);
    for (number, (tree, at, aside)) in moves(overlay, &pending.layer).into_iter().enumerate() {
        state::make_private_dir(&aside).with_context(|| aside.display().to_string())?;
        let [upper, work] = NAMES.map(|name| (at.join(name), at.join(format!("{name}.next")), aside.join(name)));
        if !(exists(&upper.2) && exists(&upper.0)) {
            let like = match (&pending.snapshot, exists(&upper.2)) {
                (Some(_), true) => upper.2.clone(),
                (Some(_), false) => upper.0.clone(),
                (None, _) => top_of(overlay, after.get(number).unwrap_or(&tree))?,
            };
            make_upper(overlay, &upper.1, &like)?;
        }
        if !(exists(&work.2) && exists(&work.0)) {
            make_work(overlay, &work.1, &like_of_quota(&upper.0, &upper.2))?;
        }
        for (now, next, aside) in [upper, work] {
            if !exists(&aside) {
                rename(&now, &aside)?;
            }
            if !exists(&now) {
                rename(&next, &now)?;
            }
        }
    }
    files_forward(overlay, pending)
}

/// What the root of a tree's upper is to look like: the topmost of the layers that it lies on. (A cover does not keep the time of
/// what it stands for.)
pub fn top_of(overlay: &Overlay, tree: &Tree) -> Result<PathBuf> {
    if let Some(top) = tree.frozen.last() {
        return Ok(top.clone());
    }
    let seen = view::from_here(overlay, record::dir_of(overlay))?;
    let part = seen.mounts.iter().find(|mount| mount.upper.as_ref().is_some_and(|upper| **upper == *tree.upper));
    let lower = part.map_or(seen.base(), |part| &part.lower).last();
    Ok(lower.map(|lower| lower.0.clone()).unwrap_or_default())
}

fn make_upper(overlay: &Overlay, dir: &Path, like: &Path) -> Result<()> {
    clear(dir)?;
    upper::ensure_dir(dir)?;
    upper::take_attributes(&lowers::open_one(like)?, dir)?;
    if overlay.size.is_some() {
        quota::extend(&overlay.upper, &[dir]).or_else(|_| quota::extend(like, &[dir]))
    } else {
        Ok(())
    }
}

fn make_work(overlay: &Overlay, dir: &Path, like: &Path) -> Result<()> {
    clear(dir)?;
    upper::ensure_dir(dir)?;
    if overlay.size.is_some() { quota::extend(like, &[dir]) } else { Ok(()) }
}

fn like_of_quota(now: &Path, aside: &Path) -> PathBuf {
    if exists(now) { now.to_path_buf() } else { aside.to_path_buf() }
}

/// Puts the uppers back that were put aside; what has not been is passed over.
pub fn backward(overlay: &Overlay) -> Result<()> {
    let Some(pending) = &overlay.pending else { return Ok(()) };
    for (_, at, aside) in moves(overlay, &pending.layer) {
        for name in NAMES {
            let (now, next, aside) = (at.join(name), at.join(format!("{name}.next")), aside.join(name));
            if exists(&aside) {
                if exists(&now) {
                    clear(&next)?;
                    rename(&now, &next)?;
                }
                rename(&aside, &now)?;
            }
            clear(&next)?;
        }
    }
    clear(&history::place(overlay).join(&pending.layer))
}

/// The copies of files that are mounted on files: a snapshot has one of each; going back to one brings its back.
fn files_forward(overlay: &Overlay, pending: &Pending) -> Result<()> {
    let aside = history::place(overlay).join(&pending.layer);
    for (number, mount) in overlay.mounts.iter().enumerate().filter(|(_, mount)| mount.how == How::File) {
        let Some(now) = &mount.upper else { continue };
        match &pending.snapshot {
            Some(_) => {
                let place = parts::part_dir(&aside, number);
                state::make_private_dir(&place).with_context(|| place.display().to_string())?;
                put_file(now, &place.join("file"))?;
            }
            None => {
                if let Some(before) = file_before(overlay, pending.head, number, mount) {
                    put_file(&before, now)?;
                }
            }
        }
    }
    Ok(())
}

/// What a file that is mounted on a file was at a snapshot: the copy that this has, else the file that is mounted.
pub fn file_before(overlay: &Overlay, head: u32, number: usize, mount: &Mount) -> Option<PathBuf> {
    let layers = history::layers(overlay, head);
    let copies = layers.iter().rev().map(|layer| parts::part_dir(layer, number).join("file"));
    copies.chain(mount.lower.last().map(|lower| lower.0.clone())).find(|file| exists(file))
}

fn put_file(from: &Path, to: &Path) -> Result<()> {
    let next = to.with_file_name("file.next");
    clear(&next)?;
    if !cover::copy_file(from, &next)? {
        anyhow::bail!("{}: it cannot be copied by this user", from.display());
    }
    rename(&next, to)
}

/// Deletes what is of no use once the record says that it is done: the work directory of what was put aside, or all of it where
/// it is thrown away. That of a volatile upper which was never synced stays: it says so.
pub fn clean_up(overlay: &Overlay, pending: &Pending) -> Result<()> {
    if pending.snapshot.is_none() {
        return clear(&history::place(overlay).join(&pending.layer));
    }
    for (_, _, aside) in moves(overlay, &pending.layer) {
        let work = aside.join("work");
        if !crate::backend::kernel::volatile_marker(&work).exists() {
            clear(&work)?;
        }
    }
    Ok(())
}

/// The record of an overlay, with nothing pending: what a killed process left is ended or undone. The caller holds the lock.
pub fn settled(dir: &Path, overlay: Overlay) -> Result<Overlay> {
    let Some(pending) = overlay.pending.clone() else { return Ok(overlay) };
    let in_memory = overlay.tmpfs.is_some();
    inside(&overlay, dir, || {
        let there = match pending.device {
            Some(device) if record::in_this_boot(&overlay)? => switch::settle(&switch::points(&overlay, dir)?, device)?,
            _ => There::Nothing,
        };
        let mut after = done(&overlay);
        if there == There::Old {
            backward(&overlay)?;
            after = Overlay { pending: None, ..overlay.clone() };
        } else if in_memory && mountpoint::at(&dir.join("tmpfs"))?.is_none() {
            // The changes are gone, and nothing is left to be moved.
        } else {
            forward(&overlay)?;
        }
        if there == There::New {
            after.mount_id = mountpoint::at(&overlay.merged)?.and_then(|mount| mount.id);
        }
        record::write(dir, &after)?;
        if there != There::Old {
            clean_up(&after, &pending)?;
        }
        Ok(after)
    })
    .with_context(|| "an interrupted 'snapshot' or 'reset'".to_owned())
}

/// Reads a record without the lock, which is only taken where something is pending. Errors with not found (3).
pub fn read(root: &DataRoot, id: &str) -> Result<Overlay> {
    let dir = record::dir(root, id);
    let overlay = record::read(&dir)?.ok_or_else(|| find::no_such(id))?;
    if overlay.pending.is_none() {
        return Ok(overlay);
    }
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    settled(&dir, record::read(&dir)?.ok_or_else(|| find::no_such(id))?)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}

/// Deletes something, whatever it is; that it is not there is fine.
fn clear(path: &Path) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    remove::tree(dir, &CString::new(name.as_bytes())?)
}
