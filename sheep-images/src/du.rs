//! `du`: how much disk images take, what of it they share, and what removing one would free.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use sheep_overlay::doc::{self, Document};
use sheep_overlay::du::Sum;
use sheep_overlay::exit;

use crate::cli::Du;
use crate::ls::{human_size, table};
use crate::oci::{Descriptor, Digest};
use crate::store::{Store, Uses, position};

/// What an image takes, in bytes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Used {
    /// Its blobs.
    stored: u64,
    /// Its layers' directories.
    unpacked: u64,
    /// Both.
    bytes: u64,
    /// What other images have too; another name of the same image is such an image.
    shared: u64,
    /// What no other image has.
    own: u64,
}

/// What all takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Total {
    stored: u64,
    unpacked: u64,
    /// Of both, what no image has.
    unused: u64,
    /// What was changed in overlays: see `sheep-overlay du`.
    overlays: u64,
    /// All else: records, logs, the directories themselves.
    rest: u64,
    bytes: u64,
}

/// What is on the disk, by digest: blobs, and layers' directories.
#[derive(Debug, Default)]
struct OnDisk {
    blobs: HashMap<String, u64>,
    layers: HashMap<String, u64>,
}

/// Runs the verb. An image that is damaged is named on stderr and counted as far as it can be read; the exit code is 1 then.
pub fn run(store: &Store, args: &Du) -> Result<()> {
    let index = store.index().context("du")?;
    let mut several = exit::Several::of("sheep-images");
    let mut uses = Vec::with_capacity(index.manifests.len());
    for descriptor in &index.manifests {
        let all = store.uses(std::slice::from_ref(descriptor));
        uses.push(match all {
            Ok(all) => all,
            Err(error) => {
                several.add(Err(error.context(format!("du: {}", name(descriptor)))));
                store.uses_as_far_as_readable(descriptor)?
            }
        });
    }
    let mut chosen = Vec::new();
    for reference in &args.references {
        match position(&index, reference) {
            Ok(at) => chosen.push(at),
            Err(error) => several.add(Err(error.context(format!("du {reference}")))),
        }
    }
    let all = args.references.is_empty();
    if all {
        chosen = (0..index.manifests.len()).collect();
    }
    let (disk, total) = measure(store, &uses).context("du")?;
    let total = if all { total } else { disk.of_some(chosen.iter().map(|at| &uses[*at])) };
    let mut out = Vec::new();
    let mut rows = vec![["REFERENCE", "STORED", "UNPACKED", "TOTAL", "SHARED", "OWN"].map(str::to_owned)];
    for at in chosen {
        let used = disk.of_one(&uses, at);
        if args.json {
            out.extend(document(store, &index.manifests[at], &used)?.to_line());
        }
        let sizes = [used.stored, used.unpacked, used.bytes, used.shared, used.own].map(human_size);
        let [stored, unpacked, bytes, shared, own] = sizes;
        rows.push([name(&index.manifests[at]), stored, unpacked, bytes, shared, own]);
    }
    if args.json {
        let mut document = Document::default();
        document.set("total", &total)?;
        out.extend(document.to_line());
    } else {
        out = for_people(rows, &total).into_bytes();
    }
    doc::write_out(&out)?;
    several.result()
}

/// The image's document as far as it can be read, and what it takes.
fn document(store: &Store, descriptor: &Descriptor, used: &Used) -> Result<Document> {
    let mut document = match store.load(descriptor) {
        Ok(image) => store.document(&image)?,
        Err(_) => Document::default(),
    };
    document.set("du", used)?;
    Ok(document)
}

fn name(descriptor: &Descriptor) -> String {
    descriptor.ref_name().map_or_else(|| descriptor.digest.to_string(), crate::store::familiar)
}

fn for_people(mut rows: Vec<[String; 6]>, total: &Total) -> String {
    let none = String::new;
    for (what, bytes) in [("(no image's)", total.unused), ("(overlays)", total.overlays), ("(all else)", total.rest)] {
        if bytes > 0 {
            rows.push([what.to_owned(), none(), none(), human_size(bytes), none(), none()]);
        }
    }
    let [stored, unpacked, bytes] = [total.stored, total.unpacked, total.bytes].map(human_size);
    rows.push(["total".to_owned(), stored, unpacked, bytes, none(), none()]);
    table(&rows)
}

