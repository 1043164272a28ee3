//! Checkers: those run that the role asks for.
//!
//! A checker of the primary runs while the services run, so that a start that takes long is no failure;
//! [`Desired::run`] counts service starts, so that each start gives every checker a clean slate. One
//! whose failure made the services wait goes on looking while they do: it is what they wait for.

use super::Wishes;
use crate::base::ClusterId;
use crate::bus::{Bus, Fact};
use crate::controller::Reconciler;
use crate::engine::Role;
use crate::engine::health::Health;
use crate::net::check::{Checker, Standing, all_healthy};
use crate::spec::checker::Checker as Spec;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// What is desired: see [`wanted`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Which run.
    pub checkers: Vec<Spec>,
    /// Number of the service start they belong to.
    pub run: u64,
}

/// What decides which ones run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation<'a> {
    /// This node's role.
    pub role: Role,
    /// Do all services run?
    pub services_running: bool,
    /// Checkers that are down and whose failure means to wait for them.
    pub waiting: &'a [String],
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

/// The checkers that run. None in STOP and WAIT: there is nothing to look after.
pub fn wanted(all: &[Spec], situation: Situation<'_>) -> Vec<Spec> {
    let Situation { role, services_running, waiting } = situation;
    let runs = |checker: &&Spec| match role {
        Role::Prim | Role::Alone => {
            checker.on.runs(true) && (services_running || waiting.contains(&checker.name))
        }
        Role::Second => checker.on.runs(false),
        Role::Stop | Role::Wait => false,
    };
    all.iter().filter(runs).cloned().collect()
}

/// Called when a checker's verdict changed. Must not block.
pub type OnVerdict = Arc<dyn Fn(&ClusterId, &Spec, &Standing) + Send + Sync>;

/// Called when "none of them is down" changed. Must not block.
pub type OnHealth = Arc<dyn Fn(&ClusterId, bool) + Send + Sync>;

struct Running {
    spec: Spec,
    run: u64,
    checker: Checker,
}

#[derive(Default)]
struct Group {
    running: Vec<Running>,
    frozen: bool,
    /// Told last.
    unhealthy: bool,
}

/// The reconciler; owner of the running checkers.
pub struct CheckerReconciler {
    wishes: Wishes<Desired>,
    groups: Arc<Groups>,
    bus: Bus,
    on_verdict: OnVerdict,
}

struct Groups {
    of: Mutex<BTreeMap<ClusterId, Group>>,
    on_health: OnHealth,
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClusterId, Group>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether none is down, if that changed.
    fn judge(&self, cluster: &ClusterId) {
        let unhealthy = {
            let mut groups = self.lock();
            let Some(group) = groups.get_mut(cluster) else { return };
            let unhealthy = !all_healthy(group.running.iter().map(|r| &r.checker));
            if std::mem::replace(&mut group.unhealthy, unhealthy) == unhealthy {
                return;
            }
            unhealthy
        };
        (self.on_health)(cluster, !unhealthy);
    }
}

/// No fact wakes it: what it depends on comes as a wish.
pub fn wakes(_fact: &Fact) -> bool {
    false
}

impl CheckerReconciler {
    /// Nothing runs yet.
    pub fn new(wishes: Wishes<Desired>, bus: Bus, on_verdict: OnVerdict, on_health: OnHealth) -> Self {
        let groups = Arc::new(Groups { of: Mutex::default(), on_health });
        Self { wishes, groups, bus, on_verdict }
    }

    /// While `true`, looks do not count: the mount makes the application wait.
    pub fn freeze(&self, cluster: &ClusterId, frozen: bool) {
        let mut groups = self.groups.lock();
        let group = groups.entry(cluster.clone()).or_default();
        group.frozen = frozen;
        for one in &group.running {
            one.checker.freeze(frozen);
        }
    }

    /// How each one stands.
    pub fn standings(&self, cluster: &ClusterId) -> Vec<(Spec, Standing)> {
        let groups = self.groups.lock();
        let of = groups.get(cluster).map(|g| g.running.as_slice()).unwrap_or_default();
        of.iter().map(|r| (r.spec.clone(), r.checker.standing())).collect()
    }

    fn start(&self, key: &ClusterId, spec: &Spec) -> Checker {
        let (bus, on_verdict, cluster) = (self.bus.clone(), self.on_verdict.clone(), key.clone());
        // Not owned by its own member.
        let groups: Weak<Groups> = Arc::downgrade(&self.groups);
        let on_change = move |spec: &Spec, standing: &Standing| {
            let fact = Fact::CheckerChanged {
                checker: spec.name.clone(),
                up: standing.health == Health::Up,
                output: standing.output.clone(),
            };
            bus.publish(Some(&cluster.0), fact);
            // First the sum, then what follows from the failure: the core judges by the sum.
            if let Some(groups) = groups.upgrade() {
                groups.judge(&cluster);
            }
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
        let groups = self.groups.lock();
        let of = groups.get(key).map(|g| g.running.as_slice()).unwrap_or_default();
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
                if let Some(group) = self.groups.lock().get_mut(key) {
                    group.running.retain(|r| r.spec.name != *name);
                }
            }
            Step::Start { checker: spec, run } => {
                let checker = self.start(key, spec);
                let mut groups = self.groups.lock();
                let group = groups.entry(key.clone()).or_default();
                checker.freeze(group.frozen);
                group.running.push(Running { spec: (**spec).clone(), run: *run, checker });
            }
        }
        self.groups.judge(key);
        Ok(())
    }

    fn deadline(&self, _step: &Step) -> Duration {
        Duration::from_secs(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::render;

    fn spec(name: &str, on: &str) -> Spec {
        serde_json::from_value(serde_json::json!({"name": name, "tcp": {"port": 80}, "on": on})).unwrap()
    }

    fn names(role: Role, services_running: bool, waiting: &[&str]) -> Vec<String> {
        let all = [spec("p", "primary"), spec("s", "standby"), spec("b", "both")];
        let waiting: Vec<String> = waiting.iter().map(ToString::to_string).collect();
        let situation = Situation { role, services_running, waiting: &waiting };
        wanted(&all, situation).into_iter().map(|c| c.name).collect()
    }

    fn diff(desired: &Desired, observed: &[(Spec, u64)]) -> String {
        render(&CheckerReconciler::plan(desired, &observed.to_vec()))
    }

    #[test]
    fn each_role_has_its_checkers_and_the_primary_waits_for_its_services() {
        for serving in [Role::Prim, Role::Alone] {
            assert_eq!(names(serving, true, &[]), ["p", "b"]);
            assert!(names(serving, false, &[]).is_empty());
        }
        assert_eq!(names(Role::Second, false, &[]), ["s", "b"]);
        for idle in [Role::Stop, Role::Wait] {
            assert!(names(idle, true, &["p"]).is_empty());
        }
    }

    #[test]
    fn what_the_services_wait_for_is_looked_at_while_they_wait() {
        assert_eq!(names(Role::Prim, false, &["p", "s"]), ["p"]);
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
