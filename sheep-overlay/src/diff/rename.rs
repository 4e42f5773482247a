//! Renames: what was deleted at one path and added at another, unchanged.
//!
//! Only what is deleted by itself is looked at, not what went with its directory. OverlayFS notes in what it copies up
//! which inode of the lower that was (`overlay.origin`), and keeps the note when the copy is renamed; a btrfs snapshot
//! has the lower's inode numbers. Where neither says so, the attributes and the content do.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use super::compare::{Compare, Entry};
use super::tree::Found;
use super::{Depth, Kind};
use crate::inode::Inode;
use crate::layer::Marks;
use crate::stack::{Stack, open_beneath};
use crate::sys;

/// Where what was before and what is now are found.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    /// The view before.
    pub old: &'a Stack,
    /// The tree, or the view, of now.
    pub new: New<'a>,
    /// What the latter is called in messages.
    pub name: &'a str,
}

/// What is now.
#[derive(Clone, Copy)]
pub(super) enum New<'a> {
    /// A directory tree.
    Tree(&'a OwnedFd),
    /// A view, of which [`Found::layer`] says where something is.
    View(&'a Stack),
}

impl Places<'_> {
    fn describe(&self, path: &[u8]) -> String {
        format!("{}/{}", self.name, String::from_utf8_lossy(path))
    }

    /// Opens a directory of one side, in the layer that something was found in there.
    fn open_dir(&self, (side, layer): Place, path: &[u8]) -> Result<OwnedFd, Errno> {
        match (side, self.new) {
            (Side::Old, _) => self.old.open_dir_of(layer, path),
            (Side::New, New::View(stack)) => stack.open_dir_of(layer, path),
            (Side::New, New::Tree(root)) => open_beneath(root, path),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
}

/// A side, and the layer in it.
type Place = (Side, usize);

fn place_of(found: &Found) -> Place {
    match found.lower {
        Some(lower) => (Side::Old, lower),
        None => (Side::New, found.layer),
    }
}

/// What tells that an added inode is, or is a copy of, a certain one of the lower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// The xattr `overlay.origin`.
    Origin(Marks),
    /// The inode number.
    Inode,
    /// Nothing.
    None,
}

/// With how many of the deleted files that look the same an added one is compared, at most.
const TRIES: usize = 16;

/// What must be equal: type, permissions, owner, size, time, device number.
type Key = (FileTypeAndMode, u32, u32, i64, (i64, u64), u64);
type FileTypeAndMode = u32;

/// A directory that was opened a moment ago: what follows is often in it too.
struct Near {
    place: Place,
    path: Vec<u8>,
    fd: OwnedFd,
}

/// An entry by its path.
struct Located {
    dir: OwnedFd,
    name: CString,
    stat: Stat,
}

impl Located {
    fn entry(&self) -> Entry<'_> {
        Entry { dir: self.dir.as_fd(), name: &self.name, stat: &self.stat }
    }
}

/// Makes one `Renamed` of each `Deleted` and `Added` that belong together.
pub(super) fn pair_up(
    places: Places<'_>,
    compare: &mut Compare<'_>,
    by: Identity,
    found: &mut Vec<Found>,
) -> Result<()> {
    let of_kind = |found: &[Found], kind| -> Vec<usize> {
        let wanted = |f: &Found| f.kind == kind && f.file_type != FileType::Directory;
        (0..found.len()).filter(|at| wanted(&found[*at])).collect()
    };
    if of_kind(found, Kind::Deleted).is_empty() || of_kind(found, Kind::Added).is_empty() {
        return Ok(());
    }
    // So that of several that fit it is always the same one, and neighbours are looked at together.
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let (gone, fresh) = (of_kind(found, Kind::Deleted), of_kind(found, Kind::Added));
    let mut near = None;
    let mut gone_by_key: HashMap<Key, Vec<usize>> = HashMap::new();
    for at in gone {
        look(places, &mut found[at], &mut near)?;
        if let Some(stat) = &found[at].old {
            gone_by_key.entry(key(stat, compare.expected(stat))).or_default().push(at);
        }
    }
    let mut pairs = Vec::new();
    let mut open = Vec::new();
    for at in fresh {
        look(places, &mut found[at], &mut near)?;
        let Some(stat) = &found[at].new else { continue };
        let key = key(stat, (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777));
        let Some(candidates) = gone_by_key.get_mut(&key) else { continue };
        match same_inode(places, by, found, at, candidates)? {
            Some(place) if matter(places, compare, &found[candidates[place]], &found[at])? => {
                pairs.push((candidates.remove(place), at));
            }
            _ => open.push((key, at)),
        }
    }
    for (key, at) in open {
        let Some(candidates) = gone_by_key.get_mut(&key) else { continue };
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        // Moved without another name is likelier than named anew.
        order.sort_by_key(|place| name(&found[candidates[*place]].path) != name(&found[at].path));
        for place in order.into_iter().take(TRIES) {
            if matter(places, compare, &found[candidates[place]], &found[at])? {
                pairs.push((candidates.remove(place), at));
                break;
            }
        }
    }
    join_pairs(places, compare, &pairs, found)
}

fn join_pairs(
    places: Places<'_>,
    compare: &mut Compare<'_>,
    pairs: &[(usize, usize)],
    found: &mut Vec<Found>,
) -> Result<()> {
    for &(gone, fresh) in pairs {
        if compare.depth != Depth::Kinds
            && let (Some(old), Some(new)) = (locate_old(places, &found[gone])?, locate_new(places, &found[fresh])?)
        {
            let (old, new) = (old.entry(), new.entry());
            let mut what = Vec::new();
            compare.xattrs(Inode::Named(old.dir, old.name), Inode::Named(new.dir, new.name), &mut what)?;
            what.sort_unstable();
            found[fresh].what = what;
        }
        let (path, lower, old) = (found[gone].path.clone(), found[gone].lower, found[gone].old.take());
        let renamed = &mut found[fresh];
        (renamed.kind, renamed.from, renamed.lower, renamed.old) = (Kind::Renamed, Some(path), lower, old);
    }
    let mut removed = vec![false; found.len()];
    pairs.iter().for_each(|(gone, _)| removed[*gone] = true);
    let mut removed = removed.into_iter();
    found.retain(|_| !removed.next().unwrap_or_default());
    Ok(())
}

