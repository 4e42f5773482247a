//! A layer's tar: POSIX headers (pax), with only as much in them as an entry needs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat};
use tar::{Builder, EntryType, Header};

use crate::inode::{Inode, xattr_names};
use crate::{layer, shown};

/// A tar that is being written.
pub struct Archive<W: Write> {
    builder: Builder<W>,
    /// No entry is later than this, in seconds.
    latest: Option<i64>,
    /// Files with several names, and the first of them.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

/// An entry's pax records: key and value.
type Records = Vec<(String, Vec<u8>)>;

impl<W: Write> Archive<W> {
    /// An empty one.
    pub fn new(out: W, latest: Option<i64>) -> Self {
        let mut builder = Builder::new(out);
        builder.mode(tar::HeaderMode::Complete);
        Archive { builder, latest, linked: HashMap::new() }
    }

    /// Adds an empty file that only its name says something.
    pub fn mark(&mut self, path: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, 0o600);
        let mut records = Records::new();
        name(&mut header, path, &mut records)?;
        self.append(header, records, io::empty())
    }

    /// Adds what an overlay shows.
    pub fn put(&mut self, path: &[u8], shown: &shown::Entry) -> Result<()> {
        let shown::Entry { dir, name: entry, stat } = shown;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut records = Records::new();
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let mut header = header(EntryType::Link, stat.st_mode & 0o7777);
                link(&mut header, first, &mut records)?;
                self.common(&mut header, path, stat, &mut records)?;
                return self.append(header, records, io::empty());
            }
            self.linked.insert(key, path.to_vec());
        }
        let mut header = header(
            match kind {
                FileType::RegularFile => EntryType::Regular,
                FileType::Directory => EntryType::Directory,
                FileType::Symlink => EntryType::Symlink,
                FileType::CharacterDevice => EntryType::Char,
                FileType::BlockDevice => EntryType::Block,
                FileType::Fifo => EntryType::Fifo,
                _ => bail!("a layer cannot carry it"),
            },
            stat.st_mode & 0o7777,
        );
        match kind {
            FileType::Symlink => link(&mut header, &readlinkat(dir, &**entry, Vec::new())?.into_bytes(), &mut records)?,
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.set_device_major(major(stat.st_rdev))?;
                header.set_device_minor(minor(stat.st_rdev))?;
            }
            _ => {}
        }
        xattrs(Inode::Named(dir.as_fd(), entry), &mut records)?;
        self.common(&mut header, path, stat, &mut records)?;
        if kind != FileType::RegularFile {
            return self.append(header, records, io::empty());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(dir, &**entry, flags, Mode::empty())?;
        if fstat(&file)?.st_ino != stat.st_ino {
            bail!("changed while it was read");
        }
        let size = stat.st_size as u64;
        header.set_size(size);
        if size > 0o77_777_777_777 {
            records.push(("size".to_owned(), size.to_string().into_bytes()));
        }
        self.append(header, records, Exactly { file: file.into(), left: size })
    }

    /// Name, owner and time.
    fn common(&self, header: &mut Header, path: &[u8], stat: &Stat, records: &mut Records) -> Result<()> {
        let slash: &[u8] = if header.entry_type() == EntryType::Directory { b"/" } else { b"" };
        name(header, &[path, slash].concat(), records)?;
        for (key, id) in [("uid", stat.st_uid), ("gid", stat.st_gid)] {
            let fits = id <= 0o7_777_777;
            let shown = u64::from(if fits { id } else { 0 });
            if key == "uid" {
                header.set_uid(shown)
            } else {
                header.set_gid(shown)
            }
            if !fits {
                records.push((key.to_owned(), id.to_string().into_bytes()));
            }
        }
        let (mut seconds, mut nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
        if self.latest.is_some_and(|latest| seconds >= latest) {
            (seconds, nanoseconds) = (self.latest.unwrap_or(seconds), 0);
        }
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if nanoseconds != 0 || seconds < 0 {
            records.push(("mtime".to_owned(), decimal(seconds, nanoseconds as i64).into_bytes()));
        }
        Ok(())
    }

    fn append(&mut self, mut header: Header, mut records: Records, content: impl Read) -> Result<()> {
        if !records.is_empty() {
            records.sort();
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(records)?;
        }
        header.set_cksum();
        Ok(self.builder.append(&header, content)?)
    }

    /// Ends the archive, and gives back where it went.
    pub fn finish(self) -> Result<W> {
        self.builder.into_inner().context("stdout")
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// The path, in the header if it fits there, else (cut off there) in a record.
fn name(header: &mut Header, path: &[u8], records: &mut Records) -> Result<()> {
    let Some(ustar) = header.as_ustar_mut() else { bail!("not a POSIX header") };
    if !put(&mut ustar.name, path) {
        records.push(("path".to_owned(), path.to_vec()));
    }
    Ok(())
}

/// The target of a link, likewise.
fn link(header: &mut Header, target: &[u8], records: &mut Records) -> Result<()> {
    let Some(ustar) = header.as_ustar_mut() else { bail!("not a POSIX header") };
    if !put(&mut ustar.linkname, target) {
        records.push(("linkpath".to_owned(), target.to_vec()));
    }
    Ok(())
}

/// Puts bytes into a field as far as they fit; false where they do not, or are no ASCII.
fn put(field: &mut [u8; 100], bytes: &[u8]) -> bool {
    let length = bytes.len().min(field.len());
    field.fill(0);
    field[..length].copy_from_slice(&bytes[..length]);
    length == bytes.len() && bytes.is_ascii()
}

/// All but OverlayFS's own, as GNU tar and the container world write them.
fn xattrs(inode: Inode<'_>, records: &mut Records) -> Result<()> {
    let (mut names, mut value) = (Vec::new(), Vec::new());
    inode.list_xattrs(&mut names)?;
    for name in xattr_names(&names).filter(|name| !layer::is_overlay_xattr(name.to_bytes())) {
        inode.get_xattr(name, &mut value)?;
        let name = name.to_str().context("an extended attribute whose name is not UTF-8")?;
        if name.contains('=') {
            bail!("an extended attribute with '=' in its name, {name}, which a layer cannot carry");
        }
        records.push((format!("SCHILY.xattr.{name}"), value.clone()));
    }
    Ok(())
}

/// Seconds with a fraction, as pax has them; the fraction without zeros at its end.
fn decimal(seconds: i64, nanoseconds: i64) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{:09}", total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// As many bytes of a file as were promised: one that is changed meanwhile must not shift what follows it.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let count = self.file.read(&mut into[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("it was cut short while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_fractions() {
        let table = [
            ((5, 0), "5"),
            ((5, 500_000_000), "5.5"),
            ((-1, 0), "-1"),
            ((-1, 750_000_000), "-0.25"),
            ((1, 1), "1.000000001"),
        ];
        for ((seconds, nanoseconds), want) in table {
            assert_eq!(decimal(seconds, nanoseconds), want);
        }
    }
}
