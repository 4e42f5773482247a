//! `sheep-run create`: everything of a `run` but the running.

use std::path::Path;

use anyhow::{Context, Result};
use sheep_overlay::doc::{Document, write_out};

use crate::cli::Create;
use crate::cmd::run::undo;
use crate::record::{self, Claim, Home, KEY, Record, Status};
use crate::repair;
use crate::signals::Signals;
use crate::steps::{self, Plan};
use crate::tool;

/// Makes a container and prints its id, or its document.
pub fn create(home: &Home, flags: &Create) -> Result<u8> {
    let plan = steps::plan(&flags.making)?;
    let signals = Signals::hold()?;
    let mut claim = claim(home, &plan)?;
    if let Err(error) = make(home, &plan, &mut claim, &signals) {
        return Err(undo(home, &claim.record.dir, error));
    }
    print(home, &claim.record.dir, flags.json)?;
    Ok(0)
}

/// Claims an id and the name, after repairing a broken-off container that has it.
pub fn claim(home: &Home, plan: &Plan) -> Result<Claim> {
    record::claim(home, plan.wanted.clone(), |dir| repair::view(home, dir).map(|_| ()))
}

fn make(home: &Home, plan: &Plan, claim: &mut Claim, signals: &Signals) -> Result<()> {
    steps::prepare(home, plan, claim, false, signals)?;
    // Nothing stays mounted for a container that does not run.
    let kept = tool::make(&steps::umount(home, &claim.record.container.id, true), None, signals)?;
    let kept = Document::parse(&kept).context("what sheep-overlay printed")?;
    claim.record.adopt(kept);
    claim.record.container.status = Status::Created;
    claim.record.save()?;
    repair::keep(home, &claim.record.dir)
}

/// Prints a container's id, or its document. One that has ended and gone already (`--rm`) has its id still.
pub fn print(home: &Home, dir: &Path, json: bool) -> Result<()> {
    if json && let Some(record) = Record::load(dir)? {
        return record.to_document()?.print(KEY, None);
    }
    let id = dir.strip_prefix(home.data.containers()).unwrap_or(dir);
    write_out(format!("{}\n", id.display()).as_bytes())
}
