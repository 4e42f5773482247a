//! `create`: a container is made from a bundle; its program waits for `start`. `run` makes its container here too.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{Pid, geteuid};

use super::{absolute, log_unknown_caps, manager, send_pidfd, state_root, write_pid_file};
use crate::cgroup::Cgroup;
use crate::cli::{Bundle, Create, Global};
use crate::exit;
use crate::hooks::Hooks;
use crate::init::channel::{connect, send_fd};
use crate::init::child::Begin;
use crate::init::{self, Child, Plan};
use crate::log;
use crate::oci::{self, NamespaceKind, State, Status};
use crate::process::Process;
use crate::rootfs::Devices;
use crate::state::{Locked, Record, check_id, read_config};

/// `create`
pub fn run(global: &Global, args: Create) -> Result<u8> {
    make(global, &args.bundle, Life::Waiting)?;
    Ok(0)
}

/// How a container begins its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Set up; the program waits for `start`.
    Waiting,
    /// The program runs when the command returns, and stays.
    Detached,
    /// The program runs, and dies with the command.
    Attached,
}

/// A container just made.
#[derive(Debug)]
pub struct Made {
    /// Its first process.
    pub child: Child,
    /// The master end of its terminal, where it has one and no console socket took it.
    pub master: Option<OwnedFd>,
    /// Its record.
    pub record: Record,
}

/// Makes a container. When it fails nothing is left: no process, no control group, no directory.
pub fn make(global: &Global, args: &Bundle, life: Life) -> Result<Made> {
    if args.no_pivot {
        return Err(exit::usage("--no-pivot: not supported; a root that is not changed can be left"));
    }
    check_id(&args.id)?;
    let root = state_root(global)?;
    let bundle = std::fs::canonicalize(&args.bundle)
        .map_err(|e| anyhow::Error::from(e).context(format!("bundle {}", args.bundle.display())))?;
    let (pid_file, console) = (absolute(args.pid_file.as_deref())?, absolute(args.console_socket.as_deref())?);
    let pidfd_socket = absolute(args.pidfd_socket.as_deref())?;
    let config_file = absolute(args.config.as_deref())?.unwrap_or_else(|| bundle.join("config.json"));
    let (config, bytes) = read_config(&config_file)?;
    env::set_current_dir(&bundle).with_context(|| format!("bundle {}", bundle.display()))?;
    let mut plan = Plan::new(&config, args.preserve_fds, Devices::AsAsked)?;
    let state = State::new(Status::Creating, &args.id, bundle.clone().into(), config.annotations.clone());
    plan.hooks = config.hooks.clone().map(|lists| Hooks { lists, state: state.clone() });
    plan.program.connect_agent(state)?;
    log_unknown_caps(global, &plan.program);
    let sockets = Sockets {
        console: connect_console(&plan, console.as_deref(), life)?,
        pidfd: pidfd_socket.map(|path| connect(&path, "--pidfd-socket")).transpose()?,
    };

    let dir = root.claim(&args.id)?;
    let made = dir.write_config(&bytes).and_then(|()| {
        let nothing = oci::Linux::default();
        let linux = config.linux.as_ref().unwrap_or(&nothing);
        let group = Cgroup::create(linux, &args.id, manager(global), &config.annotations)?;
        let record = Record {
            id: args.id.clone(),
            bundle: bundle.clone().into(),
            annotations: config.annotations.clone(),
            process: None,
            cgroup: group.as_ref().map(|group| group.path().to_owned()),
            scope: group.as_ref().and_then(|group| group.scope().map(str::to_owned)),
            own_pid_namespace: linux.namespace(NamespaceKind::Pid).is_some_and(|ns| ns.path.is_none()),
            created: log::now(),
            owner: geteuid().as_raw(),
        };
        bring_up(&plan, &dir, record, group.as_ref(), &sockets, pid_file.as_deref(), life).inspect_err(|_| {
            // The error that matters is the one already held.
            if let Some(group) = &group {
                let _ = group.kill();
                let _ = group.remove();
            }
        })
    });
    match made {
        Ok(made) => {
            dir.unlock()?;
            Ok(made)
        }
        Err(error) => {
            if let Some(hooks) = &plan.hooks {
                hooks.poststop();
            }
            let _ = dir.remove();
            Err(error)
        }
    }
}

/// Sockets of others, connected before anything is made.
struct Sockets {
    console: Option<UnixStream>,
    pidfd: Option<UnixStream>,
}

/// Starts the first process and puts it on record, step by step as the two sides need each other.
fn bring_up(
    plan: &Plan,
    dir: &Locked,
    mut record: Record,
    group: Option<&Cgroup>,
    sockets: &Sockets,
    pid_file: Option<&Path>,
    life: Life,
) -> Result<Made> {
    dir.write_creating(&record)?;
    let begin = match life {
        Life::Waiting => Begin::OnStart(listen(&dir.start_socket()).context("start socket")?),
        Life::Detached => Begin::OnRecord,
        Life::Attached => Begin::OnRecordTied,
    };
    let child = init::spawn(plan, group.map(Cgroup::dir), begin)?;
    group.iter().for_each(|group| group.leave());
    let mut master = None;
    let on_terminal = |end: OwnedFd| match &sockets.console {
        Some(console) => send_fd(console.as_fd(), b"/dev/ptmx", end.as_fd()).context("--console-socket"),
        None => {
            master = Some(end);
            Ok(())
        }
    };
    let hooked = plan.hooks.as_ref().map_or(Ok(()), |hooks| child.call_hooks(hooks));
    let up = hooked.and_then(|()| child.wait_ready(on_terminal)).and_then(|()| {
        record.process = Some(Process::of(child.pid)?);
        dir.write_creating(&record)?;
        write_pid_file(pid_file, child.pid)?;
        send_pidfd(sockets.pidfd.as_ref(), &child)?;
        if life == Life::Attached {
            // Nothing stays that is not on record, for it dies with us; so others can find it from its first moment on.
            dir.finish()?;
            child.commit()?;
            return child.wait_executed().and_then(|()| poststart(plan, child.pid));
        }
        child.commit()?;
        if life == Life::Detached {
            child.wait_executed()?;
            poststart(plan, child.pid)?;
        }
        dir.finish()
    });
    match up {
        Ok(()) => Ok(Made { child, master, record }),
        Err(error) => {
            child.destroy();
            Err(error)
        }
    }
}

fn poststart(plan: &Plan, pid: Pid) -> Result<()> {
    plan.hooks.as_ref().map_or(Ok(()), |hooks| hooks.poststart(pid.as_raw_nonzero().get()))
}

/// The socket where the first process waits for `start`. It keeps message boundaries, as the channel of the clone does.
fn listen(path: &Path) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// The console socket, connected before anything is made. A terminal needs one where nobody stays to serve it.
fn connect_console(plan: &Plan, socket: Option<&Path>, life: Life) -> Result<Option<UnixStream>> {
    match (plan.terminal.is_some(), socket) {
        (true, None) if life != Life::Attached => {
            Err(exit::usage("process.terminal: give --console-socket, for nobody stays here to serve the terminal"))
        }
        (false, Some(_)) => Err(exit::usage("--console-socket: the config asks for no terminal")),
        (_, None) => Ok(None),
        (true, Some(path)) => connect(path, "--console-socket").map(Some),
    }
}
