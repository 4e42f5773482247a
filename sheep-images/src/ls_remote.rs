//! `ls-remote`: the tags of a repository in a registry.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::json;
use sheep_overlay::{doc, exit};

use crate::cli::LsRemote;
use crate::reference::Remote;
use crate::registry;

/// Runs the verb.
pub fn run(args: &LsRemote) -> Result<()> {
    let work = || -> Result<()> {
        let remote = Remote::parse(&args.repository)?;
        if remote.digest.is_some() || args.repository.rsplit('/').next().is_some_and(|last| last.contains(':')) {
            return Err(exit::usage("a repository is REGISTRY/NAME, without a tag or a digest"));
        }
        let repository = remote.name.familiar();
        let repository = repository.strip_suffix(":latest").unwrap_or(&repository);
        let client = registry::client(&args.registry)?;
        let mut text = String::new();
        registry::repository(&client, &remote.name, &args.registry, "pull").tags(|tag| {
            let reference = format!("{repository}:{tag}");
            if args.json {
                writeln!(text, "{}", json!({ "tag": { "name": tag, "reference": reference } }))?;
            } else {
                // Control characters are for no terminal.
                let shown = tag.replace(char::is_control, "?");
                writeln!(text, "{shown}")?;
            }
            Ok(())
        })?;
        doc::write_out(text.as_bytes())
    };
    work().with_context(|| format!("ls-remote {}", args.repository))
}
