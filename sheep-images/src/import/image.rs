//! An image that other tools made: which of those that are there, what belongs to it, and its way into the store.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sheep_overlay::exit;

use super::files::Files;
use crate::cli::LimitArgs;
use crate::doc::Platform;
use crate::incoming::{self, Plan, Planned, Way, diff_ids};
use crate::not_sent::{self, NotSent};
use crate::oci::{self, Descriptor, Digest, Index, LAYERS_MAX, ManifestOrIndex};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::Name;
use crate::store::stage::Stage;
use crate::store::{DOCUMENT_MAX, INDEX_DEPTH, Store, choose, familiar};
use crate::unpack::LeftOut;

/// What is asked for, where there are several images.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The name that it has there.
    pub reference: Option<&'a str>,
    /// What it is to run on.
    pub platform: Platform,
}

/// Takes an image in: all that belongs to it is checked, stored and unpacked, or nothing.
pub fn take_in(
    store: &Store,
    name: &Name,
    files: &Files,
    wanted: &Wanted<'_>,
    limits: LimitArgs,
    progress: &Progress,
    stage: Stage,
) -> Result<(Descriptor, LeftOut)> {
    let plan = match files.read("index.json", DOCUMENT_MAX)? {
        Some(index) => from_layout(files, &index, wanted)?,
        None => match files.read("manifest.json", DOCUMENT_MAX)? {
            Some(manifest) => from_docker(files, &manifest, wanted)?,
            None => bail!("neither index.json (an OCI layout) nor manifest.json (docker save) is in it"),
        },
    };
    let not_sent = match files.read(not_sent::MEMBER, DOCUMENT_MAX)? {
        Some(bytes) => NotSent::parse(&bytes).context(not_sent::MEMBER)?,
        None => NotSent::default(),
    };
    let images = [(Some(name.clone()), plan)];
    let layers = incoming::distinct(&images)?;
    let way = Way::new(store, &stage, limits, progress)?;
    let taken = parallel::each(&layers, |number, layer| {
        let one = || match (files.open(&layer.name)?, &layer.descriptor) {
            (Some(source), _) => {
                let size = source.size();
                incoming::one_layer(&way, layer, number, source, size)
            }
            (None, Some(descriptor)) if not_sent.names(descriptor) => match incoming::link(&way, descriptor, number)? {
                Some(from) => incoming::of_link(&way, layer, number, from),
                None => Err(incoming::lacks(&[&descriptor.digest])),
            },
            (None, _) => bail!("it is missing"),
        };
        one().with_context(|| format!("layer {}", layer.name))
    })?;
    drop(way);
    let (named, left_out) = incoming::finish(store, stage, &images, taken)?;
    Ok((named.into_iter().next().context("an image that was taken in")?, left_out))
}

/// How a layout calls a blob.
pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a blob that is a document, and checks it.
fn document(files: &Files, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let name = blob_name(&descriptor.digest);
    let bytes = files.read(&name, DOCUMENT_MAX)?.with_context(|| format!("{name} is missing"))?;
    if bytes.len() as u64 != descriptor.size {
        bail!("{name}: it has {} bytes, and what points to it says {}", bytes.len(), descriptor.size);
    }
    if Digest::of(&bytes) != descriptor.digest {
        bail!("{name}: its content is not what its digest says");
    }
    Ok(bytes)
}

/// An image of an OCI layout.
fn from_layout(files: &Files, index: &[u8], wanted: &Wanted<'_>) -> Result<Plan> {
    let index: Index = serde_json::from_slice(index).context("index.json")?;
    plan(files, pick(&index, wanted)?, &wanted.platform)
}

/// What belongs to the image that a descriptor leads to; of one for several platforms, to the one for this.
pub fn plan(files: &Files, descriptor: &Descriptor, host: &Platform) -> Result<Plan> {
    let mut chosen = descriptor.clone();
    for _ in 0..INDEX_DEPTH {
        let bytes = document(files, &chosen)?;
        match oci::parse_manifest(&chosen, &bytes).with_context(|| blob_name(&chosen.digest))? {
            ManifestOrIndex::Index(index) => {
                chosen = choose(&index, host).cloned().ok_or_else(|| no_platform(&index, host))?;
            }
            ManifestOrIndex::Manifest(manifest) => {
                let config = document(files, &manifest.config)?;
                let diff_ids = diff_ids(&config, manifest.layers.len())?;
                let layer = |(descriptor, diff_id): (&Descriptor, Digest)| Planned {
                    name: blob_name(&descriptor.digest),
                    descriptor: Some(descriptor.clone()),
                    diff_id,
                };
                let layers = manifest.layers.iter().zip(diff_ids).map(layer).collect();
                if chosen.media_type.is_empty() {
                    chosen.media_type = oci::MANIFEST.to_owned();
                }
                let config_descriptor = manifest.config;
                return Ok(Plan { manifest: Some((chosen, bytes)), config, config_descriptor, layers });
            }
        }
    }
    bail!("indexes within indexes, {INDEX_DEPTH} deep")
}

