//! A process that joins a running container.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid, umask};

use super::channel::{self, Channel, Message};
use super::child::{Begin, Tie, die_with_parent, on_record};
use super::parent::Child;
use super::plan::flag;
use super::program::{self, Program, become_user, execute};
use super::tuning::Affinity;
use crate::oci::{self, NamespaceKind};
use crate::rootfs::dev;
use crate::sys::{self, Side};
use crate::tty;

/// What joins, checked.
#[derive(Debug)]
pub struct Join {
    /// The container's first process.
    pub pidfd: OwnedFd,
    /// `CLONE_NEW*` of the namespaces to join.
    pub namespaces: u64,
    /// Wanted `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Whether groups may be set in the container's user namespace.
    pub setgroups: bool,
    /// A terminal of its own, and its size.
    pub terminal: Option<Option<oci::ConsoleSize>>,
    /// The CPUs it may use.
    pub affinity: Affinity,
    /// The program.
    pub program: Program,
}

/// Clones a process into the container, and into `cgroup` where it has one. `begin` is at once, or on record.
pub fn spawn(join: &Join, cgroup: Option<BorrowedFd<'_>>, begin: &Begin) -> Result<Child> {
    let (ours, theirs) = channel::pair()?;
    // Nobody in the container looks into a process on its way in: its descriptors and its memory are still the host's.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("prctl(PR_SET_DUMPABLE)")?;
    // A pid namespace takes in children only, and an unprivileged user must be in the user namespace first.
    let first = join.namespaces & (flag(NamespaceKind::User) | flag(NamespaceKind::Pid));
    if first != 0 {
        sys::setns(join.pidfd.as_fd(), first).context("join the container's namespaces")?;
    }
    join.affinity.before_the_group()?;
    match sys::clone3(0, cgroup).context("clone3")? {
        Side::Parent(pid, pidfd) => Ok(Child { pid, pidfd, channel: ours }),
        Side::Child => {
            drop(ours);
            let Err(error) = way(join, &theirs, begin);
            // A parent that is gone needs no telling.
            let _ = theirs.send(&Message::Failed(error));
            sys::exit_now(1)
        }
    }
}

fn way(join: &Join, channel: &Channel, begin: &Begin) -> Result<Infallible> {
    let old_umask = umask(Mode::empty());
    die_with_parent(channel)?;
    setsid().context("setsid")?;
    join.affinity.in_the_group()?;
    join.program.look_into_proc()?;
    if let Some(value) = join.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", value.to_string()).context("process.oomScoreAdj")?;
    }
    let user = flag(NamespaceKind::User);
    let rest = join.namespaces & !(user | flag(NamespaceKind::Pid));
    sys::setns(join.pidfd.as_fd(), rest).context("join the container's namespaces")?;
    if join.terminal.is_some() {
        let root = open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("/")?;
        let (master, slave) = tty::open_pair(dev::open_ptmx(root.as_fd())?, join.terminal.flatten())?;
        channel.send(&Message::Terminal(master))?;
        tty::take_as_stdio(slave, join.program.uid())?;
    }
    let ready = become_user(&join.program, join.setgroups, old_umask, &mut [program::raw(channel)])?;
    die_with_parent(channel)?;
    if matches!(begin, Begin::OnRecord) {
        on_record(channel, Tie::Nobody)?;
    }
    Err(execute(&join.program, &ready))
}
