//! `inspect`: an image's document.

use anyhow::{Context, Result};

use crate::cli::Inspect;
use crate::store::Store;

/// Runs the verb.
pub fn run(store: &Store, args: &Inspect) -> Result<()> {
    let image = store.find(&args.reference).with_context(|| format!("inspect {}", args.reference))?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}
