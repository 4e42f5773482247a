//! `squash`: one layer in the place of the head and all snapshots that it lies on.
//!
//! The new layer is made beside the old ones, of other names of the same files, so that it takes as long as there are files,
//! however large they are. Then the record says that the head is this layer, and the old ones are deleted, but for those that
//! other snapshots or branches lie on. Until then nothing has changed; a half-made layer is in nobody's record, and [`sweep`]
//! deletes it.

mod merge;

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};

use crate::doc::{Document, How, Overlay};
use crate::record::{self, State};
use crate::state::{self, DataRoot};
use crate::turn::{self, Live};
use crate::{access, branch, cli, cover, exit, find, history, parts, remove, rotate, stacked, sys, trees, umount};

/// Makes one layer of several, and prints the overlay's document.
pub fn run(root: &DataRoot, args: &cli::Squash) -> Result<()> {
    let id = find::by_name(root, &args.overlay)?;
    std::env::set_current_dir("/").context("chdir /")?;
    let (overlay, live) = squash(root, &id).with_context(|| format!("squash {id}"))?;
    let mut document = Document::default();
    document.set("overlay", &overlay)?;
    document.set("squash", &serde_json::json!({ "head": overlay.head, "live": live }))?;
    document.print("overlay", args.print.as_deref())
}

fn squash(root: &DataRoot, id: &str) -> Result<(Overlay, Live)> {
    let dir = record::dir(root, id);
    let _lock = record::lock(root, id)?.ok_or_else(|| find::no_such(id))?;
    let overlay = record::read(&dir)?.ok_or_else(|| find::no_such(id))?;
    sys::catch_interrupts()?;
    let overlay = rotate::settled(&dir, overlay)?;
    turn::check(&overlay)?;
    if history::line(&overlay, overlay.head).len() < 2 {
        return Err(exit::usage("nothing to squash: the head lies on no other snapshot"));
    }
    umount::refuse_if_stacked_on(root, &dir, true)?;
    let state = record::state(&overlay)?;
    let mounted = state == State::Mounted;
    if mounted && overlay.tmpfs.is_some() && overlay.user_namespace.is_some() {
        return Err(exit::usage("its changes are in memory, and end with the mount: they cannot be squashed"));
    }
    let branches = stacked::branches_of(root, &dir)?;
    sweep_below(&dir, &overlay, &branches)?;
    let needed = needed(&dir, &overlay, &branches);
    let layer = new_name(&overlay)?;
    if let Err(error) = access::with(&overlay, |overlay| make(overlay, &layer, &needed)) {
        sweep_below(&dir, &overlay, &branches)?;
        return Err(error);
    }
    let mut after = overlay.clone();
    after.snapshots = squashed(&overlay, &layer, &needed);
    if mounted {
        if let Err(error) = turn::unmount(&overlay, &dir) {
            sweep_below(&dir, &overlay, &branches)?;
            return Err(error);
        }
        (after.mount_id, after.holder) = (None, None);
    }
    record::write_durably(&dir, &after)?;
    if mounted {
        after = turn::again(root, after, &dir)?;
    }
    sweep_below(&dir, &after, &branches)?;
    Ok((after, if mounted { Live::Remounted } else { Live::NextMount }))
}

/// The layers, by their names, that others lie on: snapshots that do not lie on the head, and branches.
fn needed(dir: &Path, overlay: &Overlay, branches: &[Overlay]) -> BTreeSet<String> {
    let head = overlay.head;
    let own = overlay.snapshots.iter().map(|snapshot| history::line(overlay, snapshot.number));
    // What lies on the head lies on what it becomes.
    let aside = own.filter(|line| !line.iter().any(|snapshot| snapshot.number == head));
    let on_the_way = history::line(overlay, head).into_iter().map(|snapshot| snapshot.number).collect::<BTreeSet<_>>();
    let aside = aside.filter(|line| line.last().is_some_and(|last| !on_the_way.contains(&last.number)));
    let mut needed: BTreeSet<String> = aside.flatten().map(|snapshot| snapshot.layer.clone()).collect();
    let of_branch = |layer: &str| branches.iter().any(|other| branch::has_layer(other, dir, layer.as_ref()));
    needed.extend(overlay.snapshots.iter().map(|snapshot| snapshot.layer.clone()).filter(|layer| of_branch(layer)));
    needed
}

/// The snapshots from then on: the head is the new layer and lies on nothing, those it lay on are gone unless they are needed.
fn squashed(overlay: &Overlay, layer: &str, needed: &BTreeSet<String>) -> Vec<crate::doc::Snapshot> {
    let line: BTreeSet<u32> =
        history::line(overlay, overlay.head).into_iter().map(|snapshot| snapshot.number).collect();
    let mut snapshots = overlay.snapshots.clone();
    snapshots.retain(|one| one.number == overlay.head || !line.contains(&one.number) || needed.contains(&one.layer));
    for head in snapshots.iter_mut().filter(|one| one.number == overlay.head) {
        head.parent = 0;
        layer.clone_into(&mut head.layer);
    }
    snapshots
}

/// A name for the new layer: nothing has it, whatever was squashed before.
fn new_name(overlay: &Overlay) -> Result<String> {
    Ok(format!("{}-{}", overlay.head, state::new_id()?))
}

