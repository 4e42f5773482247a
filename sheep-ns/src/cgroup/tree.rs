//! The cgroup v2 file system: where it is, which controllers it has, reading and writing its files.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u32 = 0x6367_7270;

/// The root of the cgroup v2 tree, as far as it is seen here.
#[derive(Debug)]
pub struct Tree {
    /// Its root directory.
    pub root: OwnedFd,
    /// Where it is mounted, for messages.
    pub mounted: String,
    /// Whether cgroup v1 hierarchies are beside it and hold the controllers.
    pub hybrid: bool,
}

impl Tree {
    /// Finds the tree at the usual places, then in mountinfo. `None` where no cgroup2 is mounted.
    pub fn find() -> Result<Option<Tree>> {
        if let Some(root) = open_if_cgroup2("/sys/fs/cgroup") {
            return Ok(Some(Tree { root, mounted: "/sys/fs/cgroup".to_owned(), hybrid: false }));
        }
        if let Some(root) = open_if_cgroup2("/sys/fs/cgroup/unified") {
            return Ok(Some(Tree { root, mounted: "/sys/fs/cgroup/unified".to_owned(), hybrid: true }));
        }
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        Ok(cgroup2_of(&mountinfo).and_then(|mounted| {
            let root = open_if_cgroup2(&mounted)?;
            Some(Tree { root, mounted, hybrid: mountinfo.contains(" - cgroup ") })
        }))
    }

    /// Whether the root of the tree offers `controller`.
    pub fn has(&self, controller: &str) -> Result<bool> {
        let file = "cgroup.controllers";
        let list = read(self.root.as_fd(), file).with_context(|| format!("{}/{file}", self.mounted))?;
        Ok(list.split_ascii_whitespace().any(|name| name == controller))
    }
}

fn open_if_cgroup2(path: &str) -> Option<OwnedFd> {
    let fd = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let kind = fstatfs(&fd).ok()?.f_type;
    // The type of f_type differs between architectures; the magic number is 32 bits in all of them.
    (kind as u32 == CGROUP2_MAGIC).then_some(fd)
}

/// The mount point of the first whole cgroup2 file system in a mountinfo; one with an escaped character is passed over.
fn cgroup2_of(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        (right.split(' ').next()? == "cgroup2" && !point.contains('\\')).then(|| point.to_owned())
    })
}

/// Opens a group's directory beneath `dir`.
pub fn open_dir(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the directory of the group at a path from the tree's root. The path leads nowhere else.
pub fn open_path(tree: &Tree, path: &str) -> Result<OwnedFd, Errno> {
    let mut dir = openat(&tree.root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        dir = open_dir(dir.as_fd(), name)?;
    }
    Ok(dir)
}

/// Reads a file of a group.
pub fn read(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    fs::File::from(fd).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file of a group, in one write, as the kernel wants it.
pub fn write(dir: BorrowedFd<'_>, file: &str, value: &str) -> io::Result<()> {
    let fd = openat(dir, file, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    fs::File::from(fd).write_all(value.as_bytes())
}

/// The number behind `key` in a file of lines like `oom_kill 1`.
pub fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_in_mountinfo() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 24 0:27 / /cg2 rw,relatime shared:5 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_of(hybrid).as_deref(), Some("/cg2"));
        assert_eq!(cgroup2_of("31 24 0:27 / /a\\040b rw - cgroup2 c rw\n"), None);
        assert_eq!(cgroup2_of("31 24 0:27 / /cgroup2 rw - tmpfs cgroup2 rw\n"), None);
    }

    #[test]
    fn fields() {
        let events = "low 0\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(field(events, "oom_kill"), Some(2));
        assert_eq!(field(events, "oom"), Some(1));
        assert_eq!(field(events, "max"), None);
    }
}
