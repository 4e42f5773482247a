//! `state`: a container's state as the runtime specification has it.

use anyhow::{Context, Result};

use super::{print, state_root};
use crate::cli::{Global, Id};

/// `state`
pub fn run(global: &Global, args: &Id) -> Result<u8> {
    let root = state_root(global)?;
    let state = root.state(&root.read(&args.id)?)?;
    let mut bytes = serde_json::to_vec_pretty(&state).context("state")?;
    bytes.push(b'\n');
    print(&bytes)?;
    Ok(0)
}
