//! The store: an OCI image layout with all images, and the directories into which layers are unpacked.
//!
//! ```text
//! images/oci-layout, index.json, blobs/sha256/<hex>     as skopeo, umoci and podman read and write it
//! …/blobs/sha256/<hex>                                 with `user.sheep.diffid` noted on it (see [`content`])
//! images/.lock                                          exclusive: to change the index, and what goes with that
//! images/.tmp-…/                                        blobs being written, and `candidates` (see [`stage`])
//! images/.partial/<hex>.<size>                         a blob that came whole of an image that did not (see [`partial`])
//! images/.partial-<hex>                                 what came of a blob before it broke off (see [`beginning`])
//! images/.unproven-<hex>                                an image whose layers nobody has looked into (see [`unproven`])
//! images/.damaged-<hex>                                 a blob that `verify --repair` took out of the way
//! layers/sha256/<hex of diffID>/                        an unpacked layer
//! layers/sha256/<hex of chainID>/                       one completed for the layers below it (see unpack/implied.rs)
//! layers/sha256/.tmp-…/                                 a layer being unpacked or deleted
//! layers/sha256/.unsynced-<hex>                         a layer that is not known to be on the disk yet (see [`settle`])
//! ```
//!
//! Locks are taken in this order: a layer's blob, `images/.lock`, the data directory's `lock`. Who unpacks a layer holds that of its blob;
//! an import that reuses a blob shares it, and `gc` leaves blobs that are locked: neither of the two waits for it.

pub mod beginning;
pub mod content;
pub mod partial;
mod reap;
pub mod settle;
pub mod stage;
pub mod unproven;
pub mod users;

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sheep_overlay::doc::{DocPath, Document};
use sheep_overlay::exit;
use sheep_overlay::state::{self, DataRoot, Durability, Lock};

use crate::doc::{Image, Layer, Platform};
use crate::interrupt;
use crate::oci::{self, Config, Descriptor, Digest, Index, Manifest, ManifestOrIndex};
use crate::reference::{Name, Reference};
use crate::regular;
use crate::scratch::Scratch;
use crate::unpack::implied;

/// Manifests and configurations are read whole; no real one is nearly as long.
pub const DOCUMENT_MAX: u64 = 8 << 20;
/// How blobs are called that are out of the way.
pub const DAMAGED: &str = ".damaged-";
/// An index may point to an index, but not for ever.
pub const INDEX_DEPTH: u32 = 4;

/// The store of a data directory.
#[derive(Debug)]
pub struct Store {
    root: DataRoot,
    /// A layer got its place that is not known to be on the disk.
    unsettled: AtomicBool,
}

/// An image with everything but its layers' contents.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// The image's name in familiar form; `None` where it has none.
    pub reference: Option<String>,
    /// The manifest's digest.
    pub digest: Digest,
    descriptor: Descriptor,
    manifest: Manifest,
    config: Config,
    config_value: Value,
}

impl LoadedImage {
    /// The layers, bottom first: where each is stored, and the digest of what is in it.
    pub fn layers(&self) -> impl Iterator<Item = (&Descriptor, &Digest)> {
        self.manifest.layers.iter().zip(&self.config.rootfs.diff_ids)
    }

    /// Its manifest and its configuration.
    pub fn documents(&self) -> [&Descriptor; 2] {
        [&self.descriptor, &self.manifest.config]
    }

    /// The configuration, whole.
    pub fn config(&self) -> &Value {
        &self.config_value
    }

    /// The digest of the configuration: what docker calls the image's id.
    pub fn config_digest(&self) -> &Digest {
        &self.manifest.config.digest
    }

    /// The chainIDs of the layers, bottom first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        oci::chain_ids(&self.config.rootfs.diff_ids)
    }

    /// When the image was made, as its configuration says.
    pub fn created(&self) -> Option<&str> {
        self.config.created.as_deref()
    }
}

/// What keeps blobs and unpacked layers in the store.
#[derive(Debug, Default)]
pub struct Uses {
    /// Blobs.
    pub blobs: BTreeSet<Digest>,
    /// Unpacked layers, by diffID or chainID.
    pub layers: BTreeSet<Digest>,
}

impl Store {
    /// Opens the store, made where it is not, and clears up what a crash left.
    pub fn open(data: Option<&Path>) -> Result<Self> {
        let store = Self::open_as_it_is(data)?;
        store.clear_up().context("clear up what a crash left")?;
        Ok(store)
    }

