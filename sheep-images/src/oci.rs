//! The OCI image format on disk: descriptors, index, manifest and configuration, as far as this tool reads and writes
//! them. What it does not know in a document that it rewrites is kept.
//!
//! Follows the OCI image specification 1.1 (image-layout.md, image-index.md, manifest.md, config.md).

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use sheep_overlay::state;

use crate::doc::Platform;

/// The annotation that carries an image's name in an index.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer that is a plain tar; `+gzip` and `+zstd` are appended where compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's index; its media types are for the same things, as other tools and registries have them.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

const LAYOUT_KEY: &str = "imageLayoutVersion";
const LAYOUT_VERSION: &str = "1.0.0";

/// Layers of an image: as many as the kernel stacks (`OVL_MAX_STACK`).
pub const LAYERS_MAX: usize = 500;

/// A SHA-256 digest: `sha256:` and 64 lower-case hexadecimal digits, nothing else. It becomes a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Checks and takes a digest from text.
    pub fn parse(text: &str) -> Result<Self> {
        let is_hex =
            |hex: &str| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match text.split_once(':') {
            Some(("sha256", hex)) if is_hex(hex) => Ok(Digest(text.to_owned())),
            Some((algorithm, _)) if algorithm != "sha256" => bail!("digest {text:?}: only sha256 is supported"),
            _ => bail!("digest {text:?}: it is 'sha256:' and 64 lower-case hexadecimal digits"),
        }
    }

    /// From the 32 bytes that SHA-256 gives.
    pub fn from_hash(hash: &[u8]) -> Self {
        let mut text = String::from("sha256:");
        for byte in hash {
            text.push_str(&format!("{byte:02x}"));
        }
        Digest(text)
    }

    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_hash(&sha2::Sha256::digest(bytes))
    }

    /// The digest of all that can be read.
    pub fn of_all(source: impl Read) -> io::Result<Self> {
        use sha2::Digest as _;
        let mut source = BufReader::with_capacity(256 << 10, source);
        let mut hash = sha2::Sha256::new();
        loop {
            let piece = match source.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                piece => piece?,
            };
            if piece.is_empty() {
                return Ok(Self::from_hash(&hash.finalize()));
            }
            hash.update(piece);
            let n = piece.len();
            source.consume(n);
        }
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }

    /// `sha256:…`
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).map_err(|e| D::Error::custom(format!("{e:#}")))
    }
}

/// Where a blob is, what it is, and how big.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// Name and other remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Map<String, Value>>,
    /// What it runs on, in an index of several platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Value>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Descriptor {
    /// A descriptor of a blob, without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Descriptor { media_type, digest, size, annotations: None, platform: None, rest: Map::new() }
    }

    /// The name annotation as it stands.
    pub fn ref_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME)?.as_str()
    }

    /// Sets or removes the name annotation.
    pub fn set_ref_name(&mut self, name: Option<&str>) {
        let annotations = self.annotations.get_or_insert_default();
        match name {
            Some(name) => drop(annotations.insert(REF_NAME.to_owned(), name.into())),
            // shift_remove keeps the order of the others; a rewritten index changes only where it must.
            None => drop(annotations.shift_remove(REF_NAME)),
        }
        if annotations.is_empty() {
            self.annotations = None;
        }
    }
}

/// An index: `index.json` of a layout, or a blob that lists an image's manifests for several platforms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`INDEX`], where given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests. umoci writes null where there are none.
    #[serde(deserialize_with = "null_is_none")]
    pub manifests: Vec<Descriptor>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

fn null_is_none<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<Descriptor>, D::Error> {
    Ok(Option::<Vec<Descriptor>>::deserialize(from)?.unwrap_or_default())
}

impl Index {
    /// An index without images.
    pub fn empty() -> Self {
        Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests: Vec::new(), rest: Map::new() }
    }

    /// The platforms that it has images for, as they are written: `linux/amd64, linux/arm64`.
    pub fn platforms(&self) -> String {
        let text = |descriptor: &Descriptor| {
            let platform = descriptor.platform.as_ref()?;
            Some(format!("{}/{}", platform.get("os")?.as_str()?, platform.get("architecture")?.as_str()?))
        };
        self.manifests.iter().filter_map(text).collect::<Vec<_>>().join(", ")
    }
}

