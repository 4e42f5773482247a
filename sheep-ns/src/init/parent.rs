//! The parent's side of the clone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::channel::{self, Channel, Message};
use super::child::{self, Begin};
use super::plan::{Join, Plan, flag};
use crate::hooks::Hooks;
use crate::oci::NamespaceKind;
use crate::process;
use crate::sys::{self, Side};

/// A process on its way, or running.
#[derive(Debug)]
pub struct Child {
    /// Its id, as this process sees it.
    pub pid: Pid,
    /// The process itself, whoever gets its id later.
    pub pidfd: OwnedFd,
    /// What it says until it executes its program.
    pub channel: Channel,
}

/// Clones the first process of a container, into `cgroup` where one is given. The child is on its way to its program
/// when this returns; it reports over the channel.
pub fn spawn(plan: &Plan, cgroup: Option<BorrowedFd<'_>>, begin: Begin) -> Result<Child> {
    let (ours, theirs) = channel::pair()?;
    let away = enter_for_children(plan)?;
    let mut flags = plan.new;
    if cgroup.is_some() {
        // The child does it when it is in its group.
        flags &= !flag(NamespaceKind::Cgroup);
    }
    if plan.time_offsets.is_some() {
        // The child does it, which must write them before anybody is in the namespace.
        flags &= !flag(NamespaceKind::Time);
    }
    if plan.maps.is_some() {
        // The child does it as the user namespace's root, whom the message queues' directory then belongs to.
        flags &= !flag(NamespaceKind::Ipc);
    }
    let side = sys::clone3(flags, cgroup);
    if !matches!(side, Ok(Side::Child)) {
        go_back(away)?;
    }
    let (pid, pidfd) = match side.map_err(|error| clone_error(error, plan))? {
        Side::Child => {
            drop(ours);
            child::run(plan, theirs, begin, cgroup.is_some())
        }
        Side::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop((theirs, begin));
    let child = Child { pid, pidfd, channel: ours };
    if let Some(maps) = &plan.maps
        && maps.writer() != crate::userns::Writer::Child
    {
        let told = maps.write_for(pid).and_then(|()| child.channel.send(&Message::Mapped));
        if let Err(error) = told {
            // If the child failed first, its reason is the better one.
            let error = child.failure().unwrap_or(error);
            child.destroy();
            return Err(error.context("user namespace"));
        }
    }
    if let Err(error) = give_devices(plan, &child) {
        let error = child.failure().unwrap_or(error);
        child.destroy();
        return Err(error);
    }
    Ok(child)
}

/// Moves network devices to the child's network, new or joined. It waits for that.
fn give_devices(plan: &Plan, child: &Child) -> Result<()> {
    if plan.net_devices.is_empty() {
        return Ok(());
    }
    let joined = plan.joins.iter().find(|join| join.kind == NamespaceKind::Network);
    let made;
    let network = match joined {
        Some(join) => join.fd.as_fd(),
        None => {
            let file = format!("/proc/{}/ns/net", child.pid.as_raw_nonzero());
            made = open(&*file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(file)?;
            made.as_fd()
        }
    };
    plan.net_devices.iter().try_for_each(|device| device.give(network))?;
    child.channel.send(&Message::Moved)
}

/// Enters the namespaces that only children of the caller can be in, or that must be entered before others are made.
/// Gives what this process has left for the clone's sake.
///
/// A namespace of the host's can be joined by the host's root, but not from a new user namespace: so the child is born in
/// it, and this process goes back, for hooks are to see the host.
fn enter_for_children(plan: &Plan) -> Result<Vec<(u64, OwnedFd)>> {
    let (user, pid) = (flag(NamespaceKind::User), flag(NamespaceKind::Pid));
    let enter = |join: &Join| {
        sys::setns(join.fd.as_fd(), join.flag).with_context(|| format!("join namespace {}", join.path.display()))
    };
    let mut away = Vec::new();
    if plan.maps.is_some() {
        for join in plan.joins.iter().filter(|join| join.flag & (user | pid) == 0) {
            let own = format!("/proc/self/ns/{}", join.kind.file());
            away.push((join.flag, open(&*own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(own)?));
            enter(join)?;
        }
    }
    for kind in [user, pid] {
        plan.joins.iter().filter(|join| join.flag == kind).try_for_each(enter)?;
    }
    Ok(away)
}

fn go_back(away: Vec<(u64, OwnedFd)>) -> Result<()> {
    away.iter()
        .rev()
        .try_for_each(|(flag, fd)| sys::setns(fd.as_fd(), *flag))
        .context("leave the container's namespaces")
}

/// The kernel's refusals of a clone, in words.
fn clone_error(error: std::io::Error, plan: &Plan) -> anyhow::Error {
    let user = plan.new & flag(NamespaceKind::User) != 0;
    match Errno::from_io_error(&error) {
        Some(Errno::PERM) if !user => anyhow!("new namespaces: not permitted; run as root, or with a user namespace"),
        Some(Errno::PERM) => anyhow!("new namespaces: not permitted; user namespaces are disabled here"),
        Some(Errno::NOSPC) => anyhow!("new namespaces: the limit of /proc/sys/user/max_*_namespaces is reached"),
        Some(Errno::INVAL) => anyhow!("new namespaces: this kernel has not all of them"),
        _ => anyhow::Error::from(error).context("clone3"),
    }
}

impl Child {
    /// Waits until the child has set everything up; `on_terminal` gets the master end of its terminal, where it has one.
    pub fn wait_ready(&self, mut on_terminal: impl FnMut(OwnedFd) -> Result<()>) -> Result<()> {
        loop {
            match self.channel.receive()? {
                Message::Ready => return Ok(()),
                Message::Terminal(master) => on_terminal(master)?,
                Message::Failed(error) => return Err(error),
                Message::Closed => bail!("the container's first process ended before it was set up ({})", self.end()),
                other => bail!("unexpected {other:?}"),
            }
        }
    }

    /// Calls the hooks that run outside, when the child's mounts are made.
    pub fn call_hooks(&self, hooks: &Hooks) -> Result<()> {
        match self.channel.receive()? {
            Message::Filled => {}
            Message::Failed(error) => return Err(error),
            _ => bail!("the container's first process ended before it was set up ({})", self.end()),
        }
        let pid = self.pid.as_raw_nonzero().get();
        hooks.create_runtime(pid)?;
        self.channel.send(&Message::Hooked(pid))
    }

    /// Waits for the terminal of a child that makes one.
    pub fn wait_terminal(&self) -> Result<OwnedFd> {
        match self.channel.receive()? {
            Message::Terminal(master) => Ok(master),
            Message::Failed(error) => Err(error),
            _ => bail!("the container's first process ended before it was set up ({})", self.end()),
        }
    }

    /// Lets go of a child that is [`Child::wait_ready`]: it goes on to its program or to wait for `start`.
    pub fn commit(&self) -> Result<()> {
        self.channel.send(&Message::Commit)?;
        match self.channel.receive()? {
            Message::Detached => Ok(()),
            Message::Failed(error) => Err(error),
            _ => bail!("the container's first process ended before it was set up ({})", self.end()),
        }
    }

    /// Waits until the program is executed, or has failed to be. For a child that was let go.
    pub fn wait_executed(&self) -> Result<()> {
        match self.channel.receive()? {
            Message::Closed => Ok(()),
            Message::Failed(error) => Err(error),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// Whether it has executed its program, or has ended.
    pub fn is_executed(&self) -> bool {
        let mut fds = [PollFd::new(&self.channel, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
    }

    /// The error a child left that has ended; `None`: its program was executed.
    pub fn failure(&self) -> Option<anyhow::Error> {
        loop {
            match self.channel.try_receive() {
                Ok(Some(Message::Failed(error))) => return Some(error),
                Ok(None | Some(Message::Closed)) | Err(_) => return None,
                Ok(Some(_)) => {}
            }
        }
    }

    /// Waits for the process's end: its exit code, 128+N for signal N.
    pub fn wait(&self) -> Result<u8> {
        let status = process::wait(&self.pidfd).context("wait for the program")?;
        let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }

    /// Kills the process and waits for its end; that it has ended is fine.
    pub fn destroy(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.wait();
    }

    fn end(&self) -> String {
        match self.wait() {
            Ok(code) if i32::from(code) == 128 + libc::SIGSYS => {
                "signal 31: the filter of linux.seccomp ends it; with process.noNewPrivileges it is loaded last"
                    .to_owned()
            }
            Ok(code) if code > 128 => format!("signal {}", code - 128),
            Ok(code) => format!("exit code {code}"),
            Err(error) => format!("{error:#}"),
        }
    }
}
