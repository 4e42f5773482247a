//! The container's root: its mounts, devices, masks, and the change into it.
//!
//! Everything is done from outside, through a descriptor of the root and look-ups the kernel keeps beneath it, before
//! pivot_root. What is mounted is made detached first and attached when it is as it should be, so that nothing is
//! visible half-made.

pub mod copyup;
pub mod dev;
pub mod mask;
pub mod mount;
pub mod options;
pub mod outside;
pub mod resolve;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::exit;
use crate::oci;
use crate::selinux::Label;
use crate::sys;
use mount::{Mount, Surroundings, attach, clone_tree};

/// The root as config.json asks for it, checked.
#[derive(Debug)]
pub struct Plan {
    path: PathBuf,
    readonly: bool,
    propagation: Propagation,
    mounts: Vec<Mount>,
    /// `None` where the host's /dev is bound in: it has everything already.
    nodes: Option<Vec<dev::Node>>,
    bind_nodes: bool,
    devices: Devices,
    own_cgroup_namespace: bool,
    masked: Vec<PathBuf>,
    read_only_paths: Vec<PathBuf>,
    /// Of the file systems that are made for it.
    label: Option<Label>,
}

/// Which device nodes work inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Those that mounts and the control group's filter let.
    AsAsked,
    /// None but the default ones: they are bound in, and nowhere else does a node mean a device. This is what a device filter of
    /// a control group does, without a control group; a program that may mount could undo it.
    OnlyDefault,
}

/// `linux.rootfsPropagation`: what the root is to be, and whether all under it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Propagation {
    flag: MountPropagationFlags,
    recursive: bool,
}

impl Propagation {
    /// What the host's mounts are made inside before anything is mounted; `None`: nothing.
    fn of_host_mounts(self) -> Option<MountPropagationFlags> {
        match self.flag {
            MountPropagationFlags::SHARED => None,
            MountPropagationFlags::DOWNSTREAM => Some(MountPropagationFlags::DOWNSTREAM),
            _ => Some(MountPropagationFlags::PRIVATE),
        }
    }
}

impl Plan {
    /// Checks the root, mounts, devices and masks of a configuration. Relative paths are relative to the working
    /// directory, which is the bundle.
    pub fn new(config: &oci::Config, linux: &oci::Linux, devices: Devices) -> Result<Plan> {
        let root = config.root.as_ref().ok_or_else(|| exit::usage("root: the config names no root directory"))?;
        let mut mounts = config.mounts.iter().map(plan_mount).collect::<Result<Vec<_>>>()?;
        let label = Label::new("linux.mountLabel", linux.mount_label.as_deref())?;
        for mount in mounts.iter_mut().filter(|mount| mount.options.bind.is_none()) {
            mount.label.clone_from(&label);
        }
        if devices == Devices::OnlyDefault {
            mounts.iter_mut().for_each(forbid_nodes);
        }
        let propagation = propagation(linux.rootfs_propagation.as_deref())?;
        let host_dev = mounts.iter().any(|m| m.target == Path::new("/dev") && m.options.bind.is_some());
        let paths = |what: &str, names: &[oci::Name]| {
            names
                .iter()
                .map(|name| resolve::check_absolute(what, name.as_path()).map(|()| name.as_path().to_owned()))
                .collect::<Result<Vec<_>>>()
        };
        let (masked, read_only_paths) =
            (paths("maskedPaths", &linux.masked_paths)?, paths("readonlyPaths", &linux.readonly_paths)?);
        let slave = matches!(propagation.flag, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::SHARED);
        outside::take(&config.mounts, &mut mounts, linux, slave)?;
        Ok(Plan {
            path: root.path.as_path().to_owned(),
            readonly: root.readonly,
            propagation,
            nodes: if host_dev && linux.devices.is_empty() { None } else { Some(dev::plan(&linux.devices)?) },
            mounts,
            devices,
            bind_nodes: devices == Devices::OnlyDefault || linux.namespace(oci::NamespaceKind::User).is_some(),
            own_cgroup_namespace: linux.namespace(oci::NamespaceKind::Cgroup).is_some(),
            masked,
            read_only_paths,
            label,
        })
    }
}

/// Device nodes in it mean no devices. Nobody can make nodes in a devpts.
fn forbid_nodes(mount: &mut Mount) {
    if mount.kind != "devpts" {
        mount.options.set |= libc::MOUNT_ATTR_NODEV;
        if mount.options.bind == Some(true) {
            mount.options.set_all |= libc::MOUNT_ATTR_NODEV;
        }
    }
}

fn plan_mount(entry: &oci::Mount) -> Result<Mount> {
    let target = entry.destination.as_path();
    resolve::check_absolute("mounts: destination", target)?;
    if target == Path::new("/") {
        return Err(exit::usage("mounts: destination /: the root itself is given by root.path"));
    }
    let options = options::parse(entry.kind.as_deref(), &entry.options)
        .with_context(|| format!("mounts: {}", target.display()))?;
    let kind = match &entry.kind {
        Some(kind) => kind.clone(),
        None if options.bind.is_some() => "bind".to_owned(),
        None => return Err(exit::usage(format!("mounts: {}: no type", target.display()))),
    };
    let source = entry.source.as_ref().map(|name| name.as_path().to_owned()).unwrap_or_default();
    if options.bind.is_some() && source.as_os_str().is_empty() {
        return Err(exit::usage(format!("mounts: {}: a bind mount needs a source", target.display())));
    }
    Ok(Mount { target: target.to_owned(), kind, source, options, label: None, tree: None })
}

