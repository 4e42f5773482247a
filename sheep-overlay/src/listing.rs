//! What the lowers of an overlay were when it was made: a list of all that is in them, kept in the overlay's directory
//! (`mount --freeze`), by which it can be told later what somebody else has changed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::inode::changed;
use crate::paths::join;
use crate::stack::open_alone;
use crate::sys;

const FILE: &str = "listing";
/// The first line of the file.
const HEAD: &[u8] = b"sheep-overlay listing 1\n";

/// One entry of a lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its inode number.
    pub ino: u64,
    /// When it was changed last: content, attributes or names.
    pub changed: (i64, i64),
    /// Type and permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

impl Seen {
    /// What there is of it in a file's attributes.
    pub fn of(stat: &Stat) -> Self {
        Seen { ino: stat.st_ino, changed: changed(stat), mode: stat.st_mode, owner: (stat.st_uid, stat.st_gid) }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }

    /// Whether an inode is as it was. What is made in a directory is no change of the directory.
    pub fn is(&self, now: &Seen) -> bool {
        if self.is_directory() && now.is_directory() {
            return (self.ino, self.mode, self.owner) == (now.ino, now.mode, now.owner);
        }
        self == now
    }
}

/// The entries of one lower, by their paths without a leading slash.
pub type Entries = HashMap<Vec<u8>, Seen>;

/// A listing that was read.
#[derive(Debug)]
pub struct Listing(HashMap<PathBuf, Entries>);

impl Listing {
    /// That of an overlay, in its directory; `None` where it was made without one.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(FILE);
        let mut text = Vec::new();
        match File::open(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?.read_to_end(&mut text)?,
        };
        parse(&text).map(|lowers| Some(Listing(lowers))).with_context(|| format!("{} is corrupt", file.display()))
    }

    /// The entries of a lower; `None` where it is not listed.
    pub fn of(&self, lower: &Path) -> Option<&Entries> {
        self.0.get(lower)
    }
}

/// Lists lowers, and keeps the list in the directory of an overlay that is being made.
pub fn record(dir: &Path, lowers: &[PathBuf]) -> Result<()> {
    let file = dir.join(FILE);
    let write = || -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 18, File::create_new(&file)?);
        out.write_all(HEAD)?;
        for lower in lowers {
            out.write_all(b"L ")?;
            out.write_all(lower.as_os_str().as_bytes())?;
            out.write_all(b"\0\n")?;
            look(lower, |path, seen| {
                let (seconds, nanoseconds) = seen.changed;
                write!(out, "{} {seconds} {nanoseconds} {:o} {} {} ", seen.ino, seen.mode, seen.owner.0, seen.owner.1)?;
                out.write_all(path)?;
                Ok(out.write_all(b"\0\n")?)
            })?;
        }
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(sys::begin_writeback(&file)?)
    };
    write().with_context(|| file.display().to_string())
}

/// Everything in a directory, now. What cannot be read is left out, and so is what is mounted below it.
pub fn entries(lower: &Path) -> Result<Entries> {
    let mut entries = Entries::new();
    look(lower, |path, seen| {
        entries.insert(path.to_vec(), seen);
        Ok(())
    })?;
    Ok(entries)
}

fn look(lower: &Path, mut found: impl FnMut(&[u8], Seen) -> Result<()>) -> Result<()> {
    let (top, _) = open_alone(lower).with_context(|| lower.display().to_string())?;
    let device = fstat(&top)?.st_dev;
    found(b"", Seen::of(&fstat(&top)?))?;
    let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
    let mut pending: Vec<(Vec<u8>, OwnedFd)> = vec![(Vec::new(), top)];
    while let Some((path, dir)) = pending.pop() {
        if sys::interrupted() {
            bail!("interrupted");
        }
        let mut below = Vec::new();
        let mut entries = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.with_context(|| lower.join(OsStr::from_bytes(&path)).display().to_string())?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
                Ok(stat) if stat.st_dev == device => stat,
                Ok(_) | Err(Errno::NOENT | Errno::ACCESS) => continue,
                Err(e) => return Err(e.into()),
            };
            found(&join(&path, name.to_bytes()), Seen::of(&stat))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                below.push(name.to_owned());
            }
        }
        for name in below {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&dir, &*name, flags, Mode::empty()) {
                Ok(opened) => pending.push((join(&path, name.to_bytes()), opened)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => {}
                Err(e) => return Err(e).with_context(|| lower.join(OsStr::from_bytes(&path)).display().to_string()),
            }
        }
    }
    Ok(())
}

fn parse(text: &[u8]) -> Result<HashMap<PathBuf, Entries>> {
    let mut lowers: HashMap<PathBuf, Entries> = HashMap::new();
    let mut lower = None;
    let body = text.strip_prefix(HEAD).context("another format")?;
    for line in body.split_inclusive(|byte| *byte == 0).map(|line| line.strip_prefix(b"\n").unwrap_or(line)) {
        let Some(line) = line.strip_suffix(b"\0") else { continue };
        if let Some(path) = line.strip_prefix(b"L ") {
            let path = PathBuf::from(OsStr::from_bytes(path));
            lowers.insert(path.clone(), Entries::new());
            lower = Some(path);
            continue;
        }
        let mut fields = line.splitn(7, |byte| *byte == b' ');
        let mut number = |radix: u32| -> Result<i64> {
            let field = std::str::from_utf8(fields.next().context("a line is cut short")?)?;
            Ok(i64::from_str_radix(field, radix)?)
        };
        let ino = number(10)? as u64;
        let changed = (number(10)?, number(10)?);
        let (mode, owner) = (number(8)? as u32, (number(10)? as u32, number(10)? as u32));
        let path = fields.next().context("a line is cut short")?.to_vec();
        let entries = lower.as_ref().and_then(|lower| lowers.get_mut(lower)).context("an entry of no lower")?;
        entries.insert(path, Seen { ino, changed, mode, owner });
    }
    Ok(lowers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_as_it_was_written() {
        let dir = std::env::temp_dir().join(format!("sheep-listing-{}", crate::state::new_id().unwrap()));
        let lower = dir.join("low");
        std::fs::create_dir_all(lower.join("d/e")).unwrap();
        for name in [&b"plain"[..], b"new\nline", b"\xff x", b"d/e/f"] {
            std::fs::write(lower.join(OsStr::from_bytes(name)), "").unwrap();
        }
        record(&dir, std::slice::from_ref(&lower)).unwrap();
        let listing = Listing::read(&dir).unwrap().unwrap();
        let listed = listing.of(&lower).unwrap();
        assert_eq!(*listed, entries(&lower).unwrap());
        assert_eq!(listed.len(), 7);
        assert!(Listing::read(&lower).unwrap().is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
