//! `spec`: the config.json for a command, to be edited or to be run.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::print;
use crate::cli::Spec;
use crate::exit;
use crate::spec;
use crate::state::write_atomic;

/// `spec`
pub fn run(args: Spec) -> Result<u8> {
    let config = spec::from_flags(&args.spec, &args.args)?;
    let mut text = serde_json::to_vec_pretty(&config).context("config.json")?;
    text.push(b'\n');
    match &args.bundle {
        None => print(&text)?,
        Some(bundle) => put(bundle, &text)?,
    }
    Ok(0)
}

/// Whole or not at all, and never in the place of one that is there.
fn put(bundle: &Path, text: &[u8]) -> Result<()> {
    let file = bundle.join("config.json");
    let temporary = bundle.join(format!(".config.json.{}.new", std::process::id()));
    write_atomic(&temporary, text)?;
    renameat_with(CWD, &temporary, CWD, &file, RenameFlags::NOREPLACE).map_err(|errno| {
        // The error that matters is the one already held.
        let _ = std::fs::remove_file(&temporary);
        match errno {
            Errno::EXIST => exit::busy(format!("{}: is there already; remove it first", file.display())),
            errno => anyhow::Error::from(errno).context(file.display().to_string()),
        }
    })
}