    /// Opens the store, made where it is not.
    pub fn open_as_it_is(data: Option<&Path>) -> Result<Self> {
        let store = Store { root: DataRoot::open(data)?, unsettled: AtomicBool::new(false) };
        let layout = store.root.images().join("oci-layout");
        match state::read_json::<Value>(&layout)? {
            Some(value) if oci::is_known_layout(&value) => (),
            Some(_) => bail!("{}: this layout version is not known to this program", layout.display()),
            None => store.create(&layout)?,
        }
        // Until it is unpacked again, such a layer is not there.
        store.delete_torn().context("delete a layer that a power cut may have torn")?;
        Ok(store)
    }

    fn create(&self, layout: &Path) -> Result<()> {
        for dir in [self.blobs(), self.layers()] {
            state::make_private_dir(&dir).with_context(|| dir.display().to_string())?;
        }
        let _lock = self.lock()?;
        // Make its file, so that from here on commands that fail leave the directory as it was.
        drop(self.root.lock_layers_for_use()?);
        if !self.index_file().exists() {
            self.write_index(&Index::empty())?;
        }
        state::write_json(layout, &oci::layout(), Durability::Synced)
    }

    /// The data directory.
    pub fn data(&self) -> &DataRoot {
        &self.root
    }

    /// The lock to be held while the index is changed, and what goes with that.
    pub fn lock(&self) -> Result<Lock> {
        Lock::exclusive(&self.root.images().join(".lock"))
    }

    fn index_file(&self) -> PathBuf {
        self.root.images().join("index.json")
    }

    /// The index of all images.
    pub fn index(&self) -> Result<Index> {
        let file = self.index_file();
        state::read_json(&file)?.with_context(|| format!("{} is missing; the store is damaged", file.display()))
    }

    /// Writes the index. The caller holds the lock.
    pub fn write_index(&self, index: &Index) -> Result<()> {
        state::write_json(&self.index_file(), index, Durability::Synced)
    }

    /// Where a blob is stored.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Where a blob is put that is not what its digest says.
    pub fn damaged_blob(&self, digest: &Digest) -> PathBuf {
        self.root.images().join(format!("{DAMAGED}{}", digest.hex()))
    }

