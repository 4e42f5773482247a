//! What came of a blob before it broke off: `images/.partial-<hex>`, kept from one command to the next.
//!
//! The name says what it is the beginning of, and nothing else does: all of it is hashed again with the rest. Whoever writes
//! to one has its lock. It is only ever added to; one that has a second name is a blob in its place by now, and is let be.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::Store;
use crate::oci::Digest;

/// How they are called.
pub const PREFIX: &str = ".partial-";
/// Untouched for so long, one is not waited for any more.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

/// The beginning of a blob, locked.
#[derive(Debug)]
pub struct Beginning {
    path: PathBuf,
    /// Where it is written to and read.
    pub file: File,
    /// How many bytes it had when it was opened.
    pub begun: u64,
}

impl Beginning {
    fn place(store: &Store, digest: &Digest) -> PathBuf {
        store.data().images().join(format!("{PREFIX}{}", digest.hex()))
    }

    /// Whether something of a blob is there.
    pub fn is_there(store: &Store, digest: &Digest) -> bool {
        fs::symlink_metadata(Self::place(store, digest)).is_ok_and(|found| found.len() > 0)
    }

    /// Opens what there is of a blob of `size` bytes, made empty where there is nothing; `None` where another process is
    /// getting it.
    pub fn open(store: &Store, digest: &Digest, size: u64) -> Result<Option<Self>> {
        let path = Self::place(store, digest);
        let context = || path.display().to_string();
        loop {
            let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
            let file = options.open(&path).with_context(context)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e).with_context(context),
            }
            let found = file.metadata().with_context(context)?;
            let there = fs::symlink_metadata(&path);
            // Whoever had it may be done with it, and have taken it away, between our opening and our locking it.
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (found.dev(), found.ino())) {
                if found.nlink() == 1 && found.len() <= size {
                    return Ok(Some(Beginning { path, file, begun: found.len() }));
                }
                fs::remove_file(&path).with_context(context)?;
            }
        }
    }

    /// Gives it a second name, in a stage.
    pub fn link_to(&self, place: &Path) -> Result<()> {
        fs::hard_link(&self.path, place).with_context(|| place.display().to_string())
    }

    /// Takes it away: it is in its place, or it is of no use.
    pub fn remove(self) {
        // What stays is found again, and is old one day.
        let _ = fs::remove_file(&self.path);
    }
}

/// Those that nobody has, and that are older than a day or of no use.
pub fn old(store: &Store) -> Result<Vec<PathBuf>> {
    let dir = store.data().images();
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let entry = entry.with_context(|| dir.display().to_string())?;
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let (modified, links) = match entry.metadata().and_then(|found| Ok((found.modified()?, found.nlink()))) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| entry.path().display().to_string()),
        };
        let is_old = SystemTime::now().duration_since(modified).is_ok_and(|age| age > OLD);
        // One with a second name was put in its place, and its puller killed before it could take this one away.
        if (is_old || links > 1) && !is_held(&entry.path()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_held(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}
