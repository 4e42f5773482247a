//! Deleting trees that a container's root may have filled: no symbolic link is followed, no mount is entered, no name is
//! put into a path. The kernel keeps to that itself (`openat2` with `RESOLVE_NO_XDEV`), so that nothing depends on a
//! check made a moment before.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, ResolveFlags, fstat, ioctl_getflags, ioctl_setflags, openat,
    openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::exit;

/// How many directories are held open one inside the other. Deeper ones are first moved up, so that a tree of any depth
/// is deleted with few descriptors and little stack.
const DEPTH: usize = 100;

/// Deletes an overlay's directory, its lock last. What another process deletes meanwhile is no error. Nothing may be
/// mounted in it: a mount is an error (4), and stays untouched.
pub fn overlay(dir: &Path) -> Result<()> {
    let Some(top) = open_top(dir)? else { return Ok(()) };
    let mut tree = Tree::below(top.as_fd(), dir);
    // The usual names first: a fresh overlay has no others, and needs no listing. The kernel's `work/work` is empty
    // after a clean umount; where it is not, the loop says what is wrong.
    let _ = unlinkat(&top, c"work/work", AtFlags::REMOVEDIR);
    for name in [c"merged", c"upper", c"work", c"users"] {
        tree.delete(top.as_fd(), name, 0)?;
    }
    while let Some(moved) = tree.moved.pop() {
        tree.delete(top.as_fd(), &moved, 0)?;
    }
    for name in [c"copied", c"overlay.json", c"lock"] {
        unlink(top.as_fd(), name)
            .with_context(|| format!("delete {}", dir.join(name.to_string_lossy().as_ref()).display()))?;
    }
    let mut done = unlinkat(CWD, dir, AtFlags::REMOVEDIR);
    while let Err(Errno::NOTEMPTY | Errno::EXIST) = done {
        // What a killed process left: a temporary file, or a directory moved up.
        tree.empty(top.as_fd(), 0)?;
        done = unlinkat(CWD, dir, AtFlags::REMOVEDIR);
    }
    gone(done).with_context(|| format!("rmdir {}", dir.display()))
}

/// Deletes `dir/name`, whatever it is and whatever is in it. Absent is fine.
pub fn tree(dir: &Path, name: &CStr) -> Result<()> {
    let Some(top) = open_top(dir)? else { return Ok(()) };
    let mut tree = Tree::below(top.as_fd(), dir);
    tree.delete(top.as_fd(), name, 0)?;
    while let Some(moved) = tree.moved.pop() {
        tree.delete(top.as_fd(), &moved, 0)?;
    }
    Ok(())
}

struct Tree<'a> {
    top: BorrowedFd<'a>,
    /// Where the deletion is, for messages.
    at: PathBuf,
    /// Directories that were moved up to the top, and are still to be deleted.
    moved: Vec<CString>,
    /// Root may write into every directory; anybody else may have to give himself the permission.
    root: bool,
}

impl<'a> Tree<'a> {
    fn below(top: BorrowedFd<'a>, path: &Path) -> Self {
        let root = rustix::process::geteuid().is_root();
        Tree { top, at: path.to_path_buf(), moved: Vec::new(), root }
    }

