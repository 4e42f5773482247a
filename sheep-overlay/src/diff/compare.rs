//! How two inodes differ to a user who looks at them.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, OFlags, Stat, fstat, readlinkat};
use rustix::io::pread;

use super::{Aspect, Depth};
use crate::backend::copy::note::Note;
use crate::inode::{Inode, xattr_names};
use crate::layer;
use crate::stack::Stack;

const PIECE: usize = 128 << 10;

/// Where an entry is, and its attributes.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The directory that it is in.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// Its own attributes, not those of what it leads to.
    pub stat: &'a Stat,
}

impl<'a> Entry<'a> {
    fn inode(&self) -> Inode<'a> {
        Inode::Named(self.dir, self.name)
    }
}

/// What the comparing goes by, and buffers that live as long as the walk.
pub struct Compare<'a> {
    pub(super) stack: &'a Stack,
    /// For a copy: what it could not keep is no change.
    pub(super) note: Option<&'a Note>,
    /// Whether fuse-overlayfs wrote the upper.
    pub(super) fuse: bool,
    pub(super) depth: Depth,
    left: Vec<u8>,
    right: Vec<u8>,
}

impl<'a> Compare<'a> {
    /// For entries of the layers of a stack.
    pub fn of_layers(stack: &'a Stack, depth: Depth) -> Self {
        Compare::new(stack, None, false, depth)
    }

    pub(super) fn new(stack: &'a Stack, note: Option<&'a Note>, fuse: bool, depth: Depth) -> Self {
        Compare { stack, note, fuse, depth, left: Vec::new(), right: Vec::new() }
    }

    /// In what an entry differs from the lowers'; both are of one type, and no directories. With [`Depth::Kinds`] it
    /// ends with the first difference, the cheap ones first.
    pub fn entries(&mut self, lower: Entry<'_>, real: Entry<'_>) -> Result<Vec<Aspect>> {
        if (lower.stat.st_dev, lower.stat.st_ino) == (real.stat.st_dev, real.stat.st_ino) {
            // One layer in two stacks: its content need not be read to be known as its own.
            return Ok(Vec::new());
        }
        let kind = FileType::from_raw_mode(lower.stat.st_mode);
        let is_file = kind == FileType::RegularFile;
        let same_size = lower.stat.st_size == real.stat.st_size;
        let mut what = self.owner_and_mode(lower.stat, real.stat);
        if is_file && !same_size {
            what.extend([Aspect::Content, Aspect::Size]);
        }
        if !self.same_time(lower.stat, real.stat) {
            what.push(Aspect::Times);
        }
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if is_device && lower.stat.st_rdev != real.stat.st_rdev {
            what.push(Aspect::Device);
        }
        if !self.is_enough(&what) && kind == FileType::Symlink && !same_target(lower, real)? {
            what.push(Aspect::Target);
        }
        if !self.is_enough(&what) {
            self.xattrs(lower.inode(), real.inode(), &mut what)?;
        }
        if !self.is_enough(&what) && is_file && same_size && !self.same_content(lower, real)? {
            what.push(Aspect::Content);
        }
        // OverlayFS breaks hard links when it copies up: fewer of them are no change of their own.
        let (links, now) = (lower.stat.st_nlink, real.stat.st_nlink);
        if now > links || (now != links && !what.is_empty()) {
            what.push(Aspect::Links);
        }
        what.sort_unstable();
        Ok(what)
    }

    /// In what a directory itself differs from the lowers'; its entries do not count, and its times only with
    /// [`Depth::Exact`]. The second value is whether it has a mark that may say it is opaque.
    pub fn directories(
        &mut self,
        lower: Inode<'_>,
        lower_stat: &Stat,
        real: Inode<'_>,
        stat: &Stat,
    ) -> Result<(Vec<Aspect>, bool)> {
        let mut what = self.owner_and_mode(lower_stat, stat);
        let marked = self.xattrs(lower, real, &mut what)?;
        if self.depth == Depth::Exact && !self.same_time(lower_stat, stat) {
            what.push(Aspect::Times);
        }
        what.sort_unstable();
        Ok((what, marked))
    }

    /// Whether two entries of one type have the same content or target; of other types that is the type itself.
    pub(super) fn same_matter(&mut self, lower: Entry<'_>, real: Entry<'_>) -> Result<bool> {
        match FileType::from_raw_mode(real.stat.st_mode) {
            FileType::RegularFile => Ok(lower.stat.st_size == real.stat.st_size && self.same_content(lower, real)?),
            FileType::Symlink => same_target(lower, real),
            _ => Ok(true),
        }
    }

