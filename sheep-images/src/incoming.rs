//! An image on its way into the store, wherever it comes from: each layer is stored, unpacked and checked in one pass, several at a
//! time, and all of it is in its place at once or not at all.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::cli::LimitArgs;
use crate::oci::{self, Config, Descriptor, Digest, Manifest};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::Name;
use crate::registry::partial::Partial;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::store::stage::Stage;
use crate::stream::{Intake, Stream, Summary};
use crate::unpack::{self, LeftOut, Received, Unpacked};

/// An image on its way in.
#[derive(Debug)]
pub struct Plan {
    /// The manifest: as it is there, or to be made.
    pub manifest: Option<(Descriptor, Vec<u8>)>,
    /// The configuration.
    pub config: Vec<u8>,
    /// What the manifest says of it.
    pub config_descriptor: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Planned>,
}

/// A layer on its way in.
#[derive(Debug)]
pub struct Planned {
    /// What it is called where it comes from.
    pub name: String,
    /// What the manifest says of it, where there is one.
    pub descriptor: Option<Descriptor>,
    /// The digest of what is in it.
    pub diff_id: Digest,
}

/// A layer's archive, to be read.
pub struct Source {
    /// All of it.
    pub reader: Box<dyn Read + Send>,
    /// How many bytes it has.
    pub size: u64,
    /// Where the reader writes it to; none where that is to be done.
    pub partial: Option<Begun>,
}

/// A blob that is written by who reads it.
pub struct Begun {
    /// What there is of it.
    pub partial: Partial,
    /// Set where it ends for no fault of its own.
    pub gave_up: Arc<AtomicBool>,
}

/// What became of a layer.
struct Taken {
    digest: Digest,
    size: u64,
    media_type: String,
    /// The file in the stage and the directory; none where the store had both.
    new: Option<(String, Unpacked)>,
    /// The blob that the store had, locked: `gc` leaves it, though no image may need it yet.
    _kept: Option<File>,
    /// Its blob under another name, to be taken away when it is in its place.
    partial: Option<Partial>,
    left_out: LeftOut,
}

