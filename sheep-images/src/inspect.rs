//! `inspect`: an image's document, or the very bytes that it was read from.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use sheep_overlay::doc::{self, Document};

use crate::cli::{Inspect, Raw};
use crate::doc::{Image, Layer};
use crate::import;
use crate::incoming;
use crate::oci::{self, Config};
use crate::pull;
use crate::reference::Remote;
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

/// Runs the verb for an image in a registry, of which only the documents come.
pub fn remote(args: &Inspect) -> Result<()> {
    let work = || -> Result<Result<Document, Vec<u8>>> {
        let remote = Remote::parse(&args.reference)?;
        let platform = args.platform.as_deref().map_or_else(|| Ok(oci::host_platform()), import::platform)?;
        let (repository, found) =
            pull::find(&args.registry, &remote, |repository| repository.manifest(&remote, &platform))?;
        if args.raw == Some(Raw::Manifest) {
            return Ok(Err(found.bytes));
        }
        let bytes = repository.config(&found.manifest.config)?;
        if args.raw == Some(Raw::Config) {
            return Ok(Err(bytes));
        }
        let diff_ids = incoming::diff_ids(&bytes, found.manifest.layers.len())?;
        let config: Value = serde_json::from_slice(&bytes)?;
        let layers = found.manifest.layers.iter().zip(diff_ids).map(|(descriptor, diff_id)| Layer {
            digest: descriptor.digest.to_string(),
            diff_id: diff_id.to_string(),
            media_type: descriptor.media_type.clone(),
            size: descriptor.size,
            path: None,
        });
        let image = Image {
            reference: remote.has_tag.then(|| remote.name.familiar()),
            digest: found.descriptor.digest.to_string(),
            platform: Config::deserialize(&config)?.platform,
            layers: layers.collect(),
            config,
            path: None,
        };
        let mut document = Document::default();
        document.set("image", &image)?;
        Ok(Ok(document))
    };
    match work().with_context(|| format!("inspect {}", args.reference))? {
        Ok(document) => document.print("image", args.print.print.as_deref()),
        Err(raw) => doc::write_out(&raw),
    }
}
