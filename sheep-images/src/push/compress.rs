//! `push --compress`: layers compressed in another way than they are stored, and the manifests and indexes that name them.
//!
//! What is in a layer stays, so its diffID does, and the image's configuration; the digests of the archives, of the manifest and of an
//! index change. Documents are changed in those places only: what this program does not know in them stays as it is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use sheep_overlay::exit;

use crate::cli::{Compress, LimitArgs, Push};
use crate::codec::{self, Codec};
use crate::oci::{self, Descriptor, Digest};
use crate::progress::Progress;
use crate::store::Store;
use crate::store::stage::Stage;
use crate::stream::{Intake, Known, Stream};

/// Docker's media type of a configuration, and what its types of layers begin with.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// What OCI calls a foreign layer.
const FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// Remarks on places in a layer's archive, which are others after this: those of zstd:chunked and of eStargz.
const OF_PLACES: [&str; 3] =
    ["io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/", "io.containers.estargz."];

/// How layers are to be compressed.
#[derive(Debug, Clone, Copy)]
pub struct How {
    codec: Codec,
    level: i32,
}

impl How {
    /// What the options ask for. Errors with usage (2) where there is no such level.
    pub fn of(args: &Push) -> Result<Option<Self>> {
        let Some(format) = args.compress else { return Ok(None) };
        // The levels of gzip(1) and zstd(1), and what they take where none is said. More, zstd has only with --ultra: that asks of
        // everyone who reads it for more memory than most allow.
        let (codec, name, default, most) = match format {
            Compress::Gzip => (Codec::Gzip, "gzip", 6, 9),
            Compress::Zstd => (Codec::Zstd, "zstd", 3, 19),
        };
        let level = args.level.unwrap_or(default);
        if !(1..=most).contains(&level) {
            return Err(exit::usage(format!("--level {level}: {name} has levels from 1 to {most}")));
        }
        Ok(Some(How { codec, level }))
    }
}

