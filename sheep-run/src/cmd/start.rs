//! `sheep-run start`: a stopped container again, with the changes it made.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sheep_overlay::doc::Document;
use sheep_overlay::exit;

use crate::PROGRAM;
use crate::cli::Start;
use crate::cmd::create::print;
use crate::cmd::each;
use crate::locks::{self, Supervision};
use crate::monitor;
use crate::record::{self, Home, Record};
use crate::repair;
use crate::signals::Signals;
use crate::steps;
use crate::tool;

/// How long another command may be at work on the container.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts containers under monitors, and prints their ids or documents. One that runs is left as it is.
pub fn start(home: &Home, flags: &Start) -> Result<u8> {
    let signals = Signals::hold()?;
    each("start", &flags.names, |name| {
        let dir = record::find(home, name)?;
        start_one(home, &dir, &signals)?;
        print(home, &dir, flags.json)
    })
}

fn start_one(home: &Home, dir: &Path, signals: &Signals) -> Result<()> {
    let (lock, record) = loop {
        let lock = locks::lock(dir)?;
        repair::repair_locked(home, dir, &lock)?;
        let record = Record::reload(dir)?;
        if record.container.is_running() {
            return Ok(());
        }
        match locks::supervision(dir)? {
            // A sibling whose command was killed is still at work; it ends by itself.
            Supervision::Supervised(file) if locks::until_unsupervised(&file, Instant::now() + PATIENCE) => {}
            Supervision::Supervised(_) => return Err(exit::busy("another command is at work on it")),
            _ => break (lock, record),
        }
    };
    let supervisor = locks::supervise(dir)?;
    locks::leave_exit_code(&lock, None);
    let started = mounted(home, record, signals).and_then(|record| monitor::launch(home, &record, &lock, &supervisor));
    if let Err(error) = started {
        if let Err(left) = repair::keep(home, dir) {
            exit::print_line(PROGRAM, &left.context("undo"));
        }
        return Err(error);
    }
    Ok(())
}

fn mounted(home: &Home, mut record: Record, signals: &Signals) -> Result<Record> {
    let mounted = tool::make(&steps::mount_again(home, &record.container.id), None, signals)?;
    record.adopt(Document::parse(&mounted).context("what sheep-overlay printed")?);
    Ok(record)
}
