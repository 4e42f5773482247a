//! The container's control group: cgroup v2, by its file system.
//!
//! A group is made before the clone, with its limits in force, and the first process is born in it
//! (`CLONE_INTO_CGROUP`). A limit that was asked for is in force or is an error; it is never left out in silence.

mod delegated;
pub mod devices;
pub mod files;
mod stats;
mod tree;
mod update;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, geteuid, kill_process};

use self::files::Setting;
use self::tree::Tree;
use crate::exit;
use crate::oci;
use crate::sys;

/// Where groups are where config.json names no path: `/sheep/ID`, for others than root below the group that is theirs. The
/// only parent that is removed when it is empty.
const PARENT: &str = "sheep";

/// How long a group may take to become empty, frozen or thawed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who makes the control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// This program, in the cgroup2 file system.
    Cgroupfs,
    /// Nobody: the container stays in the caller's group.
    Disabled,
}

/// A control group.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    dir: OwnedFd,
}

impl Cgroup {
    /// Makes the group for a container and writes its limits. `None` where no group can be had and no limit was asked
    /// for: the manager is `Disabled`, the host has no cgroup2, or an unprivileged user cannot make groups there. Rules
    /// for devices alone do not ask for a group: every engine writes them. On an error nothing is left.
    pub fn create(linux: &oci::Linux, id: &str, manager: Manager) -> Result<Option<Cgroup>> {
        let mut settings = match &linux.resources {
            Some(resources) => files::files(resources)?,
            None => Vec::new(),
        };
        let devices = linux.resources.as_ref().map(|resources| resources.devices.as_slice()).unwrap_or_default();
        let filter = if devices.is_empty() { None } else { Some(devices::program(devices)?) };
        let tree = if manager == Manager::Disabled { None } else { Tree::find()? };
        let has_weights = tree.as_ref().map(|tree| tree.has("cpu")).transpose()?.unwrap_or(false);
        // A new group has these anyway; its controller need not be there.
        settings.retain(|setting| !setting.is_default() && (has_weights || !setting.is_ordinary_weight()));
        let without = |reason: String| match settings.first() {
            None => Ok(None),
            Some(setting) => Err(anyhow!("{}: {reason}", setting.what)),
        };
        if manager == Manager::Disabled {
            return without("there is no control group with --cgroup-manager=disabled".to_owned());
        }
        let Some(tree) = tree else {
            return without("this host has no cgroup v2 file system mounted".to_owned());
        };
        let path = group_path(&tree, linux.cgroups_path.as_deref(), id)?;
        for setting in settings.iter().filter(|setting| setting.controller != "cgroup") {
            if !tree.has(&setting.controller)? {
                return Err(no_controller(&tree, setting));
            }
        }
        let group = match make(&tree, &path, &settings) {
            Ok(dir) => Cgroup { path, dir },
            Err(error) if !is_host_root() && is_denied(&error) => {
                let user = geteuid().as_raw();
                return without(format!("user {user} cannot make the control group {}{path}: {error:#}", tree.mounted));
            }
            Err(error) => return Err(error),
        };
        let filtered = filter.map_or(Ok(()), |filter| group.filter_devices(&filter));
        if let Err(error) = filtered.and_then(|()| group.write(&settings)) {
            // The error that matters is the one already held.
            let _ = group.remove();
            return Err(error);
        }
        Ok(Some(group))
    }

