//! An image that other tools made: which of those that are there, what belongs to it, and its way into the store.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sheep_overlay::exit;

use super::files::Files;
use crate::cli::LimitArgs;
use crate::doc::Platform;
use crate::not_sent::{self, NotSent};
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
pub struct Plan {
    /// The manifest: as it is there, or to be made.
    manifest: Option<(Descriptor, Vec<u8>)>,
    config: Vec<u8>,
    config_descriptor: Descriptor,
    /// Its layers, bottom first.
    pub layers: Vec<Planned>,
}

/// A layer on its way in.
#[derive(Debug)]
pub struct Planned {
    /// Its file.
    name: String,
    /// What the manifest says of it, where there is one.
    pub descriptor: Option<Descriptor>,
    /// The digest of what is in it.
    pub diff_id: Digest,
}

/// What became of a layer.
pub struct Taken {
    digest: Digest,
    size: u64,
    media_type: String,
    /// The file in the stage; none where the store has the blob, and only that is looked at again.
    file: Option<String>,
    /// The directory; none where the store had it.
    unpacked: Option<Unpacked>,
    /// The blob that the store had, locked: `gc` leaves it, though no image may need it yet.
    _kept: Option<File>,
    left_out: LeftOut,
}

impl Taken {
    /// Its file in the stage.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

/// Where layers go, and how.
pub struct Way<'a> {
    store: &'a Store,
    stage: &'a Stage,
    limits: LimitArgs,
    progress: &'a Progress,
    /// Each blob of an image in the store, with what is in it.
    pairs: HashSet<(Digest, Digest)>,
}

impl<'a> Way<'a> {
    /// Into the store by way of the stage.
    pub fn new(store: &'a Store, stage: &'a Stage, limits: LimitArgs, progress: &'a Progress) -> Result<Self> {
        let pairs = store.known_layers()?;
        Ok(Way { store, stage, limits, progress, pairs })
    }

    /// Whether an image that is here says that this is what is in the blob, and has it unpacked: one that comes may lie. Whether it is
    /// unpacked for where it is to lie now is looked at when the image is in the store.
    fn knows(&self, descriptor: &Descriptor, diff_id: &Digest) -> bool {
        self.pairs.contains(&(descriptor.digest.clone(), diff_id.clone()))
    }
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
    let images = [(name.clone(), plan)];
    let layers = distinct(&images)?;
    let way = Way::new(store, &stage, limits, progress)?;
    let taken = parallel::each(&layers, |number, layer| {
        let one = || match (files.open(&layer.name)?, &layer.descriptor) {
            (Some(source), _) => {
                let size = source.size();
                one_layer(&way, layer, number, source, size)
            }
            (None, Some(descriptor)) if not_sent.names(descriptor) => match link(&way, descriptor, number)? {
                Some(from) => of_link(&way, layer, number, from),
                None => Err(lacks(&[&descriptor.digest])),
            },
            (None, _) => bail!("it is missing"),
        };
        one().with_context(|| format!("layer {}", layer.name))
    })?;
    drop(way);
    let (named, left_out) = finish(store, stage, &images, taken)?;
    Ok((named.into_iter().next().context("an image that was taken in")?, left_out))
}

/// The layers of images, each once, however often they have it. An error where they do not agree on how long it is.
pub fn distinct(images: &[(Name, Plan)]) -> Result<Vec<&Planned>> {
    let mut sizes: HashMap<_, Option<u64>> = HashMap::new();
    let mut found = Vec::new();
    for layer in images.iter().flat_map(|(_, plan)| &plan.layers) {
        let size = layer.descriptor.as_ref().map(|descriptor| descriptor.size);
        match sizes.insert(layer.key(), size) {
            None => found.push(layer),
            Some(other) if other == size => {}
            Some(other) => {
                let (one, other) = (size.unwrap_or_default(), other.unwrap_or_default());
                bail!("layer {}: it is said to have {other} bytes, and also {one}", layer.name);
            }
        }
    }
    Ok(found)
}

impl Planned {
    /// One that has the same is the same.
    fn key(&self) -> (&str, &Digest) {
        (&self.name, &self.diff_id)
    }
}

/// What is said where layers were left out that are not here.
pub fn lacks(digests: &[&Digest]) -> anyhow::Error {
    let more = match digests.len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let first = digests.first().map_or("", |digest| digest.as_str());
    exit::not_found(format!(
        "layer {first}{more} was not sent, for a store that has it, and this one does not; have it sent again, with the list of 'sheep-images have' of this one"
    ))
}

