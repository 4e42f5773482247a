//! What an archive of an OCI layout leaves out, because the one who gets it has it: a member `not-sent.json` between `index.json` and the
//! blobs. Who does not know it sees a layout in which blobs are missing.
//!
//! ```text
//! {"notSent":{"version":1,"layers":[{"digest":"sha256:…","size":123}, …]}}
//! ```
//!
//! Only layers are left out: manifests and configurations say what an image is, and are small.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::oci::{Descriptor, Digest};

/// The member's name.
pub const MEMBER: &str = "not-sent.json";
/// The version that this program writes, and the only one that it reads.
const VERSION: u64 = 1;

/// A blob: of a list of those that a store has, or of those that are not sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// The layers that are left out, in the order in which they would come.
#[derive(Debug, Default)]
pub struct NotSent {
    layers: Vec<Blob>,
    known: HashSet<Blob>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    not_sent: Content,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u64,
    layers: Vec<Blob>,
}

impl NotSent {
    /// Of layers that are not sent.
    pub fn new(layers: impl Iterator<Item = Descriptor>) -> Self {
        let layers: Vec<Blob> = layers.map(|layer| Blob { digest: layer.digest, size: layer.size }).collect();
        NotSent { known: layers.iter().cloned().collect(), layers }
    }

    /// Reads the member. One of another version is an error that says so, and so is one that names a layer twice.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(bytes).context("not JSON")?;
        check_version(&value, "notSent")?;
        let Document { not_sent } = Document::deserialize(&value)?;
        let known: HashSet<Blob> = not_sent.layers.iter().cloned().collect();
        let digests: HashSet<&Digest> = known.iter().map(|blob| &blob.digest).collect();
        if digests.len() != not_sent.layers.len() {
            bail!("it names a layer twice");
        }
        Ok(NotSent { known: known.clone(), layers: not_sent.layers })
    }

    /// The member's content.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let not_sent = Content { version: VERSION, layers: self.layers.clone() };
        Ok(serde_json::to_vec(&Document { not_sent })?)
    }

    /// The layers.
    pub fn layers(&self) -> &[Blob] {
        &self.layers
    }

    /// Whether a layer is among them.
    pub fn names(&self, layer: &Descriptor) -> bool {
        self.known.contains(&Blob { digest: layer.digest.clone(), size: layer.size })
    }
}

/// Errors where what is under `key` is not of the version that this program knows.
pub fn check_version(value: &serde_json::Value, key: &str) -> Result<()> {
    match value.get(key).and_then(|content| content.get("version")) {
        Some(version) if version == VERSION => Ok(()),
        Some(version) => {
            bail!("it is of version {version}, and this program knows {VERSION}; use the same one on both sides")
        }
        None => bail!("it does not say {{\"{key}\":{{\"version\":{VERSION}}}}}"),
    }
}

/// The first line of a list of blobs that a store has.
pub fn version_line(key: &str) -> String {
    format!("{}\n", serde_json::json!({ key: { "version": VERSION } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_read() {
        let digest = Digest::of(b"");
        let one = format!(r#"{{"digest":"{digest}","size":7}}"#);
        let text =
            |version: &str, layers: &str| format!(r#"{{"notSent":{{"version":{version},"layers":[{layers}]}}}}"#);
        let good = NotSent::parse(text("1", &one).as_bytes()).unwrap();
        assert_eq!(String::from_utf8(good.to_bytes().unwrap()).unwrap(), text("1", &one));
        let layer = |size| Descriptor::new("", digest.clone(), size);
        assert!(good.names(&layer(7)) && !good.names(&layer(8)));
        assert!(NotSent::parse(text("2", &one).as_bytes()).unwrap_err().to_string().contains("version 2"));
        let other = one.replace(":7}", ":8}");
        for bad in [
            text("1", &format!("{one},{one}")),
            text("1", &format!("{one},{other}")),
            text("\"1\"", &one),
            text("1", r#"{"digest":"sha256:../x","size":1}"#),
            text("1", &one.replace(":7}", ":-7}")),
            r#"{"notSent":{"version":1}}"#.to_owned(),
            r#"{"notSent":{"version":1,"layers":[],"more":1}}"#.to_owned(),
            "[]".to_owned(),
            "{".to_owned(),
        ] {
            assert!(NotSent::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
