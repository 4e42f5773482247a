//! Flags and a document become a config.json.

/// What runs, and how: shared by `spec` and one-shot `exec`.
#[derive(Debug, Clone, clap::Args)]
pub struct SpecFlags {}
