//! A tar that is written: POSIX headers (pax), with only as much in them as an entry needs.
//!
//! Holes of files can be left out in GNU tar's format for it, 1.0 (info tar, "PAX Format, Versions 0.0 and 0.1" and the one
//! after it), which GNU tar, libarchive and Go read. Not in a layer of an image: the specification advises against it, and
//! podman, which puts a layer together again to send it out, then finds another digest.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, SeekFrom, Stat, fstat, major, minor, readlinkat, seek};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::merged::Found;
use crate::carry::open_file;
use crate::inode::{Inode, xattr_names};
use crate::layer;

/// How a tar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// No entry is later than this, in seconds.
    pub latest: Option<i64>,
    /// Holes are left out of a file in which they are this many bytes or more, together; `None`: of none.
    pub sparse: Option<u64>,
}

/// A tar that is being written.
pub struct Archive<W: Write> {
    out: W,
    style: Style,
    /// Files with several names, and the first of them.
    linked: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

/// An entry's pax records: key and value.
type Records = Vec<(String, Vec<u8>)>;

/// The largest numbers that a header's fields for ids and for sizes take.
const LARGEST_ID: u32 = 0o7_777_777;
const LARGEST_SIZE: u64 = 0o77_777_777_777;

impl<W: Write> Archive<W> {
    /// An empty one.
    pub fn new(out: W, style: Style) -> Self {
        Archive { out, style, linked: HashMap::new(), buffer: vec![0; 256 << 10] }
    }

    /// Adds an empty file that only its name says something.
    pub fn mark(&mut self, path: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, 0o600);
        let mut records = Records::new();
        name(&mut header, path, &mut records)?;
        self.append(header, records)
    }

