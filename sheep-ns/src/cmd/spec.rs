//! `spec`: the config.json for a command, to be edited or to be run.

use anyhow::Result;

use crate::cli::Spec;
use crate::spec;

/// `spec`
pub fn run(args: Spec) -> Result<u8> {
    spec::print(&args.spec, &args.args)?;
    Ok(0)
}
