//! What a guard is told at its start.

use super::log::LogQueue;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of one guard. The two budgets hold until the worker sets its own.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// Program and arguments of the worker.
    pub worker_argv: Vec<OsString>,
    /// Directory of volatile state (lock, record of processes, logs of services); made if absent.
    pub run_dir: PathBuf,
    /// Time without a ready worker before the tombstone is sent. One heartbeat timeout: about when the peer would
    /// conclude the same by itself.
    pub freeze_budget: Duration,
    /// Time without a ping before the worker counts as hung: three heartbeat timeouts, at least 5 s.
    pub watchdog: Duration,
    /// A worker that is not ready after this is killed. Generous: it may have a slow disk to read first.
    pub ready_timeout: Duration,
    /// Installs the subscriber of the guard's process on a writer that never blocks (`telemetry::init_to`); it is
    /// called once signals are blocked. `None`: the process has one, or wants none.
    pub log: Option<fn(LogQueue)>,
    /// Time for an orderly shutdown of the worker; then it is fenced.
    pub shutdown_timeout: Duration,
}

impl GuardConfig {
    /// The defaults for a heartbeat timeout of 2 s.
    pub fn new(worker_argv: Vec<OsString>, run_dir: PathBuf) -> Self {
        Self {
            worker_argv,
            run_dir,
            freeze_budget: Duration::from_secs(2),
            watchdog: Duration::from_secs(6),
            ready_timeout: Duration::from_secs(30),
            log: None,
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}
