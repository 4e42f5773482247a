//! `sheep-run kill`: a signal to a container's first process.

use anyhow::{Result, bail};

use crate::cli::Kill;
use crate::cmd::each;
use crate::cmd::stop::signal;
use crate::record::{self, Home};

/// Sends a signal to containers, which must run.
pub fn kill(home: &Home, flags: &Kill) -> Result<u8> {
    each("kill", &flags.names, |name| {
        let dir = record::find(home, name)?;
        if !signal(home, &dir, &flags.signal)? {
            bail!("it does not run");
        }
        Ok(())
    })
}
