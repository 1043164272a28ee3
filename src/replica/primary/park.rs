//! Requests put aside: while the gate is frozen, and while the window is full.
//!
//! One helper thread runs them again in order once there is a way. It also watches for a stream
//! whose acknowledgements make no progress. A request that panics ends neither: its owner answers it
//! (the file system with EIO), the helper goes on with the next.

use super::{Config, Inner, lock};
use crate::ports::{Gate, ParkedRequest};
use crate::replica::event::{Event, StreamEnd};
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the helper looks for a stalled stream.
const WATCH: Duration = Duration::from_millis(250);
/// The target syncs its disk before it answers the marker; only past this is it called stalled.
const MARKER_STALL: Duration = Duration::from_secs(300);

thread_local! {
    static HELPER: Cell<bool> = const { Cell::new(false) };
}

/// Is this the thread that re-runs parked requests? It may go one operation over the window.
pub(super) fn is_helper() -> bool {
    HELPER.get()
}

#[derive(Default)]
pub(super) struct Parked {
    queue: VecDeque<(ParkedRequest, usize)>,
    bytes: usize,
    pub closed: bool,
}

impl Parked {
    /// One request is always taken, however large.
    fn is_full(&self, cfg: &Config, weight: usize) -> bool {
        !self.queue.is_empty()
            && (self.queue.len() >= cfg.parked_max || self.bytes.saturating_add(weight) > cfg.parked_bytes)
    }
}

impl Inner {
    /// Keeps `request`; blocks while the queue is full, at most until the freeze overruns.
    pub(super) fn park(&self, request: ParkedRequest, weight: usize) {
        let end = Instant::now() + self.cfg.freeze_limit;
        let mut parked = lock(&self.parked);
        while parked.is_full(&self.cfg, weight) && !parked.closed && !is_helper() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Fail closed: from here on requests are refused instead of parked.
                let (requests, bytes) = (parked.queue.len(), parked.bytes);
                tracing::error!(requests, bytes, "frozen for too long, refusing mutations");
                self.overrun.store(true, Ordering::Release);
                break;
            }
            parked = self.parked_wake.wait_timeout(parked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if parked.closed || self.overrun.load(Ordering::Acquire) {
            drop(parked);
            // Asks for admission again and is refused.
            request();
            return;
        }
        parked.queue.push_back((request, weight));
        parked.bytes += weight;
        self.parked_len.store(parked.queue.len(), Ordering::Release);
        drop(parked);
        self.parked_wake.notify_all();
    }

    fn may_run(&self) -> bool {
        if self.overrun.load(Ordering::Acquire) {
            return true; // to be refused
        }
        if self.changing.load(Ordering::Acquire) {
            return false;
        }
        match self.gate.try_read() {
            Ok(gate) => match *gate {
                Gate::Frozen => false,
                Gate::Replicated(_) | Gate::Alone(_) => self.has_room(),
                Gate::ReadOnly | Gate::Shut => true,
            },
            Err(_) => false,
        }
    }

    fn watch(&self) {
        let stalled = {
            let core = lock(&self.core);
            let limit = if core.marker.is_some() { MARKER_STALL } else { self.cfg.ack_stall };
            match &core.conn {
                Some(conn) if core.in_flight() > 0 && core.progress.elapsed() > limit => {
                    Some((conn.number, conn.epoch))
                }
                Some(conn)
                    if conn.eligible
                        && core.oldest_remote_sync().is_some_and(|age| age > self.cfg.sync_stall) =>
                {
                    tracing::warn!(epoch = %conn.epoch, "the standby answers no fsync");
                    Some((conn.number, conn.epoch))
                }
                _ => None,
            }
        };
        if let Some((number, epoch)) = stalled
            && self.drop_conn(number)
        {
            (self.events)(Event::StreamDown { epoch, why: StreamEnd::Stalled });
        }
    }
}

fn run_again(request: ParkedRequest) {
    if catch_unwind(AssertUnwindSafe(request)).is_err() {
        tracing::error!("a parked request panicked");
    }
}

/// Body of the helper thread; ends when the replicator is dropped or closed.
pub(super) fn run(weak: &Weak<Inner>) {
    HELPER.set(true);
    let mut watched = Instant::now();
    loop {
        let Some(inner) = weak.upgrade() else { return };
        if watched.elapsed() >= WATCH {
            inner.watch();
            watched = Instant::now();
        }
        let ready = inner.may_run();
        let mut parked = lock(&inner.parked);
        if parked.closed {
            let rest = std::mem::take(&mut parked.queue);
            drop(parked);
            for (request, _) in rest {
                run_again(request);
            }
            return;
        }
        match parked.queue.pop_front() {
            Some((request, weight)) if ready => {
                parked.bytes -= weight;
                inner.parked_len.store(parked.queue.len(), Ordering::Release);
                drop(parked);
                inner.parked_wake.notify_all();
                run_again(request);
            }
            request => {
                // While something waits for room look often; acknowledgements also wake us.
                let pause = if request.is_some() { Duration::from_millis(20) } else { WATCH };
                if let Some(request) = request {
                    parked.queue.push_front(request);
                }
                drop(inner.parked_wake.wait_timeout(parked, pause));
            }
        }
        drop::<Arc<Inner>>(inner);
    }
}
