//! `push`: an image to a registry, byte for byte as the store has it: its digest stays.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde_json::Map;
use sheep_overlay::exit;

use crate::cli::Push;
use crate::oci::{self, Descriptor, Digest, ManifestOrIndex};
use crate::parallel;
use crate::progress::Progress;
use crate::reference::{Name, Remote};
use crate::registry;
use crate::store::{self, INDEX_DEPTH, LoadedImage, Store};

/// So many blobs go at once.
const AT_ONCE: usize = 4;

/// Runs the verb.
pub fn run(store: &Store, args: &Push) -> Result<()> {
    let what = || match &args.to {
        Some(to) => format!("push {} {to}", args.reference),
        None => format!("push {}", args.reference),
    };
    let image = push(store, args).with_context(what)?;
    store.document(&image)?.print("image", args.print.print.as_deref())
}

/// What goes out: blobs first, then what points to them, inner before outer.
#[derive(Default)]
struct Load {
    blobs: Vec<Descriptor>,
    documents: Vec<(Descriptor, Vec<u8>)>,
}

fn push(store: &Store, args: &Push) -> Result<LoadedImage> {
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
    for path in load.blobs.iter().filter_map(|blob| near.get(&blob.digest)) {
        repository.also_reads(path);
    }
    parallel::each_of(AT_ONCE, &load.blobs, |_, blob| {
        let came = progress.add(blob.digest.as_str(), Some(blob.size));
        repository
            .push_blob(blob, &store.blob(&blob.digest), near.get(&blob.digest).map(String::as_str), &came)
            .with_context(|| format!("blob {}", blob.digest))
    })?;
    drop(progress);
    let last = load.documents.len() - 1;
    for (at, (descriptor, bytes)) in load.documents.iter().enumerate() {
        let version = if at == last { to.tag() } else { descriptor.digest.as_str() };
        repository.push_manifest(descriptor, bytes, version)?;
    }
    Ok(image)
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
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                if !load.blobs.iter().any(|there| there.digest == blob.digest) {
                    load.blobs.push(blob.clone());
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
