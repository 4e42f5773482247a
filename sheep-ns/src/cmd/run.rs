//! `run`: create, start, wait, delete.

use anyhow::Result;

use super::create::{Life, Made, make};
use super::state_root;
use crate::cli::{Global, Run};
use crate::supervise::{self, Signals, Unhandled};

/// `run`. The exit code is the program's own; 128+N where signal N ended it.
pub fn run(global: &Global, args: Run) -> Result<u8> {
    if args.detach {
        make(global, &args.bundle, Life::Detached)?;
        return Ok(0);
    }
    // Before the change of directory to the bundle.
    let root = state_root(global)?;
    // Before the clone, so that no signal falls between.
    let signals = Signals::block()?;
    let Made { child, master, .. } = make(global, &args.bundle, Life::Attached)?;
    let code = supervise::wait(&child, &signals, master, Unhandled::Ignored);
    if code.is_err() {
        child.destroy();
    }
    if !args.keep {
        match root.lock(&args.bundle.id) {
            Ok((dir, record)) => dir.delete(&record)?,
            // Somebody else was faster.
            Err(error) if crate::exit::kind(&error) == Some(crate::exit::Kind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    code
}