    /// Opens the group at `path`, as [`Cgroup::path`] gave it. `None` where it is gone.
    pub fn open(path: &str) -> Result<Option<Cgroup>> {
        let Some(tree) = Tree::find()? else { return Ok(None) };
        let mut dir = tree.root;
        for name in components(path)? {
            dir = match tree::open_dir(dir.as_fd(), name) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(errno).with_context(|| format!("control group {path}")),
            };
        }
        Ok(Some(Cgroup { path: path.to_owned(), dir }))
    }

    /// The group's directory, for `CLONE_INTO_CGROUP`.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The group's path in the cgroup2 tree, absolute from the tree's root: `/sheep/ID`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes limits, in order.
    pub fn write(&self, settings: &[Setting]) -> Result<()> {
        settings.iter().try_for_each(|setting| self.write_one(setting))
    }

    fn write_one(&self, setting: &Setting) -> Result<()> {
        let mut written = tree::write(self.dir(), &setting.file, &setting.value);
        let mut tried = (&setting.file, &setting.value);
        if let (Err(error), Some((file, value))) = (&written, &setting.otherwise)
            && error.kind() == io::ErrorKind::NotFound
        {
            written = tree::write(self.dir(), file, value);
            tried = (file, value);
        }
        match written {
            // A kernel without swap has no such file, and nothing to limit.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && setting.file == "memory.swap.max" && !has_swap() =>
            {
                Ok(())
            }
            other => {
                let (file, value) = tried;
                other.with_context(|| format!("{}: write {value:?} to {}/{file}", setting.what, self.path))
            }
        }
    }

    /// Puts a device filter in force. Without the right to, it is left out where device nodes cannot be made anyway:
    /// for an unprivileged user, and inside a user namespace.
    fn filter_devices(&self, program: &[devices::Instruction]) -> Result<()> {
        let attached =
            sys::load_device_filter(program).and_then(|filter| sys::attach_device_filter(self.dir(), filter.as_fd()));
        match attached {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_host_root() => Ok(()),
            other => other.with_context(|| format!("linux.resources.devices: device filter of {}", self.path)),
        }
    }

    /// Moves a process into the group.
    pub fn join(&self, pid: Pid) -> Result<()> {
        tree::write(self.dir(), "cgroup.procs", &pid.as_raw_nonzero().to_string())
            .with_context(|| format!("control group {}: process {}", self.path, pid.as_raw_nonzero()))
    }

    /// Every process in the group and its children, as this process's pid namespace sees them.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        let context = || format!("control group {}", self.path);
        walk(self.dir(), &mut |dir| {
            let text = tree::read(dir, "cgroup.procs")?;
            pids.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
            Ok(())
        })
        .with_context(context)?;
        Ok(pids)
    }

    /// Kills every process in the group with SIGKILL. They may still be on their way out when this returns.
    pub fn kill(&self) -> Result<()> {
        match tree::write(self.dir(), "cgroup.kill", "1") {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("control group {}: cgroup.kill", self.path)),
        }
        // Before Linux 5.14: until a pass finds nobody, since a process may fork between the reading and the killing.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.still_populated());
            }
            for pid in pids {
                // Gone meanwhile is as good.
                let _ = kill_process(pid, Signal::KILL);
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Stops every process in the group, and waits until they are stopped. Where one cannot be stopped, all go on.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true).inspect_err(|_| {
            // The error that matters is the one already held.
            let _ = tree::write(self.dir(), "cgroup.freeze", "0");
        })
    }

    /// Lets a frozen group go on, and waits until it does.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Whether the group is frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        let events = tree::read(self.dir(), "cgroup.events").with_context(|| format!("control group {}", self.path))?;
        Ok(tree::field(&events, "frozen") == Some(1))
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let context = || format!("control group {}: freezer", self.path);
        let events = openat(self.dir(), "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let events = events.with_context(context)?;
        tree::write(self.dir(), "cgroup.freeze", if frozen { "1" } else { "0" }).with_context(context)?;
        let deadline = Instant::now() + PATIENCE;
        while self.is_frozen()? != frozen {
            if Instant::now() > deadline {
                return Err(anyhow!("still not {}", if frozen { "frozen" } else { "thawed" })).with_context(context);
            }
            wait_for_change(events.as_fd());
        }
        Ok(())
    }

    /// A descriptor that polls as `PRI` when [`Cgroup::oom_kills`] may have changed; `None` without a memory controller.
    pub fn memory_events(&self) -> Result<Option<OwnedFd>> {
        match openat(self.dir(), "memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(events) => Ok(Some(events)),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("control group {}: memory.events", self.path)),
        }
    }

    /// How many processes of the group were killed because memory was out; `None` without a memory controller.
    pub fn oom_kills(&self) -> Result<Option<u64>> {
        Ok(self.read("memory.events")?.and_then(|text| tree::field(&text, "oom_kill")))
    }

    /// Removes the group, its children first, waiting for killed processes to be gone; then its parent `/sheep` when
    /// that is empty. One that is gone already is no error. Busy (4) where processes stay.
    pub fn remove(&self) -> Result<()> {
        let Some(tree) = Tree::find()? else { return Ok(()) };
        let names = components(&self.path)?;
        let Some((parent, leaf)) = parent_of(&tree, &names)? else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(50);
        loop {
            match remove_group(parent.as_fd(), leaf) {
                Ok(()) => break,
                Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() > deadline => return Err(self.still_populated()),
                Err(Errno::BUSY | Errno::NOTEMPTY) => {
                    sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(errno) => return Err(errno).with_context(|| format!("remove control group {}", self.path)),
            }
        }
        remove_parent(&tree, &names);
        Ok(())
    }

    /// Names of the files in the group's directory: which there are depends on the controllers.
    fn files(&self) -> Result<Vec<String>> {
        entries(self.dir(), rustix::fs::FileType::RegularFile).with_context(|| format!("control group {}", self.path))
    }

    fn still_populated(&self) -> anyhow::Error {
        let pids: Vec<String> =
            self.pids().unwrap_or_default().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        exit::busy(format!("control group {}: still in use by process {}", self.path, pids.join(", ")))
    }
}

