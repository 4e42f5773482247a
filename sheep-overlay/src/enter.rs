//! `exec` and `enter`: to be written.

use anyhow::{Result, bail};

use crate::cli;
use crate::state::DataRoot;

/// To be written.
pub fn exec(_root: &DataRoot, _args: &cli::Exec) -> Result<()> {
    bail!("not written yet")
}

/// To be written.
pub fn enter(_root: &DataRoot, _args: &cli::Enter) -> Result<()> {
    bail!("not written yet")
}
