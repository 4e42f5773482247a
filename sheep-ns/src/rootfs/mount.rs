//! One mount of config.json: made detached, then put on its place beneath the container's root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode, OFlags, XattrFlags, fsetxattr, fstatfs, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::copyup;
use super::options::Options;
use super::resolve::{self, Make};
use crate::selinux::{self, Label};
use crate::sys;

/// A mount, checked.
#[derive(Debug)]
pub struct Mount {
    /// Where, as seen inside.
    pub target: PathBuf,
    /// File system type; unused for a bind.
    pub kind: String,
    /// What is mounted.
    pub source: PathBuf,
    /// How.
    pub options: Options,
    /// The label of its files, for a file system of its own; those that it shares with the host keep theirs.
    pub label: Option<Label>,
    /// The source of a bind, with its options in force, where it was taken hold of before the clone.
    pub tree: Option<OwnedFd>,
}

/// What the child needs to know of the container for its mounts.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    /// The container has a new cgroup namespace.
    pub own_cgroup_namespace: bool,
    /// The host's mounts have been made private, so that what is cloned from them is private already.
    pub private: bool,
}

const PROC_SUPER_MAGIC: i64 = 0x9fa0;

const MQUEUE: &str = "mqueue";

/// File systems of which the kernel has one, or whose files belong to it: the policy says what their labels are.
const HOST_WIDE: [&str; 10] =
    ["proc", "sysfs", "cgroup", "cgroup2", "bpf", "debugfs", "tracefs", "securityfs", "configfs", "binfmt_misc"];

/// Files of /proc that engines give a container views of; anything else of /proc stays the kernel's.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The source of a bind mount as a detached copy. Taken before anything of the container is looked at, so that nothing
/// in it can change what the path means.
pub fn open_source(mount: &Mount) -> Result<Option<OwnedFd>> {
    let Some(recursive) = mount.options.bind else { return Ok(None) };
    if let Some(tree) = &mount.tree {
        return tree.try_clone().map(Some).with_context(|| format!("mount {}", mount.target.display()));
    }
    clone_tree(CWD, &mount.source, recursive).map(Some).map_err(|errno| source_error(mount, errno))
}

/// Why a bind mount's source cannot be had, in words.
pub fn source_error(mount: &Mount, errno: Errno) -> anyhow::Error {
    anyhow!("mount {}: source {}: {}", mount.target.display(), mount.source.display(), text(errno))
}

/// A detached copy of the tree at a path.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    open_tree(dir, path, flags)
}

/// Puts a detached mount on `target`, which may be a directory or a file as the mount is.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags)
}

