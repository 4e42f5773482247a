//! Signals while a command is at work: they are held back and read where it can undo what it has done so far.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys;

/// The signals that end a command: it undoes its work and exits with 128+N. A container in the foreground gets them.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Signals that mean nothing to us and are passed on to a container in the foreground.
const PASSED_ON: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGUSR2];

/// Signals held back and readable.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught {
    /// Which.
    pub signal: Signal,
    /// Whether the terminal sent it: then our children in the foreground have got it as well.
    pub from_terminal: bool,
}

impl Signals {
    /// Holds back the signals that end a command. Ones that were ignored when this program started stay ignored.
    pub fn hold() -> Result<Self> {
        Self::hold_all(&ENDING)
    }

    /// Holds back those, and those that a container in the foreground is to get.
    pub fn hold_for_foreground() -> Result<Self> {
        Self::hold_all(&[&ENDING[..], &PASSED_ON].concat())
    }

    fn hold_all(signals: &[Signal]) -> Result<Self> {
        let mut mask = SigSet::empty();
        for &signal in signals.iter().filter(|signal| !sys::is_ignored(**signal)) {
            mask.add(signal);
        }
        mask.thread_block().context("block signals")?;
        SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Signals).context("signalfd")
    }

    /// The next signal that came in, if any.
    pub fn next(&self) -> Option<Caught> {
        let info = self.0.read_signal().ok().flatten()?;
        let signal = Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?;
        Some(Caught { signal, from_terminal: info.ssi_code == libc::SI_KERNEL })
    }

    /// The next signal that ends this command; those for the container are dropped while there is none.
    pub fn next_ending(&self) -> Option<Caught> {
        std::iter::from_fn(|| self.next()).find(|caught| ENDING.contains(&caught.signal))
    }

    /// An error if a signal has come in: for between two steps.
    pub fn check(&self) -> Result<()> {
        match self.next_ending() {
            Some(caught) => Err(Interrupted(caught.signal).into()),
            None => Ok(()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The error of a command that was ended by a signal: exit code 128+N, and nothing to say about it.
#[derive(Debug)]
pub struct Interrupted(pub Signal);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended by {}", self.0)
    }
}

impl std::error::Error for Interrupted {}
