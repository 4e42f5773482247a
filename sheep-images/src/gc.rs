//! `gc`: deletes what no image needs.
//!
//! What is needed is read, and what is not is taken out of sight, under the store's lock, under which all images come and go: a blob
//! in its place that no image of the index needs is nobody's, for one on its way in is in its stage until the index is written. Only
//! an import that found it there already, and so did not bring it along, has it locked.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheep_overlay::doc::DocPath;
use sheep_overlay::{doc, exit};

use crate::cli::Gc;
use crate::du::on_disk;
use crate::interrupt;
use crate::ls::human_size;
use crate::oci::Digest;
use crate::scratch;
use crate::store::{DAMAGED, Store, beginning, users};

/// What is deleted.
#[derive(Debug)]
struct Waste {
    kind: &'static str,
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// Runs the verb. What cannot be deleted is named, and the rest is deleted all the same.
pub fn run(store: &Store, args: &Gc) -> Result<()> {
    let mut several = exit::Several::of("sheep-images");
    let mut found = Vec::new();
    several.add(unneeded(store, args.dry_run, &mut found).context("gc"));
    several.add(partials(store, args, &mut found).context("gc"));
    let left = store.clear_up_telling(args.dry_run, |path| {
        found.push(Waste::at("leftover", path)?);
        Ok(())
    });
    match left {
        Ok(stay) => stay.iter().for_each(|path| {
            exit::warn("sheep-images", &format!("gc: {} stays until all images can be read", path.display()));
        }),
        Err(error) => several.add(Err(error.context("gc"))),
    }
    doc::write_out(&report(&found, args))?;
    several.result()
}

/// Takes out of the store what no image needs. A layer's directory is renamed first: deleting it takes a while, and needs no lock.
fn unneeded(store: &Store, dry_run: bool, found: &mut Vec<Waste>) -> Result<()> {
    let (mut doomed, mut warnings) = (Vec::new(), Vec::new());
    {
        let _commit = interrupt::commit();
        let _lock = store.lock()?;
        let index = store.index()?;
        let uses = store.uses(&index.manifests).context(
            "what is needed cannot be told, so nothing is deleted; 'sheep-images verify' says more, 'rm' removes the image",
        )?;
        let _removal = store.data().lock_layers_for_removal()?;
        for digest in store.listed(&store.blobs())?.difference(&uses.blobs) {
            if let Some(waste) = blob(store, digest, dry_run)? {
                found.push(waste);
            }
        }
        for path in damaged(store)? {
            let waste = Waste::at("damaged blob", &path)?;
            if !dry_run {
                remove(&path)?;
            }
            found.push(waste);
        }
        for path in beginning::old(store)? {
            let waste = Waste::at("partial blob", &path)?;
            if !dry_run {
                remove(&path)?;
            }
            found.push(waste);
        }
        for digest in store.listed(&store.layers())?.difference(&uses.layers) {
            let users = users::overlays_using(store, &BTreeSet::from([digest.clone()]))?;
            if !users.is_empty() {
                warnings.push(format!("gc: layer {digest} stays: {}", users::named(&users)));
                continue;
            }
            let place = store.layer_dir(digest);
            match dry_run {
                true => found.push(Waste { name: digest.to_string(), ..Waste::at("layer", &place)? }),
                false => doomed.extend(store.take_away(digest)?.map(|scratch| (digest.clone(), place, scratch))),
            }
        }
    }
    warnings.iter().for_each(|warning| exit::warn("sheep-images", warning));
    for (digest, place, scratch) in doomed {
        let waste = Waste::at("layer", scratch.path())?;
        scratch.delete()?;
        found.push(Waste { name: digest.to_string(), path: place, ..waste });
    }
    Ok(())
}

/// Deletes a blob, unless it is kept by somebody who is about to need it.
fn blob(store: &Store, digest: &Digest, dry_run: bool) -> Result<Option<Waste>> {
    let path = store.blob(digest);
    let context = || path.display().to_string();
    let found = fs::symlink_metadata(&path).with_context(context)?;
    let held = match found.is_file() {
        true => Some(File::open(&path).with_context(context)?),
        false => None,
    };
    match held.as_ref().map(File::try_lock) {
        None | Some(Ok(())) => {}
        Some(Err(TryLockError::WouldBlock)) => return Ok(None),
        Some(Err(TryLockError::Error(e))) => return Err(e).with_context(context),
    }
    if found.is_dir() {
        // Nothing that ever was a blob.
        return Ok(None);
    }
    if !dry_run {
        store.delete_blob(digest)?;
    }
    let bytes = found.blocks() * 512;
    Ok(Some(Waste { kind: "blob", name: digest.to_string(), path, bytes }))
}

/// Deletes what waits for the rest of an image, where it does so for too long. Who is about to need one has it under another name.
fn partials(store: &Store, args: &Gc, found: &mut Vec<Waste>) -> Result<()> {
    for partial in store.partials()? {
        if !(args.partial || partial.is_old || !partial.is_whole) {
            continue;
        }
        found.push(Waste { name: partial.digest.to_string(), ..Waste::at("partial blob", &partial.path)? });
        if !args.dry_run {
            store.delete_partial(&partial.path)?;
        }
    }
    Ok(())
}

fn damaged(store: &Store) -> Result<Vec<PathBuf>> {
    let dir = store.data().images();
    let is_damaged = |entry: &io::Result<fs::DirEntry>| {
        entry.as_ref().map_or(true, |entry| entry.file_name().as_bytes().starts_with(DAMAGED.as_bytes()))
    };
    let entries = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    entries.filter(is_damaged).map(|entry| Ok(entry?.path())).collect()
}

/// Deletes what was put aside: whatever it was that had a blob's name.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => scratch::delete_dir(path),
        done => done.with_context(|| format!("delete {}", path.display())),
    }
}

impl Waste {
    fn at(kind: &'static str, path: &Path) -> Result<Self> {
        let bytes = on_disk(path)?;
        Ok(Waste { kind, name: path.display().to_string(), path: path.to_path_buf(), bytes })
    }

    fn document(&self, deleted: bool) -> Value {
        let mut document = json!({ "kind": self.kind });
        if self.name.starts_with("sha256:") {
            document["digest"] = self.name.as_str().into();
        }
        document["path"] = serde_json::to_value(DocPath(self.path.clone())).unwrap_or_default();
        document["bytes"] = self.bytes.into();
        document["deleted"] = deleted.into();
        document
    }
}

fn report(found: &[Waste], args: &Gc) -> Vec<u8> {
    let bytes: u64 = found.iter().map(|waste| waste.bytes).sum();
    let mut text = String::new();
    for waste in found {
        if args.json {
            text.push_str(&format!("{}\n", waste.document(!args.dry_run)));
        } else {
            let deleted = if args.dry_run { "" } else { "deleted " };
            text.push_str(&format!("{deleted}{} {} ({})\n", waste.kind, waste.name, human_size(waste.bytes)));
        }
    }
    if args.json {
        text.push_str(&format!("{}\n", json!({ "total": { "bytes": bytes, "deleted": !args.dry_run } })));
    } else if !found.is_empty() {
        let freed = if args.dry_run { "would be freed" } else { "freed" };
        text.push_str(&format!("{} {freed}\n", human_size(bytes)));
    }
    text.into_bytes()
}
