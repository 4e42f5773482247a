//! The last part of the way to a container's program, the same for its first process and for one that joins: limits,
//! working directory, user, capabilities, execve.

use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, statat};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid, chdir, getcwd, setrlimit, umask};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::attr::Attributes;
use super::tuning::Tuning;
use crate::caps::{self, CapSets};
use crate::exit::{self, Kind};
use crate::oci;
use crate::rootfs::mount::text;
use crate::rootfs::resolve::{self, Make};
use crate::seccomp::agent::{self, Agent};
use crate::seccomp::{self, Filter};
use crate::sys;

/// A program and what it starts with, checked and in the form the kernel takes.
#[derive(Debug)]
pub struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    user: oci::User,
    caps: CapSets,
    unknown_caps: Vec<String>,
    limits: Vec<(Resource, Rlimit)>,
    tuning: Tuning,
    attributes: Attributes,
    no_new_privileges: bool,
    /// Descriptors that stay open besides 0, 1 and 2: from 3 on.
    preserve_fds: u32,
    /// The filter of system calls.
    filter: Option<Filter>,
    /// Who answers for it.
    agent: Option<Agent>,
    /// `HOME` is missing or empty, and is taken from the container's /etc/passwd.
    needs_home: bool,
    /// A working directory that is not there is made.
    makes_cwd: bool,
}

impl Program {
    /// Checks a process of config.json, and what the container's `linux` says of its processes. Errors: no arguments, a
    /// relative directory, a NUL byte, an unknown limit or setting.
    pub fn new(process: &oci::Process, linux: &oci::Linux, preserve_fds: u32) -> Result<Program> {
        let (Some(first), cwd) = (process.args.first(), process.cwd.as_path()) else {
            return Err(exit::usage("process.args: no command to run"));
        };
        if first.as_bytes().is_empty() {
            return Err(exit::fault(Kind::NoProgram, "exec \"\": no such file or directory"));
        }
        let cwd = if cwd.as_os_str().is_empty() { Path::new("/") } else { cwd };
        if !cwd.is_absolute() {
            return Err(exit::usage(format!("process.cwd {:?}: must be absolute", cwd.display())));
        }
        let strings = |what: &str, names: &[oci::Name]| {
            names
                .iter()
                .map(|name| CString::new(name.as_bytes()).map_err(|_| exit::usage(format!("{what}: has a NUL byte"))))
                .collect::<Result<Vec<_>>>()
        };
        let (caps, unknown_caps) = CapSets::new(process.capabilities.as_ref());
        let mut env = strings("process.env", &process.env)?;
        // podman gives an empty one for a user that it does not find, and leaves the rest to the runtime.
        env.retain(|variable| variable.as_bytes() != b"HOME=");
        Ok(Program {
            args: strings("process.args", &process.args)?,
            needs_home: !env.iter().any(|variable| variable.as_bytes().starts_with(b"HOME=")),
            env,
            cwd: CString::new(cwd.as_os_str().as_bytes()).map_err(|_| exit::usage("process.cwd: has a NUL byte"))?,
            user: process.user.clone(),
            caps,
            unknown_caps,
            limits: limits(&process.rlimits)?,
            tuning: Tuning::new(process, linux)?,
            attributes: Attributes::new(process)?,
            no_new_privileges: process.no_new_privileges,
            preserve_fds,
            filter: linux.seccomp.as_ref().map(seccomp::compile).transpose()?,
            agent: None,
            makes_cwd: true,
        })
    }

    /// A working directory that is not there is then an error: who joins a container changes nothing in it.
    pub fn needs_its_cwd(&mut self) {
        self.makes_cwd = false;
    }

    /// Connects to the agent that answers for the filter, where it asks one. `state` is what it is told of the container.
    pub fn connect_agent(&mut self, state: oci::State) -> Result<()> {
        self.agent = self.filter.as_ref().map(|filter| agent::connect(filter, state)).transpose()?.flatten();
        Ok(())
    }

    /// Takes what it needs of /proc, while that is still the host's.
    pub fn look_into_proc(&self) -> Result<()> {
        self.agent.as_ref().map_or(Ok(()), Agent::note_pid)?;
        self.attributes.open()
    }

    /// Names in the profile that are no system calls anywhere: nothing becomes of them.
    pub fn unknown_calls(&self) -> &[String] {
        self.filter.as_ref().map(|filter| filter.unknown.as_slice()).unwrap_or_default()
    }

    fn load_filter(&self) -> Result<()> {
        self.filter.as_ref().map_or(Ok(()), |filter| agent::load(filter, self.agent.as_ref()))
    }

    /// The user's id inside the container.
    pub fn uid(&self) -> u32 {
        self.user.uid
    }

    /// Capabilities of the config that this program does not know: the program does not get them.
    pub fn unknown_caps(&self) -> &[String] {
        &self.unknown_caps
    }

