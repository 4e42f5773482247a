//! An image on its way into the store, wherever it comes from: each layer is stored, unpacked and checked in one pass, several at a
//! time, and all of it is in its place at once or not at all.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use sheep_overlay::exit;

use crate::cli::LimitArgs;
use crate::oci::{self, Config, Descriptor, Digest, Manifest};
use crate::progress::Progress;
use crate::reference::Name;
use crate::regular;
use crate::scratch::Scratch;
use crate::store::beginning::Beginning;
use crate::store::stage::Stage;
use crate::store::{Store, content, is_whole};
use crate::stream::{self, Counted, Intake, Known, Stream, Summary};
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
    /// Its layers, bottom first.
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
    /// Its blob under another name, to be taken away when it is in its place.
    beginning: Option<Beginning>,
    left_out: LeftOut,
}

/// A layer's archive that may break off, to be read.
pub struct Source {
    /// All of it.
    pub reader: Box<dyn Read + Send>,
    /// How many bytes it has.
    pub size: u64,
    /// Where the reader writes it to; none where that is to be done.
    pub begun: Option<Begun>,
}

/// A blob that is written by who reads it.
pub struct Begun {
    /// What there is of it.
    pub beginning: Beginning,
    /// Set where it ends for no fault of its own.
    pub gave_up: Arc<AtomicBool>,
}

impl Taken {
    /// One that is unpacked already.
    fn known(descriptor: &Descriptor) -> Self {
        let Descriptor { digest, size, media_type, .. } = descriptor.clone();
        let left_out = LeftOut::default();
        Taken { digest, size, media_type, file: None, unpacked: None, _kept: None, beginning: None, left_out }
    }

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

    /// Whether layers are unpacked, and it is seen that they are what the configuration says.
    fn unpacks(&self) -> bool {
        !self.stage.unproven
    }

    /// Whether an image that is here says that this is what is in the blob, and has it unpacked: one that comes may lie. Whether it is
    /// unpacked for where it is to lie now is looked at when the image is in the store.
    fn knows(&self, descriptor: &Descriptor, diff_id: &Digest) -> bool {
        self.pairs.contains(&(descriptor.digest.clone(), diff_id.clone()))
    }
}

/// The layers of images, each once, however often they have it. An error where they do not agree on how long it is.
pub fn distinct(images: &[(Option<Name>, Plan)]) -> Result<Vec<&Planned>> {
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
    images: &[(Option<Name>, Plan)],
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
            let file = one.file.take();
            if let Some(unpacked) = one.unpacked.take() {
                if let Some(file) = &file {
                    content::note(&stage.file(file), &one.digest, &layer.diff_id);
                }
                let place = unpacked.complete(&below, &layer.diff_id, chain_id)?;
                places[at] = Some(unpacked.scratch.path().to_path_buf());
                layers.push((unpacked.scratch, place));
            } else if places[at].is_none() {
                // One that the store has, and that does not fit here or is not unpacked, is unpacked when the image is in the store.
                places[at] = store.layer_path(&layer.diff_id, chain_id, &below)?;
            }
            blobs.extend(file.map(|file| (file, one.digest.clone())));
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
    let beginnings: Vec<Beginning> = taken.iter_mut().filter_map(|taken| taken.beginning.take()).collect();
    let named = stage.publish_images(store, &named, blobs, layers, reused)?;
    beginnings.into_iter().for_each(Beginning::remove);
    Ok((named, left_out))
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
    check_size(layer, size)?;
    if let Some(known) = known(way, layer)? {
        return Ok(known);
    }
    let file = way.stage.create(&file_name(number))?;
    taken(way, layer, number, source, size, Some(file))
}

