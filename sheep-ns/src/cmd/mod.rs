//! The verbs, one file each.

pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod resume;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::cgroup::{Cgroup, Manager};
use crate::cli::{CgroupManager, Global};
use crate::exit;
use crate::init::Child;
use crate::init::channel::send_fd;
use crate::init::program::Program;
use crate::log;
use crate::state::{Record, StateRoot, write_atomic};

/// The state directory a command line means.
fn state_root(global: &Global) -> Result<StateRoot> {
    StateRoot::open(global.root.as_deref())
}

fn manager(global: &Global) -> Manager {
    match global.cgroup_manager {
        CgroupManager::Disabled => Manager::Disabled,
        CgroupManager::Cgroupfs if !global.systemd_cgroup => Manager::Cgroupfs,
        CgroupManager::Cgroupfs | CgroupManager::Systemd => Manager::Systemd,
    }
}

/// The control group of a container, for a verb that needs one.
fn group_of(record: &Record, verb: &str) -> Result<Cgroup> {
    let id = &record.id;
    let path = record.cgroup.as_deref().ok_or_else(|| {
        exit::usage(format!("container {id} was made without a control group of its own; {verb} needs one"))
    })?;
    Cgroup::open(path)?.ok_or_else(|| exit::busy(format!("container {id}: its control group {path} is gone")))
}

/// Puts into the log what of the config is not there on this host, and is no error either.
fn log_unknown_caps(global: &Global, program: &Program) {
    for name in program.unknown_caps() {
        let message = format!("process.capabilities: {name} is not known here, and not given");
        log::write(global.log.as_deref(), global.log_format, "warning", &message);
    }
    // Profiles name the calls of many kernels and machines; who wonders asks with --debug.
    for name in program.unknown_calls().iter().filter(|_| global.debug) {
        let message = format!("linux.seccomp: {name} is no system call that is known here, and has no rule");
        log::write(global.log.as_deref(), global.log_format, "debug", &message);
    }
}

/// Sends a process's pidfd to whoever asked for it.
fn send_pidfd(socket: Option<&UnixStream>, child: &Child) -> Result<()> {
    match socket {
        Some(socket) => send_fd(socket.as_fd(), b"pidfd", child.pidfd.as_fd()).context("--pidfd-socket"),
        None => Ok(()),
    }
}

/// Writes data to stdout in one go.
fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("stdout")
}

/// Writes a process id as engines read it: digits only, and the file is there with them or not at all.
fn write_pid_file(file: Option<&Path>, pid: Pid) -> Result<()> {
    match file {
        Some(file) => write_atomic(file, pid.as_raw_nonzero().to_string().as_bytes()).context("--pid-file"),
        None => Ok(()),
    }
}

/// A path of the command line, absolute, so that it means the same after a change of directory.
fn absolute(path: Option<&Path>) -> Result<Option<std::path::PathBuf>> {
    path.map(|path| std::path::absolute(path).with_context(|| path.display().to_string())).transpose()
}