    /// What is in a directory of the store under a digest: the blobs, or the layers. Other names are passed over.
    pub fn listed(&self, dir: &Path) -> Result<BTreeSet<Digest>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let name = entry.with_context(|| dir.display().to_string())?.file_name();
            found.extend(Digest::parse(&format!("sha256:{}", name.to_string_lossy())).ok());
        }
        Ok(found)
    }

    /// Where the blobs are.
    pub fn blobs(&self) -> PathBuf {
        self.root.images().join("blobs/sha256")
    }

    /// Where layers are unpacked.
    pub fn layers(&self) -> PathBuf {
        self.root.layers()
    }

    /// The directory of an unpacked layer, whether it is there or not.
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.layers().join(diff_id.hex())
    }

    /// Where a layer is unpacked that is to lie on those `below` (bottom first): completed for that chain, or as it is for
    /// all; `None` where it is not.
    pub fn layer_path(&self, diff_id: &Digest, chain_id: &Digest, below: &[PathBuf]) -> Result<Option<PathBuf>> {
        let (of_chain, of_all) = (self.layer_dir(chain_id), self.layer_dir(diff_id));
        if of_chain.is_dir() {
            return Ok(Some(of_chain));
        }
        Ok(if of_all.is_dir() && implied::fits(&of_all, below)? { Some(of_all) } else { None })
    }

    /// Where an image's layers are unpacked, bottom first, each looked for when it is asked for; `None` for one that is not.
    pub fn layer_paths<'a>(&'a self, image: &'a LoadedImage) -> impl Iterator<Item = Result<Option<PathBuf>>> + 'a {
        let mut below = Vec::new();
        let unproven = self.is_unproven(&image.digest);
        image.layers().zip(image.chain_ids()).map(move |((_, diff_id), chain_id)| {
            if unproven {
                return Ok(None);
            }
            let path = self.layer_path(diff_id, &chain_id, &below)?;
            below.extend(path.clone());
            Ok(path)
        })
    }

    /// The directories of an image's layers, bottom first. Errors where one of them is not unpacked.
    pub fn unpacked(&self, image: &LoadedImage) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for ((_, diff_id), path) in image.layers().zip(self.layer_paths(image)) {
            let Some(path) = path? else {
                let name = image.reference.as_deref().unwrap_or(image.digest.as_str());
                bail!("layer {diff_id} is not unpacked; 'sheep-images unpack {name}' first");
            };
            paths.push(path);
        }
        Ok(paths)
    }

    /// Deletes a blob; absent is fine. The caller holds the lock, and knows that no image needs it.
    pub fn delete_blob(&self, digest: &Digest) -> Result<()> {
        // First: one that stays without its image would be nobody's.
        self.forget_unproven(digest)?;
        let path = self.blob(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("delete {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a blob is in its place: a file of the size that it should have.
    pub fn has(&self, blob: &Descriptor) -> bool {
        is_whole(&self.blob(&blob.digest), blob.size)
    }

    /// Opens a blob, which other tools may have put there. Errors where it is missing, or no regular file.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob(digest);
        let opened = regular::open(None, &path).and_then(|file| file.context("it is missing"));
        opened.with_context(|| path.display().to_string())
    }

    /// Reads a small blob whole, and checks that it is what its digest says.
    pub fn read_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let path = self.blob(&descriptor.digest);
        if descriptor.size > DOCUMENT_MAX {
            bail!("blob {}: {} bytes are too many for a document", descriptor.digest, descriptor.size);
        }
        // One more than it has, so that its end is seen without another look.
        let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size + 1)?);
        let read = self.open_blob(&descriptor.digest)?.take(DOCUMENT_MAX).read_to_end(&mut bytes);
        read.with_context(|| path.display().to_string())?;
        if Digest::of(&bytes) != descriptor.digest {
            bail!(
                "{} is corrupt: its content is not what its digest says; import or fetch the image again",
                path.display()
            );
        }
        if bytes.len() as u64 != descriptor.size {
            bail!("{}: it has {} bytes, and what points to it says {}", path.display(), bytes.len(), descriptor.size);
        }
        Ok(bytes)
    }

    /// The manifest of an image as it is stored.
    pub fn manifest_bytes(&self, image: &LoadedImage) -> Result<Vec<u8>> {
        self.read_blob(&image.descriptor)
    }

    /// The configuration of an image as it is stored.
    pub fn config_bytes(&self, image: &LoadedImage) -> Result<Vec<u8>> {
        self.read_blob(&image.manifest.config)
    }

    /// The image that a descriptor of the index leads to; of an image for several platforms, the one for this host.
    pub fn load(&self, descriptor: &Descriptor) -> Result<LoadedImage> {
        let mut chosen = descriptor.clone();
        for _ in 0..INDEX_DEPTH {
            let place = || self.blob(&chosen.digest).display().to_string();
            let bytes = self.read_blob(&chosen)?;
            match oci::parse_manifest(&chosen, &bytes).with_context(place)? {
                ManifestOrIndex::Index(index) => {
                    let host = oci::host_platform();
                    chosen = choose(&index, &host).cloned().with_context(|| {
                        let Platform { os, architecture } = host;
                        format!("{}: there is no image for {os}/{architecture} in it", place())
                    })?;
                }
                ManifestOrIndex::Manifest(manifest) => {
                    let config_place = self.blob(&manifest.config.digest);
                    let bytes = self.read_blob(&manifest.config)?;
                    let config_value: Value =
                        serde_json::from_slice(&bytes).with_context(|| config_place.display().to_string())?;
                    let config = parse::<Config>(&bytes)
                        .with_context(|| format!("{}: not an image configuration", config_place.display()))?;
                    if config.rootfs.diff_ids.len() != manifest.layers.len() {
                        bail!(
                            "{}: {} layers, but the configuration names {}",
                            place(),
                            manifest.layers.len(),
                            config.rootfs.diff_ids.len()
                        );
                    }
                    let reference = descriptor.ref_name().map(familiar);
                    let digest = chosen.digest.clone();
                    return Ok(LoadedImage { reference, digest, descriptor: chosen, manifest, config, config_value });
                }
            }
        }
        bail!("blob {}: indexes within indexes, {INDEX_DEPTH} deep", descriptor.digest)
    }

    /// Digest and diffID of each layer of the images there are that is unpacked where it lies in one, as far as they can be read.
    pub fn known_layers(&self) -> Result<HashSet<(Digest, Digest)>> {
        let mut known = HashSet::new();
        for image in self.index()?.manifests.iter().filter_map(|descriptor| self.load(descriptor).ok()) {
            for ((layer, diff_id), path) in image.layers().zip(self.layer_paths(&image)) {
                if path?.is_none() {
                    break;
                }
                known.insert((layer.digest.clone(), diff_id.clone()));
            }
        }
        Ok(known)
    }

    /// The image that a user names. Errors with not found (3).
    pub fn find(&self, reference: &str) -> Result<LoadedImage> {
        let index = self.index()?;
        let at = position(&index, reference)?;
        self.load(&index.manifests[at])
    }

    /// The document of an image.
    pub fn document(&self, image: &LoadedImage) -> Result<Document> {
        let mut layers = Vec::new();
        for ((descriptor, diff_id), path) in image.layers().zip(self.layer_paths(image)) {
            layers.push(Layer {
                digest: descriptor.digest.to_string(),
                diff_id: diff_id.to_string(),
                media_type: descriptor.media_type.clone(),
                size: descriptor.size,
                path: path?.map(DocPath),
            });
        }
        let mut document = Document::default();
        document.set(
            "image",
            &Image {
                reference: image.reference.clone(),
                digest: image.digest.to_string(),
                platform: image.config.platform.clone(),
                config: image.config_value.clone(),
                layers,
                path: None,
            },
        )?;
        Ok(document)
    }

    /// Puts a freshly unpacked layer in its place, unless the image was removed meanwhile; then it is deleted, and that
    /// is an error.
    pub fn keep_layer(&self, scratch: Scratch, blob: &File, layer: &Descriptor, place: &Digest) -> Result<()> {
        let _commit = interrupt::commit();
        let _lock = self.lock()?;
        let inode = |m: fs::Metadata| (m.dev(), m.ino());
        let ours = blob.metadata().map(inode)?;
        if fs::metadata(self.blob(&layer.digest)).map(inode).ok() != Some(ours) {
            return Err(exit::not_found("the image was removed meanwhile"));
        }
        self.place(scratch, place)
    }

    /// What the images of an index need. Where an image is damaged that cannot be told, and is an error.
    pub fn uses(&self, manifests: &[Descriptor]) -> Result<Uses> {
        let mut uses = Uses::default();
        for descriptor in manifests {
            self.add_uses(descriptor, &mut uses, false, 0)?;
        }
        Ok(uses)
    }

    /// What one image needs, as far as it can be read: for removing it.
    pub fn uses_as_far_as_readable(&self, descriptor: &Descriptor) -> Result<Uses> {
        let mut uses = Uses::default();
        self.add_uses(descriptor, &mut uses, true, 0)?;
        Ok(uses)
    }

    fn add_uses(&self, descriptor: &Descriptor, uses: &mut Uses, lenient: bool, depth: u32) -> Result<()> {
        // Of an image for several platforms, other tools store only the one they need.
        if depth > 0 && !self.blob(&descriptor.digest).exists() {
            return Ok(());
        }
        if depth > INDEX_DEPTH || !uses.blobs.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let parsed = self.read_blob(descriptor).and_then(|bytes| oci::parse_manifest(descriptor, &bytes));
        match parsed {
            Ok(ManifestOrIndex::Index(index)) => {
                for inner in &index.manifests {
                    self.add_uses(inner, uses, lenient, depth + 1)?;
                }
            }
            Ok(ManifestOrIndex::Manifest(manifest)) => {
                uses.blobs.insert(manifest.config.digest.clone());
                uses.blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
                match self.read_blob(&manifest.config).and_then(|bytes| parse::<Config>(&bytes)) {
                    Ok(config) => {
                        uses.layers.extend(oci::chain_ids(&config.rootfs.diff_ids));
                        uses.layers.extend(config.rootfs.diff_ids);
                    }
                    Err(_) if lenient => (),
                    Err(e) => return Err(e).with_context(|| format!("image {}", descriptor.digest)),
                }
            }
            Err(_) if lenient => (),
            Err(e) => return Err(e).with_context(|| format!("image {}", descriptor.digest)),
        }
        Ok(())
    }
}

