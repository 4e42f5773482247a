//! An image that other tools made: which of those that are there, what belongs to it, and its way into the store.

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sheep_overlay::exit;

use super::files::Files;
use crate::cli::LimitArgs;
use crate::doc::Platform;
use crate::oci::{self, Config, Descriptor, Digest, Index, LAYERS_MAX, Manifest, ManifestOrIndex};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::Name;
use crate::regular;
use crate::scratch::Scratch;
use crate::store::stage::Stage;
use crate::store::{DOCUMENT_MAX, INDEX_DEPTH, Store, choose, familiar};
use crate::stream::{Intake, Stream, Summary};
use crate::unpack::{self, LeftOut, Received, Unpacked};

/// What is asked for, where there are several images.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The name that it has there.
    pub reference: Option<&'a str>,
    /// What it is to run on.
    pub platform: Platform,
}

/// An image on its way in.
#[derive(Debug)]
struct Plan {
    /// The manifest: as it is there, or to be made.
    manifest: Option<(Descriptor, Vec<u8>)>,
    config: Vec<u8>,
    config_descriptor: Descriptor,
    layers: Vec<Planned>,
}

/// A layer on its way in.
#[derive(Debug)]
struct Planned {
    /// Its file.
    name: String,
    /// What the manifest says of it, where there is one.
    descriptor: Option<Descriptor>,
    diff_id: Digest,
}

impl Planned {
    /// What tells it from other layers: its content, and the blob where one is named.
    fn key(&self) -> (&Digest, Option<&Digest>) {
        (&self.diff_id, self.descriptor.as_ref().map(|descriptor| &descriptor.digest))
    }
}

/// What became of a layer.
struct Taken {
    digest: Digest,
    size: u64,
    media_type: String,
    /// The file in the stage and the directory; none where the store had the blob.
    new: Option<(String, Unpacked)>,
    /// The blob that the store had, locked: `gc` leaves it, though no image may need it yet.
    _kept: Option<File>,
    left_out: LeftOut,
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
    // Each layer once, however often the image has it. The same content compressed in two ways is two blobs.
    let mut first: HashMap<(&Digest, Option<&Digest>), usize> = HashMap::new();
    let mut distinct: Vec<&Planned> = Vec::new();
    for layer in &plan.layers {
        first.entry(layer.key()).or_insert_with(|| {
            distinct.push(layer);
            distinct.len() - 1
        });
    }
    let way = Way { store, files, stage: &stage, limits, progress, known: OnceLock::new() };
    let mut taken = parallel::each(&distinct, |number, layer| {
        one_layer(&way, layer, number).with_context(|| format!("layer {}", layer.name))
    })?;
    let mut left_out = LeftOut::default();
    taken.iter().for_each(|taken| left_out += taken.left_out);
    let (image, manifest) = match plan.manifest {
        Some(manifest) => manifest,
        None => {
            let layers = plan.layers.iter().map(|layer| {
                let taken = &taken[first[&layer.key()]];
                Descriptor::new(&taken.media_type, taken.digest.clone(), taken.size)
            });
            let manifest = serde_json::to_vec(&Manifest {
                schema_version: 2,
                media_type: Some(oci::MANIFEST.to_owned()),
                config: plan.config_descriptor.clone(),
                layers: layers.collect(),
            })?;
            (Descriptor::new(oci::MANIFEST, Digest::of(&manifest), manifest.len() as u64), manifest)
        }
    };
    let chain_ids = oci::chain_ids(&plan.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>());
    let reused = taken.iter().filter(|taken| taken.new.is_none()).map(|taken| taken.digest.clone()).collect();
    let mut blobs: Vec<(String, Digest)> = Vec::new();
    let mut layers = Vec::new();
    let mut below = Vec::new();
    for (layer, chain_id) in plan.layers.iter().zip(&chain_ids) {
        let one = &mut taken[first[&layer.key()]];
        match one.new.take() {
            Some((file, unpacked)) => {
                blobs.push((file, one.digest.clone()));
                let place = unpacked.complete(&below, &layer.diff_id, chain_id)?;
                below.push(unpacked.scratch.path().to_path_buf());
                layers.push((unpacked.scratch, place));
            }
            // One that the store has, and that does not fit here or is not unpacked, is unpacked when the image is in the store.
            None => below.extend(store.layer_path(&layer.diff_id, chain_id, &below)?),
        }
    }
    for (file, bytes, digest) in
        [("config", &plan.config, &plan.config_descriptor.digest), ("manifest", &manifest, &image.digest)]
    {
        stage.write(file, bytes)?;
        blobs.push((file.to_owned(), digest.clone()));
    }
    let image = Descriptor { annotations: None, platform: None, ..image };
    Ok((stage.publish_image(store, name, &image, blobs, layers, reused)?, left_out))
}

