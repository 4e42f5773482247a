//! What a runtime can do, as `features` prints it.

use serde::Serialize;

/// <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/features.md>
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// The oldest version of the specification that is taken.
    pub oci_version_min: String,
    /// The newest one.
    pub oci_version_max: String,
    /// Hooks that are called.
    pub hooks: Vec<String>,
    /// Mount options that are known; others go to the file system.
    pub mount_options: Vec<String>,
    /// What is Linux's own.
    pub linux: LinuxFeatures,
}

/// <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/features-linux.md>
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinuxFeatures {
    /// Kinds of namespaces.
    pub namespaces: Vec<String>,
    /// Capabilities by name.
    pub capabilities: Vec<String>,
    /// Control groups.
    pub cgroup: CgroupFeatures,
    /// System call filters.
    pub seccomp: SeccompFeatures,
    /// AppArmor profiles.
    pub apparmor: Enabled,
    /// SELinux labels.
    pub selinux: Enabled,
    /// Cache and memory bandwidth (resctrl).
    pub intel_rdt: Enabled,
    /// Mounts beyond mount(2).
    pub mount_extensions: MountExtensions,
    /// Network devices that are moved inside (specification 1.3).
    pub net_devices: Enabled,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Enabled {
    /// It is.
    pub enabled: bool,
}

/// Who makes control groups, and in which version of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupFeatures {
    /// Version 1.
    pub v1: bool,
    /// Version 2.
    pub v2: bool,
    /// By systemd.
    pub systemd: bool,
    /// By a user's systemd.
    pub systemd_user: bool,
    /// Limits of remote direct memory access.
    pub rdma: bool,
}

/// System call filters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeccompFeatures {
    /// Filters are installed.
    pub enabled: bool,
    /// What a filter can do with a call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
    /// How an argument is compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<String>,
    /// Machine architectures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub archs: Vec<String>,
}

/// Mounts beyond mount(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MountExtensions {
    /// Mounts that show other owners.
    pub idmap: Enabled,
}
