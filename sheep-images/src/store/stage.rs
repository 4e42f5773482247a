//! Putting an image into the store, and taking one out, so that a crash at any point leaves a whole store.
//!
//! Blobs are written in a scratch directory of `images/`, and linked into their place when all are there; then the index
//! is written; then the unpacked layer gets its place. Before the first link, or before the index loses an image, the
//! scratch directory gets a list of `candidates`: blobs and layers that nobody may need if the crash comes now. Who
//! clears up looks at the index to tell (`reap.rs`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sheep_overlay::diff::same_bytes;
use sheep_overlay::state::{self, Durability};

use super::{Store, content, set_name};
use crate::interrupt;
use crate::oci::{self, Descriptor, Digest, Manifest};
use crate::reference::Name;
use crate::scratch::Scratch;
use crate::stream::Summary;

/// The file in a stage that lists what may be left without use.
pub const CANDIDATES: &str = "candidates";

/// What a crash may leave without use.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Candidates {
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Unpacked layers, by diffID.
    pub layers: Vec<Digest>,
}

/// A place for blobs on their way into the store.
#[derive(Debug)]
pub struct Stage {
    scratch: Scratch,
    /// Nobody looked into the layers (see [`super::unproven`]).
    pub unproven: bool,
}

impl Stage {
    /// Makes an empty stage.
    pub fn new(store: &Store) -> Result<Self> {
        Ok(Stage { scratch: Scratch::new(&store.root.images())?, unproven: false })
    }

    /// Where a file of the stage is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Opens the file into which the layer's blob goes.
    pub fn layer(&self) -> Result<File> {
        self.create("layer")
    }

    /// Makes a file of the stage, for reading and writing.
    pub fn create(&self, name: &str) -> Result<File> {
        let path = self.file(name);
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        opened.with_context(|| path.display().to_string())
    }

    /// Makes a file of the stage that has no name any more.
    pub fn spool(&self) -> Result<File> {
        let file = self.create("spool")?;
        fs::remove_file(self.file("spool")).with_context(|| self.file("spool").display().to_string())?;
        Ok(file)
    }