/// Puts images into the store whose [`distinct`] layers were taken: all of them, or none.
pub fn finish(
    store: &Store,
    stage: Stage,
    images: &[(Name, Plan)],
    mut taken: Vec<Taken>,
) -> Result<(Vec<Descriptor>, LeftOut)> {
    let first: HashMap<_, usize> =
        distinct(images)?.into_iter().enumerate().map(|(at, layer)| (layer.key(), at)).collect();
    let mut left_out = LeftOut::default();
    taken.iter().for_each(|taken| left_out += taken.left_out);
    let reused = taken.iter().filter(|taken| taken.file.is_none()).map(|taken| taken.digest.clone()).collect();
    let mut blobs: Vec<(String, Digest)> = Vec::new();
    let mut layers = Vec::new();
    let mut named = Vec::new();
    // Where each layer is, once it was looked for.
    let mut places: Vec<Option<PathBuf>> = taken.iter().map(|_| None).collect();
    for (number, (name, plan)) in images.iter().enumerate() {
        let (image, manifest) = match &plan.manifest {
            Some(manifest) => manifest.clone(),
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
        let mut below = Vec::new();
        for (layer, chain_id) in plan.layers.iter().zip(&chain_ids) {
            let at = first[&layer.key()];
            let one = &mut taken[at];
            blobs.extend(one.file.take().map(|file| (file, one.digest.clone())));
            if let Some(unpacked) = one.unpacked.take() {
                let place = unpacked.complete(&below, &layer.diff_id, chain_id)?;
                places[at] = Some(unpacked.scratch.path().to_path_buf());
                layers.push((unpacked.scratch, place));
            } else if places[at].is_none() {
                // One that the store has, and that does not fit here or is not unpacked, is unpacked when the image is in the store.
                places[at] = store.layer_path(&layer.diff_id, chain_id, &below)?;
            }
            below.extend(places[at].clone());
        }
        for (file, bytes, digest) in
            [("config", &plan.config, &plan.config_descriptor.digest), ("manifest", &manifest, &image.digest)]
        {
            let file = format!("{file}{number}");
            stage.write(&file, bytes)?;
            blobs.push((file, digest.clone()));
        }
        named.push((name.clone(), Descriptor { annotations: None, platform: None, ..image }));
    }
    Ok((stage.publish_images(store, &named, blobs, layers, reused)?, left_out))
}

/// How a layer's blob is called in the stage.
fn file_name(number: usize) -> String {
    format!("layer{number}")
}

/// Stores and unpacks a layer in one pass, and checks that it is what the image says. One that the store has is not read.
pub fn one_layer(
    way: &Way<'_>,
    layer: &Planned,
    number: usize,
    source: impl Read + Send + 'static,
    size: u64,
) -> Result<Taken> {
    if let Some(descriptor) = &layer.descriptor {
        if size != descriptor.size {
            bail!("it has {size} bytes, and the image says {}", descriptor.size);
        }
        if way.knows(descriptor, &layer.diff_id)
            && let Some(kept) = keep(way.store, descriptor)?
        {
            let Descriptor { digest, size, media_type, .. } = descriptor.clone();
            let left_out = LeftOut::default();
            return Ok(Taken { digest, size, media_type, file: None, unpacked: None, _kept: Some(kept), left_out });
        }
    }
    let file = way.stage.create(&file_name(number))?;
    taken(way, layer, number, source, size, Some(file))
}

/// Unpacks a layer, and stores it in the file of the stage where that is not there already.
fn taken(
    way: &Way<'_>,
    layer: &Planned,
    number: usize,
    source: impl Read + Send + 'static,
    size: u64,
    store: Option<File>,
) -> Result<Taken> {
    let scratch = Scratch::new(&way.store.layers())?;
    let name = layer.descriptor.as_ref().map_or(&layer.diff_id, |descriptor| &descriptor.digest);
    let came = way.progress.add(name.as_str(), Some(size));
    let intake = Intake { store, known: None, max_ratio: way.limits.max_ratio, came };
    let Received { summary, left_out, implied } =
        unpack::receive(Stream::start(source, intake), scratch.fd(), way.limits)?;
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
    let (file, unpacked) = (Some(file_name(number)), Some(Unpacked { scratch, implied }));
    Ok(Taken { digest, size, media_type, file, unpacked, _kept: None, left_out })
}

/// Where a blob was that does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In its place.
    Store,
    /// Among those that wait for the rest of their image.
    Partial,
}

/// Makes a blob that does not come a file of the stage: a link, so that nobody can take it away any more. `None` where the store has
/// none of that digest and size.
pub fn link(way: &Way<'_>, descriptor: &Descriptor, number: usize) -> Result<Option<Origin>> {
    let to = way.stage.file(&file_name(number));
    for (path, from) in
        [(way.store.blob(&descriptor.digest), Origin::Store), (way.store.partial(descriptor), Origin::Partial)]
    {
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == descriptor.size) {
            continue;
        }
        match fs::hard_link(&path, &to) {
            Ok(()) => return Ok(Some(from)),
            // Removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        }
    }
    Ok(None)
}

/// Takes a layer whose blob was [`link`]ed: where it is not known to be unpacked, it is read and checked like one that comes.
pub fn of_link(way: &Way<'_>, layer: &Planned, number: usize, from: Origin) -> Result<Taken> {
    let descriptor = layer.descriptor.as_ref().context("a layer without a digest")?;
    if from == Origin::Store && way.knows(descriptor, &layer.diff_id) {
        let Descriptor { digest, size, media_type, .. } = descriptor.clone();
        let (file, left_out) = (Some(file_name(number)), LeftOut::default());
        return Ok(Taken { digest, size, media_type, file, unpacked: None, _kept: None, left_out });
    }
    let path = way.stage.file(&file_name(number));
    let open = || File::open(&path).with_context(|| path.display().to_string());
    taken(way, layer, number, open()?, descriptor.size, None).or_else(|error| {
        // Only now it matters what of it is wrong.
        let stored = Digest::of_all(open()?)?;
        match from {
            _ if stored == descriptor.digest => Err(error),
            Origin::Store => {
                bail!("what is stored has the digest {stored}; 'sheep-images verify --repair', then have it sent again")
            }
            Origin::Partial => {
                way.store.forget_partial(descriptor)?;
                bail!("what came of it before is damaged, and is deleted now; run the same again")
            }
        }
    })
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

fn no_platform(index: &Index, host: &Platform) -> anyhow::Error {
    let Platform { os, architecture } = host;
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
