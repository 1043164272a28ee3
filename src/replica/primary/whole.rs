//! `skc sync`: everything that returned before is durable on both nodes, in every mode.
//!
//! sync(2) and syncfs(2) never reach a FUSE file system; this is their place. One frame a volume goes
//! through the stream behind everything else, so it is replayed and waited for like any fsync.

use super::Primary;
use crate::ports::{Admission, Errno, Gate, PendingReply, Replicator, ReplySink, Ticket};
use crate::proto::FsOp;
use crate::replica::local::sync_trees;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at a gate that is frozen or a window that is full.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// On both nodes.
    Both,
    /// Here; there is no standby.
    Here,
}

/// Why it is not known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// Not in time: frozen, a slow disk, a slow link.
    #[error("it is not done in time")]
    TooLong,
    /// This node is not the writer, or its disk failed.
    #[error("{}", std::io::Error::from_raw_os_error(.0.0))]
    Failed(Errno),
}

struct Answers(Mutex<Sender<i32>>);

impl ReplySink for Answers {
    fn send(&self, _unique: u64, error: i32, _body: &[u8]) {
        // Err: whoever asked has given up.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(error);
    }
}

impl Primary {
    /// Waits at most `within` until everything that was answered before is durable, on both nodes if there
    /// is a standby.
    ///
    /// # Errors
    /// [`SyncError`]: nothing is known.
    pub fn sync_all(&self, within: Duration) -> Result<Synced, SyncError> {
        let end = Instant::now() + within;
        let (tx, answers) = channel();
        let sink: Arc<dyn ReplySink> = Arc::new(Answers(Mutex::new(tx)));
        let mut asked = Synced::Both;
        for (n, tree) in self.inner.trees.iter().enumerate() {
            let ticket = self.admitted(end)?;
            if matches!(*ticket.guard, Gate::Alone(_)) {
                asked = Synced::Here;
            }
            let reply = PendingReply::new(Arc::clone(&sink), n as u64, &[]);
            let own = Arc::clone(tree);
            let local = Box::new(move || sync_trees(std::slice::from_ref(&own)));
            self.submit_sync(ticket, tree.volume, &FsOp::SyncFs, &[], local, reply);
        }
        for _ in &self.inner.trees {
            let left = end.saturating_duration_since(Instant::now());
            match answers.recv_timeout(left) {
                Ok(0) => {}
                Ok(errno) => return Err(SyncError::Failed(Errno(errno))),
                Err(_) => return Err(SyncError::TooLong),
            }
        }
        // Gone on alone meanwhile: nobody asks the standby's disk any more.
        let alone = matches!(self.gate(), Gate::Alone(_));
        Ok(if alone { Synced::Here } else { asked })
    }

    fn admitted(&self, end: Instant) -> Result<Ticket<'_>, SyncError> {
        loop {
            match self.admit() {
                Admission::Go(ticket) => return Ok(ticket),
                Admission::Refuse(errno) => return Err(SyncError::Failed(errno)),
                Admission::Park if Instant::now() >= end => return Err(SyncError::TooLong),
                Admission::Park => std::thread::park_timeout(LOOK_AGAIN),
            }
        }
    }
}
