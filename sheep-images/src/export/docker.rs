//! An archive as `docker save` makes it (moby's image/spec, "Combined Image JSON + Filesystem Changeset Format"): `manifest.json`,
//! each image's configuration, called by its digest, which is the image's id, and each layer as a tar without compression,
//! called by its diffID.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Wanted;
use super::members::Members;
use crate::cli::LimitArgs;
use crate::codec::{self, Codec};
use crate::oci::{Descriptor, Digest};
use crate::parallel;
use crate::store::{DOCUMENT_MAX, Store};
use crate::stream::{Intake, Known, Stream};

/// An image in `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    /// `null` for none, as docker has it.
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A layer.
struct Layer<'a> {
    descriptor: &'a Descriptor,
    diff_id: &'a Digest,
    blob: File,
}

/// Writes the archive. Before its first byte is written, all layers were decompressed once: a tar says how long a file is
/// before the file, and what is damaged is found then.
pub fn archive(store: &Store, wanted: &[Wanted], out: &mut dyn Write) -> Result<()> {
    let mut saved: Vec<Saved> = Vec::new();
    let mut configs: BTreeMap<&Digest, File> = BTreeMap::new();
    let mut layers: Vec<Layer<'_>> = Vec::new();
    for Wanted { image, .. } in wanted {
        let config = image.config_digest();
        configs.insert(config, store.open_blob(config)?);
        for (descriptor, diff_id) in image.layers() {
            if !layers.iter().any(|other| other.diff_id == diff_id) {
                layers.push(Layer { descriptor, diff_id, blob: store.open_blob(&descriptor.digest)? });
            }
        }
        let one = Saved {
            config: config_name(config),
            repo_tags: image.reference.clone().map(|name| vec![name]),
            layers: image.layers().map(|(_, diff_id)| layer_name(diff_id)).collect(),
        };
        // Two names of one image are two tags of it.
        match saved.iter_mut().find(|other| other.config == one.config && other.layers == one.layers) {
            Some(other) => other.repo_tags.get_or_insert_default().extend(one.repo_tags.unwrap_or_default()),
            None => saved.push(one),
        }
    }
    let sizes =
        parallel::each(&layers, |_, layer| size(layer).with_context(|| format!("layer {}", layer.descriptor.digest)))?;
    let mut members = Members::new(out);
    members.document("manifest.json", &serde_json::to_vec(&saved)?)?;
    for (digest, file) in configs {
        let mut bytes = Vec::new();
        file.take(DOCUMENT_MAX).read_to_end(&mut bytes).with_context(|| config_name(digest))?;
        if Digest::of(&bytes) != *digest {
            bail!("{} is damaged: its content is not what its digest says", store.blob(digest).display());
        }
        members.document(&config_name(digest), &bytes)?;
    }
    for (layer, size) in layers.iter().zip(sizes) {
        let mut put = || -> Result<()> {
            let mut stream = layer.stream()?;
            members.file(&layer_name(layer.diff_id), size, &mut stream)?;
            layer.check(stream)
        };
        put().with_context(|| format!("layer {}", layer.descriptor.digest))?;
    }
    members.finish()
}

/// How long a layer is without compression; it is what it says, or that is an error.
fn size(layer: &Layer<'_>) -> Result<u64> {
    let mut head = Vec::new();
    layer.reopened()?.take(codec::HEAD as u64).read_to_end(&mut head)?;
    if Codec::detect(&head) == Codec::Plain && layer.descriptor.digest == *layer.diff_id {
        // It is checked as it is written.
        return Ok(layer.blob.metadata()?.len());
    }
    let mut stream = layer.stream()?;
    let size = io::copy(&mut stream, &mut io::sink())?;
    layer.check(stream)?;
    Ok(size)
}

impl Layer<'_> {
    /// The blob with a position of its own.
    fn reopened(&self) -> Result<File> {
        use std::os::fd::AsRawFd;
        File::open(format!("/proc/self/fd/{}", self.blob.as_raw_fd())).context("open it again")
    }

    fn stream(&self) -> Result<Stream> {
        Ok(Stream::start(self.reopened()?, Intake::of_the_store(Known::Nothing, LimitArgs::default().max_ratio)))
    }

    /// Checks a layer that was read to its end.
    fn check(&self, stream: Stream) -> Result<()> {
        let summary = stream.finish()?;
        if summary.digest != self.descriptor.digest || summary.diff_id != *self.diff_id {
            bail!("what is stored is damaged: it has the digest {}; import or fetch the image again", summary.digest);
        }
        Ok(())
    }
}

fn config_name(digest: &Digest) -> String {
    format!("{}.json", digest.hex())
}

fn layer_name(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}
