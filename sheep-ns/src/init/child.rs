//! The child's side of the clone: from an exact copy of `sheep-ns` in new namespaces to the container's program.
//!
//! The order is that of the runtime specification and of crun: ids, control group, namespaces, the root with its mounts,
//! names, then the user and the program. An error goes to the parent over the channel, and the process is gone.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, socket_with};
use rustix::process::{
    DumpableBehavior, Gid, Signal, Uid, set_dumpable_behavior, set_parent_process_death_signal, setsid, umask,
};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::channel::{Channel, Message};
use super::netdev::Device;
use super::plan::{Plan, flag};
use super::program::{self, become_user, execute};
use crate::hooks::Hooks;
use crate::oci::NamespaceKind;
use crate::rootfs::{self, dev};
use crate::sys;
use crate::tty;
use crate::userns::{Maps, Writer};

/// When the program begins.
#[derive(Debug)]
pub enum Begin {
    /// At once; it dies with its parent.
    Now,
    /// When the parent has put it on record; it dies with its parent.
    OnRecordTied,
    /// When the parent has put it on record; it outlives the parent.
    OnRecord,
    /// When, after that, somebody connects to this socket (`start`).
    OnStart(OwnedFd),
}

/// Whether the process dies with its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// It does.
    Parent,
    /// It does not.
    Nobody,
}

/// Does it all. `cgroup`: the process was cloned into a control group of its own.
pub fn run(plan: &Plan, channel: Channel, begin: Begin, cgroup: bool) -> ! {
    let mut channel = channel;
    let Err(error) = way(plan, &mut channel, begin, cgroup);
    // A parent that is gone needs no telling.
    let _ = channel.send(&Message::Failed(error));
    sys::exit_now(1)
}

fn way(plan: &Plan, channel: &mut Channel, begin: Begin, cgroup: bool) -> Result<Infallible> {
    let old_umask = umask(Mode::empty());
    die_with_parent(channel)?;
    setsid().context("setsid")?;
    plan.program.look_into_proc()?;
    if cgroup && plan.new & flag(NamespaceKind::Cgroup) != 0 {
        // Not by clone3: that roots the namespace at the parent's group.
        sys::unshare(flag(NamespaceKind::Cgroup)).context("cgroup namespace")?;
    }
    if plan.maps.as_ref().is_some_and(|maps| maps.writer() == Writer::Child) {
        plan.maps.iter().try_for_each(|maps| maps.write_own()).context("user namespace")?;
    }
    // Before this process changes who it is, and cannot write its own files in /proc any more.
    if let Some(offsets) = &plan.time_offsets {
        enter_new_time(offsets)?;
    }
    if let Some(value) = plan.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", value.to_string()).context("process.oomScoreAdj")?;
    }
    // What is on its way to the root directory may belong to the namespace's users, and is theirs when they are mapped.
    wait_for_maps(plan, channel)?;
    let mut root = rootfs::take(&plan.root)?;
    if plan.in_user_namespace() {
        become_root_inside(plan, channel)?;
    }
    if plan.maps.is_some() && plan.new & flag(NamespaceKind::Ipc) != 0 {
        sys::unshare(flag(NamespaceKind::Ipc)).context("ipc namespace")?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("prctl(PR_SET_DUMPABLE)")?;
    join(plan)?;
    if plan.new & flag(NamespaceKind::Network) != 0 {
        loopback_up()?;
    }
    if !plan.net_devices.is_empty() {
        let Message::Moved = channel.receive()? else { bail!("given up by the parent") };
        plan.net_devices.iter().try_for_each(Device::receive)?;
    }
    rootfs::fill(&plan.root, &mut root)?;
    let pid = match &plan.hooks {
        Some(hooks) => call_hooks(plan, hooks, channel, old_umask)?,
        None => 0,
    };
    if let Some(size) = plan.terminal {
        let (master, slave) = tty::open_pair(dev::open_ptmx(root.as_fd())?, size)?;
        dev::console(root.as_fd(), slave.as_fd())?;
        channel.send(&Message::Terminal(master))?;
        tty::take_as_stdio(slave, plan.program.uid())?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).context("hostname")?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).context("domainname")?;
    }
    set_sysctl(plan)?;
    rootfs::enter(&plan.root, root)?;

    let mut keep = vec![program::raw(channel)];
    if let Begin::OnStart(listener) = &begin {
        keep.push(program::raw(listener));
    }
    let setgroups = !plan.maps.as_ref().is_some_and(|maps| maps.denies_setgroups());
    let ready = become_user(&plan.program, setgroups, old_umask, &mut keep)?;
    die_with_parent(channel)?;
    match begin {
        Begin::Now => {}
        Begin::OnRecordTied => on_record(channel, Tie::Parent)?,
        Begin::OnRecord | Begin::OnStart(_) => on_record(channel, Tie::Nobody)?,
    }
    if let Begin::OnStart(listener) = begin {
        *channel = wait_for_start(listener)?;
    }
    if let Some(hooks) = &plan.hooks {
        hooks.start_container(pid)?;
    }
    Err(execute(&plan.program, &ready))
}

