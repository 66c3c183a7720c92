//! Threads that share one computation at a time.
//!
//! A training step consists of some hundred computations of 20 to 2000 µs, with short pauses between them.
//! The threads of the team therefore poll for the next one for a while before they go to sleep, which a
//! general pool cannot afford. Work is handed out unit by unit, so a thread that the machine does not
//! schedule simply takes fewer of them; every unit writes its own part of the result, so the assignment does
//! not affect the result.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread polls for work before it sleeps: longer than choosing a token takes, as long as a
/// few wake-ups.
const WATCH: Duration = Duration::from_micros(200);

/// Number of threads that take part, the calling one included: `RAYON_NUM_THREADS`, or one per core.
pub(crate) fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        std::env::var("RAYON_NUM_THREADS")
            .ok()
            .and_then(|threads| threads.parse().ok())
            .filter(|&threads| threads > 0)
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    })
}

/// Calls `unit(i)` for each `i` below `units`, on all threads if `worthwhile`.
///
/// A call made while the team is busy, by one of its own units or by another thread, does all the work
/// itself.
pub(crate) fn for_each(units: usize, worthwhile: bool, unit: impl Fn(usize) + Sync) {
    if worthwhile
        && units > 1
        && threads() > 1
        && let Some(team) = Team::lock()
    {
        team.for_each(units, &unit);
    } else {
        (0..units).for_each(unit);
    }
}

struct Team {
    members: Vec<Arc<Member>>,
}

impl Team {
    fn get() -> &'static Mutex<Team> {
        static TEAM: OnceLock<Mutex<Team>> = OnceLock::new();
        TEAM.get_or_init(|| Mutex::new(Team { members: (1..threads()).filter_map(Member::start).collect() }))
    }

    /// The team, unless it is busy.
    ///
    /// A panic in a unit poisons the lock and leaves the members in order, since they are recalled as it unwinds: the
    /// team remains usable.
    fn lock() -> Option<MutexGuard<'static, Team>> {
        match Team::get().try_lock() {
            Ok(team) => Some(team),
            Err(TryLockError::Poisoned(poisoned)) => {
                Team::get().clear_poison();
                Some(poisoned.into_inner())
            }
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn for_each(&self, units: usize, unit: &(dyn Fn(usize) + Sync)) {
        let work = Work { next: AtomicUsize::new(0), units, unit, panicked: AtomicBool::new(false) };
        // Dropped at the end, or when a unit panics here: no member may see `work` after that.
        let guard = RecallGuard { members: &self.members };
        for member in self.members.iter().take(units - 1) {
            member.offer(&work);
        }
        work.run();
        drop(guard);
        if work.panicked.load(Ordering::Relaxed) {
            resume_unwind(Box::new("a unit of work panicked on another thread"));
        }
    }
}

/// Takes the work back from the members, waiting for those that are working.
struct RecallGuard<'a> {
    members: &'a [Arc<Member>],
}

impl Drop for RecallGuard<'_> {
    fn drop(&mut self) {
        for member in self.members {
            member.recall();
        }
    }
}

/// One computation, on the stack of the thread that asked for it.
struct Work<'a> {
    next: AtomicUsize,
    units: usize,
    unit: &'a (dyn Fn(usize) + Sync),
    panicked: AtomicBool,
}

impl Work<'_> {
    fn run(&self) {
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= self.units {
                return;
            }
            (self.unit)(unit);
        }
    }
}

/// State of a member.
mod state {
    /// Polling for work.
    pub(super) const WATCHING: u32 = 0;
    /// Sleeping until woken.
    pub(super) const ASLEEP: u32 = 1;
    /// Offered work.
    pub(super) const OFFERED: u32 = 2;
    /// Working.
    pub(super) const WORKING: u32 = 3;
}

struct Member {
    state: AtomicU32,
    /// The work on offer. Written by the team's owner before it sets `OFFERED`; read by the member after it
    /// has turned that into `WORKING`.
    work: UnsafeCell<*const Work<'static>>,
    thread: OnceLock<Thread>,
}

// SAFETY: `work` is handed over by the acquire and release operations on `state`, as said there.
unsafe impl Sync for Member {}
// SAFETY: as above; the pointer is only read between `offer` and the end of `recall`, while its target lives.
unsafe impl Send for Member {}

