//! Directories that a layer's archive does not name, and needs all the same for what is in them.
//!
//! What they are like is for the layers below to say (image-spec, layer.md: a layer is applied to what is there). But each
//! layer is unpacked by itself, and OverlayFS shows a directory as the topmost layer has it. So a layer with such directories
//! is stored once for each chain of layers that it lies on (by its chainID, config.md) instead of once for all, its
//! directories completed; one of which only the root is not named, where that differs from the one below. Nearly all tools name every directory, and then that never happens.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, fstat};
use sheep_overlay::carry;
use sheep_overlay::inode::{Inode, xattr_names};
use sheep_overlay::layer::{self, Marks};
use sheep_overlay::stack::{Dir, Stack};

use super::archive::shown;
use super::{opaque_root, resolve};

/// What a stored layer has of such directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implied {
    /// None.
    Nothing,
    /// Its root alone, as most layers.
    Root,
    /// Others too.
    Directories,
}

/// The attribute of a layer's root that tells; OverlayFS does not show it.
fn mark() -> CString {
    let prefix = layer::XATTR_PREFIXES[Marks::of_this_process() as usize];
    CString::new(format!("{prefix}implied")).unwrap_or_default()
}

/// Notes in a layer which directories its archive did not name. A file system without extended attributes forgets it.
pub fn note(root: BorrowedFd<'_>, implied: &[Vec<u8>]) {
    let value: &[u8] = match implied {
        [] => return,
        [only] if only.is_empty() => b"r",
        _ => b"d",
    };
    let _ = Inode::Open(root).set_xattr(&mark(), value);
}

/// What a stored layer has, and whether it can lie on these layers (bottom first) as it is.
pub fn fits(layer: &Path, below: &[PathBuf]) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(layer, flags, Mode::empty()).with_context(|| layer.display().to_string())?;
    if opaque_root::is(root.as_fd())? {
        return Ok(below.is_empty());
    }
    Ok(match noted(root.as_fd()) {
        Implied::Nothing => true,
        Implied::Directories => below.is_empty(),
        Implied::Root if below.is_empty() => true,
        Implied::Root => !differs(&open(below)?.root()?, root.as_fd(), true)?,
    })
}

fn noted(root: BorrowedFd<'_>) -> Implied {
    let mut value = Vec::new();
    match Inode::Open(root).get_xattr(&mark(), &mut value) {
        Ok(()) if value == b"r" => Implied::Root,
        Ok(()) => Implied::Directories,
        Err(_) => Implied::Nothing,
    }
}

fn open(below: &[PathBuf]) -> Result<Stack> {
    Stack::open(below, Marks::of_this_process(), None)
}

/// Makes the implied directories of a layer like those of the layers that it is to lie on (bottom first); true if it is for
/// these layers alone now, because they differed, or because others' may.
pub fn complete(root: BorrowedFd<'_>, implied: &[Vec<u8>], below: &[PathBuf]) -> Result<bool> {
    if implied.is_empty() || below.is_empty() {
        return Ok(false);
    }
    let stack = open(below)?;
    let mut names = Vec::new();
    let mut any = implied.iter().any(|path| !path.is_empty());
    for path in implied {
        let context = || format!("directory {}", shown(path));
        let dir = stack.find(path).with_context(context)?;
        let own = resolve::open_plain(root, path, OFlags::RDONLY).with_context(context)?;
        if let (Some(top), Some(stat)) = (dir.top(), dir.stat())
            && differs(&dir, own.as_fd(), path.is_empty())?
        {
            carry::attributes(Inode::Open(top), Inode::Open(own.as_fd()), stat, &mut names).with_context(context)?;
            any = true;
        }
    }
    Ok(any)
}

/// Whether a directory looks otherwise than the one below it. The root's time says nothing.
fn differs(below: &Dir, own: BorrowedFd<'_>, is_root: bool) -> Result<bool> {
    let (Some(top), Some(before)) = (below.top(), below.stat()) else { return Ok(false) };
    let now = fstat(own)?;
    let look = |stat: &rustix::fs::Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    let time = |stat: &rustix::fs::Stat| (stat.st_mtime, stat.st_mtime_nsec);
    if look(before) != look(&now) || (!is_root && time(before) != time(&now)) {
        return Ok(true);
    }
    let mut names = Vec::new();
    Inode::Open(top).list_xattrs(&mut names)?;
    Ok(xattr_names(&names).any(|name| !layer::is_overlay_xattr(name.to_bytes())))
}
