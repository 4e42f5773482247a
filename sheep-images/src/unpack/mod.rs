//! `unpack`: an image's layers as directories, each unpacked once and shared by every image that has it.

pub mod acl;
pub mod archive;
pub mod attributes;
pub mod directories;
pub mod extract;
pub mod header;
pub mod implied;
mod layers;
pub mod owner;
pub mod pax;
pub mod resolve;
pub mod sparse;
mod to;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use sheep_overlay::doc::Document;
use sheep_overlay::exit;

use crate::cli::{LimitArgs, ProgressMode, Unpack};
use crate::doc::Image;
use crate::oci::{Descriptor, Digest};
use crate::parallel;
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::store::{LoadedImage, Store, content};
use crate::stream::{Intake, Known, Stream, Summary};
use archive::Archive;
pub use extract::LeftOut;
pub use layers::Layers;

/// Runs the verb.
pub fn run(store: &Store, args: &Unpack) -> Result<()> {
    let what = format!("unpack {}", args.reference);
    let work = || -> Result<Document> {
        let image = store.find(&args.reference)?;
        let Some(to) = &args.to else {
            let progress = Progress::start(args.progress.progress);
            let left_out = ensure(store, &image, args.limits, &progress)?;
            tell_left_out(&what, left_out);
            return store.document(&image);
        };
        let asked = to::Asked { limits: args.limits, progress: args.progress.progress };
        let path = to::unpack_to(store, &image, to, args.userns, asked, &what)?;
        let mut document = store.document(&image)?;
        let mut described: Image = document.require("image", "'sheep-images unpack'")?;
        described.path = Some(path);
        document.set("image", &described)?;
        Ok(document)
    };
    work().context(what.clone())?.print("image", args.print.print.as_deref())
}

/// A layer that was unpacked, and is not in its place yet.
#[derive(Debug)]
pub struct Unpacked {
    /// Where it is.
    pub scratch: Scratch,
    /// Directories that its archive did not name.
    pub implied: Vec<Vec<u8>>,
}

impl Unpacked {
    /// Makes it fit to lie on these layers (bottom first), and gives the digest that it is to be stored by.
    pub fn complete(&self, below: &[PathBuf], diff_id: &Digest, chain_id: &Digest) -> Result<Digest> {
        let changed = implied::complete(self.scratch.fd(), &self.implied, below)?;
        Ok(if changed { chain_id.clone() } else { diff_id.clone() })
    }
}

/// Unpacks the layers of an image that are not. Of two processes that want one at once one works, and the other waits
/// for it.
pub fn ensure(store: &Store, image: &LoadedImage, limits: LimitArgs, progress: &Progress) -> Result<LeftOut> {
    let layers: Vec<Placed<'_>> = image
        .layers()
        .zip(image.chain_ids())
        .map(|((descriptor, diff_id), chain_id)| Placed { descriptor, diff_id, chain_id })
        .collect();
    let mut left_out = LeftOut::default();
    if store.layer_paths(image).collect::<Result<Option<Vec<_>>>>()?.is_some() {
        return Ok(left_out);
    }
    // The lock of a layer is on its blob, which is there as long as anybody can want the layer. All take them in one order.
    let mut wanted: Vec<&Placed<'_>> = layers.iter().collect();
    wanted.sort_by_key(|layer| &layer.descriptor.digest);
    wanted.dedup_by_key(|layer| &layer.descriptor.digest);
    let blobs = wanted.into_iter().map(|layer| Ok((&layer.descriptor.digest, lock(store, layer.descriptor)?)));
    let blobs: HashMap<&Digest, File> = blobs.collect::<Result<_>>()?;
    // Each is unpacked once, at the first place in the image that has nothing that fits.
    let mut below = Vec::new();
    let mut missing: Vec<&Placed<'_>> = Vec::new();
    for layer in &layers {
        match store.layer_path(layer.diff_id, &layer.chain_id, &below)? {
            Some(path) if missing.is_empty() => below.push(path),
            // On what is not there yet it cannot be told whether one that is there fits; mostly it does.
            _ if !missing.is_empty() && store.layer_dir(layer.diff_id).is_dir() => {}
            _ if missing.iter().any(|other| other.diff_id == layer.diff_id) => {}
            _ => missing.push(layer),
        }
    }
    let unproven = store.is_unproven(&image.digest);
    if unproven {
        let known = store.known_layers()?;
        let seen = |layer: &Placed<'_>| {
            known.contains(&(layer.descriptor.digest.clone(), layer.diff_id.clone()))
                || missing
                    .iter()
                    .any(|other| (&other.descriptor.digest, other.diff_id) == (&layer.descriptor.digest, layer.diff_id))
        };
        let doubtful: Vec<&Placed<'_>> = layers.iter().filter(|layer| !seen(layer)).collect();
        parallel::each(&doubtful, |_, layer| prove(layer, &blobs, limits, progress))?;
    }
    let unpacked = parallel::each(&missing, |_, layer| unpack(store, layer, &blobs, limits, progress))?;
    let mut unpacked: HashMap<&Digest, Unpacked> = missing
        .iter()
        .map(|layer| layer.diff_id)
        .zip(unpacked.into_iter().map(|(one, lost)| {
            left_out += lost;
            one
        }))
        .collect();
    let mut below: Vec<PathBuf> = Vec::new();
    for layer in &layers {
        let mut path = store.layer_path(layer.diff_id, &layer.chain_id, &below)?;
        if path.is_none() {
            let one = match unpacked.remove(layer.diff_id) {
                Some(one) => one,
                None => unpack(store, layer, &blobs, limits, progress)?.0,
            };
            let digest = one.complete(&below, layer.diff_id, &layer.chain_id)?;
            let blob = blobs.get(&layer.descriptor.digest).context("a layer without a blob")?;
            store.keep_layer(one.scratch, blob, layer.descriptor, &digest)?;
            path = Some(store.layer_dir(&digest));
        }
        below.extend(path);
    }
    if unproven {
        store.forget_unproven(&image.digest)?;
    }
    Ok(left_out)
}