/// Where in the index the image is that a user names. Errors with not found (3), or usage (2) where a prefix is not
/// unique.
pub fn position(index: &Index, text: &str) -> Result<usize> {
    let by_name = |name: &Name| {
        let familiar_name = name.familiar();
        index.manifests.iter().position(|d| d.ref_name().map(familiar).as_deref() == Some(&familiar_name))
    };
    let by_digest = |digest: &Digest| index.manifests.iter().position(|d| d.digest == *digest);
    let found = match Reference::parse(text)? {
        Reference::Name(name) => by_name(&name),
        Reference::Digest(digest) => by_digest(&digest),
        Reference::Prefix { hex, name } => match name.as_ref().and_then(by_name) {
            Some(at) => Some(at),
            None => {
                let digests: BTreeSet<&Digest> =
                    index.manifests.iter().map(|d| &d.digest).filter(|d| d.hex().starts_with(&hex)).collect();
                if digests.len() > 1 {
                    return Err(exit::usage(format!("{} images have digests that begin with {hex}", digests.len())));
                }
                digests.first().and_then(|digest| by_digest(digest))
            }
        },
    };
    found.ok_or_else(|| exit::not_found("no such image; 'sheep-images ls' shows what there is"))
}

/// Gives an image a name in the index. An image that had it keeps its digest only; the image's nameless entry becomes
/// this one.
pub fn set_name(index: &mut Index, image: Descriptor, name: &Name) {
    let name = name.familiar();
    let mut image = image;
    image.set_ref_name(Some(&name));
    let is_other = |d: &Descriptor| d.digest != image.digest;
    let mut manifests: Vec<Descriptor> = Vec::with_capacity(index.manifests.len() + 1);
    for mut descriptor in std::mem::take(&mut index.manifests) {
        if descriptor.ref_name().map(familiar).as_deref() == Some(&name) {
            descriptor.set_ref_name(None);
        }
        manifests.push(descriptor);
    }
    manifests.retain(|d| is_other(d) || d.ref_name().is_some());
    manifests.push(image);
    // A nameless entry says only that the image is there; one that has a name says that, too.
    let named: BTreeSet<Digest> =
        manifests.iter().filter(|d| d.ref_name().is_some()).map(|d| d.digest.clone()).collect();
    let mut nameless = BTreeSet::new();
    manifests.retain(|d| d.ref_name().is_some() || (!named.contains(&d.digest) && nameless.insert(d.digest.clone())));
    index.manifests = manifests;
}