    /// The command's first word, for messages.
    pub fn name(&self) -> String {
        self.args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

fn limits(limits: &[oci::Rlimit]) -> Result<Vec<(Resource, Rlimit)>> {
    let mut parsed: Vec<(Resource, Rlimit)> = Vec::new();
    for limit in limits {
        let resource = resource(&limit.kind)
            .ok_or_else(|| exit::usage(format!("process.rlimits: unknown type '{}'", limit.kind)))?;
        if parsed.iter().any(|(known, _)| *known == resource) {
            return Err(exit::usage(format!("process.rlimits: '{}' stands there twice", limit.kind)));
        }
        // All ones is "no limit" in the kernel's own form too.
        let value = |n: u64| if n == u64::MAX { None } else { Some(n) };
        parsed.push((resource, Rlimit { current: value(limit.soft), maximum: value(limit.hard) }));
    }
    Ok(parsed)
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

/// Turns this process into one of the container's user, in the program's working directory; all but the `keep`
/// descriptors (and those to be preserved) are closed. `old_umask` is in force where the config has none.
///
/// The change of user undoes `PR_SET_PDEATHSIG`; the caller sets it again.
///
/// Returns the program's path and its environment. From here on nothing of the host is reachable: no descriptor, no
/// directory.
pub fn become_user(program: &Program, setgroups: bool, old_umask: Mode, keep: &mut [RawFd]) -> Result<Ready> {
    for (resource, limit) in &program.limits {
        setrlimit(*resource, *limit).with_context(|| {
            format!("process.rlimits: {resource:?} to {}:{}", shown(limit.current), shown(limit.maximum))
        })?;
    }
    program.tuning.apply()?;
    program.attributes.tell_of_keys()?;
    new_keyring()?;
    // Before the change of directory, so that no path leads to a descriptor of ours (CVE-2024-21626).
    let mut keep = keep.to_vec();
    keep.extend(program.agent.as_ref().map(|agent| raw(agent.socket())));
    keep.extend(program.attributes.files());
    close_all_but(3 + program.preserve_fds, &mut keep).context("close what the program shall not have")?;
    let entered = enter_cwd(program);
    own_pipes(&program.user);
    program.attributes.tell()?;
    if !program.no_new_privileges {
        // A privilege, which the next steps take away: so all of them must be allowed by the filter, as with other runtimes.
        program.load_filter()?;
    }
    caps::bound(&program.caps).context("process.capabilities: bounding set")?;
    change_user(program, setgroups)?;
    match entered {
        // A directory that root cannot enter but the user can, as on a network file system.
        Err(Errno::ACCESS | Errno::PERM) => enter_cwd(program),
        entered => entered,
    }
    .map_err(|e| anyhow::anyhow!("process.cwd {}: {}", program.cwd.to_string_lossy(), text(e)))?;
    let inside = getcwd(Vec::new()).is_ok_and(|path| path.as_bytes().starts_with(b"/"));
    if !inside {
        anyhow::bail!("process.cwd {}: is outside the container's root", program.cwd.to_string_lossy());
    }
    caps::apply(&program.caps).context("process.capabilities")?;
    if program.no_new_privileges {
        set_no_new_privs(true).context("process.noNewPrivileges")?;
    }
    umask(program.user.umask.map_or(old_umask, Mode::from_raw_mode));
    let mut env = program.env.clone();
    if program.needs_home {
        env.push(home(program.user.uid));
    }
    let path = find(program)?;
    Ok(Ready { path, env })
}

/// A program found, in a process that is ready for it.
#[derive(Debug)]
pub struct Ready {
    path: CString,
    env: Vec<CString>,
}

/// Executes it. Returns only with an error.
pub fn execute(program: &Program, ready: &Ready) -> anyhow::Error {
    sys::default_signals();
    if let Err(e) = nix::sys::signal::SigSet::empty().thread_set_mask() {
        return anyhow::Error::from(e).context("signal mask");
    }
    // As late as can be: nothing but execve has to be allowed by the filter.
    if program.no_new_privileges
        && let Err(error) = program.load_filter()
    {
        return error;
    }
    let error = sys::execve(&ready.path, &program.args, &ready.env);
    exec_error(program, Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |n| n.to_string())
}

fn enter_cwd(program: &Program) -> Result<(), Errno> {
    match chdir(program.cwd.as_c_str()) {
        Err(Errno::NOENT) if program.makes_cwd => {}
        done => return done,
    }
    // As other runtimes do, a missing one is made.
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let old = umask(Mode::from_raw_mode(0o022));
    let path = Path::new(OsStr::from_bytes(program.cwd.as_bytes()));
    let made = resolve::target(root.as_fd(), path, Make::Dir);
    umask(old);
    match made {
        Ok(_) => chdir(program.cwd.as_c_str()),
        Err(error) => Err(error.downcast_ref::<Errno>().copied().unwrap_or(Errno::NOENT)),
    }
}

/// Gives the pipes among stdin, stdout and stderr to the user, who may then open /dev/stdout again, as images that log
/// there do. Only pipes, which nobody else sees: a file or a terminal of the caller's stays the caller's.
fn own_pipes(user: &oci::User) {
    const PIPEFS_MAGIC: u32 = 0x5049_5045;
    let owner = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    for fd in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        let is_pipe = rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type as u32 == PIPEFS_MAGIC);
        if user.uid != 0 && is_pipe {
            // In a user namespace the pipe may be one that cannot be given away; it works as it is.
            let _ = rustix::fs::fchown(fd, Some(owner.0), Some(owner.1));
        }
    }
}

/// A session's keys are not the container's: the caller's login may hold the host's (pam_keyinit(8)).
fn new_keyring() -> Result<()> {
    match sys::new_session_keyring() {
        // Without keys in this kernel, or where none can be had by anybody (a filter around a container in a container).
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOSYS | Errno::PERM)) => Ok(()),
        done => done.context("new session keyring"),
    }
}

