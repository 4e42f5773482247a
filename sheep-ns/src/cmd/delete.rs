//! `delete`: what is left of a stopped container goes.

use anyhow::Result;

use super::state_root;
use crate::cli::{Delete, Global};
use crate::exit::{self, Kind};
use crate::oci::Status;
use crate::state::StateRoot;

/// `delete`. With several ids it goes on after an error; the first one counts.
pub fn run(global: &Global, args: &Delete) -> Result<u8> {
    let root = state_root(global)?;
    let mut failed: Option<anyhow::Error> = None;
    for id in &args.id {
        match (delete(&root, id, args.force), &failed) {
            (Ok(()), _) => {}
            (Err(error), None) => failed = Some(error),
            (Err(error), Some(_)) => exit::warn("sheep-ns", &format!("delete: {error:#}")),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(0),
    }
}

fn delete(root: &StateRoot, id: &str, force: bool) -> Result<()> {
    let (dir, record) = match root.lock(id) {
        Ok(found) => found,
        // Engines delete by force what they are not sure of.
        Err(error) if force && exit::kind(&error) == Some(Kind::NotFound) => return Ok(()),
        Err(error) if force && exit::kind(&error).is_none() => return root.discard(id, error),
        Err(error) => return Err(error),
    };
    let status = root.status(&record)?;
    if status != Status::Stopped && !force {
        let status = status.name();
        return Err(exit::busy(format!("container {id} is {status}; kill it first, or use delete --force")));
    }
    dir.delete(&record)
}
