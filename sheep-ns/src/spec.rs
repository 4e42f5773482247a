//! Flags and a document become a config.json.
//!
//! [`from_flags`] looks at the world (the document, the container's passwd, whether a volume's source exists) and hands
//! what it saw to [`build`], which is pure.

mod isolate;
pub mod limits;
mod mounts;
mod process;
pub mod user;

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rustix::process::{getegid, geteuid};
use serde::Deserialize;

pub use self::isolate::Isolate;
use self::user::Identity;
use crate::caps;
use crate::doc::{self, Input};
use crate::exit;
use crate::oci::{
    self, Config, DeviceRule, IdMapping, Linux, Mount, Name, Namespace, NamespaceKind, Process, Resources, Root,
    Seccomp, User,
};
use crate::seccomp::{self, words::Arch};

/// What runs, and how: shared by `spec` and `exec`.
#[derive(Debug, Clone, Default, Args)]
pub struct SpecFlags {
    /// The root directory of the container
    #[arg(long, value_name = "DIR", conflicts_with = "from")]
    pub rootfs: Option<PathBuf>,
    /// Read the root directory and the image's defaults from a document: a file, or - for stdin
    #[arg(long, value_name = "FILE|-")]
    pub from: Option<OsString>,
    /// Set a variable of the environment; NAME alone takes its value from this program's (repeatable)
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Mount a host file or directory inside (repeatable)
    #[arg(long, short, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<OsString>,
    /// Working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    pub cwd: Option<OsString>,
    /// User, and group, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Make the root directory read-only
    #[arg(long)]
    pub read_only: bool,
    /// none: a network of its own, with nothing in it; host: this host's
    #[arg(long, value_name = "MODE", default_value = "none")]
    pub network: Network,
    /// Filter of system calls: unconfined, or a profile's file as docker and podman take it [default: default, their own]
    #[arg(long, value_name = "default|unconfined|FILE")]
    pub seccomp: Option<OsString>,
    /// Most memory and swap together in bytes; k, m, g may follow
    #[arg(long, short, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Processor time in each period
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// The period of --cpu-quota [default: 100000]
    #[arg(long, value_name = "USEC")]
    pub cpu_period: Option<u64>,
    /// Relative weight against other groups, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Most tasks at once; -1: no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// The control group, a path in the cgroup2 tree [default: /sheep/ID]
    #[arg(long, value_name = "PATH")]
    pub cgroups_path: Option<String>,
    /// Annotate the container (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Leave out the image's entrypoint
    #[arg(long)]
    pub no_entrypoint: bool,
    /// Resource limit of the process, nofile=1024:4096 (repeatable)
    #[arg(long, value_name = "TYPE=SOFT[:HARD]")]
    pub rlimit: Vec<String>,
    /// How much of the host it sees, and what it may.
    #[command(flatten)]
    pub isolate: Isolate,
}

/// Which network the container sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A new network namespace with only a loopback device.
    #[default]
    None,
    /// The host's.
    Host,
}

/// What an OCI image says about the program, `config` in its configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageDefaults {
    /// Environment, `NAME=value`.
    pub env: Option<Vec<Name>>,
    /// The program and its first arguments.
    pub entrypoint: Option<Vec<Name>>,
    /// Arguments after the entrypoint, or the whole command.
    pub cmd: Option<Vec<Name>>,
    /// Working directory.
    pub working_dir: Option<Name>,
    /// `user[:group]`.
    pub user: Option<String>,
}

impl ImageDefaults {
    /// The defaults in an OCI image configuration. Errors with usage where they have another shape.
    pub fn of(input: &Input) -> Result<ImageDefaults> {
        let config = input.image_config.as_ref().and_then(|config| config.get("config"));
        let Some(config) = config.filter(|config| !config.is_null()) else { return Ok(ImageDefaults::default()) };
        ImageDefaults::deserialize(config)
            .map_err(|error| exit::usage(format!("document key 'image.config.config': {error}")))
    }
}

/// What [`build`] needs to know of the world.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Who the program is to be, from the container's passwd.
    pub identity: Identity,
    /// The caller's uid and gid where it is not root: the container then gets a user namespace.
    pub rootless: Option<(u32, u32)>,
    /// The caller's environment, for `-e NAME`.
    pub env: Vec<(OsString, OsString)>,
    /// Every capability there is to be had.
    pub held: Vec<String>,
    /// What is in the file of `--seccomp`, where it names one.
    pub profile: Option<Vec<u8>>,
}