/// The path of a container's group. `linux.cgroupsPath` counts from the tree's root, with or without a slash before it.
fn group_path(tree: &Tree, asked: Option<&str>, id: &str) -> Result<String> {
    let path = match asked.filter(|path| !path.is_empty()) {
        None if is_host_root() => format!("/{PARENT}/{id}"),
        // Without one, the attempt at the root's is what says why not.
        None => format!("{}/{PARENT}/{id}", delegated::to_us(tree)?.unwrap_or_default()),
        Some(path) if !path.starts_with('/') && path.split(':').count() == 3 => {
            return Err(exit::usage(format!(
                "linux.cgroupsPath {path:?} has systemd's form; this program makes control groups itself (give a path)"
            )));
        }
        Some(path) => format!("/{}", path.trim_matches('/')),
    };
    if components(&path)?.is_empty() {
        return Err(exit::usage("linux.cgroupsPath: the root of the tree cannot be a container's group"));
    }
    Ok(path)
}

/// The names in a group's path. Errors with usage for one that leads elsewhere.
fn components(path: &str) -> Result<Vec<&str>> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| [".", ".."].contains(name) || name.contains(['\0', '\n'])) {
        return Err(exit::usage(format!("linux.cgroupsPath {path:?}: no '.' or '..' in it")));
    }
    Ok(names)
}

/// Makes the group and what is missing above it, controllers enabled on the way down.
fn make(tree: &Tree, path: &str, settings: &[Setting]) -> Result<OwnedFd> {
    let names = components(path)?;
    // The parent may be removed by the end of another container between our two mkdirs.
    for _ in 0..100 {
        if let Some(dir) = make_once(tree, &names, settings)? {
            return Ok(dir);
        }
    }
    Err(anyhow!("control group {path}: its parent is removed again and again"))
}

fn make_once(tree: &Tree, names: &[&str], settings: &[Setting]) -> Result<Option<OwnedFd>> {
    let mut dir = tree.root.try_clone().context("cgroup2")?;
    let mode = Mode::from_raw_mode(0o755);
    for (depth, name) in names.iter().enumerate() {
        let context = || format!("control group /{}", names[..=depth].join("/"));
        let is_leaf = depth + 1 == names.len();
        let prepared =
            enable(dir.as_fd(), settings).with_context(|| format!("parent of {}", context())).and_then(|()| {
                match mkdirat(&dir, *name, mode) {
                    // Left by a crash, it has the limits of then; one with processes in it is another container's.
                    Err(Errno::EXIST) if is_leaf => match remove_group(dir.as_fd(), name) {
                        Ok(()) => mkdirat(&dir, *name, mode).with_context(context),
                        Err(Errno::BUSY | Errno::NOTEMPTY) => {
                            Err(exit::busy(format!("{} is in use by another container", context())))
                        }
                        Err(errno) => Err(errno).with_context(context),
                    },
                    Err(Errno::EXIST) => Ok(()),
                    other => other.with_context(context),
                }
            });
        match prepared.and_then(|()| tree::open_dir(dir.as_fd(), name).with_context(context)) {
            Ok(next) => dir = next,
            Err(error) if matches!(errno_of(&error), Some(Errno::NOENT | Errno::NODEV)) => return Ok(None),
            Err(error) => {
                remove_parent(tree, names);
                return Err(error);
            }
        }
    }
    Ok(Some(dir))
}

/// Gives the children of `dir` the controllers of `settings`.
fn enable(dir: BorrowedFd<'_>, settings: &[Setting]) -> Result<()> {
    if settings.iter().all(|setting| setting.controller == "cgroup") {
        return Ok(());
    }
    let enabled = tree::read(dir, "cgroup.subtree_control")?;
    let mut missing: Vec<&Setting> = Vec::new();
    for setting in settings.iter().filter(|setting| setting.controller != "cgroup") {
        let known = enabled.split_ascii_whitespace().any(|name| name == setting.controller);
        if !known && missing.iter().all(|other| other.controller != setting.controller) {
            missing.push(setting);
        }
    }
    let Some(first) = missing.first() else { return Ok(()) };
    // The kernel forbids it of a group that has processes itself, with several errors, and some controllers it would give all the same
    // and not take the group's children for groups of processes any more. The root alone, which has no type, is exempt.
    if tree::read(dir, "cgroup.type").is_ok() && !tree::read(dir, "cgroup.procs").unwrap_or_default().is_empty() {
        let Setting { what, controller, .. } = first;
        return Err(anyhow!(
            "{what}: the {controller} controller cannot be given to children of a group with processes of its own; move them to a child"
        ));
    }
    for setting in missing {
        let value = format!("+{}", setting.controller);
        tree::write(dir, "cgroup.subtree_control", &value).with_context(|| {
            format!("{}: the {} controller cannot be given to child groups", setting.what, setting.controller)
        })?;
    }
    Ok(())
}

