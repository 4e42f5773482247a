//! Directories of a layer that is being unpacked, found beneath its root whatever symbolic links are in the way.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::shown;

/// The kernel's own limits: what is longer could not be reached by anybody.
const PATH_MAX: usize = 4095;
const SYMLINKS_MAX: u32 = 40;
/// Parts of an entry's path; `--max-depth` cannot be more.
pub const DEPTH_MAX: u32 = 1024;
/// Parts that are gone through for one path, with those of the symbolic links on it. Forty links of two thousand parts each
/// would cost more than all the rest of an archive, for each of its members.
const STEPS_MAX: u32 = 4096;

/// A name in an archive as a path beneath the root: no leading or doubled slashes, no `.`; the root itself is empty. A
/// name that is absolute or climbs is refused.
pub fn clean(name: &[u8]) -> Result<Vec<u8>> {
    if name.is_empty() {
        bail!("the name is empty");
    }
    if name.starts_with(b"/") {
        bail!("the name is absolute");
    }
    if name.contains(&0) {
        bail!("the name contains a NUL");
    }
    let mut path = Vec::with_capacity(name.len());
    let mut depth = 0;
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => (),
            b".." => bail!("the name climbs with '..'"),
            part => {
                if depth > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
                depth += 1;
            }
        }
    }
    if path.len() > PATH_MAX || depth > DEPTH_MAX as usize {
        bail!("the name has {} bytes and {depth} parts; more than {PATH_MAX} and {DEPTH_MAX} are refused", path.len());
    }
    Ok(path)
}

/// Parent and last part of a clean path that is not the root.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A directory beneath the root.
#[derive(Debug)]
pub struct Found {
    /// An O_PATH descriptor of it.
    pub fd: OwnedFd,
    /// Where it really is: a clean path without symbolic links.
    pub path: Vec<u8>,
    /// The directories on the way that were not there and were made, mode 0700, outermost first.
    pub made: Vec<Vec<u8>>,
}

/// Opens the directory `path` (clean) beneath `root`. Symbolic links on the way are followed as in a root of their own:
/// an absolute one begins at `root`, one that climbs above it is refused. With `make`, what is missing is made.
pub fn open_dir(root: BorrowedFd<'_>, path: &[u8], make: bool) -> Result<Found> {
    match open_plain(root, path, OFlags::PATH) {
        Ok(fd) => Ok(Found { fd, path: path.to_vec(), made: Vec::new() }),
        // A link at the end of the path is "not a directory", one within it a loop.
        Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => walk(root, path, make),
        Err(e) => Err(e).with_context(|| format!("its directory {}", shown(path))),
    }
}

