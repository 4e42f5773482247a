//! fuse-overlayfs: OverlayFS in a process, slower, and seen by every process of the user without being root.
//!
//! It writes its own opaque marks as an ordinary user (`user.fuseoverlayfs.opaque`, a file `.wh..wh..opq`), which the
//! kernel does not read: an upper that it wrote stays with it.
//!
//! Its options are one string with `:` and `,` in it that names cannot have. So it is started in a directory of links with
//! short names, which it resolves before it goes on.

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::kernel::Refused;
use crate::mountpoint::{self, Mount, NotUnmounted};

/// The program.
const PROGRAM: &str = "fuse-overlayfs";

/// What to mount, all by absolute paths.
#[derive(Debug)]
pub struct Stack<'a> {
    /// The lower directories, bottom first.
    pub lowers: &'a [PathBuf],
    /// The upper directory; where the mount is read-only it is one more lower, on top.
    pub upper: &'a Path,
    /// The work directory.
    pub work: &'a Path,
    /// Where to mount.
    pub merged: &'a Path,
    /// Refuse writes.
    pub read_only: bool,
    /// Never sync.
    pub volatile: bool,
}

/// Mounts an overlay; `links` is a directory of our own for it to be started in, made anew. Returns when the mount is there.
pub fn mount(stack: &Stack, links: &Path) -> Result<Option<Mount>, Refused> {
    let failed = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Refused::new(errno, links.display().to_string(), "")
    };
    let _ = fs::remove_dir_all(links);
    DirBuilder::new().mode(0o700).create(links).map_err(failed)?;
    let mut names = Vec::new();
    let mut lowers: Vec<&Path> = stack.lowers.iter().map(PathBuf::as_path).collect();
    if stack.read_only {
        lowers.push(stack.upper);
    }
    for (number, lower) in lowers.iter().enumerate().rev() {
        symlink(lower, links.join(format!("l{number}"))).map_err(failed)?;
        names.push(format!("l{number}"));
    }
    let mut options = format!("lowerdir={}", names.join(":"));
    if !stack.read_only {
        symlink(stack.upper, links.join("u")).map_err(failed)?;
        symlink(stack.work, links.join("w")).map_err(failed)?;
        options.push_str(",upperdir=u,workdir=w");
    }
    if stack.volatile {
        options.push_str(",fsync=0");
    }
    let mut command = Command::new(PROGRAM);
    command.arg("-o").arg(options).arg(stack.merged).current_dir(links);
    // It goes into the background, and lets go of these, when it has mounted.
    let run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let output = run.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Refused::new(Errno::NOSYS, PROGRAM, "it is not installed"),
        _ => Refused::new(Errno::IO, PROGRAM, error.to_string()),
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let errno = if access_to_device().is_err() { Errno::ACCESS } else { Errno::OPNOTSUPP };
        return Err(Refused::new(errno, PROGRAM, last_words(&said)));
    }
    match mountpoint::at(stack.merged) {
        Ok(Some(mount)) => Ok(Some(mount)),
        _ => Err(Refused::new(Errno::IO, PROGRAM, "it ended without an error, and nothing is mounted")),
    }
}

/// What it said last, without what it says of every option that it ignores.
fn last_words(said: &str) -> String {
    let mut lines = said.lines().filter(|line| !line.starts_with("unknown argument ignored"));
    lines.next_back().unwrap_or_default().trim().to_owned()
}

/// Whether this user may use FUSE at all.
pub fn access_to_device() -> Result<(), Errno> {
    rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK)
}

/// Unmounts it, and waits for its process to end: then nothing writes to the upper any more.
pub fn unmount(merged: &Path) -> Result<(), NotUnmounted> {
    let server = server_of(merged);
    if rustix::process::geteuid().is_root() {
        match rustix::mount::unmount(merged, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::BUSY) => return Err(NotUnmounted::Busy),
            Err(e) => {
                return Err(NotUnmounted::Failed(
                    anyhow::Error::from(e).context(format!("umount {}", merged.display())),
                ));
            }
        }
    } else {
        let run = Command::new("fusermount3").arg("-u").arg("--").arg(merged).stdin(Stdio::null()).output();
        let output = run.map_err(|e| NotUnmounted::Failed(anyhow::Error::from(e).context("fusermount3")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && !said.contains("not found in /etc/mtab") {
            if said.contains("busy") {
                return Err(NotUnmounted::Busy);
            }
            return Err(NotUnmounted::Failed(anyhow::anyhow!("{}", said.trim())));
        }
    }
    if let Some(server) = server {
        let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
        // A server that does not end keeps the upper in use; what is deleted under it is lost to it alone.
        let _ = poll(&mut [PollFd::new(&server, PollFlags::IN)], Some(&timeout));
    }
    for _ in 0..100 {
        match mountpoint::at(merged) {
            Ok(None) => return Ok(()),
            // The kernel is about to take it away.
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(NotUnmounted::Busy)
}

/// The process that serves what is mounted on a directory, by its command line.
fn server_of(merged: &Path) -> Option<OwnedFd> {
    let is_server = |process: &Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        words.next().is_some_and(|first| first.ends_with(PROGRAM.as_bytes()))
            && words.next_back() == Some(merged.as_os_str().as_bytes())
    };
    let (pid, _) = crate::busy::processes(is_server).into_iter().next()?;
    pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_of_every_option_is_no_reason() {
        let said = "unknown argument ignored: lazytime\nfuse: device not found, try 'modprobe fuse' first\nfuse-overlayfs: cannot mount: No such file\n";
        assert_eq!(last_words(said), "fuse-overlayfs: cannot mount: No such file");
        assert_eq!(last_words("unknown argument ignored: lazytime\n"), "");
    }
}
