//! Images that came without being unpacked: `images/.unproven-<hex of the manifest's digest>`.
//!
//! Of the others it was seen, when they came, that their blobs unpack to what their configurations say. Of these it was not: until it
//! is, none of their layers counts as unpacked, though there may be one by that name. Else an image that lies would be given what is in
//! another one's layers.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Store;
use crate::oci::Digest;

impl Store {
    fn unproven_mark(&self, manifest: &Digest) -> PathBuf {
        self.root.images().join(format!(".unproven-{}", manifest.hex()))
    }

    /// Whether nobody has seen yet that an image's layers are what its configuration says. One whose mark cannot be looked at is.
    pub fn is_unproven(&self, manifest: &Digest) -> bool {
        !matches!(fs::symlink_metadata(self.unproven_mark(manifest)), Err(e) if e.kind() == io::ErrorKind::NotFound)
    }

    /// Notes that of an image, on the disk, before the index names it. The caller holds the lock.
    pub(super) fn mark_unproven(&self, manifest: &Digest) -> Result<()> {
        let (mark, dir) = (self.unproven_mark(manifest), self.root.images());
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&mark);
        made.with_context(|| mark.display().to_string())?;
        File::open(&dir).and_then(|dir| dir.sync_all()).with_context(|| format!("sync {}", dir.display()))
    }

    /// Takes that back: it was seen, or the manifest is deleted. Absent is fine.
    pub fn forget_unproven(&self, manifest: &Digest) -> Result<()> {
        let mark = self.unproven_mark(manifest);
        match fs::remove_file(&mark) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("delete {}", mark.display()))
            }
            _ => Ok(()),
        }
    }
}
