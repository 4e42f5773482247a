//! The tree as a tar archive: sorted, owned by root, times of the host's files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use super::tree::{Node, Tree};

/// Writes the whole tree.
pub fn write(tree: &Tree, out: impl Write) -> Result<()> {
    let newest = u64::try_from(tree.newest()).unwrap_or(0);
    let mut builder = Builder::new(BufWriter::with_capacity(64 * 1024, out));
    // Names of files with more than one: (device, inode) → the first.
    let mut linked: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for (path, node) in tree.nodes() {
        append(&mut builder, path, node, newest, &mut linked).with_context(|| path.display().to_string())?;
    }
    builder.into_inner().and_then(|mut out| out.flush()).context("pack")
}

fn append<W: Write>(
    builder: &mut Builder<W>,
    path: &Path,
    node: &Node,
    newest: u64,
    linked: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<()> {
    let name = path.strip_prefix("/").unwrap_or(path);
    match node {
        Node::Directory(mode) => {
            let mut header = header(EntryType::Directory, *mode, newest, 0);
            if name.as_os_str().is_empty() {
                // The builder would make nothing of "./".
                header.as_old_mut().name[..2].copy_from_slice(b"./");
                header.set_cksum();
                return Ok(builder.append(&header, io::empty())?);
            }
            Ok(builder.append_data(&mut header, name, io::empty())?)
        }
        Node::Symlink(target) => {
            let mut header = header(EntryType::Symlink, 0o777, newest, 0);
            Ok(builder.append_link(&mut header, name, target)?)
        }
        Node::Text(text) => {
            let mut header = header(EntryType::Regular, 0o644, newest, text.len() as u64);
            Ok(builder.append_data(&mut header, name, text.as_bytes())?)
        }
        Node::File { source, mtime } => {
            let file = File::open(source)?;
            let meta = file.metadata()?;
            let time = u64::try_from(*mtime).unwrap_or(0);
            if meta.nlink() > 1 {
                let first = linked.entry((meta.dev(), meta.ino())).or_insert_with(|| name.to_path_buf());
                if first != name {
                    let mut header = header(EntryType::Link, meta.mode() & 0o755, time, 0);
                    return Ok(builder.append_link(&mut header, name, first)?);
                }
            }
            // No setuid, no setgid, and nobody but its owner writes it.
            let mut header = header(EntryType::Regular, meta.mode() & 0o755, time, meta.len());
            let content = Exactly { file, left: meta.len() };
            Ok(builder.append_data(&mut header, name, content)?)
        }
    }
}

fn header(kind: EntryType, mode: u32, mtime: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(size);
    header
}

/// As many bytes of a file as were promised: one that is changed meanwhile must not shift what follows it.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let n = self.file.read(&mut into[..most])?;
        if n == 0 && most > 0 {
            return Err(io::Error::other("it was cut short while it was read"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}
