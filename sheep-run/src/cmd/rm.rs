//! `sheep-run rm`: a container with its changes, its log and its record.

use std::path::Path;

use anyhow::Result;
use sheep_overlay::exit::{self, Kind};

use crate::cli::Rm;
use crate::cmd::each;
use crate::cmd::stop::kill_and_wait;
use crate::locks::{self, Supervision};
use crate::record::{self, Home, Record};
use crate::repair;

/// Removes containers. Running ones are refused (4), or killed first with `--force`.
pub fn rm(home: &Home, flags: &Rm) -> Result<u8> {
    record::sweep(home)?;
    each("rm", &flags.names, |name| {
        let dir = record::find(home, name)?;
        remove(home, &dir, flags.force)
    })
}

/// Removes one container; that somebody else was quicker is fine.
pub fn remove(home: &Home, dir: &Path, force: bool) -> Result<()> {
    loop {
        let lock = match locks::lock(dir) {
            Err(error) if exit::kind(&error) == Some(Kind::NotFound) => return Ok(()),
            lock => lock?,
        };
        let is_supervised = matches!(locks::supervision(dir)?, Supervision::Supervised(_));
        if !is_supervised {
            // With --force even a corrupt record goes: its directory's name says what else there is to remove.
            let repaired = repair::repair_locked(home, dir, &lock);
            if !force {
                repaired?;
            }
        }
        let is_running = match Record::load(dir) {
            Ok(record) => record.is_some_and(|record| record.container.is_running()),
            Err(_) if force && !is_supervised => false,
            Err(error) => return Err(error),
        };
        if (is_running || is_supervised) && !force {
            return Err(exit::busy("it is running; stop it first, or use rm -f"));
        }
        if !is_supervised {
            if !dir.exists() {
                // Repairing it was removing it.
                return Ok(());
            }
            // If this command is killed, the next one waits for the sibling it has at work.
            let _supervisor = locks::supervise(dir)?;
            return repair::discard(home, dir);
        }
        // Its monitor puts away what it has, and needs the lock for that.
        drop(lock);
        kill_and_wait(home, dir)?;
    }
}