/// Opens a directory on whose path there is no symbolic link.
pub fn open_plain(root: BorrowedFd<'_>, path: &[u8], access: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = OsStr::from_bytes(if path.is_empty() { b"." } else { path });
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Goes part by part. Nobody else works in this tree, so looking first and acting then is safe, and `..` is where we came from;
/// and no call here follows a link by itself.
fn walk(root: BorrowedFd<'_>, path: &[u8], make: bool) -> Result<Found> {
    // Each part with whether a link's target names it: what only a link names is not made. An archive that writes through
    // a link to nowhere is broken or hostile.
    let mut todo: Vec<(Vec<u8>, bool)> = path.split(|&b| b == b'/').rev().map(|part| (part.to_vec(), false)).collect();
    let open = |dir: BorrowedFd<'_>, name: &OsStr, more: OFlags| {
        rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | more, Mode::empty())
    };
    let mut here: Vec<u8> = Vec::new();
    let mut fd = open_plain(root, b"", OFlags::PATH).context("the root")?;
    let mut made = Vec::new();
    let (mut links, mut steps) = (0, 0);
    while let Some((part, by_link)) = todo.pop() {
        steps += 1;
        if steps > STEPS_MAX {
            bail!("its directory {} goes through too many symbolic links", shown(path));
        }
        let above = here.len();
        match &part[..] {
            b"" | b"." => continue,
            b".." => {
                if here.is_empty() {
                    bail!("its directory {} leads out of the root by a symbolic link", shown(path));
                }
                here.truncate(split(&here).0.len());
                fd = open(fd.as_fd(), OsStr::new(".."), OFlags::DIRECTORY).with_context(|| shown(&here))?;
                continue;
            }
            _ if above > 0 => here.push(b'/'),
            _ => (),
        }
        here.extend(&part);
        if here.len() > PATH_MAX {
            bail!("its directory {} is too long", shown(path));
        }
        let name = OsStr::from_bytes(&part);
        let found = match open(fd.as_fd(), name, OFlags::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) if by_link && make => {
                bail!("its directory {} is a symbolic link to {}, which is not there", shown(path), shown(&here))
            }
            Err(Errno::NOENT) if make => {
                rustix::fs::mkdirat(&fd, name, Mode::RWXU)
                    .with_context(|| format!("make directory {}", shown(&here)))?;
                made.push(here.clone());
                fd = open(fd.as_fd(), name, OFlags::DIRECTORY).with_context(|| shown(&here))?;
                continue;
            }
            Err(e) => return Err(e).with_context(|| format!("its directory {}", shown(&here))),
        };
        let stat = rustix::fs::fstat(&found).with_context(|| shown(&here))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => fd = found,
            FileType::Symlink => {
                links += 1;
                if links > SYMLINKS_MAX {
                    bail!("its directory {} goes through too many symbolic links", shown(path));
                }
                let target = rustix::fs::readlinkat(&fd, name, Vec::new()).with_context(|| shown(&here))?;
                let target = target.into_bytes();
                here.truncate(above);
                if target.starts_with(b"/") {
                    here.clear();
                    fd = open_plain(root, b"", OFlags::PATH).context("the root")?;
                }
                todo.extend(target.split(|&b| b == b'/').rev().map(|part| (part.to_vec(), true)));
            }
            _ => bail!("its directory {} is no directory", shown(&here)),
        }
    }
    Ok(Found { fd, path: here, made })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    #[test]
    fn names() {
        for (name, want) in [
            (&b"a"[..], &b"a"[..]),
            (b"./a/./b//c/", b"a/b/c"),
            (b"./", b""),
            (b".", b""),
            (b"...", b"..."),
            (b"a/..b", b"a/..b"),
        ] {
            assert_eq!(clean(name).unwrap(), want);
        }
        let deep = b"a/".repeat(1025);
        for bad in [&b""[..], b"/", b"/a", b"..", b"a/..", b"./../a", b"a/../../b", b"a\0b", &deep] {
            assert!(clean(bad).is_err(), "{bad:?}");
        }
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }

    #[test]
    fn links_stay_beneath() {
        let own = std::env::temp_dir().join(format!("sheep-resolve-{}", sheep_overlay::state::new_id().unwrap()));
        let top = own.join("root");
        fs::create_dir_all(top.join("usr/bin")).unwrap();
        for (target, link) in [
            ("usr/bin", "bin"),
            ("/usr", "abs"),
            ("../usr", "climbs"),
            ("loop", "loop"),
            ("bin/../../..", "usr/up"),
            ("/etc/x", "nowhere"),
        ] {
            symlink(target, top.join(link)).unwrap();
        }
        fs::write(top.join("file"), "").unwrap();
        let root = File::open(&top).unwrap();
        let find = |path: &[u8]| open_dir(root.as_fd(), path, true).map(|found| (found.path, found.made.len()));
        assert_eq!(find(b"").unwrap(), (b"".to_vec(), 0));
        assert_eq!(find(b"bin").unwrap(), (b"usr/bin".to_vec(), 0));
        assert_eq!(find(b"abs/bin").unwrap(), (b"usr/bin".to_vec(), 0));
        assert_eq!(find(b"bin/x/y").unwrap(), (b"usr/bin/x/y".to_vec(), 2));
        for bad in [&b"climbs"[..], b"climbs/x", b"loop", b"file", b"file/x", b"usr/up", b"nowhere", b"nowhere/y"] {
            assert!(find(bad).is_err(), "{}", shown(bad));
        }
        assert!(!own.join("x").exists());
        // Links that are long enough to keep the kernel busy.
        symlink("usr/../".repeat(500), top.join("winds")).unwrap();
        assert_eq!(find(b"winds/usr").unwrap(), (b"usr".to_vec(), 0));
        symlink("winds/".repeat(5), top.join("winds-on")).unwrap();
        assert!(find(b"winds-on").unwrap_err().to_string().contains("too many"));
        fs::remove_dir_all(own).unwrap();
    }
}
