//! Which overlay is meant: an id, a unique beginning of one, a path in a merged directory, or a document.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::doc::{self, Document, Overlay};
use crate::exit;
use crate::record;
use crate::state::DataRoot;
use crate::view;

/// An overlay that a command is asked to work on.
#[derive(Debug)]
pub struct Target {
    /// The id, or why there is none.
    pub id: Result<String>,
    /// The document it came with, to be passed on; empty where it was named on the command line.
    pub document: Document,
}

/// The overlays named on the command line, or by the documents that `-` or `--from` stand for. A name that fits none is
/// an error in its place, so that the others can still be worked on.
pub fn targets(root: &DataRoot, names: &[OsString], from: Option<&OsStr>) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    if let Some(source) = from {
        from_documents(root, source, &mut targets)?;
    }
    for name in names {
        if name == "-" {
            from_documents(root, name, &mut targets)?;
        } else {
            targets.push(Target { id: by_name(root, name), document: Document::default() });
        }
    }
    Ok(targets)
}

fn from_documents(root: &DataRoot, source: &OsStr, targets: &mut Vec<Target>) -> Result<()> {
    for document in doc::read_documents(source)? {
        targets.push(Target { id: by_document(root, &document), document });
    }
    Ok(())
}

/// The overlay of a document. One of another data directory is not found here, even if the id is in use here too.
fn by_document(root: &DataRoot, document: &Document) -> Result<String> {
    let overlay: Overlay = document.require("overlay", "'sheep-overlay mount'")?;
    crate::state::check_name(&overlay.id)?;
    let dir = record::dir(root, &overlay.id);
    if *overlay.merged != dir.join("merged") {
        return Err(exit::not_found(format!(
            "{}: its merged directory {} is not in the data directory {}; give its own with --root",
            overlay.id,
            overlay.merged.display(),
            root.path().display()
        )));
    }
    if !record::exists(root, overlay.id.as_ref()) {
        return Err(no_such(&overlay.id));
    }
    Ok(overlay.id)
}

/// The id that `name` stands for. A name without a slash is first an id, then the beginning of one, then a path.
pub fn by_name(root: &DataRoot, name: &OsStr) -> Result<String> {
    if let Some(id) = name.to_str().filter(|name| crate::state::check_name(name).is_ok()) {
        if record::exists(root, name) {
            return Ok(id.to_owned());
        }
        let fitting: Vec<String> = record::ids(root)?.into_iter().filter(|other| other.starts_with(id)).collect();
        match fitting.len() {
            0 => {}
            1 => return Ok(fitting.into_iter().next().unwrap_or_default()),
            _ => return Err(exit::usage(format!("{id} fits several overlays: {}", fitting.join(", ")))),
        }
    }
    by_path(root, Path::new(name))?.ok_or_else(|| no_such(&name.to_string_lossy()))
}

/// The overlay in whose merged directory `path` is; `None` where it is in none.
fn by_path(root: &DataRoot, path: &Path) -> Result<Option<String>> {
    // A path that cannot be looked up (its directory may have gone) is taken as it is written.
    let full: PathBuf = match fs::canonicalize(path) {
        Ok(full) => full,
        Err(_) => std::path::absolute(path).with_context(|| path.display().to_string())?,
    };
    let Ok(inside) = full.strip_prefix(root.overlays()) else { return by_place(root, &full) };
    let mut parts = inside.iter();
    let (Some(id), part) = (parts.next().and_then(OsStr::to_str), parts.next()) else { return Ok(None) };
    if part.is_some_and(|part| part != "merged") || crate::state::check_name(id).is_err() {
        return Ok(None);
    }
    Ok(record::exists(root, id.as_ref()).then(|| id.to_owned()))
}

/// The overlay that is seen at a path outside of the data directory: by `--at`, or because this command runs in it, which
/// `exec` says in `$SHEEP_OVERLAY`.
fn by_place(root: &DataRoot, full: &Path) -> Result<Option<String>> {
    let seen = |id: &str| -> Result<bool> {
        let Some(overlay) = record::read(&record::dir(root, id))? else { return Ok(false) };
        Ok(view::place(root, &overlay).is_some_and(|place| full.starts_with(place)))
    };
    if let Some(own) = std::env::var("SHEEP_OVERLAY").ok().filter(|id| crate::state::check_name(id).is_ok())
        && record::exists(root, own.as_ref())
        && seen(&own)?
    {
        return Ok(Some(own));
    }
    for id in record::ids(root)? {
        // A record that cannot be read is not the one meant; 'ls' tells about it.
        let overlay = record::read(&record::dir(root, &id)).ok().flatten();
        if overlay.and_then(|overlay| overlay.at).is_some_and(|at| full.starts_with(&*at)) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The error (3) for an overlay that is not there.
pub fn no_such(name: &str) -> anyhow::Error {
    exit::not_found(format!("{name}: no such overlay; 'sheep-overlay ls' shows what there is"))
}
