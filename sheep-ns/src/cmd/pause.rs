//! `pause`: every process of a container stops where it is.

use anyhow::Result;

use super::{group_of, state_root};
use crate::cli::{Global, Id};
use crate::exit;
use crate::oci::Status;

/// `pause`, by the freezer of cgroup v2. Busy (4) where the container does not run.
pub fn run(global: &Global, args: &Id) -> Result<u8> {
    let root = state_root(global)?;
    let (_dir, record) = root.lock(&args.id)?;
    match root.status(&record)? {
        Status::Running => group_of(&record, "pause")?.freeze()?,
        status => {
            let status = status.name();
            return Err(exit::busy(format!("container {} is {status}; only a running one is paused", args.id)));
        }
    }
    Ok(0)
}
