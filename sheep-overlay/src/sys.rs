//! The system calls that neither rustix nor nix has in a safe form; the one module with `unsafe`.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// The signal that asked this program to end, or 0.
static INTERRUPTED_BY: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_interrupt(signal: libc::c_int) {
    INTERRUPTED_BY.store(signal, Ordering::Relaxed);
}

/// From here on Ctrl-C, SIGTERM and SIGHUP end nothing by themselves but are noted for [`interrupted`], so that what is
/// half-made can be undone first. Calls that wait return `EINTR`.
pub fn catch_interrupts() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note_interrupt), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store into an atomic, which is async-signal-safe.
        let before = unsafe { sigaction(signal, &action) }?;
        if matches!(before.handler(), SigHandler::SigIgn) {
            // Somebody (nohup) wanted it ignored: so it stays.
            // SAFETY: the disposition that was there a moment ago is put back.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// Whether a signal asked this program to end since [`catch_interrupts`]. Long work looks here now and then.
pub fn interrupted() -> bool {
    INTERRUPTED_BY.load(Ordering::Relaxed) != 0
}

/// Dies of the signal that was caught, once everything is undone: the shell then knows why. Returns if there was none.
pub fn die_of_interrupt() {
    let Ok(signal) = Signal::try_from(INTERRUPTED_BY.load(Ordering::Relaxed)) else { return };
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    if unsafe { sigaction(signal, &default) }.is_ok() {
        // A signal that cannot be raised leaves the ordinary way out: the error that says "interrupted".
        let _ = raise(signal);
    }
}

/// Begins to write a file's pages to the disk and does not wait for them.
pub fn begin_writeback(file: &File) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for the length of the call.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The file handle of `name` in `dir`, of its own and no link's target: its type and its bytes. `None` where the file
/// system has none, or the file has gone.
pub fn file_handle(dir: BorrowedFd<'_>, name: &CStr) -> Option<(i32, Vec<u8>)> {
    const MOST: usize = 128;
    #[repr(C)]
    struct Handle {
        length: libc::c_uint,
        kind: libc::c_int,
        bytes: [u8; MOST],
    }
    let mut handle = Handle { length: MOST as _, kind: 0, bytes: [0; MOST] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: the handle says how many bytes it has room for, and all that is passed outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            0 as libc::c_int,
        )
    };
    (done == 0).then(|| (handle.kind, handle.bytes[..(handle.length as usize).min(MOST)].to_vec()))
}