/// Which of a layout's images is wanted.
fn pick<'a>(index: &'a Index, wanted: &Wanted<'_>) -> Result<&'a Descriptor> {
    let names = || index.manifests.iter().filter_map(Descriptor::ref_name).map(familiar).collect::<Vec<_>>();
    match wanted.reference {
        Some(reference) => {
            let is_it = |descriptor: &&Descriptor| {
                descriptor.ref_name().is_some_and(|name| name == reference || familiar(name) == familiar(reference))
                    || descriptor.digest.as_str() == reference
            };
            index.manifests.iter().find(is_it).ok_or_else(|| no_such(reference, &names()))
        }
        None => match &index.manifests[..] {
            [] => bail!("there is no image in it"),
            [only] => Ok(only),
            several => choose(index, &wanted.platform)
                .filter(|_| several.iter().all(|descriptor| descriptor.platform.is_some()))
                .ok_or_else(|| which(&names())),
        },
    }
}

fn no_such(reference: &str, names: &[String]) -> anyhow::Error {
    exit::not_found(format!("--ref {reference}: no such image in it; there is {}", names.join(", ")))
}

fn which(names: &[String]) -> anyhow::Error {
    exit::usage(format!("there are several images in it; say which with --ref: {}", names.join(", ")))
}

fn no_platform(index: &Index, host: &Platform) -> anyhow::Error {
    let Platform { os, architecture } = host;
    exit::not_found(format!("there is no image for {os}/{architecture} in it, but for {}", index.platforms()))
}

/// One image of `manifest.json`, as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image of an archive that `docker save` made: its layers have no digests of their own.
fn from_docker(files: &Files, manifest: &[u8], wanted: &Wanted<'_>) -> Result<Plan> {
    let saved: Vec<Saved> = serde_json::from_slice(manifest).context("manifest.json")?;
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let names = || saved.iter().flat_map(tags).collect::<Vec<_>>();
    let chosen = match wanted.reference {
        Some(reference) => {
            let is_it = |saved: &&Saved| tags(saved).iter().any(|tag| familiar(tag) == familiar(reference));
            saved.iter().find(is_it).ok_or_else(|| no_such(reference, &names()))?
        }
        None => match &saved[..] {
            [] => bail!("there is no image in it"),
            [only] => only,
            _ => return Err(which(&names())),
        },
    };
    let config = files.read(&chosen.config, DOCUMENT_MAX)?.with_context(|| format!("{} is missing", chosen.config))?;
    // The file is called by its digest, which is the image's id.
    let digest = Digest::of(&config);
    let stem = chosen.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if stem.len() == 64 && stem != digest.hex() {
        bail!("{}: its content is not what its name says", chosen.config);
    }
    if chosen.layers.len() > LAYERS_MAX {
        bail!("manifest.json: {} layers; more than {LAYERS_MAX} are refused", chosen.layers.len());
    }
    let diff_ids = diff_ids(&config, chosen.layers.len())?;
    let layer = |(name, diff_id): (&String, Digest)| Planned { name: name.clone(), descriptor: None, diff_id };
    let layers = chosen.layers.iter().zip(diff_ids).map(layer).collect();
    let config_descriptor = Descriptor::new(oci::CONFIG, digest, config.len() as u64);
    Ok(Plan { manifest: None, config, config_descriptor, layers })
}

/// A platform as it is written on the command line: `linux/arm64`. Errors with usage (2).
pub fn platform(text: &str) -> Result<Platform> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [os, architecture] if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned() })
        }
        _ => Err(exit::usage(format!("--platform {text}: write OS/ARCHITECTURE: linux/arm64"))),
    }
}
