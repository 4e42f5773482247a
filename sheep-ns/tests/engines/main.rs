//! Engines drive `sheep-ns`: podman, buildah and containerd do each thing with runc and with it, and the outcome is the same.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod buildah;
mod bundle;
mod containerd;
mod cri;
mod docker;
mod harness;
mod podman;