/// A manifest: an image's configuration and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST`], where given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// A blob that an index may point to.
#[derive(Debug, Clone, PartialEq)]
pub enum ManifestOrIndex {
    /// An image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// Reads a blob that is a manifest or an index, by what the descriptor calls it. A document that could be read as either,
/// or calls itself something else than its descriptor does, is refused: two readers must never see two images in one
/// digest (CVE-2021-41190).
pub fn parse_manifest(descriptor: &Descriptor, bytes: &[u8]) -> Result<ManifestOrIndex> {
    let value: Value = serde_json::from_slice(bytes).context("not JSON")?;
    let has = |key: &str| value.get(key).is_some();
    if has("manifests") && (has("layers") || has("config")) {
        bail!("it is both a manifest and an index");
    }
    let own_type = value.get("mediaType").and_then(Value::as_str);
    if let Some(own) = own_type
        && !descriptor.media_type.is_empty()
        && own != descriptor.media_type
    {
        bail!("it calls itself {own:?}, and what points to it {:?}", descriptor.media_type);
    }
    let is_index = match own_type.unwrap_or(&descriptor.media_type) {
        INDEX | DOCKER_INDEX => true,
        MANIFEST | DOCKER_MANIFEST => false,
        "" => has("manifests"),
        other => bail!("media type {other:?} is neither a manifest nor an index"),
    };
    // From the text again: there a key that is given twice is seen, of which one reader takes the first and another the last.
    let parsed = if is_index {
        ManifestOrIndex::Index(serde_json::from_slice(bytes).context("not an index")?)
    } else {
        ManifestOrIndex::Manifest(serde_json::from_slice(bytes).context("not a manifest")?)
    };
    if let ManifestOrIndex::Manifest(manifest) = &parsed
        && manifest.layers.len() > LAYERS_MAX
    {
        bail!("it has {} layers; more than {LAYERS_MAX} are refused", manifest.layers.len());
    }
    Ok(parsed)
}

/// What this tool needs of an image configuration.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// What the image runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// The layers' digests without compression.
    pub rootfs: RootFs,
    /// When the image was made, RFC 3339.
    pub created: Option<String>,
}

/// `rootfs` of a configuration.
#[derive(Debug, Clone, Deserialize)]
pub struct RootFs {
    /// The layers' digests without compression, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// The chainIDs of layers, bottom first (config.md, "Layer ChainID"): each names a layer with all that it lies on.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        });
    }
    chain
}

/// The configuration of an image that this tool makes: one layer, a shell, the usual PATH.
pub fn new_config(platform: &Platform, diff_id: &Digest, created: &str, created_by: &str) -> Value {
    json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/sh"],
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": created_by}],
    })
}

/// When an image is made, as its configuration says it: now, or at the time that is to be taken for it (seconds since 1970).
pub fn created(latest: Option<i64>) -> Result<String> {
    match latest {
        Some(seconds) => Ok(jiff::Timestamp::from_second(seconds)?.to_string()),
        None => Ok(state::now()),
    }
}

/// What the file `oci-layout` says (image-layout.md).
pub fn layout() -> Value {
    json!({ LAYOUT_KEY: LAYOUT_VERSION })
}

/// Whether that is the file `oci-layout` of a layout that we can read.
pub fn is_known_layout(file: &Value) -> bool {
    file.get(LAYOUT_KEY).and_then(Value::as_str) == Some(LAYOUT_VERSION)
}

/// This machine's platform in OCI's (Go's) terms.
pub fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    };
    Platform { os: "linux".to_owned(), architecture: architecture.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_a_safe_file_name() {
        let hex = "a".repeat(64);
        assert_eq!(Digest::parse(&format!("sha256:{hex}")).unwrap().hex(), hex);
        for bad in ["sha256:../..", "sha256:", "sha512:00", "", "x", &hex, &format!("sha256:{}", "A".repeat(64))] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::of(b"").hex().starts_with("e3b0c442"));
    }

    #[test]
    fn what_is_not_known_in_an_index_is_kept() {
        let hex = "b".repeat(64);
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"sha256:{hex}","size":1,"annotations":{{"x":"y","{REF_NAME}":"a"}},"urls":["u"]}}],"annotations":{{"k":"v"}}}}"#
        );
        let mut index: Index = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&index).unwrap(), text);
        index.manifests[0].set_ref_name(None);
        assert!(serde_json::to_string(&index).unwrap().contains(r#""annotations":{"x":"y"}"#));
    }

    #[test]
    fn a_document_of_two_minds_is_refused() {
        let hex = "c".repeat(64);
        let blob = format!(r#"{{"mediaType":"{CONFIG}","digest":"sha256:{hex}","size":1}}"#);
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        let as_manifest = Descriptor::new(MANIFEST, digest.clone(), 1);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[]}}"#);
        assert!(matches!(parse_manifest(&as_manifest, manifest.as_bytes()).unwrap(), ManifestOrIndex::Manifest(_)));
        for (media_type, text) in [
            (MANIFEST, format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[],"manifests":[]}}"#)),
            (MANIFEST, format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#)),
            (INDEX, manifest.clone()),
            ("text/plain", manifest.clone()),
            (MANIFEST, manifest.replace("\"layers\":[]", "\"layers\":[],\"layers\":[]")),
            (
                MANIFEST,
                format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{}]}}"#, vec![&blob[..]; 501].join(",")),
            ),
            (MANIFEST, "[]".to_owned()),
            (MANIFEST, "{".to_owned()),
        ] {
            let descriptor = Descriptor::new(media_type, digest.clone(), 1);
            assert!(parse_manifest(&descriptor, text.as_bytes()).is_err(), "{text}");
        }
    }
}