    fn same_time(&self, lower: &Stat, real: &Stat) -> bool {
        same_time(lower, real) && (self.depth != Depth::Exact || lower.st_mtime_nsec == real.st_mtime_nsec)
    }

    fn is_enough(&self, what: &[Aspect]) -> bool {
        self.depth == Depth::Kinds && !what.is_empty()
    }

    /// Owner and permissions of a lower inode as the tree would have them, were they unchanged.
    pub(super) fn expected(&self, lower: &Stat) -> (u32, u32, u32) {
        let (uid, gid, mode) = (lower.st_uid, lower.st_gid, lower.st_mode & 0o7777);
        let is_dir = FileType::from_raw_mode(lower.st_mode) == FileType::Directory;
        self.note.map_or((uid, gid, mode), |note| note.as_copied(uid, gid, mode, is_dir))
    }

    fn owner_and_mode(&self, lower: &Stat, real: &Stat) -> Vec<Aspect> {
        let (uid, gid, mode) = self.expected(lower);
        let mut what = Vec::new();
        // A symbolic link's mode means nothing.
        if FileType::from_raw_mode(lower.st_mode) != FileType::Symlink && mode != real.st_mode & 0o7777 {
            what.push(Aspect::Mode);
        }
        if (uid, gid) != (real.st_uid, real.st_gid) {
            what.push(Aspect::Owner);
        }
        what
    }

    /// Adds the aspects in which the extended attributes differ, and gives whether the real inode has a mark that may
    /// say it is opaque.
    pub(super) fn xattrs(&mut self, lower: Inode<'_>, real: Inode<'_>, what: &mut Vec<Aspect>) -> Result<bool> {
        lower.list_xattrs(&mut self.left)?;
        real.list_xattrs(&mut self.right)?;
        let marked = xattr_names(&self.right).any(|name| name.to_bytes().ends_with(b".opaque"));
        let (before, now) = (self.names(&self.left)?, self.names(&self.right)?);
        for name in before.union(&now) {
            let same = before.contains(name) && now.contains(name) && self.same_value(lower, real, name)?;
            let aspect = if is_acl(name.to_bytes()) { Aspect::Acl } else { Aspect::Xattr };
            if !same && !what.contains(&aspect) {
                what.push(aspect);
            }
        }
        Ok(marked)
    }

    fn same_value(&mut self, lower: Inode<'_>, real: Inode<'_>, name: &CStr) -> Result<bool> {
        lower.get_xattr(name, &mut self.left).with_context(|| name.to_string_lossy().into_owned())?;
        real.get_xattr(name, &mut self.right).with_context(|| name.to_string_lossy().into_owned())?;
        Ok(self.left == self.right)
    }

    /// The names that count, of a list of xattrs.
    fn names(&self, list: &[u8]) -> Result<BTreeSet<CString>> {
        let mut names = BTreeSet::new();
        for name in xattr_names(list) {
            let bytes = name.to_bytes();
            if layer::METACOPY.iter().any(|mark| mark.as_bytes() == bytes) {
                bail!("only its attributes are in this layer (overlay.metacopy)");
            }
            let lost = |note: &Note| name.to_str().is_ok_and(|name| note.lost_xattrs.contains(name));
            let own = layer::is_overlay_xattr(bytes) || (self.fuse && bytes.starts_with(layer::FUSE_XATTR_PREFIX));
            if !own && !self.note.is_some_and(lost) {
                names.insert(name.to_owned());
            }
        }
        Ok(names)
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
        same_bytes(&lower, &real, &mut self.left, &mut self.right)
    }
}

/// Whether two open files have the same content. `left` and `right` are scratch space.
pub fn same_bytes(a: impl AsFd, b: impl AsFd, left: &mut Vec<u8>, right: &mut Vec<u8>) -> Result<bool> {
    left.resize(PIECE, 0);
    right.resize(PIECE, 0);
    let mut at = 0;
    loop {
        let count = read_full(&a, left, at)?;
        if count != read_full(&b, right, at)? || left[..count] != right[..count] {
            return Ok(false);
        }
        if count < PIECE {
            return Ok(true);
        }
        at += count as u64;
    }
}

fn same_target(lower: Entry<'_>, real: Entry<'_>) -> Result<bool> {
    let target = |entry: Entry<'_>| readlinkat(entry.dir, entry.name, Vec::new());
    Ok(target(lower)? == target(real)?)
}

fn is_acl(name: &[u8]) -> bool {
    matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default" | b"system.nfs4_acl")
}

/// Fills the buffer but for the end of the file.
fn read_full(file: impl AsFd, buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(&file, &mut buffer[filled..], at + filled as u64) {
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
