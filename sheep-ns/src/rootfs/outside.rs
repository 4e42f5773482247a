//! Sources of bind mounts that are taken before the clone.
//!
//! The first process of a new user namespace has no power over the host's directories any more, and engines give the
//! directories of such a container to the namespace's own users, closed to everybody else.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::MountPropagationFlags;
use rustix::process::geteuid;

use super::mount::{Mount, clone_tree, source_error};
use crate::oci::{Linux, NamespaceKind};
use crate::sys;

/// Takes them where that makes a difference: root makes a container that is in a user namespace. `propagation` is what the
/// host's mounts are to be inside; `None`: as they are.
pub fn take(mounts: &mut [Mount], linux: &Linux, propagation: Option<MountPropagationFlags>) -> Result<()> {
    if !geteuid().is_root() || linux.namespace(NamespaceKind::User).is_none() {
        return Ok(());
    }
    for mount in mounts {
        let (Some(recursive), None) = (mount.options.bind, &mount.outside) else { continue };
        let tree = clone_tree(CWD, &mount.source, recursive).map_err(|errno| source_error(mount, errno))?;
        if let Some(flag) = propagation {
            sys::mount_setattr(tree.as_fd(), true, 0, 0, flag.bits().into())
                .with_context(|| format!("mount {}: propagation", mount.target.display()))?;
        }
        mount.outside = Some(tree);
    }
    Ok(())
}
