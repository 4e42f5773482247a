//! `sheep-run record`, which `explain` prints: the parts of the record that `run` writes, one at a time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sheep_overlay::doc::{read_document, write_out};
use sheep_overlay::state;

use crate::cli;
use crate::locks;
use crate::record::{self, Claim, Home, Record, Status, Wanted};
use crate::repair;

/// Claims an id and a name, and prints the id; or completes the record of `ID`.
pub fn record(home: &Home, flags: &cli::Record) -> Result<u8> {
    let Some(id) = &flags.id else { return claim(home, flags) };
    let dir = record::find(home, id)?;
    let _lock = locks::lock(&dir)?;
    let mut record = Record::reload(&dir)?;
    match (&flags.from, flags.ended) {
        (Some(source), _) => {
            record.adopt(read_document(source)?);
            record.adopt_config(&read_config(&dir)?)?;
        }
        (None, Some(code)) => {
            record.container.status = Status::Stopped;
            record.container.exit_code = Some(code);
            record.container.started.get_or_insert_with(|| record.container.created.clone());
            record.container.finished = Some(state::now());
        }
        (None, None) => {}
    }
    record.save()?;
    Ok(0)
}

fn claim(home: &Home, flags: &cli::Record) -> Result<u8> {
    let labels = flags.label.iter().map(|label| label.split_once('=').unwrap_or((label, "")));
    let wanted = Wanted {
        name: flags.name.clone(),
        remove: flags.rm,
        interactive: flags.interactive,
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        log: !flags.no_log,
    };
    let Claim { mut record, lock: _lock, supervisor: _supervisor } =
        record::claim(home, wanted, |dir| repair::view(home, dir).map(|_| ()))?;
    // Nobody supervises it after us: from now on it is what `rm` removes and `start` starts.
    record.container.status = Status::Created;
    record.save()?;
    repair::keep(home, &record.dir)?;
    write_out(format!("{}\n", record.container.id).as_bytes())?;
    Ok(0)
}

fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let file = dir.join("config.json");
    fs::read(&file).with_context(|| file.display().to_string())
}
