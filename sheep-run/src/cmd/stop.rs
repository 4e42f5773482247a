//! `sheep-run stop`: SIGTERM, time to heed it, SIGKILL.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cli::Stop;
use crate::cmd::each;
use crate::locks::{self, Supervision};
use crate::record::{self, Home, Record};
use crate::repair;
use crate::steps;
use crate::tool;

/// How long a dead container's monitor may take to put everything away.
const CLEANING: Duration = Duration::from_secs(30);

/// How often a container without a monitor is looked at.
const ORPHAN: Duration = Duration::from_millis(50);

/// How soon a signal is tried again on a container that is just starting or ending.
const RETRY: Duration = Duration::from_millis(10);

/// Stops containers. All get SIGTERM at once, and the same time to end. One that does not run is fine.
pub fn stop(home: &Home, flags: &Stop) -> Result<u8> {
    let deadline = Instant::now() + Duration::from_secs(flags.time.min(u64::from(u32::MAX)));
    let mut told: Vec<(String, PathBuf)> = Vec::new();
    let first = each("stop", &flags.names, |name| {
        let dir = record::find(home, name)?;
        if signal(home, &dir, "TERM")? {
            told.push((name.to_owned(), dir));
        }
        Ok(())
    })?;
    let names: Vec<String> = told.iter().map(|(name, _)| name.clone()).collect();
    let mut dirs = told.iter().map(|(_, dir)| dir);
    let second = each("stop", &names, |_| match dirs.next() {
        Some(dir) => end(home, dir, deadline),
        None => Ok(()),
    })?;
    Ok(if first == 0 { second } else { first })
}

fn end(home: &Home, dir: &Path, deadline: Instant) -> Result<()> {
    if has_ended(home, dir, deadline)? {
        return Ok(());
    }
    kill_and_wait(home, dir)
}

/// Kills a container and waits until everything of it is put away.
pub fn kill_and_wait(home: &Home, dir: &Path) -> Result<()> {
    signal(home, dir, "KILL")?;
    if !has_ended(home, dir, Instant::now() + CLEANING)? {
        bail!("killed, but not put away after {} s; is its monitor stopped?", CLEANING.as_secs());
    }
    Ok(())
}

/// Sends a signal to a running container; one that is being started by another command is waited for. Gives false when
/// the container does not run (any more).
pub fn signal(home: &Home, dir: &Path, signal: &str) -> Result<bool> {
    let give_up = Instant::now() + CLEANING;
    loop {
        // Whoever makes, starts or puts away a container has its lock: so it is none of these now, or it is gone.
        match locks::lock(dir) {
            Ok(lock) => repair::repair_locked(home, dir, &lock)?,
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        let Some(record) = Record::load(dir)? else { return Ok(false) };
        if !record.container.is_running() {
            return Ok(false);
        }
        match tool::settle(&steps::kill(home, &record.container.id, signal)) {
            Ok(_) => return Ok(true),
            // It has ended this moment, or `run` has it in the foreground and is about to start it.
            Err(error) if matches!(tool::code_of(&error), Some(3 | 4)) && Instant::now() < give_up => sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    sheep_overlay::exit::kind(error) == Some(sheep_overlay::exit::Kind::NotFound)
}

/// Waits until a container has ended and everything of it is put away, at most until `deadline`; gives whether it is.
pub fn has_ended(home: &Home, dir: &Path, deadline: Instant) -> Result<bool> {
    loop {
        match locks::supervision(dir)? {
            Supervision::Settled => return Ok(true),
            Supervision::Supervised(file) => {
                if !locks::until_unsupervised(&file, deadline) {
                    return Ok(false);
                }
            }
            Supervision::Abandoned => {
                repair::repair(home, dir)?;
                if matches!(locks::supervision(dir)?, Supervision::Abandoned) {
                    if Instant::now() >= deadline {
                        return Ok(false);
                    }
                    sleep(ORPHAN);
                }
            }
        }
    }
}
