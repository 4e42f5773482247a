//! `resume`: a paused container goes on.

use anyhow::Result;

use super::{group_of, state_root};
use crate::cli::{Global, Id};
use crate::exit;
use crate::oci::Status;

/// `resume`. Busy (4) where the container is not paused.
pub fn run(global: &Global, args: &Id) -> Result<u8> {
    let root = state_root(global)?;
    let (_dir, record) = root.lock(&args.id)?;
    match root.status(&record)? {
        Status::Paused => group_of(&record, "resume")?.thaw()?,
        status => {
            let status = status.name();
            return Err(exit::busy(format!("container {} is {status}; only a paused one is resumed", args.id)));
        }
    }
    Ok(0)
}