/// The configuration for a command: from the document or root directory that the flags name; without either, for a
/// directory `rootfs` beside config.json and a shell. Errors: not found (3) for an absent root directory, document or
/// volume source, usage (2) for values that make no sense.
pub fn from_flags(flags: &SpecFlags, args: &[OsString]) -> Result<Config> {
    let (input, root) = match (&flags.from, &flags.rootfs) {
        (Some(source), _) => {
            let input = doc::read(source)?;
            let root = open_root(input.rootfs.as_path())?;
            (input, Some(root))
        }
        (None, Some(rootfs)) => {
            let root = open_root(rootfs)?;
            let rootfs = place_of(&root, rootfs).with_context(|| rootfs.display().to_string())?;
            (Input { rootfs: Name(rootfs.into()), ..Input::default() }, Some(root))
        }
        (None, None) => (Input { rootfs: "rootfs".into(), ..Input::default() }, File::open("rootfs").ok()),
    };
    for (mount, flag) in asked_mounts(flags)? {
        let Some(source) = mount.source.filter(|_| mount.kind.as_deref() == Some("bind")) else { continue };
        fs::metadata(&*source).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => exit::not_found(format!("{flag}: {}: no such file", source.display())),
            _ => anyhow::Error::new(error).context(format!("{flag}: {}", source.display())),
        })?;
    }
    let image = ImageDefaults::of(&input)?;
    let asked = flags.user.as_deref().or(image.user.as_deref()).unwrap_or_default();
    let mut identity = match (&root, flags.isolate.uid, flags.isolate.gid) {
        (_, Some(uid), gid) => Identity { uid, gid: gid.unwrap_or(uid), ..Identity::default() },
        (Some(root), ..) => user::resolve(root.as_fd(), asked)?,
        (None, ..) => user::find(asked, b"", b"")?,
    };
    identity.gid = flags.isolate.gid.unwrap_or(identity.gid);
    let caller = (geteuid(), getegid());
    let seen = Seen {
        identity,
        // A system call each: only for who may want them all.
        held: match flags.isolate.cap_add.as_slice() {
            [] => Vec::new(),
            _ => held(!caller.0.is_root() || flags.isolate.map_root),
        },
        rootless: (!caller.0.is_root() || flags.isolate.map_root).then_some((caller.0.as_raw(), caller.1.as_raw())),
        env: env::vars_os().collect(),
        profile: read_profile(flags.seccomp.as_deref())?,
    };
    let shell = [OsString::from("sh")];
    let plain = flags.from.is_none() && flags.rootfs.is_none() && args.is_empty();
    build(flags, if plain { &shell } else { args }, &input, &seen)
}

/// The mounts that flags ask for, with the flag. Those nearer to the root come first, so that none hides another.
fn asked_mounts(flags: &SpecFlags) -> Result<Vec<(Mount, &'static str)>> {
    let mut mounts = Vec::new();
    for volume in &flags.volume {
        mounts.push((mounts::volume(volume)?, "--volume"));
    }
    mounts.extend(flags.isolate.mounts()?);
    mounts.sort_by_key(|(mount, _)| mount.destination.as_path().components().count());
    Ok(mounts)
}

/// The capabilities of this kernel that are this process's to give: all of them in a new user namespace.
fn held(new_namespace: bool) -> Vec<String> {
    let bit = |number: usize| rustix::thread::CapabilitySet::from_bits_retain(1 << number);
    let has = |number| rustix::thread::capability_is_in_bounding_set(bit(number));
    let names = caps::NAMES.iter().enumerate();
    let names = names.filter(|(number, _)| has(*number).is_ok_and(|held| held || new_namespace));
    names.map(|(_, name)| (*name).to_owned()).collect()
}

fn read_profile(asked: Option<&OsStr>) -> Result<Option<Vec<u8>>> {
    let Some(file) = asked.filter(|asked| *asked != "default" && *asked != "unconfined") else { return Ok(None) };
    fs::read(file).map(Some).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            exit::not_found(format!("--seccomp {}: no such file; give one, or default or unconfined", file.display()))
        }
        _ => anyhow::Error::new(error).context(format!("--seccomp {}", file.display())),
    })
}

fn open_root(path: &Path) -> Result<File> {
    let root = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => exit::not_found(format!("root directory {}: no such directory", path.display())),
        _ => anyhow::Error::new(error).context(format!("root directory {}", path.display())),
    })?;
    if root.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(root);
    }
    Err(exit::usage(format!("root directory {}: not a directory", path.display())))
}