/// Makes the new layer of all trees.
fn make(overlay: &Overlay, layer: &str, needed: &BTreeSet<String>) -> Result<()> {
    let to = history::place(overlay).join(layer);
    let own = history::line(overlay, overlay.head);
    let may_link: Vec<bool> = own.iter().map(|snapshot| !needed.contains(&snapshot.layer)).collect();
    let base = overlay.upper.parent().unwrap_or(Path::new("/"));
    for tree in trees::of(overlay) {
        let at = tree.upper.parent().unwrap_or(Path::new("/"));
        let place = to.join(at.strip_prefix(base).unwrap_or(Path::new("")));
        state::make_private_dir(&place).with_context(|| place.display().to_string())?;
        let (below, layers) = tree.frozen.split_at(tree.frozen.len() - own.len());
        let under = [&tree.lowers[..], below].concat();
        merge::merge(overlay, &under, layers, &may_link, &place.join("upper"))?;
    }
    for (number, mount) in overlay.mounts.iter().enumerate().filter(|(_, mount)| mount.how == How::File) {
        let place = parts::part_dir(&to, number);
        state::make_private_dir(&place).with_context(|| place.display().to_string())?;
        if let Some(before) = rotate::file_before(overlay, overlay.head, number, mount) {
            cover::copy_file(&before, &place.join("file"))?;
        }
    }
    if overlay.tmpfs.is_some() {
        return Ok(());
    }
    // The old layers are deleted next: the new one must be on the disk then.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let done = openat(CWD, &to, flags, Mode::empty()).and_then(syncfs);
    done.with_context(|| format!("syncfs {}", to.display()))
}

/// Deletes the layers in an overlay's directory that are in nobody's record: what a killed `squash` or `reset` left, and what
/// branches that are gone by now had needed.
pub fn sweep(root: &DataRoot, id: &str) -> Result<()> {
    let dir = record::dir(root, id);
    let Some(overlay) = record::read(&dir)? else { return Ok(()) };
    if unknown(&dir, &overlay, &[])?.is_empty() {
        return Ok(());
    }
    let Some(_lock) = record::lock(root, id)? else { return Ok(()) };
    let Some(overlay) = record::read(&dir)? else { return Ok(()) };
    let overlay = rotate::settled(&dir, overlay)?;
    match stacked::branches_of(root, &dir) {
        Ok(branches) => sweep_below(&dir, &overlay, &branches),
        // The next time.
        Err(error) if exit::kind(&error) == Some(exit::Kind::Busy) => Ok(()),
        Err(error) => Err(error),
    }
}

fn sweep_below(dir: &Path, overlay: &Overlay, branches: &[Overlay]) -> Result<()> {
    let unknown = unknown(dir, overlay, branches)?;
    if unknown.is_empty() {
        return Ok(());
    }
    let place = history::place(overlay);
    rotate::inside(overlay, dir, || {
        unknown.iter().try_for_each(|name| remove::tree(&place, &CString::new(name.as_bytes())?))
    })
}

/// The names in `snapshots/` that no record has.
fn unknown(dir: &Path, overlay: &Overlay, branches: &[Overlay]) -> Result<Vec<OsString>> {
    let place = history::place(overlay);
    let entries = match std::fs::read_dir(&place) {
        Ok(entries) => entries,
        // It has none, or they are in the memory of a namespace, and end with it.
        Err(_) => return Ok(Vec::new()),
    };
    let mut unknown = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| place.display().to_string())?.file_name();
        let own = overlay.snapshots.iter().map(|snapshot| &snapshot.layer);
        let known = own.chain(overlay.pending.iter().map(|pending| &pending.layer)).any(|layer| name == **layer);
        if !known && !branches.iter().any(|other| branch::has_layer(other, dir, &name)) {
            unknown.push(name);
        }
    }
    Ok(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::Snapshot;

    fn overlay(parents: &[u32], head: u32) -> Overlay {
        let mut overlay = Overlay::new("ov", Path::new("/data/overlay/ov"));
        overlay.head = head;
        overlay.snapshots = (1..)
            .zip(parents)
            .map(|(number, parent)| Snapshot {
                number,
                parent: *parent,
                created: String::new(),
                message: None,
                layer: format!("l{number}"),
            })
            .collect();
        overlay
    }

    #[test]
    fn what_others_lie_on_stays() {
        // The parents of 1, 2, …; the head; what stays of them, with the parents.
        let table = [
            (vec![0, 1, 2], 3, vec![(3, 0)]),
            (vec![0, 1, 2], 2, vec![(2, 0), (3, 2)]),
            (vec![0, 1, 2, 1], 3, vec![(1, 0), (3, 0), (4, 1)]),
            (vec![0, 1, 2, 2, 3], 3, vec![(1, 0), (2, 1), (3, 0), (4, 2), (5, 3)]),
        ];
        for (parents, head, want) in table {
            let before = overlay(&parents, head);
            let needed = needed(Path::new("/data/overlay/ov"), &before, &[]);
            let after = squashed(&before, "new", &needed);
            let got: Vec<_> = after.iter().map(|one| (one.number, one.parent)).collect();
            assert_eq!(got, want, "{parents:?} {head}");
            assert!(after.iter().all(|one| (one.layer == "new") == (one.number == head)));
        }
    }
}
