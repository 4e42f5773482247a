//! The state of a container, as `state` prints it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Name;

/// A container's state: <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/runtime.md#state>.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The specification's version.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// The container's first process, as its host sees it; 0 when stopped.
    #[serde(default)]
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: Name,
    /// The annotations of config.json.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl State {
    /// That of a container which has no process yet, or none any more.
    pub fn new(status: Status, id: &str, bundle: Name, annotations: BTreeMap<String, String>) -> State {
        State { oci_version: super::VERSION.to_owned(), id: id.to_owned(), status, pid: 0, bundle, annotations }
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made; its program waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its program has ended.
    Stopped,
}

impl Status {
    /// The word in JSON and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}
