//! User namespaces: which ids an ordinary user's namespace maps, and who writes the maps (user_namespaces(7)).
//!
//! The user is inside who he is outside: programs see the same user name, and files he makes are his. Where
//! /etc/subuid and /etc/subgid give him more ids and newuidmap(1) is there to map them, these fill the other numbers from 0 on.

use std::env;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use rustix::process::{getegid, geteuid};

use crate::doc::UserNamespace;

/// A range of ids: the first inside, the first outside, how many.
type Range = [u32; 3];

impl UserNamespace {
    /// The namespace that this process's user gets: himself, and his subordinate ids where he has some that can be mapped.
    pub fn of_this_user() -> Self {
        match subordinate_ids() {
            Some((uids, gids)) => {
                UserNamespace { uids: fill(geteuid().as_raw(), &uids), gids: fill(getegid().as_raw(), &gids) }
            }
            None => Self::only_self(),
        }
    }

    /// The namespace in which this process's user is root, and his subordinate ids are the others from 1 on: as podman, buildah
    /// and umoci have it. `None` where he has none that can be mapped.
    pub fn as_root() -> Option<Self> {
        let (uids, gids) = subordinate_ids()?;
        Some(UserNamespace { uids: below(geteuid().as_raw(), &uids), gids: below(getegid().as_raw(), &gids) })
    }

    /// The namespace of this process's user without subordinate ids.
    pub fn only_self() -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        UserNamespace { uids: vec![[uid, uid, 1]], gids: vec![[gid, gid, 1]] }
    }

    /// Whether it maps one user and no more, who may map himself.
    pub fn is_single(&self) -> bool {
        self.uids.len() == 1 && self.gids.len() == 1 && self.uids[0][2] == 1 && self.gids[0][2] == 1
    }

    /// Whether an owner outside has an id inside.
    pub fn maps(&self, uid: u32, gid: u32) -> bool {
        let has =
            |ranges: &[Range], id| ranges.iter().any(|[_, outside, count]| id >= *outside && id - outside < *count);
        has(&self.uids, uid) && has(&self.gids, gid)
    }

    /// Writes the maps of this very process, which has just made the namespace. Only of a single one.
    pub fn write_own(&self) -> Result<()> {
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &lines(&self.uids))?;
        write("/proc/self/gid_map", &lines(&self.gids))
    }

    /// Has the maps of `pid`, a child that waits for them, written by newuidmap(1) and newgidmap(1), both at once.
    pub fn write_for(&self, pid: Pid) -> Result<()> {
        let uids = helper("newuidmap", pid, &self.uids)?;
        let gids = helper("newgidmap", pid, &self.gids);
        let done = finish("newuidmap", uids);
        finish("newgidmap", gids?)?;
        done
    }
}

/// First and count of each range of subordinate ids.
type Ranges = Vec<(u32, u32)>;

/// The ranges of this process's user in /etc/subuid and /etc/subgid; `None` where there are none, or nobody to map them.
fn subordinate_ids() -> Option<(Ranges, Ranges)> {
    let uid = geteuid().as_raw();
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let read = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        subordinate(&text, name.as_deref(), uid)
    };
    let (uids, gids) = (read("/etc/subuid"), read("/etc/subgid"));
    let can = !uids.is_empty() && !gids.is_empty() && ["newuidmap", "newgidmap"].into_iter().all(is_on_path);
    can.then_some((uids, gids))
}

/// The ranges of a user in /etc/subuid or /etc/subgid: first and count.
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        (Some(owner) == name || owner == number).then_some((first, count))
    };
    text.lines().filter_map(range).filter(|(_, count)| *count > 0).collect()
}

/// The numbers inside: 0 is `own`, the others are those of the ranges.
fn below(own: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![[0, own, 1]];
    let mut inside = 1u32;
    for &(outside, count) in ranges {
        map.push([inside, outside, count]);
        inside = inside.saturating_add(count);
    }
    map
}

/// The numbers inside, from 0 on: `own` is itself, the others are those of the ranges.
fn fill(own: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = Vec::new();
    let mut inside = 0;
    let mut placed = false;
    for &(mut outside, mut count) in ranges {
        if !placed && inside <= own && own - inside < count {
            let before = own - inside;
            if before > 0 {
                map.push([inside, outside, before]);
            }
            map.push([own, own, 1]);
            placed = true;
            (inside, outside, count) = (own + 1, outside + before, count - before);
        }
        if count > 0 {
            map.push([inside, outside, count]);
            inside = inside.saturating_add(count);
        }
    }
    if !placed {
        map.push([own, own, 1]);
    }
    map
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.is_absolute() && dir.join(program).is_file())
}

fn lines(ranges: &[Range]) -> String {
    ranges.iter().map(|[inside, outside, count]| format!("{inside} {outside} {count}\n")).collect()
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {:?} to {file}", text.trim_end()))
}

fn helper(program: &str, pid: Pid, ranges: &[Range]) -> Result<Child> {
    let numbers = ranges.iter().flatten().map(u32::to_string);
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(numbers).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("{program} (Debian: package uidmap)"))
}

fn finish(program: &str, mut child: Child) -> Result<()> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    if !child.wait().with_context(|| program.to_owned())?.success() {
        bail!("{program}: {}", said.trim());
    }
    Ok(())
}

/// The inode number of a process's namespace, as `/proc/PID/ns` shows it; `None` where it cannot be seen.
pub fn inode_of(process: &Path, kind: &str) -> Option<u64> {
    let link = fs::read_link(process.join("ns").join(kind)).ok()?;
    // user:[4026531837]
    link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_himself_and_the_rest_is_filled() {
        let table = [
            (1001, vec![(100_000, 65536)], vec![[0, 100_000, 1001], [1001, 1001, 1], [1002, 101_001, 64535]]),
            (0, vec![(100_000, 10)], vec![[0, 0, 1], [1, 100_000, 10]]),
            (70_000, vec![(100_000, 65536)], vec![[0, 100_000, 65536], [70_000, 70_000, 1]]),
            (5, vec![(100, 3), (200, 4)], vec![[0, 100, 3], [3, 200, 2], [5, 5, 1], [6, 202, 2]]),
            (10, vec![(100, 10)], vec![[0, 100, 10], [10, 10, 1]]),
        ];
        for (own, ranges, want) in table {
            assert_eq!(fill(own, &ranges), want, "{own} {ranges:?}");
        }
    }

    #[test]
    fn the_user_is_root_and_the_rest_follows() {
        assert_eq!(below(1001, &[(100_000, 65536)]), [[0, 1001, 1], [1, 100_000, 65536]]);
        assert_eq!(below(5, &[(100, 3), (200, 4)]), [[0, 5, 1], [1, 100, 3], [4, 200, 4]]);
    }

    #[test]
    fn ranges_by_name_and_by_number() {
        let text = "root:1:2\nann:100:5\n1001:300:6\nann:7:0\nrubbish\nann:x:1\n";
        assert_eq!(subordinate(text, Some("ann"), 1001), [(100, 5), (300, 6)]);
        assert_eq!(subordinate(text, None, 7), []);
    }

    #[test]
    fn who_is_mapped() {
        let namespace = UserNamespace { uids: fill(5, &[(100, 10)]), gids: vec![[5, 5, 1]] };
        for (uid, gid, want) in
            [(5, 5, true), (100, 5, true), (109, 5, true), (110, 5, false), (0, 5, false), (5, 6, false)]
        {
            assert_eq!(namespace.maps(uid, gid), want, "{uid} {gid}");
        }
        assert!(!namespace.is_single());
    }
}
