//! `features`: what this runtime can do, for engines that choose by it.
//!
//! Nothing is stated twice. What there is a table for comes from the table; for everything else a configuration that asks for it
//! is made, and shown to the code that refuses what is not done.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::print;
use crate::caps;
use crate::oci::features::{CgroupFeatures, Enabled, Features, LinuxFeatures, MountExtensions, SeccompFeatures};
use crate::oci::{self, Config, NamespaceKind};
use crate::refuse;
use crate::rootfs::options;
use crate::seccomp::words;

/// `features`
pub fn run() -> Result<u8> {
    let mut bytes = serde_json::to_vec_pretty(&features()).context("features")?;
    bytes.push(b'\n');
    print(&bytes)?;
    Ok(0)
}

/// What this program does.
pub fn features() -> Features {
    let linux = |key: &str, value: Value| Enabled { enabled: is_taken(json!({"linux": {key: value}})) };
    let process = |key: &str| Enabled { enabled: is_taken(json!({"process": {key: "x"}})) };
    let mut archs = words::ARCHES.map(|(_, name, ..)| name.to_owned()).to_vec();
    archs.sort_unstable();
    Features {
        oci_version_min: "1.0.0".to_owned(),
        oci_version_max: oci::VERSION.to_owned(),
        hooks: oci::Hooks::default().kinds().map(|(name, _)| name.to_owned()).to_vec(),
        mount_options: options::known(),
        linux: LinuxFeatures {
            namespaces: NamespaceKind::ALL.iter().map(|kind| kind.name().to_owned()).collect(),
            capabilities: caps::NAMES.map(str::to_owned).to_vec(),
            cgroup: CgroupFeatures { v1: false, v2: true, systemd: true, systemd_user: true, rdma: true },
            seccomp: SeccompFeatures {
                enabled: true,
                actions: words::ACTIONS.map(|(name, ..)| name.to_owned()).to_vec(),
                operators: words::OPERATORS.map(|(name, ..)| name.to_owned()).to_vec(),
                archs,
            },
            apparmor: process("apparmorProfile"),
            selinux: process("selinuxLabel"),
            intel_rdt: linux("intelRdt", json!({"closID": "x"})),
            mount_extensions: MountExtensions { idmap: Enabled { enabled: takes_idmapped_mounts() } },
            net_devices: linux("netDevices", json!({"eth0": {}})),
        },
    }
}

fn takes_idmapped_mounts() -> bool {
    let ids = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let mount =
        json!({"destination": "/x", "source": "/", "options": ["bind"], "uidMappings": ids, "gidMappings": ids});
    is_taken(json!({"mounts": [mount]}))
}

/// Whether a configuration that asks for this, and for nothing else, is one for this program.
fn is_taken(asked: Value) -> bool {
    let mut config = json!({"ociVersion": oci::VERSION, "process": {"cwd": "/", "args": ["x"]}, "root": {"path": "/"},
        "linux": {"namespaces": [{"type": "mount"}]}});
    merge(&mut config, asked);
    serde_json::from_value::<Config>(config).is_ok_and(|config| refuse::check(&config).is_ok())
}

/// Puts the keys of one object into another, and those of objects in it likewise.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_what_is_refused_or_not() {
        assert!(is_taken(json!({})));
        assert!(is_taken(json!({"process": {"noNewPrivileges": true}, "linux": {"maskedPaths": ["/x"]}})));
        assert!(!is_taken(json!({"vm": {}})));
        assert!(!is_taken(json!({"linux": {"namespaces": [{"type": "frob"}, {"type": "mount"}]}})));
        let features = features();
        assert_eq!(features.linux.namespaces.len(), NamespaceKind::ALL.len());
        for option in ["ro", "rro", "rbind", "tmpcopyup", "sync", "noatime", "rnorelatime"] {
            assert!(features.mount_options.iter().any(|known| known == option), "{option}");
        }
        for option in ["remount", "rrbind", "rdefaults", "size"] {
            assert!(features.mount_options.iter().all(|known| known != option), "{option}");
        }
    }
}
