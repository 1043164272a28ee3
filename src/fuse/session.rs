//! Threads that read requests from the device and run them.
//!
//! One or two, on the one shared descriptor: more readers than cores lose, and a request holds no
//! thread while its reply waits. A session ends when the connection does (unmount, abort) or when it
//! is stopped; stopping leaves the connection alive for whoever takes the descriptor over.

use super::device::{Device, Received};
use super::fs::{MirrorFs, Scratch};
use super::init::{HEAD_ROOM, InitValues};
use crate::ports::Errno;
use crate::sys::wake;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// State shared with the readers.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Readers still running.
    running: Mutex<usize>,
    changed: Condvar,
}

/// Running readers.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Counts a reader out, also when it panics.
struct Leaving(Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = running.saturating_sub(1);
        self.0.changed.notify_all();
    }
}

fn serve(fs: &Arc<MirrorFs>, device: &Device, init: InitValues, shared: &Shared) {
    let mut buf = vec![0; init.max_write as usize + HEAD_ROOM];
    let mut scratch = Scratch::default();
    while !shared.stop.load(Ordering::Acquire) {
        match device.receive(&mut buf) {
            Received::Request(len) => {
                fs.dispatch(&buf[..len], &mut scratch);
            }
            Received::Nothing => {}
            Received::Ended => return,
        }
    }
}

impl Session {
    /// Starts `workers` readers.
    ///
    /// # Errors
    /// EAGAIN where no thread can be made.
    pub fn start(
        fs: &Arc<MirrorFs>,
        device: &Arc<Device>,
        init: InitValues,
        workers: usize,
        name: &str,
    ) -> Result<Self, Errno> {
        wake::install()?;
        let session = Self { shared: Arc::default(), threads: Mutex::default() };
        for n in 0..workers.max(1) {
            let (fs, device, shared) = (Arc::clone(fs), Arc::clone(device), Arc::clone(&session.shared));
            *shared.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            let leaving = Leaving(Arc::clone(&shared));
            let thread = std::thread::Builder::new().name(format!("fuse-{name}-{n}")).spawn(move || {
                let _leaving = leaving;
                serve(&fs, &device, init, &shared);
            });
            match thread {
                Ok(thread) => session.lock().push(thread),
                Err(error) => {
                    session.stop(Duration::from_secs(1));
                    return Err(crate::sys::errno::of(&error));
                }
            }
        }
        Ok(session)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is any reader still running?
    pub fn is_running(&self) -> bool {
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Waits until every reader has ended by itself; false at the deadline.
    pub fn wait_ended(&self, limit: Duration) -> bool {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.changed.wait_timeout_while(running, limit, |n| *n > 0);
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *running == 0
    }

    /// Stops the readers, finishing the requests they run. False if one did not stop within `limit`
    /// (it waits for the replicator); it will stop after its request.
    pub fn stop(&self, limit: Duration) -> bool {
        self.shared.stop.store(true, Ordering::Release);
        let deadline = Instant::now() + limit;
        loop {
            for thread in self.lock().iter().filter(|t| !t.is_finished()) {
                wake::poke(thread.as_pthread_t() as _);
            }
            // A signal may come just before the read it is meant for: again, a little later.
            if self.wait_ended(Duration::from_millis(5)) {
                break;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
        for thread in self.lock().drain(..) {
            // A reader's panic was already reported by the panic hook.
            let _ = thread.join();
        }
        true
    }
}
