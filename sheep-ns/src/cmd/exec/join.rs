//! A command in a running container: in its namespaces, its control group, and by default as its own program was.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::geteuid;

use crate::cgroup::Cgroup;
use crate::cli::{Exec, Global};
use crate::cmd::{absolute, log_unknown_caps, send_pidfd, state_root, write_pid_file};
use crate::exit;
use crate::init::Child;
use crate::init::channel::{connect, send_fd};
use crate::init::child::Begin;
use crate::init::join::{Join, spawn};
use crate::init::plan::flag;
use crate::init::program::Program;
use crate::init::tuning::Affinity;
use crate::oci::{self, Name, NamespaceKind, Status};
use crate::refuse;
use crate::spec::user;
use crate::supervise::{self, Signals, Unhandled};

/// Runs it; waits for its end unless it is detached.
pub fn run(global: &Global, args: &Exec) -> Result<u8> {
    refuse_flags_of_once(args)?;
    let (id, command) = match args.args.split_first() {
        Some((id, [dashes, command @ ..])) if dashes == "--" => (id.to_string_lossy(), command),
        Some((id, command)) => (id.to_string_lossy(), command),
        None => return Err(exit::usage("give --rootfs DIR, --from DOCUMENT, or a container's id")),
    };
    let root = state_root(global)?;
    let record = root.read(&id)?;
    match root.status(&record)? {
        Status::Created | Status::Running => {}
        Status::Paused if args.ignore_paused => {}
        status => {
            let status = status.name();
            return Err(exit::busy(format!("container {id} is {status}; exec needs a running one")));
        }
    }
    let running = || exit::busy(format!("container {id} is not running"));
    let process = record.process.as_ref().ok_or_else(running)?;
    let pidfd = process.open()?.ok_or_else(running)?;
    let config = root.config(&id)?;
    let wanted = process_of(args, command, &config, process.pid)?;
    refuse::check_process(&wanted)?;
    let linux = config.linux.clone().unwrap_or_default();
    let mut program = Program::new(&wanted, &linux, args.preserve_fds)?;
    program.needs_its_cwd();
    program.connect_agent(record.state(Status::Running, 0))?;
    let join = Join {
        namespaces: namespaces(&linux, process.pid)?,
        setgroups: geteuid().is_root(),
        oom_score_adj: wanted.oom_score_adj,
        terminal: wanted.terminal.then_some(wanted.console_size),
        affinity: Affinity::new(wanted.exec_cpu_affinity.as_ref())?,
        program,
        pidfd,
    };
    log_unknown_caps(global, &join.program);
    let console = match (absolute(args.console_socket.as_deref())?, join.terminal.is_some()) {
        (Some(path), true) => Some(connect(&path, "--console-socket")?),
        (Some(_), false) => return Err(exit::usage("--console-socket: the process has no terminal")),
        (None, true) if args.detach => {
            return Err(exit::usage(
                "--detach --tty: give --console-socket, for nobody stays here to serve the terminal",
            ));
        }
        (None, _) => None,
    };
    let pidfd_socket = absolute(args.pidfd_socket.as_deref())?;
    let pidfd_socket = pidfd_socket.map(|path| connect(&path, "--pidfd-socket")).transpose()?;
    let group = match (&record.cgroup, args.cgroup.as_deref()) {
        (Some(path), None) => Some(Cgroup::to_join(path, process.pid)?.ok_or_else(running)?),
        (Some(path), Some(below)) => Some(group_below(path, below)?),
        (None, None) => None,
        (None, Some(_)) => {
            return Err(exit::usage(format!("--cgroup: container {id} was made without a control group of its own")));
        }
    };
    if !args.detach {
        let signals = Signals::block()?;
        let child = spawn(&join, group.as_ref().map(Cgroup::dir), &Begin::Now)?;
        let code =
            send_pidfd(pidfd_socket.as_ref(), &child).and_then(|()| attend(&child, &join, console, args, &signals));
        if code.is_err() {
            child.destroy();
        }
        return code;
    }
    let child = spawn(&join, group.as_ref().map(Cgroup::dir), &Begin::OnRecord)?;
    let let_go = child
        .wait_ready(|master| match &console {
            Some(console) => send_terminal(console, &master),
            None => Ok(()),
        })
        .and_then(|()| write_pid_file(args.pid_file.as_deref(), child.pid))
        .and_then(|()| send_pidfd(pidfd_socket.as_ref(), &child))
        .and_then(|()| child.commit())
        .and_then(|()| child.wait_executed());
    match let_go {
        Ok(()) => Ok(0),
        Err(error) => {
            child.destroy();
            Err(error)
        }
    }
}

/// A group in the container's own, which it or somebody else has made there.
fn group_below(own: &str, below: &str) -> Result<Cgroup> {
    let path = format!("{}/{below}", own.trim_end_matches('/'));
    let group = Cgroup::open(&path).with_context(|| format!("--cgroup {below}"))?;
    group.ok_or_else(|| anyhow::anyhow!("--cgroup {below}: no such file or directory ({path})"))
}

fn attend(child: &Child, join: &Join, console: Option<UnixStream>, args: &Exec, signals: &Signals) -> Result<u8> {
    write_pid_file(args.pid_file.as_deref(), child.pid)?;
    let mut master = match join.terminal {
        Some(_) => Some(child.wait_terminal()?),
        None => None,
    };
    if let Some(console) = console
        && let Some(end) = master.take()
    {
        send_terminal(&console, &end)?;
    }
    let code = supervise::wait(child, signals, master, Unhandled::Ignored)?;
    match child.failure() {
        Some(error) => Err(error),
        None => Ok(code),
    }
}

