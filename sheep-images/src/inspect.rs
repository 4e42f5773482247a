//! `inspect`: an image's document, or the very bytes that it was read from.

use anyhow::{Context, Result};
use sheep_overlay::doc;

use crate::cli::{Inspect, Raw};
use crate::store::Store;

/// Runs the verb.
pub fn run(store: &Store, args: &Inspect) -> Result<()> {
    let what = || format!("inspect {}", args.reference);
    let image = store.find(&args.reference).with_context(what)?;
    let raw = match args.raw {
        None => return store.document(&image)?.print("image", args.print.print.as_deref()),
        Some(Raw::Manifest) => store.manifest_bytes(&image),
        Some(Raw::Config) => store.config_bytes(&image),
    };
    // No newline that is not in it: the digest is of these bytes.
    doc::write_out(&raw.with_context(what)?)
}
