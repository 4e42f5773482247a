//! `export`: an image as an archive of an OCI layout (image-layout.md), on stdout: what skopeo, podman, docker and umoci take.
//!
//! The same image gives the same bytes: its blobs are stored as they came, and are written in the order of their digests, with
//! no times. Each is checked on its way; one that is damaged ends the archive before its end, which every reader sees.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::mem::ManuallyDrop;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sheep_overlay::exit;
use tar::{Builder, EntryType, Header};

use crate::cli::Export;
use crate::oci::{Digest, Index};
use crate::store::{Store, position};

/// Runs the verb.
pub fn run(store: &Store, args: &Export) -> Result<()> {
    let what = format!("export {}", args.reference);
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(exit::usage("stdout is a terminal; an archive would be written there: > FILE, or a pipe"))
            .context(what);
    }
    let work = || -> Result<()> {
        let mut index = store.index()?;
        let at = position(&index, &args.reference)?;
        let image = index.manifests.swap_remove(at);
        // All of it can be read, or nothing is written.
        let loaded = store.load(&image)?;
        let needed: HashSet<&Digest> = loaded.layers().map(|(layer, _)| &layer.digest).collect();
        let blobs: Vec<(Digest, File)> = store
            .uses(std::slice::from_ref(&image))?
            .blobs
            .into_iter()
            // Of an image for several platforms, others may have stored only the one.
            .filter(|digest| needed.contains(digest) || store.blob(digest).exists())
            .map(|digest| Ok((digest.clone(), store.open_blob(&digest)?)))
            .collect::<Result<_>>()?;
        let mut alone = Index::empty();
        alone.manifests = vec![image];
        // Dropped, it would end the archive as if all were well.
        let mut archive = ManuallyDrop::new(Builder::new(BufWriter::with_capacity(1 << 20, stdout.lock())));
        document(&mut archive, "oci-layout", &serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
        document(&mut archive, "index.json", &serde_json::to_vec(&alone)?)?;
        for dir in ["blobs/", "blobs/sha256/"] {
            append(&mut archive, EntryType::Directory, dir, 0o755, 0, io::empty())?;
        }
        for (digest, file) in blobs {
            let size = file.metadata()?.len();
            let mut content = Checked { file, hash: Sha256::new() };
            let name = format!("blobs/sha256/{}", digest.hex());
            append(&mut archive, EntryType::Regular, &name, 0o644, size, &mut content)?;
            if Digest::from_hash(&content.hash.finalize()) != digest {
                bail!("{} is damaged: its content is not what its digest says", store.blob(&digest).display());
            }
        }
        ManuallyDrop::into_inner(archive).into_inner().and_then(|mut out| out.flush()).context("stdout")
    };
    work().context(what)
}

fn document(archive: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    append(archive, EntryType::Regular, name, 0o644, bytes.len() as u64, bytes)
}

fn append(
    archive: &mut Builder<impl Write>,
    kind: EntryType,
    name: &str,
    mode: u32,
    size: u64,
    content: impl Read,
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(name)?;
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    archive.append(&header, content).context("stdout")
}

/// A blob that is hashed as it is read.
struct Checked {
    file: File,
    hash: Sha256,
}

impl Read for Checked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(into)?;
        self.hash.update(&into[..n]);
        Ok(n)
    }
}
