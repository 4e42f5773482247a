//! What to do about a backend that does not work.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::io::Errno;

use super::trial::Trial;
use crate::backend::fuse;
use crate::backend::kernel::Refused;
use crate::state::DataRoot;

/// The remedy, in words; `None` where there is nothing to be done or it is not known.
pub fn of(trial: Trial, error: &anyhow::Error, root: &DataRoot) -> Option<String> {
    let (errno, step) = match error.downcast_ref::<Refused>() {
        Some(refused) => (Some(refused.parts().0), refused.parts().1.to_owned()),
        None => (error.downcast_ref::<Errno>().copied(), String::new()),
    };
    let number = |file: &str| fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match trial {
        Trial::Kernel if !rustix::process::geteuid().is_root() => {
            Some("an ordinary user's overlay is made in a user namespace: see the next line".to_owned())
        }
        Trial::Kernel | Trial::UserNamespace if errno == Some(Errno::NODEV) => {
            Some("the kernel has no OverlayFS: 'modprobe overlay' as root, if it is a module".to_owned())
        }
        Trial::UserNamespace if step == "a user namespace" => {
            let facts = Facts {
                max: number("/proc/sys/user/max_user_namespaces"),
                clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
                apparmor: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            };
            Some(user_namespaces(errno, facts))
        }
        Trial::UserNamespace if crate::child::is_unmapped(error) => Some(
            "newuidmap and newgidmap (package uidmap) must be set-user-ID root, and /etc/subuid and /etc/subgid have ranges that are \
             this user's alone (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME)"
                .to_owned(),
        ),
        Trial::Kernel | Trial::UserNamespace => {
            let apparmor = number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
            if trial == Trial::UserNamespace && apparmor && errno == Some(Errno::PERM) {
                return Some(user_namespaces(errno, Facts { apparmor: Some(1), ..Facts::default() }));
            }
            Some(format!(
                "the file system of {} may not be fit to hold changes (it is {}); another data directory: --root DIR or $SHEEP_DATA_DIR",
                root.path().display(),
                super::file_system(root.path())
            ))
        }
        Trial::Fuse if errno == Some(Errno::NOSYS) => {
            Some("Debian's package fuse-overlayfs; only --visible and --backend fuse use it".to_owned())
        }
        Trial::Fuse if fuse::access_to_device().is_err() => Some(match fs::metadata("/dev/fuse") {
            Ok(device) => format!(
                "/dev/fuse is closed to this user (mode {:o}); where users are to have FUSE it is 666: 'chmod 666 /dev/fuse' as root",
                device.permissions().mode() & 0o777
            ),
            Err(_) => "there is no /dev/fuse: 'modprobe fuse' as root".to_owned(),
        }),
        Trial::Fuse => Some("fusermount3 (Debian's package fuse3) must be there, and set-user-ID root".to_owned()),
        Trial::Btrfs => Some("only where the lower is a btrfs subvolume, and the data directory on the same file system".to_owned()),
        Trial::Reflink => Some("only on XFS, btrfs, bcachefs and other file systems that share blocks between files".to_owned()),
        Trial::Copy => Some(format!("is {} writable, and not full?", root.path().display())),
    }
}

/// What the kernel says about user namespaces.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    max: Option<u64>,
    clone: Option<u64>,
    apparmor: Option<u64>,
}

fn user_namespaces(errno: Option<Errno>, facts: Facts) -> String {
    let say = |text: &str| text.to_owned();
    match facts {
        Facts { clone: Some(0), .. } => {
            say("'sysctl kernel.unprivileged_userns_clone=1' as root allows user namespaces")
        }
        Facts { max: Some(0), .. } => say("'sysctl user.max_user_namespaces=10000' as root allows user namespaces"),
        _ if errno == Some(Errno::NOSPC) || errno == Some(Errno::USERS) => {
            say("there are too many user namespaces, or too deeply nested ones ('sysctl user.max_user_namespaces')")
        }
        Facts { apparmor: Some(1), .. } => {
            say("AppArmor restricts user namespaces: as root, a profile for this program with 'userns,', or 'sysctl \
             kernel.apparmor_restrict_unprivileged_userns=0'")
        }
        _ => say("something forbids user namespaces: a chroot, a container's seccomp filter, or a security module"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_remedy() {
        let none = Facts::default();
        let table = [
            (Errno::PERM, Facts { clone: Some(0), max: Some(5), ..none }, "unprivileged_userns_clone"),
            (Errno::NOSPC, Facts { max: Some(0), ..none }, "max_user_namespaces=10000"),
            (Errno::NOSPC, Facts { max: Some(9), ..none }, "too many"),
            (Errno::ACCESS, Facts { apparmor: Some(1), ..none }, "AppArmor"),
            (Errno::PERM, none, "a chroot"),
        ];
        for (errno, facts, want) in table {
            let remedy = user_namespaces(Some(errno), facts);
            assert!(remedy.contains(want), "{facts:?}: {remedy}");
        }
    }
}
