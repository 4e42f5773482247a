//! `mount --freeze`: an overlay whose lower others go on changing.
//!
//! What OverlayFS shows of a lower that is changed while it is mounted is undefined (Documentation/filesystems/overlayfs.rst,
//! "Changes to underlying filesystems"). Either the overlay lies on a copy that nobody changes, which costs nothing where
//! the lower is a btrfs subvolume and no content where files can be shared (reflink); or it does not. What the lower has is listed
//! in any case, so that `status` and `apply` tell every change of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::backend::{btrfs, copy};
use crate::cli::FreezeWay;
use crate::doc::{DocPath, Freeze, Overlay};
use crate::lowers::{self, Lower};
use crate::mount::Request;
use crate::state::{self, DataRoot};
use crate::{exit, listing, mountinfo, remove};

/// The name of the copy in the directory that it has for itself.
const TREE: &str = "tree";

/// Freezes the lowers of an overlay that is being made in `dir`, as far as was asked, and gives those that it is to lie on.
pub fn freeze(
    root: &DataRoot,
    overlay: &mut Overlay,
    dir: &Path,
    lowers: Vec<Lower>,
    request: &Request,
) -> Result<Vec<Lower>> {
    let Some(way) = request.freeze else { return Ok(lowers) };
    // What the data directory has of images nobody changes.
    if lowers.iter().all(|lower| lower.path.starts_with(root.layers())) {
        return Ok(lowers);
    }
    let ways: &[FreezeWay] = match way {
        FreezeWay::Auto => &[FreezeWay::Btrfs, FreezeWay::Reflink, FreezeWay::Listing],
        FreezeWay::Btrfs => &[FreezeWay::Btrfs],
        FreezeWay::Reflink => &[FreezeWay::Reflink],
        FreezeWay::Listing => &[FreezeWay::Listing],
    };
    let paths: Vec<PathBuf> = lowers.iter().map(|lower| lower.path.clone()).collect();
    listing::record(dir, &paths)?;
    let mut refusals = Vec::new();
    for way in ways {
        let done = match way {
            FreezeWay::Btrfs | FreezeWay::Reflink => hold(&lowers, dir, *way, request.recursive).map(Some),
            FreezeWay::Auto | FreezeWay::Listing => Ok(None),
        };
        match done {
            Ok(held) => {
                overlay.freeze = Some(match way {
                    FreezeWay::Btrfs => Freeze::Btrfs,
                    FreezeWay::Reflink => Freeze::Reflink,
                    FreezeWay::Auto | FreezeWay::Listing => Freeze::Listing,
                });
                let Some(held) = held else { return Ok(lowers) };
                overlay.held = vec![DocPath(held.path.clone())];
                return Ok(vec![held]);
            }
            Err(error) if crate::sys::interrupted() || ways.len() == 1 => return Err(error.context("--freeze")),
            Err(error) => refusals.push(format!("{error:#}")),
        }
    }
    Err(exit::usage(format!("--freeze: {}", refusals.join("; "))))
}

/// Where the copy of a lower is.
pub fn place(dir: &Path, number: usize) -> PathBuf {
    dir.join("held").join(number.to_string()).join(TREE)
}

/// Makes a copy for the overlay to lie on.
fn hold(lowers: &[Lower], dir: &Path, way: FreezeWay, recursive: bool) -> Result<Lower> {
    let [only] = lowers else {
        return Err(exit::usage("several lowers can only be listed: --freeze=listing"));
    };
    if recursive
        && let Some(below) =
            mountinfo::read()?.iter().find(|entry| entry.point.starts_with(&only.path) && entry.point != only.path)
    {
        return Err(exit::usage(format!(
            "{} is mounted below the lower, of which a copy shows nothing: --no-recursive, or --freeze=listing",
            below.point.display()
        )));
    }
    let tree = place(dir, 0);
    let Some(above) = tree.parent() else { return lowers::open_one(&tree) };
    state::make_private_dir(above).with_context(|| above.display().to_string())?;
    let made = match way {
        FreezeWay::Btrfs => btrfs::snapshot(&only.path, above, c"tree").map_err(anyhow::Error::from),
        _ => copied(&only.path, &tree),
    };
    if let Err(error) = made {
        remove::tree(dir, c"held")?;
        return Err(error);
    }
    lowers::open_one(&tree)
}

fn copied(lower: &Path, tree: &Path) -> Result<()> {
    state::make_private_dir(tree).with_context(|| tree.display().to_string())?;
    let made = copy::copy_stack(&[lower.to_path_buf()], tree, true)?;
    // A view that does not have it all is not the lower.
    if made.owners_lost + made.devices_left_out + made.xattrs_lost > 0 {
        return Err(exit::usage(format!(
            "{}: this user cannot copy all of it faithfully (owners, devices or attributes): --freeze=listing",
            lower.display()
        )));
    }
    Ok(())
}

/// Deletes what is no plain directory of a frozen lower.
pub fn release(overlay: &Overlay, dir: &Path) {
    if overlay.freeze == Some(Freeze::Btrfs) {
        // Where that is not allowed, it is deleted like any directory, file by file.
        let _ = btrfs::delete(&dir.join("held/0"), c"tree");
    }
}
