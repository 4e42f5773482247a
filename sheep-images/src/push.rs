//! `push`: an image to a registry, byte for byte as the store has it: its digest stays. With `--compress` its layers are compressed
//! anew on their way, and only they change, and what names them.

mod compress;

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Map;
use sheep_overlay::doc::Document;
use sheep_overlay::exit;

use crate::cli::Push;
use crate::doc::Image;
use crate::incoming;
use crate::oci::{self, Descriptor, Digest, Manifest, ManifestOrIndex};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::{Name, Remote};
use crate::registry;
use crate::store::stage::Stage;
use crate::store::{self, INDEX_DEPTH, LoadedImage, Store};
use compress::{Changed, How};

/// So many blobs go at once.
const AT_ONCE: usize = 4;

/// Runs the verb.
pub fn run(store: &Store, args: &Push) -> Result<()> {
    let what = || match &args.to {
        Some(to) => format!("push {} {to}", args.reference),
        None => format!("push {}", args.reference),
    };
    push(store, args).with_context(what)?.print("image", args.print.print.as_deref())
}

/// What goes out: blobs first, then what points to them, inner before outer.
#[derive(Default)]
struct Load {
    blobs: Vec<Blob>,
    documents: Vec<(Descriptor, Vec<u8>)>,
}

struct Blob {
    descriptor: Descriptor,
    /// Of a layer that may be compressed anew, the digest of what is in it.
    diff_id: Option<Digest>,
}

fn push(store: &Store, args: &Push) -> Result<Document> {
    let how = How::of(args)?;
    let image = store.find(&args.reference)?;
    let to = target(args, &image)?;
    let index = store.index()?;
    let top = index.manifests[store::position(&index, &args.reference)?].clone();
    let mut load = Load::default();
    gather(store, &top, &mut load, 0)?;
    let client = registry::client(&args.registry)?;
    let repository = registry::repository(&client, &to, &args.registry, "pull,push");
    let progress = Progress::start(args.progress.progress);
    let near = neighbours(store, &to, &index.manifests);
    for path in load.blobs.iter().filter_map(|blob| near.get(&blob.descriptor.digest)) {
        repository.also_reads(path);
    }
    let stage = how.map(|_| Stage::new(store)).transpose()?;
    let packed = parallel::each_of(AT_ONCE, &load.blobs, |_, Blob { descriptor, diff_id }| {
        let digest = &descriptor.digest;
        let send = || -> Result<Option<Descriptor>> {
            if let (Some(how), Some(stage), Some(diff_id)) = (how, &stage, diff_id)
                && let Some((file, digest, size)) = compress::layer(store, stage, descriptor, diff_id, how, &progress)?
            {
                let packed = Descriptor::new("", digest, size);
                let came = progress.add(packed.digest.as_str(), Some(size));
                repository.push_blob(&packed, &file, None, &came)?;
                // Not more of them at a time than are sent at a time.
                fs::remove_file(&file).with_context(|| file.display().to_string())?;
                return Ok(Some(packed));
            }
            let came = progress.add(digest.as_str(), Some(descriptor.size));
            repository.push_blob(descriptor, &store.blob(digest), near.get(digest).map(String::as_str), &came)?;
            Ok(None)
        };
        send().with_context(|| format!("blob {digest}"))
    })?;
    drop(progress);
    let mut changed = Changed::default();
    for (blob, packed) in load.blobs.iter().zip(packed) {
        if let Some(packed) = packed {
            changed.add_layer(&blob.descriptor.digest, packed.digest, packed.size);
        }
    }
    if let Some(how) = how {
        for document in &mut load.documents {
            changed.apply(document, how)?;
        }
    }
    let last = load.documents.len() - 1;
    for (at, (descriptor, bytes)) in load.documents.iter().enumerate() {
        let version = if at == last { to.tag() } else { descriptor.digest.as_str() };
        repository.push_manifest(descriptor, bytes, version)?;
    }
    pushed(store, &image, &load, &changed)
}

