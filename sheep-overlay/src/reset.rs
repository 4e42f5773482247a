//! `reset`: back to a snapshot. What was changed since is thrown away; snapshots stay, wherever they lie.

use anyhow::{Context, Result};

use crate::doc::{Document, Pending};
use crate::state::{self, DataRoot};
use crate::{cli, find, history, turn};

/// Throws the changes since a snapshot away, and prints the overlay's document.
pub fn run(root: &DataRoot, args: &cli::Reset) -> Result<()> {
    let named = history::parse(&args.overlay)?;
    if named.to.is_some() {
        return Err(crate::exit::usage("reset goes to one snapshot: ID@N"));
    }
    let id = find::by_name(root, &named.overlay)?;
    std::env::set_current_dir("/").context("chdir /")?;
    let (overlay, live) = turn::turn(root, &id, |overlay| {
        let head = named.at.unwrap_or(overlay.head);
        history::check(overlay, head)?;
        // No name of a snapshot, so that nothing else comes there.
        let layer = format!("thrown-away-{}", state::new_id()?);
        Ok(Pending { layer, snapshot: None, head, device: None })
    })
    .with_context(|| format!("reset {id}"))?;
    let mut document = Document::default();
    document.set("overlay", &overlay)?;
    document.set("reset", &serde_json::json!({ "head": overlay.head, "live": live }))?;
    document.print("overlay", args.print.as_deref())
}
