//! The files of an image as other tools write them: in a directory, or in an archive.
//!
//! An archive is read once for what is in it, and then by places: where it comes through a pipe or is compressed, it is
//! first written to a file that has no name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, bail};

use crate::cli::LimitArgs;
use crate::codec::{self, Codec};
use crate::regular;
use crate::stream::{Counted, Expanding};
use crate::unpack::archive::{self, Archive};

/// So many members no image has: each is a blob, a link or a directory of a layer.
const MOST_MEMBERS: usize = 100_000;
/// Bytes of a name, or of the target of a link, in the archive of an image.
const NAME_MAX: usize = 1024;
/// Names of links that lead to links, at most.
const LINKS: usize = 8;
/// How much of a file is looked at to tell what it is: more than a block of zstd, which is decoded whole or not at all.
const PEEK: usize = 192 << 10;
const READ_AHEAD: usize = 256 << 10;

/// Where an image's files are.
#[derive(Debug)]
pub enum Files {
    /// In a directory. Whoever filled it may be another than the one who names it.
    Directory(File),
    /// In an archive.
    Archive(File, HashMap<String, Member>),
    /// Documents at hand, by name.
    Documents(HashMap<String, Vec<u8>>),
}

/// What an archive has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A file: where it begins, and how long it is.
    File(u64, u64),
    /// Another name, from the top of the archive.
    Link(String),
}

impl Files {
    /// Reads what an archive has. `file` is seekable and not compressed.
    pub fn archive(file: File) -> Result<Self> {
        let mut members = HashMap::new();
        let mut reader = BufReader::new(&file);
        reader.rewind()?;
        let mut archive = Archive::new(reader);
        while let Some(entry) = archive.next_member().context("the archive")? {
            let at = archive.content_at();
            archive.seek_past_content().context("the archive")?;
            let longest = entry.name.len().max(entry.link.len());
            if longest > NAME_MAX {
                bail!(
                    "a name of {longest} bytes: this is no archive of an image; --format rootfs takes it as one of files"
                );
            }
            let Ok(name) = String::from_utf8(entry.name) else { continue };
            let name = plain(&name);
            let member = match entry.kind {
                archive::Kind::File => {
                    if entry.regions.iter().map(|(_, length)| length).sum::<u64>() != entry.size {
                        bail!("{name}: a sparse file in the archive of an image; pack it without --sparse");
                    }
                    Member::File(at, entry.size)
                }
                archive::Kind::HardLink | archive::Kind::Symlink => {
                    let Ok(target) = String::from_utf8(entry.link) else { continue };
                    let is_hard = entry.kind == archive::Kind::HardLink;
                    Member::Link(if is_hard { plain(&target) } else { beside(&name, &target) })
                }
                _ => continue,
            };
            members.insert(name, member);
            if members.len() > MOST_MEMBERS {
                bail!(
                    "more than {MOST_MEMBERS} members: this is no archive of an image; --format rootfs takes it as one of files"
                );
            }
        }
        Ok(Files::Archive(file, members))
    }

    /// Opens a file; `None` where there is none of that name.
    pub fn open(&self, name: &str) -> Result<Option<Part>> {
        match self {
            Files::Directory(dir) => {
                let Some(file) = regular::open(Some(dir), Path::new(name)).with_context(|| name.to_owned())? else {
                    return Ok(None);
                };
                let size = file.metadata()?.len();
                Ok(Some(Part { file, at: 0, end: size }))
            }
            Files::Archive(file, members) => {
                let mut name = name;
                for _ in 0..LINKS {
                    match members.get(name) {
                        Some(Member::File(at, size)) => {
                            let end = at.checked_add(*size).with_context(|| format!("{name}: it ends nowhere"))?;
                            return Ok(Some(Part { file: file.try_clone()?, at: *at, end }));
                        }
                        Some(Member::Link(target)) => name = target,
                        None => return Ok(None),
                    }
                }
                bail!("{name}: links that lead to links, without an end")
            }
            Files::Documents(_) => Ok(None),
        }
    }

    /// Reads a document of at most `most` bytes; `None` where there is none of that name.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        if let Files::Documents(documents) = self {
            return Ok(documents.get(name).cloned());
        }
        let Some(part) = self.open(name)? else { return Ok(None) };
        if part.size() > most {
            bail!("{name}: {} bytes are too many for a document", part.size());
        }
        let mut bytes = Vec::new();
        { part }.read_to_end(&mut bytes).with_context(|| name.to_owned())?;
        Ok(Some(bytes))
    }
}

/// A file, or a part of one. Several may be read at once.
#[derive(Debug)]
pub struct Part {
    file: File,
    at: u64,
    end: u64,
}

