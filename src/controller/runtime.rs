//! The scheduler: which object runs when. One task; the runs are futures inside it.

use super::inbox::{Inbox, Verdict, Waiter};
use super::pass::{Outcome, pass};
use super::{Action, Backoff, Reconciler, Report, chain};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, Stream};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// Runs at once. More objects wait; 50 clusters restarting together should not start 50 databases
/// in one moment, and every run ends at a deadline.
pub const RUNS_MAX: usize = 32;

#[derive(Default)]
struct Slot {
    /// When it runs next.
    due: Option<Instant>,
    /// The run under way.
    running: Option<Arc<Notify>>,
    /// Triggered during the run under way.
    again: bool,
    errors: u32,
    /// What the last run failed with; empty after a success.
    failure: String,
    /// Want the outcome of the run under way.
    waiting: Vec<oneshot::Sender<Verdict>>,
    /// Want the outcome of the next run.
    waiting_next: Vec<oneshot::Sender<Verdict>>,
}

impl Slot {
    fn idle(&self) -> bool {
        self.running.is_none() && self.due.is_none() && self.waiting_next.is_empty()
    }
}

struct Ended<K> {
    key: K,
    next: Next,
    verdict: Verdict,
}

enum Next {
    Settled(Action),
    Now,
    Backoff,
}

type Run<K> = BoxFuture<'static, Ended<K>>;

/// Runs `reconciler` for every key that comes through `inbox` or `triggers`, until `triggers` and all
/// handles are of no more use: in practice until the returned future is dropped.
pub async fn run<R: Reconciler>(
    reconciler: Arc<R>,
    inbox: Inbox<R::Key>,
    triggers: impl Stream<Item = R::Key> + Send,
    backoff: Backoff,
) {
    let mut triggers = pin!(triggers.fuse());
    let mut slots: BTreeMap<R::Key, Slot> = BTreeMap::new();
    let mut runs: FuturesUnordered<Run<R::Key>> = FuturesUnordered::new();
    loop {
        let next = slots.values().filter(|s| s.running.is_none()).filter_map(|s| s.due).min();
        let timer = async {
            match next.filter(|_| runs_free(&slots)) {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased; // what ended first, so that a slot is free; then news; time last
            Some(ended) = runs.next() => finish(&mut slots, &ended, backoff),
            () = inbox.filled() => {
                let (keys, waiters) = inbox.take();
                for key in keys {
                    trigger(&mut slots, key);
                }
                for waiter in waiters {
                    wait(&mut slots, waiter);
                }
            }
            Some(key) = triggers.next() => trigger(&mut slots, key),
            () = timer => {}
        }
        start_due(&mut slots, &mut runs, &reconciler);
    }
}

fn runs_free<K>(slots: &BTreeMap<K, Slot>) -> bool {
    slots.values().filter(|s| s.running.is_some()).count() < RUNS_MAX
}

fn trigger<K: Ord>(slots: &mut BTreeMap<K, Slot>, key: K) {
    let slot = slots.entry(key).or_default();
    match &slot.running {
        Some(changed) => {
            slot.again = true;
            changed.notify_one();
        }
        None => slot.due = Some(Instant::now()),
    }
}

fn wait<K: Ord>(slots: &mut BTreeMap<K, Slot>, (key, answer): Waiter<K>) {
    // Its trigger came with it, so the next run is on its way.
    slots.entry(key).or_default().waiting_next.push(answer);
}

fn start_due<R: Reconciler>(
    slots: &mut BTreeMap<R::Key, Slot>,
    runs: &mut FuturesUnordered<Run<R::Key>>,
    reconciler: &Arc<R>,
) {
    let now = Instant::now();
    let mut free = RUNS_MAX.saturating_sub(runs.len());
    for (key, slot) in slots.iter_mut() {
        if free == 0 {
            return;
        }
        if slot.running.is_some() || slot.due.is_none_or(|due| due > now) {
            continue;
        }
        free -= 1;
        slot.due = None;
        slot.again = false;
        slot.waiting.append(&mut slot.waiting_next);
        let changed = Arc::new(Notify::new());
        slot.running = Some(changed.clone());
        runs.push(one(reconciler.clone(), key.clone(), changed, slot.failure.clone()).boxed());
    }
}

/// One run; `before` is what the last one failed with.
async fn one<R: Reconciler>(
    reconciler: Arc<R>,
    key: R::Key,
    changed: Arc<Notify>,
    before: String,
) -> Ended<R::Key> {
    let (next, verdict) = match pass(&*reconciler, &key, &changed).await {
        Ok(Outcome::Converged { .. }) => (Next::Settled(reconciler.settled(&key)), Ok(())),
        Ok(Outcome::Unmanaged) => (Next::Settled(Action::AwaitChange), Ok(())),
        Ok(Outcome::Superseded) => (Next::Now, Err("superseded by a newer desire".into())),
        Err(error) => {
            let text = chain(&error);
            let repeated = text == before;
            if repeated {
                tracing::debug!(object = %key, error = text, "still not reconciled");
            } else {
                tracing::warn!(object = %key, error = text, "not reconciled; trying again");
            }
            reconciler.report(&key, Report::Failed { error: &error, repeated });
            (Next::Backoff, Err(text))
        }
    };
    Ended { key, next, verdict }
}

fn finish<K: Ord>(slots: &mut BTreeMap<K, Slot>, ended: &Ended<K>, backoff: Backoff) {
    let Some(slot) = slots.get_mut(&ended.key) else { return };
    slot.running = None;
    let now = Instant::now();
    slot.due = match ended.next {
        Next::Settled(action) => {
            slot.errors = 0;
            slot.failure.clear();
            match action {
                Action::Requeue(after) => Some(now + after),
                Action::AwaitChange => None,
            }
        }
        // Not an error and no verdict: who waits wants the run that follows at once.
        Next::Now => {
            let mut waiting = std::mem::take(&mut slot.waiting);
            waiting.append(&mut slot.waiting_next);
            slot.waiting_next = waiting;
            Some(now)
        }
        Next::Backoff => {
            slot.errors = slot.errors.saturating_add(1);
            slot.failure = ended.verdict.as_ref().err().cloned().unwrap_or_default();
            Some(now + backoff.delay(slot.errors))
        }
    };
    if slot.again {
        slot.due = Some(now);
    }
    for answer in slot.waiting.drain(..) {
        // Nobody waits any more: fine.
        let _ = answer.send(ended.verdict.clone());
    }
    if slot.idle() {
        slots.remove(&ended.key);
    }
}
