//! `--idmap`: the owners of the lowers shown as others, by idmapped mounts (mount_setattr(2)).
//!
//! A map is written as mount(8) has it for `X-mount.idmap`: `b:0:100000:65536` shows what uid and gid 0 to 65535 own on the
//! disk as owned by 100000 to 165535. `u:` and `g:` map users and groups alone; several maps are separated by spaces. An
//! owner that no map has is shown as nobody, and what he owns cannot be changed.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::lowers::Lower;
use crate::{exit, sys};

/// Ranges of users and of groups: the first on the disk, the first shown, how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Of users.
    pub uids: Vec<[u32; 3]>,
    /// Of groups.
    pub gids: Vec<[u32; 3]>,
}

/// Reads a map. Errors with usage (2).
pub fn parse(text: &str) -> Result<Map> {
    let bad = || {
        exit::usage(format!(
            "--idmap {text:?} is no map; write [b:|u:|g:]ON-DISK:SHOWN:COUNT, as in 'b:0:100000:65536'"
        ))
    };
    let mut map = Map { uids: Vec::new(), gids: Vec::new() };
    for one in text.split_whitespace() {
        let (kind, numbers) = match one.split_once(':') {
            Some((kind @ ("b" | "u" | "g"), numbers)) => (kind, numbers),
            _ => ("b", one),
        };
        let numbers: Option<Vec<u32>> = numbers.split(':').map(|number| number.parse().ok()).collect();
        let range: [u32; 3] = numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(bad)?;
        let fits = |first: u32| first.checked_add(range[2]).is_some();
        if range[2] == 0 || !fits(range[0]) || !fits(range[1]) {
            return Err(bad());
        }
        if kind != "g" {
            map.uids.push(range);
        }
        if kind != "u" {
            map.gids.push(range);
        }
    }
    if map.uids.is_empty() && map.gids.is_empty() {
        return Err(bad());
    }
    // The kernel wants both; who maps only the one wants the other as it is.
    for ranges in [&mut map.uids, &mut map.gids] {
        if ranges.is_empty() {
            ranges.push([0, 0, u32::MAX]);
        }
    }
    Ok(map)
}

/// The lowers, each by a detached mount of its own that shows other owners. Needs root.
pub fn apply(text: &str, lowers: &[Lower]) -> Result<Vec<Lower>> {
    let namespace = namespace(&parse(text)?)?;
    let mapped = |lower: &Lower| -> Result<Lower> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // The lower may be reached by another way by now; the descriptor is what was checked.
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lower.fd));
        let tree = open_tree(CWD, name, flags).map_err(anyhow::Error::from).and_then(|tree| {
            sys::idmap(&tree, &namespace)?;
            Ok(tree)
        });
        let fd = tree
            .with_context(|| format!("--idmap: lower {} (its file system may not allow it)", lower.path.display()))?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Lower { fd, path: lower.path.clone(), stat, detached: true })
    };
    lowers.iter().map(mapped).collect()
}

/// A user namespace with these maps: a child makes it, and is gone when we have it.
fn namespace(map: &Map) -> Result<OwnedFd> {
    let (made, made_to) = pipe_with(PipeFlags::CLOEXEC)?;
    let (seen, seen_to) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(child) = sys::fork().context("fork")? else {
        drop((made, seen_to));
        let unshared = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
        if unshared && rustix::io::write(&made_to, b"m").is_ok() {
            // Until the parent has what it wants, or is gone.
            let _ = File::from(seen).read(&mut [0u8; 1]);
        }
        sys::exit_child(i32::from(!unshared));
    };
    drop((made_to, seen));
    let open = || -> Result<OwnedFd> {
        if File::from(made).read(&mut [0u8; 1])? == 0 {
            return Err(anyhow!("no user namespace can be made; 'sheep-overlay doctor' says more"));
        }
        let write = |file: &str, ranges: &[[u32; 3]]| {
            let text: String =
                ranges.iter().map(|[inside, outside, count]| format!("{inside} {outside} {count}\n")).collect();
            let file = format!("/proc/{child}/{file}");
            fs::write(&file, text).with_context(|| format!("--idmap: {file}"))
        };
        write("uid_map", &map.uids)?;
        write("gid_map", &map.gids)?;
        Ok(File::open(format!("/proc/{child}/ns/user")).context("the user namespace of a child")?.into())
    };
    let opened = open();
    drop(seen_to);
    let _ = waitpid(child, None);
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_as_mount8_has_them() {
        let all = [0, 0, u32::MAX];
        let table = [
            ("0:100000:65536", vec![[0, 100_000, 65536]], vec![[0, 100_000, 65536]]),
            ("b:0:1:2", vec![[0, 1, 2]], vec![[0, 1, 2]]),
            ("u:0:1:2", vec![[0, 1, 2]], vec![all]),
            ("g:5:6:7", vec![all], vec![[5, 6, 7]]),
            ("u:0:1:2 g:3:4:5", vec![[0, 1, 2]], vec![[3, 4, 5]]),
        ];
        for (text, uids, gids) in table {
            assert_eq!(parse(text).unwrap(), Map { uids, gids }, "{text}");
        }
        for bad in ["", "0", "0:1", "0:1:2:3", "x:0:1:2", "0:1:0", "0:4294967295:2", "a:b:c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