/// Only of this thread, which execs: what may be there besides it is the thread that spoke to the filter's agent, and ends with that.
/// The C library would have all threads do it, with four system calls for each of ours.
fn change_user(program: &Program, setgroups: bool) -> Result<()> {
    let user = &program.user;
    if program.caps.any() && user.uid != 0 {
        set_keep_capabilities(true).context("prctl(PR_SET_KEEPCAPS)")?;
    }
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    if setgroups {
        set_thread_groups(&groups).context("process.user.additionalGids")?;
    } else if !groups.is_empty() {
        return Err(exit::usage("process.user.additionalGids: an unprivileged user cannot set groups"));
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).with_context(|| format!("process.user.gid {}: not mapped here?", user.gid))?;
    set_thread_res_uid(uid, uid, uid).with_context(|| format!("process.user.uid {}: not mapped here?", user.uid))
}

/// Closes every descriptor from `first` on but those of `keep`.
fn close_all_but(first: u32, keep: &mut [RawFd]) -> std::io::Result<()> {
    keep.sort_unstable();
    let mut next = first;
    for fd in keep.iter().filter_map(|fd| u32::try_from(*fd).ok()) {
        if fd > next {
            sys::close_range(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    sys::close_range(next, u32::MAX)
}

/// The program's path: as given where it has a slash, else the first in the container's `PATH` that can be executed.
fn find(program: &Program) -> Result<CString> {
    let Some(name) = program.args.first() else { return Err(exit::usage("process.args: no command to run")) };
    if name.as_bytes().contains(&b'/') {
        return match executable(name) {
            Ok(()) => Ok(name.clone()),
            Err(errno) => Err(exec_error(program, errno)),
        };
    }
    let path = program.env.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut denied = false;
    for dir in path.split(|b| *b == b':') {
        let dir = if dir.is_empty() { &b"."[..] } else { dir };
        let Ok(candidate) = CString::new([dir, b"/", name.as_bytes()].concat()) else { continue };
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(exec_error(program, Errno::ACCESS));
    }
    let text = format!("exec {}: executable file not found in $PATH: no such file or directory", program.name());
    Err(exit::fault(Kind::NoProgram, text))
}

fn executable(path: &CStr) -> Result<(), Errno> {
    accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())?;
    let stat = statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile { Ok(()) } else { Err(Errno::ACCESS) }
}

fn exec_error(program: &Program, errno: Errno) -> anyhow::Error {
    let (kind, text) = match errno {
        Errno::NOENT | Errno::NOTDIR => (Kind::NoProgram, "no such file or directory".to_owned()),
        Errno::ACCESS | Errno::PERM => (Kind::CannotExecute, "permission denied".to_owned()),
        Errno::NOEXEC => (Kind::CannotExecute, "exec format error".to_owned()),
        other => (Kind::CannotExecute, text(other)),
    };
    exit::fault(kind, format!("exec {}: {text}", program.name()))
}

/// `HOME=` of a user by the container's /etc/passwd, `/` where it is not told. The file belongs to the container, so
/// anything but a regular file of sane size counts as none.
fn home(uid: u32) -> CString {
    let fallback = || c"HOME=/".to_owned();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(c"/etc/passwd", flags, Mode::empty()) else { return fallback() };
    let regular = rustix::fs::fstat(&file).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    let mut text = Vec::new();
    if !regular || std::fs::File::from(file).take(1 << 20).read_to_end(&mut text).is_err() {
        return fallback();
    }
    let wanted = uid.to_string();
    let line = text.split(|b| *b == b'\n').map(|line| line.split(|b| *b == b':').collect::<Vec<_>>());
    let home = line.into_iter().find_map(|fields| match fields.as_slice() {
        [_, _, id, _, _, home, ..] if *id == wanted.as_bytes() && !home.is_empty() => Some(home.to_vec()),
        _ => None,
    });
    home.and_then(|home| CString::new([b"HOME=", home.as_slice()].concat()).ok()).unwrap_or_else(fallback)
}

/// The raw number of a descriptor, for `keep`.
pub fn raw(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
