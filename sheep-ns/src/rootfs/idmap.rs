//! Idmapped mounts: the owners in a bind mount are shown through a user namespace's maps, and nothing is changed on the
//! disk (mount_setattr(2)).
//!
//! It takes privilege over the file system, which a process in a new user namespace has not. So the trees are made before
//! the clone; the container's first process attaches them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, geteuid, waitid};

use super::mount::{Mount, clone_tree, text};
use crate::exit;
use crate::oci::{self, IdMapping, NamespaceKind};
use crate::sys::{self, Side};
use crate::userns;

/// The source of each mount that is to be idmapped, as a detached tree whose owners are mapped.
pub fn trees(entries: &[oci::Mount], mounts: &mut [Mount], linux: &oci::Linux) -> Result<()> {
    for (entry, mount) in entries.iter().zip(mounts) {
        let mapped = !entry.uid_mappings.is_empty() || !entry.gid_mappings.is_empty();
        let recursive = match mount.options.idmap {
            Some(recursive) => recursive,
            None if mapped => false,
            None => continue,
        };
        let name = || format!("mounts: {}: idmapped mount", mount.target.display());
        let Some(all) = mount.options.bind else {
            return Err(exit::usage(format!("{}: only a bind mount can be one", name())));
        };
        const NOT_PERMITTED: &str =
            "not permitted; it takes root on the host, and a source that is not idmapped already";
        if !geteuid().is_root() {
            return Err(anyhow!("{}: {NOT_PERMITTED}", name()));
        }
        let users = users(entry, linux).with_context(name)?;
        let tree = clone_tree(CWD, &mount.source, all)
            .map_err(|e| anyhow!("{}: source {}: {}", name(), mount.source.display(), text(e)))?;
        // What is mounted on the host's source later is not to appear in it.
        sys::mount_setattr(tree.as_fd(), true, 0, 0, libc::MS_PRIVATE).with_context(name)?;
        sys::mount_idmap(tree.as_fd(), recursive, users.as_fd()).map_err(|error| {
            let why = match Errno::from_io_error(&error) {
                Some(Errno::PERM) => {
                    "not permitted; it takes root on the host, and a source that is not idmapped already"
                }
                Some(Errno::INVAL) => "its file system, or one mounted under it, has none",
                _ => return anyhow::Error::from(error).context(name()),
            };
            anyhow!("{}: {why}", name())
        })?;
        mount.outside = Some(tree);
    }
    Ok(())
}

/// The user namespace whose maps are to be used: the mount's own maps, else the container's namespace.
fn users(entry: &oci::Mount, linux: &oci::Linux) -> Result<OwnedFd> {
    let (uids, gids) = (&entry.uid_mappings, &entry.gid_mappings);
    if !uids.is_empty() || !gids.is_empty() {
        if uids.is_empty() || gids.is_empty() {
            return Err(exit::usage("needs both uidMappings and gidMappings"));
        }
        return namespace_of(uids, gids);
    }
    match linux.namespace(NamespaceKind::User) {
        None => Err(exit::usage("needs uidMappings and gidMappings, for the container has no user namespace")),
        Some(user) => match user.path.as_ref().map(|path| path.as_path()).filter(|path| *path != Path::new("")) {
            Some(path) => open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
                .with_context(|| format!("linux.namespaces: {}", path.display())),
            None => namespace_of(&linux.uid_mappings, &linux.gid_mappings),
        },
    }
}

/// A new user namespace with those maps. It takes a process to make one, which is gone when this returns.
fn namespace_of(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let (waits, holds) = pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
    let side = sys::clone3(libc::CLONE_NEWUSER as u64, None).context("new user namespace")?;
    let (pid, pidfd) = match side {
        Side::Child => {
            drop(holds);
            // Until the other side has what it wants, or has died.
            let _ = read(&waits, &mut [0u8; 1]);
            sys::exit_now(0)
        }
        Side::Parent(pid, pidfd) => (pid, pidfd),
    };
    let number = pid.as_raw_nonzero();
    let made = userns::write_map(&format!("/proc/{number}/uid_map"), &userns::lines(uids))
        .and_then(|()| userns::write_map(&format!("/proc/{number}/gid_map"), &userns::lines(gids)))
        .and_then(|()| {
            let file = format!("/proc/{number}/ns/user");
            open(&*file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(file)
        });
    drop(holds);
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
    made
}
