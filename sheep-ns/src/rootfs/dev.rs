//! /dev: the device nodes every program expects, those of config.json, and the usual links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;

use super::mount::{attach, attach_in, clone_tree};
use super::resolve::{self, Make};
use crate::exit;
use crate::oci;
use crate::sys;

/// A device node, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    path: PathBuf,
    kind: FileType,
    number: u64,
    mode: u32,
    owner: (u32, u32),
}

const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
];

/// The nodes a container gets: those of config.json, then the default ones that it does not name.
pub fn plan(devices: &[oci::Device]) -> Result<Vec<Node>> {
    let mut nodes = devices.iter().map(node).collect::<Result<Vec<_>>>()?;
    for (path, major, minor) in DEFAULT_NODES {
        if !nodes.iter().any(|node| node.path == Path::new(path)) {
            let number = makedev(major, minor);
            nodes.push(Node { path: path.into(), kind: FileType::CharacterDevice, number, mode: 0o666, owner: (0, 0) });
        }
    }
    Ok(nodes)
}

fn node(device: &oci::Device) -> Result<Node> {
    let path = device.path.as_path();
    resolve::check_absolute("linux.devices: path", path)?;
    let wrong = |what: &str| exit::usage(format!("linux.devices: {}: {what}", path.display()));
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(wrong(&format!("unknown type '{other}'"))),
    };
    let part = |value: Option<i64>, name: &str| match value.map(u32::try_from) {
        Some(Ok(number)) => Ok(number),
        None if kind == FileType::Fifo => Ok(0),
        _ => Err(wrong(&format!("{name} is missing or out of range"))),
    };
    let number = makedev(part(device.major, "major")?, part(device.minor, "minor")?);
    let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
    Ok(Node { path: path.into(), kind, number, mode, owner: (device.uid.unwrap_or(0), device.gid.unwrap_or(0)) })
}

/// Makes the nodes and the links beneath `root`. With `bind` the host's are bound: in a user namespace no node can be
/// made, and on a mount without devices none would work. Runs with umask 0.
pub fn make(root: BorrowedFd<'_>, nodes: &[Node], bind: bool) -> Result<()> {
    let dev = resolve::target(root, Path::new("/dev"), Make::Dir)?;
    for node in nodes {
        make_node(root, dev.as_fd(), node, bind).with_context(|| format!("device {}", node.path.display()))?;
    }
    for (aim, name) in LINKS {
        match symlinkat(aim, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).with_context(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

fn make_node(root: BorrowedFd<'_>, dev: BorrowedFd<'_>, node: &Node, bind: bool) -> Result<()> {
    let in_dev = node.path.strip_prefix("/dev").ok().filter(|rest| rest.components().count() == 1);
    let elsewhere;
    let (dir, name) = match in_dev {
        Some(name) => (dev, name.as_os_str()),
        None => {
            let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else { bail!("not a path") };
            elsewhere = resolve::target(root, parent, Make::Dir)?;
            (elsewhere.as_fd(), name)
        }
    };
    if bind && node.kind != FileType::Fifo {
        return bind_node(dir, name, node);
    }
    match mknodat(dir, name, node.kind, Mode::from_raw_mode(node.mode), node.number) {
        Ok(()) if node.owner == (0, 0) => Ok(()),
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("owner")
        }
        Err(Errno::EXIST) => {
            let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(there.st_mode) == node.kind && there.st_rdev == node.number {
                return Ok(());
            }
            bail!("the image has something else there");
        }
        // A container that was not given the right to make nodes, and runs containers of its own.
        Err(Errno::PERM) if node.kind != FileType::Fifo => bind_node(dir, name, node),
        Err(e) => Err(e.into()),
    }
}

fn bind_node(dir: BorrowedFd<'_>, name: &OsStr, node: &Node) -> Result<()> {
    let tree = clone_tree(CWD, &node.path, false).context("the host's node")?;
    check_node(tree.as_fd(), node.kind, node.number).context("the host's node")?;
    keep_attributes(tree.as_fd())?;
    match mknodat(dir, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0) {
        Ok(()) => attach_in(tree.as_fd(), dir, name),
        Err(Errno::EXIST) => {
            let target = resolve::open_no_links(dir, Path::new(name), OFlags::PATH)?;
            attach(tree.as_fd(), target.as_fd())
        }
        Err(e) => return Err(e).context("make the file to bind on"),
    }
    .context("bind")
}

/// The host's /dev/null as a detached mount, checked to be that device (CVE-2025-31133).
pub fn null() -> Result<std::os::fd::OwnedFd> {
    let tree = clone_tree(CWD, Path::new("/dev/null"), false).context("/dev/null")?;
    check_node(tree.as_fd(), FileType::CharacterDevice, makedev(1, 3)).context("/dev/null")?;
    Ok(tree)
}

/// A read-only mount of a device still takes what is written to it; but nobody can change the mode or the owner of the
/// host's node through it.
fn keep_attributes(tree: BorrowedFd<'_>) -> Result<()> {
    sys::mount_setattr(tree, false, libc::MOUNT_ATTR_RDONLY, 0, 0).context("the host's node: read-only")
}

fn check_node(fd: BorrowedFd<'_>, kind: FileType, number: u64) -> Result<()> {
    let stat = statat(fd, c"", AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
        return Err(anyhow!("is not the device it should be"));
    }
    Ok(())
}

/// The slave end of a terminal as /dev/console.
pub fn console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<()> {
    let tree = clone_tree(slave, Path::new(""), false).context("/dev/console: the terminal")?;
    let target = resolve::target(root, Path::new("/dev/console"), Make::File)?;
    attach(tree.as_fd(), target.as_fd()).context("/dev/console: bind")
}

/// The ptmx of the devpts mounted in the container, opened: a new terminal's master end.
pub fn open_ptmx(root: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = resolve::open_no_links(root, Path::new("/dev/pts/ptmx"), flags)
        .context("terminal: /dev/pts/ptmx (does the config mount devpts at /dev/pts?)")?;
    let real = rustix::fs::fstatfs(&master).is_ok_and(|fs| fs.f_type == DEVPTS_SUPER_MAGIC);
    if !real {
        bail!("terminal: /dev/pts in the container is no devpts");
    }
    Ok(master)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, kind: &str, major: Option<i64>) -> oci::Device {
        oci::Device {
            kind: kind.into(),
            path: path.into(),
            major,
            minor: Some(3),
            file_mode: None,
            uid: None,
            gid: None,
        }
    }

    #[test]
    fn config_nodes_come_before_the_default_ones() {
        let nodes = plan(&[device("/dev/null", "c", Some(1)), device("/dev/net/x", "p", None)]).unwrap();
        assert_eq!(nodes.len(), 7);
        assert_eq!(nodes.first().map(|n| n.path.as_path()), Some(Path::new("/dev/null")));
        for bad in [
            device("/dev/a", "q", Some(1)),
            device("a", "c", Some(1)),
            device("/a", "c", None),
            device("/../a", "c", Some(1)),
        ] {
            assert!(plan(&[bad]).is_err());
        }
    }
}
