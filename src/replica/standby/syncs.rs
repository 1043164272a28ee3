//! Syncs that run on the pool, and since when.
//!
//! A disk may hang while its page cache still takes writes: frames are then applied and acknowledged,
//! but no fsync ends. The apply thread looks at the oldest one now and then; past a limit this side
//! counts as failed, so that nobody waits for it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Names one sync for as long as this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::replica) struct SyncId(u64);

#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<SyncId, Instant>,
}

/// See the module.
#[derive(Default)]
pub(in crate::replica) struct Syncs(Mutex<State>);

impl Syncs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One was asked for. Its wait for a thread of the pool counts: the threads hang first.
    pub fn begin(&self) -> SyncId {
        let mut state = self.lock();
        let id = SyncId(state.next);
        state.next += 1;
        state.running.insert(id, Instant::now());
        id
    }

    /// It ended.
    pub fn end(&self, id: SyncId) {
        self.lock().running.remove(&id);
    }

    /// How long the oldest one runs.
    pub fn oldest(&self) -> Option<Duration> {
        self.lock().running.values().next().map(Instant::elapsed)
    }

    /// A new stream: those of older ones are nobody's.
    pub fn clear(&self) {
        self.lock().running.clear();
    }

    /// From here on the shorter limit holds: what still runs gets it in full.
    pub fn restart(&self) {
        let now = Instant::now();
        self.lock().running.values_mut().for_each(|since| *since = now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_running_sync_counts() {
        let syncs = Syncs::default();
        assert_eq!(syncs.oldest(), None);
        let (a, b) = (syncs.begin(), syncs.begin());
        assert_ne!(a, b);
        let both = syncs.oldest().unwrap();
        syncs.end(a);
        assert!(syncs.oldest().is_some());
        syncs.end(b);
        assert_eq!(syncs.oldest(), None);
        assert!(both < Duration::from_secs(3600));
    }
}
