//! Virtual IPs: held under a decision, or not here.
//!
//! Owner of the [`VipHandle`]s. The late-loop rule lives in the plan: addresses lost under a decision
//! stay lost until the wish carries another [`DecisionToken`]; such an object counts as reconciled,
//! and [`VipEvent::Lost`] has told the core.

use super::{Wishes, text};
use crate::base::ClusterId;
use crate::bus::{Bus, Fact};
use crate::controller::{Reconciler, Report, RunError, chain};
use crate::net::iface::Netlink;
use crate::net::{DecisionToken, Error, Lease, Vip, VipEvent, VipHandle, VipKeeper};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest step: the conflict probe (100 ms) and a handful of netlink requests, each bounded by 2 s.
const STEP_DEADLINE: Duration = Duration::from_secs(4);

/// What is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// Hold all of them.
    Held {
        /// Which.
        vips: Vec<Vip>,
        /// For how long without renewal.
        lease: Lease,
        /// By which decision.
        token: DecisionToken,
    },
    /// None of these may be here.
    Absent {
        /// Which; leftovers of a former life are removed too.
        vips: Vec<Vip>,
    },
}

/// What is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The keeper, if there is one.
    pub keeper: Option<Keeper>,
    /// Addresses of the wish that are on an interface, with a lease, kept by nobody.
    pub leftovers: Vec<Vip>,
}

/// A keeper as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// By which decision it works.
    pub token: DecisionToken,
    /// Its addresses.
    pub vips: Vec<Vip>,
    /// It has given them up because of a late renewal.
    pub lost: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Stop renewing and remove.
    Release {
        /// Which.
        vips: Vec<Vip>,
    },
    /// Remove what a former life left.
    Remove {
        /// Which.
        vip: Vip,
    },
    /// Probe, add, announce, renew.
    Hold {
        /// Which.
        vips: Vec<Vip>,
        /// For how long without renewal.
        lease: Lease,
        /// By which decision.
        token: DecisionToken,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |vips: &[Vip]| vips.iter().map(Vip::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Release { vips } => write!(f, "- virtual IP {}", list(vips)),
            Self::Remove { vip } => write!(f, "- virtual IP {vip} (left over)"),
            Self::Hold { vips, lease, token } => {
                write!(f, "+ virtual IP {} (lease {} s, decision {token})", list(vips), lease.seconds())
            }
        }
    }
}

/// Called with every event of a cluster's addresses, before it is on the bus. Must not block.
pub type OnEvent = Arc<dyn Fn(&ClusterId, &VipEvent) + Send + Sync>;

/// The reconciler.
pub struct VipReconciler {
    wishes: Wishes<Desired>,
    handles: Mutex<BTreeMap<ClusterId, VipHandle>>,
    bus: Bus,
    on_event: OnEvent,
}

impl VipReconciler {
    /// Holds nothing yet.
    pub fn new(wishes: Wishes<Desired>, bus: Bus, on_event: OnEvent) -> Self {
        Self { wishes, handles: Mutex::default(), bus, on_event }
    }

    /// The addresses held now, with their interface index (for the guard and for status).
    pub fn held(&self, cluster: &ClusterId) -> Vec<(Vip, u32)> {
        let states = self.handles().get(cluster).map(VipHandle::states).unwrap_or_default();
        states.into_iter().filter(|s| s.lost.is_none()).map(|s| (s.vip, s.ifindex)).collect()
    }

    fn handles(&self) -> MutexGuard<'_, BTreeMap<ClusterId, VipHandle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observer(&self, cluster: &ClusterId) -> crate::net::Observer {
        let (bus, cluster, on_event) = (self.bus.clone(), cluster.clone(), self.on_event.clone());
        Arc::new(move |event| {
            on_event(&cluster, &event);
            let fact = match event {
                VipEvent::Held { vip, interface } => Fact::VipHeld { vip: vip.to_string(), interface },
                VipEvent::Lost { vip, reason } => Fact::VipLost { vip: vip.to_string(), reason },
                VipEvent::Released { vip } => Fact::VipReleased { vip: vip.to_string() },
                VipEvent::Conflict { vip, mac } => {
                    Fact::VipConflict { vip: vip.to_string(), mac: mac.to_string() }
                }
            };
            bus.publish(Some(&cluster.0), fact);
        })
    }
}

impl Reconciler for VipReconciler {
    type Key = ClusterId;
    type Desired = Desired;
    type Observed = Observed;
    type Step = Step;
    type Error = Error;

    fn desired(&self, key: &ClusterId) -> Option<Desired> {
        self.wishes.get(key)
    }

    async fn observe(&self, key: &ClusterId, desired: &Desired) -> Result<Observed, Error> {
        let keeper = self.handles().get(key).map(|handle| {
            let states = handle.states();
            let lost = states.iter().any(|s| s.lost.is_some());
            Keeper { token: handle.token(), vips: states.into_iter().map(|s| s.vip).collect(), lost }
        });
        let mut leftovers = Vec::new();
        if let (None, Desired::Absent { vips }) = (&keeper, desired) {
            let interfaces = Netlink::open()?.interfaces().await?;
            let leased = |vip: &&Vip| interfaces.holders(vip.address).any(|(_, a)| a.valid_seconds.is_some());
            leftovers = vips.iter().filter(leased).cloned().collect();
        }
        Ok(Observed { keeper, leftovers })
    }

    fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
        let mut steps = Vec::new();
        match (desired, &observed.keeper) {
            (Desired::Held { vips, lease, token }, keeper) => {
                match keeper {
                    // Lost or held: this decision has been carried out.
                    Some(keeper) if keeper.token == *token && keeper.vips == *vips => return steps,
                    Some(keeper) if keeper.token == *token && keeper.lost => return steps,
                    Some(keeper) => steps.push(Step::Release { vips: keeper.vips.clone() }),
                    None => {}
                }
                if !vips.is_empty() {
                    steps.push(Step::Hold { vips: vips.clone(), lease: *lease, token: *token });
                }
            }
            (Desired::Absent { .. }, Some(keeper)) => {
                steps.push(Step::Release { vips: keeper.vips.clone() });
            }
            (Desired::Absent { .. }, None) => {
                steps.extend(observed.leftovers.iter().map(|vip| Step::Remove { vip: vip.clone() }));
            }
        }
        steps
    }

    async fn execute(&self, key: &ClusterId, _desired: &Desired, step: &Step) -> Result<(), Error> {
        match step {
            Step::Release { .. } => {
                let handle = self.handles().remove(key);
                match handle {
                    Some(handle) => handle.release().await,
                    None => Ok(()),
                }
            }
            Step::Remove { vip } => Netlink::open()?.remove_vip(vip.address).await.map(|_| ()),
            Step::Hold { vips, lease, token } => {
                let observer = self.observer(key);
                let handle = VipKeeper::start(vips.clone(), *lease, *token, observer).await?;
                self.handles().insert(key.clone(), handle);
                Ok(())
            }
        }
    }

    fn deadline(&self, _step: &Step) -> Duration {
        STEP_DEADLINE
    }

    /// A revoked decision ends a half-done start at once; its lease ends what was added already, and the
    /// next plan finds it as left over.
    fn interruptible(step: &Step) -> bool {
        matches!(step, Step::Hold { .. })
    }

    fn report(&self, key: &ClusterId, report: Report<'_, Step, Error>) {
        if let Report::Failed(error) = report {
            let code = match error {
                RunError::Observe(e) | RunError::Step { source: e, .. } => e.code(),
                RunError::NotConverged { .. } => crate::base::codes::NET_NETLINK.id,
                RunError::ObserveDeadline(_) | RunError::StepDeadline { .. } => {
                    crate::base::codes::NET_DEADLINE.id
                }
            };
            text::publish(&self.bus, &key.0, "virtual IP", code, chain(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Epoch;
    use crate::controller::render;

    fn vips() -> Vec<Vip> {
        vec!["10.0.1.100/24".parse().unwrap(), "fd00::5/64".parse().unwrap()]
    }

    fn token(serial: u64) -> DecisionToken {
        DecisionToken { epoch: Epoch { g: 3, s: 7 }, serial }
    }

    fn held(serial: u64) -> Desired {
        Desired::Held { vips: vips(), lease: Lease::from_timeout(2000), token: token(serial) }
    }

    fn keeper(serial: u64, lost: bool) -> Observed {
        let keeper = Keeper { token: token(serial), vips: vips(), lost };
        Observed { keeper: Some(keeper), leftovers: Vec::new() }
    }

    fn plan(desired: &Desired, observed: &Observed) -> String {
        render(&VipReconciler::plan(desired, observed))
    }

    const HOLD_2: &str = "+ virtual IP 10.0.1.100/24, fd00::5/64 (lease 2 s, decision 3.7#2)\n";
    const RELEASE: &str = "- virtual IP 10.0.1.100/24, fd00::5/64\n";

    #[test]
    fn held_by_this_decision_is_done() {
        assert_eq!(plan(&held(2), &Observed::default()), HOLD_2);
        assert_eq!(plan(&held(2), &keeper(2, false)), "");
    }

    #[test]
    fn lost_addresses_come_back_by_a_new_decision_only() {
        assert_eq!(plan(&held(1), &keeper(1, true)), "");
        assert_eq!(plan(&held(2), &keeper(1, true)), format!("{RELEASE}{HOLD_2}"));
    }

    #[test]
    fn a_lost_decision_does_not_take_other_addresses_either() {
        let mut observed = keeper(2, true);
        observed.keeper.as_mut().unwrap().vips.pop();
        assert_eq!(plan(&held(2), &observed), "");
    }

    #[test]
    fn absent_releases_what_is_kept_and_removes_what_was_left() {
        let absent = Desired::Absent { vips: vips() };
        assert_eq!(plan(&absent, &keeper(1, false)), RELEASE);
        let observed = Observed { keeper: None, leftovers: vips() };
        assert_eq!(
            plan(&absent, &observed),
            "- virtual IP 10.0.1.100/24 (left over)\n- virtual IP fd00::5/64 (left over)\n"
        );
        assert_eq!(plan(&absent, &Observed::default()), "");
    }
}
