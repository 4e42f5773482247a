//! Blobs against their digests and sizes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Seek};

use anyhow::{Context, Result};

use super::report::{Problem, Report};
use super::{AGAIN, Need, Needs};
use crate::interrupt;
use crate::oci::{Descriptor, Digest};
use crate::parallel;
use crate::store::Store;

/// Reads all blobs, and gives those that are not as they should be.
pub(super) fn check(store: &Store, needs: &Needs, repair: bool, report: &mut Report) -> Result<BTreeSet<Digest>> {
    let list: Vec<(&Digest, &Need)> = needs.iter().collect();
    let found = parallel::each(&list, |_, (digest, need)| Ok(look(store, digest, need)))?;
    let mut bad = BTreeSet::new();
    for ((digest, need), wrong) in list.into_iter().zip(found) {
        if wrong.is_some()
            && let Some(problem) = again(store, digest, need, repair)?
        {
            report.tell(problem)?;
            bad.insert(digest.clone());
        }
    }
    Ok(bad)
}

/// What is wrong with a blob.
enum Wrong {
    Missing,
    /// It is not what its digest says, or cannot be read.
    Damaged(String),
    /// It is, but who points to it says it is of another size.
    Size(u64),
}

fn look(store: &Store, digest: &Digest, need: &Need) -> Option<Wrong> {
    let read = || -> io::Result<(u64, Digest)> {
        let path = store.blob(digest);
        if !fs::symlink_metadata(&path)?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut file = File::open(path)?;
        let found = Digest::of_all(&file)?;
        Ok((file.stream_position()?, found))
    };
    match read() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some(Wrong::Missing),
        Err(e) => Some(Wrong::Damaged(e.to_string())),
        Ok((size, found)) if found != *digest => {
            let of = if need.images.is_empty() { String::new() } else { format!(" of {}", need.size) };
            Some(Wrong::Damaged(format!("its content is not what its digest says ({size} bytes{of})")))
        }
        Ok((size, _)) => (!need.images.is_empty() && size != need.size).then_some(Wrong::Size(size)),
    }
}

/// Looks once more, while nothing can come or go, and says what is wrong. It is printed when others can go on again: who reads it may
/// take his time.
fn again(store: &Store, digest: &Digest, need: &Need, repair: bool) -> Result<Option<Problem>> {
    let _commit = interrupt::commit();
    let _lock = store.lock()?;
    let is_needed = |descriptor: &Descriptor| need.from.contains(&descriptor.digest);
    let needed = store.index()?.manifests.iter().any(is_needed);
    let Some(wrong) = look(store, digest, need) else { return Ok(None) };
    if !needed && matches!(wrong, Wrong::Missing | Wrong::Size(_)) {
        return Ok(None);
    }
    let path = store.blob(digest);
    let kind = if need.kind == "layer" || need.kind.is_empty() { "blob" } else { need.kind };
    let what = match &wrong {
        Wrong::Missing => "it is missing".to_owned(),
        Wrong::Damaged(what) => what.clone(),
        Wrong::Size(size) => format!("it has {size} bytes, and the image says {}", need.size),
    };
    let problem =
        need.images.iter().fold(Problem::of(kind, digest, &path, what), |problem, image| problem.in_image(image));
    // Documents stay: the next import puts good ones in their place, and without its manifest nothing at all were left of an image.
    if repair && kind == "blob" && matches!(wrong, Wrong::Damaged(_)) {
        let aside = store.damaged_blob(digest);
        fs::rename(&path, &aside).with_context(|| format!("rename {} to {}", path.display(), aside.display()))?;
        return Ok(Some(match needed {
            true => problem.remedy(&format!("put aside; {AGAIN}")),
            false => problem.repaired("put aside; 'gc' deletes it"),
        }));
    }
    Ok(Some(problem.remedy(if need.images.is_empty() { "no image needs it; 'gc' deletes it" } else { AGAIN })))
}
