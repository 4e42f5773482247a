//! The same work for several things at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};

/// Layers need a thread that reads, hashes and decompresses, and one that writes; more than this at once only wait for
/// the disk.
const MOST: usize = 8;

/// How many things are worth doing at once where each has work for the processor.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(2, |n| n.get()).min(MOST)
}

/// Does `work` for each item, as many at a time as there are processors, and gives the results as [`each_of`] does.
pub fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> Result<R> + Sync) -> Result<Vec<R>> {
    each_of(workers(), items, work)
}

/// Does `work` for each item, `workers` at a time, and gives the results in the items' order. After an error nothing new
/// is begun; of several errors the first item's is given.
pub fn each_of<T: Sync, R: Send>(
    workers: usize,
    items: &[T],
    work: impl Fn(usize, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let threads = workers.min(items.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<Vec<Option<Result<R>>>> = Mutex::new(items.iter().map(|_| None).collect());
    let run = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at).filter(|_| !failed.load(Ordering::Relaxed)) else { return };
            let result = work(at, item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Items are begun in their order, so that what was never begun stands behind an error.
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(anyhow!("it was not begun")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_errors_end_it() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(each(&items, |at, item| Ok(at + item)).unwrap(), (0..100).map(|n| 2 * n).collect::<Vec<_>>());
        let odd = |_: usize, item: &usize| if *item == 7 { Err(anyhow!("seven")) } else { Ok(()) };
        assert_eq!(each(&items, odd).unwrap_err().to_string(), "seven");
        assert!(each(&[] as &[u8], |_, _| Ok(())).unwrap().is_empty());
    }
}