/// Removes the group `name` in `dir` and those in it. One that is gone is no error.
fn remove_group(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    let group = match tree::open_dir(dir, name) {
        Ok(group) => group,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for child in children(group.as_fd())? {
        remove_group(group.as_fd(), &child)?;
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes the parent `sheep` where the path is under one and nobody else is.
fn remove_parent(tree: &Tree, names: &[&str]) {
    if let Some((_, above)) = names.split_last()
        && above.last() == Some(&PARENT)
        && let Ok(Some((dir, name))) = parent_of(tree, above)
    {
        // Another container's group in it, or its removal by another, are what usually stops this.
        let _ = unlinkat(&dir, name, AtFlags::REMOVEDIR);
    }
}

/// Names of the groups in a group. Their number is what the container made it; each was limited by it.
fn children(dir: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    entries(dir, rustix::fs::FileType::Directory)
}

fn entries(dir: BorrowedFd<'_>, kind: rustix::fs::FileType) -> Result<Vec<String>, Errno> {
    let listing = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let listing = match listing {
        Ok(listing) => listing,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut names = Vec::new();
    for entry in Dir::new(listing)? {
        let entry = entry?;
        if entry.file_type() == kind
            && let Ok(name) = entry.file_name().to_str()
            && ![".", ".."].contains(&name)
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The group that holds the one of this path, and that one's name. `None` where there is no such group.
fn parent_of<'a>(tree: &Tree, names: &[&'a str]) -> Result<Option<(OwnedFd, &'a str)>> {
    let Some((leaf, parents)) = names.split_last() else { return Ok(None) };
    let mut parent = tree.root.try_clone().context("cgroup2")?;
    for name in parents {
        parent = match tree::open_dir(parent.as_fd(), name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("control group /{}", names.join("/"))),
        };
    }
    Ok(Some((parent, leaf)))
}

/// Removes the group that [`Cgroup::create`] would make, if it is there and empty: what a creation leaves that was killed
/// before it was on record. A group with processes or groups in it is somebody's, and stays.
pub fn remove_unused(linux: &oci::Linux, id: &str) -> Result<()> {
    let Some(tree) = Tree::find()? else { return Ok(()) };
    let path = group_path(&tree, linux.cgroups_path.as_deref(), id)?;
    let names = components(&path)?;
    let Some((parent, leaf)) = parent_of(&tree, &names)? else { return Ok(()) };
    match unlinkat(&parent, leaf, AtFlags::REMOVEDIR) {
        Ok(()) => remove_parent(&tree, &names),
        Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno).with_context(|| format!("remove control group {path}")),
    }
    Ok(())
}

/// Calls `each` with the group and every group in it. Groups that vanish meanwhile are passed over.
fn walk(dir: BorrowedFd<'_>, each: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    match each(dir) {
        Err(error) if is_gone(&error) => return Ok(()),
        other => other?,
    }
    for child in children(dir)? {
        match tree::open_dir(dir, &child) {
            Ok(child) => walk(child.as_fd(), each)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits until cgroup.events changes; a tenth of a second at most, since the change may have been before the wait.
fn wait_for_change(events: BorrowedFd<'_>) {
    let tenth = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // Interrupted or timed out: the caller looks again.
    let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&tenth));
}

fn no_controller(tree: &Tree, setting: &Setting) -> anyhow::Error {
    let hint = if tree.hybrid {
        "hybrid hierarchy; boot with cgroup_no_v1=all or systemd.unified_cgroup_hierarchy=1".to_owned()
    } else {
        format!("see {}/cgroup.controllers", tree.mounted)
    };
    let Setting { what, controller, .. } = setting;
    anyhow!("{what}: this host's cgroup v2 tree has no {controller} controller ({hint})")
}

/// Whether this process is root of the first user namespace: only that one makes device nodes, and groups anywhere.
fn is_host_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    geteuid().is_root() && map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

/// Whether a group is gone: its directory (ENOENT), or behind an open directory (ENODEV).
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::NODEV].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

fn errno_of(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| {
        let from_io = || Errno::from_io_error(cause.downcast_ref::<io::Error>()?);
        cause.downcast_ref::<Errno>().copied().or_else(from_io)
    })
}

fn is_denied(error: &anyhow::Error) -> bool {
    matches!(errno_of(error), Some(Errno::ACCESS | Errno::PERM | Errno::ROFS))
}

#[cfg(test)]
mod tests;