/// The same for a layer that may break off: `open` gives what there is of it already, and the rest.
pub fn one_download(
    way: &Way<'_>,
    layer: &Planned,
    number: usize,
    open: impl Fn(&Planned) -> Result<Source>,
) -> Result<Taken> {
    if let Some(known) = known(way, layer)? {
        return Ok(known);
    }
    loop {
        let Source { reader, size, begun } = open(layer)?;
        check_size(layer, size)?;
        let Some(Begun { beginning, gave_up }) = begun else {
            let file = way.stage.create(&file_name(number))?;
            return taken(way, layer, number, reader, size, Some(file));
        };
        // It is written by who gives it, and not once more.
        match taken(way, layer, number, reader, size, None) {
            Ok(taken) => {
                beginning.link_to(&way.stage.file(&file_name(number)))?;
                return Ok(Taken { beginning: Some(beginning), ..taken });
            }
            // What is there is gone on with next time.
            Err(error) if gave_up.load(Ordering::Relaxed) => return Err(error),
            Err(error) => {
                let was_begun = beginning.begun > 0;
                beginning.remove();
                if !was_begun {
                    return Err(error);
                }
                // What was there from another time may have been damaged: once more, all of it.
            }
        }
    }
}

fn check_size(layer: &Planned, size: u64) -> Result<()> {
    match &layer.descriptor {
        Some(descriptor) if descriptor.size != size => {
            bail!("it has {size} bytes, and the image says {}", descriptor.size)
        }
        _ => Ok(()),
    }
}

/// A layer that need not come: the store has its blob, and knows what is in it where that matters.
fn known(way: &Way<'_>, layer: &Planned) -> Result<Option<Taken>> {
    let is_known = |descriptor: &&Descriptor| !way.unpacks() || way.knows(descriptor, &layer.diff_id);
    let Some(descriptor) = layer.descriptor.as_ref().filter(is_known) else { return Ok(None) };
    let Some(kept) = keep(way.store, descriptor)? else { return Ok(None) };
    Ok(Some(Taken { _kept: Some(kept), ..Taken::known(descriptor) }))
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
    let name = layer.descriptor.as_ref().map_or(&layer.diff_id, |descriptor| &descriptor.digest);
    let came = way.progress.add(name.as_str(), Some(size));
    if !way.unpacks() {
        return blob(layer, number, Counted { inner: source, came }, store);
    }
    let scratch = Scratch::new(&way.store.layers())?;
    let intake = Intake { store, known: Known::Nothing, max_ratio: way.limits.max_ratio, came };
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
    Ok(Taken { digest, size, media_type, file, unpacked, _kept: None, beginning: None, left_out })
}

/// Takes a layer's blob as it is, and checks only that it is what its digest says.
fn blob(layer: &Planned, number: usize, source: impl Read, store: Option<File>) -> Result<Taken> {
    let descriptor = layer.descriptor.as_ref().context("a layer without a digest")?;
    let digest = match store {
        None => Digest::of_all(source)?,
        Some(file) => Digest::of_all(Kept { inner: source, file, at: 0 })?,
    };
    if digest != descriptor.digest {
        bail!("its digest is {digest}, and the image says {}", descriptor.digest);
    }
    Ok(Taken { file: Some(file_name(number)), ..Taken::known(descriptor) })
}

/// Writes to a file what is read through it.
struct Kept<R> {
    inner: R,
    file: File,
    at: u64,
}

impl<R: Read> Read for Kept<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.file.write_all(&into[..n])?;
        stream::write_out(&self.file, self.at, n)?;
        self.at += n as u64;
        Ok(n)
    }
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
        if !is_whole(&path, descriptor.size) {
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
        return Ok(Taken { file: Some(file_name(number)), ..Taken::known(descriptor) });
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

/// The digests of what is in the layers, as a configuration names them; as many as there are layers.
pub fn diff_ids(config: &[u8], layers: usize) -> Result<Vec<Digest>> {
    let config: Config = serde_json::from_slice(config).context("the image's configuration")?;
    let found = config.rootfs.diff_ids.len();
    if found != layers {
        bail!("{layers} layers, but the configuration names {found}");
    }
    Ok(config.rootfs.diff_ids)
}
