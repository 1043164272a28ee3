//! The shared event bus: typed facts about what happened, never commands.
//!
//! - [`Bus::publish`] never blocks and never fails; each event gets a monotone id under one lock, so
//!   ids, history and every subscriber agree on the order.
//! - Everything is bounded: [`HISTORY_MAX`] events of history, [`QUEUE_MAX`] events a subscriber may
//!   lag behind (then it reads [`Item::Missed`], it is never silently short), [`OBJECTS_MAX`] objects
//!   with a latest value.
//! - Wall time is for people and is never compared by a decision.
//! - Absent on purpose: persistence (a restart starts an empty history) and filtering.

mod fact;
mod time;

pub use fact::{Fact, Object};

use futures::Stream;
use futures::stream::unfold;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, watch};

/// Events kept for `skc events`: a failover leaves about 50, so this reaches back through 200 of them.
pub const HISTORY_MAX: usize = 10_000;
/// Events a subscriber may be behind before it misses some.
pub const QUEUE_MAX: usize = 1024;
/// Objects whose latest fact is kept: 50 clusters with 40 objects each, doubled.
pub const OBJECTS_MAX: usize = 4096;

/// A fact with its circumstances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Monotone within one life of the agent, from 1.
    pub id: u64,
    /// Wall time, RFC 3339 in UTC with milliseconds. For people.
    pub time: String,
    /// Name of the node that saw it.
    pub node: String,
    /// The cluster it belongs to; none for facts about the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The failover it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover_id: Option<String>,
    /// One line for people.
    pub text: String,
    /// What happened.
    #[serde(flatten)]
    pub fact: Fact,
}

/// What a subscriber reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// The next event.
    Event(Arc<Event>),
    /// The subscriber was too slow: this many events are gone; read [`Bus::history`] or
    /// [`Bus::latest`] to catch up.
    Missed(u64),
}

/// The bus. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    node: String,
    sender: broadcast::Sender<Arc<Event>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    history: VecDeque<Arc<Event>>,
    latest: BTreeMap<Key, watch::Sender<Option<Arc<Event>>>>,
    failovers: BTreeMap<String, String>,
}

type Key = (Option<String>, Object);

