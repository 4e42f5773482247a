//! An OCI layout: `oci-layout`, `index.json` and the blobs, which are stored as they came. In an archive each manifest comes before
//! what it names, and all documents before the layers, which come bottom first: who reads it once knows what each of them is.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sheep_overlay::exit;

use super::Wanted;
use super::members::{Checked, Members};
use crate::have::Have;
use crate::interrupt;
use crate::not_sent::{self, NotSent};
use crate::oci::{self, Descriptor, Digest, Index, Manifest, ManifestOrIndex};
use crate::place::NewDirectory;
use crate::regular;
use crate::scratch::Scratch;
use crate::store::{INDEX_DEPTH, Store, familiar};

/// Writes an archive of a layout. With `have`, layers that are in it are left out, and named in a member of the archive; where that leaves
/// out none, the archive is the same as without.
pub fn archive(store: &Store, wanted: &[Wanted], have: Option<&Have>, out: &mut dyn Write) -> Result<()> {
    let Blobs { documents, layers, .. } = Blobs::of(store, wanted)?;
    let (left, layers): (Vec<_>, Vec<_>) =
        layers.into_iter().partition(|(layer, _)| have.is_some_and(|have| have.has(layer)));
    let mut index = Index::empty();
    index.manifests = descriptors(wanted);
    let mut members = Members::new(out);
    members.document("oci-layout", &layout_file()?)?;
    members.document("index.json", &serde_json::to_vec(&index)?)?;
    if !left.is_empty() {
        let not_sent = NotSent::new(left.into_iter().map(|(layer, _)| layer));
        members.document(not_sent::MEMBER, &not_sent.to_bytes()?)?;
    }
    for dir in ["blobs/", "blobs/sha256/"] {
        members.directory(dir)?;
    }
    for (digest, file) in documents {
        let size = file.metadata()?.len();
        put(store, &mut members, &digest, size, file)?;
    }
    for (layer, file) in layers {
        let size = file.metadata()?.len();
        if size != layer.size {
            let path = store.blob(&layer.digest);
            bail!("{} is damaged: it has {size} bytes in the place of {}", path.display(), layer.size);
        }
        put(store, &mut members, &layer.digest, size, file)?;
    }
    members.finish()
}

fn put(store: &Store, members: &mut Members<'_>, digest: &Digest, size: u64, file: File) -> Result<()> {
    let mut content = Checked::new(file);
    members.file(&format!("blobs/sha256/{}", digest.hex()), size, &mut content)?;
    check(store, digest, content)
}

/// Makes a layout at `to`, or adds the images to the one that is there. Errors with busy (4) where something else is.
pub fn directory(store: &Store, wanted: &[Wanted], to: &Path) -> Result<()> {
    let blobs = Blobs::of(store, wanted)?.files();
    let is_file = |name: &str| to.join(name).is_file();
    if is_file("oci-layout") && is_file("index.json") {
        // A store's index is changed under its lock, with all that goes with that.
        if is_file(".lock") {
            let advice =
                "it is the store of a data directory; 'sheep-images export … | sheep-images --root DIR import NAME -'";
            return Err(exit::usage(format!("{}: {advice}", to.display())));
        }
        return add(store, wanted, blobs, to).with_context(|| to.display().to_string());
    }
    let new = NewDirectory::begin(to)?;
    let dir = new.path();
    let context = || dir.display().to_string();
    fs::create_dir_all(dir.join("blobs/sha256")).with_context(context)?;
    for (digest, file) in blobs {
        copy(store, &digest, file, &dir.join("blobs/sha256").join(digest.hex()))?;
    }
    let mut index = Index::empty();
    index.manifests = descriptors(wanted);
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?).with_context(context)?;
    fs::write(dir.join("oci-layout"), layout_file()?).with_context(context)?;
    // Others may read it as far as the umask says, as they may what another program makes here.
    let open = fs::metadata(dir.join("blobs")).with_context(context)?.permissions();
    fs::set_permissions(&dir, open).with_context(context)?;
    new.finish().map(drop)
}