/// Puts a detached mount on a name in a directory. A symbolic link is not followed.
pub fn attach_in(tree: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    move_mount(tree, c"", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Mounts it. `source` is what [`open_source`] gave. Gives a tmpfs that is yet to be made read-only: what comes after it
/// may need a place in it.
pub fn mount(
    root: BorrowedFd<'_>,
    mount: &Mount,
    source: Option<OwnedFd>,
    around: Surroundings,
) -> Result<Option<OwnedFd>> {
    let made = match source {
        Some(tree) => bind(root, mount, tree.as_fd(), around).map(|()| None),
        None => own(root, mount, around),
    };
    made.with_context(|| format!("mount {}", mount.target.display()))
}

fn bind(root: BorrowedFd<'_>, mount: &Mount, tree: BorrowedFd<'_>, around: Surroundings) -> Result<()> {
    let make = if resolve::is_dir(tree).context("source")? { Make::Dir } else { Make::File };
    let target = resolve::target(root, &mount.target, make)?;
    let real_proc = || fstatfs(tree).is_ok_and(|s| s.f_type == PROC_SUPER_MAGIC) && is_proc_root(tree);
    if mount.target == Path::new("/proc") && !real_proc() {
        bail!("/proc must be a proc file system; {} is none", mount.source.display());
    }
    refuse_over_proc(target.as_fd(), &mount.target)?;
    if mount.tree.is_none() {
        set_attributes(tree, &mount.options)?;
    }
    attach(tree, target.as_fd()).context("attach")?;
    set_propagation(tree, &mount.options, around)
}

fn own(root: BorrowedFd<'_>, mount: &Mount, around: Surroundings) -> Result<Option<OwnedFd>> {
    let target = resolve::target(root, &mount.target, Make::Dir)?;
    if mount.target == Path::new("/proc") && mount.kind != "proc" {
        bail!("/proc must be a proc file system; type '{}' is none", mount.kind);
    }
    refuse_over_proc(target.as_fd(), &mount.target)?;
    let later = mount.kind == "tmpfs" && mount.options.set & libc::MOUNT_ATTR_RDONLY != 0;
    let set = if later { mount.options.set & !libc::MOUNT_ATTR_RDONLY } else { mount.options.set };
    let tree = match mount.kind.as_str() {
        "cgroup" | "cgroup2" => cgroup(mount, around)?,
        "sysfs" => match new_mount(mount, &mount.kind, mount.options.set) {
            // sysfs belongs to the network namespace's owner. Where that is not this user, the host's is shown, read-only.
            Err(e) if is_not_permitted(&e) => read_only_copy(Path::new("/sys"))?,
            made => made?,
        },
        kind => new_mount(mount, kind, set)?,
    };
    if mount.options.copy_up {
        copyup::copy(target.as_fd(), tree.as_fd()).context("tmpcopyup")?;
    }
    attach(tree.as_fd(), target.as_fd()).context("attach")?;
    if mount.options.set_all | mount.options.clear_all != 0 {
        sys::mount_setattr(tree.as_fd(), true, mount.options.set_all, mount.options.clear_all, 0)
            .context("recursive options")?;
    }
    set_propagation(tree.as_fd(), &mount.options, around)?;
    Ok(later.then_some(tree))
}

/// A new mount of a file system, detached.
fn new_mount(mount: &Mount, kind: &str, attributes: u64) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        Errno::NODEV => anyhow!("this kernel has no file system '{kind}'"),
        e => anyhow::Error::from(e).context(format!("file system {kind}")),
    })?;
    let fs = context.as_fd();
    let explained = |e: Errno, what: &str| {
        let context = match kernel_words(fs) {
            Some(words) => format!("{kind}: {what}: {words}"),
            None => format!("{kind}: {what}"),
        };
        anyhow::Error::from(e).context(context)
    };
    if !mount.source.as_os_str().is_empty() {
        fsconfig_set_string(fs, c"source", mount.source.as_path()).map_err(|e| explained(e, "source"))?;
    }
    // These share one super block among mounts, so that read-only can only be an attribute of the mount.
    let shared = matches!(kind, "proc" | "sysfs" | "cgroup2" | "mqueue" | "tmpfs" | "devpts");
    if attributes & libc::MOUNT_ATTR_RDONLY != 0 && !shared {
        fsconfig_set_flag(fs, c"ro").map_err(|e| explained(e, "option ro"))?;
    }
    for (key, value) in &mount.options.data {
        match value {
            Some(value) => fsconfig_set_string(fs, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(fs, key.as_str()),
        }
        .map_err(|e| explained(e, &format!("option {key}")))?;
    }
    let label = mount.label.as_ref().filter(|_| !HOST_WIDE.contains(&kind));
    if let Some(label) = label.filter(|_| kind != MQUEUE && !mount.options.data.iter().any(|(key, _)| key == "context"))
    {
        fsconfig_set_string(fs, c"context", label.text()).map_err(|e| label_error(label, e))?;
    }
    fsconfig_create(fs).map_err(|e| explained(e, "create"))?;
    let attributes = MountAttrFlags::from_bits_retain((attributes & u64::from(u32::MAX)) as u32);
    let tree = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| explained(e, "mount"))?;
    if let Some(label) = label.filter(|_| kind == MQUEUE) {
        label_root(tree.as_fd(), label).map_err(|e| label_error(label, e))?;
    }
    Ok(tree)
}

/// The queues of an ipc namespace are there before they are mounted, and take no `context` any more: their directory gets the label as
/// a file does. A policy that gives them one kind of label for all says that it cannot.
fn label_root(tree: BorrowedFd<'_>, label: &Label) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(tree, c".", flags, Mode::empty())?;
    match fsetxattr(&root, c"security.selinux", label.text().as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        done => done,
    }
}