/// Whether it is one of the layers that are compressed anew: foreign ones are had elsewhere, and other things that manifests name
/// are no archives.
pub fn is_layer(media_type: &str) -> bool {
    let rest = media_type.strip_prefix(oci::LAYER).or_else(|| media_type.strip_prefix(DOCKER_LAYER));
    matches!(rest, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

/// Compresses a layer into a file of the stage; `None` where it is compressed so already. Gives the file, and what it has. Errors
/// where the stored one is not what it should be.
pub fn layer(
    store: &Store,
    stage: &Stage,
    layer: &Descriptor,
    diff_id: &Digest,
    how: How,
    progress: &Progress,
) -> Result<Option<(PathBuf, Digest, u64)>> {
    let mut source = store.open_blob(&layer.digest)?;
    let mut head = Vec::new();
    (&source).take(codec::HEAD as u64).read_to_end(&mut head)?;
    if Codec::detect(&head) == how.codec {
        return Ok(None);
    }
    source.rewind()?;
    let came = progress.add(layer.digest.as_str(), Some(layer.size));
    let mut stream =
        Stream::start(source, Intake { came, ..Intake::of_the_store(Known::Nothing, LimitArgs::NONE.max_ratio) });
    let name = layer.digest.hex();
    let to = Hashed { file: BufWriter::with_capacity(1 << 20, stage.create(name)?), hash: Sha256::new(), size: 0 };
    let place = || format!("compress into {}", stage.file(name).display());
    let mut to = how.codec.encode(how.level, &mut stream, to).with_context(place)?;
    to.flush().with_context(place)?;
    let found = stream.finish()?;
    if found.digest != layer.digest || found.size != layer.size || found.diff_id != *diff_id {
        bail!(
            "{} is not what its digest, or the image's configuration, says; 'sheep-images verify' says more",
            store.blob(&layer.digest).display()
        );
    }
    Ok(Some((stage.file(name), Digest::from_hash(&to.hash.finalize()), to.size)))
}

/// A file, with the hash and the size of what is written to it.
struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What stands in the place of blobs that changed, by their digests. A layer has no media type here: that is for who names it.
#[derive(Debug, Default)]
pub struct Changed(HashMap<Digest, (Digest, u64, String)>);

impl Changed {
    /// A layer is another archive now.
    pub fn add_layer(&mut self, old: &Digest, new: Digest, size: u64) {
        self.0.insert(old.clone(), (new, size, String::new()));
    }

    /// The digest that stands in the place of one.
    pub fn now<'a>(&'a self, digest: &'a Digest) -> &'a Digest {
        self.0.get(digest).map_or(digest, |(new, ..)| new)
    }

    /// Changes a manifest or an index that names something that changed; it has changed itself then. Documents come inner before outer.
    pub fn apply(&mut self, document: &mut (Descriptor, Vec<u8>), how: How) -> Result<()> {
        let (descriptor, bytes) = document;
        let mut value: Value = serde_json::from_slice(bytes)?;
        let before = value.clone();
        let is_manifest = matches!(&*descriptor.media_type, oci::MANIFEST | oci::DOCKER_MANIFEST);
        if is_manifest {
            self.change_manifest(&mut value, how)
        } else {
            self.change_index(&mut value)
        };
        if value == before {
            return Ok(());
        }
        *bytes = serde_json::to_vec(&value)?;
        let new = Digest::of(bytes);
        let media_type = value.get("mediaType").and_then(Value::as_str).unwrap_or(&descriptor.media_type).to_owned();
        let old = std::mem::replace(&mut descriptor.digest, new.clone());
        (descriptor.size, descriptor.media_type) = (bytes.len() as u64, media_type.clone());
        self.0.insert(old, (new, descriptor.size, media_type));
        Ok(())
    }

    fn change_manifest(&self, manifest: &mut Value, how: How) {
        let mut any = false;
        for layer in entries(manifest, "layers") {
            let Some((new, size, _)) = self.of(layer) else { continue };
            any = true;
            let base = match media_type(layer).strip_prefix(DOCKER_LAYER) {
                Some(_) if how.codec == Codec::Gzip => format!("{DOCKER_LAYER}.gzip"),
                _ => format!("{}{}", oci::LAYER, how.codec.media_suffix()),
            };
            layer.insert("mediaType".to_owned(), base.into());
            place(layer, new, *size);
            layer.shift_remove("urls");
            if let Some(annotations) = layer.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.retain(|key, _| !OF_PLACES.iter().any(|prefix| key.starts_with(prefix)));
            }
        }
        // Docker's format has no zstd: the same image in OCI's.
        if any && how.codec == Codec::Zstd && manifest.get("mediaType").is_some_and(|own| own == oci::DOCKER_MANIFEST) {
            manifest["mediaType"] = oci::MANIFEST.into();
            for part in std::iter::once(&mut manifest["config"]).filter_map(Value::as_object_mut) {
                to_oci(part);
            }
            entries(manifest, "layers").for_each(to_oci);
        }
    }

    fn change_index(&self, index: &mut Value) {
        let mut is_oci = false;
        for entry in entries(index, "manifests") {
            if let Some((new, size, media_type)) = self.of(entry) {
                is_oci |= matches!(&**media_type, oci::MANIFEST | oci::INDEX);
                entry.insert("mediaType".to_owned(), media_type.as_str().into());
                place(entry, new, *size);
            }
            // Which image an attestation is of, docker writes there.
            for value in
                entry.get_mut("annotations").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
            {
                let digest = value.as_str().and_then(|text| Digest::parse(text).ok());
                if let Some((new, ..)) = digest.and_then(|digest| self.0.get(&digest)) {
                    *value = new.as_str().into();
                }
            }
        }
        if is_oci && index.get("mediaType").is_some_and(|own| own == oci::DOCKER_INDEX) {
            index["mediaType"] = oci::INDEX.into();
        }
    }

    fn of(&self, descriptor: &Map<String, Value>) -> Option<&(Digest, u64, String)> {
        self.0.get(&Digest::parse(descriptor.get("digest")?.as_str()?).ok()?)
    }
}

fn entries<'a>(document: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    document.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn media_type(descriptor: &Map<String, Value>) -> &str {
    descriptor.get("mediaType").and_then(Value::as_str).unwrap_or_default()
}

/// Points a descriptor to another blob.
fn place(descriptor: &mut Map<String, Value>, digest: &Digest, size: u64) {
    descriptor.insert("digest".to_owned(), digest.as_str().into());
    descriptor.insert("size".to_owned(), size.into());
    // The blob itself, where it is a short one.
    descriptor.shift_remove("data");
}

