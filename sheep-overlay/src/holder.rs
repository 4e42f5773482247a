//! The holder: the process that keeps the user and mount namespace of an ordinary user's overlay.
//!
//! It does nothing, from `mount` to `umount`. Who it is tells the lock on `overlay/<id>/holder`, which the kernel
//! lets go of when the process dies, however it dies: a pid in a file could be another process's by now. When it is killed,
//! the namespaces live on as long as there is a process in them; such a process lends them to a new holder.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::doc::{self, Overlay};
use crate::{namespace, record, state, switch, sys};

/// How a holder is called.
pub const NAME: &CStr = c"sheep-holder";

/// The file in an overlay's directory that the holder locks.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("holder")
}

/// Takes the lock for this process, for the rest of its life. Errors where another process has it.
pub fn take(file: &Path) -> Result<()> {
    let lock = state::open_lock(file)?;
    fcntl(&lock, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))).with_context(|| format!("lock {}", file.display()))?;
    // Number 3 is free by now or of no use any more; the lock survives as long as no other descriptor of this file is closed.
    std::mem::forget(lock);
    Ok(())
}

/// Closes all that this process has open, but for the lock taken by [`take`]; standard input and output go nowhere.
pub fn keep_only_the_lock() -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    for number in 0..3 {
        sys::duplicate_to(null.as_raw_fd(), number)?;
    }
    drop(null);
    let own = fs::read_dir("/proc/self/fd").context("/proc/self/fd")?;
    let lock = own.flatten().filter_map(|entry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        fs::read_link(entry.path()).is_ok_and(|target| target.file_name() == Some("holder".as_ref())).then_some(number)
    });
    let Some(lock) = lock.max() else { bail!("the lock of the holder is not open") };
    sys::close_all_but(lock)?;
    Ok(())
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
}

/// The pid of the process that holds the lock; `None` where nobody does.
fn locked_by(file: &File) -> io::Result<Option<Pid>> {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok(if lock.l_type == libc::F_UNLCK as libc::c_short { None } else { Pid::from_raw(lock.l_pid) })
}

/// The living holder of the overlay in `dir`: its pid and a descriptor that means it and no later process.
pub fn find(dir: &Path) -> Result<Option<(Pid, OwnedFd)>> {
    let file = file(dir);
    let lock = match OpenOptions::new().read(true).write(true).open(&file) {
        Ok(lock) => lock,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e).with_context(|| file.display().to_string()),
    };
    for _ in 0..100 {
        let Some(pid) = locked_by(&lock).with_context(|| file.display().to_string())? else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The lock is held still, so the pid has not been another's in between.
            Ok(process) if locked_by(&lock)? == Some(pid) => return Ok(Some((pid, process))),
            Ok(_) | Err(Errno::SRCH) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(e).with_context(|| format!("pidfd_open {pid}")),
        }
    }
    bail!("{}: its holder cannot be told", file.display())
}

/// Whether the overlay in `dir` has a living holder.
pub fn is_alive(dir: &Path) -> Result<bool> {
    find(dir).map(|found| found.is_some())
}

/// How a record names a holder.
pub fn describe(pid: i32) -> Result<doc::Holder> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let inode = |kind| namespace::inode_of(&process, kind).with_context(|| format!("{}/ns/{kind}", process.display()));
    Ok(doc::Holder { pid: pid as u32, user_namespace: inode("user")?, mount_namespace: inode("mnt")? })
}

/// Ends a holder and waits until it is gone, and with it the mounts of its namespace.
pub fn end(process: &OwnedFd) -> Result<()> {
    for (signal, patience) in [(Signal::TERM, 2), (Signal::KILL, 60)] {
        match pidfd_send_signal(process, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(e) => return Err(e).context("end the holder"),
        }
        let timeout = Timespec { tv_sec: patience, tv_nsec: 0 };
        let mut ended = [PollFd::new(process, PollFlags::IN)];
        loop {
            match poll(&mut ended, Some(&timeout)) {
                Ok(1..) => return Ok(()),
                Ok(0) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("wait for the end of the holder"),
            }
        }
    }
    bail!("the holder does not end (is its file system stuck?)")
}

/// The processes in the namespaces of an overlay, but for its holder: pid and name.
pub fn guests(overlay: &Overlay) -> Vec<(u32, String)> {
    // A command that was killed may have made one and not recorded it.
    let alive =
        find(record::dir_of(overlay)).ok().flatten().and_then(|(pid, _)| describe(pid.as_raw_nonzero().get()).ok());
    let Some(holder) = alive.or(overlay.holder) else { return Vec::new() };
    let inside = |process: &Path| {
        // One that has ended has no mounts any more, whoever has not waited for it yet.
        let mounts = namespace::inode_of(process, "mnt");
        mounts == Some(holder.mount_namespace)
            || mounts.is_some() && namespace::inode_of(process, "user") == Some(holder.user_namespace)
    };
    let found = crate::busy::processes(|process| inside(process)).into_iter();
    // Who only waits for the end of an old mount is no guest, nor is a holder that ends; and a recorded one that is gone may have
    // left the numbers of its namespaces to that of another overlay.
    let no_guests = [switch::SYNCER, NAME];
    let is_guest = |name: &str| !no_guests.iter().any(|other| other.to_bytes() == name.as_bytes());
    found.filter(|(pid, name)| *pid != holder.pid && is_guest(name)).collect()
}

/// A process that can lend its namespaces to a new holder: one in both of them.
pub fn heir(overlay: &Overlay) -> Option<OwnedFd> {
    let holder = overlay.holder?;
    let inside = |process: &Path| {
        namespace::inode_of(process, "mnt") == Some(holder.mount_namespace)
            && namespace::inode_of(process, "user") == Some(holder.user_namespace)
    };
    let found = crate::busy::processes(|process| inside(process)).into_iter();
    found.filter(|(_, name)| name.as_bytes() != NAME.to_bytes()).find_map(|(pid, _)| {
        let process = pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()?;
        // It is the one that was looked at, and still there.
        inside(&PathBuf::from(format!("/proc/{pid}"))).then_some(process)
    })
}
