//! An OCI layout: `oci-layout`, `index.json` and the blobs, which are stored as they came. In an archive they are in the order
//! of their digests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheep_overlay::exit;

use super::Wanted;
use super::members::{Checked, Members};
use crate::interrupt;
use crate::oci::{Descriptor, Digest, Index};
use crate::place::NewDirectory;
use crate::regular;
use crate::scratch::Scratch;
use crate::store::{Store, familiar};

/// Writes an archive of a layout.
pub fn archive(store: &Store, wanted: &[Wanted], out: &mut dyn Write) -> Result<()> {
    let blobs = blobs(store, wanted)?;
    let mut index = Index::empty();
    index.manifests = descriptors(wanted);
    let mut members = Members::new(out);
    members.document("oci-layout", &layout_file()?)?;
    members.document("index.json", &serde_json::to_vec(&index)?)?;
    for dir in ["blobs/", "blobs/sha256/"] {
        members.directory(dir)?;
    }
    for (digest, file) in blobs {
        let size = file.metadata()?.len();
        let mut content = Checked::new(file);
        members.file(&format!("blobs/sha256/{}", digest.hex()), size, &mut content)?;
        check(store, &digest, content)?;
    }
    members.finish()
}

/// Makes a layout at `to`, or adds the images to the one that is there. Errors with busy (4) where something else is.
pub fn directory(store: &Store, wanted: &[Wanted], to: &Path) -> Result<()> {
    let blobs = blobs(store, wanted)?;
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
fn add(store: &Store, wanted: &[Wanted], blobs: BTreeMap<Digest, File>, to: &Path) -> Result<()> {
    let version: Value = serde_json::from_slice(&fs::read(to.join("oci-layout"))?).context("oci-layout")?;
    if version.get("imageLayoutVersion").and_then(Value::as_str) != Some("1.0.0") {
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

/// The files of all that the images need.
fn blobs(store: &Store, wanted: &[Wanted]) -> Result<BTreeMap<Digest, File>> {
    let descriptors: Vec<Descriptor> = wanted.iter().map(|wanted| wanted.descriptor.clone()).collect();
    let mut files = BTreeMap::new();
    for digest in store.uses(&descriptors)?.blobs {
        let path = store.blob(&digest);
        match regular::open(None, &path).with_context(|| path.display().to_string())? {
            Some(file) => drop(files.insert(digest, file)),
            // Of an image for several platforms, others may have stored only the one.
            None if !is_needed(wanted, &digest) => {}
            None => bail!("{} is missing; import or fetch the image again", path.display()),
        }
    }
    Ok(files)
}

/// Whether an image of this machine's platform has a blob as a layer.
fn is_needed(wanted: &[Wanted], digest: &Digest) -> bool {
    wanted.iter().any(|wanted| wanted.image.layers().any(|(layer, _)| layer.digest == *digest))
}

fn descriptors(wanted: &[Wanted]) -> Vec<Descriptor> {
    wanted.iter().map(|wanted| wanted.descriptor.clone()).collect()
}

fn layout_file() -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?)
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
