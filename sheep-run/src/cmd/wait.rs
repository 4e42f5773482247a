//! `sheep-run wait`: until containers have ended; their exit codes.

use std::fs::File;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sheep_overlay::doc::write_out;

use crate::cli::Names;
use crate::cmd::each;
use crate::locks::{self, Supervision};
use crate::record::{self, Home, Record, Status};
use crate::repair;

/// Waits for each container's end and prints its exit code, `unknown` where nobody saw it (its monitor was killed).
pub fn wait(home: &Home, flags: &Names) -> Result<u8> {
    each("wait", &flags.names, |name| {
        let dir = record::find(home, name)?;
        // Open before the end: with --rm the directory goes, and the exit code is left in this file.
        let lock = File::open(dir.join("lock")).map_err(|_| record::no_such_container())?;
        loop {
            match locks::supervision(&dir)? {
                Supervision::Settled => break,
                Supervision::Supervised(file) => {
                    // Asleep in the kernel until the supervisor lets go.
                    file.lock_shared().context("wait for the monitor")?;
                }
                Supervision::Abandoned => {
                    repair::repair(home, &dir)?;
                    if matches!(locks::supervision(&dir)?, Supervision::Abandoned) {
                        sleep(Duration::from_millis(50));
                    }
                }
            }
        }
        let code = match Record::load(&dir)? {
            Some(record) if record.container.status == Status::Created => bail!("it was never started"),
            Some(record) => record.container.exit_code,
            None => locks::left_exit_code(&lock),
        };
        write_out(code.map_or("unknown\n".to_owned(), |code| format!("{code}\n")).as_bytes())
    })
}
