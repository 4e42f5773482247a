//! One command in new namespaces. Nothing is written anywhere: no state, and no control group unless a limit is asked for.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::cgroup::Cgroup;
use crate::cli::{Exec, Global};
use crate::cmd::{absolute, log_unknown_caps, manager, write_pid_file};
use crate::exit;
use crate::init::channel::{connect, send_fd};
use crate::init::child::Begin;
use crate::init::{self, Child, Plan};
use crate::oci::{self, DeviceRule, Resources, State, Status};
use crate::rootfs::Devices;
use crate::spec;
use crate::supervise::{self, Signals, Unhandled};
use crate::sys;

/// Runs it and waits for its end.
pub fn run(global: &Global, args: &Exec) -> Result<u8> {
    refuse_flags_of_join(args)?;
    let parent = rustix::process::getppid();
    if args.die_with_parent {
        set_parent_process_death_signal(Some(Signal::KILL)).context("--die-with-parent")?;
        if rustix::process::getppid() != parent {
            return Err(anyhow::anyhow!("--die-with-parent: the parent has ended already"));
        }
    }
    let status = args.json_status_fd.map(sys::inherited).transpose().context("--json-status-fd")?;
    let mut config = spec::from_flags(&args.spec, &args.args)?;
    let devices = take_device_filter(&mut config);
    let mut plan = Plan::new(&config, args.preserve_fds, devices)?;
    log_unknown_caps(global, &plan.program);
    let id = format!("exec-{}", std::process::id());
    let bundle = std::env::current_dir().context("working directory")?.into_os_string().into();
    plan.program.connect_agent(State::new(Status::Creating, &id, bundle, config.annotations.clone()))?;
    let console = match (absolute(args.console_socket.as_deref())?, plan.terminal.is_some()) {
        (None, _) => None,
        (Some(path), true) => Some(connect(&path, "--console-socket")?),
        (Some(_), false) => return Err(exit::usage("--console-socket: is for --tty")),
    };
    if args.spec.from.as_deref().is_some_and(|source| source == "-") {
        // It was the document's; what is left of it is not the command's.
        let null = File::open("/dev/null").context("/dev/null")?;
        sys::dup_to(null.as_fd(), 0, false).context("stdin")?;
    }
    let limits = config.linux.as_ref().filter(|linux| linux.resources.is_some() || linux.cgroups_path.is_some());
    let group = match limits {
        Some(linux) => Cgroup::create(linux, &id, manager(global), &config.annotations)?,
        None => None,
    };
    let code = start_and_wait(&plan, group.as_ref(), console, args, status.as_ref());
    match group {
        Some(group) => {
            // The first process is gone; so are the others, but without a pid namespace.
            let removed = group.kill().and_then(|()| group.remove());
            code.and_then(|code| removed.map(|()| code))
        }
        None => code,
    }
}

/// A filter that leaves only the default devices is had without a control group, which takes half as long as all the rest
/// of a start. Takes it out of `config`, but where a control group is needed anyway, and takes care of it.
fn take_device_filter(config: &mut oci::Config) -> Devices {
    let Some(linux) = &mut config.linux else { return Devices::AsAsked };
    let deny_all = DeviceRule { access: Some("rwm".to_owned()), ..DeviceRule::default() };
    let only_that = Resources { devices: vec![deny_all], ..Resources::default() };
    if linux.cgroups_path.is_some() || linux.resources.as_ref() != Some(&only_that) {
        return Devices::AsAsked;
    }
    linux.resources = None;
    Devices::OnlyDefault
}

fn start_and_wait(
    plan: &Plan,
    group: Option<&Cgroup>,
    console: Option<std::os::unix::net::UnixStream>,
    args: &Exec,
    status: Option<&OwnedFd>,
) -> Result<u8> {
    // Before the clone, so that no signal falls between.
    let signals = Signals::block()?;
    let child = init::spawn(plan, group.map(Cgroup::dir), Begin::Now)?;
    group.iter().for_each(|group| group.leave());
    tell(status, "child-pid", child.pid.as_raw_nonzero().get());
    let code = serve(&child, plan, console, args, &signals);
    if let Ok(code) = &code {
        tell(status, "exit-code", i32::from(*code));
    }
    if code.is_err() {
        child.destroy();
    }
    code
}

/// A line for `--json-status-fd`. That nobody reads it any more is no reason to end the command.
fn tell(status: Option<&OwnedFd>, what: &str, value: i32) {
    if let Some(fd) = status {
        let _ = rustix::io::write(fd, format!("{{\"{what}\":{value}}}\n").as_bytes());
    }
}

fn serve(
    child: &Child,
    plan: &Plan,
    console: Option<std::os::unix::net::UnixStream>,
    args: &Exec,
    signals: &Signals,
) -> Result<u8> {
    write_pid_file(args.pid_file.as_deref(), child.pid)?;
    let master = match plan.terminal {
        Some(_) => Some(child.wait_terminal()?),
        None => None,
    };
    let master = match (master, console) {
        (Some(master), Some(console)) => {
            send_fd(console.as_fd(), b"/dev/ptmx", master.as_fd()).context("--console-socket")?;
            None
        }
        (master, _) => master,
    };
    let code = supervise::wait(child, signals, master, Unhandled::Fatal)?;
    match child.failure() {
        Some(error) => Err(error),
        None => Ok(code),
    }
}

fn refuse_flags_of_join(args: &Exec) -> Result<()> {
    let table = [
        (args.detach, "--detach"),
        (args.process.is_some(), "--process"),
        (!args.cap.is_empty(), "--cap"),
        (!args.additional_gids.is_empty(), "--additional-gids"),
        (args.no_new_privs, "--no-new-privs"),
        (args.cgroup.is_some(), "--cgroup"),
        (args.pidfd_socket.is_some(), "--pidfd-socket"),
    ];
    match table.iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(exit::usage(format!("{flag} is for a running container, not with --rootfs or --from"))),
        None => Ok(()),
    }
}
