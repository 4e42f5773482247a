//! `spec`: the config.json for a command, to be edited or to be run.

use anyhow::{Context, Result};

use super::print;
use crate::cli::Spec;
use crate::spec;
use crate::state::write_new;

/// `spec`
pub fn run(args: Spec) -> Result<u8> {
    let config = spec::from_flags(&args.spec, &args.args)?;
    let mut text = serde_json::to_vec_pretty(&config).context("config.json")?;
    text.push(b'\n');
    match &args.bundle {
        None => print(&text)?,
        Some(bundle) => write_new(&bundle.join("config.json"), &text)?,
    }
    Ok(0)
}
