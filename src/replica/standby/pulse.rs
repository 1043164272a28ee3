//! A sign of life during a long step.
//!
//! One frame can be a directory of millions of names, the removal of a whole tree, or a file whose bytes
//! are kept before they go. The source hears nothing until it is done and would take this side for one
//! that hangs; and whoever closes the stream would wait for all of it. So a long step calls
//! [`Pulse::beat`] as it goes. A system call that hangs calls nothing: then the source is right.

use super::Shared;
use super::ops::Failed;
use crate::base::Epoch;
use crate::ports::Errno;
use crate::proto::frame::{self, Kind};
use crate::proto::stream::Reply;
use crate::replica::wire::WireWriter;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two `Progress` replies: a fraction of what the source waits for (`ack_stall`).
const EVERY: Duration = Duration::from_secs(1);

/// The step was given up because the stream is being closed.
pub(super) const CLOSED: Errno = Errno(libc::ECANCELED);

/// See the module.
pub(super) struct Pulse {
    shared: Arc<Shared>,
    writer: Arc<WireWriter>,
    epoch: Epoch,
    sent: Instant,
    /// The quarantine as last reported: bytes, objects, truncated.
    pub kept: (u64, u64, bool),
}

impl Pulse {
    pub fn new(shared: Arc<Shared>, writer: Arc<WireWriter>, epoch: Epoch) -> Self {
        Self { shared, writer, epoch, sent: Instant::now(), kept: (0, 0, false) }
    }

    /// Is it time for a report? Then it counts as sent.
    pub fn is_due(&mut self) -> bool {
        let due = self.sent.elapsed() >= EVERY;
        if due {
            self.sent = Instant::now();
        }
        due
    }

    /// The reply that says so.
    pub fn progress(&self) -> Reply {
        let (kept_bytes, kept_objects, truncated) = self.kept;
        Reply::Progress { kept_bytes, kept_objects, truncated }
    }

    /// The step goes on: says so now and then. It overtakes replies that are not flushed, which is fine:
    /// only acknowledgements have an order.
    ///
    /// # Errors
    /// [`CLOSED`]: it must not go on.
    pub fn beat(&mut self) -> Result<(), Failed> {
        if self.shared.closing.load(Ordering::Acquire) || self.shared.failed.load(Ordering::Acquire) {
            return Err((CLOSED, "the stream was closed"));
        }
        if self.is_due() {
            let mut out = Vec::new();
            if frame::encode_into(&mut out, Kind::Reply, 0, self.epoch, &self.progress(), &[]).is_ok() {
                // A broken connection shows at the next flush.
                let _ = self.writer.send(&out);
            }
        }
        Ok(())
    }
}
