//! Trees for the tests of the copy and of `diff`: a place to make them, and a picture of one to compare with another.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Fails unless root runs the test.
pub fn need_root() {
    assert!(rustix::process::geteuid().is_root(), "needs root: run scripts/test as root");
}

/// A directory of its own, gone with the value; what is mounted on it is unmounted first.
pub struct Scratch {
    pub path: PathBuf,
    /// What is to be unmounted at the end, the last first.
    pub mounts: Vec<PathBuf>,
}

impl Scratch {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("overlay-copy-{}", sheep_overlay::state::new_id().unwrap()));
        fs::create_dir(&path).unwrap();
        Scratch { path, mounts: Vec::new() }
    }

    /// A file system of its own, in a file or in memory.
    pub fn on(kind: &str) -> Self {
        need_root();
        let mut scratch = Scratch::new();
        let at = scratch.path.join("fs");
        fs::create_dir(&at).unwrap();
        if kind == "tmpfs" {
            mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"mode=0755")).unwrap();
        } else {
            let image = scratch.path.join("image");
            fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
            sh(&format!("mkfs.{kind} -q {} >/dev/null && mount -o loop {0} {}", image.display(), at.display()));
        }
        scratch.mounts.push(at);
        scratch
    }

    /// Where to work: in the file system of its own, if it has one.
    pub fn dir(&self) -> &Path {
        self.mounts.first().unwrap_or(&self.path)
    }

    /// Mounts an overlay as `sheep-overlay` does, but without syncing.
    pub fn overlay(&mut self, lowers: &[PathBuf], dir: &Path) {
        let top_first: Vec<_> = lowers.iter().rev().map(|lower| lower.to_str().unwrap()).collect();
        let format = match sheep_overlay::backend::kernel::in_user_namespace() {
            true => "userxattr",
            false => "metacopy=off,redirect_dir=off",
        };
        let options = format!(
            "lowerdir={},upperdir={d}/upper,workdir={d}/work,index=off,{format},volatile",
            top_first.join(":"),
            d = dir.display()
        );
        let merged = dir.join("merged");
        mount("overlay", &merged, "overlay", MountFlags::empty(), Some(&*CString::new(options).unwrap())).unwrap();
        self.mounts.push(merged);
    }

    /// Unmounts what was mounted last.
    pub fn unmount(&mut self) {
        let point = self.mounts.pop().unwrap();
        // Another test may look at every mount of the machine this moment.
        for _ in 0..50 {
            if unmount(&point, UnmountFlags::empty()) != Err(rustix::io::Errno::BUSY) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} stays busy", point.display());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for at in self.mounts.iter().rev() {
            let _ = unmount(at, UnmountFlags::DETACH);
        }
        let _ = Command::new("rm").arg("-rf").arg("--one-file-system").arg(&self.path).status();
    }
}

/// Runs a shell script that must succeed.
pub fn sh(script: &str) {
    let status = Command::new("sh").arg("-ec").arg(script).status().unwrap();
    assert!(status.success(), "{script}");
}

/// What an inode looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub size: u64,
    pub blocks: u64,
    pub rdev: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path that is the same inode, where there are several.
    pub link: Option<Vec<u8>>,
}

/// Every path of a tree with what is there; the root is the empty path.
pub type Picture = BTreeMap<Vec<u8>, Look>;

/// Takes a picture of a tree, without OverlayFS's own xattrs. Mounts in it count as empty directories.
pub fn picture(root: &Path) -> Picture {
    let mut picture = Picture::new();
    let mut inodes = BTreeMap::new();
    look(root, b"", &mut picture, &mut inodes);
    picture
}

fn look(root: &Path, path: &[u8], picture: &mut Picture, inodes: &mut BTreeMap<(u64, u64), Vec<u8>>) {
    let full = if path.is_empty() { root.to_path_buf() } else { root.join(OsStr::from_bytes(path)) };
    let stat = match fs::symlink_metadata(&full) {
        Ok(stat) => stat,
        // OverlayFS lists a whiteout that hides nothing, and then does not know it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => panic!("{}: {e}", full.display()),
    };
    let kind = stat.file_type();
    let (letter, content) = if kind.is_dir() {
        ('d', vec![])
    } else if kind.is_symlink() {
        ('l', fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_file() {
        ('f', fs::read(&full).unwrap())
    } else if kind.is_fifo() {
        ('p', vec![])
    } else if kind.is_socket() {
        ('s', vec![])
    } else {
        (if kind.is_char_device() { 'c' } else { 'b' }, vec![])
    };
    let link = if letter != 'd' && stat.nlink() > 1 {
        Some(inodes.entry((stat.dev(), stat.ino())).or_insert_with(|| path.to_vec()).clone())
    } else {
        None
    };
    let data = letter != 'd';
    picture.insert(
        path.to_vec(),
        Look {
            kind: letter,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            size: if data { stat.size() } else { 0 },
            blocks: if data { stat.blocks() } else { 0 },
            rdev: if matches!(letter, 'c' | 'b') { stat.rdev() } else { 0 },
            content,
            xattrs: xattrs(&full),
            link,
        },
    );
    if letter == 'd' {
        let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let mut child = path.to_vec();
            if !path.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(name.as_bytes());
            look(root, &child, picture, inodes);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .filter(|name| !sheep_overlay::layer::is_overlay_xattr(name))
        .map(|name| {
            let mut value = vec![0u8; 65536];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Fails with the paths at which two pictures differ. `strip` takes away what may differ.
pub fn assert_same(what: &str, a: &Picture, b: &Picture, strip: impl Fn(&mut Look)) {
    let strip = |picture: &Picture| -> Picture {
        let one = |(path, look): (&Vec<u8>, &Look)| {
            let mut look = look.clone();
            strip(&mut look);
            (path.clone(), look)
        };
        picture.iter().map(one).collect()
    };
    let (a, b) = (strip(a), strip(b));
    let mut differences = String::new();
    for path in a.keys().chain(b.keys()).collect::<std::collections::BTreeSet<_>>() {
        if a.get(path) != b.get(path) {
            let short = |look: Option<&Look>| {
                look.map(|look| {
                    format!("{:?}", Look { content: look.content.iter().take(40).copied().collect(), ..look.clone() })
                })
            };
            let line =
                format!("{}:\n  {:?}\n  {:?}\n", String::from_utf8_lossy(path), short(a.get(path)), short(b.get(path)));
            differences.push_str(&line);
        }
    }
    assert!(differences.is_empty(), "{what}:\n{differences}");
}
