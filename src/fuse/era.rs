//! The time between two changes of role, as a number.
//!
//! While this node does not write, the other one does, and the kernel here goes on believing what it knew:
//! the end of a file that it appends to, and whole pages that somebody changed by a mapping. What was opened
//! in an earlier era must therefore write nothing; it may read, and be closed and opened anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shared by a mount and its file system.
#[derive(Debug, Default)]
pub struct Era {
    number: AtomicU64,
    /// Invalidations under way: pages and names of earlier eras may still be cached.
    ending: AtomicUsize,
}

/// One invalidation under way; over when dropped, also if its thread could not be started.
pub(super) struct Ending(Arc<Era>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ending.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Era {
    /// The present one.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// May the kernel still have something from before the present one?
    pub(super) fn is_settling(&self) -> bool {
        self.ending.load(Ordering::Acquire) > 0
    }

    /// Ends the present one.
    pub(super) fn end(self: &Arc<Self>) -> Ending {
        self.ending.fetch_add(1, Ordering::AcqRel);
        self.number.fetch_add(1, Ordering::AcqRel);
        Ending(Arc::clone(self))
    }
}
