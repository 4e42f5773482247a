//! Hard links: the first name of an inode that is met is copied, the others become links to the copy.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Device and inode number.
pub(super) type Key = (u64, u64);

/// The inodes with more than one name that were met so far.
#[derive(Default)]
pub(super) struct Links {
    inodes: Mutex<HashMap<Key, State>>,
    settled: Condvar,
}

enum State {
    InWork,
    Made(Arc<[u8]>),
    LeftOut,
}

/// What to do with a name of an inode that has several.
pub(super) enum Claim {
    /// Make the inode, then say so with [`Links::settle`], whatever came of it.
    Make,
    /// Link to the copy at this path.
    Link(Arc<[u8]>),
    /// It cannot be made here.
    LeftOut,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, State>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an inode. Waits while another thread makes it, so that a directory is complete (and can get its times)
    /// once all its names were dealt with.
    pub(super) fn claim(&self, key: Key) -> Claim {
        let mut inodes = self.lock();
        loop {
            match inodes.get(&key) {
                None => {
                    inodes.insert(key, State::InWork);
                    return Claim::Make;
                }
                Some(State::Made(path)) => return Claim::Link(path.clone()),
                Some(State::LeftOut) => return Claim::LeftOut,
                Some(State::InWork) => {
                    inodes = self.settled.wait(inodes).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Says where the inode was made, or that it was not.
    pub(super) fn settle(&self, key: Key, path: Option<&[u8]>) {
        let state = path.map_or(State::LeftOut, |path| State::Made(path.into()));
        self.lock().insert(key, state);
        self.settled.notify_all();
    }

    /// Forgets a copy that has as many names as the file system allows; the next claim makes another.
    pub(super) fn forget(&self, key: Key, full: &Arc<[u8]>) {
        let mut inodes = self.lock();
        if matches!(inodes.get(&key), Some(State::Made(path)) if Arc::ptr_eq(path, full)) {
            inodes.remove(&key);
        }
    }
}
