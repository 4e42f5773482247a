//! `snapshot`: what was changed is put aside, as a layer that nobody changes any more, and work goes on in an empty upper. It
//! is a rename, however much that is.

use anyhow::{Context, Result};

use crate::doc::{Document, Overlay, Pending, Snapshot};
use crate::state::{self, DataRoot};
use crate::turn::{self, Live};
use crate::{cli, find, history};

/// The document's key `snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// How the mounted overlay came to go on in another upper.
    pub live: Live,
}

/// Makes a snapshot, and prints the overlay's document with it.
pub fn run(root: &DataRoot, args: &cli::Snapshot) -> Result<()> {
    let id = find::by_name(root, &args.overlay)?;
    // `snapshot .` from within: this process at least shall not be what keeps it busy.
    std::env::set_current_dir("/").context("chdir /")?;
    let message = args.message.clone();
    let (overlay, live) =
        turn::turn(root, &id, |overlay| Ok(plan(overlay, message))).with_context(|| format!("snapshot {id}"))?;
    let mut document = Document::default();
    document.set("overlay", &overlay)?;
    if let Some(snapshot) = overlay.snapshots.last() {
        document.set("snapshot", &Made { snapshot: snapshot.clone(), live })?;
    }
    document.print("snapshot", args.print.as_deref())
}

fn plan(overlay: &Overlay, message: Option<String>) -> Pending {
    let number = history::next_number(overlay);
    let layer = number.to_string();
    let snapshot = Snapshot { number, parent: overlay.head, created: state::now(), message, layer: layer.clone() };
    Pending { layer, snapshot: Some(snapshot), head: number, device: None }
}
