//! User namespaces: which ids are mapped, and who may write the maps.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, getegid, geteuid};

use crate::exit;
use crate::oci::{IdMapping, Linux, NamespaceKind};

/// The maps of a new user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maps {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
    writer: Writer,
}

/// Who writes the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The new process itself: an unprivileged user may map itself, after giving up setgroups.
    Child,
    /// Its parent, which has privilege over the ids.
    Parent,
    /// newuidmap and newgidmap, for the ranges of /etc/subuid and /etc/subgid.
    Helpers,
}

impl Maps {
    /// The maps that config.json asks for; `None` without a new user namespace. Errors: no map for one, or maps where
    /// there is no new namespace.
    pub fn plan(linux: &Linux) -> Result<Option<Maps>> {
        let namespace = linux.namespace(NamespaceKind::User);
        let (uids, gids) = (linux.uid_mappings.clone(), linux.gid_mappings.clone());
        match namespace {
            Some(user) if user.path.is_none() => {}
            _ if uids.is_empty() && gids.is_empty() => return Ok(None),
            Some(_) => return Ok(None),
            None => return Err(exit::usage("linux.uidMappings: there is no user namespace in linux.namespaces")),
        }
        if uids.is_empty() || gids.is_empty() {
            return Err(exit::usage("linux.uidMappings and gidMappings: a new user namespace needs both"));
        }
        let writer = choose(&uids, &gids, geteuid().as_raw(), getegid().as_raw());
        Ok(Some(Maps { uids, gids, writer }))
    }

    /// Who writes them.
    pub fn writer(&self) -> Writer {
        self.writer
    }

    /// Whether an unprivileged user's container is mapped, with that user's ids.
    pub fn is_of_a_user(&self) -> bool {
        self.writer != Writer::Parent
    }

    /// Whether uid 0 and gid 0 exist inside.
    pub fn has_root(&self) -> bool {
        [&self.uids, &self.gids].iter().all(|ids| ids.iter().any(|range| range.container_id == 0 && range.size > 0))
    }

    /// Whether setgroups(2) is denied inside.
    pub fn denies_setgroups(&self) -> bool {
        self.writer == Writer::Child
    }

    /// Writes the maps of this very process ([`Writer::Child`]).
    pub fn write_own(&self) -> Result<()> {
        write_map("/proc/self/setgroups", "deny")?;
        write_map("/proc/self/uid_map", &lines(&self.uids))?;
        write_map("/proc/self/gid_map", &lines(&self.gids))
    }

    /// Writes the maps of `pid`, a child that waits for them.
    pub fn write_for(&self, pid: Pid) -> Result<()> {
        let pid = pid.as_raw_nonzero();
        match self.writer {
            Writer::Child => Ok(()),
            Writer::Parent => {
                write_map(&format!("/proc/{pid}/uid_map"), &lines(&self.uids))?;
                write_map(&format!("/proc/{pid}/gid_map"), &lines(&self.gids))
            }
            Writer::Helpers => {
                helper("newuidmap", pid.get(), &self.uids)?;
                helper("newgidmap", pid.get(), &self.gids)
            }
        }
    }
}

fn choose(uids: &[IdMapping], gids: &[IdMapping], euid: u32, egid: u32) -> Writer {
    if euid == 0 {
        return Writer::Parent;
    }
    let only_self = |ids: &[IdMapping], own| matches!(ids, [one] if one.host_id == own && one.size == 1);
    if only_self(uids, euid) && only_self(gids, egid) { Writer::Child } else { Writer::Helpers }
}

/// Maps as /proc/PID/uid_map takes them.
pub fn lines(ids: &[IdMapping]) -> String {
    ids.iter().fold(String::new(), |mut text, range| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", range.container_id, range.host_id, range.size);
        text
    })
}

/// Writes a map, in one go as the kernel wants it.
pub fn write_map(file: &str, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {:?} to {file}", text.trim_end()))
}

fn helper(program: &str, pid: i32, ids: &[IdMapping]) -> Result<()> {
    let numbers = ids.iter().flat_map(|range| [range.container_id, range.host_id, range.size]).map(|n| n.to_string());
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} (package uidmap) maps several ids for an unprivileged user"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_the_maps() {
        let one = |container_id, host_id, size| vec![IdMapping { container_id, host_id, size }];
        let two = [one(0, 1000, 1), one(1, 100_000, 65536)].concat();
        let table = [
            (one(0, 1000, 1), one(0, 100, 1), 1000, 100, Writer::Child),
            (one(7, 1000, 1), one(7, 100, 1), 1000, 100, Writer::Child),
            (one(0, 1001, 1), one(0, 100, 1), 1000, 100, Writer::Helpers),
            (two.clone(), two, 1000, 1000, Writer::Helpers),
            (one(0, 100_000, 65536), one(0, 100_000, 65536), 0, 0, Writer::Parent),
        ];
        for (uids, gids, euid, egid, want) in table {
            assert_eq!(choose(&uids, &gids, euid, egid), want, "{uids:?}");
        }
        assert_eq!(lines(&one(0, 1000, 1)), "0 1000 1\n");
    }
}