/// The media type that OCI has in the place of docker's.
fn to_oci(descriptor: &mut Map<String, Value>) {
    let old = media_type(descriptor);
    let layer = [(DOCKER_LAYER, oci::LAYER), (DOCKER_FOREIGN_LAYER, FOREIGN_LAYER)];
    let new = match layer.iter().find_map(|(docker, oci)| Some((oci, old.strip_prefix(docker)?))) {
        Some((oci, suffix)) => format!("{oci}{}", suffix.replace('.', "+")),
        None if old == DOCKER_CONFIG => oci::CONFIG.to_owned(),
        None => return,
    };
    descriptor.insert("mediaType".to_owned(), new.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GZIP: How = How { codec: Codec::Gzip, level: 6 };
    const ZSTD: How = How { codec: Codec::Zstd, level: 3 };

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn changed() -> Changed {
        let mut changed = Changed::default();
        changed.add_layer(&digest(1), digest(2), 22);
        changed
    }

    #[test]
    fn which_are_layers() {
        for (media_type, want) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", false),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", false),
            ("application/vnd.in-toto+json", false),
            ("", false),
        ] {
            assert_eq!(is_layer(media_type), want, "{media_type}");
        }
    }

    #[test]
    fn manifests_change_where_they_must() {
        let oci_gzip = format!("{}+gzip", oci::LAYER);
        let oci_zstd = format!("{}+zstd", oci::LAYER);
        let docker_gzip = format!("{DOCKER_LAYER}.gzip");
        let foreign = format!("{DOCKER_FOREIGN_LAYER}.gzip");
        let manifest = |own: &str, config: &str, first: (&str, u8, u64), second: &str| {
            json!({"schemaVersion": 2, "x": "kept", "mediaType": own, "config": {"mediaType": config, "digest": digest(9), "size": 9},
                "layers": [{"mediaType": first.0, "digest": digest(first.1), "size": first.2, "annotations": {"a": "b"}},
                    {"mediaType": second, "digest": digest(3), "size": 3}]})
        };
        for (how, old, new) in [
            (
                ZSTD,
                (oci::MANIFEST, oci::CONFIG, &oci_gzip, &oci_gzip),
                (oci::MANIFEST, oci::CONFIG, &oci_zstd, &oci_gzip),
            ),
            (
                GZIP,
                (oci::DOCKER_MANIFEST, DOCKER_CONFIG, &DOCKER_LAYER.to_owned(), &foreign),
                (oci::DOCKER_MANIFEST, DOCKER_CONFIG, &docker_gzip, &foreign),
            ),
            (
                ZSTD,
                (oci::DOCKER_MANIFEST, DOCKER_CONFIG, &docker_gzip, &foreign),
                (oci::MANIFEST, oci::CONFIG, &oci_zstd, &format!("{FOREIGN_LAYER}+gzip")),
            ),
        ] {
            let mut before = manifest(old.0, old.1, (old.2, 1, 11), old.3);
            before["layers"][0]["annotations"]["containerd.io/snapshot/stargz/toc.digest"] = "x".into();
            before["layers"][0]["urls"] = json!(["http://x"]);
            let bytes = serde_json::to_vec(&before).unwrap();
            let mut document = (Descriptor::new(old.0, Digest::of(&bytes), bytes.len() as u64), bytes);
            let mut changed = changed();
            changed.apply(&mut document, how).unwrap();
            let (descriptor, bytes) = &document;
            let want = serde_json::to_vec(&manifest(new.0, new.1, (new.2, 2, 22), new.3)).unwrap();
            assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(&want));
            assert_eq!(*descriptor, Descriptor::new(new.0, Digest::of(&want), want.len() as u64));

            // One that names nothing that changed stays, byte for byte.
            let other = format!("{} ", manifest(old.0, old.1, (old.2, 7, 7), old.3)).into_bytes();
            let mut document = (Descriptor::new(old.0, Digest::of(&other), other.len() as u64), other);
            let as_it_was = document.clone();
            changed.apply(&mut document, how).unwrap();
            assert_eq!(document, as_it_was);
        }
    }

    #[test]
    fn an_index_follows_its_manifests() {
        let manifest = json!({"mediaType": oci::DOCKER_MANIFEST, "config": {}, "layers": [{"mediaType": DOCKER_LAYER, "digest": digest(1)}]});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut inner = (Descriptor::new(oci::DOCKER_MANIFEST, Digest::of(&manifest), 1), manifest);
        let old = inner.0.digest.clone();
        let index = json!({"mediaType": oci::DOCKER_INDEX, "manifests": [
            {"mediaType": "x", "digest": digest(5), "size": 5, "annotations": {"vnd.docker.reference.digest": old}},
            {"mediaType": oci::DOCKER_MANIFEST, "digest": old, "size": 1, "platform": {"os": "linux"}}]});
        let mut outer = (Descriptor::new(oci::DOCKER_INDEX, digest(8), 1), serde_json::to_vec(&index).unwrap());
        let mut changed = changed();
        changed.apply(&mut inner, ZSTD).unwrap();
        changed.apply(&mut outer, ZSTD).unwrap();
        assert_eq!(changed.now(&old), &inner.0.digest);
        let index: Value = serde_json::from_slice(&outer.1).unwrap();
        let new = json!({"mediaType": oci::MANIFEST, "digest": inner.0.digest, "size": inner.1.len(), "platform": {"os": "linux"}});
        assert_eq!(index["manifests"][1], new);
        assert_eq!(index["manifests"][0]["annotations"]["vnd.docker.reference.digest"], inner.0.digest.as_str());
        assert_eq!((&index["mediaType"], &*outer.0.media_type), (&json!(oci::INDEX), oci::INDEX));
    }
}