/// Looks at all of the data directory, each inode once.
fn measure(store: &Store, uses: &[Uses]) -> Result<(OnDisk, Total)> {
    let mut sum = Sum::of_what_is_open();
    let (mut disk, mut total) = (OnDisk::default(), Total::default());
    let data = store.data();
    for (dir, list) in [(store.blobs(), &mut disk.blobs), (store.layers(), &mut disk.layers)] {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry.with_context(|| dir.display().to_string())?;
            let bytes = add(&mut sum, &entry.path())?;
            list.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
        }
    }
    let known: BTreeSet<&str> =
        uses.iter().flat_map(|uses| uses.blobs.iter().chain(&uses.layers)).map(Digest::hex).collect();
    let all = || disk.blobs.iter().chain(&disk.layers);
    total.stored = disk.blobs.values().sum();
    total.unpacked = disk.layers.values().sum();
    total.unused = all().filter(|(name, _)| !known.contains(name.as_str())).map(|(_, bytes)| bytes).sum();
    if data.overlays().is_dir() {
        let before = sum.used.bytes;
        sum.tree(&data.overlays())?;
        total.overlays = sum.used.bytes - before;
    }
    let before = sum.used.bytes;
    sum.add(&rustix::fs::stat(data.path()).with_context(|| data.path().display().to_string())?);
    sum.tree_without(data.path(), &["images/blobs/sha256", "layers/sha256", "overlay"])?;
    total.rest = sum.used.bytes - before;
    total.bytes = sum.used.bytes;
    if sum.closed > 0 {
        let s = if sum.closed == 1 { "y that may not be read is" } else { "ies that may not be read are" };
        exit::warn("sheep-images", &format!("du: what is in {} director{s} not counted", sum.closed));
    }
    Ok((disk, total))
}

/// Counts a file, or a directory with all that is in it, and gives its bytes. What has gone meanwhile takes nothing.
fn add(sum: &mut Sum, path: &Path) -> Result<u64> {
    let before = sum.used.bytes;
    let stat = match rustix::fs::lstat(path) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(0),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    sum.add(&stat);
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        let is_gone = |error: &anyhow::Error| {
            error.chain().any(|cause| {
                cause.downcast_ref() == Some(&rustix::io::Errno::NOENT)
                    || cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound)
            })
        };
        match sum.tree(path) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(sum.used.bytes - before)
}

/// How many bytes a file or directory takes, all that is in it among them.
pub fn on_disk(path: &Path) -> Result<u64> {
    add(&mut Sum::of_what_is_open(), path)
}

impl OnDisk {
    /// What one of the images takes.
    fn of_one(&self, all: &[Uses], at: usize) -> Used {
        let others = || all.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, uses)| uses);
        let Uses { blobs, layers } = &all[at];
        let stored = split(blobs, &self.blobs, |digest| others().any(|uses| uses.blobs.contains(digest)));
        let unpacked = split(layers, &self.layers, |digest| others().any(|uses| uses.layers.contains(digest)));
        Used {
            stored: stored.0 + stored.1,
            unpacked: unpacked.0 + unpacked.1,
            bytes: stored.0 + stored.1 + unpacked.0 + unpacked.1,
            shared: stored.0 + unpacked.0,
            own: stored.1 + unpacked.1,
        }
    }

    /// What some of the images take together.
    fn of_some<'a>(&self, uses: impl Iterator<Item = &'a Uses> + Clone) -> Total {
        let sum = |digests: BTreeSet<&Digest>, list: &HashMap<String, u64>| -> u64 {
            digests.into_iter().filter_map(|digest| list.get(digest.hex())).sum()
        };
        let stored = sum(uses.clone().flat_map(|uses| &uses.blobs).collect(), &self.blobs);
        let unpacked = sum(uses.flat_map(|uses| &uses.layers).collect(), &self.layers);
        Total { stored, unpacked, bytes: stored + unpacked, ..Total::default() }
    }
}

/// How many bytes of these are shared, and how many are not.
fn split(digests: &BTreeSet<Digest>, sizes: &HashMap<String, u64>, is_shared: impl Fn(&Digest) -> bool) -> (u64, u64) {
    let (mut shared, mut own) = (0, 0);
    for digest in digests {
        let bytes = sizes.get(digest.hex()).copied().unwrap_or_default();
        if is_shared(digest) { shared += bytes } else { own += bytes }
    }
    (shared, own)
}
