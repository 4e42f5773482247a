//! Capabilities: names and numbers, and putting a process's five sets in force.
//!
//! The sets are computed before the clone ([`CapSets::new`]); [`bound`] and [`apply`] then only make system calls, so
//! that they can run in the child.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::oci::Capabilities;

/// Every capability, at the index that is its number (capabilities(7), linux/capability.h).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container's root keeps by default: docker's set, which common images are written for.
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The number of a capability: `CAP_CHOWN`, in any case. `None` for a name this program does not know.
pub fn number(name: &str) -> Option<u32> {
    (0u32..).zip(NAMES).find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(number, _)| number)
}

/// The five sets of a process, one bit a capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapSets {
    /// The most any program can have.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept over execve with a matching file set.
    pub inheritable: u64,
    /// Can be put in force.
    pub permitted: u64,
    /// Kept over execve of an ordinary program.
    pub ambient: u64,
}

impl CapSets {
    /// The sets of config.json; without any, nothing is kept, as with crun and runc. The second value has the names
    /// that are not capabilities: they give nothing, and are for the log (newer engines name newer capabilities).
    pub fn new(capabilities: Option<&Capabilities>) -> (CapSets, Vec<String>) {
        let Some(capabilities) = capabilities else { return Default::default() };
        let mut unknown = Vec::new();
        let mut set = |names: &[String]| {
            names.iter().fold(0u64, |set, name| match number(name) {
                Some(number) => set | 1 << number,
                None => {
                    if !unknown.contains(name) {
                        unknown.push(name.clone());
                    }
                    set
                }
            })
        };
        let sets = CapSets {
            bounding: set(&capabilities.bounding),
            effective: set(&capabilities.effective),
            inheritable: set(&capabilities.inheritable),
            permitted: set(&capabilities.permitted),
            ambient: set(&capabilities.ambient),
        };
        (sets, unknown)
    }

    /// Whether any set has something that execve does not give by itself to a program of this user; if not, and the user
    /// is not root, `PR_SET_KEEPCAPS` is not needed.
    pub fn any(&self) -> bool {
        self.effective | self.inheritable | self.permitted | self.ambient != 0
    }
}

/// Cuts the bounding set of this thread down. To be called while the thread still has CAP_SETPCAP: before the change of
/// user. Allocates nothing.
pub fn bound(sets: &CapSets) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let bit = 1 << number;
        if sets.bounding & bit != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
            Ok(()) => {}
            // Past the last capability of this kernel.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Puts permitted, effective, inheritable and ambient in force for this thread. To be called after the change of user,
/// which must have been made with `PR_SET_KEEPCAPS`. EPERM: a set asks for what this process itself does not have.
/// Allocates nothing.
pub fn apply(sets: &CapSets) -> Result<(), Errno> {
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(sets.effective),
            permitted: CapabilitySet::from_bits_retain(sets.permitted),
            inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
        },
    )?;
    clear_ambient_capability_set()?;
    // The kernel takes into the ambient set only what is permitted and inheritable; anything else is left out without
    // an error, as crun does: engines list ambient capabilities without the inheritable ones.
    let raise = sets.ambient & sets.permitted & sets.inheritable;
    for number in 0..u64::BITS {
        let bit = 1 << number;
        if raise & bit != 0 {
            configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(bit), true)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (name, want) in [
            ("CAP_CHOWN", Some(0)),
            ("CAP_MKNOD", Some(27)),
            ("cap_kill", Some(5)),
            ("CAP_CHECKPOINT_RESTORE", Some(40)),
            ("CHOWN", None),
            ("CAP_NOSUCH", None),
            ("", None),
        ] {
            assert_eq!(number(name), want, "{name}");
        }
        // rustix takes its numbers from the kernel's headers.
        for (index, name) in NAMES.iter().enumerate() {
            let set = CapabilitySet::from_name(name.trim_start_matches("CAP_")).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(set.bits(), 1 << index, "{name}");
        }
    }

    #[test]
    fn sets_from_the_configuration() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let capabilities = Capabilities {
            bounding: names(&DEFAULT),
            effective: names(&["CAP_CHOWN", "CAP_BPF", "CAP_FLY"]),
            permitted: names(&["CAP_CHOWN", "CAP_FLY"]),
            ..Capabilities::default()
        };
        let (sets, unknown) = CapSets::new(Some(&capabilities));
        // 0xa80425fb is CapBnd of a container that docker starts.
        let want = CapSets { bounding: 0xa804_25fb, effective: 1 | 1 << 39, permitted: 1, ..CapSets::default() };
        assert_eq!((sets, unknown), (want, names(&["CAP_FLY"])));
        assert_eq!(CapSets::new(None), (CapSets::default(), Vec::new()));
    }
}
