//! The compute threads: one pool for all models. Threads claim whole tasks, so a stalled core does not stall a step.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// How often a worker looks for the next job before it sleeps: passes follow each other within microseconds.
const SPINS: u32 = 2_000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A job: tasks `0..tasks`, each run once by whoever claims it.
struct Job {
    run: *const Task<'static>,
    tasks: usize,
    next: AtomicUsize,
    done: AtomicUsize,
    panicked: std::sync::atomic::AtomicBool,
}

// SAFETY: `run` points at a `Sync` closure that outlives the job: `Pool::run` returns only when every task is done.
unsafe impl Send for Job {}
// SAFETY: as above; all other fields are atomics.
unsafe impl Sync for Job {}

impl Job {
    fn work(&self) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            // SAFETY: a task was claimed, so `Pool::run` still waits and the closure is alive.
            let run = unsafe { &*self.run };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(task))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }
}

struct Shared {
    /// (number of the job, the job); `None` ends the workers.
    current: Mutex<(u64, Option<Arc<Job>>, bool)>,
    number: std::sync::atomic::AtomicU64,
    wake: Condvar,
}

pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` compute, the caller's own among them.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            current: Mutex::new((0, None, false)),
            number: Default::default(),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("compute-{index}"))
                    .spawn(move || worker(&shared))
                    .expect("the operating system gives a thread")
            })
            .collect();
        Self { shared, workers }
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
        // SAFETY: only the lifetime is erased; this function does not return before every claimed task is done, and none is
        // claimed after that.
        let run: *const Task<'static> = unsafe { std::mem::transmute(run as *const Task<'_>) };
        let job = Arc::new(Job {
            run,
            tasks,
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            panicked: Default::default(),
        });
        {
            let mut current = self.shared.current.lock().unwrap_or_else(|e| e.into_inner());
            current.0 += 1;
            current.1 = Some(job.clone());
            self.shared.number.store(current.0, Ordering::Release);
        }
        self.shared.wake.notify_all();
        job.work();
        while job.done.load(Ordering::Acquire) < tasks {
            std::hint::spin_loop();
        }
        assert!(!job.panicked.load(Ordering::Relaxed), "a compute task panicked");
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0;
    loop {
        for _ in 0..SPINS {
            if shared.number.load(Ordering::Acquire) != seen {
                break;
            }
            std::hint::spin_loop();
        }
        let job = {
            let mut current = shared.current.lock().unwrap_or_else(|e| e.into_inner());
            while current.0 == seen && !current.2 {
                current = shared.wake.wait(current).unwrap_or_else(|e| e.into_inner());
            }
            if current.2 {
                return;
            }
            seen = current.0;
            current.1.clone()
        };
        if let Some(job) = job {
            job.work();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.current.lock().unwrap_or_else(|e| e.into_inner()).2 = true;
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
