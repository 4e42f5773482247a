//! `inspect`: the documents of overlays.

use anyhow::{Context, Result};

use crate::find::{self, Target};
use crate::record;
use crate::state::DataRoot;
use crate::{cli, rotate};

/// Prints the document of each overlay. After an error it goes on with the others; the first error is the result.
pub fn run(root: &DataRoot, args: &cli::Inspect) -> Result<()> {
    let targets = find::targets(root, &args.targets.overlays, args.targets.from.as_deref())?;
    crate::for_each(targets, "inspect", |target| print(root, target, args.print.as_deref()))
}

fn print(root: &DataRoot, target: Target, field: Option<&str>) -> Result<()> {
    let id = target.id?;
    let mut document = target.document;
    let overlay = rotate::read(root, &id)?;
    let state = record::state(&overlay).with_context(|| id.clone())?;
    document.set("overlay", &record::as_seen(overlay, state))?;
    document.print("overlay", field)
}
