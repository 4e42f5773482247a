//! A configuration, checked and brought into the form the child works with.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};

use super::netdev::Device;
use super::program::Program;
use crate::exit;
use crate::hooks::Hooks;
use crate::oci::{self, NamespaceKind};
use crate::refuse;
use crate::rootfs::{self, Devices};
use crate::userns::Maps;

/// What a container's first process does on its way.
#[derive(Debug)]
pub struct Plan {
    /// `CLONE_NEW*` of the new namespaces.
    pub new: u64,
    /// Namespaces to join.
    pub joins: Vec<Join>,
    /// Maps of the new user namespace.
    pub maps: Option<Maps>,
    /// Clock offsets of the new time namespace, a line each as /proc/PID/timens_offsets takes them.
    pub time_offsets: Option<String>,
    /// The root.
    pub root: rootfs::Plan,
    /// Network devices to move inside.
    pub net_devices: Vec<Device>,
    /// Host name.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: Option<String>,
    /// Kernel parameters: the path beneath /proc/sys, and the value.
    pub sysctl: Vec<(PathBuf, String)>,
    /// Wanted `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// A terminal of its own, and its size.
    pub terminal: Option<Option<oci::ConsoleSize>>,
    /// Programs to call on the way; put in by whoever knows the container's state.
    pub hooks: Option<Hooks>,
    /// The program.
    pub program: Program,
}

/// A namespace to join.
#[derive(Debug)]
pub struct Join {
    /// Which kind.
    pub kind: NamespaceKind,
    /// Its `CLONE_NEW*`.
    pub flag: u64,
    /// The namespace.
    pub fd: OwnedFd,
    /// Its path, for messages.
    pub path: PathBuf,
}

impl Plan {
    /// Checks `config`. Relative paths in it are relative to the working directory. What it asks and this runtime does
    /// not do is refused by name; nothing has been done then.
    pub fn new(config: &oci::Config, preserve_fds: u32, devices: Devices) -> Result<Plan> {
        refuse::check(config)?;
        let nothing = oci::Linux::default();
        let linux = config.linux.as_ref().unwrap_or(&nothing);
        let process = config.process.as_ref().ok_or_else(|| exit::usage("process: the config names no program"))?;
        let (new, joins) = namespaces(linux)?;
        Ok(Plan {
            new,
            joins,
            maps: Maps::plan(linux)?,
            time_offsets: time_offsets(linux, new)?,
            root: rootfs::Plan::new(config, linux, devices)?,
            net_devices: Device::plan(linux)?,
            hostname: config.hostname.clone().filter(|name| !name.is_empty()),
            domainname: config.domainname.clone().filter(|name| !name.is_empty()),
            sysctl: linux.sysctl.iter().map(|(key, value)| (sysctl_path(key), value.clone())).collect(),
            oom_score_adj: process.oom_score_adj,
            terminal: process.terminal.then_some(process.console_size),
            hooks: None,
            program: Program::new(process, linux, preserve_fds)?,
        })
    }

    /// Whether the container's first process is a user namespace's, new or joined.
    pub fn in_user_namespace(&self) -> bool {
        let user = flag(NamespaceKind::User);
        self.new & user != 0 || self.joins.iter().any(|join| join.flag == user)
    }
}

/// The `CLONE_NEW*` flag of a kind.
pub fn flag(kind: NamespaceKind) -> u64 {
    let flag = match kind {
        NamespaceKind::Pid => libc::CLONE_NEWPID,
        NamespaceKind::Network => libc::CLONE_NEWNET,
        NamespaceKind::Mount => libc::CLONE_NEWNS,
        NamespaceKind::Ipc => libc::CLONE_NEWIPC,
        NamespaceKind::Uts => libc::CLONE_NEWUTS,
        NamespaceKind::User => libc::CLONE_NEWUSER,
        NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
        NamespaceKind::Time => 0x80, // CLONE_NEWTIME; libc has it under no name on every target
    };
    flag as u64
}

fn namespaces(linux: &oci::Linux) -> Result<(u64, Vec<Join>)> {
    let (mut new, mut joins) = (0, Vec::new());
    for namespace in &linux.namespaces {
        let flag = flag(namespace.kind);
        match namespace.path.as_ref().map(|path| path.as_path()).filter(|path| !path.as_os_str().is_empty()) {
            None => new |= flag,
            Some(path) => {
                joins.push(Join { kind: namespace.kind, flag, fd: open_namespace(path)?, path: path.to_owned() })
            }
        }
    }
    Ok((new, joins))
}

fn open_namespace(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .with_context(|| format!("linux.namespaces: {}", path.display()))
}

fn time_offsets(linux: &oci::Linux, new: u64) -> Result<Option<String>> {
    if linux.time_offsets.is_empty() {
        return Ok(None);
    }
    if new & flag(NamespaceKind::Time) == 0 {
        return Err(exit::usage("linux.timeOffsets: there is no new time namespace in linux.namespaces"));
    }
    let mut lines = String::new();
    for (clock, offset) in &linux.time_offsets {
        if clock != "monotonic" && clock != "boottime" {
            return Err(exit::usage(format!("linux.timeOffsets: '{clock}' is neither monotonic nor boottime")));
        }
        lines.push_str(&format!("{clock} {} {}\n", offset.secs, offset.nanosecs));
    }
    Ok(Some(lines))
}

/// `net.ipv4.ip_forward` as a path; a name with slashes is one already (interface names may have dots).
pub fn sysctl_path(key: &str) -> PathBuf {
    if key.contains('/') { key.into() } else { key.replace('.', "/").into() }
}
