//! The changes as a layer directory in the form of OverlayFS, to be a lower over the old ones.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, openat, renameat, syncfs};
use rustix::io::Errno;

use super::Source;
use super::plan::Item;
use crate::carry::{Carrier, attributes};
use crate::diff::escaped;
use crate::inode::Inode;
use crate::paths::split;
use crate::stack::open_beneath;
use crate::{PROGRAM, exit, layer, remove, state};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory that is being made beside its place; it is deleted unless it is moved there.
struct Unfinished {
    parent: PathBuf,
    name: CString,
    fd: OwnedFd,
    done: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Err(error) = remove::tree(&self.parent, &self.name) {
            exit::print_line(PROGRAM, &error.context("undo"));
        }
    }
}

/// Makes sure that a directory can be made at `to`, an absolute path. Errors with busy (4) where something is there.
pub fn check_place(to: &Path) -> Result<()> {
    let busy = |what: &str| Err(exit::busy(format!("{}: {what}; give a new or an empty directory", to.display())));
    match std::fs::symlink_metadata(to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| to.display().to_string()),
        Ok(found) if !found.is_dir() => busy("there is something else of that name"),
        Ok(_) => match std::fs::read_dir(to).with_context(|| to.display().to_string())?.next() {
            Some(_) => busy("it is not empty"),
            None => Ok(()),
        },
    }
}

/// Makes the layer at `to`, an absolute path: whole, or not at all.
pub fn write(source: &Source, to: &Path) -> Result<()> {
    let mut made = begin(to)?;
    let top = made.fd.as_fd();
    let mut carrier = Carrier::new(top);
    let mut names = Vec::new();
    let mut directories = vec![(&b""[..], Item::Real)];
    for (path, item) in &source.layer {
        if crate::sys::interrupted() {
            bail!("interrupted");
        }
        let mut put = || -> Result<()> {
            if path.is_empty() {
                return Ok(());
            }
            let (parent, name) = split(path);
            let (dir, name) = (open_beneath(top, parent)?, CString::new(name).context("a name with a NUL")?);
            if *item == Item::Gone {
                return Ok(layer::make_whiteout(&dir, &*name)?);
            }
            let entry = source.entry(path)?;
            if FileType::from_raw_mode(entry.stat.st_mode) == FileType::Directory {
                directories.push((path, *item));
            }
            carrier.put(&entry, dir.as_fd(), &name, path)
        };
        put().with_context(|| format!("/{}", escaped(path)))?;
    }
    // What is in a directory comes before its own attributes, which may close it, and which have its times.
    for (path, item) in directories.into_iter().rev() {
        let mut finish = || -> Result<()> {
            let dir = open_beneath(top, path)?;
            if item == Item::Opaque {
                layer::set_opaque(&dir).context("mark it opaque")?;
            }
            let entry = source.entry(path)?;
            attributes(Inode::Named(entry.dir.as_fd(), &entry.name), Inode::Open(dir.as_fd()), &entry.stat, &mut names)
        };
        finish().with_context(|| format!("/{}", escaped(path)))?;
    }
    syncfs(&made.fd).with_context(|| to.display().to_string())?;
    let name = to.file_name().unwrap_or_default();
    match renameat(CWD, made.parent.join(OsStr::from_bytes(made.name.to_bytes())), CWD, made.parent.join(name)) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {
            return Err(exit::busy(format!("{}: it is not empty any more", to.display())));
        }
        moved => moved.with_context(|| format!("rename to {}", to.display()))?,
    }
    made.done = true;
    Ok(())
}

fn begin(to: &Path) -> Result<Unfinished> {
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(exit::usage(format!("{}: no place for a directory", to.display())));
    };
    let make = || -> Result<Unfinished> {
        // The name may be as long as names can be.
        let start = &name.as_bytes()[..name.len().min(200)];
        let name = CString::new([b".", start, b".", state::new_id()?.as_bytes()].concat())?;
        let dir = openat(CWD, parent, DIRECTORY, Mode::empty())?;
        mkdirat(&dir, &name, Mode::RWXU)?;
        let fd = openat(&dir, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Unfinished { parent: parent.to_path_buf(), name, fd, done: false })
    };
    make().with_context(|| format!("make {}", to.display()))
}
