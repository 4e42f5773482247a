//! `mount --branch ID@N`: a new overlay that goes on from a snapshot of another one.
//!
//! It lies on the same lowers, and on the snapshot's layers where they are: nothing is copied. The overlays that have these layers
//! note it as one of their users (see [`crate::stacked`]), so that they, and the layers, stay as long as it is there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::backend::kernel;
use crate::cli::BackendChoice;
use crate::doc::{Backend, Branch, How, Overlay};
use crate::layer::Marks;
use crate::mount::Request;
use crate::record::{self, State};
use crate::state::{self, DataRoot};
use crate::{access, cover, exit, find, history, rotate, stacked, trees, upper};

/// What a branch begins with: an overlay, and the number of a snapshot of it.
#[derive(Debug, Clone)]
pub struct Base {
    /// The overlay.
    pub overlay: Overlay,
    /// The snapshot.
    pub number: u32,
}

/// The base that `ID@N` names; `ID` alone means the head. Errors with not found (3) or usage (2).
pub fn base(root: &DataRoot, argument: &OsStr) -> Result<Base> {
    let named = history::parse(argument)?;
    if named.to.is_some() {
        return Err(exit::usage("--branch begins with one snapshot: ID@N"));
    }
    let id = find::by_name(root, &named.overlay)?;
    let overlay = rotate::read(root, &id)?;
    let number = named.at.unwrap_or(overlay.head);
    let refused = |why: &str| Err(exit::usage(format!("--branch {}: {why}", argument.display())));
    if overlay.backend != Backend::Kernel {
        return refused(&format!("made by the {} backend, which has no snapshots", overlay.backend.name()));
    }
    if overlay.tmpfs.is_some() {
        return refused("its snapshots are in memory, and end with its mount");
    }
    if overlay.user_xattrs != (Marks::of_this_process() == Marks::User) {
        return refused("what is deleted in it is marked as another user's mounts read it; be the user who made it");
    }
    if record::state(&overlay)? == State::Lazy {
        return Err(exit::busy(format!("{id} was unmounted lazily, and is to be deleted")));
    }
    history::check(&overlay, number)?;
    Ok(Base { overlay, number })
}

/// What can be refused before anything is touched: the view is put together as that of the base is.
pub fn check(request: &Request) -> Result<()> {
    let kernel = matches!(request.backend, None | Some(BackendChoice::Auto | BackendChoice::Kernel));
    let others = [
        ("--backend", !kernel),
        ("--visible", request.visible),
        ("--hide", !request.hide.is_empty()),
        ("--idmap", request.idmap.is_some()),
        ("--no-recursive", !request.recursive),
    ];
    match others.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(exit::usage(format!("{option}: a branch is made as the overlay that it begins with"))),
        None => Ok(()),
    }
}

/// Records in a new overlay what it begins with.
pub fn begin(overlay: &mut Overlay, base: &Base) {
    let from = &base.overlay;
    overlay.branch = Some(Branch {
        of: from.id.clone(),
        snapshot: base.number,
        layers: history::named_layers(from, base.number),
        origin: from.branch.as_ref().map_or(&from.id, |branch| &branch.origin).clone(),
    });
    overlay.mounts = from.mounts.clone();
    overlay.cover = from.cover.clone();
    overlay.split = from.split;
    overlay.hide = from.hide.clone();
    overlay.idmap = from.idmap.clone();
}

/// Makes the directories of a branch's parts, and its copies of files that are mounted on files.
pub fn make_parts(overlay: &Overlay) -> Result<()> {
    for (number, mount) in overlay.mounts.iter().enumerate() {
        let Some(own) = &mount.upper else { continue };
        if let Some(place) = own.parent() {
            state::make_private_dir(place).with_context(|| place.display().to_string())?;
        }
        if mount.how == How::File
            && let Some(before) = rotate::file_before(overlay, overlay.head, number, mount)
            && !cover::copy_file(&before, own)?
        {
            anyhow::bail!("{}: it cannot be copied by this user", before.display());
        }
        if let (How::Overlay, Some(work)) = (mount.how, &mount.work) {
            upper::ensure_dir(own)?;
            upper::ensure_dir(work)?;
        }
    }
    for tree in trees::of(overlay) {
        upper::take_attributes(&crate::lowers::open_one(&rotate::top_of(overlay, &tree)?)?, &tree.upper)?;
    }
    Ok(())
}

/// Notes the new overlay as a user of those that it lies on, and makes what was never synced of their layers durable: as a part of
/// this one it must not be lost with the power. Errors with busy (4) where a layer has gone meanwhile.
pub fn claim(root: &DataRoot, overlay: &Overlay) -> Result<()> {
    let Some(branch) = &overlay.branch else { return Ok(()) };
    let layers = branch.layers.iter().map(|layer| &layer.overlay);
    let all: BTreeSet<&String> = layers.chain([&branch.of, &branch.origin]).collect();
    for base in all {
        let dir = record::dir(root, base);
        let _lock = record::lock(root, base)?.ok_or_else(|| find::no_such(base))?;
        let missing = branch.layers.iter().filter(|layer| layer.overlay == *base);
        let missing =
            missing.map(|layer| dir.join(history::SNAPSHOTS).join(&layer.layer)).find(|layer| !layer.exists());
        if let Some(layer) = missing {
            return Err(exit::busy(format!("{}: it has just been squashed", layer.display())));
        }
        stacked::note(&dir, &overlay.id)?;
    }
    access::with(overlay, settle_layers)
}

fn settle_layers(overlay: &Overlay) -> Result<()> {
    let layers = trees::of(overlay).into_iter().flat_map(|tree| tree.frozen);
    let layers = layers.map(|upper: PathBuf| (upper.with_file_name("work"), upper));
    for (work, upper) in layers.filter(|(work, _)| kernel::volatile_marker(work).exists()) {
        kernel::settle_volatile(&upper, &work)?;
    }
    Ok(())
}

/// Whether a directory of a layer stands in the list of a branch.
pub fn has_layer(overlay: &Overlay, of: &Path, layer: &OsStr) -> bool {
    overlay
        .branch
        .iter()
        .flat_map(|branch| &branch.layers)
        .any(|named| of.file_name() == Some(OsStr::new(&named.overlay)) && layer == OsStr::new(&named.layer))
}