/// Takes an image in: all that belongs to it is checked, stored and unpacked, or nothing.
/// `open` gives the archive of a layer; `workers` of them come in at once. Without a name the image is found by its digest only.
#[allow(clippy::too_many_arguments)]
pub fn take_in(
    store: &Store,
    name: Option<&Name>,
    plan: Plan,
    open: impl Fn(&Planned) -> Result<Source> + Sync,
    workers: usize,
    limits: LimitArgs,
    progress: &Progress,
    stage: Stage,
) -> Result<(Descriptor, LeftOut)> {
    // Each layer once, however often the image has it.
    let mut first: HashMap<&Digest, usize> = HashMap::new();
    let mut distinct: Vec<&Planned> = Vec::new();
    for layer in &plan.layers {
        first.entry(&layer.diff_id).or_insert_with(|| {
            distinct.push(layer);
            distinct.len() - 1
        });
    }
    let mut taken = parallel::each_of(workers, &distinct, |number, layer| {
        let file = format!("layer{number}");
        one_layer(store, &open, layer, &file, &stage, limits, progress).with_context(|| format!("layer {}", layer.name))
    })?;
    let mut left_out = LeftOut::default();
    taken.iter().for_each(|taken| left_out += taken.left_out);
    let (image, manifest) = match plan.manifest {
        Some(manifest) => manifest,
        None => {
            let layers = plan.layers.iter().map(|layer| {
                let taken = &taken[first[&layer.diff_id]];
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
        let one = &mut taken[first[&layer.diff_id]];
        match one.new.take() {
            Some((file, unpacked)) => {
                blobs.push((file, one.digest.clone()));
                let place = unpacked.complete(&below, &layer.diff_id, chain_id)?;
                below.push(unpacked.scratch.path().to_path_buf());
                layers.push((unpacked.scratch, place));
            }
            // One that the store has and that does not fit here is left to 'unpack'.
            None => below.extend(store.layer_path(&layer.diff_id, chain_id, &below)?),
        }
    }
    for (file, bytes, digest) in
        [("config", &plan.config, &plan.config_descriptor.digest), ("manifest", &manifest, &image.digest)]
    {
        stage.write(file, bytes)?;
        blobs.push((file.to_owned(), digest.clone()));
    }
    let partials: Vec<Partial> = taken.iter_mut().filter_map(|taken| taken.partial.take()).collect();
    let image = Descriptor { annotations: None, platform: None, ..image };
    let image = stage.publish_image(store, name, &image, blobs, layers, reused)?;
    partials.into_iter().for_each(Partial::remove);
    Ok((image, left_out))
}

/// Stores and unpacks a layer in one pass, and checks that it is what the image says.
fn one_layer(
    store: &Store,
    open: &impl Fn(&Planned) -> Result<Source>,
    layer: &Planned,
    file: &str,
    stage: &Stage,
    limits: LimitArgs,
    progress: &Progress,
) -> Result<Taken> {
    if let Some(descriptor) = &layer.descriptor
        && store.layer_dir(&layer.diff_id).is_dir()
        && let Some(kept) = keep(store, descriptor)?
    {
        let Descriptor { digest, size, media_type, .. } = descriptor.clone();
        let left_out = LeftOut::default();
        return Ok(Taken { digest, size, media_type, new: None, _kept: Some(kept), partial: None, left_out });
    }
    let name = layer.descriptor.as_ref().map_or(&layer.diff_id, |descriptor| &descriptor.digest);
    loop {
        let Source { reader, size, partial } = open(layer)?;
        if let Some(descriptor) = &layer.descriptor
            && size != descriptor.size
        {
            bail!("it has {size} bytes, and the image says {}", descriptor.size);
        }
        // Where it is written by who gives it, it is not written again.
        let into = match &partial {
            Some(_) => None,
            None => Some(stage.create(file)?),
        };
        let intake = Intake {
            store: into,
            known: None,
            max_ratio: limits.max_ratio,
            came: progress.add(name.as_str(), Some(size)),
        };
        let scratch = Scratch::new(&store.layers())?;
        let (received, partial) = match (receive(reader, intake, &scratch, layer, limits), partial) {
            (Ok(received), None) => (received, None),
            (Err(error), None) => return Err(error),
            (Ok(received), Some(begun)) => {
                begun.partial.link_to(&stage.file(file))?;
                (received, Some(begun.partial))
            }
            (Err(error), Some(begun)) => {
                if begun.gave_up.load(Ordering::Relaxed) {
                    // What is there is gone on with next time.
                    return Err(error);
                }
                let was_begun = begun.partial.begun > 0;
                begun.partial.remove();
                if !was_begun {
                    return Err(error);
                }
                // What was there from another time may have been damaged: once more, all of it.
                continue;
            }
        };
        let Received { summary, left_out, implied } = received;
        let Summary { codec, digest, size, .. } = summary;
        let media_type = format!("{}{}", oci::LAYER, codec.media_suffix());
        let new = Some((file.to_owned(), Unpacked { scratch, implied }));
        return Ok(Taken { digest, size, media_type, new, _kept: None, partial, left_out });
    }
}

/// Unpacks what comes, and compares it with what it should be.
fn receive(
    reader: Box<dyn Read + Send>,
    intake: Intake,
    scratch: &Scratch,
    layer: &Planned,
    limits: LimitArgs,
) -> Result<Received> {
    let received = unpack::receive(Stream::start(reader, intake), scratch.fd(), limits)?;
    let Summary { digest, diff_id, .. } = &received.summary;
    if let Some(descriptor) = &layer.descriptor
        && descriptor.digest != *digest
    {
        bail!("its digest is {digest}, and the image says {}", descriptor.digest);
    }
    if *diff_id != layer.diff_id {
        bail!("unpacked it is {diff_id}, and the image says {}", layer.diff_id);
    }
    Ok(received)
}

/// Makes sure of a blob that the store has, so that it need not come in again: it is as long as it should be, and stays. `None` where
/// it is not there, is damaged so that it can be seen at once, or is being unpacked.
fn keep(store: &Store, descriptor: &Descriptor) -> Result<Option<File>> {
    let path = store.blob(&descriptor.digest);
    let context = || path.display().to_string();
    let blob = match File::open(&path) {
        Ok(blob) => blob,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
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

/// The digests of what is in the layers, as a configuration names them; as many as there are layers.
pub fn diff_ids(config: &[u8], layers: usize) -> Result<Vec<Digest>> {
    let config: Config = serde_json::from_slice(config).context("the image's configuration")?;
    let found = config.rootfs.diff_ids.len();
    if found != layers {
        bail!("{layers} layers, but the configuration names {found}");
    }
    Ok(config.rootfs.diff_ids)
}
