//! Ctrl-C leaves nothing half-made behind.
//!
//! The signals are blocked in every thread and waited for in one of their own, which deletes the scratch directories
//! and ends the program. While a result is being put in its place ([`Commit`]) it waits: that is short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use nix::sys::signal::{SigSet, Signal};

use crate::scratch;

/// More than enough to be quicker than one thread that makes files. If not, the next command clears up.
const RETRIES: u32 = 1000;

static ENABLED: AtomicBool = AtomicBool::new(false);
static STARTED: Once = Once::new();
static SCRATCH: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static COMMITTING: Mutex<()> = Mutex::new(());

/// To be called first in the program: from the first scratch directory on, signals are answered.
pub fn clean_up_on_signals() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Threads that are started later inherit the blocked signals.
fn answer_signals() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    if signals.thread_block().is_err() {
        // Then signals end the program as they always do, and the next command clears up.
        return;
    }
    std::thread::spawn(move || {
        let signal = loop {
            match signals.wait() {
                Ok(signal) => break signal,
                Err(nix::errno::Errno::EINTR) => (),
                Err(_) => return,
            }
        };
        let _commit = lock(&COMMITTING);
        for path in lock(&SCRATCH).iter() {
            // Another thread may still be making files here, until the directory is gone under it.
            let gone = || scratch::delete_dir(path).is_ok();
            let _ = (0..RETRIES).any(|_| gone());
        }
        std::process::exit(128 + signal as i32);
    });
}

/// Held while a result is put in its place, so that no signal comes between its steps.
pub struct Commit {
    _guard: MutexGuard<'static, ()>,
}

/// Begins to put a result in its place. While a signal is being answered this does not return.
pub fn commit() -> Commit {
    Commit { _guard: lock(&COMMITTING) }
}

/// Makes a directory that is to be deleted on a signal: no signal finds it made and not noted.
pub fn make_dir<T>(path: &Path, make: impl FnOnce() -> T) -> T {
    if ENABLED.load(Ordering::Relaxed) {
        STARTED.call_once(answer_signals);
    }
    let mut noted = lock(&SCRATCH);
    noted.insert(path.to_path_buf());
    make()
}

/// The directory is deleted, or is in its place.
pub fn forget(path: &Path) {
    lock(&SCRATCH).remove(path);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing in these that could be half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
