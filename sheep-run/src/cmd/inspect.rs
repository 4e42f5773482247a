//! `sheep-run inspect`: the documents of containers.

use anyhow::Result;

use crate::cli::Inspect;
use crate::cmd::each;
use crate::record::{Home, KEY};
use crate::repair;

/// Prints the documents, or one field of each.
pub fn inspect(home: &Home, flags: &Inspect) -> Result<u8> {
    each("inspect", &flags.names, |name| repair::look_up(home, name)?.to_document()?.print(KEY, flags.print.as_deref()))
}
