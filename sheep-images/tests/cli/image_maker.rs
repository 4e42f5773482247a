//! Images by hand, also such as no tool would make: their files, as an archive, or in a directory.

use serde_json::{Value, json};
use sheep_images::oci::{self, Digest};

use crate::maker::{Maker, tar};

/// The files of an image, by name.
#[derive(Clone, Default)]
pub struct Files(pub Vec<(String, Vec<u8>)>);

impl Files {
    /// With a file more, or in place of the one of that name.
    pub fn with(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref().to_vec();
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some((_, old)) => *old = content,
            None => self.0.push((name.to_owned(), content)),
        }
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        let before = self.0.len();
        self.0.retain(|(other, _)| other != name);
        assert_eq!(self.0.len(), before - 1, "{name}");
        self
    }

    /// With a blob more.
    pub fn blob(self, content: impl AsRef<[u8]>) -> Self {
        let name = blob_name(&Digest::of(content.as_ref()));
        self.with(&name, content)
    }

    /// The archive of them, without its end mark.
    pub fn maker(&self) -> Maker {
        self.0.iter().fold(tar(), |archive, (name, content)| archive.file(name.as_bytes(), content))
    }

    pub fn archive(&self) -> Vec<u8> {
        self.maker().end()
    }
}

pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(content), "size": content.len()})
}

/// A configuration for layers that are not compressed.
pub fn config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let platform = oci::host_platform();
    json!({"os": platform.os, "architecture": platform.architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

pub fn manifest(config: &[u8], layers: &[Vec<u8>]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(oci::LAYER, layer)).collect();
    json!({"schemaVersion": 2, "mediaType": oci::MANIFEST, "config": descriptor(oci::CONFIG, config), "layers": layers})
}

pub fn index(kind: &str, manifest: &[u8]) -> Value {
    json!({"schemaVersion": 2, "manifests": [descriptor(kind, manifest)]})
}

/// An OCI layout of documents that need not fit.
pub fn layout_of(config: &[u8], manifest: &[u8], layers: &[Vec<u8>]) -> Files {
    let files = Files::default()
        .with("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .with("index.json", index(oci::MANIFEST, manifest).to_string())
        .blob(manifest)
        .blob(config);
    layers.iter().fold(files, |files, layer| files.blob(layer))
}

/// An OCI layout of an image with these layers, bottom first.
pub fn layout(layers: &[Vec<u8>]) -> Files {
    let config = config(layers).to_string();
    layout_of(config.as_bytes(), manifest(config.as_bytes(), layers).to_string().as_bytes(), layers)
}

/// The same image as `docker save` writes it.
pub fn docker(layers: &[Vec<u8>]) -> Files {
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let files = Files::default()
        .with("manifest.json", json!([{"Config": "config.json", "Layers": names}]).to_string())
        .with("config.json", config(layers).to_string());
    names.iter().zip(layers).fold(files, |files, (name, layer)| files.with(name, layer))
}
