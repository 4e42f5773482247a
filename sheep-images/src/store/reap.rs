//! Clearing up what a crash left: scratch directories that nobody holds, and the blobs and layers they list that no image
//! needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sheep_overlay::state;

use super::stage::{CANDIDATES, Candidates};
use super::{Store, users};
use crate::oci::Digest;
use crate::scratch::Scratch;

impl Store {
    /// Clears up. Almost always there is nothing to do, and two directories are listed.
    pub(super) fn clear_up(&self) -> Result<()> {
        self.clear_up_telling(false, |_| Ok(())).map(drop)
    }

    /// Clears up, or with `dry_run` only looks, and tells of each leftover before it goes. Gives those that must stay for now: where an
    /// image cannot be read, it cannot be told what of theirs it needs.
    pub fn clear_up_telling(&self, dry_run: bool, mut tell: impl FnMut(&Path) -> Result<()>) -> Result<Vec<PathBuf>> {
        let mut stay = Vec::new();
        if !dry_run {
            self.clear_up_index()?;
        }
        for scratch in Scratch::leftovers(&self.layers())? {
            tell(scratch.path())?;
            if dry_run { scratch.leave() } else { scratch.delete()? }
        }
        for stage in Scratch::leftovers(&self.root.images())? {
            if dry_run {
                tell(stage.path())?;
                stage.leave();
                continue;
            }
            let _lock = self.lock()?;
            if undo(self, &stage)? {
                tell(stage.path())?;
                stage.delete()?;
            } else {
                stay.push(stage.path().to_path_buf());
                stage.leave();
            }
        }
        Ok(stay)
    }
}

impl Store {
    /// Deletes what is left of an index that was being written. It is written only under the lock, so with the lock held
    /// nobody is writing.
    fn clear_up_index(&self) -> Result<()> {
        let dir = self.root.images();
        let mut lock = None;
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry.with_context(|| dir.display().to_string())?;
            let name = entry.file_name();
            if [b".index.json.", &b".oci-layout."[..]].iter().any(|start| name.as_bytes().starts_with(start)) {
                if lock.is_none() {
                    lock = Some(self.lock()?);
                }
                // The one who was writing it may have put it in its place meanwhile.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// Deletes what a stage lists and no image needs. The caller holds the store's lock. Where the index or an image cannot
/// be read it cannot be told what is needed: then nothing is deleted, and `false` returned.
pub fn undo(store: &Store, stage: &Scratch) -> Result<bool> {
    // A list that a power cut left half-written stands for links that were never made.
    let list = stage.path().join(CANDIDATES);
    let Ok(Some(candidates)) = state::read_json::<Candidates>(&list) else { return Ok(true) };
    let _removal = store.data().lock_layers_for_removal()?;
    let orphans: BTreeSet<Digest> = candidates.layers.into_iter().collect();
    let Ok(uses) = store.index().and_then(|index| store.uses(&index.manifests)) else { return Ok(false) };
    let orphans: BTreeSet<Digest> = orphans.difference(&uses.layers).cloned().collect();
    if !users::overlays_using(store, &orphans).is_ok_and(|users| users.is_empty()) {
        return Ok(false);
    }
    for digest in candidates.blobs.iter().filter(|digest| !uses.blobs.contains(digest)) {
        store.delete_blob(digest)?;
    }
    for diff_id in &orphans {
        if let Some(doomed) = store.take_away(diff_id)? {
            doomed.delete()?;
        }
    }
    Ok(true)
}