/// The configuration for a command. Pure: what it must know of the world is in `seen`.
pub fn build(flags: &SpecFlags, args: &[OsString], input: &Input, seen: &Seen) -> Result<Config> {
    let image = ImageDefaults::of(input)?;
    let isolate = &flags.isolate;
    let own_network = flags.network == Network::None && !isolate.shares(NamespaceKind::Network);
    let mut mounts = mounts::defaults(seen.rootless.is_some(), own_network);
    if seen.rootless.is_some() {
        mounts::without_namespaces(&mut mounts, isolate);
    }
    mounts.extend(asked_mounts(flags)?.into_iter().map(|(mount, _)| mount));
    let capabilities = isolate.capabilities(seen.identity.uid, &seen.held)?;
    let mut resources = limits::resources(flags)?;
    if seen.rootless.is_none() {
        // Of device nodes only the default ones work: root may make others, up to the host's disks.
        resources.devices = vec![DeviceRule { access: Some("rwm".to_owned()), ..DeviceRule::default() }];
    }
    Ok(Config {
        oci_version: oci::WRITTEN_VERSION.to_owned(),
        process: Some(Process {
            terminal: flags.tty,
            user: process_user(seen),
            args: process::args(args, &image, flags.no_entrypoint)?,
            env: process::env(flags, &image, seen)?,
            cwd: process::cwd(flags.cwd.as_deref(), &image)?,
            capabilities: Some(capabilities.clone()),
            rlimits: limits::rlimits(&flags.rlimit)?,
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root { path: input.rootfs.clone(), readonly: flags.read_only || input.read_only }),
        hostname: hostname(flags.hostname.as_deref(), isolate)?,
        mounts,
        annotations: annotations(&flags.label)?,
        linux: Some(Linux {
            namespaces: namespaces(own_network, seen.rootless.is_some(), isolate),
            uid_mappings: mapping(seen.identity.uid, seen.rootless.map(|(uid, _)| uid)),
            gid_mappings: mapping(seen.identity.gid, seen.rootless.map(|(_, gid)| gid)),
            cgroups_path: flags.cgroups_path.clone(),
            resources: Some(resources).filter(|resources| *resources != Resources::default()),
            seccomp: filter(flags.seccomp.as_deref(), seen, &capabilities.bounding)?,
            masked_paths: mounts::MASKED.map(Name::from).to_vec(),
            readonly_paths: mounts::READONLY.map(Name::from).to_vec(),
            ..Linux::default()
        }),
        ..Config::default()
    })
}

/// Where a directory is that was opened at `path`. The kernel knows, in one call; where there is no /proc the path is resolved name by name.
fn place_of(dir: &File, path: &Path) -> io::Result<PathBuf> {
    match fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())) {
        Ok(place) if place.is_absolute() => Ok(place),
        _ => fs::canonicalize(path),
    }
}

/// An unprivileged user has one id inside and no say over groups.
fn process_user(seen: &Seen) -> User {
    let Identity { uid, gid, additional_gids, .. } = seen.identity.clone();
    let additional_gids = if seen.rootless.is_some() { Vec::new() } else { additional_gids };
    User { uid, gid, umask: None, additional_gids }
}

/// The one id an unprivileged user has: who the program is to be inside is the caller outside.
fn mapping(inside: u32, outside: Option<u32>) -> Vec<IdMapping> {
    outside.map(|host_id| IdMapping { container_id: inside, host_id, size: 1 }).into_iter().collect()
}

/// `--seccomp`.
fn filter(asked: Option<&OsStr>, seen: &Seen, bounding: &[String]) -> Result<Option<Seccomp>> {
    match (asked, &seen.profile) {
        (Some(word), _) if word == "unconfined" => Ok(None),
        (Some(file), Some(text)) => {
            let profile = seccomp::profile::parse(text, &file.to_string_lossy(), Arch::native()?, bounding)?;
            // What cannot be compiled is said here, and not by who gets config.json.
            seccomp::compile(&profile).map_err(|error| error.context(format!("--seccomp {}", file.display())))?;
            Ok(Some(profile))
        }
        _ => Ok(Some(seccomp::default::profile(Arch::native()?, bounding))),
    }
}

fn namespaces(own_network: bool, rootless: bool, isolate: &Isolate) -> Vec<Namespace> {
    use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let mut kinds = vec![Pid, Mount, Uts, Ipc, Cgroup];
    if own_network {
        kinds.push(Network);
    }
    if rootless {
        kinds.push(User);
    }
    kinds.into_iter().filter(|kind| !isolate.shares(*kind)).map(|kind| Namespace { kind, path: None }).collect()
}

fn hostname(asked: Option<&str>, isolate: &Isolate) -> Result<Option<String>> {
    if isolate.shares(NamespaceKind::Uts) {
        return match asked {
            Some(_) => Err(exit::usage("--hostname: would rename this host; take uts out of --share")),
            None => Ok(None),
        };
    }
    let name = asked.unwrap_or("sheep");
    // 64 is what sethostname(2) takes.
    if name.is_empty() || name.len() > 64 || name.contains(char::is_whitespace) || name.contains(char::is_control) {
        return Err(exit::usage(format!("--hostname {name:?}: 1 to 64 characters without spaces")));
    }
    Ok(Some(name.to_owned()))
}

fn annotations(labels: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |label: &String| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        if key.is_empty() {
            return Err(exit::usage(format!("--label {label:?}: no key before the '='")));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests;
