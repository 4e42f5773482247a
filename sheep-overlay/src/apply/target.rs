//! Where changes are applied: the lower of each tree of an overlay, or one directory for all of it.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;

use crate::applied;
use crate::applied::steps::stat;
use crate::doc::{DocPath, How, Overlay};
use crate::paths::{bare, inside, split};
use crate::shown::Entry;
use crate::stack::open_within;
use crate::state::DataRoot;
use crate::{exit, trees};

/// `STATX_ATTR_MOUNT_ROOT`: the inode is the root of a mount.
const MOUNT_ROOT: u64 = 0x2000;

/// The directories that are changed.
pub struct Target {
    places: Vec<Place>,
    /// Whether they are the lowers that the changes were made over.
    pub own: bool,
}

/// One of them.
pub struct Place {
    /// Where it is in the merged view, without a leading slash.
    pub prefix: Vec<u8>,
    /// Its path.
    pub path: PathBuf,
    /// Opened when it is looked at: not all of a machine is open to an ordinary user, nor changed by him.
    opened: OnceCell<OwnedFd>,
}

impl Place {
    fn top(&self) -> Result<BorrowedFd<'_>> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened.as_fd());
        }
        let opened = applied::open_dir(&self.path)?;
        Ok(self.opened.get_or_init(|| opened).as_fd())
    }
}

/// What is at a path of the target.
pub enum There {
    /// Something.
    Entry(Entry),
    /// Nothing, in a directory that is there.
    Nothing,
    /// No such directory. Why: it is missing, a link or no directory, or another mount.
    NoDirectory(Errno),
}

impl Target {
    /// The lowers that the changes were made over: one for each tree. An error (2) where that is not one directory, or one
    /// that must not be changed.
    pub fn of_lowers(root: &DataRoot, overlay: &Overlay) -> Result<Self> {
        let mut places = vec![(Vec::new(), one(overlay, &overlay.lower)?)];
        for tree in &trees::of(overlay)[1..] {
            let is_it = |mount: &&crate::doc::Mount| mount.how == How::Overlay && bare(&mount.path) == tree.prefix;
            if let Some(mount) = overlay.mounts.iter().find(is_it) {
                places.push((tree.prefix.clone(), one(overlay, &mount.lower)?));
            }
        }
        if let Some((_, path)) = places.iter().find(|(_, path)| path.starts_with(root.path())) {
            return Err(exit::usage(format!(
                "{} belongs to the data directory, where others use it as it is; say where with --to DIR",
                path.display()
            )));
        }
        let places = places.into_iter().map(|(prefix, path)| Place { prefix, path, opened: OnceCell::new() }).collect();
        Ok(Target { places, own: true })
    }

    /// One directory for all changes.
    pub fn directory(root: &DataRoot, dir: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => exit::not_found(format!("--to {}: no such directory", dir.display())),
            _ => anyhow::Error::new(e).context(format!("--to {}", dir.display())),
        })?;
        if !path.is_dir() {
            return Err(exit::usage(format!("--to {}: not a directory", dir.display())));
        }
        if path.starts_with(root.path()) {
            return Err(exit::usage(format!("--to {}: it belongs to the data directory", dir.display())));
        }
        Ok(Target { places: vec![Place { prefix: Vec::new(), path, opened: OnceCell::new() }], own: false })
    }

    /// All places.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Which place a path of the merged view is in, and the path from there on.
    pub fn place_of<'a>(&self, path: &'a [u8]) -> (usize, &'a [u8]) {
        // The innermost is the last.
        let found =
            self.places.iter().enumerate().rev().find_map(|(at, place)| Some((at, inside(path, &place.prefix)?)));
        found.unwrap_or((0, path))
    }

    /// Opens the directory at a path of the merged view.
    pub fn open(&self, path: &[u8]) -> Result<OwnedFd> {
        let (place, inside) = self.place_of(path);
        Ok(open_within(self.places[place].top()?, inside)?)
    }

    /// What is at a path of the merged view.
    pub fn look(&self, path: &[u8]) -> Result<There> {
        let (place, inside) = self.place_of(path);
        let top = self.places[place].top()?;
        let (dir, name) = split(inside);
        let dir = match open_within(top, dir) {
            Ok(dir) => dir,
            Err(error @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)) => {
                return Ok(There::NoDirectory(error));
            }
            Err(error) => return Err(error).with_context(|| self.describe(path)),
        };
        let name = std::ffi::CString::new(if name.is_empty() { b"." } else { name })?;
        Ok(match stat(dir.as_fd(), &name).with_context(|| self.describe(path))? {
            Some(stat) => There::Entry(Entry { dir, name, stat }),
            None => There::Nothing,
        })
    }

    /// Where a path of the merged view is in the target.
    pub fn full(&self, path: &[u8]) -> PathBuf {
        let (place, inside) = self.place_of(path);
        self.places[place].path.join(OsStr::from_bytes(inside))
    }

    /// The same for messages.
    pub fn describe(&self, path: &[u8]) -> String {
        let (place, inside) = self.place_of(path);
        format!("{}/{}", self.places[place].path.display(), crate::diff::escaped(inside))
    }
}

fn one(overlay: &Overlay, lowers: &[DocPath]) -> Result<PathBuf> {
    match lowers {
        [only] => Ok(only.0.clone()),
        several => Err(exit::usage(format!(
            "overlay {} has {} lowers: say where the changes are to go with --to DIR",
            overlay.id,
            several.len()
        ))),
    }
}

/// Whether something is mounted on an entry.
pub fn is_mounted_on(entry: &Entry) -> Result<bool> {
    let found =
        statx(&entry.dir, &*entry.name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::empty())?;
    Ok(entry.name.to_bytes() != b"." && found.stx_attributes.bits() & MOUNT_ROOT != 0)
}
