//! The virtual addresses of one cluster: what the core decides becomes the wish of their reconciler.
//!
//! [`Vips::add`] and [`Vips::drop_all`] are the core's effects; the reconciler ([`crate::reconcile::vip`])
//! tells the guard, adds, renews and removes, and tries again with back-off. What it finds goes to the
//! core as `VipHeld` and `VipConflict`.
//!
//! **Addresses lost by a late renewal** come back only by a new decision. It is made here, on the core's
//! word: after it has judged the loss (its own late-loop rule runs in every step), still wants the
//! addresses, and serves. A drop that comes in between wins: the wish is changed only while it is still
//! the one that was lost.
//!
//! Failure: a drop that does not succeed in time is given up here, not by the reconciler, which goes on
//! trying; nothing is renewed any more, so the lease ends what is left.

use super::Shared;
use crate::base::{ClusterId, Epoch, codes};
use crate::bus::Bus;
use crate::controller::{Backoff, chain};
use crate::engine::Input;
use crate::failover::Handle;
use crate::guard::message::VipRef;
use crate::net::{DecisionToken, Lease, Vip};
use crate::ports::{Answer, PortError, VipPlace, VipTrustee};
use crate::reconcile::vip::{Desired, Standing, VipReconciler, wakes};
use crate::reconcile::{self, Running, Wishes};
use crate::spec::ClusterSpec;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Between two tries after a conflict or a netlink failure: the outage counts, and a try costs two
/// packets an address.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_millis(500) };
/// Longest wait for the addresses to go; afterwards their lease ends them (at most 1 s to `timeout`).
const DROP_DEADLINE: Duration = Duration::from_secs(4);

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A token that no decision before had.
fn decision(epoch: Epoch) -> DecisionToken {
    DecisionToken { epoch, serial: SERIAL.fetch_add(1, Ordering::Relaxed) }
}

/// The guard, told of all clusters' addresses together.
pub struct Trustee(pub Arc<Shared>);

impl VipTrustee for Trustee {
    fn entrust<'a>(&'a self, cluster: &'a ClusterId, places: &'a [VipPlace]) -> Answer<'a, ()> {
        let one = |p: &VipPlace| VipRef { address: p.address, prefix: p.prefix, ifindex: p.ifindex };
        let refs: Vec<VipRef> = places.iter().map(one).collect();
        let (shared, cluster) = (self.0.clone(), cluster.clone());
        Box::pin(async move {
            let tell = move || {
                // Held until the guard has the list, so that two clusters' lists cannot cross.
                let mut fencing = shared.fencing.lock().unwrap_or_else(PoisonError::into_inner);
                fencing.vips.insert(cluster, refs);
                let all = fencing.vips.values().flatten().copied().collect();
                shared
                    .guard
                    .set_vips(all)
                    .map_err(|error| PortError { code: codes::GUARD_TOMBSTONE.id, message: chain(&error) })
            };
            let failed = |error: tokio::task::JoinError| PortError {
                code: codes::GUARD_TOMBSTONE.id,
                message: error.to_string(),
            };
            tokio::task::spawn_blocking(tell).await.map_err(failed)?
        })
    }
}

/// The addresses of one cluster.
pub struct Vips<T: VipTrustee> {
    cluster: ClusterId,
    /// All of the spec.
    pub all: Vec<Vip>,
    lease: Lease,
    standing: watch::Receiver<Standing>,
    controller: Running<VipReconciler<T>>,
    decider: tokio::task::JoinHandle<()>,
    core: Handle,
}

impl<T: VipTrustee> Vips<T> {
    /// Nothing is added yet.
    pub fn new(spec: &ClusterSpec, core: Handle, bus: &Bus, trustee: T) -> Self {
        let cluster = ClusterId(spec.metadata.name.clone());
        let all = spec
            .spec
            .virtual_ips
            .iter()
            .map(|v| Vip {
                address: v.address.ip(),
                prefix: v.address.prefix(),
                interface: v.interface.clone(),
            })
            .collect();
        let lease = Lease::from_timeout(spec.spec.heartbeat.timeout.as_millis());
        let (stand, standing) = watch::channel(Standing::default());
        let to_core = core.clone();
        let on_standing = Arc::new(move |_: &ClusterId, now: &Standing| {
            let before = stand.borrow().clone();
            if before.held.is_empty() != now.held.is_empty() {
                to_core.input(Input::VipHeld(!now.held.is_empty()));
            }
            if before.conflict != now.conflict {
                to_core.input(Input::VipConflict(now.conflict));
            }
            // Last: who follows it relies on the core's being told.
            stand.send_replace(now.clone());
        });
        let make = |wishes| VipReconciler::new(wishes, trustee, bus.clone(), on_standing);
        let controller = reconcile::start(bus, wakes, BACKOFF, make);
        let decider =
            decide_again(cluster.clone(), controller.wishes.clone(), core.clone(), standing.clone());
        let decider = tokio::spawn(decider);
        Self { cluster, all, lease, standing, controller, decider, core }
    }

    /// Follows how they stand.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Holds all addresses from now on, by the decision of `epoch`. Returns at once.
    pub fn add(&self, epoch: Epoch) {
        if self.all.is_empty() {
            self.core.input(Input::VipHeld(true));
            return;
        }
        let lost = self.standing.borrow().lost;
        let (vips, lease) = (self.all.clone(), self.lease);
        self.controller.wishes.change(&self.cluster, |wish| match wish {
            Some(Desired::Held { token, .. }) if lost != Some(*token) => None,
            _ => Some(Desired::Held { vips, lease, token: decision(epoch) }),
        });
    }

    /// Drops all addresses; complete when they are gone (or their lease has to end them).
    pub async fn drop_all(&self) {
        if self.all.is_empty() {
            self.core.input(Input::VipHeld(false));
            return;
        }
        let absent = Desired::Absent { vips: self.all.clone() };
        let gone = self.controller.wishes.reach(&self.cluster, absent);
        let error = match tokio::time::timeout(DROP_DEADLINE, gone).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => format!("not done within {} ms", DROP_DEADLINE.as_millis()),
        };
        tracing::error!(
            cluster = %self.cluster, error, error_code = codes::NET_DEADLINE.id,
            "virtual IPs did not go; they are not renewed, their lease ends them"
        );
        self.controller.reconciler.abandon(&self.cluster);
    }
}

impl<T: VipTrustee> Drop for Vips<T> {
    fn drop(&mut self) {
        self.decider.abort();
    }
}

/// Decides anew about addresses that were lost, on the core's word. Ends with the core.
async fn decide_again(
    cluster: ClusterId,
    wishes: Wishes<Desired>,
    core: Handle,
    mut standing: watch::Receiver<Standing>,
) {
    loop {
        let Ok(lost) = standing.wait_for(|s| s.lost.is_some()).await.map(|s| s.lost) else { return };
        // The loss was its input before it was told here.
        if core.heard().await.is_none() {
            return;
        }
        let mut snapshots = core.watch();
        let settled = snapshots.wait_for(|s| s.view.serving || !s.view.wants_vips).await;
        let Ok(again) = settled.map(|s| s.view.wants_vips) else { return };
        if again {
            wishes.change(&cluster, |wish| match wish {
                Some(Desired::Held { vips, lease, token }) if Some(*token) == lost => {
                    let token = decision(token.epoch);
                    Some(Desired::Held { vips: vips.clone(), lease: *lease, token })
                }
                _ => None,
            });
        }
        if standing.wait_for(|s| s.lost != lost).await.is_err() {
            return;
        }
    }
}
