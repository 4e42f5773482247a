//! The content of a regular file: shared with the lower where the file system can (reflink), else copied, holes kept.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, Stat, fstat, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

use super::interruptible;

/// How much is read at a time: it stays in the processor's cache between the read and the write.
pub(super) const PIECE: usize = 256 << 10;

/// Which file systems share content with the destination's, by device number: found out once, by trying.
#[derive(Default)]
pub(super) struct Reflinks(Vec<(u64, bool)>);

/// A file on its way: descriptors, the source's attributes, and what to call either end in a message.
pub(super) struct Content<'a, S: Fn() -> String, D: Fn() -> String> {
    pub from: &'a OwnedFd,
    pub to: &'a OwnedFd,
    pub stat: &'a Stat,
    pub from_name: S,
    pub to_name: D,
}

impl<S: Fn() -> String, D: Fn() -> String> Content<'_, S, D> {
    /// Copies all of it; true where it is shared. The destination is empty before.
    pub(super) fn copy(&self, reflinks: &mut Reflinks, buffer: &mut [u8]) -> Result<bool> {
        let size = self.stat.st_size as u64;
        if size == 0 {
            return Ok(false);
        }
        if self.reflink(reflinks)? {
            return Ok(true);
        }
        // Fewer blocks than bytes: there are holes (or the file system compresses, and says that there are none).
        if (self.stat.st_blocks as u64) * 512 < size {
            self.copy_around_holes(size, buffer)?;
        } else {
            self.copy_range(0, size, buffer)?;
        }
        if size >= PIECE as u64 {
            let now = fstat(self.from).with_context(&self.from_name)?;
            let key = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
            if key(&now) != key(self.stat) {
                bail!("{}: changed while it was copied", (self.from_name)());
            }
        }
        Ok(false)
    }

    fn reflink(&self, reflinks: &mut Reflinks) -> Result<bool> {
        let device = self.stat.st_dev;
        let known = reflinks.0.iter().position(|(known, _)| *known == device);
        if known.is_some_and(|at| !reflinks.0[at].1) {
            return Ok(false);
        }
        loop {
            let shares = match ioctl_ficlone(self.to, self.from) {
                Ok(()) => true,
                Err(Errno::INTR) => {
                    interruptible()?;
                    continue;
                }
                Err(Errno::NOTSUP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => false,
                Err(e @ (Errno::NOSPC | Errno::DQUOT)) => return Err(e).with_context(&self.to_name),
                // This file cannot be shared (a swap file, another kind of allocation); others may.
                Err(_) => return Ok(false),
            };
            if known.is_none() {
                reflinks.0.push((device, shares));
            }
            return Ok(shares);
        }
    }

    fn copy_around_holes(&self, size: u64, buffer: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < size {
            let data = match seek(self.from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole to the end.
                Err(Errno::NXIO) => break,
                // A file system that cannot tell.
                Err(Errno::INVAL) => return self.copy_range(at, size, buffer),
                Err(e) => return Err(e).with_context(&self.from_name),
            };
            let hole = seek(self.from, SeekFrom::Hole(data)).with_context(&self.from_name)?.min(size);
            self.copy_range(data, hole, buffer)?;
            at = hole;
        }
        ftruncate(self.to, size).with_context(&self.to_name)
    }

    fn copy_range(&self, start: u64, end: u64, buffer: &mut [u8]) -> Result<()> {
        let mut at = start;
        while at < end {
            interruptible()?;
            let wanted = buffer.len().min((end - at) as usize);
            let read = match pread(self.from, &mut buffer[..wanted], at) {
                Err(Errno::INTR) => continue,
                read => read.with_context(&self.from_name)?,
            };
            if read == 0 {
                bail!("{}: became shorter while it was copied", (self.from_name)());
            }
            let mut written = 0;
            while written < read {
                match pwrite(self.to, &buffer[written..read], at + written as u64) {
                    Err(Errno::INTR) => interruptible()?,
                    count => written += count.with_context(&self.to_name)?,
                }
            }
            at += read as u64;
        }
        Ok(())
    }
}
