//! Standing by while a program runs: signals go on to it, its terminal is ours, its end is our exit code.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::init::Child;
use crate::tty::{self, Pump};

/// The signals that go on to the program.
const FORWARDED: [NixSignal; 7] = [
    NixSignal::SIGTERM,
    NixSignal::SIGINT,
    NixSignal::SIGHUP,
    NixSignal::SIGQUIT,
    NixSignal::SIGUSR1,
    NixSignal::SIGUSR2,
    NixSignal::SIGWINCH,
];

/// These signals, held back from this process. Taken before the clone, so that none falls between; the child begins with
/// an empty mask.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks them from now on.
    pub fn block() -> Result<Signals> {
        let mut set = SigSet::empty();
        FORWARDED.into_iter().for_each(|signal| set.add(signal));
        set.thread_block().context("sigprocmask")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
        Ok(Signals { fd })
    }
}

/// What a first process does about a signal it has no handler for. The kernel keeps such signals from a pid namespace's
/// first process, so that a plain `sleep` cannot be interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unhandled {
    /// Nothing, as engines expect of a container.
    Ignored,
    /// It ends, as the command would outside: Ctrl-C works.
    Fatal,
}

/// Waits for the child's end: its exit code, 128+N for signal N. `master` is the master end of its terminal.
pub fn wait(child: &Child, signals: &Signals, master: Option<OwnedFd>, unhandled: Unhandled) -> Result<u8> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let raw = match &master {
        Some(master) => {
            // A write of more than there is room for must not keep signals waiting.
            let flags = rustix::fs::fcntl_getfl(master).context("terminal")?;
            rustix::fs::fcntl_setfl(master, flags | rustix::fs::OFlags::NONBLOCK).context("terminal")?;
            tty::Raw::new(stdin.as_fd())?
        }
        None => None,
    };
    let mut inward = Pump::default();
    let mut outward = Pump::default();
    outward.ended = master.is_none();
    let mut fatal = None;
    let mut ended = false;
    // When the program has ended, what it wrote is still brought out, until nothing more is there.
    while !ended || outward.has() {
        let flags = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let from_master = flags(!outward.ended && outward.wants(), PollFlags::IN) | flags(inward.has(), PollFlags::OUT);
        let mut fds =
            vec![PollFd::new(&child.pidfd, flags(!ended, PollFlags::IN)), PollFd::new(&signals.fd, PollFlags::IN)];
        // Nothing is looked at without need: that the other side is gone, poll tells whether it was asked or not, again and again.
        let watched = master.as_ref().filter(|_| !from_master.is_empty());
        let at_master = watched.map(|_| fds.len());
        fds.extend(watched.map(|master| PollFd::new(master, from_master)));
        let at_stdin = (master.is_some() && inward.wants() && !ended).then_some(fds.len());
        if at_stdin.is_some() {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let at_stdout = outward.has().then_some(fds.len());
        if at_stdout.is_some() {
            fds.push(PollFd::new(&stdout, PollFlags::OUT));
        }
        // A stdin that is no terminal and at its end: the program's terminal says so at every read.
        let says_end = master.is_some() && raw.is_none() && inward.ended && !ended;
        let timeout = says_end.then_some(Timespec { tv_sec: 0, tv_nsec: 200_000_000 });
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => continue,
            Ok(0) => {
                inward.push_end_of_file();
                continue;
            }
            polled => polled.context("poll")?,
        };
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let is = |index: usize, flag: PollFlags| ready.get(index).is_some_and(|flags| flags.intersects(flag));
        let gone = PollFlags::HUP | PollFlags::ERR;
        if is(1, PollFlags::IN) {
            forward(child, signals, master.as_ref().map(AsFd::as_fd), stdin.as_fd(), unhandled, &mut fatal)?;
        }
        if at_stdout.is_some_and(|at| is(at, PollFlags::OUT | gone)) {
            outward.drain(stdout.as_fd());
        }
        if let Some(master) = &master {
            if at_master.is_some_and(|at| is(at, PollFlags::OUT)) {
                inward.drain(master.as_fd());
            }
            if at_master.is_some_and(|at| is(at, PollFlags::IN | gone)) && outward.wants() {
                outward.fill(master.as_fd());
            }
            if at_stdin.is_some_and(|at| is(at, PollFlags::IN | gone)) {
                inward.fill(stdin.as_fd());
                if inward.ended && raw.is_none() {
                    inward.push_end_of_file();
                }
            }
        }
        ended |= is(0, PollFlags::IN);
        if ended && let Some(master) = &master {
            drain_rest(master.as_fd(), &mut outward);
        }
    }
    drop(raw);
    let code = child.wait()?;
    Ok(fatal.unwrap_or(code))
}

/// What is still in the terminal when its program has ended. It may have left processes that hold the terminal open, so
/// this never waits.
fn drain_rest(master: BorrowedFd<'_>, outward: &mut Pump) {
    while outward.wants() {
        let mut fds = [PollFd::new(&master, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut fds, Some(&now)), Ok(1..)) || !fds.iter().any(|fd| fd.revents().contains(PollFlags::IN))
        {
            outward.ended = true;
            return;
        }
        outward.fill(master);
    }
}

fn forward(
    child: &Child,
    signals: &Signals,
    master: Option<BorrowedFd<'_>>,
    ours: BorrowedFd<'_>,
    unhandled: Unhandled,
    fatal: &mut Option<u8>,
) -> Result<()> {
    while let Some(info) = signals.fd.read_signal().context("signalfd")? {
        let Some(signal) = Signal::from_named_raw(info.ssi_signo as i32) else { continue };
        if let (Signal::WINCH, Some(master)) = (signal, master) {
            // The kernel tells the program by itself.
            tty::copy_size(ours, master);
            continue;
        }
        match pidfd_send_signal(&child.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("pass on signal {signal:?}")),
        }
        let ends = matches!(signal, Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT);
        if unhandled == Unhandled::Fatal && ends && is_dropped(child, signal) {
            *fatal = Some(128 + info.ssi_signo as u8);
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
        }
    }
    Ok(())
}

/// Whether the kernel drops this signal for want of a handler: the process is the first of its pid namespace, and
/// neither catches nor ignores nor blocks it. On its way to its program it blocks what it will not block there.
fn is_dropped(child: &Child, signal: Signal) -> bool {
    if !child.is_executed() {
        return true;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", child.pid.as_raw_nonzero())) else {
        return false;
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let first = field("NSpid:").is_some_and(|ids| ids.split_whitespace().count() > 1 && ids.ends_with("\t1"));
    let bit = 1u64 << (signal.as_raw() - 1);
    let handled = ["SigCgt:", "SigIgn:", "SigBlk:"]
        .iter()
        .any(|name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_none_or(|mask| mask & bit != 0));
    first && !handled
}
