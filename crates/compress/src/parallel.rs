//! Units processed in parallel, within a cap on memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{CompressError, Result};

/// Refuses work of which the largest part alone exceeds the cap.
///
/// # Errors
/// [`CompressError::Option`] with the name of that part and the bytes it needs.
pub(crate) fn check_cap(
    indices: &[usize],
    cap: Option<u64>,
    need: impl Fn(usize) -> u64,
    name: impl Fn(usize) -> String,
) -> Result<()> {
    let worst = indices.iter().map(|&index| (need(index), index)).max();
    match (cap, worst) {
        (Some(cap), Some((most, index))) if most > cap => Err(CompressError::Option {
            option: "memory",
            value: cap.to_string(),
            expected: format!("at least {most} bytes for '{}'", name(index)),
        }),
        _ => Ok(()),
    }
}

/// Runs `work` on the indices, several at a time while the bytes returned by `need` fit the cap, and returns
/// the results in order. The first error stops the rest.
pub(crate) fn map<T: Send>(
    indices: &[usize],
    cap: Option<u64>,
    need: impl Fn(usize) -> u64 + Sync,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = threads.min(indices.len()).max(1);
    let gate = Gate::new(cap.unwrap_or(u64::MAX));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Vec<Mutex<Option<Result<T>>>> = indices.iter().map(|_| Mutex::new(None)).collect();
    // Several matrices at once use the cores better than one matrix on all of them.
    let pools = (0..workers).map(|_| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.div_ceil(workers))
            .build()
            .map_err(|e| CompressError::Input(format!("cannot start threads: {e}")))
    });
    let pools: Vec<rayon::ThreadPool> = pools.collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        for pool in &pools {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= indices.len() || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let bytes = gate.enter(need(indices[place]));
                    let result = pool.install(|| work(indices[place]));
                    gate.leave(bytes);
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    *results[place].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    let taken = results.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    // Work that was not started comes after an error.
    taken.flatten().collect()
}

/// Counts bytes in use.
struct Gate {
    free: Mutex<u64>,
    cap: u64,
    freed: Condvar,
}

impl Gate {
    fn new(cap: u64) -> Self {
        Self { free: Mutex::new(cap), cap, freed: Condvar::new() }
    }

    /// Waits until there is room; a request above the cap takes all of it.
    fn enter(&self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.cap);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.freed.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        bytes
    }

    fn leave(&self, bytes: u64) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_the_cap_holds() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let indices: Vec<usize> = (0..20).collect();
        let squares = map(
            &indices,
            Some(10),
            |_| 6,
            |i| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(1));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(i * i)
            },
        );
        assert_eq!(squares.unwrap(), indices.iter().map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(most.into_inner(), 1, "two of 6 do not fit into 10");
    }

    #[test]
    fn the_first_error_is_the_result() {
        let indices: Vec<usize> = (0..20).collect();
        let result = map(
            &indices,
            None,
            |_| 1,
            |i| {
                if i == 3 { Err(CompressError::Input("three".into())) } else { Ok(i) }
            },
        );
        assert_eq!(result.unwrap_err().to_string(), "three");
    }
}
