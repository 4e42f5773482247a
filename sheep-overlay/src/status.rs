//! `status`: whether somebody else has changed the lower of an overlay since it was made.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use crate::applied::ABROAD;
use crate::applied::known::Known;
use crate::diff::escaped;
use crate::doc::{Freeze, How, Overlay, name_to_json, write_out};
use crate::find::{self, Target};
use crate::listing::{self, Listing};
use crate::paths::{above, bare, join};
use crate::state::DataRoot;
use crate::{access, branch, cli, record, rotate, state};

/// What became of a path of a lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drift {
    Added,
    Modified,
    Deleted,
}

impl Drift {
    fn letter(self) -> char {
        match self {
            Drift::Added => 'A',
            Drift::Modified => 'M',
            Drift::Deleted => 'D',
        }
    }

    fn name(self) -> &'static str {
        match self {
            Drift::Added => "added",
            Drift::Modified => "modified",
            Drift::Deleted => "deleted",
        }
    }
}

/// Prints what was changed in the lowers of each overlay: `M /path`, or a document a line. That something was is an error
/// (1), so that a script can ask.
pub fn run(root: &DataRoot, args: &cli::Status) -> Result<()> {
    let targets = find::targets(root, &args.targets.overlays, args.targets.from.as_deref())?;
    crate::for_each(targets, "status", |target| one(root, target, args.json))
}

fn one(root: &DataRoot, target: Target, json: bool) -> Result<()> {
    let id = target.id?;
    let dir = record::dir(root, &id);
    let overlay = rotate::read(root, &id)?;
    let text = access::with(&overlay, |overlay| {
        let found = changes(root, overlay, &dir)?;
        let mut out = Vec::new();
        for (path, drift) in &found {
            let full = [b"/", &path[..]].concat();
            if json {
                let path = name_to_json(std::ffi::OsStr::from_bytes(&full));
                let drift = json!({ "overlay": overlay.id, "path": path, "change": drift.name() });
                out.extend(json!({ "lower": drift }).to_string().into_bytes());
            } else {
                out.extend(format!("{} {}", drift.letter(), escaped(&full)).into_bytes());
            }
            out.push(b'\n');
        }
        write_out(&out)?;
        Ok(found.len())
    })
    .with_context(|| id.clone())?;
    if text == 0 {
        return Ok(());
    }
    let what = match overlay.freeze {
        Some(Freeze::Btrfs | Freeze::Reflink) => "the overlay lies on a copy, and does not show it",
        _ if record::is_copy(&overlay) => "the overlay is a copy, and does not show it",
        _ => "what the overlay shows of that is not defined",
    };
    let places = if text == 1 { "place" } else { "places" };
    Err(anyhow!("{id}: the lower was changed in {text} {places}; {what}"))
}

/// The paths at which the lowers are not what they were, from the merged directory on.
fn changes(root: &DataRoot, overlay: &Overlay, dir: &Path) -> Result<BTreeMap<Vec<u8>, Drift>> {
    let listing = Listing::read(&branch::origin(overlay, dir))?;
    let known = Known::read(dir);
    let since = state::moment(overlay.since.as_ref().unwrap_or(&overlay.created))?;
    let mut found = BTreeMap::new();
    for (prefix, lower) in lowers(overlay) {
        if lower.starts_with(root.layers()) {
            continue;
        }
        let now = listing::entries(&lower)?;
        let before = listing.as_ref().and_then(|listing| listing.of(&lower));
        // What 'apply' keeps for an undo, where it has no other place.
        let is_kept = |path: &[u8]| path.split(|byte| *byte == b'/').any(|part| part == ABROAD.as_bytes());
        for (path, seen) in now.iter().filter(|(path, _)| !is_kept(path)) {
            let path_in_view = join(&prefix, path);
            let drift = match before.map(|before| before.get(path)) {
                Some(Some(before)) if before.is(seen) => continue,
                Some(Some(_)) => Drift::Modified,
                Some(None) => Drift::Added,
                // In a directory something was made or deleted, which says nothing of itself.
                None if seen.changed <= since || seen.is_directory() => continue,
                None => Drift::Modified,
            };
            if !known.has_seen(&path_in_view, seen) {
                found.insert(path_in_view, drift);
            }
        }
        for path in before.iter().flat_map(|before| before.keys()).filter(|path| !now.contains_key(*path)) {
            let path = join(&prefix, path);
            if !known.is_gone(&path) && !above(&path).any(|dir| known.is_gone(dir)) {
                found.insert(path, Drift::Deleted);
            }
        }
    }
    Ok(found)
}

/// The lowers as the user gave them, and where each is in the view.
fn lowers(overlay: &Overlay) -> Vec<(Vec<u8>, PathBuf)> {
    let top = overlay.lower.iter().map(|lower| (Vec::new(), lower.0.clone()));
    let parts = overlay.mounts.iter().filter(|mount| mount.how == How::Overlay);
    let parts = parts.flat_map(|mount| mount.lower.iter().map(|lower| (bare(&mount.path), lower.0.clone())));
    top.chain(parts).collect()
}