/// Unpacks what is not unpacked of an image that came into the store: layers whose blobs were there. What could not be kept is said in a
/// line that begins with `what`.
pub fn rest(store: &Store, image: &LoadedImage, limits: LimitArgs, how: ProgressMode, what: &str) -> Result<()> {
    let left_out = ensure(store, image, limits, &Progress::start(how)).with_context(|| what.to_owned())?;
    tell_left_out(what, left_out);
    Ok(())
}

/// A layer at its place in an image.
struct Placed<'a> {
    descriptor: &'a Descriptor,
    diff_id: &'a Digest,
    chain_id: Digest,
}

fn lock(store: &Store, layer: &Descriptor) -> Result<File> {
    let context = || format!("layer {}", layer.digest);
    let blob = store.open_blob(&layer.digest).with_context(context)?;
    blob.lock().with_context(context)?;
    Ok(blob)
}

fn unpack(
    store: &Store,
    layer: &Placed<'_>,
    blobs: &HashMap<&Digest, File>,
    limits: LimitArgs,
    progress: &Progress,
) -> Result<(Unpacked, LeftOut)> {
    let descriptor = layer.descriptor;
    let scratch = Scratch::new(&store.layers())?;
    let blob = blobs.get(&descriptor.digest).context("a layer without a blob")?;
    let received = receive(stream(layer, blob, limits, progress)?, scratch.fd(), limits).and_then(|received| {
        is_what_it_should_be(&received.summary, layer)?;
        Ok(received)
    });
    let Received { left_out, implied, .. } = received.or_else(|error| blame(descriptor, blob, error))?;
    Ok((Unpacked { scratch, implied }, left_out))
}

/// Reads a layer of which there is an unpacked one, to see that it unpacks to that.
fn prove(layer: &Placed<'_>, blobs: &HashMap<&Digest, File>, limits: LimitArgs, progress: &Progress) -> Result<()> {
    let descriptor = layer.descriptor;
    let blob = blobs.get(&descriptor.digest).context("a layer without a blob")?;
    let mut stream = stream(layer, blob, limits, progress)?;
    let read = io::copy(&mut stream, &mut io::sink()).map_err(anyhow::Error::from);
    let found = read.and_then(|_| stream.finish()).and_then(|summary| is_what_it_should_be(&summary, layer));
    found.or_else(|error| blame(descriptor, blob, error))
}