/// What all layers of an image have in common on their way in.
struct Way<'a> {
    store: &'a Store,
    files: &'a Files,
    stage: &'a Stage,
    limits: LimitArgs,
    progress: &'a Progress,
    /// The layers that the images of the store have: blob and diffID. Looked up when the first is needed.
    known: OnceLock<HashSet<(Digest, Digest)>>,
}

/// Stores and unpacks a layer in one pass, and checks that it is what the image says.
fn one_layer(way: &Way<'_>, layer: &Planned, number: usize) -> Result<Taken> {
    let Way { store, files, stage, limits, progress, .. } = *way;
    let source = files.open(&layer.name)?.context("it is missing")?;
    if let Some(descriptor) = &layer.descriptor {
        if source.size() != descriptor.size {
            bail!("it has {} bytes, and the image says {}", source.size(), descriptor.size);
        }
        // That the two belong together an image that is here must say: this one may lie.
        let pair = (descriptor.digest.clone(), layer.diff_id.clone());
        if way.known.get_or_init(|| store.known_layers().unwrap_or_default()).contains(&pair)
            && let Some(kept) = keep(store, descriptor)?
        {
            let Descriptor { digest, size, media_type, .. } = descriptor.clone();
            return Ok(Taken { digest, size, media_type, new: None, _kept: Some(kept), left_out: LeftOut::default() });
        }
    }
    let file = format!("layer{number}");
    let scratch = Scratch::new(&store.layers())?;
    let name = layer.descriptor.as_ref().map_or(&layer.diff_id, |descriptor| &descriptor.digest);
    let came = progress.add(name.as_str(), Some(source.size()));
    let intake = Intake { came, ..Intake::of_another(stage.create(&file)?, limits.max_ratio) };
    let stream = Stream::start(source, intake);
    let Received { summary, left_out, implied } = unpack::receive(stream, scratch.fd(), limits)?;
    let Summary { codec, digest, size, diff_id } = summary;
    if let Some(descriptor) = &layer.descriptor
        && descriptor.digest != digest
    {
        bail!("its digest is {digest}, and the image says {}", descriptor.digest);
    }
    if diff_id != layer.diff_id {
        bail!("unpacked it is {diff_id}, and the image says {}", layer.diff_id);
    }
    let media_type = format!("{}{}", oci::LAYER, codec.media_suffix());
    let new = Some((file, Unpacked { scratch, implied }));
    Ok(Taken { digest, size, media_type, new, _kept: None, left_out })
}

/// Makes sure of a blob that the store has, so that it need not come in again: it is as long as it should be, and stays. `None` where
/// it is not there, is damaged so that it can be seen at once, or is being unpacked.
fn keep(store: &Store, descriptor: &Descriptor) -> Result<Option<File>> {
    let path = store.blob(&descriptor.digest);
    let context = || path.display().to_string();
    // What is no file there comes in again, and takes its place.
    let Ok(Some(blob)) = regular::open(None, &path) else { return Ok(None) };
    // Not waited for: who unpacks has several of these locks, and so may we have.
    match blob.try_lock_shared() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e).with_context(context),
    }
    let inode = |found: std::fs::Metadata| (found.dev(), found.ino());
    let found = blob.metadata().with_context(context)?;
    let is_whole = found.is_file() && found.len() == descriptor.size;
    let is_there = std::fs::symlink_metadata(&path).map(inode).ok() == Some(inode(found));
    Ok((is_whole && is_there).then_some(blob))
}

fn blob_name(digest: &Digest) -> String {
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
    let mut chosen = pick(&index, wanted)?.clone();
    for _ in 0..INDEX_DEPTH {
        let bytes = document(files, &chosen)?;
        match oci::parse_manifest(&chosen, &bytes).with_context(|| blob_name(&chosen.digest))? {
            ManifestOrIndex::Index(index) => {
                chosen = choose(&index, &wanted.platform).cloned().ok_or_else(|| no_platform(&index, wanted))?;
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

fn diff_ids(config: &[u8], layers: usize) -> Result<Vec<Digest>> {
    let config: Config = serde_json::from_slice(config).context("the image's configuration")?;
    let found = config.rootfs.diff_ids.len();
    if found != layers {
        bail!("{layers} layers, but the configuration names {found}");
    }
    Ok(config.rootfs.diff_ids)
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

fn no_platform(index: &Index, wanted: &Wanted<'_>) -> anyhow::Error {
    let Platform { os, architecture } = &wanted.platform;
    let text = |descriptor: &Descriptor| {
        let platform = descriptor.platform.as_ref()?;
        Some(format!("{}/{}", platform.get("os")?.as_str()?, platform.get("architecture")?.as_str()?))
    };
    let there: Vec<String> = index.manifests.iter().filter_map(text).collect();
    exit::not_found(format!("there is no image for {os}/{architecture} in it, but for {}", there.join(", ")))
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
