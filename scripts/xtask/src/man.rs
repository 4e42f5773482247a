//! Manual pages, from the command lines as clap knows them.

use anyhow::{Context, Result};
use clap_mangen::Man;

use crate::Files;

/// A page for each program, and one for each of its verbs: `sheep-overlay.1`, `sheep-overlay-mount.1`.
pub fn pages() -> Result<Files> {
    let mut files = Files::new();
    for program in [
        sheep_images::cli::command(),
        sheep_ns::cli::command(),
        sheep_overlay::cli::command(),
        sheep_run::cli::command(),
    ] {
        let mut program = program.disable_help_subcommand(true);
        // Names the verbs "sheep-overlay mount" in their synopsis, and puts the options of all verbs into each.
        program.build();
        add(&program, &mut files)?;
    }
    Ok(files)
}

fn add(command: &clap::Command, files: &mut Files) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    // No version in the footer: a release would else change every page.
    Man::new(command.clone().version(None::<&str>))
        .title(name.to_uppercase())
        .manual("Sheep")
        .source("Sheep")
        .render(&mut page)
        .with_context(|| format!("manual page {name}"))?;
    files.insert(format!("{name}.1").into(), page);
    command.get_subcommands().filter(|verb| !verb.is_hide_set()).try_for_each(|verb| add(verb, files))
}
