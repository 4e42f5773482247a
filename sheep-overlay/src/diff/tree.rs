//! The walk that finds the changes: the overlay's own tree beside the merged view of the lowers.
//!
//! OverlayFS keeps changes in the upper, where a name that is not there is as in the lowers; in an opaque directory it is
//! deleted. A copy is like an upper in which every directory is opaque and nothing a whiteout, only that much of it was
//! never touched, and need not be compared.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, RawDir, Stat, fstat, statat};
use rustix::io::Errno;

use super::compare::{Compare, Entry};
use super::{Change, Kind};
use crate::backend::copy::note::{Directories, Note};
use crate::doc::{Backend, Overlay};
use crate::inode::Inode;
use crate::layer::{self, Marks};
use crate::stack::{self, Stack};
use crate::walk::{Pair, Pending, Walk, join};

/// A directory still to be looked at.
struct Visit {
    pending: Pending,
    /// A name that is not here is deleted; else it is as in the lowers.
    exact: bool,
    /// It is the very directory that was copied here.
    in_place: bool,
}

struct Diff<'a> {
    walk: &'a Walk,
    compare: Compare<'a>,
    /// For a copy: when it was made, and of which directories.
    copied: Option<&'a (Note, Directories)>,
    marks: Marks,
    listing: Vec<MaybeUninit<u8>>,
    found: Vec<Change>,
}

/// The changes, in no order.
pub(super) fn changes(overlay: &Overlay) -> Result<Vec<Change>> {
    let lowers: Vec<PathBuf> = overlay.lower.iter().map(|lower| lower.0.clone()).collect();
    let (tree, own, copied) = match overlay.backend {
        Backend::Kernel | Backend::Fuse => (&overlay.upper, None, None),
        Backend::Copy | Backend::Btrfs => {
            (&overlay.merged, overlay.merged.parent(), Some(Note::read(&overlay.merged)?))
        }
    };
    let marks = Marks::of(overlay);
    let walk = open(tree, &lowers, marks, own)?;
    let compare = Compare::new(&walk.stack, copied.as_ref().map(|(note, _)| note));
    let listing = vec![MaybeUninit::uninit(); 32 << 10];
    let mut diff = Diff { walk: &walk, compare, copied: copied.as_ref(), marks, listing, found: Vec::new() };
    diff.run()?;
    Ok(diff.found)
}

fn open(tree: &Path, lowers: &[PathBuf], marks: Marks, own: Option<&Path>) -> Result<Walk> {
    let name = tree.display().to_string();
    // What is mounted somewhere in a copy is no part of it.
    let (real, _) = stack::open_alone(tree).with_context(|| name.clone())?;
    Walk::new(Stack::open(lowers, marks, own)?, real, name)
}

