//! The processes of a group: which they are, ending them, stopping them for a while; and whether memory was out for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::groups::children;
use super::{Cgroup, PATIENCE, is_gone, tree};
use crate::exit;

impl Cgroup {
    /// Moves a process into the group.
    pub fn join(&self, pid: Pid) -> Result<()> {
        tree::write(self.dir(), "cgroup.procs", &pid.as_raw_nonzero().to_string())
            .with_context(|| format!("control group {}: process {}", self.path, pid.as_raw_nonzero()))
    }

    /// Every process in the group and its children, as this process's pid namespace sees them.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        let context = || format!("control group {}", self.path);
        walk(self.dir(), &mut |dir| {
            let text = tree::read(dir, "cgroup.procs")?;
            pids.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
            Ok(())
        })
        .with_context(context)?;
        Ok(pids)
    }

    /// Kills every process in the group with SIGKILL. They may still be on their way out when this returns.
    pub fn kill(&self) -> Result<()> {
        match tree::write(self.dir(), "cgroup.kill", "1") {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("control group {}: cgroup.kill", self.path)),
        }
        // Before Linux 5.14: until a pass finds nobody, since a process may fork between the reading and the killing.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.still_populated());
            }
            for pid in pids {
                // Gone meanwhile is as good.
                let _ = kill_process(pid, Signal::KILL);
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Stops every process in the group, and waits until they are stopped. Where one cannot be stopped, all go on.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true).inspect_err(|_| {
            // The error that matters is the one already held.
            let _ = tree::write(self.dir(), "cgroup.freeze", "0");
        })
    }

    /// Lets a frozen group go on, and waits until it does.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Whether the group is frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        let events = tree::read(self.dir(), "cgroup.events").with_context(|| format!("control group {}", self.path))?;
        Ok(tree::field(&events, "frozen") == Some(1))
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let context = || format!("control group {}: freezer", self.path);
        let events = openat(self.dir(), "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let events = events.with_context(context)?;
        tree::write(self.dir(), "cgroup.freeze", if frozen { "1" } else { "0" }).with_context(context)?;
        let deadline = Instant::now() + PATIENCE;
        while self.is_frozen()? != frozen {
            if Instant::now() > deadline {
                return Err(anyhow!("still not {}", if frozen { "frozen" } else { "thawed" })).with_context(context);
            }
            wait_for_change(events.as_fd());
        }
        Ok(())
    }

    /// A descriptor that polls as `PRI` when [`Cgroup::oom_kills`] may have changed; `None` without a memory controller.
    pub fn memory_events(&self) -> Result<Option<OwnedFd>> {
        match openat(self.dir(), "memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(events) => Ok(Some(events)),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("control group {}: memory.events", self.path)),
        }
    }

    /// How many processes of the group were killed because memory was out; `None` without a memory controller.
    pub fn oom_kills(&self) -> Result<Option<u64>> {
        Ok(self.read("memory.events")?.and_then(|text| tree::field(&text, "oom_kill")))
    }

    pub(super) fn still_populated(&self) -> anyhow::Error {
        let pids: Vec<String> =
            self.pids().unwrap_or_default().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        exit::busy(format!("control group {}: still in use by process {}", self.path, pids.join(", ")))
    }
}

/// Calls `each` with the group and every group in it. Groups that vanish meanwhile are passed over.
fn walk(dir: BorrowedFd<'_>, each: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    match each(dir) {
        Err(error) if is_gone(&error) => return Ok(()),
        other => other?,
    }
    for child in children(dir)? {
        match tree::open_dir(dir, &child) {
            Ok(child) => walk(child.as_fd(), each)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits until cgroup.events changes; a tenth of a second at most, since the change may have been before the wait.
fn wait_for_change(events: BorrowedFd<'_>) {
    let tenth = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // Interrupted or timed out: the caller looks again.
    let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&tenth));
}
