//! `kill`: a signal for a container's first process, or for all of them.

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::state_root;
use crate::cgroup::Cgroup;
use crate::cli::{Global, Kill};
use crate::exit;
use crate::state::Record;
use crate::sys;

/// `kill`
pub fn run(global: &Global, args: &Kill) -> Result<u8> {
    let signal = parse(&args.signal)?;
    let root = state_root(global)?;
    let record = root.read(&args.id)?;
    if args.all {
        // That nobody is left is what was wanted, as with runc.
        all(&record, signal)?;
    } else if !first(&record, signal)? {
        // containerd knows by these words that it has ended, and removes it then.
        return Err(exit::busy(format!("container not running: {}", args.id)));
    }
    Ok(0)
}

/// Signals the first process; `false` when it has ended.
fn first(record: &Record, signal: i32) -> Result<bool> {
    let Some(process) = &record.process else { return Ok(false) };
    let Some(pidfd) = process.open()? else { return Ok(false) };
    match sys::pidfd_send(&pidfd, signal) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => Ok(false),
        done => done.map(|()| true).with_context(|| format!("signal process {}", process.pid)),
    }
}

/// Signals every process of the container.
fn all(record: &Record, signal: i32) -> Result<()> {
    let group = match &record.cgroup {
        Some(path) => Cgroup::open(path)?,
        None => None,
    };
    let Some(group) = group else {
        // With its first process, a pid namespace's others go too.
        if record.own_pid_namespace && signal == libc::SIGKILL {
            return first(record, signal).map(drop);
        }
        return Err(exit::usage("kill --all: the container has no control group to find its processes by"));
    };
    if signal == libc::SIGKILL {
        return group.kill();
    }
    let found = group.pids()?;
    let handles: Vec<_> =
        found.iter().filter_map(|pid| Some((*pid, pidfd_open(*pid, PidfdFlags::empty()).ok()?))).collect();
    // Who is still in the group when the handle is open is the one that was meant.
    let still: Vec<Pid> = group.pids()?;
    for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
        match sys::pidfd_send(handle, signal) {
            Ok(()) => {}
            Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => {}
            Err(e) => return Err(e).context("signal a process of the container"),
        }
    }
    Ok(())
}

/// A signal by name (`TERM`, `SIGTERM`, `term`, `RTMIN+1`) or number. Usage (2) for what is none.
pub fn parse(text: &str) -> Result<i32> {
    let none = || exit::usage(format!("{text:?} is no signal"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=libc::SIGRTMAX()).contains(&number) { Ok(number) } else { Err(none()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest).map(|n| libc::SIGRTMIN() + n),
        (_, Some(rest)) => offset(rest).map(|n| libc::SIGRTMAX() + n),
        _ => None,
    };
    real_time.filter(|n| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(n)).ok_or_else(none)
}

const NAMES: [(&str, i32); 33] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        let table = [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("15", 15), ("RTMIN+1", libc::SIGRTMIN() + 1)];
        for (text, want) in table {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for bad in ["", "0", "-1", "65", "FROB", "SIG", "RTMIN-1", "RTMAX+1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