fn propagation(word: Option<&str>) -> Result<Propagation> {
    let word = word.unwrap_or("rprivate");
    let (recursive, plain) = match word.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let flag = match plain {
        "private" => MountPropagationFlags::PRIVATE,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "shared" => MountPropagationFlags::SHARED,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return Err(exit::usage(format!("linux.rootfsPropagation: '{word}' is none"))),
    };
    Ok(Propagation { flag, recursive })
}

/// The root, from outside and not yet entered.
#[derive(Debug)]
pub struct Root {
    tree: OwnedFd,
    sources: Vec<Option<OwnedFd>>,
    /// Made read-only when nothing more is to be made in them.
    read_only_later: Vec<OwnedFd>,
}

/// First part, still as the user who called: takes hold of the root directory and of what will be bound into it.
pub fn take(plan: &Plan) -> Result<Root> {
    let shared = plan.propagation.flag == MountPropagationFlags::SHARED;
    if let Some(flag) = plan.propagation.of_host_mounts() {
        mount_change(c"/", flag | MountPropagationFlags::REC).context("propagation of the host's mounts")?;
    }
    let name = || format!("root directory {}", plan.path.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(&plan.path, flags, Mode::empty()).map_err(|e| anyhow::anyhow!("{}: {}", name(), mount::text(e)))?;
    if shared {
        make_parent_private(&plan.path).with_context(name)?;
    }
    let tree = clone_tree(dir.as_fd(), Path::new(""), true).with_context(name)?;
    if shared {
        sys::mount_setattr(tree.as_fd(), false, 0, 0, libc::MS_PRIVATE).with_context(name)?;
    }
    if plan.devices == Devices::OnlyDefault {
        sys::mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_NODEV, 0, 0).with_context(name)?;
    }
    // pivot_root wants a mount of this namespace: it goes on top of its own directory.
    attach(tree.as_fd(), dir.as_fd()).with_context(name)?;
    let sources = plan.mounts.iter().map(mount::open_source).collect::<Result<Vec<_>>>()?;
    Ok(Root { tree, sources, read_only_later: Vec::new() })
}

/// The mount that holds the root directory must not hand our mounts on to the host (`rootfsPropagation: shared`).
fn make_parent_private(path: &Path) -> Result<()> {
    let path = std::fs::canonicalize(path)?;
    for place in path.ancestors() {
        match mount_change(place, MountPropagationFlags::PRIVATE) {
            Err(Errno::INVAL) => {}
            done => return Ok(done?),
        }
    }
    Ok(())
}

/// Second part: mounts and devices. Runs with umask 0.
pub fn fill(plan: &Plan, root: &mut Root) -> Result<()> {
    let around = Surroundings {
        own_cgroup_namespace: plan.own_cgroup_namespace,
        private: plan.propagation.flag == MountPropagationFlags::PRIVATE,
    };
    for (entry, source) in plan.mounts.iter().zip(root.sources.iter_mut()) {
        root.read_only_later.extend(mount::mount(root.tree.as_fd(), entry, source.take(), around)?);
    }
    if let Some(nodes) = &plan.nodes {
        dev::make(root.tree.as_fd(), nodes, plan.bind_nodes)?;
    }
    Ok(())
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

/// Last part: hides what is to be hidden and makes this the root of the process and of its namespace. The host's tree is
/// gone from the namespace then.
pub fn enter(plan: &Plan, root: Root) -> Result<()> {
    for tree in &root.read_only_later {
        sys::mount_setattr(tree.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0).context("read-only tmpfs")?;
    }
    mask::read_only(root.as_fd(), &plan.read_only_paths)?;
    mask::mask(root.as_fd(), &plan.masked, plan.label.as_ref())?;
    if plan.readonly {
        sys::mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0).context("root.readonly")?;
    }
    let old =
        open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("the host's root")?;
    fchdir(&root).context("enter the root")?;
    pivot_root(c".", c".").context("pivot_root")?;
    // The host's root lies on the new one now; here it is meant.
    fchdir(&old).context("leave the host's root")?;
    if plan.propagation.flag == MountPropagationFlags::SHARED {
        // Else the host would lose what is unmounted here.
        mount_change(c".", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("leave the host's root")?;
    }
    unmount(c".", UnmountFlags::DETACH).context("leave the host's root")?;
    chdir(c"/").context("enter the root")?;
    if matches!(plan.propagation.flag, MountPropagationFlags::SHARED | MountPropagationFlags::UNBINDABLE) {
        let mut flags = plan.propagation.flag;
        flags.set(MountPropagationFlags::REC, plan.propagation.recursive);
        mount_change(c"/", flags).context("linux.rootfsPropagation")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_mounted_is_refused_before_anything_is_done() {
        let mount = |destination: &str, kind: Option<&str>, source: Option<&str>| oci::Mount {
            destination: destination.into(),
            kind: kind.map(str::to_owned),
            source: source.map(oci::Name::from),
            ..oci::Mount::default()
        };
        assert!(plan_mount(&mount("/a", Some("tmpfs"), None)).is_ok());
        let table = [
            (mount("a", Some("tmpfs"), None), "absolute"),
            (mount("/a/../b", Some("tmpfs"), None), "absolute"),
            (mount("/", Some("tmpfs"), None), "root itself"),
            (mount("/a", None, None), "no type"),
            (mount("/a", Some("bind"), None), "needs a source"),
        ];
        for (entry, want) in table {
            let error = format!("{:#}", plan_mount(&entry).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
        assert!(propagation(Some("rslave")).unwrap().recursive);
        assert!(!propagation(Some("private")).unwrap().recursive);
        assert!(propagation(Some("frob")).is_err());
    }
}
