//! A lab of a test: alone on the machine, with a deadline, diagnosed on failure, removed at the end.

use skc::lab::{Lab, Node};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest life of a scenario. Passing it ends the whole test process: something hangs.
const DEADLINE: Duration = Duration::from_secs(240);

static ALONE: Mutex<()> = Mutex::new(());

/// A lab with its nodes booted; dereferences to [`Lab`].
pub struct Arena {
    lab: Lab,
    done: Arc<AtomicBool>,
    _alone: MutexGuard<'static, ()>,
}

/// Boots a lab for the scenario `name`. `None`, with the reason printed, where tests cannot run.
pub fn arena(name: &str) -> Option<Arena> {
    arena_for(name, Duration::ZERO)
}

/// For a scenario that takes `longer` than the others on purpose.
pub fn arena_for(name: &str, longer: Duration) -> Option<Arena> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_skc"));
    if let Err(error) = Lab::preflight() {
        crate::skip::skipped(&crate::skip::this_test(), error);
        return None;
    }
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The process id keeps test runs of several checkouts on one machine apart.
    let lab = Lab::new(&format!("{name}-{}", std::process::id()), None, program).expect("a valid lab name");
    lab.up().expect("the lab comes up");
    let done = Arc::new(AtomicBool::new(false));
    watch(lab.clone(), done.clone(), DEADLINE + longer);
    Some(Arena { lab, done, _alone: alone })
}

/// Ends the process when the scenario outlives its deadline.
fn watch(lab: Lab, done: Arc<AtomicBool>, limit: Duration) {
    let end = Instant::now() + limit;
    std::thread::spawn(move || {
        while !done.load(Ordering::Acquire) {
            if Instant::now() >= end {
                eprintln!("HANGS: {} is not done after {limit:?}\n{}", lab.name(), lab.diagnosis());
                if let Err(error) = lab.down() {
                    eprintln!("cleaning up: {error}");
                }
                std::process::exit(101);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

impl std::ops::Deref for Arena {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.lab.diagnosis());
        }
        if let Err(error) = self.lab.down() {
            eprintln!("cleaning up {}: {error}", self.lab.name());
        }
        self.done.store(true, Ordering::Release);
    }
}

/// Asks until `check` holds; panics with `what` when `limit` is over.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let met = skc::lab::process::poll(limit, || check().then_some(()));
    assert!(met.is_some(), "{what} within {limit:?}");
}

/// Stays true for the whole time, looked at often.
#[track_caller]
pub fn always(what: &str, time: Duration, mut check: impl FnMut() -> bool) {
    let broken = skc::lab::process::poll(time, || (!check()).then_some(()));
    assert!(broken.is_none(), "{what} for {time:?}");
}

/// A short name for a node's address on net 1 with a port.
pub fn at(node: Node, port: u16) -> String {
    format!("{}:{port}", node.address(1))
}
