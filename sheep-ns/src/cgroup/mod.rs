//! The container's control group: cgroup v2, by its file system, below what systemd gives where it is asked.
//!
//! A group is made before the clone, with its limits in force, and the first process is born in it
//! (`CLONE_INTO_CGROUP`). A limit that was asked for is in force or is an error; it is never left out in silence.

mod delegated;
pub mod devices;
pub mod files;
mod groups;
mod processes;
mod stats;
mod systemd;
mod tree;
mod update;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::geteuid;

use self::files::Setting;
use self::groups::{components, entries, group_path, make, parent_of, remove_group, remove_parent};
use self::tree::Tree;
use crate::oci;
use crate::sys;

pub use self::groups::remove_unused;
pub use self::systemd::end as end_scope;

/// How long a group may take to become empty, frozen or thawed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who makes the control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// This program, in the cgroup2 file system.
    Cgroupfs,
    /// systemd, which is asked for a scope; this program in it.
    Systemd,
    /// Nobody: the container stays in the caller's group.
    Disabled,
}

/// A control group.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    dir: OwnedFd,
    /// The scope it was made in, and this program's time in that.
    scope: Option<String>,
    visit: RefCell<Option<systemd::Visit>>,
}

impl Cgroup {
    fn new(path: String, dir: OwnedFd) -> Cgroup {
        Cgroup { path, dir, scope: None, visit: RefCell::new(None) }
    }

    /// Makes the group for a container and writes its limits. `None` where no group can be had and no limit was asked
    /// for: the manager is `Disabled`, the host has no cgroup2, or an unprivileged user cannot make groups there. Rules
    /// for devices alone do not ask for a group: every engine writes them. `annotations` may ask for properties of a scope.
    /// On an error nothing is left.
    pub fn create(
        linux: &oci::Linux,
        id: &str,
        manager: Manager,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Cgroup>> {
        let mut settings = match &linux.resources {
            Some(resources) => files::files(resources)?,
            None => Vec::new(),
        };
        let devices = linux.resources.as_ref().map(|resources| resources.devices.as_slice()).unwrap_or_default();
        let filter = if devices.is_empty() { None } else { Some(devices::program(devices)?) };
        let tree = if manager == Manager::Disabled { None } else { Tree::find()? };
        // A new scope has not: systemd has defaults of its own.
        let properties = if manager == Manager::Systemd { systemd::of_settings(&settings) } else { Vec::new() };
        // A new group has these anyway; its controller need not be there.
        settings.retain(|setting| !setting.is_default());
        if settings.iter().any(Setting::is_ordinary_weight)
            && !tree.as_ref().map_or(Ok(false), |tree| tree.has("cpu"))?
        {
            settings.retain(|setting| !setting.is_ordinary_weight());
        }
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
        let asked = linux.cgroups_path.as_deref();
        if manager == Manager::Systemd {
            let (scope, mut wanted) = (systemd::Scope::of(asked, id)?, systemd::asked(annotations)?);
            check_controllers(&tree, &settings)?;
            wanted.extend(properties);
            let visit = systemd::enter(&scope, id, &tree, wanted)?;
            let path = format!("{}/{}", visit.scope(), systemd::CONTAINER);
            let dir = make(&tree, &path, &settings)?;
            let scope = Some(scope.name().to_owned());
            let group = Cgroup { scope, visit: RefCell::new(Some(visit)), ..Cgroup::new(path, dir) };
            return group.limited(filter.as_deref(), &settings).map(Some);
        }
        let path = group_path(&tree, asked, id)?;
        check_controllers(&tree, &settings)?;
        let group = match make(&tree, &path, &settings) {
            Ok(dir) => Cgroup::new(path, dir),
            Err(error) if !is_host_root() && is_denied(&error) => {
                let user = geteuid().as_raw();
                return without(format!("user {user} cannot make the control group {}{path}: {error:#}", tree.mounted));
            }
            Err(error) => return Err(error),
        };
        group.limited(filter.as_deref(), &settings).map(Some)
    }

    /// The group with its limits in force; removed where they cannot be.
    fn limited(self, filter: Option<&[devices::Instruction]>, settings: &[Setting]) -> Result<Cgroup> {
        let filtered = filter.map_or(Ok(()), |filter| self.filter_devices(filter));
        if let Err(error) = filtered.and_then(|()| self.write(settings)) {
            // The error that matters is the one already held.
            let _ = self.remove();
            return Err(error);
        }
        Ok(self)
    }

    /// Opens the group at `path`, as [`Cgroup::path`] gave it. `None` where it is gone.
    pub fn open(path: &str) -> Result<Option<Cgroup>> {
        let Some(tree) = Tree::find()? else { return Ok(None) };
        components(path)?;
        match tree::open_path(&tree, path) {
            Ok(dir) => Ok(Some(Cgroup::new(path.to_owned(), dir))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("control group {path}")),
        }
    }

    /// The group in which a process that joins a container is born: the one at `path`. Where the container has given its controllers to
    /// groups below, the kernel takes no process there, and it is the one of the first process `pid`, which is below then
    /// (cgroup-v2.html, "No Internal Process Constraint"). `None` where it is gone.
    pub fn to_join(path: &str, pid: i32) -> Result<Option<Cgroup>> {
        let Some(group) = Cgroup::open(path)? else { return Ok(None) };
        let context = || format!("control group {path}/cgroup.subtree_control");
        if tree::read(group.dir(), "cgroup.subtree_control").with_context(context)?.trim().is_empty() {
            return Ok(Some(group));
        }
        let first = delegated::group_of(&pid.to_string())?;
        match first.filter(|first| first.starts_with(&format!("{}/", path.trim_end_matches('/')))) {
            Some(first) => Cgroup::open(&first),
            None => Ok(Some(group)),
        }
    }

    /// The name of the scope that it was made in.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    /// The container is born: where this program had to go into its scope for that, it goes out again.
    pub fn leave(&self) {
        drop(self.visit.take());
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
            Err(error) if limits_nothing(setting, &error) => Ok(()),
            other => {
                let (file, value) = tried;
                other.with_context(|| format!("{}: write {value:?} to {}/{file}", setting.what, self.path))
            }
        }
    }

    /// A file of the group; `None` where there is none.
    fn read(&self, file: &str) -> Result<Option<String>> {
        match tree::read(self.dir(), file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("control group {}: {file}", self.path)),
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
        entries(self.dir(), FileType::RegularFile).with_context(|| format!("control group {}", self.path))
    }
}

/// Checks that the tree has the controllers of these settings.
fn check_controllers(tree: &Tree, settings: &[Setting]) -> Result<()> {
    for setting in settings.iter().filter(|setting| setting.controller != "cgroup") {
        if !tree.has(&setting.controller)? {
            return Err(no_controller(tree, setting));
        }
    }
    Ok(())
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
    let map = || std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    geteuid().is_root() && map().split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a setting's file is missing because there is nothing to limit: a kernel without swap has none for it.
fn limits_nothing(setting: &Setting, error: &io::Error) -> bool {
    let has_swap = || std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
    error.kind() == io::ErrorKind::NotFound && setting.file == "memory.swap.max" && !has_swap()
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
