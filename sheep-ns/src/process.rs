//! Which process a record means: a number alone is another process's sooner or later.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

use crate::exit;

/// A process, and not another that got its number later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started: field 22 of /proc/PID/stat.
    pub start_time: u64,
    /// The boot it belongs to.
    pub boot_id: String,
}

impl Process {
    /// The identity of a living process of ours.
    pub fn of(pid: Pid) -> Result<Process> {
        let pid = pid.as_raw_nonzero().get();
        let (_, start_time) = stat(pid)?.with_context(|| format!("process {pid} has ended"))?;
        Ok(Process { pid, start_time, boot_id: boot_id()? })
    }

    /// A descriptor for it; `None` when it has ended (also when nobody has waited for it yet).
    pub fn open(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        if self.boot_id != boot_id()? {
            return Ok(None);
        }
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("process {pid:?}")),
        };
        // Looked at after it was opened: if it is the right one, the descriptor is of the right one.
        let same =
            stat(self.pid)?.is_some_and(|(state, start)| start == self.start_time && !matches!(state, b'Z' | b'X'));
        Ok(same.then_some(pidfd))
    }

    /// Kills it, and waits until it is gone. Busy (4) when that takes more than ten seconds.
    pub fn kill(&self) -> Result<()> {
        let Some(pidfd) = self.open()? else { return Ok(()) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("kill process {}", self.pid)),
        }
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).context("poll")? == 0 {
            return Err(exit::busy(format!("process {} does not end (in the kernel's hands?)", self.pid)));
        }
        Ok(())
    }
}

/// Waits for the end of a child.
pub fn wait(pidfd: &OwnedFd) -> Result<WaitIdStatus, Errno> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) | Ok(None) => {}
            Err(e) => return Err(e),
            Ok(Some(status)) => return Ok(status),
        }
    }
}

/// State letter and start time of a process; `None` when there is none of that number.
fn stat(pid: i32) -> Result<Option<(u8, u64)>> {
    let file = format!("/proc/{pid}/stat");
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e).context(file),
    };
    parse_stat(&text).map(Some).with_context(|| format!("{file}: not what proc(5) says"))
}

/// The name in field 2 may hold anything, also blanks and brackets: what follows the last bracket is read.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(file).context(file)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_hides_nothing() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(format!("7 (a) R 1 (b)) {rest}").as_bytes()), Some((b'S', 4711)));
        assert_eq!(parse_stat(b"7 (x"), None);
        assert_eq!(parse_stat(b"7 (x) S 1"), None);
    }

    #[test]
    fn another_process_of_that_number_is_another() {
        let own = Process::of(rustix::process::getpid()).unwrap();
        assert!(own.open().unwrap().is_some());
        assert!(Process { start_time: own.start_time + 1, ..own.clone() }.open().unwrap().is_none());
        assert!(Process { boot_id: "x".into(), ..own }.open().unwrap().is_none());
    }
}