    /// Writes a file of the stage whole.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.file(name);
        state::write_atomic(&path, bytes, Durability::Rebuildable).with_context(|| path.display().to_string())
    }

    /// Lists what a crash from here on may leave without use.
    pub fn set_candidates(&self, candidates: &Candidates) -> Result<()> {
        state::write_json(&self.file(CANDIDATES), candidates, Durability::Ordered)
    }

    /// Puts an image of one layer in the store: the layer's blob is in the stage, the layer itself in `unpacked`.
    /// Returns the image's descriptor, named.
    pub fn commit(
        self,
        store: &Store,
        name: &Name,
        layer: &Summary,
        unpacked: Scratch,
        config: &[u8],
    ) -> Result<Descriptor> {
        let media_type = format!("{}{}", oci::LAYER, layer.codec.media_suffix());
        let config_descriptor = Descriptor::new(oci::CONFIG, Digest::of(config), config.len() as u64);
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: Some(oci::MANIFEST.to_owned()),
            config: config_descriptor.clone(),
            layers: vec![Descriptor::new(&media_type, layer.digest.clone(), layer.size)],
        })?;
        let image = Descriptor::new(oci::MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        self.write("config", config)?;
        self.write("manifest", &manifest)?;
        content::note(&self.file("layer"), &layer.digest, &layer.diff_id);
        let blobs =
            [("layer", layer.digest.clone()), ("config", config_descriptor.digest), ("manifest", image.digest.clone())];
        let blobs = blobs.map(|(file, digest)| (file.to_owned(), digest));
        self.publish_image(store, Some(name), &image, blobs.into(), vec![(unpacked, layer.diff_id.clone())], Vec::new())
    }

    /// Puts an image in the store: its new blobs are files of the stage, its new layers are unpacked; the store must have
    /// those `reused` still. Without a name the image keeps those it has. Returns its descriptor, named.
    pub fn publish_image(
        self,
        store: &Store,
        name: Option<&Name>,
        image: &Descriptor,
        blobs: Vec<(String, Digest)>,
        layers: Vec<(Scratch, Digest)>,
        reused: Vec<Digest>,
    ) -> Result<Descriptor> {
        let named = self.publish_images(store, &[(name.cloned(), image.clone())], blobs, layers, reused)?;
        named.into_iter().next().context("an image that was put in the store")
    }

    /// The same for several images, each with its name: all of them, or none.
    pub fn publish_images(
        self,
        store: &Store,
        images: &[(Option<Name>, Descriptor)],
        blobs: Vec<(String, Digest)>,
        layers: Vec<(Scratch, Digest)>,
        reused: Vec<Digest>,
    ) -> Result<Vec<Descriptor>> {
        self.set_candidates(&Candidates {
            blobs: blobs.iter().map(|(_, digest)| digest.clone()).collect(),
            layers: layers.iter().map(|(_, diff_id)| diff_id.clone()).collect(),
        })?;
        // On the disk before anything points to them.
        for (file, _) in &blobs {
            let path = self.file(file);
            File::open(&path).and_then(|file| state::settle(&file)).with_context(|| path.display().to_string())?;
        }
        // What is there already was never read: it may be damaged. Ours was hashed a moment ago.
        let damaged: Vec<&str> = blobs
            .iter()
            .filter(|(file, digest)| differs(&self.file(file), &store.blob(digest)))
            .map(|(file, _)| file.as_str())
            .collect();
        let _commit = interrupt::commit();
        let _lock = store.lock()?;
        if let Some(gone) = reused.iter().find(|digest| !store.blob(digest).is_file()) {
            bail!("layer {gone} was removed meanwhile; run the same again");
        }
        let result = self.publish(store, images, &blobs, &damaged);
        match result {
            Ok(named) => {
                for (unpacked, diff_id) in layers {
                    store.place(unpacked, &diff_id)?;
                }
                Ok(named)
            }
            Err(error) => {
                // The error that led here matters more than one from undoing.
                let _ = super::reap::undo(store, &self.scratch);
                Err(error)
            }
        }
    }

    fn publish(
        &self,
        store: &Store,
        images: &[(Option<Name>, Descriptor)],
        blobs: &[(String, Digest)],
        damaged: &[&str],
    ) -> Result<Vec<Descriptor>> {
        let mut index = store.index()?;
        for (file, digest) in blobs {
            let place = store.blob(digest);
            match fs::hard_link(self.file(file), &place) {
                Ok(()) => (),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if damaged.contains(&file.as_str()) {
                        fs::rename(self.file(file), &place).with_context(|| place.display().to_string())?;
                    }
                }
                Err(e) => return Err(e).with_context(|| place.display().to_string()),
            }
        }
        let dir = store.blobs();
        File::open(&dir).and_then(|dir| dir.sync_all()).with_context(|| format!("sync {}", dir.display()))?;
        let mut named = Vec::with_capacity(images.len());
        for (name, image) in images {
            if self.unproven && !index.manifests.iter().any(|there| there.digest == image.digest) {
                store.mark_unproven(&image.digest)?;
            }
            match name {
                Some(name) => set_name(&mut index, image.clone(), name),
                None if index.manifests.iter().any(|there| there.digest == image.digest) => {}
                None => index.manifests.push(image.clone()),
            }
            let mut image = image.clone();
            image.set_ref_name(name.as_ref().map(Name::familiar).as_deref());
            named.push(image);
        }
        store.write_index(&index)?;
        Ok(named)
    }
}

/// Whether a blob is in its place and is not what it should be: as `good` is.
fn differs(good: &Path, place: &Path) -> bool {
    let Ok(there) = File::open(place) else { return false };
    let same = || -> Result<bool> {
        let good = File::open(good)?;
        let (ours, theirs) = (good.metadata()?, there.metadata()?);
        if (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()) {
            return Ok(true);
        }
        if ours.len() != theirs.len() {
            return Ok(false);
        }
        same_bytes(&good, &there, &mut Vec::new(), &mut Vec::new())
    };
    // What cannot be read is damaged.
    !same().unwrap_or(false)
}