/// Adds images to a layout that others read meanwhile: first the blobs, each whole, then the index. An image that has a name
/// already loses it, as it does with skopeo.
fn add(store: &Store, wanted: &[Wanted], blobs: Vec<(Digest, File)>, to: &Path) -> Result<()> {
    let version: Value = serde_json::from_slice(&fs::read(to.join("oci-layout"))?).context("oci-layout")?;
    if !oci::is_known_layout(&version) {
        bail!("oci-layout: this version is not known to this program");
    }
    let index_file = std::path::absolute(to.join("index.json"))?;
    let scratch = Scratch::beside(&index_file)?;
    let place = to.join("blobs/sha256");
    fs::create_dir_all(&place).context("blobs/sha256")?;
    let mut new = Vec::new();
    for (digest, file) in blobs {
        let there = fs::metadata(place.join(digest.hex()));
        // A size that is not right is of one who was killed while he wrote it.
        if there.is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.len() == there.len())) {
            continue;
        }
        copy(store, &digest, file, &scratch.path().join(digest.hex()))?;
        new.push(digest);
    }
    rustix::fs::syncfs(scratch.fd()).context("sync")?;
    let _commit = interrupt::commit();
    // Of several who add something at once, none takes back what another one added. Other tools take no lock.
    let dir = File::open(to)?;
    dir.lock()?;
    for digest in &new {
        fs::rename(scratch.path().join(digest.hex()), place.join(digest.hex())).with_context(|| digest.to_string())?;
    }
    File::open(&place).and_then(|dir| dir.sync_all()).context("sync blobs/sha256")?;
    let before = fs::read(&index_file).context("index.json")?;
    let mut index: Index = serde_json::from_slice(&before).context("index.json")?;
    for descriptor in descriptors(wanted) {
        let name = descriptor.ref_name().map(familiar);
        index.manifests.retain(|other| match &name {
            Some(name) => other.ref_name().map(familiar).as_ref() != Some(name),
            None => other.ref_name().is_some() || other.digest != descriptor.digest,
        });
        index.manifests.push(descriptor);
    }
    let written = scratch.path().join("index.json");
    let mode = fs::metadata(&index_file)?.permissions();
    let write = || -> io::Result<()> {
        let mut file = File::create(&written)?;
        file.write_all(&serde_json::to_vec(&index)?)?;
        file.set_permissions(mode)?;
        file.sync_all()?;
        fs::rename(&written, &index_file)?;
        dir.sync_all()
    };
    write().context("index.json")
}

/// All that the images need, in the order of an archive, each once.
#[derive(Default)]
struct Blobs {
    documents: Vec<(Digest, File)>,
    layers: Vec<(Descriptor, File)>,
    seen: HashSet<Digest>,
}

impl Blobs {
    fn of(store: &Store, wanted: &[Wanted]) -> Result<Self> {
        let mut blobs = Blobs::default();
        for one in wanted {
            blobs.add(store, wanted, &one.descriptor, 0).with_context(|| format!("image {}", one.descriptor.digest))?;
        }
        Ok(blobs)
    }

    fn add(&mut self, store: &Store, wanted: &[Wanted], descriptor: &Descriptor, depth: u32) -> Result<()> {
        // Of an image for several platforms, others may have stored only the one.
        let is_absent = depth > 0 && !store.blob(&descriptor.digest).exists();
        if is_absent || depth > INDEX_DEPTH || !self.seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let bytes = store.read_blob(descriptor)?;
        let parsed = oci::parse_manifest(descriptor, &bytes).with_context(|| descriptor.digest.to_string())?;
        self.documents.extend(open(store, wanted, &descriptor.digest)?.map(|file| (descriptor.digest.clone(), file)));
        match parsed {
            ManifestOrIndex::Index(index) => {
                index.manifests.iter().try_for_each(|inner| self.add(store, wanted, inner, depth + 1))
            }
            ManifestOrIndex::Manifest(Manifest { config, layers, .. }) => {
                if self.seen.insert(config.digest.clone()) {
                    self.documents.extend(open(store, wanted, &config.digest)?.map(|file| (config.digest, file)));
                }
                for layer in layers {
                    if self.seen.insert(layer.digest.clone()) {
                        self.layers.extend(open(store, wanted, &layer.digest)?.map(|file| (layer, file)));
                    }
                }
                Ok(())
            }
        }
    }

    /// Without what an archive needs to know of them.
    fn files(self) -> Vec<(Digest, File)> {
        let layers = self.layers.into_iter().map(|(layer, file)| (layer.digest, file));
        self.documents.into_iter().chain(layers).collect()
    }
}

/// Opens a blob; `None` where it is not there and no image of this machine's needs it.
fn open(store: &Store, wanted: &[Wanted], digest: &Digest) -> Result<Option<File>> {
    let path = store.blob(digest);
    match regular::open(None, &path).with_context(|| path.display().to_string())? {
        None if is_needed(wanted, digest) => bail!("{} is missing; import or fetch the image again", path.display()),
        found => Ok(found),
    }
}

/// Whether an image of this machine's platform has a blob as a layer.
fn is_needed(wanted: &[Wanted], digest: &Digest) -> bool {
    wanted.iter().any(|wanted| wanted.image.layers().any(|(layer, _)| layer.digest == *digest))
}

fn descriptors(wanted: &[Wanted]) -> Vec<Descriptor> {
    wanted.iter().map(|wanted| wanted.descriptor.clone()).collect()
}

fn layout_file() -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&oci::layout())?)
}

fn copy(store: &Store, digest: &Digest, file: File, to: &Path) -> Result<()> {
    let mut content = Checked::new(file);
    let mut copy = File::create_new(to).with_context(|| to.display().to_string())?;
    io::copy(&mut content, &mut copy).with_context(|| to.display().to_string())?;
    check(store, digest, content)
}

fn check(store: &Store, digest: &Digest, content: Checked) -> Result<()> {
    if content.digest() != *digest {
        bail!("{} is damaged: its content is not what its digest says", store.blob(digest).display());
    }
    Ok(())
}
