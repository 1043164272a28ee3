//! What a node does for its clusters, as reconcilers on [`crate::controller`]: virtual IPs, services,
//! checkers, mounts. One object of each kind a cluster.
//!
//! The desired state comes from the failover driver (by decision) and the spec, through [`Wishes`]; the
//! plans are pure functions, `skc diff` prints their steps. What a plan refuses to do by itself:
//!
//! - bring back a virtual IP that was lost under the same decision ([`vip`]),
//! - restart a service that failed under the same decision ([`services`]): that is the core's choice.

pub mod checkers;
pub mod guarded;
pub mod mounts;
pub mod services;
mod text;
pub mod vip;

use crate::base::ClusterId;
use crate::controller::{Backoff, Handle, Reconciler, handle, run};
use futures::stream;
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

    /// Something may have changed by itself: look now.
    pub fn look(&self, cluster: &ClusterId) {
        self.handle.trigger(cluster.clone());
    }

    /// Stops caring for a cluster. What is there stays as it is.
    pub fn forget(&self, cluster: &ClusterId) {
        self.wishes.write().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }

    /// What is desired now.
    pub fn get(&self, cluster: &ClusterId) -> Option<D> {
        self.wishes.read().unwrap_or_else(PoisonError::into_inner).get(cluster).cloned()
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

/// Starts a reconciler that has one object a cluster.
pub fn start<R>(backoff: Backoff, make: impl FnOnce(Wishes<R::Desired>) -> R) -> Running<R>
where
    R: Reconciler<Key = ClusterId>,
    R::Desired: Clone,
{
    let (handle, inbox) = handle();
    let wishes = Wishes::new(handle);
    let reconciler = Arc::new(make(wishes.clone()));
    let task = tokio::spawn(run(reconciler.clone(), inbox, stream::pending(), backoff));
    Running { wishes, reconciler, task }
}

impl<R: Reconciler> Drop for Running<R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