impl Diff<'_> {
    fn run(&mut self) -> Result<()> {
        let mut visits = vec![Visit {
            pending: self.walk.root_pending(),
            exact: self.copied.is_some(),
            in_place: self.copied.is_some(),
        }];
        // The last first: then the directories kept open are those of one branch.
        while let Some(visit) = visits.pop() {
            if crate::sys::interrupted() {
                bail!("interrupted");
            }
            let path = visit.pending.path.clone();
            self.directory(visit, &mut visits).with_context(|| self.walk.describe_real(&path))?;
        }
        Ok(())
    }

    fn directory(&mut self, visit: Visit, visits: &mut Vec<Visit>) -> Result<()> {
        let pair = self.walk.enter(&visit.pending)?;
        let path = &visit.pending.path;
        let stat = fstat(&pair.real)?;
        let (mut untouched, mut in_place) = (false, false);
        if let (Some((note, directories)), true) = (self.copied, visit.in_place) {
            // A rename stamps the directory itself: one that was not touched was not moved here.
            untouched = note.is_untouched(&stat);
            in_place = untouched || directories.get(path) == Some(&stat.st_ino);
        }
        if !untouched {
            self.itself(&pair, &stat, path)?;
        }
        let exact = visit.exact || layer::is_opaque(&pair.real, self.marks)?;

        let mut names = HashSet::new();
        for (name, kind) in self.list(&pair)? {
            let (change, is_dir) = self.entry(&pair, path, &name, kind, in_place)?;
            if let Some(kind) = change {
                self.note(path, name.to_bytes(), kind);
            }
            if is_dir {
                let pending = self.walk.pend(&pair, path, name.to_bytes());
                visits.push(Visit { pending, exact, in_place });
            }
            if exact && !untouched {
                names.insert(name);
            }
        }
        if exact && !untouched {
            let devices_left_out = self.copied.is_some_and(|(note, _)| note.devices_left_out);
            for entry in self.walk.stack.list(&pair.lower, path, &mut self.listing)? {
                let device = matches!(entry.kind, FileType::CharacterDevice | FileType::BlockDevice);
                let expected = !(device && devices_left_out);
                if expected && !names.contains(&entry.name) {
                    self.note(path, entry.name.to_bytes(), Kind::Deleted);
                }
            }
        }
        Ok(())
    }

    /// Whether a directory that the lowers have too was changed itself.
    fn itself(&mut self, pair: &Pair, stat: &Stat, path: &[u8]) -> Result<()> {
        if let (Some(lower), Some(lower_stat)) = (pair.lower.top(), pair.lower.stat()) {
            let real = Inode::Open(pair.real.as_fd());
            if !self.compare.directories(Inode::Open(lower), lower_stat, real, stat)? {
                self.note(path, b"", Kind::Modified);
            }
        }
        Ok(())
    }

    /// What became of one name, and whether it is a directory to be looked into.
    fn entry(
        &mut self,
        pair: &Pair,
        path: &[u8],
        name: &CStr,
        kind: FileType,
        in_place: bool,
    ) -> Result<(Option<Kind>, bool)> {
        let is_dir = kind == FileType::Directory;
        // Most directories of a copy are where they were; whether they were changed is seen when they are opened.
        let stat = match statat(&pair.real, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Deleted since the directory was read.
            Err(Errno::NOENT) => return Ok((None, false)),
            stat => stat.with_context(|| name.to_string_lossy().into_owned())?,
        };
        if let (Some((note, _)), true) = (self.copied, in_place)
            && note.is_untouched(&stat)
        {
            return Ok((None, is_dir));
        }
        let lower = self.walk.stack.lookup(&pair.lower, name, path)?;
        if self.copied.is_none() && layer::is_device_whiteout(&stat) {
            return Ok((lower.map(|_| Kind::Deleted), false));
        }
        let Some((layer, lower)) = lower else { return Ok((Some(Kind::Added), is_dir)) };
        let lower_is_dir = FileType::from_raw_mode(lower.st_mode) == FileType::Directory;
        if is_dir && lower_is_dir {
            return Ok((None, true));
        }
        let lower = Entry { dir: pair.lower.layer(layer), name, stat: &lower };
        let real = Entry { dir: pair.real.as_fd(), name, stat: &stat };
        let same = !is_dir
            && !lower_is_dir
            && self.compare.entries(lower, real).with_context(|| name.to_string_lossy().into_owned())?;
        Ok(((!same).then_some(Kind::Modified), is_dir))
    }

    fn list(&mut self, pair: &Pair) -> Result<Vec<(std::ffi::CString, FileType)>> {
        let mut names = Vec::new();
        let mut entries = RawDir::new(&pair.real, &mut self.listing);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    FileType::from_raw_mode(statat(&pair.real, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
                }
                kind => kind,
            };
            names.push((name.to_owned(), kind));
        }
        Ok(names)
    }

    fn note(&mut self, dir: &[u8], name: &[u8], kind: Kind) {
        let mut path = vec![b'/'];
        path.extend_from_slice(&if name.is_empty() { dir.to_vec() } else { join(dir, name) });
        self.found.push(Change { path: Path::new(OsStr::from_bytes(&path)).to_path_buf(), kind });
    }
}
