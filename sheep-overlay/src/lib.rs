//! Copy-on-write directories: a stack of read-only lower directories under a writable upper, shown as one merged tree.
//!
//! The library exists for the `sheep-overlay` binary and for two things its siblings share: the document that travels
//! on pipes ([`doc`]) and the state on disk ([`state`]), with the exit codes all four programs keep ([`exit`]).

pub mod backend;
pub mod cli;
pub mod diff;
pub mod doc;
pub mod exit;
pub mod layer;
pub mod state;
pub mod sys;

use anyhow::Result;

/// The program's name, as its messages begin.
pub const PROGRAM: &str = "sheep-overlay";

/// Does what the command line says.
pub fn run(cli: cli::Cli) -> Result<()> {
    let _root = state::DataRoot::open(cli.root.as_deref())?;
    Ok(())
}
