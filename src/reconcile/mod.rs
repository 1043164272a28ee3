//! What a node does for its clusters, as reconcilers on [`crate::controller`]: virtual IPs, services,
//! checkers. One object of each kind a cluster.
//!
//! The desired state comes from the failover driver (by decision) and the spec, through [`Wishes`]; facts
//! on the bus make a reconciler look again ([`start`]); the plans are pure functions. What a plan
//! refuses to do by itself:
//!
//! - bring back a virtual IP that was lost under the same decision ([`vip`]),
//! - restart a service that failed under the same decision ([`services`]): that is the core's choice.
//!
//! Deliberately absent: directories and their mounts (see `daemon::cluster::volumes`: what is observed
//! of them is evidence for the core, not a state to be brought about).

pub mod checkers;
pub mod guarded;
pub mod services;
mod text;
pub mod vip;

use crate::base::ClusterId;
use crate::bus::{Bus, Fact, Item};
use crate::controller::{Backoff, Handle, Reconciler, handle, run};
use futures::stream::{self, Stream, StreamExt};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What is desired of each cluster; the writing end of a reconciler.
pub struct Wishes<D> {
    wishes: Arc<RwLock<BTreeMap<ClusterId, D>>>,
    handle: Handle<ClusterId>,
}

impl<D> Clone for Wishes<D> {
    fn clone(&self) -> Self {
        Self { wishes: self.wishes.clone(), handle: self.handle.clone() }
    }
}

impl<D: Clone + PartialEq> Wishes<D> {
    /// Nothing is desired yet.
    pub fn new(handle: Handle<ClusterId>) -> Self {
        Self { wishes: Arc::default(), handle }
    }

    /// Desires `wish` from now on and triggers a run if that is new.
    pub fn set(&self, cluster: &ClusterId, wish: D) {
        if self.put(cluster, wish) {
            self.handle.trigger(cluster.clone());
        }
    }

    /// Desires `wish` and waits for the outcome of a run towards it (or towards a newer wish).
    ///
    /// # Errors
    /// Why it was not reached; the controller tries again with back-off. The caller sets the deadline.
    pub async fn reach(&self, cluster: &ClusterId, wish: D) -> Result<(), String> {
        self.put(cluster, wish);
        self.handle.converge(cluster.clone()).await
    }

    /// Replaces the wish by what `change` makes of it, if anything, with no other wish in between.
    /// Returns whether it did.
    pub fn change(&self, cluster: &ClusterId, change: impl FnOnce(Option<&D>) -> Option<D>) -> bool {
        {
            let mut wishes = self.wishes.write().unwrap_or_else(PoisonError::into_inner);
            let Some(wish) = change(wishes.get(cluster)) else { return false };
            wishes.insert(cluster.clone(), wish);
        }
        self.handle.trigger(cluster.clone());
        true
    }

    /// What is desired now.
    pub fn get(&self, cluster: &ClusterId) -> Option<D> {
        self.wishes.read().unwrap_or_else(PoisonError::into_inner).get(cluster).cloned()
    }

    fn clusters(&self) -> Vec<ClusterId> {
        self.wishes.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn put(&self, cluster: &ClusterId, wish: D) -> bool {
        let mut wishes = self.wishes.write().unwrap_or_else(PoisonError::into_inner);
        if wishes.get(cluster) == Some(&wish) {
            return false;
        }
        wishes.insert(cluster.clone(), wish);
        true
    }
}

/// A reconciler at work; dropping it ends its task.
pub struct Running<R: Reconciler> {
    /// Where its desired state is written.
    pub wishes: Wishes<R::Desired>,
    /// What it owns and knows.
    pub reconciler: Arc<R>,
    task: tokio::task::JoinHandle<()>,
}

/// Starts a reconciler that has one object a cluster. It looks when a wish changes, and when the bus has
/// a fact of which `wakes` says that it concerns it.
pub fn start<R>(
    bus: &Bus,
    wakes: fn(&Fact) -> bool,
    backoff: Backoff,
    make: impl FnOnce(Wishes<R::Desired>) -> R,
) -> Running<R>
where
    R: Reconciler<Key = ClusterId>,
    R::Desired: Clone + 'static,
{
    let (handle, inbox) = handle();
    let wishes = Wishes::new(handle);
    let triggers = triggers(bus, wakes, wishes.clone());
    let reconciler = Arc::new(make(wishes.clone()));
    let task = tokio::spawn(run(reconciler.clone(), inbox, triggers, backoff));
    Running { wishes, reconciler, task }
}

/// The clusters that facts on the bus concern. Who was too slow to read them all looks at everything.
fn triggers<D>(
    bus: &Bus,
    wakes: fn(&Fact) -> bool,
    wishes: Wishes<D>,
) -> impl Stream<Item = ClusterId> + Send + use<D>
where
    D: Clone + PartialEq + Send + Sync + 'static,
{
    bus.subscribe().flat_map(move |item| {
        let clusters = match item {
            Item::Missed(_) => wishes.clusters(),
            Item::Event(event) if wakes(&event.fact) => {
                let cluster = event.cluster.clone().map(ClusterId);
                cluster.filter(|c| wishes.get(c).is_some()).into_iter().collect()
            }
            Item::Event(_) => Vec::new(),
        };
        stream::iter(clusters)
    })
}

impl<R: Reconciler> Drop for Running<R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
