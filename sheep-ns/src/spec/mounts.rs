//! What is mounted in a container by default, and volumes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::Result;

use crate::exit;
use crate::oci::{Mount, Name, NamespaceKind};

use super::Isolate;

/// Paths that show or change the host and are hidden, as docker hides them.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that change the host and are read-only, as with docker.
pub const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A mount that is not a bind.
fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: Some(kind.to_owned()),
        source: Some(source.into()),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn bind(source: Name, destination: Name, options: &[&str]) -> Mount {
    Mount {
        destination,
        kind: Some("bind".to_owned()),
        source: Some(source),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

/// The mounts every container has. Unprivileged (`rootless`), group 5 (tty) is not mapped, and sysfs can be mounted
/// only for a network namespace of one's own (`own_network`): else the host's is bound.
pub fn defaults(rootless: bool, own_network: bool) -> Vec<Mount> {
    let quiet = ["nosuid", "noexec", "nodev"];
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !rootless {
        pts.push("gid=5");
    }
    let sys = if rootless && !own_network {
        bind("/sys".into(), "/sys".into(), &["rbind", "rslave", "nosuid", "noexec", "nodev", "rro"])
    } else {
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"])
    };
    let mut mounts = vec![
        mount("proc", "proc", "/proc", &quiet),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "devpts", "/dev/pts", &pts),
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("mqueue", "mqueue", "/dev/mqueue", &quiet),
        sys,
    ];
    if !rootless || own_network {
        mounts.push(mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    mounts
}

/// Without namespaces of their own an unprivileged user can mount no proc and no message queues: the host's processes are
/// bound in, and queues left out.
pub fn without_namespaces(mounts: &mut Vec<Mount>, isolate: &Isolate) {
    if isolate.shares(NamespaceKind::Ipc) {
        mounts.retain(|mount| mount.kind.as_deref() != Some("mqueue"));
    }
    if isolate.shares(NamespaceKind::Pid) {
        for mount in mounts.iter_mut().filter(|mount| mount.kind.as_deref() == Some("proc")) {
            *mount = bind("/proc".into(), "/proc".into(), &["rbind", "rprivate", "nosuid", "noexec", "nodev"]);
        }
    }
}

/// `-v SRC:DST[:ro|rw]` as a bind mount. Whether SRC exists is for the caller to see. Errors with usage.
pub fn volume(text: &OsStr) -> Result<Mount> {
    let wrong = |why: &str| exit::usage(format!("--volume {}: {why}", text.display()));
    let fields: Vec<&[u8]> = text.as_bytes().split(|b| *b == b':').collect();
    let (source, destination, read_only) = match fields[..] {
        [source, destination] | [source, destination, b"rw"] => (source, destination, false),
        [source, destination, b"ro"] => (source, destination, true),
        _ => return Err(wrong("not of the form SRC:DST[:ro]; a ':' in a path cannot be written here")),
    };
    let name = |bytes: &[u8]| Name(OsString::from_vec(bytes.to_vec()));
    let (source, destination) = (name(source), name(destination));
    if !source.as_path().is_absolute() {
        return Err(wrong("SRC is not an absolute path"));
    }
    if !destination.as_path().is_absolute() || destination.as_path().file_name().is_none() {
        return Err(wrong("DST is not an absolute path of something in the container"));
    }
    let options: &[&str] = if read_only { &["rbind", "rprivate", "rro"] } else { &["rbind", "rprivate", "rw"] };
    Ok(bind(source, destination, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        for (text, want) in [
            ("/a:/b", r#"{"destination":"/b","type":"bind","source":"/a","options":["rbind","rprivate","rw"]}"#),
            ("/a b:/b:rw", r#"{"destination":"/b","type":"bind","source":"/a b","options":["rbind","rprivate","rw"]}"#),
            (
                "/a:/b/c:ro",
                r#"{"destination":"/b/c","type":"bind","source":"/a","options":["rbind","rprivate","rro"]}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&volume(OsStr::new(text)).unwrap()).unwrap(), want);
        }
        assert_eq!(volume(OsStr::from_bytes(b"/\xff:/x")).unwrap().source.unwrap().as_bytes(), b"/\xff");
        for bad in ["", "/a", "a:/b", "/a:b", "/a:/", "/a:/b:zz", "/a:/b:ro:x", ":/b", "/a:", "/a:/b/.."] {
            let error = volume(OsStr::new(bad)).unwrap_err();
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage), "{bad}");
        }
    }

    #[test]
    fn the_unprivileged_have_no_tty_group_and_sysfs_only_with_a_network_of_their_own() {
        let find = |mounts: &[Mount], path: &str| {
            let found = mounts.iter().find(|mount| mount.destination.as_bytes() == path.as_bytes());
            serde_json::to_string(&found).unwrap()
        };
        let pts = r#"{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"]}"#;
        assert_eq!(find(&defaults(false, true), "/dev/pts"), pts);
        assert!(!find(&defaults(true, true), "/dev/pts").contains("gid"));
        assert!(find(&defaults(true, true), "/sys").contains("sysfs"));
        assert!(find(&defaults(true, false), "/sys").contains("rbind"));
        assert_eq!(find(&defaults(true, false), "/sys/fs/cgroup"), "null");
        let shm = r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777","size=65536k"]}"#;
        assert_eq!(find(&defaults(false, false), "/dev/shm"), shm);
    }
}
