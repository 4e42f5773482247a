//! Directories that are being filled or thrown away: `.tmp-…`, locked by the process that works in them.
//!
//! The lock dies with its process. A `.tmp-…` directory that nobody holds is what a crash left, and the next command
//! removes it.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use sheep_overlay::state;

use crate::interrupt;

/// How scratch directories are called.
pub const PREFIX: &str = ".tmp-";
/// From this depth on, what is to be deleted is moved up first: a tree of any depth needs no more open files than this.
const DELETE_DEPTH: u32 = 64;

/// A scratch directory. Dropped, it is deleted with all that is in it, unless it was moved to its final place.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    dir: File,
    kept: bool,
}

impl Scratch {
    /// Makes a scratch directory in `parent`, mode 0700, and locks it.
    pub fn new(parent: &Path) -> Result<Self> {
        Self::make(parent, PREFIX.as_ref())
    }

    /// Makes one beside `place`, in a directory that is not ours: `.NAME.sheep-…`. What a killed command left for the same
    /// place is deleted; nothing else is.
    pub fn beside(place: &Path) -> Result<Self> {
        let parent = place.parent().unwrap_or(Path::new("/"));
        let name = place.file_name().unwrap_or_default().as_bytes();
        // The name may be as long as names can be.
        let prefix = [b".", &name[..name.len().min(200)], b".sheep-"].concat();
        let is_ours = |path: &Path| {
            let id = path.file_name().unwrap_or_default().as_bytes().get(prefix.len()..).unwrap_or_default();
            let uid = rustix::process::geteuid().as_raw();
            id.len() == 12
                && id.iter().all(u8::is_ascii_hexdigit)
                && fs::symlink_metadata(path).is_ok_and(|found| found.uid() == uid)
        };
        for left in Self::unheld(parent, OsStr::from_bytes(&prefix), is_ours)? {
            left.delete()?;
        }
        Self::make(parent, OsStr::from_bytes(&prefix))
    }

    fn make(parent: &Path, prefix: &OsStr) -> Result<Self> {
        loop {
            let mut name = prefix.to_owned();
            name.push(state::new_id()?);
            let path = parent.join(name);
            let make = || fs::DirBuilder::new().mode(0o700).create(&path);
            interrupt::make_dir(&path, make).with_context(|| path.display().to_string())?;
            // Between making and locking, a process that clears up may have taken it for a leftover: then again, and without
            // a wait, for that process may be waiting for the store's lock, which we may hold. It deletes what it took.
            if let Some(scratch) = Self::lock_existing(path.clone(), false)? {
                return Ok(scratch);
            }
            interrupt::forget(&path);
        }
    }

    /// Takes over a directory that is to be deleted: it is renamed to a scratch name beside it. `None` where it does not
    /// exist.
    pub fn take_over(path: &Path) -> Result<Option<Self>> {
        let Some(mut scratch) = Self::lock_existing(path.to_path_buf(), true)? else { return Ok(None) };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let doomed = parent.join(format!("{PREFIX}{}", state::new_id()?));
        let renamed = fs::rename(path, &doomed).with_context(|| format!("rename {}", path.display()));
        if let Err(error) = renamed {
            scratch.kept = true;
            return Err(error);
        }
        scratch.path = doomed;
        Ok(Some(scratch))
    }

    /// The scratch directories in `parent` that no living process holds.
    pub fn leftovers(parent: &Path) -> Result<Vec<Self>> {
        Self::unheld(parent, PREFIX.as_ref(), |_| true)
    }

