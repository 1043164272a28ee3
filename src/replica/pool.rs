//! The fsync pool: a few named threads that may wait for a disk so that nobody else does.
//!
//! A thread stuck in the kernel cannot be ended; `drop` leaves it behind after a deadline and says so.

use crate::replica::wire::join_within;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Jobs that wait for a thread. Each belongs to one blocked application thread or to one frame of
/// the window, so this is reached only when both are far beyond their own limits.
const QUEUE_MAX: usize = 16 * 1024;

type Job = Box<dyn FnOnce() + Send>;

struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// See the module.
pub struct SyncPool {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

impl SyncPool {
    /// Starts `threads` threads called `name-N`.
    pub fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let queue = Queue { jobs: VecDeque::new(), closed: false };
        let shared = Arc::new((Mutex::new(queue), Condvar::new()));
        let mut pool = Self { shared, threads: Vec::new() };
        for n in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("{name}-{n}"));
            pool.threads.push(thread.spawn(move || work(&shared))?);
        }
        Ok(pool)
    }

    /// Runs `job` soon. With a full queue it runs here and now, so that nothing is ever refused.
    pub fn run(&self, job: Job) {
        let mut queue = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.jobs.len() >= QUEUE_MAX {
            drop(queue);
            job();
            return;
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.1.notify_one();
    }
}

fn work(shared: &(Mutex<Queue>, Condvar)) {
    loop {
        let job = {
            let mut queue = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                queue = shared.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        job();
    }
}

impl Drop for SyncPool {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.1.notify_all();
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            if thread.thread().id() != me {
                join_within(thread, Duration::from_secs(2));
            }
        }
    }
}
