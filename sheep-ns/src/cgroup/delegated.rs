//! The part of the tree that is an ordinary user's: <https://docs.kernel.org/admin-guide/cgroup-v2.html>, "Delegation".

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::fs::{Access, AtFlags, accessat};

use super::tree::{self, Tree};

/// The highest group above this process, or its own, that this user may make groups in. A process is moved only within it, for
/// both ends of a move have to be below a `cgroup.procs` that may be written. `None`: nothing was delegated. `""` is the tree's root.
pub fn to_us(tree: &Tree) -> Result<Option<String>> {
    let Some(own) = own_group()? else { return Ok(None) };
    let mut dir = tree.root.try_clone().context("cgroup2")?;
    let mut path = String::new();
    if is_ours(dir.as_fd()) {
        return Ok(Some(path));
    }
    for name in own.split('/').filter(|name| !name.is_empty()) {
        // A group out of this namespace's sight ("/../x"), or one that is gone.
        let Ok(next) = tree::open_dir(dir.as_fd(), name) else { return Ok(None) };
        dir = next;
        path = format!("{path}/{name}");
        if is_ours(dir.as_fd()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The group of this process, from the tree's root. `None` where it is out of sight.
pub fn own_group() -> Result<Option<String>> {
    group_of("self")
}

/// The group of a process, from the tree's root. `None` where it is out of sight.
pub fn group_of(pid: &str) -> Result<Option<String>> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).context(file)?;
    Ok(own_path(&text).map(str::to_owned))
}

/// Whether a group was delegated to this user: the directory and the file that moves processes are writable.
fn is_ours(dir: BorrowedFd<'_>) -> bool {
    [".", "cgroup.procs"].iter().all(|name| accessat(dir, *name, Access::WRITE_OK, AtFlags::EACCESS).is_ok())
}

/// The path in the line of cgroup v2, `0::/path`.
fn own_path(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (!path.split('/').any(|name| name == "..")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_version_2() {
        assert_eq!(own_path("3:cpu:/a\n0::/user/1\n"), Some("/user/1"));
        assert_eq!(own_path("3:cpu:/a\n"), None);
        assert_eq!(own_path("0::/../up\n"), None);
    }
}
