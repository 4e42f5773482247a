//! What changed in an overlay against its lowers.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::doc::Overlay;

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the merged directory, beginning with `/`.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: Kind,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is not in the lowers.
    Added,
    /// It differs from what the lowers have.
    Modified,
    /// The lowers have it, the merged view has not.
    Deleted,
}

/// The changes of an overlay, sorted by path.
pub fn changes(overlay: &Overlay) -> Result<Vec<Change>> {
    bail!("{}: diff is not there yet", overlay.id)
}

/// Prints the changes: lines, or with `json` a document a line.
pub fn run(overlay: &Overlay, _json: bool) -> Result<()> {
    changes(overlay).map(|_| ())
}