/// Lets the parent call the hooks that run outside, then calls those that run in our namespaces. Gives our process id as
/// it is outside.
fn call_hooks(plan: &Plan, hooks: &Hooks, channel: &Channel, old_umask: Mode) -> Result<i32> {
    // An unprivileged user's hooks reach our namespaces by /proc, and are refused where this process says so. Nobody of
    // the container is there yet, in a new pid namespace.
    let alone = plan.new & flag(NamespaceKind::Pid) != 0 && plan.maps.as_ref().is_some_and(Maps::is_of_a_user);
    if alone {
        set_dumpable_behavior(DumpableBehavior::Dumpable).context("prctl(PR_SET_DUMPABLE)")?;
    }
    channel.send(&Message::Filled)?;
    let Message::Hooked(pid) = channel.receive()? else { bail!("given up by the parent") };
    umask(old_umask);
    hooks.create_container(pid)?;
    umask(Mode::empty());
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("prctl(PR_SET_DUMPABLE)")?;
    Ok(pid)
}

/// Asks the kernel to kill this process when its parent ends, and makes sure that it has not ended already.
pub fn die_with_parent(channel: &Channel) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl(PR_SET_PDEATHSIG)")?;
    let mut fds = [rustix::event::PollFd::new(channel, rustix::event::PollFlags::RDHUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).context("poll")?;
    if fds.iter().any(|fd| fd.revents().contains(rustix::event::PollFlags::HUP)) {
        bail!("the parent is gone");
    }
    Ok(())
}

/// Waits until the id maps are there, where others write them: until then this process has no rights to files of others.
fn wait_for_maps(plan: &Plan, channel: &Channel) -> Result<()> {
    if plan.maps.as_ref().is_some_and(|maps| maps.writer() != Writer::Child) {
        let Message::Mapped = channel.receive()? else { bail!("user namespace: the maps were not written") };
    }
    Ok(())
}

/// Takes the ids of the namespace's root: files are made as somebody who exists.
fn become_root_inside(plan: &Plan, channel: &Channel) -> Result<()> {
    // In a namespace that was joined it shows whether there is a root.
    if plan.maps.as_ref().is_some_and(|maps| maps.writer() == Writer::Child || !maps.has_root()) {
        return Ok(());
    }
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    match set_thread_res_gid(gid, gid, gid).and_then(|()| set_thread_res_uid(uid, uid, uid)) {
        Err(Errno::INVAL) if plan.maps.is_none() => {}
        done => done.context("user namespace: become its root")?,
    }
    // The change of user took it away.
    die_with_parent(channel)
}

/// Makes a time namespace, of the user namespace this process is in, and enters it: first its clocks are set, which
/// cannot be done any more when somebody is in it.
fn enter_new_time(offsets: &str) -> Result<()> {
    let time = flag(NamespaceKind::Time);
    sys::unshare(time).context("time namespace")?;
    std::fs::write("/proc/self/timens_offsets", offsets).context("linux.timeOffsets")?;
    let made = std::fs::File::open("/proc/self/ns/time_for_children").context("time namespace")?;
    sys::setns(made.as_fd(), time).context("time namespace")
}

/// Joins the namespaces given by path, but for those the parent has entered for us.
fn join(plan: &Plan) -> Result<()> {
    if plan.maps.is_some() {
        return Ok(());
    }
    let by_parent = flag(NamespaceKind::User) | flag(NamespaceKind::Pid);
    for join in plan.joins.iter().filter(|join| join.flag & by_parent == 0) {
        sys::setns(join.fd.as_fd(), join.flag).with_context(|| format!("join namespace {}", join.path.display()))?;
    }
    Ok(())
}

fn loopback_up() -> Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    // A kernel without IPv4 has no loopback to bring up.
    let socket = match socket {
        Err(Errno::AFNOSUPPORT) => return Ok(()),
        socket => socket.context("network namespace: lo")?,
    };
    sys::loopback_up(socket.as_fd()).context("network namespace: lo")
}

/// Writes kernel parameters through a proc file system of our own, which nothing of the container can have mounted over
/// (CVE-2025-52881).
fn set_sysctl(plan: &Plan) -> Result<()> {
    if plan.sysctl.is_empty() {
        return Ok(());
    }
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).context("linux.sysctl: proc")?;
    fsconfig_create(context.as_fd()).context("linux.sysctl: proc")?;
    let proc = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .context("linux.sysctl: proc")?;
    for (path, value) in &plan.sysctl {
        let name = || format!("linux.sysctl: {}", path.display());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let path = std::path::Path::new("sys").join(path);
        let file =
            openat2(&proc, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve).with_context(name)?;
        rustix::io::write(&file, value.as_bytes()).with_context(name)?;
    }
    Ok(())
}

/// Tells the parent that everything is set up, and goes on when it is on record. From then on the process stands by
/// itself, unless it stays tied to its parent.
pub fn on_record(channel: &Channel, tie: Tie) -> Result<()> {
    channel.send(&Message::Ready)?;
    match channel.receive()? {
        Message::Commit => {}
        _ => bail!("given up by the parent"),
    }
    if tie == Tie::Nobody {
        set_parent_process_death_signal(None).context("prctl(PR_SET_PDEATHSIG)")?;
    }
    channel.send(&Message::Detached)
}

/// Waits for `start`; an error from here on goes to it.
fn wait_for_start(listener: OwnedFd) -> Result<Channel> {
    loop {
        match acceptfrom_with(&listener, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(e) => return Err(e).context("wait for start"),
            Ok((socket, _)) => return Ok(socket.into()),
        }
    }
}