impl Part {
    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(into.len());
        let n = self.file.read_at(&mut into[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::Error::other("the archive is cut short"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// A name without `./` at its beginning and `/` at its end.
fn plain(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

/// The target of a symbolic link, from the top of the archive; it does not lead out of it.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A root file system.
    RootFs,
    /// An image, as `docker save`, podman and skopeo write it.
    Image,
}

/// A file, with what was already read of it before.
pub type Begun = io::Chain<io::Cursor<Vec<u8>>, File>;

/// Looks at the first member of an archive, and gives what it is, how it is compressed, and a reader of all of it.
pub fn look(mut file: File) -> Result<(Kind, Codec, Begun)> {
    let mut head = Vec::new();
    file.by_ref().take(PEEK as u64).read_to_end(&mut head)?;
    let codec = Codec::detect(&head[..head.len().min(codec::HEAD)]);
    let kind = match codec {
        Codec::Plain => kind_of(&head),
        Codec::Gzip | Codec::Zstd => {
            let mut plain = Vec::new();
            // What was read ends somewhere; what came before that is enough.
            let _ = codec.decode(&head[..])?.take(PEEK as u64).read_to_end(&mut plain);
            kind_of(&plain)
        }
        // Only root file systems are packed so.
        Codec::Xz | Codec::Bzip2 => Kind::RootFs,
    };
    Ok((kind, codec, io::Cursor::new(head).chain(file)))
}

fn kind_of(head: &[u8]) -> Kind {
    let mut archive = tar::Archive::new(head);
    let Ok(entries) = archive.entries() else { return Kind::RootFs };
    let names = entries.map_while(Result::ok).map(|entry| plain(&String::from_utf8_lossy(&entry.path_bytes())));
    // `tar -C DIR -c .` begins with the directory itself.
    match names.into_iter().find(|name| !name.is_empty()) {
        Some(name) if is_of_an_image(&name) => Kind::Image,
        _ => Kind::RootFs,
    }
}

/// Whether a name is one that the archive of an image begins with: `blobs/`, `oci-layout`, `manifest.json`, or 64
/// hexadecimal digits, as a directory, a layer or a configuration.
fn is_of_an_image(name: &str) -> bool {
    if matches!(name, "blobs" | "oci-layout" | "index.json" | "manifest.json" | "repositories") {
        return true;
    }
    let first = name.split('/').next().unwrap_or_default();
    let digits = first.strip_suffix(".tar").or(first.strip_suffix(".json")).unwrap_or(first);
    name.starts_with("blobs/sha256") || (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Makes an archive seekable and plain: one that is neither compressed nor a pipe is as it is. What is written to `spool` is
/// limited as the content of a layer is; `came` counts what was read.
pub fn seekable(
    source: Begun,
    codec: Codec,
    limits: LimitArgs,
    came: impl FnOnce() -> Arc<AtomicU64>,
    spool: impl FnOnce() -> Result<File>,
) -> Result<File> {
    let (_, file) = source.get_ref();
    if codec == Codec::Plain && file.metadata()?.is_file() {
        let (_, mut file) = source.into_inner();
        file.seek(SeekFrom::Start(0))?;
        return Ok(file);
    }
    let mut spooled = spool()?;
    let came = came();
    let source = BufReader::with_capacity(READ_AHEAD, Counted { inner: source, came: Arc::clone(&came) });
    let plain = Expanding::new(codec.decode(source)?, came, limits.max_ratio);
    let most = limits.max_bytes;
    if io::copy(&mut plain.take(most.saturating_add(1)), &mut spooled)? > most {
        bail!("the archive has more than {most} bytes (--max-bytes)");
    }
    Ok(spooled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        let hex = "0123456789abcdef".repeat(4);
        for name in [
            "blobs",
            "oci-layout",
            "manifest.json",
            "blobs/sha256/x",
            &hex,
            &format!("{hex}.tar"),
            &format!("{hex}/VERSION"),
        ] {
            assert!(is_of_an_image(name), "{name}");
        }
        for name in ["", "bin", "blobsy", "etc/passwd", "index.html", &hex[1..]] {
            assert!(!is_of_an_image(name), "{name}");
        }
    }

    #[test]
    fn links_stay_in_the_archive() {
        for (name, target, want) in
            [("a/layer.tar", "../b/layer.tar", "b/layer.tar"), ("x", "../../../etc", "etc"), ("a/b", "./c", "a/c")]
        {
            assert_eq!(beside(name, target), want);
        }
        assert_eq!(plain("./a//b/"), "a/b");
    }
}
