//! Results that are put where a user says: whole, or not at all.
//!
//! They are made in a scratch directory beside their place, and renamed into it. What another program makes there meanwhile
//! stays.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Access, AtFlags, CWD, RenameFlags, StatxFlags, accessat};
use rustix::io::Errno;
use sheep_overlay::{exit, export};

use crate::interrupt;
use crate::scratch::Scratch;

/// `STATX_ATTR_MOUNT_ROOT`: the inode is the root of a mount.
const MOUNT_ROOT: u64 = 0x2000;
/// How the result is called in the scratch directory.
const NEW: &str = "new";

/// A directory that is being made.
#[derive(Debug)]
pub struct NewDirectory {
    scratch: Scratch,
    place: PathBuf,
}

impl NewDirectory {
    /// Begins to make one, mode 0700, that is to be at `place`: where nothing is, or an empty directory. Errors with busy (4)
    /// where something else is, and with not found (3) where the directory is not in which it is to be.
    pub fn begin(place: &Path) -> Result<Self> {
        let place = absolute(place)?;
        export::check_place(&place)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = rustix::fs::statx(CWD, &place, flags, StatxFlags::empty());
        if found.is_ok_and(|found| found.stx_attributes.bits() & MOUNT_ROOT != 0) {
            return Err(exit::busy(format!("{}: something is mounted there; name a directory in it", place.display())));
        }
        let scratch = Scratch::beside(&place)?;
        let new = NewDirectory { scratch, place };
        DirBuilder::new().mode(0o700).create(new.path()).with_context(|| new.path().display().to_string())?;
        Ok(new)
    }

    /// Where it is for now.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join(NEW)
    }

    /// Where other things can be that are needed only while it is made.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Puts it in its place, on the disk, and gives that place.
    pub fn finish(self) -> Result<PathBuf> {
        rustix::fs::syncfs(self.scratch.fd()).context("sync")?;
        let _commit = interrupt::commit();
        match rustix::fs::rename(self.path(), &self.place) {
            Ok(()) => sync_parent(&self.place)?,
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => return Err(taken(&self.place)),
            Err(e) => return Err(e).with_context(|| format!("rename to {}", self.place.display())),
        }
        Ok(self.place)
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct NewFile {
    scratch: Scratch,
    place: PathBuf,
    file: File,
    replace: bool,
}

impl NewFile {
    /// Begins to write one that is to be at `place`. Errors with busy (4) where something is there, which with `replace` may
    /// be a file; with not found (3) where the directory is not in which it is to be.
    pub fn begin(place: &Path, replace: bool) -> Result<Self> {
        let place = absolute(place)?;
        check_file(&place, replace)?;
        let scratch = Scratch::beside(&place)?;
        let path = scratch.path().join(NEW);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(NewFile { scratch, place, file, replace })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place, on the disk.
    pub fn finish(self) -> Result<()> {
        let context = || self.place.display().to_string();
        self.file.sync_all().with_context(context)?;
        let _commit = interrupt::commit();
        let new = self.scratch.path().join(NEW);
        if self.replace {
            // Something else than a file may be there by now.
            check_file(&self.place, true)?;
            fs::rename(&new, &self.place).with_context(context)?;
        } else {
            match rustix::fs::renameat_with(CWD, &new, CWD, &self.place, RenameFlags::NOREPLACE) {
                // A file system that cannot say so (NFS) has links.
                Err(Errno::INVAL) => rustix::fs::link(&new, &self.place),
                done => done,
            }
            .map_err(|e| if e == Errno::EXIST { taken(&self.place) } else { e.into() })
            .with_context(context)?;
        }
        sync_parent(&self.place)
    }
}

/// Whether what is made beside `place` gets a group that this process's user does not have as his own (set-group-id).
pub fn hands_on_its_group(place: &Path) -> Result<bool> {
    let place = absolute(place)?;
    let parent = place.parent().unwrap_or(Path::new("/"));
    let found = fs::metadata(parent).with_context(|| parent.display().to_string())?;
    Ok(found.mode() & 0o2000 != 0 && found.gid() != rustix::process::getegid().as_raw())
}

/// Errors where this process's user may not put anything, or there is no directory for it. For who does the rest in a user
/// namespace, in which modes do not keep him out of his own directories.
pub fn check_writable(place: &Path) -> Result<()> {
    let place = absolute(place)?;
    let parent = place.parent().unwrap_or(Path::new("/"));
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, parent, rights, AtFlags::EACCESS).with_context(|| parent.display().to_string())
}

/// Errors where a file cannot be put: only another one, and only where that is wanted, gives way.
fn check_file(place: &Path, replace: bool) -> Result<()> {
    let busy = |what: &str| Err(exit::busy(format!("{}: {what}", place.display())));
    match fs::symlink_metadata(place).map(|found| found.file_type()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| place.display().to_string()),
        Ok(kind) if kind.is_file() && replace => Ok(()),
        Ok(kind) if kind.is_file() => busy("it is there already; --force replaces it"),
        Ok(kind) if kind.is_dir() => busy("it is a directory; name a file"),
        Ok(kind) if kind.is_symlink() => busy("it is a symbolic link; name what it leads to"),
        Ok(kind) if kind.is_fifo() || kind.is_char_device() => busy("it is no file; write there with > instead"),
        Ok(_) => busy("it is no file"),
    }
}

fn taken(place: &Path) -> anyhow::Error {
    exit::busy(format!("{}: something has been put there meanwhile", place.display()))
}

/// Errors where there is no directory for it, or no name.
fn absolute(place: &Path) -> Result<PathBuf> {
    let place = std::path::absolute(place).with_context(|| place.display().to_string())?;
    let (Some(parent), Some(_)) = (place.parent(), place.file_name()) else {
        return Err(exit::usage(format!("{}: not a name for something new", place.display())));
    };
    if !parent.is_dir() {
        return Err(exit::not_found(format!("{}: no such directory", parent.display())));
    }
    Ok(place)
}

fn sync_parent(place: &Path) -> Result<()> {
    let parent = place.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("sync {}", parent.display()))
}
