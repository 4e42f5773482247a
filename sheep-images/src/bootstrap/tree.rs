//! What goes into the image: a plain list of paths, with the host's files and some of our own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

/// As many links on one way as the kernel follows.
const SYMLINKS_MAX: u32 = 40;

/// An entry of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory with this mode.
    Directory(u32),
    /// A file of the host.
    File {
        /// Where it is on the host.
        source: PathBuf,
        /// Its time.
        mtime: i64,
    },
    /// A file with this content.
    Text(&'static str),
    /// A symbolic link.
    Symlink(OsString),
}

/// The image's content, by absolute path: parents sort before what is in them.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";
const GROUP: &str = "root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
disk:x:6:
www-data:x:33:
users:x:100:
nogroup:x:65534:
";
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";
const PROFILE: &str = "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";

impl Tree {
    /// The directories and small files that every root file system has.
    pub fn with_skeleton() -> Result<Self> {
        let mut tree = Tree::default();
        for (path, mode) in [
            ("/", 0o755),
            ("/dev", 0o755),
            ("/etc", 0o755),
            ("/home", 0o755),
            ("/mnt", 0o755),
            ("/opt", 0o755),
            ("/proc", 0o555),
            ("/root", 0o700),
            ("/run", 0o755),
            ("/srv", 0o755),
            ("/sys", 0o555),
            ("/tmp", 0o1777),
            ("/usr", 0o755),
            ("/usr/bin", 0o755),
            ("/usr/lib", 0o755),
            ("/usr/local", 0o755),
            ("/usr/local/bin", 0o755),
            ("/usr/sbin", 0o755),
            ("/var", 0o755),
            ("/var/tmp", 0o1777),
        ] {
            tree.nodes.insert(path.into(), Node::Directory(mode));
        }
        for (path, text) in [
            ("/etc/passwd", PASSWD),
            ("/etc/group", GROUP),
            ("/etc/hosts", HOSTS),
            ("/etc/nsswitch.conf", NSSWITCH),
            ("/etc/profile", PROFILE),
        ] {
            tree.nodes.insert(path.into(), Node::Text(text));
        }
        tree.nodes.insert("/etc/mtab".into(), Node::Symlink("../proc/self/mounts".into()));
        // /bin is a link on most hosts today, and a directory on others: the image has it as the host does.
        for dir in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            match fs::symlink_metadata(dir) {
                Ok(meta) if meta.is_symlink() => {
                    tree.add_way(Path::new(dir))?;
                }
                Ok(meta) if meta.is_dir() && matches!(dir, "/bin" | "/sbin" | "/lib") => tree.add_directory(dir.into()),
                _ => (),
            }
        }
        if Path::new("/etc/os-release").is_file() {
            tree.add_way(Path::new("/etc/os-release"))?;
        }
        Ok(tree)
    }

    /// Adds what `path` leads to, and every directory and symbolic link on the way there. Returns where it really is.
    pub fn add_way(&mut self, path: &Path) -> Result<PathBuf> {
        let mut todo: Vec<OsString> = parts_reversed(path.as_os_str());
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&part);
            let meta = fs::symlink_metadata(&next).with_context(|| next.display().to_string())?;
            if meta.is_symlink() {
                links += 1;
                if links > SYMLINKS_MAX {
                    bail!("{}: too many symbolic links", path.display());
                }
                let target = fs::read_link(&next).with_context(|| next.display().to_string())?.into_os_string();
                if target.as_bytes().starts_with(b"/") {
                    here = PathBuf::from("/");
                }
                todo.extend(parts_reversed(&target));
                self.nodes.entry(next).or_insert(Node::Symlink(target));
            } else if meta.is_dir() {
                self.add_directory(next.clone());
                here = next;
            } else if meta.is_file() {
                if !todo.is_empty() {
                    bail!("{} is not a directory", next.display());
                }
                let file = Node::File { source: next.clone(), mtime: meta.mtime() };
                self.nodes.entry(next.clone()).or_insert(file);
                here = next;
            } else {
                bail!("{} is neither a file nor a directory", next.display());
            }
        }
        Ok(here)
    }

    fn add_directory(&mut self, path: PathBuf) {
        self.nodes.entry(path).or_insert(Node::Directory(0o755));
    }

    /// Everything, parents first.
    pub fn nodes(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_path(), node))
    }

    /// The time of the newest file, in seconds since 1970.
    pub fn newest(&self) -> i64 {
        let time = |node: &Node| if let Node::File { mtime, .. } = node { *mtime } else { 0 };
        self.nodes.values().map(time).max().unwrap_or(0)
    }
}

fn parts_reversed(path: &OsStr) -> Vec<OsString> {
    let part = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    Path::new(path).components().rev().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_on_the_way_is_kept() {
        let dir = std::env::temp_dir().join(format!("sheep-tree-{}", sheep_overlay::state::new_id().unwrap()));
        fs::create_dir_all(dir.join("real/deep")).unwrap();
        fs::write(dir.join("real/deep/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", dir.join("first")).unwrap();
        std::os::unix::fs::symlink(dir.join("first/deep/../deep/file"), dir.join("second")).unwrap();
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        let mut tree = Tree::default();
        assert_eq!(tree.add_way(&dir.join("second")).unwrap(), dir.join("real/deep/file"));
        for path in ["second", "first", "real", "real/deep", "real/deep/file"] {
            assert!(tree.nodes.contains_key(&dir.join(path)), "{path}");
        }
        assert!(tree.add_way(&dir.join("loop")).is_err());
        assert!(tree.add_way(&dir.join("absent")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
