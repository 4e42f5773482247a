//! The lower directories: opened once, checked, and from then on the same whatever happens to their names.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat, readlink};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exit;
use crate::record::{self, State};
use crate::state::DataRoot;
use crate::unsynced;

/// A lower directory.
#[derive(Debug)]
pub struct Lower {
    /// The directory (`O_PATH`).
    pub fd: OwnedFd,
    /// Its absolute path, without symbolic links.
    pub path: PathBuf,
    /// Its mode, owner and times, when it was opened.
    pub stat: Stat,
    /// The descriptor is of a mount that is mounted nowhere (`--idmap`): the path leads to the same files, shown otherwise.
    pub detached: bool,
}

impl Lower {
    fn identity(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }
}

/// Opens the lowers, bottom first, and refuses what cannot be stacked: one that is missing (3), is no directory, stands
/// twice, or is inside the overlay's own directory (`own`) or another one's that is not fit to be read (2, 4).
pub fn open(root: &DataRoot, own: Option<&Path>, paths: &[PathBuf]) -> Result<Vec<Lower>> {
    if paths.is_empty() {
        return Err(exit::usage("no LOWER; name the directories to stack, bottom first, or '-' for a document"));
    }
    allow_descriptors(paths.len());
    let mut lowers = Vec::with_capacity(paths.len());
    for path in paths {
        let lower = open_one(path)?;
        if let Ok(inside) = lower.path.strip_prefix(root.overlays()) {
            of_an_overlay(root, own, path, inside)?;
        }
        if lower.path.starts_with(root.layers()) && unsynced::is_torn(&lower.path)? {
            bail!(
                "lower {}: the machine went down before it was on the disk; it must be unpacked anew",
                path.display()
            );
        }
        lowers.push(lower);
    }
    let mut sorted: Vec<&Lower> = lowers.iter().collect();
    sorted.sort_by_key(|lower| lower.identity());
    if let Some(same) = sorted.windows(2).find(|pair| pair[0].identity() == pair[1].identity()) {
        return Err(exit::usage(format!("lower {} is named twice; each may stand once", same[0].path.display())));
    }
    Ok(lowers)
}

/// The lowers opened again by their paths, in another mount namespace than the one they were opened in: the kernel takes
/// none from there. Errors where a path leads elsewhere by now.
pub fn open_again(lowers: &[Lower]) -> Result<Vec<Lower>> {
    allow_descriptors(lowers.len());
    let again = |before: &Lower| {
        let lower = open_one(&before.path)?;
        if lower.identity() != before.identity() {
            return Err(exit::busy(format!("lower {}: it has just been replaced by another", before.path.display())));
        }
        Ok(lower)
    };
    lowers.iter().map(again).collect()
}

/// Two lowers of which one lies inside the other, which OverlayFS cannot stack.
pub fn nested(lowers: &[Lower]) -> Option<(&Path, &Path)> {
    let mut sorted: Vec<&Path> = lowers.iter().map(|lower| lower.path.as_path()).collect();
    // By components, so that what is inside a directory comes right after it.
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[1].starts_with(pair[0])).map(|pair| (pair[1], pair[0]))
}

/// Opens one lower; errors as [`open`].
pub fn open_one(path: &Path) -> Result<Lower> {
    let fd = open_path(path).map_err(|e| match e {
        Errno::NOENT => exit::not_found(format!("lower {}: no such directory", path.display())),
        Errno::NOTDIR => exit::usage(format!("lower {}: not a directory", path.display())),
        e => anyhow::Error::from(e).context(format!("lower {}", path.display())),
    })?;
    let stat = fstat(&fd).with_context(|| format!("lower {}", path.display()))?;
    if stat.st_nlink == 0 {
        return Err(exit::not_found(format!("lower {}: the directory has been deleted", path.display())));
    }
    let path = path_of(&fd).or_else(|_| std::fs::canonicalize(path)).with_context(|| path.display().to_string())?;
    Ok(Lower { fd, path, stat, detached: false })
}

/// A lower in the data directory's `overlay/`: the merged view of a mounted overlay is fine, and so is the upper of one
/// that is not mounted; the rest is a mistake, or would be pulled away.
fn of_an_overlay(root: &DataRoot, own: Option<&Path>, path: &Path, inside: &Path) -> Result<()> {
    let mut parts = inside.iter();
    let Some(id) = parts.next() else { return Ok(()) };
    let dir = root.overlays().join(id);
    if own == Some(&*dir) {
        return Err(exit::usage(format!("lower {}: inside the overlay that is to be mounted", path.display())));
    }
    let id = id.to_string_lossy();
    let Some(overlay) = record::read(&dir)? else {
        return Err(exit::busy(format!("lower {}: in an overlay that is being made or deleted", path.display())));
    };
    let mounted = record::state(&overlay)? == State::Mounted;
    match (parts.next().and_then(OsStr::to_str), mounted) {
        (Some("merged"), true) | (Some("upper"), false) => Ok(()),
        (Some("merged"), false) => {
            Err(exit::usage(format!("lower {}: overlay {id} is not mounted, so nothing is there", path.display())))
        }
        (Some("upper"), true) => Err(exit::busy(format!("lower {}: the upper is in use by {id}", path.display()))),
        _ => Err(exit::usage(format!(
            "lower {}: not a tree of overlay {id}, but a part of its workings",
            path.display()
        ))),
    }
}

/// Opens a directory for nothing but naming it.
pub fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn path_of(fd: &OwnedFd) -> std::io::Result<PathBuf> {
    let name = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    let path = PathBuf::from(OsString::from_vec(name.into_bytes()));
    // Outside of this process's root there is no path.
    if path.is_absolute() { Ok(path) } else { Err(Errno::NOENT.into()) }
}

/// Each lower takes a descriptor; the usual soft limit is 1024, but some shells have less.
fn allow_descriptors(lowers: usize) {
    let wanted = lowers as u64 + 64;
    if wanted < 200 {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        // Where this is refused, opening the lowers reports it.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}
