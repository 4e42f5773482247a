//! Unpacked layers against what their blobs unpack to: each is unpacked once more beside it, and the two are compared. So nothing
//! is known here of how a layer is made, and nothing that can be kept of it is left out.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use sheep_overlay::exit;
use sheep_overlay::stack::open_alone;
use sheep_overlay::unsynced;

use super::report::{Problem, Report};
use super::trees::{self, Differences};
use crate::interrupt;
use crate::oci::{Descriptor, Digest};
use crate::scratch::Scratch;
use crate::store::{LoadedImage, Store, users};
use crate::unpack;

/// So many differences of a layer are told one by one.
const TOLD: usize = 1000;

/// What is known of a layer's directory: the one that is as it should be.
type Checked = HashMap<PathBuf, PathBuf>;

/// Checks the unpacked layers of images whose blobs are not among the `bad` ones. What is not unpacked is not wrong.
pub(super) fn check(
    store: &Store,
    images: &[Descriptor],
    bad: &BTreeSet<Digest>,
    repair: bool,
    report: &mut Report,
) -> Result<()> {
    let mut checked = Checked::new();
    // What damaged layers should be, for those above them to be compared on.
    let mut kept = Vec::new();
    let mut closed = 0;
    for descriptor in images {
        let Ok(image) = store.load(descriptor) else { continue };
        let done = layers(store, &image, bad, &mut checked, |one| {
            closed += one.differences.closed;
            settle(store, one, repair, report, &mut kept)
        });
        match done {
            // Removed while it was looked at.
            Err(_) if !store.index()?.manifests.iter().any(|other| other.digest == descriptor.digest) => {}
            done => done?,
        }
    }
    if closed > 0 {
        let s = if closed == 1 { "y that may not be read was" } else { "ies that may not be read were" };
        exit::warn("sheep-images", &format!("verify: {closed} entr{s} not compared"));
    }
    Ok(())
}

/// Looks at the layers of an image that were not looked at before, and lets `settle` say which directory is as it should be.
fn layers(
    store: &Store,
    image: &LoadedImage,
    bad: &BTreeSet<Digest>,
    checked: &mut Checked,
    mut settle: impl FnMut(Damaged<'_>) -> Result<PathBuf>,
) -> Result<()> {
    // What is there by the names it gives is not what it was unpacked to, but another's, and is looked at as that.
    if store.is_unproven(&image.digest) {
        return Ok(());
    }
    let mut below = Some(Vec::new());
    for ((layer, diff_id), chain_id) in image.layers().zip(image.chain_ids()) {
        let what = || format!("layer {diff_id}");
        let on = below.as_deref().unwrap_or_default();
        let place = store.layer_path(diff_id, &chain_id, on).with_context(what)?;
        let Some(place) = place.filter(|_| !bad.contains(&layer.digest)) else {
            // What lies on it is checked only as far as that does not matter.
            below = None;
            continue;
        };
        let good = match checked.get(&place) {
            Some(good) => good.clone(),
            None => {
                let found = look(store, layer, diff_id, &place, below.as_deref()).with_context(what)?;
                let good = match found {
                    Some((fresh, differences)) => {
                        settle(Damaged { image, diff_id, place: &place, fresh, differences }).with_context(what)?
                    }
                    None => place.clone(),
                };
                checked.insert(place.clone(), good.clone());
                good
            }
        };
        if let Some(below) = &mut below {
            below.push(good);
        }
    }
    Ok(())
}

/// Unpacks a layer once more and compares. `None` where it went away meanwhile, or it is not known what it lies on and that matters.
fn look(
    store: &Store,
    layer: &Descriptor,
    diff_id: &Digest,
    place: &Path,
    below: Option<&[PathBuf]>,
) -> Result<Option<(Scratch, Differences)>> {
    let inode = || fs::symlink_metadata(place).map(|found| (found.dev(), found.ino())).ok();
    let before = inode();
    let fresh = match unpack::again(store, layer, diff_id) {
        Ok(fresh) => fresh,
        // The image was removed.
        Err(_) if !store.blob(&layer.digest).exists() => return Ok(None),
        Err(error) => return Err(error),
    };
    if place != store.layer_dir(diff_id) {
        let Some(below) = below else { return Ok(None) };
        fresh.complete(below, diff_id, diff_id)?;
    }
    let compare = || -> Result<Differences> {
        let (there, _) = open_alone(place).with_context(|| place.display().to_string())?;
        trees::compare(fresh.scratch.fd(), &there)
    };
    let differences = compare();
    // One that was removed, or mended by another, while it was looked at.
    if before.is_none() || before != inode() {
        return Ok(None);
    }
    Ok(Some((fresh.scratch, differences?)))
}

/// A layer, and in what it is not as it should be.
struct Damaged<'a> {
    image: &'a LoadedImage,
    diff_id: &'a Digest,
    place: &'a Path,
    fresh: Scratch,
    differences: Differences,
}

