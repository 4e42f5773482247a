//! The `image` key of the document: what this tool owns of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sheep_overlay::doc::DocPath;

/// An image: what it is called, what is in it, and where its layers are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The name in familiar form (`minimal:latest`); absent where another image took the name over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The digest of the image's manifest.
    pub digest: String,
    /// What the image runs on.
    pub platform: Platform,
    /// The OCI image configuration, whole: defaults for a container are at `config.config`.
    pub config: Value,
    /// The layers, bottom first.
    pub layers: Vec<Layer>,
    /// The directory into which all of the image was unpacked; absent where that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<DocPath>,
}

/// What an image runs on, in OCI's (Go's) terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The processor architecture: `amd64`, `arm64`, …
    pub architecture: String,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// The digest of the layer's archive as it is stored, compressed or not.
    pub digest: String,
    /// The digest of the archive without its compression: it names the unpacked directory.
    pub diff_id: String,
    /// The archive's OCI media type.
    pub media_type: String,
    /// The size of the stored archive in bytes.
    pub size: u64,
    /// The directory into which the layer is unpacked; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<DocPath>,
}