/// What is in a blob of the store.
fn stream(layer: &Placed<'_>, blob: &File, limits: LimitArgs, progress: &Progress) -> Result<Stream> {
    let Placed { descriptor, diff_id, .. } = layer;
    // A position of its own: another place of the image may have the same blob.
    let source = File::open(format!("/proc/self/fd/{}", blob.as_raw_fd()));
    let source = source.with_context(|| format!("layer {}", descriptor.digest))?;
    let came = progress.add(descriptor.digest.as_str(), Some(descriptor.size));
    let known = content::known(blob, diff_id).unwrap_or_else(|| Known::Stored(descriptor.digest.clone()));
    Ok(Stream::start(source, Intake { came, ..Intake::of_the_store(known, limits.max_ratio) }))
}

fn is_what_it_should_be(summary: &Summary, layer: &Placed<'_>) -> Result<()> {
    let Summary { digest, diff_id, .. } = summary;
    if diff_id != layer.diff_id {
        bail!("unpacked it is {diff_id}, and the image says {}", layer.diff_id);
    }
    // One of the two was known before it was read.
    if *digest != layer.descriptor.digest {
        bail!("its digest is {digest}");
    }
    Ok(())
}

/// The error of a blob that was not as it should be. Only now it matters what of it is wrong.
fn blame<T>(descriptor: &Descriptor, blob: &File, error: anyhow::Error) -> Result<T> {
    let context = || format!("layer {}", descriptor.digest);
    let stored = digest_of(blob).with_context(context)?;
    if stored != descriptor.digest {
        bail!("layer {}: what is stored has the digest {stored}; import or fetch the image again", descriptor.digest);
    }
    Err(error).with_context(context)
}

/// The digest of what is stored, as it is now.
fn digest_of(blob: &File) -> Result<Digest> {
    Ok(Digest::of_all(File::open(format!("/proc/self/fd/{}", blob.as_raw_fd()))?)?)
}

/// Unpacks a layer into a directory of its own, whatever there is of it, to compare with it or to take its place. No limits: it was
/// let in once.
pub fn again(store: &Store, descriptor: &Descriptor, diff_id: &Digest) -> Result<Unpacked> {
    let blobs = HashMap::from([(&descriptor.digest, store.open_blob(&descriptor.digest)?)]);
    let layer = Placed { descriptor, diff_id, chain_id: diff_id.clone() };
    let limits = LimitArgs::NONE;
    Ok(unpack(store, &layer, &blobs, limits, &Progress::start(ProgressMode::None))?.0)
}

/// A layer's archive that was taken in.
#[derive(Debug)]
pub struct Received {
    /// What it was.
    pub summary: Summary,
    /// What of it could not be kept.
    pub left_out: LeftOut,
    /// Directories that it did not name.
    pub implied: Vec<Vec<u8>>,
}

/// Takes a layer's archive in, to its very end, and unpacks it beneath `root`.
pub fn receive(stream: Stream, root: BorrowedFd<'_>, limits: LimitArgs) -> Result<Received> {
    let mut archive = Archive::new(stream);
    let (left_out, implied) = extract::extract(&mut archive, root, limits)?;
    let mut stream = archive.into_input();
    if !stream.fill_buf()?.is_empty() {
        bail!("something follows the end of the archive");
    }
    implied::note(root, &implied);
    Ok(Received { summary: stream.finish()?, left_out, implied })
}

/// Says in one line what an unpacked layer has not got.
pub fn tell_left_out(what: &str, left_out: LeftOut) {
    let LeftOut { owners, devices, xattrs } = left_out;
    if left_out == LeftOut::default() {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let mut parts = Vec::new();
    for (count, one, many) in [
        (owners, "the owner of 1 entry", "the owners of # entries"),
        (devices, "1 device", "# devices"),
        (xattrs, "1 extended attribute", "# extended attributes"),
    ] {
        match count {
            0 => (),
            1 => parts.push(one.to_owned()),
            _ => parts.push(many.replace('#', &count.to_string())),
        }
    }
    exit::warn(
        "sheep-images",
        &format!(
            "{what}: {}could not be kept: {}",
            if root { "" } else { "as an unprivileged user, " },
            parts.join(", ")
        ),
    );
}

/// Says in one line what a tree that is made of unpacked layers has not got. For whom they were unpacked as an ordinary user,
/// that is said each time: of layers that were there it is not known any more.
pub fn tell_owners(what: &str, left_out: LeftOut) {
    if left_out == LeftOut::default() && !rustix::process::geteuid().is_root() {
        let note = "as an unprivileged user, the image's owners and devices are not kept: all is yours";
        return exit::warn("sheep-images", &format!("{what}: {note}"));
    }
    tell_left_out(what, left_out);
}
