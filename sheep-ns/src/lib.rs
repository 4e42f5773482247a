//! Processes in namespaces: an OCI runtime at its core, and one-shot isolation for a command.
//!
//! The library exists for the `sheep-ns` binary, its tests, and the types others read ([`cli`]). Every verb is a file
//! of its name under `cmd/`; what happens between clone and exec is in `init/` and `rootfs/`.

pub mod caps;
pub mod cgroup;
pub mod cli;
pub mod doc;
pub mod exit;
pub mod oci;
pub mod spec;

/// Runs one command line; gives the exit code.
pub fn run(cli: cli::Cli) -> anyhow::Result<u8> {
    let _ = cli;
    anyhow::bail!("not built yet")
}
