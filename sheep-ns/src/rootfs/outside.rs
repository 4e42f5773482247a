//! Bind mounts whose sources are taken hold of before the clone, by who has privilege over them: a process in a new user
//! namespace can neither change what the host's mounts forbid or record, nor map owners, nor reach what is not its own.
//! The container's first process attaches them.
//!
//! An idmapped mount shows the owners of its source through a user namespace's maps; nothing is changed on the disk
//! (mount_setattr(2)).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::geteuid;

use super::mount::{Mount, clone_tree, set_attributes, source_error};
use crate::exit;
use crate::oci::{self, IdMapping, NamespaceKind};
use crate::process;
use crate::sys::{self, Side};
use crate::userns;

const NOT_PERMITTED: &str = "not permitted; it takes root on the host, and a source that is not idmapped already";

/// Takes hold of the sources of what is to be idmapped, and for a container in a user namespace, of all binds. `slave`:
/// what is mounted on the host's source later is to appear in the container, as its root's propagation has it.
pub fn take(entries: &[oci::Mount], mounts: &mut [Mount], linux: &oci::Linux, slave: bool) -> Result<()> {
    let in_users = linux.namespace(NamespaceKind::User).is_some() && geteuid().is_root();
    for (entry, mount) in entries.iter().zip(mounts) {
        let has_maps = !entry.uid_mappings.is_empty() || !entry.gid_mappings.is_empty();
        let idmap = mount.options.idmap.or(has_maps.then_some(false));
        let Some(all) = mount.options.bind else {
            if idmap.is_some() {
                return Err(exit::usage(format!("{}: only a bind mount can be one", name(mount))));
            }
            continue;
        };
        if idmap.is_none() && !in_users {
            continue;
        }
        if !geteuid().is_root() {
            bail!("{}: {NOT_PERMITTED}", name(mount));
        }
        let tree = clone_tree(CWD, &mount.source, all).map_err(|errno| source_error(mount, errno))?;
        let lets_in = slave || mount.options.propagation.iter().any(|(flag, _)| *flag != libc::MS_PRIVATE);
        let propagation = if lets_in { libc::MS_SLAVE } else { libc::MS_PRIVATE };
        let context = || format!("mount {}", mount.target.display());
        sys::mount_setattr(tree.as_fd(), true, 0, 0, propagation).with_context(context)?;
        set_attributes(tree.as_fd(), &mount.options).with_context(context)?;
        if let Some(recursive) = idmap {
            map_owners(&tree, recursive, entry, linux).with_context(|| name(mount))?;
        }
        mount.tree = Some(tree);
    }
    Ok(())
}

fn name(mount: &Mount) -> String {
    format!("mounts: {}: idmapped mount", mount.target.display())
}

fn map_owners(tree: &OwnedFd, recursive: bool, entry: &oci::Mount, linux: &oci::Linux) -> Result<()> {
    let users = users(entry, linux)?;
    sys::mount_idmap(tree.as_fd(), recursive, users.as_fd()).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::PERM) => anyhow!(NOT_PERMITTED),
        Some(Errno::INVAL) => anyhow!("its file system, or one mounted under it, has none"),
        _ => error.into(),
    })
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
    // It has done what it was for, however it ended.
    let _ = process::wait(&pidfd);
    made
}
