//! Work shared by a few threads: last in, first out, so that a tree is finished branch by branch and little of it is
//! open at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Error;

/// Tasks to be done; doing one may add others.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

struct State<T> {
    tasks: Vec<T>,
    /// Threads that do a task now, and may add others.
    working: usize,
    waiting: usize,
    failed: Option<Error>,
}

impl<T> Queue<T> {
    pub(super) fn new(first: T) -> Self {
        let state = State { tasks: vec![first], working: 0, waiting: 0, failed: None };
        Queue { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, tasks: impl IntoIterator<Item = T>) {
        let mut state = self.lock();
        state.tasks.extend(tasks);
        if state.waiting > 0 {
            self.wake.notify_all();
        }
    }

    /// Does tasks until there are none, or one has failed in any of the threads.
    pub(super) fn work(&self, mut act: impl FnMut(T) -> Result<(), Error>) {
        let mut state = self.lock();
        while state.failed.is_none() {
            if let Some(task) = state.tasks.pop() {
                state.working += 1;
                drop(state);
                let done = act(task);
                state = self.lock();
                state.working -= 1;
                if let (Err(error), None) = (done, &state.failed) {
                    state.failed = Some(error);
                }
            } else if state.working == 0 {
                break;
            } else {
                state.waiting += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
            }
        }
        // The last one out tells those that wait for more; so does one that found a failure.
        self.wake.notify_all();
    }

    /// Whether a task has failed, so that long ones can stop.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed.is_some()
    }

    /// The first error.
    pub(super) fn result(self) -> Result<(), Error> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).failed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_task_is_done_and_an_error_stops_all() {
        let queue = Queue::new(12u32);
        let done = AtomicUsize::new(0);
        let act = |n: u32| {
            done.fetch_add(1, Ordering::Relaxed);
            queue.add([n, n].into_iter().filter(|n| *n > 0).map(|n| n - 1));
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| queue.work(act));
            }
        });
        assert_eq!(done.into_inner(), (1 << 13) - 1);
        queue.result().unwrap();

        let queue = Queue::new(0u32);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    queue.work(|n| {
                        queue.add([n + 1, n + 1]);
                        if n == 50 { Err(Error::msg("fifty")) } else { Ok(()) }
                    })
                });
            }
        });
        assert!(queue.has_failed());
        assert_eq!(queue.result().unwrap_err().to_string(), "fifty");
    }
}
