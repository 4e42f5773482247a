//! The writable trees of an overlay: one, and one more for each mount below its lower that is overlaid.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::doc::{DocPath, How, Overlay};

/// A writable tree over lowers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Where it is in the merged view: without a leading slash, empty for the root.
    pub prefix: Vec<u8>,
    /// What it lies on, bottom first, the cover (a layer of our own, see [`Overlay::cover`]) included; the cover alone
    /// where the lower is shown entry by entry.
    pub lowers: Vec<PathBuf>,
    /// Where its changes are, with the kernel and the fuse backend.
    pub upper: PathBuf,
    /// The scratch space beside it.
    pub work: PathBuf,
}

/// The trees of an overlay: the root first, parents before what is mounted in them.
pub fn of(overlay: &Overlay) -> Vec<Tree> {
    let paths = |lower: &[DocPath], split: bool, cover: &Option<DocPath>| {
        let lower = if split { &[] } else { lower };
        lower.iter().chain(cover).map(|path| path.0.clone()).collect()
    };
    let root = Tree {
        prefix: Vec::new(),
        lowers: paths(&overlay.lower, overlay.split, &overlay.cover),
        upper: overlay.upper.0.clone(),
        work: overlay.work.0.clone(),
    };
    let below = overlay.mounts.iter().filter(|mount| mount.how == How::Overlay).filter_map(|mount| {
        Some(Tree {
            prefix: mount.path.as_os_str().as_bytes().strip_prefix(b"/")?.to_vec(),
            lowers: paths(&mount.lower, mount.split, &mount.cover),
            upper: mount.upper.as_ref()?.0.clone(),
            work: mount.work.as_ref()?.0.clone(),
        })
    });
    std::iter::once(root).chain(below).collect()
}
