//! The writable trees of an overlay: one, and one more for each mount below its lower that is overlaid.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::doc::{DocPath, How, MountRoot, Overlay};
use crate::{history, parts};

/// A writable tree over lowers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Where it is in the merged view: without a leading slash, empty for the root.
    pub prefix: Vec<u8>,
    /// What it lies on, bottom first, the cover (a layer of our own, see [`Overlay::cover`]) included; the cover alone
    /// where the lower is shown entry by entry.
    pub lowers: Vec<PathBuf>,
    /// The changes that were put aside by snapshots and are layers now, bottom first; they lie between the lowers and the upper.
    pub frozen: Vec<PathBuf>,
    /// Where its changes are, with the kernel and the fuse backend.
    pub upper: PathBuf,
    /// The scratch space beside it.
    pub work: PathBuf,
    /// What the root of a part was laid on.
    pub root: Option<MountRoot>,
}

impl Tree {
    /// All layers of changes, bottom first: the frozen ones and the upper.
    pub fn layers(&self) -> Vec<PathBuf> {
        self.frozen.iter().chain([&self.upper]).cloned().collect()
    }
}

/// The trees of an overlay: the root first, parents before what is mounted in them.
pub fn of(overlay: &Overlay) -> Vec<Tree> {
    on(overlay, overlay.head)
}

/// The trees as they would be, did the upper lie on that snapshot.
pub fn on(overlay: &Overlay, head: u32) -> Vec<Tree> {
    let layers = history::layers(overlay, head);
    let paths = |lower: &[DocPath], split: bool, cover: &Option<DocPath>| {
        let lower = if split { &[] } else { lower };
        lower.iter().chain(cover).map(|path| path.0.clone()).collect()
    };
    let root = Tree {
        prefix: Vec::new(),
        lowers: paths(overlay.base(), overlay.split, &overlay.cover),
        frozen: layers.iter().map(|layer| layer.join("upper")).collect(),
        upper: overlay.upper.0.clone(),
        work: overlay.work.0.clone(),
        root: None,
    };
    let overlaid = overlay.mounts.iter().enumerate().filter(|(_, mount)| mount.how == How::Overlay);
    let below = overlaid.filter_map(|(number, mount)| {
        Some(Tree {
            prefix: mount.path.as_os_str().as_bytes().strip_prefix(b"/")?.to_vec(),
            lowers: paths(&mount.lower, mount.split, &mount.cover),
            frozen: layers.iter().map(|layer| parts::part_dir(layer, number).join("upper")).collect(),
            upper: mount.upper.as_ref()?.0.clone(),
            work: mount.work.as_ref()?.0.clone(),
            root: mount.root,
        })
    });
    std::iter::once(root).chain(below).collect()
}