impl Member {
    /// Starts a thread; `None` if the system refuses, and the team is then smaller.
    fn start(index: usize) -> Option<Arc<Self>> {
        let member = Arc::new(Self {
            state: AtomicU32::new(state::WATCHING),
            work: UnsafeCell::new(std::ptr::null()),
            thread: OnceLock::new(),
        });
        let own = member.clone();
        let thread =
            thread::Builder::new().name(format!("kernels-{index}")).spawn(move || own.serve()).ok()?;
        member.thread.set(thread.thread().clone()).ok()?;
        Some(member)
    }

    fn offer(&self, work: &Work<'_>) {
        let work: *const Work<'_> = work;
        // SAFETY: the state is neither OFFERED nor WORKING here, so the member does not read the cell. The
        // lifetime is erased; `recall` ends every use before the work goes.
        unsafe { *self.work.get() = work.cast() };
        if self.state.swap(state::OFFERED, Ordering::AcqRel) == state::ASLEEP
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn recall(&self) {
        // A member that has not begun need not start: no work is left.
        let untouched =
            self.state.compare_exchange(state::OFFERED, state::WATCHING, Ordering::AcqRel, Ordering::Acquire);
        if untouched.is_err() {
            let mut rounds = 0_u32;
            while self.state.load(Ordering::Acquire) == state::WORKING {
                rounds += 1;
                if rounds.is_multiple_of(4096) {
                    thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn serve(&self) {
        let mut idle_since = Instant::now();
        let mut rounds = 0_u32;
        loop {
            if self.exchange(state::OFFERED, state::WORKING) {
                // SAFETY: OFFERED was set after the pointer was written, and `recall` waits while WORKING.
                let work = unsafe { &**self.work.get() };
                if catch_unwind(AssertUnwindSafe(|| work.run())).is_err() {
                    work.panicked.store(true, Ordering::Relaxed);
                }
                self.state.store(state::WATCHING, Ordering::Release);
                idle_since = Instant::now();
                continue;
            }
            std::hint::spin_loop();
            rounds = rounds.wrapping_add(1);
            // The clock is read only occasionally.
            if rounds.is_multiple_of(64)
                && idle_since.elapsed() > WATCH
                && self.exchange(state::WATCHING, state::ASLEEP)
            {
                while self.state.load(Ordering::Acquire) == state::ASLEEP {
                    thread::park();
                }
                idle_since = Instant::now();
            }
        }
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(units: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
        for_each(units, true, |unit| {
            counts[unit].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn each_unit_runs_once() {
        for units in [0, 1, 2, 3, 17, 1000] {
            assert!(count(units).iter().all(|&count| count == 1), "{units} units");
        }
    }

    #[test]
    fn callers_do_not_disturb_each_other() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert!(count(13).iter().all(|&count| count == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn members_wake_from_sleep() {
        for _ in 0..5 {
            thread::sleep(WATCH * 10);
            assert!(count(64).iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn nested_work_is_done_by_its_caller() {
        let total = AtomicUsize::new(0);
        for_each(4, true, |_| {
            for_each(5, true, |_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 20);
    }

    /// Whether two units run at the same time. Tests share the team, so that it may be busy at first.
    fn runs_in_parallel() -> bool {
        (0..500).any(|_| {
            let arrived = AtomicUsize::new(0);
            let met = AtomicBool::new(false);
            for_each(2, true, |_| {
                arrived.fetch_add(1, Ordering::AcqRel);
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(20) {
                    if arrived.load(Ordering::Acquire) == 2 {
                        met.store(true, Ordering::Release);
                        return;
                    }
                    thread::yield_now();
                }
                // Alone: the other unit need not wait for this one.
                arrived.store(usize::MAX / 2, Ordering::Release);
            });
            met.into_inner()
        })
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_parallel() {
        for culprit in [0, 33] {
            let result = catch_unwind(|| for_each(64, true, |unit| assert!(unit != culprit, "unit {unit}")));
            assert!(result.is_err());
            assert!(count(64).iter().all(|&count| count == 1));
            assert!(threads() == 1 || runs_in_parallel());
        }
    }
}
