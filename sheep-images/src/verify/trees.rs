//! Two directories that should be the same in all that a layer keeps.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use sheep_overlay::diff::same_bytes;
use sheep_overlay::inode::{Inode, xattr_names};
use sheep_overlay::layer::is_device_whiteout;
use sheep_overlay::paths::join;
use sheep_overlay::stack::open_beneath;
use sheep_overlay::walk::names_in;

/// In what two directories differ.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// Each path, from the root on, with what is not the same: the words of `diff`, `missing`, and `extra`.
    pub found: Vec<(Vec<u8>, Vec<&'static str>)>,
    /// So many entries could not be looked into.
    pub closed: u64,
}

struct Compare {
    differences: Differences,
    listing: Vec<MaybeUninit<u8>>,
    left: Vec<u8>,
    right: Vec<u8>,
    /// Which file is which, of those with several names.
    links: HashMap<u64, u64>,
}

/// Compares a directory with what it should be: names, types, modes, owners, sizes, contents, targets, devices, extended attributes
/// (OverlayFS's marks too), modification times, and which names are one file.
pub(super) fn compare(good: impl AsFd, there: impl AsFd) -> Result<Differences> {
    let (good, there) = (good.as_fd(), there.as_fd());
    let listing = vec![MaybeUninit::uninit(); 32 << 10];
    let (left, right) = (Vec::new(), Vec::new());
    let mut compare = Compare { differences: Differences::default(), listing, left, right, links: HashMap::new() };
    let mut what = attributes(&fstat(good)?, &fstat(there)?);
    compare.xattrs(Inode::Open(good), Inode::Open(there), &mut what)?;
    compare.add(Vec::new(), what);
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let mut dirs = Vec::with_capacity(2);
        for root in [good, there] {
            match open_beneath(root, &path) {
                Ok(dir) => dirs.push(dir),
                Err(Errno::ACCESS) => {}
                Err(e) => return Err(e).with_context(|| String::from_utf8_lossy(&path).into_owned()),
            }
        }
        let [good, there] = &dirs[..] else {
            compare.differences.closed += 1;
            continue;
        };
        compare.directory(&path, good, there, &mut pending)?;
    }
    compare.differences.found.sort();
    Ok(compare.differences)
}

impl Compare {
    fn add(&mut self, path: Vec<u8>, mut what: Vec<&'static str>) {
        if !what.is_empty() {
            what.sort_unstable();
            self.differences.found.push((path, what));
        }
    }

    fn directory(&mut self, path: &[u8], good: &OwnedFd, there: &OwnedFd, pending: &mut Vec<Vec<u8>>) -> Result<()> {
        let mut names: BTreeMap<CString, (bool, bool)> = BTreeMap::new();
        for (name, _) in names_in(good, &mut self.listing)? {
            names.entry(name).or_default().0 = true;
        }
        for (name, _) in names_in(there, &mut self.listing)? {
            names.entry(name).or_default().1 = true;
        }
        for (name, both) in names {
            let full = join(path, name.to_bytes());
            match both {
                (true, true) => {
                    let (what, is_dir) = self
                        .entry(good.as_fd(), there.as_fd(), &name)
                        .with_context(|| String::from_utf8_lossy(&full).into_owned())?;
                    if is_dir {
                        pending.push(full.clone());
                    }
                    self.add(full, what);
                }
                (true, false) => self.add(full, vec!["missing"]),
                _ => self.add(full, vec!["extra"]),
            }
        }
        Ok(())
    }

    /// In what two entries differ, and whether both are directories.
    fn entry(&mut self, good: BorrowedFd<'_>, there: BorrowedFd<'_>, name: &CStr) -> Result<(Vec<&'static str>, bool)> {
        let own = statat(good, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let found = match statat(there, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok((vec!["missing"], false)),
            Err(e) => return Err(e.into()),
        };
        let kind = FileType::from_raw_mode(own.st_mode);
        if kind != FileType::from_raw_mode(found.st_mode) {
            return Ok((vec!["type"], false));
        }
        let mut what = attributes(&own, &found);
        if is_device_whiteout(&own) && is_device_whiteout(&found) {
            // No archive says when something was deleted.
            what.retain(|aspect| *aspect != "times");
        }
        if kind != FileType::Directory {
            if own.st_nlink != found.st_nlink
                || (own.st_nlink > 1 && *self.links.entry(own.st_ino).or_insert(found.st_ino) != found.st_ino)
            {
                what.push("links");
            }
            if own.st_rdev != found.st_rdev {
                what.push("device");
            }
        }
        match kind {
            FileType::RegularFile if own.st_size != found.st_size => what.extend(["content", "size"]),
            FileType::RegularFile => match (open(good, name), open(there, name)) {
                (Ok(own), Ok(found)) => {
                    if !same_bytes(&own, &found, &mut self.left, &mut self.right)? {
                        what.push("content");
                    }
                }
                (Err(Errno::ACCESS), _) | (_, Err(Errno::ACCESS)) => self.differences.closed += 1,
                // A disk that cannot read it.
                (Ok(_), Err(_)) => what.push("content"),
                (Err(e), _) => return Err(e.into()),
            },
            FileType::Symlink if readlinkat(good, name, Vec::new())? != readlinkat(there, name, Vec::new())? => {
                what.push("target");
            }
            _ => {}
        }
        self.xattrs(Inode::Named(good, name), Inode::Named(there, name), &mut what)?;
        Ok((what, kind == FileType::Directory))
    }

    fn xattrs(&mut self, good: Inode<'_>, there: Inode<'_>, what: &mut Vec<&'static str>) -> Result<()> {
        good.list_xattrs(&mut self.left)?;
        there.list_xattrs(&mut self.right)?;
        let (own, found) = (names(&self.left), names(&self.right));
        let mut same = own == found;
        for name in &own {
            if !same {
                break;
            }
            match (good.get_xattr(name, &mut self.left), there.get_xattr(name, &mut self.right)) {
                (Ok(()), Ok(())) => same = self.left == self.right,
                // A user may not read those of files that he may not read.
                _ => self.differences.closed += 1,
            }
        }
        if !same {
            what.push("xattr");
        }
        Ok(())
    }
}

/// Sorted, without the label that a machine's policy gives, which is no part of an image.
fn names(list: &[u8]) -> Vec<CString> {
    let mut names: Vec<CString> =
        xattr_names(list).filter(|name| name.to_bytes() != b"security.selinux").map(CStr::to_owned).collect();
    names.sort();
    names
}

fn attributes(good: &Stat, there: &Stat) -> Vec<&'static str> {
    let mut what = Vec::new();
    if good.st_mode != there.st_mode {
        what.push("mode");
    }
    if (good.st_uid, good.st_gid) != (there.st_uid, there.st_gid) {
        what.push("owner");
    }
    if (good.st_mtime, good.st_mtime_nsec) != (there.st_mtime, there.st_mtime_nsec) {
        what.push("times");
    }
    what
}

/// Opens a file for reading; as root without a trace in its access time.
fn open(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(dir, name, flags, Mode::empty()),
        opened => opened,
    }
}