/// Sees to it that the attributes are known; they stay unknown where it has gone meanwhile.
fn look(places: Places<'_>, found: &mut Found, near: &mut Option<Near>) -> Result<()> {
    let place = place_of(found);
    if found.old.is_some() || found.new.is_some() {
        return Ok(());
    }
    let dir = parent(&found.path);
    if near.as_ref().is_none_or(|near| near.place != place || near.path != dir) {
        let Some(fd) = gone_is_none(places.open_dir(place, dir)).with_context(|| places.describe(dir))? else {
            return Ok(());
        };
        *near = Some(Near { place, path: dir.to_vec(), fd });
    }
    let Some(near) = near else { return Ok(()) };
    let stat = gone_is_none(statat(&near.fd, name(&found.path), AtFlags::SYMLINK_NOFOLLOW))
        .with_context(|| places.describe(&found.path))?
        .map(Box::new);
    *(if place.0 == Side::Old { &mut found.old } else { &mut found.new }) = stat;
    Ok(())
}

fn gone_is_none<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        result => result.map(Some),
    }
}

fn locate_old(places: Places<'_>, found: &Found) -> Result<Option<Located>> {
    locate(places, (Side::Old, found.lower.unwrap_or_default()), &found.path, found.old.as_deref())
}

fn locate_new(places: Places<'_>, found: &Found) -> Result<Option<Located>> {
    locate(places, (Side::New, found.layer), &found.path, found.new.as_deref())
}

fn locate(places: Places<'_>, place: Place, path: &[u8], stat: Option<&Stat>) -> Result<Option<Located>> {
    let dir = gone_is_none(places.open_dir(place, parent(path))).with_context(|| places.describe(path))?;
    let (Some(dir), Some(stat)) = (dir, stat) else { return Ok(None) };
    Ok(Some(Located { dir, name: CString::new(name(path))?, stat: *stat }))
}

/// Whether content or target are equal.
fn matter(places: Places<'_>, compare: &mut Compare<'_>, gone: &Found, fresh: &Found) -> Result<bool> {
    let (Some(old), Some(new)) = (locate_old(places, gone)?, locate_new(places, fresh)?) else { return Ok(false) };
    compare.same_matter(old.entry(), new.entry()).with_context(|| places.describe(&fresh.path))
}

/// The place among the candidates of the very inode that an added one is, or was copied from.
fn same_inode(
    places: Places<'_>,
    by: Identity,
    found: &[Found],
    at: usize,
    candidates: &[usize],
) -> Result<Option<usize>> {
    let marks = match by {
        Identity::None => return Ok(None),
        Identity::Inode => {
            let number = |stat: &Option<Box<Stat>>| stat.as_ref().map(|stat| stat.st_ino);
            return Ok(candidates.iter().position(|gone| number(&found[*gone].old) == number(&found[at].new)));
        }
        Identity::Origin(marks) => marks,
    };
    let Some(new) = locate_new(places, &found[at])? else { return Ok(None) };
    let xattr = [c"trusted.overlay.origin", c"user.overlay.origin"][marks as usize];
    let mut value = Vec::new();
    // Links of several names have none, nor has what lies on a file system without handles.
    if Inode::Named(new.dir.as_fd(), &new.name).get_xattr(xattr, &mut value).is_err() {
        return Ok(None);
    }
    let Some(origin) = parse_origin(&value) else { return Ok(None) };
    for (place, gone) in candidates.iter().enumerate() {
        let Some(old) = locate_old(places, &found[*gone])? else { continue };
        if sys::file_handle(old.dir.as_fd(), &old.name).is_some_and(|(kind, handle)| origin == (kind, &handle[..])) {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// The file handle in the value of `overlay.origin`: its type and its bytes. The kernel's `struct ovl_fb`: version 0,
/// magic 0xfb, the length of it all, flags, the type, the file system's UUID, the handle.
fn parse_origin(value: &[u8]) -> Option<(i32, &[u8])> {
    const HEAD: usize = 21;
    let [0, 0xfb, length, _, kind, ..] = *value else { return None };
    (usize::from(length) == value.len() && value.len() > HEAD).then(|| (i32::from(kind), &value[HEAD..]))
}

fn key(stat: &Stat, (uid, gid, mode): (u32, u32, u32)) -> Key {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = if kind == FileType::Symlink { 0 } else { mode };
    let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let rdev = if device { stat.st_rdev } else { 0 };
    (kind.as_raw_mode() | mode, uid, gid, stat.st_size, (stat.st_mtime, stat.st_mtime_nsec), rdev)
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &path[..at])
}

fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |at| &path[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_taken_apart() {
        let mut value = vec![0, 0xfb, 29, 0, 1];
        value.extend([7; 16]);
        value.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(parse_origin(&value), Some((1, &[1u8, 2, 3, 4, 5, 6, 7, 8][..])));
        for (at, byte) in [(0, 1), (1, 0xfa), (2, 30)] {
            let mut other = value.clone();
            other[at] = byte;
            assert_eq!(parse_origin(&other), None, "byte {at}");
        }
        assert_eq!(parse_origin(b""), None);
        assert_eq!(parse_origin(&[0, 0xfb, 21, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
