//! Layers that a power cut may leave torn.
//!
//! Whoever can make a layer anew need not wait until it is on the disk. It gets its name at once, and a mark beside it first: the
//! symbolic link `.unsynced-NAME`, which points to the id of the running boot. A journal keeps the two in this order. When the
//! layer is on the disk its mark goes. One with a mark of another boot is torn, or may be: it is not to be mounted, but made anew.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Dir, Stat, fstatfs, readlinkat, renameat, statat, symlinkat, syncfs, unlinkat};
use rustix::io::Errno;

use crate::state;

/// How marks begin; the layer's name follows.
const PREFIX: &[u8] = b".unsynced-";
/// `f_type` of file systems that keep two changes of a directory in their order whatever is synced between them (ext4 and XFS
/// have one journal), or that no power cut leaves anything of (tmpfs).
const KEEP_ORDER: [u64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

fn mark_of(name: &OsStr) -> OsString {
    OsString::from_vec([PREFIX, name.as_bytes()].concat())
}

/// Marks the layer that is to get this name in `layers` next. `false` where that would be of no use on this file system: then it
/// must be synced first.
pub fn mark(layers: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    if !KEEP_ORDER.contains(&(fstatfs(layers).context("statfs")?.f_type as u64)) {
        return Ok(false);
    }
    let (boot, mark) = (state::boot_id()?, mark_of(name));
    match symlinkat(&*boot, layers, &mark) {
        Ok(()) => Ok(true),
        // Of an earlier layer of this name. A new one, in one step: who is syncing that one must not take it for the old.
        Err(Errno::EXIST) => {
            let fresh = format!(".unsynced.{}", state::new_id()?);
            symlinkat(&*boot, layers, &fresh)
                .and_then(|()| renameat(layers, &fresh, layers, &mark))
                .with_context(|| mark.display().to_string())?;
            Ok(true)
        }
        Err(e) => Err(e).with_context(|| mark.display().to_string()),
    }
}

/// Whether the machine went down before a layer was on the disk.
pub fn is_torn(layer: &Path) -> Result<bool> {
    let (Some(parent), Some(name)) = (layer.parent(), layer.file_name()) else { return Ok(false) };
    match readlinkat(CWD, parent.join(mark_of(name)), Vec::new()) {
        Ok(boot) => Ok(boot.as_bytes() != state::boot_id()?.as_bytes()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("{}: its mark", layer.display())),
    }
}

/// A mark.
struct Mark {
    name: OsString,
    of_this_boot: bool,
    stat: Stat,
}

fn marks(layers: BorrowedFd<'_>) -> Result<Vec<Mark>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(layers)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if !name.as_bytes().starts_with(PREFIX) {
            continue;
        }
        let look = || Ok((readlinkat(layers, name, Vec::new())?, statat(layers, name, AtFlags::SYMLINK_NOFOLLOW)?));
        match look() {
            Ok((boot, stat)) => {
                let of_this_boot = boot.as_bytes() == state::boot_id()?.as_bytes();
                found.push(Mark { name: name.to_owned(), of_this_boot, stat });
            }
            // Somebody else's work is done.
            Err(Errno::NOENT | Errno::INVAL) => {}
            Err(e) => return Err(e).with_context(|| name.display().to_string()),
        }
    }
    Ok(found)
}

/// The names of the layers in `layers` that are torn, or may be.
pub fn torn(layers: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let name = |mark: &Mark| OsStr::from_bytes(&mark.name.as_bytes()[PREFIX.len()..]).to_owned();
    Ok(marks(layers)?.iter().filter(|mark| !mark.of_this_boot).map(name).collect())
}

/// Takes a mark away: the layer is gone, or is made anew.
pub fn forget(layers: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match unlinkat(layers, mark_of(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).with_context(|| mark_of(name).display().to_string()),
    }
}

/// Waits until the marked layers of this boot are on the disk, and takes their marks away.
pub fn settle(layers: BorrowedFd<'_>) -> Result<()> {
    let marks: Vec<Mark> = marks(layers)?.into_iter().filter(|mark| mark.of_this_boot).collect();
    if marks.is_empty() {
        return Ok(());
    }
    syncfs(layers).context("sync")?;
    for mark in marks {
        // One of the same name that came meanwhile is of another layer.
        match statat(layers, &mark.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now)
                if (now.st_ino, now.st_ctime, now.st_ctime_nsec)
                    == (mark.stat.st_ino, mark.stat.st_ctime, mark.stat.st_ctime_nsec) =>
            {
                match unlinkat(layers, &mark.name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(e).with_context(|| mark.name.display().to_string()),
                }
            }
            _ => {}
        }
    }
    Ok(())
}
