//! Members of the archives that hold images: owned by root, without times, so that the same content gives the same bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::oci::Digest;

/// An archive that is being written. Only [`Members::finish`] ends it: one that is dropped by an error has no end, so that no
/// reader takes it for whole.
pub struct Members<'a>(ManuallyDrop<Builder<&'a mut dyn Write>>);

impl<'a> Members<'a> {
    /// An empty one.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Members(ManuallyDrop::new(Builder::new(out)))
    }

    /// Adds a directory.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.append(EntryType::Directory, name, 0o755, 0, io::empty())
    }

    /// Adds a file whose content is at hand.
    pub fn document(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file(name, bytes.len() as u64, bytes)
    }

    /// Adds a file of `size` bytes.
    pub fn file(&mut self, name: &str, size: u64, content: impl Read) -> Result<()> {
        self.append(EntryType::Regular, name, 0o644, size, content)
    }

    fn append(&mut self, kind: EntryType, name: &str, mode: u32, size: u64, content: impl Read) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(name)?;
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.0.append(&header, content).with_context(|| name.to_owned())
    }

    /// Ends it.
    pub fn finish(self) -> Result<()> {
        ManuallyDrop::into_inner(self.0).into_inner().and_then(|out| out.flush()).context("the archive")
    }
}

/// A blob that is hashed as it is read.
pub struct Checked {
    file: File,
    hash: Sha256,
}

impl Checked {
    /// From its beginning.
    pub fn new(file: File) -> Self {
        Checked { file, hash: Sha256::new() }
    }

    /// The digest of what was read.
    pub fn digest(self) -> Digest {
        Digest::from_hash(&self.hash.finalize())
    }
}

impl Read for Checked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(into)?;
        self.hash.update(&into[..n]);
        Ok(n)
    }
}