fn send_terminal(console: &UnixStream, master: &OwnedFd) -> Result<()> {
    send_fd(console.as_fd(), b"/dev/ptmx", master.as_fd()).context("--console-socket")
}

/// The process: that of `--process`, else the container's own with the command's arguments and flags put in.
fn process_of(args: &Exec, command: &[std::ffi::OsString], config: &oci::Config, pid: i32) -> Result<oci::Process> {
    let mut process = match &args.process {
        Some(file) => {
            if !command.is_empty() {
                return Err(exit::usage("--process: the file names the command; give none besides"));
            }
            let bytes = std::fs::read(file).with_context(|| format!("--process {}", file.display()))?;
            serde_json::from_slice(&bytes).map_err(|e| exit::usage(format!("--process {}: {e}", file.display())))?
        }
        None => {
            if command.is_empty() {
                return Err(exit::usage("no command: give one after the container's id, or --process"));
            }
            let own = config.process.clone().unwrap_or_default();
            oci::Process { args: command.iter().map(Name::from).collect(), terminal: false, console_size: None, ..own }
        }
    };
    process.terminal |= args.spec.tty;
    if let Some(cwd) = &args.spec.cwd {
        process.cwd = cwd.into();
    }
    for variable in &args.spec.env {
        set_env(&mut process.env, variable)?;
    }
    if let Some(asked) = &args.spec.user {
        process.user = user_of(asked, pid, process.user.umask)?;
        process.env.retain(|variable| !variable.as_bytes().starts_with(b"HOME="));
        if let Some(sets) = &mut process.capabilities {
            // As execve gives them: all of the bounding set to root, none to others.
            let given = if process.user.uid == 0 { sets.bounding.clone() } else { Vec::new() };
            (sets.effective, sets.permitted) = (given.clone(), given);
            sets.ambient.clear();
        }
    }
    process.user.additional_gids.extend(&args.additional_gids);
    process.no_new_privileges |= args.no_new_privs;
    let sets = process.capabilities.get_or_insert_default();
    // What a joining process could inherit, a program in the container could raise (CVE-2022-29162).
    sets.inheritable.clear();
    for name in &args.cap {
        if crate::caps::number(name).is_none() {
            return Err(exit::usage(format!("--cap {name}: no such capability")));
        }
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(name.clone());
        }
    }
    Ok(process)
}

/// Sets `NAME=VALUE`, or for `NAME` alone the value it has here; the last one counts.
fn set_env(env: &mut Vec<Name>, variable: &std::ffi::OsStr) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = variable.as_bytes();
    let name = bytes.split(|b| *b == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(exit::usage(format!("--env {variable:?}: no name before the '='")));
    }
    let prefix = [name, b"="].concat();
    env.retain(|other| !other.as_bytes().starts_with(&prefix));
    if bytes.contains(&b'=') {
        env.push(variable.into());
    } else if let Some(value) = std::env::var_os(variable) {
        let mut whole = variable.to_owned();
        whole.push("=");
        whole.push(value);
        env.push(whole.into());
    }
    Ok(())
}

/// A user by the container's own files. They are opened beneath the container's root, which is the first process's.
fn user_of(asked: &str, pid: i32, umask: Option<u32>) -> Result<oci::User> {
    if asked.is_empty() || asked.starts_with(':') {
        // In an image this means root; here it would make root of a container's user by omission.
        return Err(exit::usage(format!("--user {asked:?}: names no user")));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{pid}/root"), flags, Mode::empty()).context("the container's root")?;
    let found = user::resolve(root.as_fd(), asked)?;
    Ok(oci::User { uid: found.uid, gid: found.gid, umask, additional_gids: found.additional_gids })
}

/// The namespaces of the container that are not this process's own anyway.
fn namespaces(linux: &oci::Linux, pid: i32) -> Result<u64> {
    let mut flags = 0;
    for namespace in &linux.namespaces {
        // A user namespace cannot be joined by who is in it.
        if namespace.kind == NamespaceKind::User && same_user_namespace(pid)? {
            continue;
        }
        flags |= flag(namespace.kind);
    }
    Ok(flags)
}

fn same_user_namespace(pid: i32) -> Result<bool> {
    let id = |pid: &str| {
        let file = format!("/proc/{pid}/ns/user");
        std::fs::read_link(&file).context(file)
    };
    Ok(id("self")? == id(&pid.to_string())?)
}

fn refuse_flags_of_once(args: &Exec) -> Result<()> {
    let spec = &args.spec;
    let table = [
        (args.die_with_parent, "--die-with-parent"),
        (args.json_status_fd.is_some(), "--json-status-fd"),
        (!spec.volume.is_empty(), "--volume"),
        (spec.hostname.is_some(), "--hostname"),
        (spec.read_only, "--read-only"),
        (spec.memory.is_some(), "--memory"),
        (spec.cpu_quota.is_some(), "--cpu-quota"),
        (spec.cpu_period.is_some(), "--cpu-period"),
        (spec.cpu_shares.is_some(), "--cpu-shares"),
        (spec.pids_limit.is_some(), "--pids-limit"),
        (spec.cgroups_path.is_some(), "--cgroups-path"),
        (!spec.label.is_empty(), "--label"),
        (spec.no_entrypoint, "--no-entrypoint"),
        (!spec.rlimit.is_empty(), "--rlimit"),
        (spec.seccomp.is_some(), "--seccomp"),
        (spec.network == crate::spec::Network::Host, "--network"),
    ];
    match table.iter().find(|(given, _)| *given).map(|(_, flag)| *flag).or(spec.isolate.given()) {
        Some(flag) => Err(exit::usage(format!("{flag} is for --rootfs or --from; a running container has its own"))),
        None => Ok(()),
    }
}