/// The document of the image as the registry has it.
fn pushed(store: &Store, image: &LoadedImage, load: &Load, changed: &Changed) -> Result<Document> {
    let mut document = store.document(image)?;
    let digest = changed.now(&image.digest);
    if *digest == image.digest {
        return Ok(document);
    }
    let manifest = load.documents.iter().find(|(descriptor, _)| descriptor.digest == *digest);
    let (_, bytes) = manifest.context("an image that was pushed")?;
    let manifest: Manifest = serde_json::from_slice(bytes)?;
    let mut shown: Image = document.require("image", "'sheep-images push'")?;
    shown.digest = digest.to_string();
    for (layer, there) in shown.layers.iter_mut().zip(manifest.layers) {
        (layer.digest, layer.media_type, layer.size) = (there.digest.to_string(), there.media_type, there.size);
    }
    document.set("image", &shown)?;
    Ok(document)
}

/// Where it goes: where it is said, or where its own name leads.
fn target(args: &Push, image: &LoadedImage) -> Result<Name> {
    let named = match &args.to {
        Some(to) => to,
        None => {
            image.reference.as_ref().ok_or_else(|| exit::usage("it has no name; say where: push REF REGISTRY/NAME"))?
        }
    };
    let remote = Remote::parse(named)?;
    if remote.digest.is_some() {
        return Err(exit::usage(format!("{named}: it goes there by a tag; its digest it has")));
    }
    if remote.name.is_official() {
        return Err(exit::usage(format!(
            "{named} is a name of no registry of yours; say where: push {} REGISTRY/NAME",
            args.reference
        )));
    }
    Ok(remote.name)
}

/// All that belongs to an image: of an index all that it lists, and all of that must be there.
fn gather(store: &Store, descriptor: &Descriptor, load: &mut Load, depth: u32) -> Result<()> {
    if depth > INDEX_DEPTH {
        bail!("indexes within indexes, {INDEX_DEPTH} deep");
    }
    let bytes = store.read_blob(descriptor)?;
    let mut descriptor = Descriptor { annotations: None, platform: None, rest: Map::new(), ..descriptor.clone() };
    let own = match oci::parse_manifest(&descriptor, &bytes).with_context(|| descriptor.digest.to_string())? {
        ManifestOrIndex::Index(index) => {
            for inner in &index.manifests {
                if !store.blob(&inner.digest).is_file() {
                    bail!(
                        "it is one for several platforms, and the store has not all of them ({} is missing); push the one by its digest",
                        inner.digest
                    );
                }
                gather(store, inner, load, depth + 1)?;
            }
            index.media_type.unwrap_or_else(|| oci::INDEX.to_owned())
        }
        ManifestOrIndex::Manifest(manifest) => {
            let diff_ids = diff_ids(store, &manifest);
            let layers = manifest.layers.iter().zip(diff_ids.into_iter().map(Some).chain(std::iter::repeat(None)));
            for (blob, diff_id) in layers.chain([(&manifest.config, None)]) {
                if !load.blobs.iter().any(|there| there.descriptor.digest == blob.digest) {
                    let diff_id = diff_id.filter(|_| compress::is_layer(&blob.media_type));
                    load.blobs.push(Blob { descriptor: blob.clone(), diff_id });
                }
            }
            manifest.media_type.unwrap_or_else(|| oci::MANIFEST.to_owned())
        }
    };
    if descriptor.media_type.is_empty() {
        descriptor.media_type = own;
    }
    if !load.documents.iter().any(|(there, _)| there.digest == descriptor.digest) {
        load.documents.push((descriptor, bytes));
    }
    Ok(())
}

/// What is in the layers of an image; nothing of what is none, and has no such configuration.
fn diff_ids(store: &Store, manifest: &Manifest) -> Vec<Digest> {
    let config = store.read_blob(&manifest.config).ok();
    config.and_then(|bytes| incoming::diff_ids(&bytes, manifest.layers.len()).ok()).unwrap_or_default()
}

/// Which other repository of the same registry has a blob, as far as the names of the images here tell.
fn neighbours(store: &Store, to: &Name, manifests: &[Descriptor]) -> HashMap<Digest, String> {
    let mut near = HashMap::new();
    for descriptor in manifests {
        let Some(Ok(name)) = descriptor.ref_name().map(Name::parse) else { continue };
        if name.domain() != to.domain() || name.path() == to.path() {
            continue;
        }
        // What is damaged has nothing to offer.
        let Ok(uses) = store.uses(std::slice::from_ref(descriptor)) else { continue };
        near.extend(uses.blobs.into_iter().map(|blob| (blob, name.path().to_owned())));
    }
    near
}