    fn unheld(parent: &Path, prefix: &OsStr, is_ours: impl Fn(&Path) -> bool) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        let entries = fs::read_dir(parent).with_context(|| parent.display().to_string())?;
        for entry in entries {
            let entry = entry.with_context(|| parent.display().to_string())?;
            if entry.file_name().as_bytes().starts_with(prefix.as_bytes())
                && is_ours(&entry.path())
                && let Some(scratch) = Self::lock_existing(entry.path(), false)?
            {
                found.push(scratch);
            }
        }
        Ok(found)
    }

    fn lock_existing(path: PathBuf, wait: bool) -> Result<Option<Self>> {
        let context = || format!("lock {}", path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(Errno::ACCESS) => {
                // A layer's root of mode 0: ours all the same.
                make_accessible(rustix::fs::CWD, &path).with_context(context)?;
                File::from(rustix::fs::open(&path, flags, Mode::empty()).with_context(context)?)
            }
            Err(e) => return Err(e).with_context(context),
        };
        if wait {
            dir.lock().with_context(context)?;
        } else {
            match dir.try_lock() {
                Ok(()) => (),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e).with_context(context),
            }
        }
        let ours = dir.metadata().with_context(context)?;
        match fs::symlink_metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                Ok(Some(Scratch { path, dir, kept: false }))
            }
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(context),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Moves the directory to its final place. Another directory that is there already, filled by somebody who was
    /// quicker, stays, and this one is deleted.
    pub fn move_to(mut self, place: &Path) -> Result<()> {
        match rustix::fs::rename(&self.path, place) {
            Ok(()) => {
                interrupt::forget(&self.path);
                self.kept = true;
                Ok(())
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("rename to {}", place.display())),
        }
    }

    /// Puts the directory in the place of another one, and gives that, which is a scratch directory now. It is one step, where the file
    /// system can exchange two names; else the place is empty for a moment.
    pub fn exchange(mut self, place: &Path) -> Result<Self> {
        let context = || format!("put {} in the place of {}", self.path.display(), place.display());
        let mut old = Self::lock_existing(place.to_path_buf(), true)?.with_context(context)?;
        // Until it is a scratch directory it is not ours to delete.
        old.kept = true;
        match rustix::fs::renameat_with(CWD, &self.path, CWD, place, RenameFlags::EXCHANGE) {
            Ok(()) => old.path = self.path.clone(),
            Err(Errno::INVAL | Errno::NOSYS) => {
                drop(old);
                old = Self::take_over(place)?.with_context(context)?;
                fs::rename(&self.path, place).with_context(context)?;
                interrupt::forget(&self.path);
            }
            Err(e) => return Err(e).with_context(context),
        }
        self.kept = true;
        old.kept = false;
        Ok(old)
    }

    /// Leaves it where it is, to be found again by the next command.
    pub fn leave(mut self) {
        interrupt::forget(&self.path);
        self.kept = true;
    }

    /// Deletes it, and says why that fails, if it does.
    pub fn delete(mut self) -> Result<()> {
        self.kept = true;
        interrupt::forget(&self.path);
        delete_dir(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            interrupt::forget(&self.path);
            // What cannot be deleted now is a leftover for the next command; the error that led here matters more.
            let _ = delete_dir(&self.path);
        }
    }
}

/// Deletes a directory and all below it, without following a symbolic link. Absent is fine.
pub fn delete_dir(path: &Path) -> Result<()> {
    let context = || format!("delete {}", path.display());
    let Some(top) = open_dir(rustix::fs::CWD, path.as_os_str()).with_context(context)? else { return Ok(()) };
    // Deleting moves deep directories up into `top`, so look again until nothing is left.
    while delete_entries(top.as_fd(), top.as_fd(), 0).with_context(context)? {}
    match rustix::fs::unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).with_context(context),
    }
}

/// Deletes `name` in `parent`, whatever it is. Absent is fine.
pub fn delete_entry(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let name = OsStr::from_bytes(name);
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => (),
        Err(e) => return Err(e),
    }
    let Some(dir) = open_dir(parent, name)? else { return Ok(()) };
    while delete_entries(dir.as_fd(), dir.as_fd(), 0)? {}
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Deletes what is in `dir`; tells whether something was moved up into `top` that is still to be deleted.
fn delete_entries(top: BorrowedFd<'_>, dir: BorrowedFd<'_>, depth: u32) -> rustix::io::Result<bool> {
    let mut moved = false;
    for (name, kind) in entries(dir)? {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // The file system did not tell its kind: it is a directory after all.
                Err(Errno::ISDIR) => (),
                Err(e) => return Err(e),
            }
        }
        let Some(child) = open_dir(dir, OsStr::from_bytes(name.to_bytes()))? else { continue };
        if depth >= DELETE_DEPTH {
            let up = format!("{PREFIX}{}", state::new_id().map_err(|_| Errno::IO)?);
            rustix::fs::renameat(dir, &name, top, up)?;
            moved = true;
            continue;
        }
        moved |= delete_entries(top, child.as_fd(), depth + 1)?;
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => (),
            Err(e) => return Err(e),
        }
    }
    Ok(moved)
}

