//! Overlays on overlays: while one has another's merged directory (or kept upper) as a lower, that other one must stay.
//!
//! Each such use is a name in `overlay/<base>/users/`. So a umount asks one question that is nearly always answered with
//! "no such directory", and need not read the record of every overlay.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::doc::Overlay;
use crate::lowers::Lower;
use crate::record::{self, Found, State};
use crate::state::DataRoot;
use crate::{exit, find};

/// Notes in every overlay that one of the lowers is in that `id` uses it. Errors where that overlay went, or was
/// unmounted, since the lowers were opened.
pub fn note_use(root: &DataRoot, id: &str, lowers: &[Lower]) -> Result<()> {
    let overlays = root.overlays();
    for lower in lowers {
        let Ok(inside) = lower.path.strip_prefix(&overlays) else { continue };
        let mut parts = inside.iter();
        let (Some(base), part) = (parts.next().and_then(OsStr::to_str), parts.next()) else { continue };
        // What it holds in the place of a lower is its own.
        if base == id {
            continue;
        }
        let dir = record::dir(root, base);
        let _lock = record::lock(root, base)?.ok_or_else(|| find::no_such(base))?;
        let overlay = record::read(&dir)?.ok_or_else(|| find::no_such(base))?;
        if (record::state(&overlay)? == State::Mounted) != (part == Some(OsStr::new("merged"))) {
            return Err(exit::busy(format!(
                "lower {}: overlay {base} has just been mounted or unmounted",
                lower.path.display()
            )));
        }
        note(&dir, id)?;
    }
    Ok(())
}

/// Notes that `id` uses the overlay in `dir`, whose lock the caller holds.
pub fn note(dir: &Path, id: &str) -> Result<()> {
    let users = dir.join("users");
    match DirBuilder::new().mode(0o700).create(&users) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).context(users.display().to_string()),
        _ => {}
    }
    let name = users.join(id);
    File::create(&name).with_context(|| name.display().to_string())?;
    Ok(())
}

/// The overlays that lie on snapshots of the one in `dir`, whose lock the caller holds. Errors with busy (4) where one is being
/// made, of which that is not known yet.
pub fn branches_of(root: &DataRoot, dir: &Path) -> Result<Vec<Overlay>> {
    let mut branches = Vec::new();
    for id in names(dir)? {
        match record::look(root, &id)? {
            Found::Whole(user) if branched(&user, dir) => branches.push(*user),
            Found::Unfinished => return Err(exit::busy(format!("overlay {id} is being made on it"))),
            Found::Whole(_) | Found::Missing => {}
        }
    }
    Ok(branches)
}

/// The names that were noted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let users = dir.join("users");
    let names = match fs::read_dir(&users) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).context(users.display().to_string()),
    };
    names
        .map(|name| Ok(name.with_context(|| users.display().to_string())?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// An overlay that has the one in `dir` (which the caller has locked) as a lower, or lies on its snapshots. With `mounted_only`,
/// one that was kept does not count, nor one that needs no more than the snapshots: they are there whether it is mounted or not.
pub fn user_of(root: &DataRoot, dir: &Path, mounted_only: bool) -> Result<Option<String>> {
    for id in names(dir)? {
        let counts = match record::look(root, &id)? {
            Found::Whole(user) if mounted_only => uses(&user, dir) && record::state(&user)? == State::Mounted,
            Found::Whole(user) => uses(&user, dir) || branched(&user, dir),
            Found::Unfinished => true,
            // The name is left from one that is gone.
            Found::Missing => false,
        };
        if counts {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn uses(user: &Overlay, dir: &Path) -> bool {
    user.lower.iter().any(|lower| lower.starts_with(dir))
}

/// Whether an overlay lies on snapshots of the one in `dir`.
fn branched(user: &Overlay, dir: &Path) -> bool {
    let of = |id: &String| dir.file_name() == Some(OsStr::new(id));
    user.branch.as_ref().is_some_and(|branch| {
        of(&branch.of) || of(&branch.origin) || branch.layers.iter().any(|layer| of(&layer.overlay))
    })
}
