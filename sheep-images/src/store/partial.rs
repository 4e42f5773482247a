//! Blobs that came whole of an image that did not: `images/.partial/<hex>.<size>`.
//!
//! They are links to what a stage has, made as soon as a blob's digest is checked, so they are there also when the process is killed,
//! or its stage is cleared up. Who needs one makes a link of it in a stage of its own, and then nobody can take it away. Nothing is
//! waited for until it is on the disk: the size in the name tells most of what a power cut leaves, and who takes one hashes it again.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::Store;
use crate::oci::{Descriptor, Digest};

/// After so long nobody sends the rest any more.
const OLD: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Another process may delete the directory just as it was made; not so often.
const TRIES: u32 = 100;

/// A blob that waits for the rest of its image.
#[derive(Debug)]
pub struct Partial {
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Whether its file has that size.
    pub is_whole: bool,
    /// Whether it has waited too long.
    pub is_old: bool,
}

impl Store {
    fn partial_dir(&self) -> PathBuf {
        self.root.images().join(".partial")
    }

    /// Where such a blob is put.
    pub fn partial(&self, blob: &Descriptor) -> PathBuf {
        self.partial_dir().join(format!("{}.{}", blob.digest.hex(), blob.size))
    }

    /// Keeps a blob whose digest was checked. Tells whether it was not there before.
    pub fn keep_partial(&self, file: &Path, blob: &Descriptor) -> Result<bool> {
        let (dir, place) = (self.partial_dir(), self.partial(blob));
        let context = || place.display().to_string();
        for _ in 0..TRIES {
            match fs::hard_link(file, &place) {
                Ok(()) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).with_context(context),
            }
            // Not made yet, or empty a moment ago, and so deleted.
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).with_context(context),
                _ => {}
            }
        }
        bail!("{}: it goes away again and again", dir.display())
    }

    /// Deletes one; absent is fine.
    pub fn forget_partial(&self, blob: &Descriptor) -> Result<()> {
        self.delete_partial(&self.partial(blob))
    }

    /// The same, by where it is. The last one takes the directory with it.
    pub fn delete_partial(&self, place: &Path) -> Result<()> {
        match fs::remove_file(place) {
            Ok(()) => {
                let _ = fs::remove_dir(self.partial_dir());
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).with_context(|| format!("delete {}", place.display())),
        }
    }

    /// Those that there are, by digest.
    pub fn partials(&self) -> Result<Vec<Partial>> {
        let dir = self.partial_dir();
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| dir.display().to_string())?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| dir.display().to_string())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((hex, size)) = name.split_once('.') else { continue };
            let (Ok(digest), Ok(size)) = (Digest::parse(&format!("sha256:{hex}")), size.parse::<u64>()) else {
                continue;
            };
            // It may be gone by now: its image is complete.
            let Some(there) = fs::symlink_metadata(entry.path()).ok().filter(fs::Metadata::is_file) else { continue };
            let age = there.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            let is_old = age.is_some_and(|age| age > OLD);
            found.push(Partial { digest, size, path: entry.path(), is_whole: there.len() == size, is_old });
        }
        found.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(found)
    }
}
