//! What the target asked for, between the ack reader and the pump.

use crate::base::Volume;
use crate::proto::FileId;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Requests not yet looked at. A target sends at most a few per frame in flight, and an entry's worth
/// per directory entry; more than this is a broken peer.
const ASKED_MAX: usize = 4 << 20;

/// Objects to be sent again.
pub(super) struct Redo {
    pub seq: u64,
    pub volume: Volume,
    pub ids: Vec<FileId>,
    pub lost: bool,
}

/// Bytes to be sent.
pub(super) struct Want {
    pub volume: Volume,
    pub id: FileId,
    pub ranges: VecDeque<(u64, u64)>,
}

#[derive(Default)]
pub(super) struct State {
    pub redo: VecDeque<Redo>,
    pub want: VecDeque<Want>,
    asked: usize,
    pub acked: u64,
    pub synced: u64,
    pub kept: (u64, u64, bool),
    pub closed: bool,
    pub finished: bool,
}

/// See the module.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(state: &mut State, n: usize) -> Result<(), String> {
        state.asked += n;
        if state.asked > ASKED_MAX {
            return Err(format!("the target asks for more than {ASKED_MAX} objects at once"));
        }
        Ok(())
    }

    /// The target asks for objects.
    pub fn redo(&self, seq: u64, volume: Volume, ids: Vec<FileId>, lost: bool) -> Result<(), String> {
        let mut state = self.lock();
        Self::take_in(&mut state, ids.len())?;
        state.redo.push_back(Redo { seq, volume, ids, lost });
        drop(state);
        self.wake.notify_all();
        Ok(())
    }

    /// The target asks for bytes.
    pub fn want(&self, volume: Volume, id: FileId, ranges: Vec<(u64, u64)>) -> Result<(), String> {
        let mut state = self.lock();
        Self::take_in(&mut state, ranges.len())?;
        state.want.push_back(Want { volume, id, ranges: ranges.into() });
        drop(state);
        self.wake.notify_all();
        Ok(())
    }

    /// Everything up to `seq` was applied, and what it made the target ask is already here.
    pub fn acked(&self, seq: u64) {
        self.lock().acked = seq;
        self.wake.notify_all();
    }

    /// The target's disk holds everything before frame `seq`.
    pub fn synced(&self, seq: u64) {
        self.lock().synced = seq;
        self.wake.notify_all();
    }

    /// The target's quarantine so far.
    pub fn kept(&self, bytes: u64, objects: u64, truncated: bool) {
        self.lock().kept = (bytes, objects, truncated);
    }

    /// The connection is gone: the pump ends.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// The target is up to date: nothing more will be asked.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.wake.notify_all();
    }

    /// Takes everything asked for.
    pub(super) fn drain(&self) -> (VecDeque<Redo>, VecDeque<Want>) {
        let mut state = self.lock();
        state.asked = 0;
        (std::mem::take(&mut state.redo), std::mem::take(&mut state.want))
    }

    /// Looks at the state.
    pub(super) fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.lock())
    }

    /// Waits for news or `at_most`.
    pub(super) fn wait(&self, at_most: Duration, until: impl Fn(&State) -> bool) {
        let state = self.lock();
        if !state.closed && !state.finished && !until(&state) {
            drop(self.wake.wait_timeout(state, at_most));
        }
    }
}
