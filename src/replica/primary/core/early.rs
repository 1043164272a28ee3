//! Answers before the standby has it: the modes `commit` and `async`.
//!
//! A call in such a directory is answered once its frame is in the stream, as long as everything so answered
//! and not acknowledged fits the window: bytes, frames, and the age of the oldest frame in flight. Past it
//! the call waits, until an acknowledgement makes room or covers it: the back-pressure of these modes, and
//! the bound of what a failover can lose (one frame may be larger than the window). Without a complete
//! standby on a live connection nothing is answered early: while undecided, calls wait in every mode.
//!
//! There is one stream: a `strict` call waits for all before it, whichever directory they are in, and the
//! frames that were answered are kept for replay like the others.

use super::{Core, CoreError, Outcome, Submitted};
use crate::base::Volume;
use crate::ports::Gate;
use crate::proto::FsOp;
use crate::spec::Consistency;
use crate::tree::Tree;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Syncs of `async` directories that the standby may have under way. Nobody waits for them, so a slow disk
/// there would collect them without end; past this many an fsync is this node's own.
const SYNCS_MAX: usize = 16;

/// When the caller of an operation is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replica::primary) enum Answer {
    /// With the acknowledgement.
    Acknowledged,
    /// As soon as the window has room, at the latest with the acknowledgement.
    Room,
    /// At once: it counts in the window until acknowledged.
    Given,
}

/// How far answers may be ahead of acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyWindow {
    /// Bytes of frames.
    pub bytes: usize,
    /// Age of the oldest frame in flight.
    pub age: Duration,
}

/// What was promised too early, and by which rule.
pub(in crate::replica::primary) struct Early {
    /// By volume; what is not there is strict.
    pub modes: Vec<Consistency>,
    pub window: EarlyWindow,
    /// Frames in flight past which nothing is answered early.
    frames: usize,
    /// Bytes of the entries that were answered.
    pub answered: usize,
    /// Entries that wait for room.
    waiting: usize,
    /// No entry before this position waits for room.
    cursor: u64,
    /// Positions of the syncs that nobody waits for.
    pub syncs: VecDeque<u64>,
}

impl Early {
    pub fn new(frames: usize) -> Self {
        let window = EarlyWindow { bytes: 0, age: Duration::ZERO };
        Self { modes: Vec::new(), window, frames, answered: 0, waiting: 0, cursor: 0, syncs: VecDeque::new() }
    }

    fn mode(&self, volume: Volume) -> Consistency {
        self.modes.get(usize::from(volume.0)).copied().unwrap_or_default()
    }

    /// How a call in `volume` is answered.
    pub fn answer(&self, volume: Volume) -> Answer {
        match self.mode(volume) {
            Consistency::Strict => Answer::Acknowledged,
            Consistency::Commit | Consistency::Async => Answer::Room,
        }
    }

    fn fits(&self, bytes: usize, frames: usize, oldest: Option<Instant>) -> bool {
        // One is always let through, however large.
        (self.answered == 0 || self.answered + bytes <= self.window.bytes)
            && frames < self.frames
            && oldest.is_none_or(|at| at.elapsed() < self.window.age)
    }

    pub(super) fn entered(&mut self, answer: Answer, bytes: usize) {
        match answer {
            Answer::Acknowledged => {}
            Answer::Room => self.waiting += 1,
            Answer::Given => self.answered += bytes,
        }
    }

    pub(super) fn left(&mut self, answer: Answer, bytes: usize) {
        match answer {
            Answer::Acknowledged => {}
            Answer::Room => self.waiting = self.waiting.saturating_sub(1),
            Answer::Given => self.answered = self.answered.saturating_sub(bytes),
        }
    }

    /// No entry is left.
    pub(super) fn clear(&mut self) {
        (self.answered, self.waiting, self.cursor) = (0, 0, 0);
        self.syncs.clear();
    }

    /// The standby ended a sync; was it one that nobody waits for?
    pub(super) fn sync_ended(&mut self, seq: u64) -> bool {
        let found = self.syncs.iter().position(|s| *s == seq);
        found.is_some_and(|at| self.syncs.remove(at).is_some())
    }
}

impl Core {
    /// May a frame of `bytes` be answered before it is acknowledged?
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        let complete = match (&self.conn, self.rule) {
            (Some(conn), Gate::Replicated(epoch)) => conn.eligible && conn.epoch == epoch,
            _ => false,
        };
        let oldest = self.entries.front().map(|entry| entry.at);
        complete && !self.gap && self.early.fits(bytes, self.entries.len(), oldest)
    }

    /// Answers what waits for room, in the order of the stream, as far as there is some.
    pub fn answer_early(&mut self, out: &mut Outcome) {
        while self.early.waiting > 0 {
            let Some(first) = self.entries.front().map(|entry| entry.seq) else { return };
            let at = self.early.cursor.max(first);
            let place = usize::try_from(at - first).unwrap_or(usize::MAX);
            let Some(entry) = self.entries.get(place) else { return };
            if entry.answer == Answer::Room {
                let bytes = entry.bytes;
                if !self.has_room_for(bytes) {
                    return;
                }
                self.early.left(Answer::Room, bytes);
                self.early.entered(Answer::Given, bytes);
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.answer = Answer::Given;
                    out.ok.extend(entry.reply.take());
                }
            }
            self.early.cursor = at + 1;
        }
    }

    /// Enters an operation that must be durable: on both nodes, or in an `async` directory on this one.
    pub fn submit_sync(&mut self, tree: &Tree, op: &FsOp, bulk: &[u8]) -> Result<Submitted, CoreError> {
        // `skc sync` asks for both nodes, whatever the mode.
        let local = self.early.mode(tree.volume) == Consistency::Async
            && *op != FsOp::SyncFs
            && self.has_room_for(bulk.len());
        if !local {
            return self.submit(tree, true, op, bulk, Answer::Acknowledged, &mut None);
        }
        let asked = self.early.syncs.len() < SYNCS_MAX;
        if !asked && matches!(op, FsOp::Fsync { .. }) {
            return Ok(Submitted::Early(self.next - 1));
        }
        let submitted = self.submit(tree, asked, op, bulk, Answer::Given, &mut None)?;
        if let (true, Submitted::Early(seq)) = (asked, &submitted) {
            self.early.syncs.push_back(*seq);
        }
        Ok(submitted)
    }

    /// How long the oldest frame in flight has not been acknowledged.
    pub fn oldest(&self) -> Option<Duration> {
        self.entries.front().map(|entry| entry.at.elapsed())
    }
}
