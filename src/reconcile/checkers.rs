//! Checkers: those run that the role asks for.
//!
//! A checker of the primary runs while the services run, so that a start that takes long is no failure;
//! [`Desired::run`] counts service starts, so that each start gives every checker a clean slate.

use super::Wishes;
use crate::base::ClusterId;
use crate::bus::{Bus, Fact};
use crate::controller::{Reconciler, render};
use crate::engine::Role;
use crate::engine::health::Health;
use crate::net::check::{Checker, Standing, all_healthy};
use crate::spec::checker::Checker as Spec;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is desired: see [`wanted`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Which run.
    pub checkers: Vec<Spec>,
    /// Number of the service start they belong to.
    pub run: u64,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// End it.
    Stop {
        /// Which.
        name: String,
    },
    /// Begin to look.
    Start {
        /// Which.
        checker: Box<Spec>,
        /// For which service start.
        run: u64,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop { name } => write!(f, "- checker {name}"),
            Self::Start { checker, .. } => write!(f, "+ checker {}", checker.name),
        }
    }
}

/// The checkers that run in `role`. None in STOP and WAIT: there is nothing to look after, and
/// [`Role::Prim`] and [`Role::Alone`] wait for the services.
pub fn wanted(all: &[Spec], role: Role, services_running: bool) -> Vec<Spec> {
    let primary = match role {
        Role::Prim | Role::Alone if services_running => true,
        Role::Second => false,
        Role::Prim | Role::Alone | Role::Stop | Role::Wait => return Vec::new(),
    };
    all.iter().filter(|c| c.on.runs(primary)).cloned().collect()
}

/// Called when a checker's verdict changed. Must not block.
pub type OnVerdict = Arc<dyn Fn(&ClusterId, &Spec, &Standing) + Send + Sync>;

struct Running {
    spec: Spec,
    run: u64,
    checker: Checker,
}

/// The reconciler; owner of the running checkers.
pub struct CheckerReconciler {
    wishes: Wishes<Desired>,
    running: Mutex<BTreeMap<ClusterId, Vec<Running>>>,
    bus: Bus,
    on_verdict: OnVerdict,
}

impl CheckerReconciler {
    /// Nothing runs yet.
    pub fn new(wishes: Wishes<Desired>, bus: Bus, on_verdict: OnVerdict) -> Self {
        Self { wishes, running: Mutex::default(), bus, on_verdict }
    }

    /// While `true`, looks do not count: the mount makes the application wait.
    pub fn freeze(&self, cluster: &ClusterId, frozen: bool) {
        if let Some(running) = self.running().get(cluster) {
            for one in running {
                one.checker.freeze(frozen);
            }
        }
    }

    /// Is none of them down?
    pub fn healthy(&self, cluster: &ClusterId) -> bool {
        self.running().get(cluster).is_none_or(|r| all_healthy(r.iter().map(|r| &r.checker)))
    }

    /// How each one stands, for status.
    pub fn standings(&self, cluster: &ClusterId) -> Vec<(String, Standing)> {
        let running = self.running();
        let of = running.get(cluster).map(Vec::as_slice).unwrap_or_default();
        of.iter().map(|r| (r.spec.name.clone(), r.checker.standing())).collect()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<ClusterId, Vec<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, key: &ClusterId, spec: &Spec) -> Checker {
        let (bus, on_verdict, cluster) = (self.bus.clone(), self.on_verdict.clone(), key.clone());
        let on_change = move |spec: &Spec, standing: &Standing| {
            let fact = Fact::CheckerChanged {
                checker: spec.name.clone(),
                up: standing.health == Health::Up,
                output: standing.output.clone(),
            };
            bus.publish(Some(&cluster.0), fact);
            on_verdict(&cluster, spec, standing);
        };
        Checker::start(spec.clone(), Arc::new(on_change))
    }
}

