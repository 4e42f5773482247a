//! The content of a regular file: shared with the lower where the file system can, else copied, holes kept.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, Stat, copy_file_range, fstat, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

use super::interruptible;

/// How much is read at a time: it stays in the processor's cache between the read and the write.
pub(crate) const PIECE: usize = 256 << 10;

/// How content gets from one file system to the other, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Shared (FICLONE).
    Reflink,
    /// By the kernel, copied once (copy_file_range).
    InKernel,
    /// Read and written, copied twice.
    ThroughBuffer,
}

/// The best way from each device to the destination's: found out once, by trying.
pub(crate) struct Ways {
    known: Vec<(u64, Way)>,
    /// Content that cannot be shared is an error.
    only_shared: bool,
}

impl Ways {
    pub(crate) fn new(only_shared: bool) -> Self {
        Ways { known: Vec::new(), only_shared }
    }

    fn from(&self, device: u64) -> Way {
        self.known.iter().find(|(known, _)| *known == device).map_or(Way::Reflink, |(_, way)| *way)
    }

    /// A better way was refused for good.
    fn set(&mut self, device: u64, way: Way) {
        self.known.retain(|(known, _)| *known != device);
        self.known.push((device, way));
    }
}

/// Whether a way is refused for any file of these file systems.
fn is_for_good(error: Errno) -> bool {
    matches!(error, Errno::NOTSUP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS)
}

/// A file on its way: descriptors, the source's attributes, and what to call either end in a message.
pub(crate) struct Content<'a, S: Fn() -> String, D: Fn() -> String> {
    pub from: &'a OwnedFd,
    pub to: &'a OwnedFd,
    pub stat: &'a Stat,
    pub from_name: S,
    pub to_name: D,
}

impl<S: Fn() -> String, D: Fn() -> String> Content<'_, S, D> {
    /// Copies all of it; true where it is shared. The destination is empty before.
    pub(crate) fn copy(&self, ways: &mut Ways, buffer: &mut [u8]) -> Result<bool> {
        let size = self.stat.st_size as u64;
        if size == 0 {
            return Ok(false);
        }
        if ways.from(self.stat.st_dev) == Way::Reflink && self.reflink(ways)? {
            return Ok(true);
        }
        // Fewer blocks than bytes: there are holes (or the file system compresses, and says that there are none).
        if (self.stat.st_blocks as u64) * 512 < size {
            self.copy_around_holes(size, ways, buffer)?;
        } else {
            self.copy_range(0, size, ways, buffer)?;
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

    fn reflink(&self, ways: &mut Ways) -> Result<bool> {
        loop {
            match ioctl_ficlone(self.to, self.from) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => interruptible()?,
                Err(e @ (Errno::NOSPC | Errno::DQUOT)) => return Err(e).with_context(&self.to_name),
                Err(e) if ways.only_shared => {
                    let why = "its content cannot be shared (reflink) from here to the data directory";
                    return Err(e).with_context(|| format!("{}: {why}", (self.from_name)()));
                }
                Err(e) => {
                    // Or only this file cannot be shared (a swap file, another kind of allocation).
                    if is_for_good(e) {
                        ways.set(self.stat.st_dev, Way::InKernel);
                    }
                    return Ok(false);
                }
            }
        }
    }

    fn copy_around_holes(&self, size: u64, ways: &mut Ways, buffer: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < size {
            let data = match seek(self.from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole to the end.
                Err(Errno::NXIO) => break,
                // A file system that cannot tell.
                Err(Errno::INVAL) => return self.copy_range(at, size, ways, buffer),
                Err(e) => return Err(e).with_context(&self.from_name),
            };
            let hole = seek(self.from, SeekFrom::Hole(data)).with_context(&self.from_name)?.min(size);
            self.copy_range(data, hole, ways, buffer)?;
            at = hole;
        }
        ftruncate(self.to, size).with_context(&self.to_name)
    }

    fn copy_range(&self, start: u64, end: u64, ways: &mut Ways, buffer: &mut [u8]) -> Result<()> {
        let mut at = start;
        if ways.from(self.stat.st_dev) != Way::ThroughBuffer {
            at = self.copy_in_kernel(start, end, ways)?;
        }
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

    /// Copies as far as the kernel does it alone, and gives where it stopped.
    fn copy_in_kernel(&self, start: u64, end: u64, ways: &mut Ways) -> Result<u64> {
        let mut at = start;
        while at < end {
            interruptible()?;
            // A big file can be interrupted.
            let wanted = (end - at).min(16 << 20) as usize;
            match copy_file_range(self.from, Some(&mut { at }), self.to, Some(&mut { at }), wanted) {
                // Reading tells whether the file became shorter, or the file system only says so.
                Ok(0) => break,
                Ok(copied) => at += copied as u64,
                Err(Errno::INTR) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT)) => return Err(e).with_context(&self.to_name),
                Err(e) => {
                    if is_for_good(e) {
                        ways.set(self.stat.st_dev, Way::ThroughBuffer);
                    }
                    // Whatever else it is, reading and writing will name it, and the file.
                    break;
                }
            }
        }
        Ok(at)
    }
}
