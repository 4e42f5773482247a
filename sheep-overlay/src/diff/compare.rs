//! Whether two inodes are the same to a user who looks at them.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, OFlags, Stat, fstat, readlinkat};
use rustix::io::pread;

use crate::backend::copy::note::Note;
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::stack::Stack;

const PIECE: usize = 128 << 10;

/// Where an entry is, and its attributes.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a CStr,
    pub stat: &'a Stat,
}

impl<'a> Entry<'a> {
    fn inode(&self) -> Inode<'a> {
        Inode::Named(self.dir, self.name)
    }
}

/// Buffers that live as long as the walk.
pub(super) struct Compare<'a> {
    stack: &'a Stack,
    /// For a copy: what it could not keep is no change.
    note: Option<&'a Note>,
    left: Vec<u8>,
    right: Vec<u8>,
}

impl<'a> Compare<'a> {
    pub(super) fn new(stack: &'a Stack, note: Option<&'a Note>) -> Self {
        Compare { stack, note, left: Vec::new(), right: Vec::new() }
    }

    /// Whether an entry that is no directory is what the lowers have.
    pub(super) fn entries(&mut self, lower: Entry<'_>, real: Entry<'_>) -> Result<bool> {
        let kind = FileType::from_raw_mode(lower.stat.st_mode);
        if kind != FileType::from_raw_mode(real.stat.st_mode)
            || !self.same_owner_and_mode(lower.stat, real.stat)
            || !same_time(lower.stat, real.stat)
        {
            return Ok(false);
        }
        let same = match kind {
            FileType::RegularFile => lower.stat.st_size == real.stat.st_size,
            FileType::Symlink => {
                let target = |entry: Entry<'_>| readlinkat(entry.dir, entry.name, Vec::new());
                target(lower)? == target(real)?
            }
            FileType::CharacterDevice | FileType::BlockDevice => lower.stat.st_rdev == real.stat.st_rdev,
            _ => true,
        };
        if !same || !self.same_xattrs(lower.inode(), real.inode())? {
            return Ok(false);
        }
        Ok(kind != FileType::RegularFile || self.same_content(lower, real)?)
    }

    /// Whether a directory itself is what the lowers have; its entries and its times do not count.
    pub(super) fn directories(
        &mut self,
        lower: Inode<'_>,
        lower_stat: &Stat,
        real: Inode<'_>,
        stat: &Stat,
    ) -> Result<bool> {
        Ok(self.same_owner_and_mode(lower_stat, stat) && self.same_xattrs(lower, real)?)
    }

    fn same_owner_and_mode(&self, lower: &Stat, real: &Stat) -> bool {
        let kind = FileType::from_raw_mode(lower.st_mode);
        let (uid, gid, mode) = (lower.st_uid, lower.st_gid, lower.st_mode & 0o7777);
        let (uid, gid, mode) = match self.note {
            Some(note) => note.as_copied(uid, gid, mode, kind == FileType::Directory),
            None => (uid, gid, mode),
        };
        // A symbolic link's mode means nothing.
        let same_mode = kind == FileType::Symlink || mode == real.st_mode & 0o7777;
        (uid, gid) == (real.st_uid, real.st_gid) && same_mode
    }

    fn same_xattrs(&mut self, lower: Inode<'_>, real: Inode<'_>) -> Result<bool> {
        let wanted = self.xattrs(lower)?;
        let found = self.xattrs(real)?;
        Ok(wanted == found)
    }

    fn xattrs(&mut self, inode: Inode<'_>) -> Result<BTreeMap<CString, Vec<u8>>> {
        inode.list_xattrs(&mut self.left)?;
        let mut found = BTreeMap::new();
        for name in xattr_names(&self.left) {
            let bytes = name.to_bytes();
            if layer::METACOPY.iter().any(|mark| mark.as_bytes() == bytes) {
                bail!("only its attributes are in this layer (overlay.metacopy)");
            }
            let lost = |note: &Note| name.to_str().is_ok_and(|name| note.lost_xattrs.contains(name));
            if layer::is_overlay_xattr(bytes) || self.note.is_some_and(lost) {
                continue;
            }
            inode.get_xattr(name, &mut self.right).with_context(|| name.to_string_lossy().into_owned())?;
            found.insert(name.to_owned(), self.right.clone());
        }
        Ok(found)
    }

    /// Both are regular files of one size.
    fn same_content(&mut self, lower: Entry<'_>, real: Entry<'_>) -> Result<bool> {
        if lower.stat.st_size == 0 {
            return Ok(true);
        }
        let open = |entry: Entry<'_>| -> Result<_> {
            let fd = self.stack.open_at(entry.dir, entry.name, OFlags::empty())?;
            if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::RegularFile {
                bail!("changed while it was read");
            }
            Ok(fd)
        };
        let (lower, real) = (open(lower)?, open(real)?);
        self.left.resize(PIECE, 0);
        self.right.resize(PIECE, 0);
        let mut at = 0;
        loop {
            let left = read_full(&lower, &mut self.left, at)?;
            let right = read_full(&real, &mut self.right, at)?;
            if self.left[..left] != self.right[..right] {
                return Ok(false);
            }
            if left < PIECE {
                return Ok(true);
            }
            at += left as u64;
        }
    }
}

/// Fills the buffer but for the end of the file.
fn read_full(file: &impl std::os::fd::AsFd, buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(file, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) if !crate::sys::interrupted() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(filled)
}

/// Whether the modification times are one. A file system (or a tar on the way) that knows only whole seconds leaves no
/// nanoseconds, which is no change.
fn same_time(a: &Stat, b: &Stat) -> bool {
    a.st_mtime == b.st_mtime && (a.st_mtime_nsec == b.st_mtime_nsec || a.st_mtime_nsec == 0 || b.st_mtime_nsec == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_match_any_nanosecond() {
        let table = [((5, 0), (5, 9), true), ((5, 8), (5, 9), false), ((5, 9), (5, 9), true), ((5, 0), (6, 0), false)];
        let stat = |(seconds, nanoseconds)| {
            let mut stat = rustix::fs::stat("/").unwrap();
            stat.st_mtime = seconds;
            stat.st_mtime_nsec = nanoseconds;
            stat
        };
        for (a, b, want) in table {
            assert_eq!(same_time(&stat(a), &stat(b)), want, "{a:?} {b:?}");
        }
    }
}
