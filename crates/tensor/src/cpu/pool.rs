//! The compute threads: one pool for all models. Threads claim whole tasks, so a stalled core does not stall a step.
//!
//! A pass takes microseconds and hundreds of them make a step, so a pass begins and ends with a few atomic operations: workers
//! look for the next one for a while before they sleep.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// How often a worker looks for the next pass before it sleeps: some 50 us, longer than what lies between two passes of a step.
const SPINS: u32 = 4_000;
/// How often the caller looks whether the others are done before it offers its core to them: one may wait for just that.
const PATIENCE: u32 = 20_000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The pass that runs, of which there is one at a time.
struct Pass {
    /// Its number in the high half, the tasks that nobody has claimed yet in the low half. A task is claimed by counting it
    /// down while the number is the same, so that a worker that was stopped in between cannot claim of a later pass.
    state: AtomicU64,
    /// What to run and how often. Written before `state`, read after a task was claimed.
    run: UnsafeCell<(*const Task<'static>, usize)>,
    /// Claimed or not, but not finished.
    unfinished: AtomicUsize,
    panicked: AtomicBool,
    ended: AtomicBool,
    sleeping: Mutex<()>,
    sleepers: AtomicUsize,
    wake: Condvar,
}

// SAFETY: `run` is written while no task can be claimed, and points at a `Sync` closure that outlives the pass.
unsafe impl Send for Pass {}
// SAFETY: as above; all other fields are synchronised by themselves.
unsafe impl Sync for Pass {}

impl Pass {
    /// Claims and runs tasks of pass `number` until there are none.
    fn work(&self, number: u64) {
        let mut state = self.state.load(Ordering::Acquire);
        while state >> 32 == number && state as u32 > 0 {
            match self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire) {
                Err(seen) => state = seen,
                Ok(_) => {
                    // SAFETY: a task of this pass was claimed, so `Pool::run` still waits and the closure is alive.
                    let (run, tasks) = unsafe {
                        let (run, tasks) = *self.run.get();
                        (&*run, tasks)
                    };
                    let task = tasks - state as u32 as usize;
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(task))).is_err() {
                        self.panicked.store(true, Ordering::Relaxed);
                    }
                    self.unfinished.fetch_sub(1, Ordering::Release);
                    state = self.state.load(Ordering::Acquire);
                }
            }
        }
    }
}

pub struct Pool {
    pass: Arc<Pass>,
    workers: Vec<JoinHandle<()>>,
    /// Held by whoever runs a pass.
    turn: Mutex<()>,
}

impl Pool {
    /// `threads` compute, the caller's own among them.
    pub fn new(threads: usize) -> Self {
        let nothing: *const Task<'static> = &|_: usize| {};
        let pass = Arc::new(Pass {
            state: AtomicU64::new(0),
            run: UnsafeCell::new((nothing, 0)),
            unfinished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            sleeping: Mutex::new(()),
            sleepers: AtomicUsize::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let pass = pass.clone();
                std::thread::Builder::new()
                    .name(format!("compute-{index}"))
                    .spawn(move || worker(&pass))
                    .expect("the operating system gives a thread")
            })
            .collect();
        Self { pass, workers, turn: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `run(0) .. run(tasks - 1)`, each once, in any order, on all threads; returns when all are done.
    pub fn run(&self, tasks: usize, run: &Task<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(run);
            return;
        }
        assert!(u32::try_from(tasks).is_ok(), "a pass has fewer than 2^32 tasks");
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let pass = &*self.pass;
        // SAFETY: only the lifetime is erased; this function does not return before every task is done, and none is claimed
        // after that.
        let run: *const Task<'static> = unsafe { std::mem::transmute(run as *const Task<'_>) };
        // SAFETY: the pass before has no task left to claim, so nobody reads it.
        unsafe { *pass.run.get() = (run, tasks) };
        pass.unfinished.store(tasks, Ordering::Relaxed);
        let number = (pass.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        pass.state.store(number << 32 | tasks as u64, Ordering::SeqCst);
        if pass.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleeping = pass.sleeping.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            pass.wake.notify_all();
        }
        pass.work(number);
        let mut looks = 0u32;
        while pass.unfinished.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < PATIENCE { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        assert!(!pass.panicked.swap(false, Ordering::Relaxed), "a compute task panicked");
    }
}

fn worker(pass: &Pass) {
    let mut done = 0;
    loop {
        let mut number = pass.state.load(Ordering::Acquire) >> 32;
        for _ in 0..SPINS {
            if number != done || pass.ended.load(Ordering::Relaxed) {
                break;
            }
            std::hint::spin_loop();
            number = pass.state.load(Ordering::Acquire) >> 32;
        }
        if number == done {
            let mut sleeping = pass.sleeping.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // Counted before the last look: whoever begins a pass after it sees that somebody sleeps.
            pass.sleepers.fetch_add(1, Ordering::SeqCst);
            while pass.state.load(Ordering::SeqCst) >> 32 == done && !pass.ended.load(Ordering::Relaxed) {
                sleeping = pass.wake.wait(sleeping).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            pass.sleepers.fetch_sub(1, Ordering::SeqCst);
            number = pass.state.load(Ordering::SeqCst) >> 32;
        }
        if pass.ended.load(Ordering::Relaxed) {
            return;
        }
        pass.work(number);
        done = number;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _sleeping = self.pass.sleeping.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.pass.ended.store(true, Ordering::Relaxed);
            self.pass.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_many_passes_runs_once() {
        let pool = Pool::new(3);
        for tasks in (0..2_000).map(|pass| pass % 37) {
            let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|task| {
                runs[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            if tasks == 36 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn a_task_that_panics_fails_its_pass_and_no_later_one() {
        let pool = Pool::new(2);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(8, &|task| assert_ne!(task, 5, "on purpose"));
        }));
        assert!(failed.is_err());
        pool.run(8, &|_| {});
    }
}
