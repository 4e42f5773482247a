//! `du`: to be written.

use anyhow::{Result, bail};

use crate::cli;
use crate::state::DataRoot;

/// To be written.
pub fn run(_root: &DataRoot, _args: &cli::Du) -> Result<()> {
    bail!("not written yet")
}
