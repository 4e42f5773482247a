//! A layer whose root is opaque: nothing of the layers below it is to be seen (image-spec, layer.md, "Opaque Whiteout").
//!
//! OverlayFS reads that mark in every directory but in the roots of its layers. So what the layers below have in their roots is
//! hidden name by name, and the layer is stored for the chain of layers that it lies on, as one with implied directories.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, fstat, futimens, openat, statat};
use rustix::io::Errno;
use sheep_overlay::layer::{self, Marks};
use sheep_overlay::stack::Stack;

use super::archive::shown;

/// Whether the root of a layer is opaque.
pub fn is(root: BorrowedFd<'_>) -> Result<bool> {
    layer::is_opaque(root, Marks::of_this_process()).context("the layer's root")
}

/// Hides in a layer with an opaque root what the layers below it (bottom first) have in theirs; true if it has such a root,
/// and so is for these layers alone now.
pub fn complete(root: BorrowedFd<'_>, below: &[PathBuf]) -> Result<bool> {
    if below.is_empty() || !is(root)? {
        return Ok(false);
    }
    let stack = Stack::open(below, Marks::of_this_process(), None)?;
    let dir = stack.root()?;
    let before = fstat(root)?;
    let mut buffer = Vec::with_capacity(32 << 10);
    for name in stack.names_in(&dir, b"", |_| true, buffer.spare_capacity_mut())? {
        let context = || format!("hide {}", shown(name.to_bytes()));
        match statat(root, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(own) if FileType::from_raw_mode(own.st_mode) == FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let own = openat(root, &name, flags, Mode::empty()).with_context(context)?;
                layer::set_opaque(&own).with_context(context)?;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => layer::make_whiteout(root, &name).with_context(context)?,
            Err(e) => return Err(e).with_context(context),
        }
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or_default(),
    };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    futimens(root, &times).context("the time of the layer's root")?;
    Ok(true)
}
