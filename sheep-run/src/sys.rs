//! The few system calls that neither rustix nor nix offers as safe functions.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};

use nix::libc;
use nix::sys::signal::Signal;

/// Takes over a descriptor that the parent process left open for this one, by the number it told us. Called once for
/// each number, at the start, before anything else is opened.
pub fn inherited(fd: RawFd) -> File {
    // SAFETY: the caller owns the descriptor: it was made inheritable for this process alone, and nothing else here
    // knows its number.
    unsafe { File::from_raw_fd(fd) }
}

/// Closes every descriptor above 2 but those in `keep`: whatever a shell leaked into us must not stay open for as long
/// as a container runs.
pub fn close_all_but(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first = 3;
    for &fd in keep.iter() {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers. Called before this process has opened anything of its own, so no owned descriptor is
    // closed behind its owner's back.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process was started with the signal ignored (`nohup`, `cmd &` in a script): it must stay so.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction is plain data, for which all zeroes is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null second argument only asks; the third points to a sigaction that outlives the call.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}
