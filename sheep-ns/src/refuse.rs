//! What a config.json may ask that this runtime does not do: refused by name, before anything is done. A setting that
//! was silently left out would be a container less confined than its author believes.

use anyhow::Result;

use crate::exit;
use crate::hooks;
use crate::init::plan::sysctl_path;
use crate::oci::{Config, Linux, NO_ID, NamespaceKind, Process};

/// Checks a whole configuration. Pure.
pub fn check(config: &Config) -> Result<()> {
    if let Some(hooks) = &config.hooks {
        hooks::check(hooks)?;
    }
    if config.vm.is_some() {
        return Err(not_done("vm"));
    }
    if let Some(process) = &config.process {
        check_process(process)?;
    }
    let nothing = Linux::default();
    let linux = config.linux.as_ref().unwrap_or(&nothing);
    check_linux(linux)?;
    check_namespaces(config, linux)
}

/// Checks a process, of a container or one that joins it.
pub fn check_process(process: &Process) -> Result<()> {
    check_line("process.apparmorProfile", process.apparmor_profile.as_deref())?;
    check_line("process.selinuxLabel", process.selinux_label.as_deref())?;
    check_id("process.user.uid", process.user.uid)?;
    check_id("process.user.gid", process.user.gid)?;
    process.user.additional_gids.iter().try_for_each(|gid| check_id("process.user.additionalGids", *gid))
}

fn check_id(what: &str, id: u32) -> Result<()> {
    if id == NO_ID {
        return Err(exit::usage(format!("{what}: {id} is no id")));
    }
    Ok(())
}

/// Goes to the kernel as one line.
fn check_line(what: &str, value: Option<&str>) -> Result<()> {
    match value {
        Some(value) if value.contains(['\0', '\n']) => Err(exit::usage(format!("{what} {value:?}: not one line"))),
        _ => Ok(()),
    }
}

fn check_linux(linux: &Linux) -> Result<()> {
    check_line("linux.mountLabel", linux.mount_label.as_deref())?;
    if linux.intel_rdt.is_some() {
        return Err(not_done("linux.intelRdt"));
    }
    for device in &linux.devices {
        check_id("linux.devices: uid", device.uid.unwrap_or(0))?;
        check_id("linux.devices: gid", device.gid.unwrap_or(0))?;
    }
    Ok(())
}

fn check_namespaces(config: &Config, linux: &Linux) -> Result<()> {
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        if linux.namespaces.iter().take(index).any(|earlier| earlier.kind == namespace.kind) {
            return Err(exit::usage(format!("linux.namespaces: '{}' stands there twice", namespace.kind.name())));
        }
    }
    match linux.namespace(NamespaceKind::Mount) {
        Some(mount) if mount.path.is_none() => {}
        _ => return Err(exit::usage("linux.namespaces: a container needs a new mount namespace")),
    }
    let has = |kind| linux.namespace(kind).is_some();
    if config.hostname.as_ref().is_some_and(|name| !name.is_empty()) && !has(NamespaceKind::Uts) {
        return Err(exit::usage("hostname: needs a uts namespace in linux.namespaces; it would rename the host"));
    }
    if config.domainname.as_ref().is_some_and(|name| !name.is_empty()) && !has(NamespaceKind::Uts) {
        return Err(exit::usage("domainname: needs a uts namespace in linux.namespaces; it would rename the host"));
    }
    for key in linux.sysctl.keys() {
        check_sysctl(key, linux)?;
    }
    Ok(())
}

/// Only parameters of a namespace the container has for itself; any other would be the host's.
fn check_sysctl(key: &str, linux: &Linux) -> Result<()> {
    const IPC: [&str; 6] =
        ["kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax"];
    const IPC_TOO: [&str; 3] = ["kernel/shmmni", "kernel/shm_rmid_forced", "kernel/msg_next_id"];
    let path = sysctl_path(key);
    let clean = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let path = path.to_string_lossy();
    let kind = match &*path {
        path if IPC.contains(&path) || IPC_TOO.contains(&path) || path.starts_with("fs/mqueue/") => NamespaceKind::Ipc,
        path if path.starts_with("net/") => NamespaceKind::Network,
        "kernel/domainname" => NamespaceKind::Uts,
        _ => {
            return Err(exit::usage(format!(
                "linux.sysctl: '{key}' is no parameter of a namespace; it would change the host"
            )));
        }
    };
    if !clean {
        return Err(exit::usage(format!("linux.sysctl: '{key}' is no parameter's name")));
    }
    if linux.namespace(kind).is_none() {
        let kind = kind.name();
        return Err(exit::usage(format!("linux.sysctl: '{key}' needs a {kind} namespace; it would change the host")));
    }
    Ok(())
}

fn not_done(name: &str) -> anyhow::Error {
    exit::usage(format!("{name}: not supported; take it out of config.json to run without it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A config that is fine, with `patch` put at the JSON pointer `at`.
    fn config(at: &str, patch: Value) -> Config {
        let mut value = json!({"ociVersion": "1.2.0", "process": {"cwd": "/", "args": ["x"]}, "root": {"path": "r"},
            "mounts": [{"destination": "/a"}], "hostname": "h", "hooks": {},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}], "sysctl": {}}});
        let (parent, key) = at.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), patch);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        check(&config("/hooks/prestart", json!([]))).unwrap();
        check(&config("/linux/namespaces", json!([{"type": "mount"}, {"type": "uts", "path": "/x"}]))).unwrap();
        let table = [
            ("/hooks/prestart", json!([{"path": "x"}]), "hooks.prestart"),
            ("/hooks/poststop", json!([{"path": "/x", "timeout": 0}]), "hooks.poststop"),
            ("/vm", json!({}), "vm"),
            ("/process/apparmorProfile", json!("p\n"), "process.apparmorProfile \"p\\n\": not one line"),
            ("/process/selinuxLabel", json!("l\0"), "process.selinuxLabel \"l\\0\": not one line"),
            ("/linux/mountLabel", json!("\nl"), "linux.mountLabel \"\\nl\": not one line"),
            ("/linux/intelRdt", json!({}), "linux.intelRdt"),
            ("/linux/namespaces", json!([{"type": "uts"}]), "new mount namespace"),
            ("/linux/namespaces", json!([{"type": "mount", "path": "/x"}, {"type": "uts"}]), "new mount namespace"),
            ("/linux/namespaces", json!([{"type": "mount"}]), "hostname"),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "uts"}, {"type": "uts"}]),
                "'uts' stands there twice",
            ),
            ("/linux/sysctl/kernel.panic", json!("1"), "'kernel.panic'"),
            ("/linux/sysctl/net.ipv4.ip_forward", json!("1"), "needs a network namespace"),
            ("/linux/sysctl/kernel.shmmax", json!("1"), "needs a ipc namespace"),
            ("/linux/sysctl/net.ipv4.ip_forward", json!("1"), "'net.ipv4.ip_forward'"),
        ];
        for (at, patch, want) in table {
            let error = check(&config(at, patch)).unwrap_err();
            assert!(error.to_string().contains(want), "{at}: {error}");
            assert_eq!(exit::kind(&error), Some(exit::Kind::Usage));
        }
    }
}