    /// Adds what an overlay shows.
    pub fn put(&mut self, entry: &Found<'_>) -> Result<()> {
        let stat = &entry.stat;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut records = Records::new();
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let mut header = header(EntryType::Link, stat.st_mode & 0o7777);
                link(&mut header, first, &mut records)?;
                self.common(&mut header, entry, &mut records)?;
                return self.append(header, records);
            }
            self.linked.insert(key, entry.path.to_vec());
        }
        let mut header = header(
            match kind {
                FileType::RegularFile => EntryType::Regular,
                FileType::Directory => EntryType::Directory,
                FileType::Symlink => EntryType::Symlink,
                FileType::CharacterDevice => EntryType::Char,
                FileType::BlockDevice => EntryType::Block,
                FileType::Fifo => EntryType::Fifo,
                _ => bail!("a tar cannot carry it"),
            },
            stat.st_mode & 0o7777,
        );
        match kind {
            FileType::Symlink => {
                link(&mut header, &readlinkat(entry.dir, entry.name, Vec::new())?.into_bytes(), &mut records)?
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.set_device_major(major(stat.st_rdev))?;
                header.set_device_minor(minor(stat.st_rdev))?;
            }
            _ => {}
        }
        xattrs(Inode::Named(entry.dir, entry.name), &mut records)?;
        self.common(&mut header, entry, &mut records)?;
        match kind {
            FileType::RegularFile => self.file(entry, header, records),
            _ => self.append(header, records),
        }
    }

    /// A file with its content, which may not change meanwhile: that would shift all that follows.
    fn file(&mut self, entry: &Found<'_>, mut header: Header, mut records: Records) -> Result<()> {
        let file = File::from(open_file(entry.dir, entry.name, &entry.stat)?);
        if !is_as_before(&fstat(&file)?, &entry.stat) {
            bail!("changed while it was read; export again");
        }
        let size = entry.stat.st_size as u64;
        let data = match self.style.sparse {
            Some(least) => data_ranges(&file, &entry.stat)?.filter(|ranges| holes(ranges, size) >= least),
            None => None,
        };
        let mut map = Vec::new();
        if let Some(ranges) = &data {
            map = sparse_map(ranges, size);
            records.retain(|(key, _)| key != "path");
            for (key, value) in [("major", "1".to_owned()), ("minor", "0".to_owned()), ("realsize", size.to_string())] {
                records.push((format!("GNU.sparse.{key}"), value.into_bytes()));
            }
            records.push(("GNU.sparse.name".to_owned(), entry.path.to_vec()));
        }
        let ranges = data.unwrap_or_else(|| vec![(0, size)]);
        let stored = map.len() as u64 + ranges.iter().map(|(_, length)| length).sum::<u64>();
        if stored > LARGEST_SIZE {
            records.push(("size".to_owned(), stored.to_string().into_bytes()));
        }
        // The field would take more in a form that is not POSIX's.
        header.set_size(if stored > LARGEST_SIZE { 0 } else { stored });
        self.append(header, records)?;
        self.out.write_all(&map)?;
        for (start, length) in ranges {
            self.content(&file, start, length)?;
        }
        pad(&mut self.out, stored)?;
        if !is_as_before(&fstat(&file)?, &entry.stat) {
            bail!("changed while it was read; export again");
        }
        Ok(())
    }

    fn content(&mut self, file: &File, start: u64, length: u64) -> Result<()> {
        let mut at = start;
        let end = start + length;
        while at < end {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let most = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match file.read_at(&mut self.buffer[..most], at) {
                Ok(0) => bail!("cut short while it was read; export again"),
                Ok(count) => {
                    self.out.write_all(&self.buffer[..count])?;
                    at += count as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Name, owner and time.
    fn common(&self, header: &mut Header, entry: &Found<'_>, records: &mut Records) -> Result<()> {
        match header.entry_type() {
            EntryType::Directory if entry.path.is_empty() => name(header, b"./", records)?,
            EntryType::Directory => name(header, &[entry.path, b"/"].concat(), records)?,
            _ => name(header, entry.path, records)?,
        }
        let stat = &entry.stat;
        let mut id = |key: &str, id: u32| {
            if id > LARGEST_ID {
                records.push((key.to_owned(), id.to_string().into_bytes()));
                return 0;
            }
            u64::from(id)
        };
        header.set_uid(id("uid", stat.st_uid));
        header.set_gid(id("gid", stat.st_gid));
        let (mut seconds, mut nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
        if let Some(latest) = self.style.latest.filter(|latest| seconds >= *latest) {
            (seconds, nanoseconds) = (latest, 0);
        }
        header.set_mtime(u64::try_from(seconds).unwrap_or(0).min(LARGEST_SIZE));
        if nanoseconds != 0 || seconds < 0 || seconds as u64 > LARGEST_SIZE {
            records.push(("mtime".to_owned(), decimal(seconds, nanoseconds as i64).into_bytes()));
        }
        Ok(())
    }

    fn append(&mut self, mut header: Header, mut records: Records) -> Result<()> {
        if !records.is_empty() {
            records.sort();
            let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let mut extended = self::header(EntryType::XHeader, 0o644);
            name(&mut extended, b"././@PaxHeader", &mut Records::new())?;
            extended.set_size(body.len() as u64);
            extended.set_cksum();
            self.out.write_all(extended.as_bytes())?;
            self.out.write_all(&body)?;
            pad(&mut self.out, body.len() as u64)?;
        }
        header.set_cksum();
        Ok(self.out.write_all(header.as_bytes())?)
    }

    /// Ends the archive, and gives back where it went.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
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

/// A pax record, which begins with its own length.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// Zeros up to the next block.
fn pad(out: &mut impl Write, length: u64) -> std::io::Result<()> {
    out.write_all(&[0; 512][..(512 - length as usize % 512) % 512])
}

/// All extended attributes but those of OverlayFS and fuse-overlayfs, as GNU tar and the container world write them.
fn xattrs(inode: Inode<'_>, records: &mut Records) -> Result<()> {
    let (mut names, mut value) = (Vec::new(), Vec::new());
    inode.list_xattrs(&mut names)?;
    for name in xattr_names(&names).filter(|name| !layer::is_bookkeeping(name.to_bytes())) {
        inode.get_xattr(name, &mut value)?;
        let name = name.to_str().context("an extended attribute whose name is not UTF-8")?;
        records.push((format!("SCHILY.xattr.{name}"), value.clone()));
    }
    Ok(())
}

/// Whether a file was left alone between two looks at it.
pub fn is_as_before(now: &Stat, before: &Stat) -> bool {
    let key = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    key(now) == key(before)
}

/// Where a file has data, as start and length; `None` where it has no holes, or the file system does not tell.
pub fn data_ranges(file: &File, stat: &Stat) -> Result<Option<Vec<(u64, u64)>>> {
    let size = stat.st_size as u64;
    if stat.st_blocks as u64 * 512 >= size {
        return Ok(None);
    }
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let end = seek(file.as_fd(), SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        ranges.push((start, end - start));
        at = end;
    }
    Ok(if ranges == [(0, size)] { None } else { Some(ranges) })
}

/// How many bytes of a file are holes.
fn holes(ranges: &[(u64, u64)], size: u64) -> u64 {
    size - ranges.iter().map(|(_, length)| length).sum::<u64>()
}

/// The map at the beginning of a sparse file's data: how many ranges, and each of them, in decimal lines; whole blocks.
fn sparse_map(ranges: &[(u64, u64)], size: u64) -> Vec<u8> {
    let mut numbers: Vec<u64> = ranges.iter().flat_map(|(start, length)| [*start, *length]).collect();
    // A hole at the end is told by a range without bytes.
    if ranges.last().is_none_or(|(start, length)| start + length < size) {
        numbers.extend([size, 0]);
    }
    let mut map = format!("{}\n", numbers.len() / 2);
    for number in numbers {
        map.push_str(&format!("{number}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

/// Seconds with a fraction, as pax has them.
fn decimal(seconds: i64, nanoseconds: i64) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{:09}", total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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

    #[test]
    fn records_count_their_own_digits() {
        assert_eq!(record("path", b"a"), b"9 path=a\n");
        assert_eq!(record("a", b"12345"), b"11 a=12345\n");
        let long = record("path", &[b'x'; 91]);
        assert!(long.starts_with(b"101 path=x") && long.len() == 101, "{}", long.len());
    }

    #[test]
    fn maps_of_holes() {
        let text = |ranges: &[(u64, u64)], size| {
            let map = sparse_map(ranges, size);
            assert_eq!(map.len() % 512, 0);
            String::from_utf8(map).unwrap().trim_end_matches('\0').to_owned()
        };
        assert_eq!(text(&[(4096, 10)], 4106), "1\n4096\n10\n");
        assert_eq!(text(&[(0, 4096)], 9000), "2\n0\n4096\n9000\n0\n");
        assert_eq!(text(&[], 9000), "1\n9000\n0\n");
    }
}
