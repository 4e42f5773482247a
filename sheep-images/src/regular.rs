//! Files that others put where they are, opened to be read: a FIFO would keep us waiting for ever, a device may do anything
//! when it is opened, and a symbolic link may lead anywhere.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens a regular file; `None` where there is none of that name. Symbolic links are followed as far as they stay beneath
/// `dir`, where it is given.
pub fn open(dir: Option<&File>, path: &Path) -> Result<Option<File>> {
    let (at, resolve) = match dir {
        Some(dir) => (dir.as_fd(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS),
        None => (rustix::fs::CWD, ResolveFlags::empty()),
    };
    // A handle first: that opens nothing yet.
    let handle = match rustix::fs::openat2(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::XDEV) => bail!("it leads out of the directory by a symbolic link; 'cp -rL' makes a copy without"),
        Err(e) => return Err(e.into()),
    };
    match FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => bail!("it is a directory, and no file"),
        _ => bail!("it is no regular file"),
    }
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map(Some).context("open")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_a_file_and_within() {
        let top = std::env::temp_dir().join(format!("sheep-regular-{}", sheep_overlay::state::new_id().unwrap()));
        fs::create_dir_all(top.join("in/sub")).unwrap();
        fs::write(top.join("out"), "out").unwrap();
        fs::write(top.join("in/file"), "in").unwrap();
        for (target, link) in [("file", "good"), ("../out", "up"), ("/etc/passwd", "abs"), ("self", "self")] {
            symlink(target, top.join("in").join(link)).unwrap();
        }
        let fifo = top.join("in/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let dir = File::open(top.join("in")).unwrap();
        for name in ["file", "good"] {
            assert!(open(Some(&dir), Path::new(name)).unwrap().is_some(), "{name}");
            assert!(open(None, &top.join("in").join(name)).unwrap().is_some(), "{name}");
        }
        assert!(open(Some(&dir), Path::new("nosuch")).unwrap().is_none());
        for (name, why) in [
            ("up", "leads out"),
            ("abs", "leads out"),
            ("../out", "leads out"),
            ("/etc/passwd", "leads out"),
            ("self", "symbolic links"),
            ("sub", "a directory"),
            ("fifo", "no regular file"),
        ] {
            let error = open(Some(&dir), Path::new(name)).unwrap_err();
            assert!(error.to_string().contains(why), "{name}: {error}");
        }
        fs::remove_dir_all(top).unwrap();
    }
}