impl Reconciler for CheckerReconciler {
    type Key = ClusterId;
    type Desired = Desired;
    /// What runs, and for which service start.
    type Observed = Vec<(Spec, u64)>;
    type Step = Step;
    type Error = Infallible;

    fn desired(&self, key: &ClusterId) -> Option<Desired> {
        self.wishes.get(key)
    }

    async fn observe(&self, key: &ClusterId, _desired: &Desired) -> Result<Self::Observed, Infallible> {
        let running = self.running();
        let of = running.get(key).map(Vec::as_slice).unwrap_or_default();
        Ok(of.iter().map(|r| (r.spec.clone(), r.run)).collect())
    }

    fn plan(desired: &Desired, observed: &Self::Observed) -> Vec<Step> {
        let right = |spec: &Spec, run: u64| run == desired.run && desired.checkers.contains(spec);
        let runs = |spec: &Spec| observed.iter().any(|(s, run)| s == spec && right(s, *run));
        let stop = observed.iter().filter(|(s, run)| !right(s, *run));
        let start = desired.checkers.iter().filter(|s| !runs(s));
        let stop = stop.map(|(s, _)| Step::Stop { name: s.name.clone() });
        stop.chain(start.map(|s| Step::Start { checker: Box::new(s.clone()), run: desired.run })).collect()
    }

    async fn execute(&self, key: &ClusterId, _desired: &Desired, step: &Step) -> Result<(), Infallible> {
        match step {
            Step::Stop { name } => {
                if let Some(running) = self.running().get_mut(key) {
                    running.retain(|r| r.spec.name != *name);
                }
            }
            Step::Start { checker: spec, run } => {
                let checker = self.start(key, spec);
                let running = Running { spec: (**spec).clone(), run: *run, checker };
                self.running().entry(key.clone()).or_default().push(running);
            }
        }
        Ok(())
    }

    fn deadline(&self, _step: &Step) -> Duration {
        Duration::from_secs(1)
    }
}

/// The steps for `skc diff`.
pub fn diff(desired: &Desired, observed: &[(Spec, u64)]) -> String {
    render(&CheckerReconciler::plan(desired, &observed.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, on: &str) -> Spec {
        serde_json::from_value(serde_json::json!({"name": name, "tcp": {"port": 80}, "on": on})).unwrap()
    }

    fn names(role: Role, running: bool) -> Vec<String> {
        let all = [spec("p", "primary"), spec("s", "standby"), spec("b", "both")];
        wanted(&all, role, running).into_iter().map(|c| c.name).collect()
    }

    #[test]
    fn each_role_has_its_checkers_and_the_primary_waits_for_its_services() {
        for serving in [Role::Prim, Role::Alone] {
            assert_eq!(names(serving, true), ["p", "b"]);
            assert!(names(serving, false).is_empty());
        }
        assert_eq!(names(Role::Second, false), ["s", "b"]);
        for idle in [Role::Stop, Role::Wait] {
            assert!(names(idle, true).is_empty());
        }
    }

    #[test]
    fn a_second_plan_is_empty_and_a_changed_or_restarted_checker_starts_anew() {
        let desired = Desired { checkers: vec![spec("a", "primary"), spec("b", "both")], run: 1 };
        assert_eq!(diff(&desired, &[]), "+ checker a\n+ checker b\n");
        let observed: Vec<_> = desired.checkers.iter().map(|c| (c.clone(), 1)).collect();
        assert_eq!(diff(&desired, &observed), "");
        let mut changed = desired.clone();
        changed.checkers[0].fall = 9;
        assert_eq!(diff(&changed, &observed), "- checker a\n+ checker a\n");
        let restarted = Desired { run: 2, ..desired };
        assert_eq!(diff(&restarted, &observed), "- checker a\n- checker b\n+ checker a\n+ checker b\n");
        assert_eq!(diff(&Desired::default(), &observed), "- checker a\n- checker b\n");
    }
}