    fn delete(&mut self, parent: BorrowedFd, name: &CStr, depth: usize) -> Result<()> {
        self.at.push(name.to_string_lossy().as_ref());
        let first_try = unlinkat(parent, name, AtFlags::REMOVEDIR);
        match first_try {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => self.or_where(unlink(parent, name))?,
            // Not empty, or not to be changed yet: go in.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS | Errno::PERM) if depth < DEPTH => {
                if let Some(dir) = self.or_where(open_dir(parent, name))? {
                    if first_try == Err(Errno::PERM) {
                        clear_flags(parent);
                        clear_flags(dir.as_fd());
                    }
                    let mut done = Err(Errno::NOTEMPTY);
                    // Some file systems pass over names when others are deleted during a listing: then once more.
                    while let Err(Errno::NOTEMPTY | Errno::EXIST) = done {
                        self.empty(dir.as_fd(), depth)?;
                        done = unlinkat(parent, name, AtFlags::REMOVEDIR);
                    }
                    self.or_where(gone(done))?;
                }
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.or_where(self.top_name(parent, name)).map(|moved| self.moved.push(moved))?
            }
            Err(e) => self.or_where(Err(e))?,
        }
        self.at.pop();
        Ok(())
    }

    /// Deletes what is listed in a directory.
    fn empty(&mut self, dir: BorrowedFd, depth: usize) -> Result<()> {
        if !self.root && self.or_where(fstat(dir))?.st_mode & 0o700 != 0o700 {
            self.or_where(rustix::fs::fchmod(dir, Mode::RWXU))?;
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
        self.or_where(rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0)))?;
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // The directory itself is gone: another process was quicker.
                Err(Errno::NOENT) => return Ok(()),
                entry => self.or_where(entry)?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                self.delete(dir, name, depth + 1)?;
            } else if let Err(e) = unlink(dir, name) {
                self.at.push(name.to_string_lossy().as_ref());
                return self.or_where(Err(e));
            }
        }
        Ok(())
    }

    /// Moves a directory up to the top under a free name, which is returned.
    fn top_name(&self, parent: BorrowedFd, name: &CStr) -> Result<CString, Errno> {
        if !self.root {
            // A directory that is moved gets a new "..", for which its owner needs the write bit.
            make_accessible(parent, name)?;
        }
        for number in self.moved.len().. {
            let new_name = CString::new(format!(".deep-{number}")).unwrap_or_default();
            match renameat(parent, name, self.top, &new_name) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                done => return done.map(|()| new_name),
            }
        }
        Err(Errno::EXIST)
    }

    fn or_where<T>(&self, done: Result<T, Errno>) -> Result<T> {
        done.map_err(|e| match e {
            Errno::BUSY | Errno::XDEV => {
                exit::busy(format!("{}: something is mounted there; unmount it first", self.at.display()))
            }
            e => anyhow::Error::from(e).context(format!("delete {}", self.at.display())),
        })
    }
}

/// Unlinks a file, also one with the immutable or append-only flag (or in such a directory).
fn unlink(parent: BorrowedFd, name: &CStr) -> Result<(), Errno> {
    match gone(unlinkat(parent, name, AtFlags::empty())) {
        Err(Errno::PERM) => {
            clear_flags(parent);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            // Of the files only regular ones have such flags; the others must not be opened.
            if let Ok(found) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
                && let Ok(file) = openat(parent, name, flags, Mode::empty())
            {
                clear_flags(file.as_fd());
            }
            gone(unlinkat(parent, name, AtFlags::empty()))
        }
        done => done,
    }
}

/// Absent is what was wanted.
fn gone(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Takes the immutable and append-only flags off. Where that fails, so does the deletion that follows, which reports it.
fn clear_flags(file: BorrowedFd) {
    let unwanted = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = ioctl_getflags(file)
        && flags.intersects(unwanted)
    {
        let _ = ioctl_setflags(file, flags - unwanted);
    }
}

/// Opens a directory in a tree: not through a link, not over a mount (`EXDEV`). One that may not be read (overlayfs makes
/// its `work/work` with mode 000) is made readable first. `None` where it is gone.
fn open_dir(parent: BorrowedFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let opened = match open_within(parent, name, OFlags::RDONLY) {
        Err(Errno::ACCESS) => {
            make_accessible(parent, name)?;
            open_within(parent, name, OFlags::RDONLY)
        }
        opened => opened,
    };
    match opened {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

/// chmod 0700 of a directory that cannot be opened yet, and of nothing that a symbolic link points to.
fn make_accessible(parent: BorrowedFd, name: &CStr) -> Result<(), Errno> {
    let dir = open_within(parent, name, OFlags::PATH)?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), Mode::RWXU)
}

fn open_within(parent: BorrowedFd, name: &CStr, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match openat2(parent, name, flags, Mode::empty(), within) {
        // Before Linux 5.6 the devices have to tell.
        Err(Errno::NOSYS) => {
            let dir = openat(parent, name, flags, Mode::empty())?;
            if fstat(parent)?.st_dev == fstat(&dir)?.st_dev { Ok(dir) } else { Err(Errno::XDEV) }
        }
        opened => opened,
    }
}

fn open_top(dir: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, dir, flags, Mode::empty()) {
        Ok(top) => Ok(Some(top)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("open {}", dir.display())),
    }
}
