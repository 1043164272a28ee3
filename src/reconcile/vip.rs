//! Virtual IPs: held under a decision, or not here.
//!
//! Owner of the [`VipHandle`]s. Invariants: the trustee (the guard) knows of an address before it is
//! added ([`Step::Entrust`] stands before [`Step::Hold`]) and until it is gone. The late-loop rule lives
//! in the plan: addresses lost under a decision stay lost until the wish carries another
//! [`DecisionToken`]; such an object counts as reconciled, and its [`Standing`] says so.

use super::{Wishes, text};
use crate::base::{ClusterId, codes};
use crate::bus::{Bus, Fact};
use crate::controller::{Reconciler, Report, RunError, chain};
use crate::net::iface::Netlink;
use crate::net::{self, DecisionToken, Lease, Vip, VipEvent, VipHandle, VipKeeper};
use crate::ports::{PortError, VipPlace, VipTrustee};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest step: the conflict probe (100 ms) and a handful of netlink requests, each bounded by 2 s.
const STEP_DEADLINE: Duration = Duration::from_secs(4);

/// Why a step or a look failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The trustee does not take the addresses, so they are not added.
    #[error("the guard does not take the virtual IPs")]
    Trustee(#[source] PortError),
}

impl Error {
    const fn code(&self) -> &'static str {
        match self {
            Self::Net(error) => error.code(),
            Self::Trustee(error) => error.code,
        }
    }
}

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
    /// Where the addresses of the wish are or belong.
    pub places: Vec<VipPlace>,
    /// What the trustee was told last.
    pub entrusted: Vec<VipPlace>,
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
    pub lost: Option<String>,
}

impl Keeper {
    /// Lost or held: this decision has been carried out.
    fn is_of(&self, token: DecisionToken, vips: &[Vip]) -> bool {
        self.token == token && (self.vips == vips || self.lost.is_some())
    }
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
    /// Tell the trustee.
    Entrust {
        /// All that it has to know of.
        places: Vec<VipPlace>,
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
            Self::Entrust { places } if places.is_empty() => f.write_str("~ guard: no virtual IP"),
            Self::Entrust { places } => {
                let one = |p: &VipPlace| format!("{}/{}", p.address, p.prefix);
                write!(f, "~ guard: {}", places.iter().map(one).collect::<Vec<_>>().join(", "))
            }
            Self::Hold { vips, lease, token } => {
                write!(f, "+ virtual IP {} (lease {} s, decision {token})", list(vips), lease.seconds())
            }
        }
    }
}

/// How a cluster's addresses stand, for the core and for status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Addresses that are here now.
    pub held: Vec<Vip>,
    /// Lost under this decision; only another one brings them back.
    pub lost: Option<DecisionToken>,
    /// Somebody else has one of them.
    pub conflict: bool,
    /// What is wrong.
    pub note: String,
}

/// Called when a cluster's standing changed. Must not block.
pub type OnStanding = Arc<dyn Fn(&ClusterId, &Standing) + Send + Sync>;

