//! `sheep-run tee`, which `explain` prints: a program in the foreground whose output goes into a container's log too.

use std::process::Command;

use anyhow::{Context, Result};

use crate::cli::Tee;
use crate::foreground;
use crate::log::Log;
use crate::record::{self, Home};
use crate::signals::Signals;
use crate::tool;

/// Runs the command and gives its exit code.
pub fn tee(home: &Home, flags: &Tee) -> Result<u8> {
    let (program, args) = flags.command.split_first().context("no command")?;
    let name = program.to_string_lossy();
    let signals = Signals::hold_for_foreground()?;
    let log = Log::open(&record::find(home, &flags.id)?.join("log"))?;
    let mut command = Command::new(program);
    command.args(args);
    let status = foreground::run(&name, command, true, Some(log), &signals)?;
    match status.code() {
        Some(code) => Ok(u8::try_from(code).unwrap_or(125)),
        None => Err(tool::failure(tool::NS, status, None).into()),
    }
}
