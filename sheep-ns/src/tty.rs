//! Terminals: the container's own, and ours in raw mode while we stand between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Gid, Uid, fchown};
use rustix::io::Errno;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::oci;
use crate::sys;

/// The slave end for an opened ptmx. It is asked of the master itself, not looked up by a path that the container could
/// have made lead elsewhere. Without a `size` it has that of our stdin, before a program can ask for it.
pub fn open_pair(master: OwnedFd, size: Option<oci::ConsoleSize>) -> Result<(OwnedFd, OwnedFd)> {
    unlockpt(&master).context("terminal: unlock")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).context("terminal: slave end")?;
    match size {
        Some(size) => {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(&slave, size).context("terminal: size")?;
        }
        None => copy_size(std::io::stdin().as_fd(), slave.as_fd()),
    }
    Ok((master, slave))
}

/// Makes the slave end this session's controlling terminal and its stdin, stdout and stderr; it belongs to the user.
pub fn take_as_stdio(slave: OwnedFd, uid: u32) -> Result<()> {
    if uid != 0 {
        fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>).context("terminal: owner")?;
    }
    ioctl_tiocsctty(&slave).context("terminal: TIOCSCTTY")?;
    for fd in 0..3 {
        sys::dup_to(slave.as_fd(), fd, false).context("terminal: dup")?;
    }
    Ok(())
}

/// Our own terminal in raw mode; it is as it was when this is dropped.
#[derive(Debug)]
pub struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    /// Puts `terminal` into raw mode; `None` where it is no terminal.
    pub fn new(terminal: BorrowedFd<'a>) -> Result<Option<Raw<'a>>> {
        let before = match tcgetattr(terminal) {
            Ok(before) => before,
            Err(Errno::NOTTY | Errno::BADF | Errno::INVAL | Errno::IO) => return Ok(None),
            Err(e) => return Err(e).context("terminal"),
        };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw).context("terminal: raw mode")?;
        Ok(Some(Raw { terminal, before }))
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // Drain: what the program wrote last is out before the terminal changes. A terminal that is gone needs nothing.
        let _ = tcsetattr(self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Gives the container's terminal, of which `end` is one, the size of ours. Where ours is none, or has no size, it is left as it is.
pub fn copy_size(ours: BorrowedFd<'_>, end: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(ours)
        && (size.ws_row, size.ws_col) != (0, 0)
    {
        let _ = tcsetwinsize(end, size);
    }
}

/// Bytes on their way in one direction.
#[derive(Debug, Default)]
pub struct Pump {
    pending: Vec<u8>,
    /// The source has no more.
    pub ended: bool,
}

impl Pump {
    /// Whether there is room for more from the source.
    pub fn wants(&self) -> bool {
        !self.ended && self.pending.len() < 64 * 1024
    }

    /// Whether there is something for the sink.
    pub fn has(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Types the terminal's end-of-file character behind what is on its way. Whoever is in the middle of changing the
    /// terminal's mode may lose it, so it is typed again while nobody has ended over it.
    pub fn push_end_of_file(&mut self) {
        const CTRL_D: u8 = 4;
        if self.pending.last() != Some(&CTRL_D) {
            self.pending.push(CTRL_D);
        }
    }

    /// Reads what is there. A terminal whose other end is closed gives EIO, which is its end of file.
    pub fn fill(&mut self, from: BorrowedFd<'_>) {
        let mut bytes = [0u8; 16 * 1024];
        match rustix::io::read(from, &mut bytes) {
            Ok(0) => self.ended = true,
            Ok(n) => self.pending.extend_from_slice(bytes.get(..n).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.ended = true,
        }
    }

    /// Writes what the sink takes. A sink that is gone swallows the rest, so that the source never stalls.
    pub fn drain(&mut self, to: BorrowedFd<'_>) {
        // No more than a pipe that is ready takes without blocking.
        let piece = self.pending.get(..self.pending.len().min(4096)).unwrap_or_default();
        match rustix::io::write(to, piece) {
            Ok(n) => drop(self.pending.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.pending.clear(),
        }
    }
}