fn label_error(label: &Label, e: Errno) -> anyhow::Error {
    let asked = format!("linux.mountLabel {}", label.text());
    match e {
        Errno::INVAL => anyhow!("{asked}: {}", selinux::UNKNOWN),
        e => anyhow::Error::from(e).context(asked),
    }
}

/// What the kernel says about the last failure of an fsopen context, without its severity letter.
fn kernel_words(fs: BorrowedFd<'_>) -> Option<String> {
    let mut bytes = [0u8; 512];
    let n = rustix::io::read(fs, &mut bytes).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..n)?).trim().to_owned();
    Some(text.split_once(' ').map_or(text.clone(), |(_, words)| words.to_owned()))
}

/// The control groups: cgroup2, rooted at the container's group by its cgroup namespace. Without such a namespace the
/// container would be shown the host's groups as well, so then it is read-only.
fn cgroup(mount: &Mount, around: Surroundings) -> Result<OwnedFd> {
    let plain = Mount {
        target: mount.target.clone(),
        kind: "cgroup2".into(),
        source: "cgroup2".into(),
        options: Options { data: Vec::new(), ..mount.options.clone() },
        label: None,
        tree: None,
    };
    let mut attributes = mount.options.set;
    if !around.own_cgroup_namespace {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    match new_mount(&plain, "cgroup2", attributes) {
        Err(e) if is_not_permitted(&e) => {
            read_only_copy(Path::new("/sys/fs/cgroup")).context("cgroup2 is not permitted here, and the host's")
        }
        made => made,
    }
}

fn read_only_copy(path: &Path) -> Result<OwnedFd> {
    let tree = clone_tree(CWD, path, true).with_context(|| path.display().to_string())?;
    sys::mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, 0)
        .with_context(|| format!("{}: read-only", path.display()))?;
    Ok(tree)
}

fn is_not_permitted(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Errno>().is_some_and(|e| *e == Errno::PERM)
}

/// Puts a mount's options in force on a detached tree.
pub fn set_attributes(tree: BorrowedFd<'_>, options: &Options) -> Result<()> {
    if options.set | options.clear != 0 {
        sys::mount_setattr(tree, false, options.set, options.clear, 0).context("options")?;
    }
    if options.set_all | options.clear_all != 0 {
        sys::mount_setattr(tree, true, options.set_all, options.clear_all, 0).context("recursive options")?;
    }
    Ok(())
}

fn set_propagation(tree: BorrowedFd<'_>, options: &Options, around: Surroundings) -> Result<()> {
    for (flag, recursive) in &options.propagation {
        if *flag == libc::MS_PRIVATE && around.private && options.propagation.len() == 1 {
            continue;
        }
        sys::mount_setattr(tree, *recursive, 0, 0, *flag).context("propagation")?;
    }
    Ok(())
}

/// Refuses a mount inside /proc but for the files engines are known to replace: programs trust what they read there
/// (CVE-2019-16884), and so does this one. Whether the target is in a proc file system is asked of the target itself,
/// however its path leads there.
fn refuse_over_proc(target: BorrowedFd<'_>, path: &Path) -> Result<()> {
    // Reached without symbolic links, so these cannot be in /proc.
    if path.starts_with("/dev") || path.starts_with("/sys") {
        return Ok(());
    }
    let inside = fstatfs(target).context("statfs")?.f_type as i64 == PROC_SUPER_MAGIC;
    let allowed = |path: &Path| path == Path::new("/proc") || PROC_FILES.iter().any(|file| OsStr::new(file) == path);
    if (inside || path.starts_with("/proc")) && !allowed(path) {
        bail!("a mount inside /proc is refused: programs must be able to trust what is there");
    }
    Ok(())
}

fn is_proc_root(tree: BorrowedFd<'_>) -> bool {
    const PROC_ROOT_INO: u64 = 1;
    rustix::fs::statat(tree, c"", rustix::fs::AtFlags::EMPTY_PATH).is_ok_and(|stat| stat.st_ino == PROC_ROOT_INO)
}

/// An error as engines look for it in our messages: "no such file or directory", "permission denied".
pub fn text(error: Errno) -> String {
    match error {
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        e => e.to_string(),
    }
}