/// A name as another tool may have written it, in familiar form; one that is no name of ours as it stands.
pub fn familiar(ref_name: &str) -> String {
    Name::parse(ref_name).map_or_else(|_| ref_name.to_owned(), |name| name.familiar())
}

/// Whether there is a file of this size.
pub fn is_whole(path: &Path, size: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// Of an index for several platforms, the image for one.
pub fn choose<'a>(index: &'a Index, host: &Platform) -> Option<&'a Descriptor> {
    let is = |d: &Descriptor, key: &str, want: &str| {
        d.platform.as_ref().and_then(|p| p.get(key)).and_then(Value::as_str) == Some(want)
    };
    let fits = |d: &&Descriptor| is(d, "os", &host.os) && is(d, "architecture", &host.architecture);
    // An index of one, without a platform, leaves nothing to choose.
    index.manifests.iter().find(fits).or(match &index.manifests[..] {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digit: &str) -> Descriptor {
        Descriptor::new(oci::MANIFEST, Digest::parse(&format!("sha256:{}", digit.repeat(64))).unwrap(), 1)
    }

    fn names(index: &Index) -> Vec<(String, String)> {
        let short = |d: &Descriptor| d.digest.hex()[..1].to_owned();
        index.manifests.iter().map(|d| (short(d), d.ref_name().unwrap_or("-").to_owned())).collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn a_name_goes_from_one_image_to_another() {
        let name = |text| Name::parse(text).unwrap();
        let mut index = Index::empty();
        set_name(&mut index, image("a"), &name("x"));
        set_name(&mut index, image("a"), &name("x"));
        assert_eq!(names(&index), pairs(&[("a", "x:latest")]));
        set_name(&mut index, image("b"), &name("x"));
        assert_eq!(names(&index), pairs(&[("a", "-"), ("b", "x:latest")]));
        set_name(&mut index, image("b"), &name("y"));
        assert_eq!(names(&index), pairs(&[("a", "-"), ("b", "x:latest"), ("b", "y:latest")]));
        set_name(&mut index, image("a"), &name("y"));
        assert_eq!(names(&index), pairs(&[("b", "x:latest"), ("a", "y:latest")]));
        // As skopeo writes it.
        let mut foreign = image("c");
        foreign.set_ref_name(Some("y"));
        index.manifests = vec![foreign];
        assert_eq!(position(&index, "y:latest").unwrap(), 0);
        set_name(&mut index, image("a"), &name("y"));
        assert_eq!(names(&index), pairs(&[("c", "-"), ("a", "y:latest")]));
    }

    #[test]
    fn lookup() {
        let mut index = Index::empty();
        set_name(&mut index, image("a"), &Name::parse("x").unwrap());
        set_name(&mut index, image("b"), &Name::parse("a").unwrap());
        assert_eq!(position(&index, "x").unwrap(), 0);
        assert_eq!(position(&index, "docker.io/library/x:latest").unwrap(), 0);
        assert_eq!(position(&index, "a").unwrap(), 1, "a name comes before a prefix");
        assert_eq!(position(&index, "aaa").unwrap(), 0);
        assert_eq!(position(&index, &format!("sha256:{}", "b".repeat(64))).unwrap(), 1);
        for absent in ["nosuch", "c", "x:v2", &"c".repeat(64)] {
            assert_eq!(exit::kind(&position(&index, absent).unwrap_err()), Some(exit::Kind::NotFound), "{absent}");
        }
    }
}
