//! Paths beneath the container's root: looked up by the kernel with the root as their limit, made where they are
//! missing. The tree belongs to the container (or to whoever made its image): nothing in it is trusted to stay put.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat2, readlinkat};
use rustix::io::Errno;

use crate::exit;

/// What is made where the path does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory, mode 0755.
    Dir,
    /// An empty file, mode 0644.
    File,
}

/// Links followed by hand at most, as many as the kernel follows.
const MAX_LINKS: u32 = 40;

/// A look-up that races with a rename gives EAGAIN; a container that renames without end gets an error, not a loop.
const MAX_RACES: u32 = 128;

/// `path` as seen from inside the root: an `O_PATH` descriptor. Symbolic links are followed within the root.
pub fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    look_up(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Like [`open`], but a symbolic link anywhere in `path` is `ELOOP`.
pub fn open_no_links(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    look_up(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

fn look_up(root: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..MAX_RACES {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// The place to mount on: `path` beneath `root` as an `O_PATH` descriptor, made as `make` says where it is missing.
/// /proc, /sys and /dev, and what is in them, are not reached through a symbolic link: an image with one there would
/// have the runtime write to a place it does not mean.
pub fn target(root: BorrowedFd<'_>, path: &Path, make: Make) -> Result<OwnedFd> {
    let system = matches!(first_name(path), Some(name) if name == "proc" || name == "sys" || name == "dev");
    let opened = if system { open_no_links(root, path, OFlags::PATH) } else { open(root, path, OFlags::PATH) };
    match opened {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(Errno::LOOP) if system => return Err(refused_link(path)),
        Err(e) => return Err(e).with_context(|| format!("mount target {}", path.display())),
    }
    ensure(root, path, make, system, MAX_LINKS)
}

fn refused_link(path: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "mount target {}: the image has a symbolic link there; /proc, /sys and /dev must be directories",
        path.display()
    )
}

fn first_name(path: &Path) -> Option<&OsStr> {
    path.components().find_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Makes what is missing of `path`, name by name; each parent is looked up again from the root.
fn ensure(root: BorrowedFd<'_>, path: &Path, make: Make, system: bool, links_left: u32) -> Result<OwnedFd> {
    let at = || format!("mount target {}", path.display());
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        bail!("mount target {}: ends in '..' or is the root itself", path.display());
    };
    let open_parent =
        || if system { open_no_links(root, parent, OFlags::PATH) } else { open(root, parent, OFlags::PATH) };
    let parent_fd = match open_parent() {
        Ok(fd) => fd,
        Err(Errno::NOENT) => ensure(root, parent, Make::Dir, system, links_left)?,
        Err(Errno::LOOP) if system => return Err(refused_link(path)),
        Err(e) => return Err(e).with_context(at),
    };
    let made = match make {
        Make::Dir => mkdirat(&parent_fd, name, Mode::from_raw_mode(0o755)),
        Make::File => mknodat(&parent_fd, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).with_context(|| format!("{}: make the {}", at(), make.word())),
    }
    // Beneath the parent just used; one name, so that only this name can be a link.
    match open_no_links(parent_fd.as_fd(), Path::new(name), OFlags::PATH) {
        Ok(fd) => Ok(fd),
        Err(Errno::LOOP) if !system && links_left > 0 => {
            // A link whose end is missing, as images have /etc/resolv.conf → ../run/…: make its end.
            let link = readlinkat(&parent_fd, name, Vec::new()).with_context(at)?;
            let link = PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes()));
            let aim = if link.is_absolute() { link } else { parent.join(link) };
            match open(root, &aim, OFlags::PATH) {
                Ok(fd) => Ok(fd),
                Err(Errno::NOENT) => ensure(root, &aim, make, system, links_left - 1),
                Err(e) => Err(e).with_context(at),
            }
        }
        Err(Errno::LOOP) => Err(refused_link(path)),
        Err(e) => Err(e).with_context(at),
    }
}

impl Make {
    fn word(self) -> &'static str {
        match self {
            Make::Dir => "directory",
            Make::File => "file",
        }
    }
}

/// Checks that a path of the configuration is absolute and has neither `..` nor a NUL byte in it.
pub fn check_absolute(what: &str, path: &Path) -> Result<()> {
    let clean = path.is_absolute()
        && !path.components().any(|part| part == Component::ParentDir)
        && !path.as_os_str().as_bytes().contains(&0);
    if clean {
        return Ok(());
    }
    Err(exit::usage(format!("{what} {:?}: must be an absolute path without '..'", path.display())))
}

/// Whether `fd` is a directory.
pub fn is_dir(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn scratch() -> (PathBuf, OwnedFd) {
        let dir = std::env::temp_dir().join(format!(
            "sheep-ns-resolve-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::create_dir_all(dir.join("root")).unwrap();
        let fd = rustix::fs::open(dir.join("root"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_end_inside_the_root() {
        let (dir, root) = scratch();
        let inside = dir.join("root");
        symlink("/etc", inside.join("abs")).unwrap();
        symlink("../../..", inside.join("up")).unwrap();
        symlink("/run/a/b", inside.join("dangling")).unwrap();
        target(root.as_fd(), Path::new("/abs/made"), Make::File).unwrap();
        assert!(inside.join("etc/made").is_file());
        target(root.as_fd(), Path::new("/up/x/y"), Make::Dir).unwrap();
        assert!(inside.join("x/y").is_dir() && !dir.join("x").exists());
        target(root.as_fd(), Path::new("/dangling"), Make::File).unwrap();
        assert!(inside.join("run/a/b").is_file());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn system_directories_are_no_links() {
        let (dir, root) = scratch();
        let inside = dir.join("root");
        fs::create_dir(inside.join("elsewhere")).unwrap();
        for name in ["proc", "sys", "dev"] {
            symlink("elsewhere", inside.join(name)).unwrap();
            for path in [format!("/{name}"), format!("/{name}/pts")] {
                let error = target(root.as_fd(), Path::new(&path), Make::Dir).unwrap_err().to_string();
                assert!(error.contains("symbolic link"), "{path}: {error}");
            }
        }
        assert_eq!(fs::read_dir(inside.join("elsewhere")).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
