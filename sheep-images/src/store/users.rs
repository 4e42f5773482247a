//! Who uses an unpacked layer: overlays that have it as a lower.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use sheep_overlay::doc::DocPath;
use sheep_overlay::state;

use super::Store;
use crate::oci::Digest;

/// What matters here of an overlay's record.
#[derive(Deserialize)]
struct Record {
    lower: Vec<DocPath>,
}

/// The ids of the overlays, mounted or kept, that have one of these layers as a lower. The caller holds the data
/// directory's lock for removal. A record that cannot be read is an error: what it uses cannot be told.
pub fn overlays_using(store: &Store, layers: &BTreeSet<Digest>) -> Result<Vec<String>> {
    let dirs: Vec<PathBuf> = layers.iter().map(|diff_id| store.layer_dir(diff_id)).collect();
    overlays_on(store, &dirs)
}

/// The same, by the directories of the layers.
pub fn overlays_on(store: &Store, dirs: &[PathBuf]) -> Result<Vec<String>> {
    let overlays = store.data().overlays();
    let entries = match fs::read_dir(&overlays) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| overlays.display().to_string()),
    };
    let mut users = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| overlays.display().to_string())?;
        // No record: an overlay that is being made, and has not looked for its lowers yet, or is being deleted.
        let Some(record) = state::read_json::<Record>(&entry.path().join("overlay.json"))? else { continue };
        if record.lower.iter().any(|lower| dirs.iter().any(|dir| lower.starts_with(dir))) {
            users.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    users.sort();
    Ok(users)
}

/// How overlays that use something are named in a line: `in use by overlays a, b`.
pub fn named(overlays: &[String]) -> String {
    let s = if overlays.len() == 1 { "" } else { "s" };
    format!("in use by overlay{s} {}", overlays.join(", "))
}