/// The reconciler.
pub struct VipReconciler<T> {
    wishes: Wishes<Desired>,
    trustee: T,
    handles: Mutex<BTreeMap<ClusterId, VipHandle>>,
    entrusted: Mutex<BTreeMap<ClusterId, Vec<VipPlace>>>,
    standings: Mutex<BTreeMap<ClusterId, Standing>>,
    bus: Bus,
    on_standing: OnStanding,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: VipTrustee> VipReconciler<T> {
    /// Holds nothing yet.
    pub fn new(wishes: Wishes<Desired>, trustee: T, bus: Bus, on_standing: OnStanding) -> Self {
        Self {
            wishes,
            trustee,
            handles: Mutex::default(),
            entrusted: Mutex::default(),
            standings: Mutex::default(),
            bus,
            on_standing,
        }
    }

    /// The addresses held now, with their interface index.
    pub fn held(&self, cluster: &ClusterId) -> Vec<(Vip, u32)> {
        let states = lock(&self.handles).get(cluster).map(VipHandle::states).unwrap_or_default();
        states.into_iter().filter(|s| s.lost.is_none()).map(|s| (s.vip, s.ifindex)).collect()
    }

    /// Renews nothing any more, without waiting: for when the way through a run does not answer. The
    /// addresses go in the background, at the latest with their lease.
    pub fn abandon(&self, cluster: &ClusterId) {
        drop(lock(&self.handles).remove(cluster));
        self.stand(cluster, Standing::default());
    }

    fn stand(&self, cluster: &ClusterId, standing: Standing) {
        let before = lock(&self.standings).insert(cluster.clone(), standing.clone());
        if before.unwrap_or_default() != standing {
            (self.on_standing)(cluster, &standing);
        }
    }

    fn observer(&self, cluster: &ClusterId) -> net::Observer {
        let (bus, cluster) = (self.bus.clone(), cluster.clone());
        Arc::new(move |event| {
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

/// The facts after which the addresses are looked at: the keeper says by them what it found.
pub fn wakes(fact: &Fact) -> bool {
    matches!(fact, Fact::VipLost { .. } | Fact::VipConflict { .. })
}

/// What the standing is, if the look tells; one that is still to be held tells nothing new.
fn standing(desired: &Desired, keeper: Option<&Keeper>) -> Option<Standing> {
    match (desired, keeper) {
        (Desired::Held { vips, token, .. }, Some(keeper)) if keeper.is_of(*token, vips) => {
            Some(match &keeper.lost {
                None => Standing { held: keeper.vips.clone(), ..Standing::default() },
                Some(why) => {
                    Standing { lost: Some(*token), note: format!("lost: {why}"), ..Standing::default() }
                }
            })
        }
        (Desired::Absent { .. }, None) => Some(Standing::default()),
        _ => None,
    }
}

impl<T: VipTrustee> Reconciler for VipReconciler<T> {
    type Key = ClusterId;
    type Desired = Desired;
    type Observed = Observed;
    type Step = Step;
    type Error = Error;

    fn desired(&self, key: &ClusterId) -> Option<Desired> {
        self.wishes.get(key)
    }

    async fn observe(&self, key: &ClusterId, desired: &Desired) -> Result<Observed, Error> {
        let states = lock(&self.handles).get(key).map(|handle| (handle.token(), handle.states()));
        let mut places = Vec::new();
        let keeper = states.map(|(token, states)| {
            let place = |s: &net::keeper::VipState| VipPlace {
                address: s.vip.address,
                prefix: s.vip.prefix,
                ifindex: s.ifindex,
            };
            places = states.iter().map(place).collect();
            let lost = states.iter().find_map(|s| s.lost.clone());
            Keeper { token, vips: states.into_iter().map(|s| s.vip).collect(), lost }
        });
        let mut leftovers = Vec::new();
        match (desired, &keeper) {
            (Desired::Held { vips, token, .. }, keeper)
                if !keeper.as_ref().is_some_and(|k| k.is_of(*token, vips)) =>
            {
                let interfaces = Netlink::open()?.interfaces().await?;
                let place = |vip: &Vip| {
                    let ifindex = interfaces.of_vip(vip)?.index;
                    Ok(VipPlace { address: vip.address, prefix: vip.prefix, ifindex })
                };
                places = vips.iter().map(place).collect::<Result<_, net::Error>>()?;
            }
            (Desired::Absent { vips }, None) if !vips.is_empty() => {
                let interfaces = Netlink::open()?.interfaces().await?;
                let leased =
                    |vip: &&Vip| interfaces.holders(vip.address).any(|(_, a)| a.valid_seconds.is_some());
                leftovers = vips.iter().filter(leased).cloned().collect();
            }
            _ => {}
        }
        if let Some(standing) = standing(desired, keeper.as_ref()) {
            self.stand(key, standing);
        }
        let entrusted = lock(&self.entrusted).get(key).cloned().unwrap_or_default();
        Ok(Observed { keeper, places, entrusted, leftovers })
    }

    fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
        let mut steps = Vec::new();
        let release = observed.keeper.as_ref().map(|keeper| Step::Release { vips: keeper.vips.clone() });
        let entrust = |places: &[VipPlace]| {
            (places != observed.entrusted).then(|| Step::Entrust { places: places.to_vec() })
        };
        match desired {
            Desired::Held { vips, token, .. }
                if observed.keeper.as_ref().is_some_and(|keeper| keeper.is_of(*token, vips)) =>
            {
                // Only where an interface was made anew under our hands.
                steps.extend(entrust(&observed.places));
            }
            Desired::Held { vips, lease, token } => {
                steps.extend(release);
                steps.extend(entrust(&observed.places));
                if !vips.is_empty() {
                    steps.push(Step::Hold { vips: vips.clone(), lease: *lease, token: *token });
                }
            }
            Desired::Absent { .. } => {
                steps.extend(release);
                steps.extend(observed.leftovers.iter().map(|vip| Step::Remove { vip: vip.clone() }));
                steps.extend(entrust(&[]));
            }
        }
        steps
    }

    async fn execute(&self, key: &ClusterId, _desired: &Desired, step: &Step) -> Result<(), Error> {
        match step {
            Step::Release { .. } => {
                let handle = lock(&self.handles).remove(key);
                if let Some(handle) = handle {
                    handle.release().await?;
                }
            }
            Step::Remove { vip } => {
                Netlink::open()?.remove_vip(vip.address).await?;
            }
            Step::Entrust { places } => {
                self.trustee.entrust(key, places).await.map_err(Error::Trustee)?;
                lock(&self.entrusted).insert(key.clone(), places.clone());
            }
            Step::Hold { vips, lease, token } => {
                let observer = self.observer(key);
                let handle = VipKeeper::start(vips.clone(), *lease, *token, observer).await?;
                lock(&self.handles).insert(key.clone(), handle);
            }
        }
        Ok(())
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
        let Report::Failed { error, repeated } = report else { return };
        let (code, conflict) = match error {
            RunError::Observe(e) | RunError::Step { source: e, .. } => {
                (e.code(), matches!(e, Error::Net(net::Error::Conflict { .. })))
            }
            RunError::NotConverged { .. } => (codes::NET_NETLINK.id, false),
            RunError::ObserveDeadline(_) | RunError::StepDeadline { .. } => (codes::NET_DEADLINE.id, false),
        };
        let note = chain(error);
        if !repeated {
            text::publish(&self.bus, &key.0, "virtual IPs", code, note.clone());
        }
        let held = self.held(key).into_iter().map(|(vip, _)| vip).collect();
        self.stand(key, Standing { held, conflict, note, lost: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Epoch;
    use crate::controller::render;
    use crate::ports::Answer;

    struct Nobody;

    impl VipTrustee for Nobody {
        fn entrust<'a>(&'a self, _: &'a ClusterId, _: &'a [VipPlace]) -> Answer<'a, ()> {
            Box::pin(async { Ok(()) })
        }
    }

    fn vips() -> Vec<Vip> {
        vec!["10.0.1.100/24".parse().unwrap(), "fd00::5/64".parse().unwrap()]
    }

    fn places(ifindex: u32) -> Vec<VipPlace> {
        let one = |v: &Vip| VipPlace { address: v.address, prefix: v.prefix, ifindex };
        vips().iter().map(one).collect()
    }

    fn token(serial: u64) -> DecisionToken {
        DecisionToken { epoch: Epoch { g: 3, s: 7 }, serial }
    }

    fn held(serial: u64) -> Desired {
        Desired::Held { vips: vips(), lease: Lease::from_timeout(2000), token: token(serial) }
    }

    fn nothing() -> Observed {
        Observed { places: places(3), ..Observed::default() }
    }

    fn keeper(serial: u64, lost: bool) -> Observed {
        let lost = lost.then(|| "late".to_owned());
        let keeper = Keeper { token: token(serial), vips: vips(), lost };
        Observed { keeper: Some(keeper), places: places(3), entrusted: places(3), leftovers: Vec::new() }
    }

    fn plan(desired: &Desired, observed: &Observed) -> String {
        render(&VipReconciler::<Nobody>::plan(desired, observed))
    }

    const ENTRUST: &str = "~ guard: 10.0.1.100/24, fd00::5/64\n";
    const HOLD_2: &str = "+ virtual IP 10.0.1.100/24, fd00::5/64 (lease 2 s, decision 3.7#2)\n";
    const RELEASE: &str = "- virtual IP 10.0.1.100/24, fd00::5/64\n";
    const WITHDRAW: &str = "~ guard: no virtual IP\n";

    #[test]
    fn the_guard_knows_before_an_address_is_added() {
        assert_eq!(plan(&held(2), &nothing()), format!("{ENTRUST}{HOLD_2}"));
        let told = Observed { entrusted: places(3), ..nothing() };
        assert_eq!(plan(&held(2), &told), HOLD_2);
        let told_elsewhere = Observed { entrusted: places(9), ..nothing() };
        assert_eq!(plan(&held(2), &told_elsewhere), format!("{ENTRUST}{HOLD_2}"));
    }

    #[test]
    fn held_by_this_decision_is_done_unless_the_guard_knows_another_interface() {
        assert_eq!(plan(&held(2), &keeper(2, false)), "");
        let moved = Observed { places: places(9), ..keeper(2, false) };
        assert_eq!(plan(&held(2), &moved), ENTRUST);
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
    fn absent_releases_what_is_kept_removes_what_was_left_and_tells_the_guard_last() {
        let absent = Desired::Absent { vips: vips() };
        assert_eq!(plan(&absent, &keeper(1, false)), format!("{RELEASE}{WITHDRAW}"));
        let observed = Observed { leftovers: vips(), ..Observed::default() };
        assert_eq!(
            plan(&absent, &observed),
            "- virtual IP 10.0.1.100/24 (left over)\n- virtual IP fd00::5/64 (left over)\n"
        );
        assert_eq!(plan(&absent, &Observed::default()), "");
    }

    #[test]
    fn the_standing_says_held_lost_or_nothing_and_stays_while_a_try_is_under_way() {
        let of = |desired: &Desired, observed: &Observed| standing(desired, observed.keeper.as_ref());
        assert_eq!(of(&held(2), &keeper(2, false)).unwrap().held, vips());
        let lost = of(&held(2), &keeper(2, true)).unwrap();
        assert_eq!((lost.held.is_empty(), lost.lost), (true, Some(token(2))));
        assert_eq!(of(&held(3), &keeper(2, true)), None);
        assert_eq!(of(&held(2), &nothing()), None);
        let absent = Desired::Absent { vips: vips() };
        assert_eq!(of(&absent, &nothing()), Some(Standing::default()));
        assert_eq!(of(&absent, &keeper(2, false)), None);
    }
}