fn entries(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<(std::ffi::CString, FileType)>> {
    let is_dot = |name: &CStr| matches!(name.to_bytes(), b"." | b"..");
    Dir::read_from(dir)?
        .map(|entry| entry.map(|e| (e.file_name().to_owned(), e.file_type())))
        .filter(|entry| !entry.as_ref().is_ok_and(|(name, _)| is_dot(name)))
        .collect()
}

/// Opens a directory that is to be emptied; one whose mode keeps its own owner out is opened up first.
fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(fd) if rustix::process::geteuid().is_root() => return Ok(Some(fd)),
        Ok(fd) => fd,
        Err(Errno::ACCESS) => {
            make_accessible(parent, Path::new(name))?;
            rustix::fs::openat(parent, name, flags, Mode::empty())?
        }
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    // Readable is not enough: entries are unlinked by writing to the directory and searching it.
    if rustix::fs::fstat(&opened)?.st_mode & 0o700 != 0o700 {
        rustix::fs::fchmod(&opened, Mode::RWXU)?;
    }
    Ok(Some(opened))
}

/// Gives a directory mode 0700. The way over /proc keeps a symbolic link from being followed.
fn make_accessible(parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sheep-scratch-{}", state::new_id().unwrap()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_deleted() {
        let top = dir();
        let mut fd = rustix::fs::open(&top, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&fd, "d", Mode::RWXU).unwrap();
            rustix::fs::openat(&fd, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            fd = rustix::fs::openat(&fd, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        drop(fd);
        delete_dir(&top).unwrap();
        assert!(!top.exists());
        delete_dir(&top).unwrap();
    }

    #[test]
    fn links_are_not_followed() {
        let (top, outside) = (dir(), dir());
        fs::write(outside.join("canary"), "alive").unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        delete_dir(&top).unwrap();
        assert_eq!(fs::read(outside.join("canary")).unwrap(), b"alive");
        fs::remove_dir_all(outside).unwrap();
    }

    #[test]
    fn what_was_left_for_a_place_goes_with_the_next_try() {
        let parent = dir();
        let place = parent.join("out");
        for (name, _) in
            [(".out.sheep-0123456789ab", "ours"), (".out.sheep-0123", "not"), (".other.sheep-0123456789ab", "not")]
        {
            fs::create_dir(parent.join(name)).unwrap();
        }
        let held = Scratch::beside(&place).unwrap();
        let again = Scratch::beside(&place).unwrap();
        assert!(held.path().exists() && again.path().exists());
        assert!(!parent.join(".out.sheep-0123456789ab").exists());
        assert!(parent.join(".out.sheep-0123").exists() && parent.join(".other.sheep-0123456789ab").exists());
        drop((held, again));
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn one_takes_the_place_of_another() {
        let parent = dir();
        let place = parent.join("place");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("old"), "").unwrap();
        let new = Scratch::new(&parent).unwrap();
        fs::write(new.path().join("new"), "").unwrap();
        let old = new.exchange(&place).unwrap();
        assert!(place.join("new").exists() && old.path().join("old").exists());
        let gone = old.path().to_path_buf();
        drop(old);
        assert!(place.join("new").exists() && !gone.exists());
        assert!(Scratch::new(&parent).unwrap().exchange(&parent.join("absent")).is_err());
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn only_what_nobody_holds_is_a_leftover() {
        let parent = dir();
        let held = Scratch::new(&parent).unwrap();
        fs::create_dir(parent.join(".tmp-dead")).unwrap();
        fs::create_dir(parent.join("other")).unwrap();
        let found = Scratch::leftovers(&parent).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].path().ends_with(".tmp-dead"));
        drop(found);
        assert!(held.path().exists() && parent.join("other").exists() && !parent.join(".tmp-dead").exists());
        held.move_to(&parent.join("done")).unwrap();
        assert!(parent.join("done").exists());
        fs::remove_dir_all(parent).unwrap();
    }
}