/// Says what is wrong with a layer, and mends it. Gives the directory that is as it should be.
fn settle(
    store: &Store,
    one: Damaged<'_>,
    repair: bool,
    report: &mut Report,
    kept: &mut Vec<Scratch>,
) -> Result<PathBuf> {
    let Damaged { image, diff_id, place, fresh, differences } = one;
    if differences.found.is_empty() {
        return Ok(place.to_path_buf());
    }
    let (mended, fresh) = match repair {
        true => match swap(store, diff_id, place, fresh)? {
            Swap::Done => (true, None),
            Swap::Busy(fresh, why) => {
                report.busy(why);
                (false, Some(fresh))
            }
        },
        false => (false, Some(fresh)),
    };
    let name = image.reference.as_deref().unwrap_or(image.digest.as_str());
    let tell = |problem: Problem| match (mended, repair) {
        (true, _) => problem.repaired("unpacked anew"),
        (false, true) => problem.remedy("it is in use"),
        (false, false) => problem.remedy("'verify --repair' unpacks the layer anew"),
    };
    let more = differences.found.len().saturating_sub(TOLD);
    for (path, what) in differences.found.into_iter().take(TOLD) {
        let problem = Problem::of("layer", diff_id, place, what.join(", ")).in_image(name).at(&path);
        report.tell(tell(problem))?;
    }
    if more > 0 {
        report.tell(tell(Problem::of("layer", diff_id, place, format!("and {more} entries more")).in_image(name)))?;
    }
    Ok(match fresh {
        Some(fresh) => {
            let path = fresh.path().to_path_buf();
            kept.push(fresh);
            path
        }
        None => place.to_path_buf(),
    })
}

enum Swap {
    Done,
    Busy(Scratch, String),
}

/// Puts the good directory in the place of the damaged one, at once, unless an overlay uses that: under a mount its files must not
/// become others.
fn swap(store: &Store, diff_id: &Digest, place: &Path, fresh: Scratch) -> Result<Swap> {
    rustix::fs::syncfs(fresh.fd()).context("sync")?;
    let damaged = {
        let _commit = interrupt::commit();
        let _lock = store.lock()?;
        let _removal = store.data().lock_layers_for_removal()?;
        let hex = place.file_name().unwrap_or_default().to_string_lossy();
        let users = users::overlays_using(store, &BTreeSet::from([Digest::parse(&format!("sha256:{hex}"))?]))?;
        if !users.is_empty() {
            let in_use = users::named(&users);
            let why =
                format!("layer {diff_id} is damaged, and {in_use}; 'sheep-overlay umount' (or 'sheep-run rm') first");
            return Ok(Swap::Busy(fresh, why));
        }
        if !place.exists() {
            return Ok(Swap::Done);
        }
        let damaged = fresh.exchange(place)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(store.layers(), flags, Mode::empty())?;
        rustix::fs::fsync(&parent).context("sync")?;
        unsynced::forget(parent.as_fd(), OsStr::new(&*hex))?;
        damaged
    };
    damaged.delete()?;
    Ok(Swap::Done)
}