impl Bus {
    /// A bus of the node called `node`.
    pub fn new(node: impl Into<String>) -> Self {
        let inner =
            Inner { node: node.into(), sender: broadcast::Sender::new(QUEUE_MAX), state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Publishes `fact` about `cluster` (`None`: about the pair) and returns the event's id.
    pub fn publish(&self, cluster: Option<&str>, fact: Fact) -> u64 {
        let mut state = self.lock();
        state.last_id += 1;
        let event = Arc::new(Event {
            id: state.last_id,
            time: time::now(),
            node: self.inner.node.clone(),
            cluster: cluster.map(str::to_owned),
            failover_id: cluster.and_then(|c| state.failovers.get(c).cloned()),
            text: fact.to_string(),
            fact,
        });
        if !event.fact.is_progress() {
            if state.history.len() == HISTORY_MAX {
                state.history.pop_front();
            }
            state.history.push_back(event.clone());
        }
        if let Some(slot) = slot(&mut state, (event.cluster.clone(), event.fact.object())) {
            slot.send_replace(Some(event.clone()));
        }
        // Under the lock, so that the order of the queue is the order of the ids. No subscriber: fine.
        let _ = self.inner.sender.send(event.clone());
        event.id
    }

    /// From now on facts about `cluster` carry this failover id; `None` ends it.
    pub fn correlate(&self, cluster: &str, failover_id: Option<String>) {
        let mut state = self.lock();
        match failover_id {
            Some(id) if state.failovers.len() < OBJECTS_MAX => {
                state.failovers.insert(cluster.to_owned(), id);
            }
            _ => {
                state.failovers.remove(cluster);
            }
        }
    }

    /// Every event published from now on.
    pub fn subscribe(&self) -> impl Stream<Item = Item> + Send + Unpin + use<> {
        stream(self.inner.sender.subscribe())
    }

    /// The last `last` events and everything after them, with no gap and no repetition between.
    pub fn follow(&self, last: usize) -> (Vec<Arc<Event>>, impl Stream<Item = Item> + Send + Unpin + use<>) {
        let state = self.lock();
        (tail(&state.history, last), stream(self.inner.sender.subscribe()))
    }

    /// The last `last` events, oldest first.
    pub fn history(&self, last: usize) -> Vec<Arc<Event>> {
        tail(&self.lock().history, last)
    }

    /// The latest fact about an object.
    pub fn latest(&self, cluster: Option<&str>, object: &Object) -> Option<Arc<Event>> {
        let key = (cluster.map(str::to_owned), object.clone());
        self.lock().latest.get(&key).and_then(|s| s.borrow().clone())
    }

    /// The latest fact about an object, and its changes. Intermediate values may be skipped.
    ///
    /// `None` when [`OBJECTS_MAX`] is reached.
    pub fn watch(
        &self,
        cluster: Option<&str>,
        object: &Object,
    ) -> Option<watch::Receiver<Option<Arc<Event>>>> {
        slot(&mut self.lock(), (cluster.map(str::to_owned), object.clone())).map(watch::Sender::subscribe)
    }

    /// Drops the latest values of a cluster that was deleted. Its history stays.
    pub fn forget(&self, cluster: &str) {
        let mut state = self.lock();
        state.latest.retain(|(c, _), _| c.as_deref() != Some(cluster));
        state.failovers.remove(cluster);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock leaves the state half changed, so a poisoned one is still sound.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot(state: &mut State, key: Key) -> Option<&watch::Sender<Option<Arc<Event>>>> {
    if state.latest.len() >= OBJECTS_MAX && !state.latest.contains_key(&key) {
        return None;
    }
    Some(state.latest.entry(key).or_insert_with(|| watch::Sender::new(None)))
}

fn tail(history: &VecDeque<Arc<Event>>, last: usize) -> Vec<Arc<Event>> {
    history.iter().skip(history.len().saturating_sub(last)).cloned().collect()
}

fn stream(receiver: broadcast::Receiver<Arc<Event>>) -> impl Stream<Item = Item> + Send + Unpin {
    Box::pin(unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Ok(event) => Some((Item::Event(event), receiver)),
            Err(broadcast::error::RecvError::Lagged(n)) => Some((Item::Missed(n), receiver)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn service(name: &str, state: &str) -> Fact {
        Fact::ServiceChanged { service: name.into(), state: state.into(), note: String::new() }
    }

    #[tokio::test]
    async fn subscribers_see_events_in_the_order_of_their_ids() {
        let bus = Bus::new("node-a");
        let mut events = bus.subscribe();
        for i in 0..3 {
            bus.publish(Some("shop"), service("pg", &i.to_string()));
        }
        for id in 1..=3 {
            let Some(Item::Event(event)) = events.next().await else { panic!("no event") };
            assert_eq!(event.id, id);
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_told_how_many_it_missed() {
        let bus = Bus::new("node-a");
        let mut events = bus.subscribe();
        for _ in 0..=QUEUE_MAX {
            bus.publish(None, service("pg", "up"));
        }
        assert_eq!(events.next().await, Some(Item::Missed(1)));
        assert!(matches!(events.next().await, Some(Item::Event(e)) if e.id == 2));
    }

    #[test]
    fn history_is_bounded_and_progress_does_not_fill_it() {
        let bus = Bus::new("node-a");
        for _ in 0..=HISTORY_MAX {
            bus.publish(None, service("pg", "up"));
        }
        let progress = Fact::ResyncProgress { done_bytes: 1, total_bytes: 2, bytes_per_second: 3 };
        bus.publish(Some("shop"), progress.clone());
        let history = bus.history(usize::MAX);
        assert_eq!((history.len(), history[0].id), (HISTORY_MAX, 2));
        assert_eq!(bus.latest(Some("shop"), &progress.object()).unwrap().fact, progress);
    }

    #[tokio::test]
    async fn follow_leaves_no_gap() {
        let bus = Bus::new("node-a");
        bus.publish(None, service("pg", "starting"));
        let (past, mut next) = bus.follow(10);
        bus.publish(None, service("pg", "up"));
        assert_eq!(past.len(), 1);
        assert!(matches!(next.next().await, Some(Item::Event(e)) if e.id == 2));
    }

    #[test]
    fn objects_with_a_latest_value_are_bounded() {
        let bus = Bus::new("node-a");
        for i in 0..OBJECTS_MAX {
            bus.publish(None, service(&i.to_string(), "up"));
        }
        let one_over = service("one-over", "up");
        bus.publish(None, one_over.clone());
        assert!(bus.latest(None, &one_over.object()).is_none());
        assert!(bus.watch(None, &one_over.object()).is_none());
        assert!(bus.latest(None, &service("0", "up").object()).is_some());
    }

    #[test]
    fn a_failover_id_marks_what_happens_during_it() {
        let bus = Bus::new("node-a");
        bus.correlate("shop", Some("f-1".into()));
        bus.publish(Some("shop"), service("pg", "up"));
        bus.publish(Some("mail"), service("smtp", "up"));
        bus.correlate("shop", None);
        bus.publish(Some("shop"), service("pg", "down"));
        let ids: Vec<_> = bus.history(3).iter().map(|e| e.failover_id.clone()).collect();
        assert_eq!(ids, [Some("f-1".to_owned()), None, None]);
    }

    #[test]
    fn an_event_is_one_flat_json_object() {
        let bus = Bus::new("node-a");
        let fact =
            Fact::RoleChanged { from: "SECOND".into(), to: "ALONE".into(), reason: "peer lost".into() };
        bus.publish(Some("shop"), fact);
        let event = bus.history(1).remove(0);
        let json = serde_json::to_value(&*event).unwrap();
        assert_eq!(json["kind"], "RoleChanged");
        assert_eq!(json["to"], "ALONE");
        assert_eq!(json["text"], "role SECOND -> ALONE: peer lost");
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), *event);
    }
}
