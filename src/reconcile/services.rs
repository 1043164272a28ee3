//! Services: all up in order, or all down in reverse order.
//!
//! A service that failed is started again only under another decision ([`Desired::decision`]) or by a
//! counted restart of its own: restarting, failing over or giving up is the core's choice. One that runs
//! under an older decision is stopped first: between two decisions to start lies one to stop, also if
//! both came before anything was done. Services behind a failed one in the order are not started; one
//! that cannot be stopped does not keep the others from it.
//!
//! The core is told each state once a decision: it counts failures.

use super::{Wishes, text};
use crate::base::{ClusterId, codes};
use crate::bus::{Bus, Fact};
use crate::controller::{Action, Reconciler, Report, RunError, chain};
use crate::engine::ServiceState;
use crate::ports::{PortError, ServiceManager, ServicePhase, ServiceSeen};
use crate::spec::types::Service;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// On top of a service's own timeouts, for the manager to kill what is left and to answer.
const GRACE: Duration = Duration::from_secs(10);
/// How often services that are up are looked at, should a message about a death have been lost.
const LOOK: Duration = Duration::from_secs(10);

/// What is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Up or down.
    pub up: bool,
    /// Number of the decision that said so; a new one starts all of them anew.
    pub decision: u64,
    /// In order of start.
    pub services: Vec<Service>,
    /// How often each one was to be restarted by itself (`onFailure: restartService`).
    pub restarts: BTreeMap<String, u64>,
}

/// One service, and under what it was last started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// How it is.
    pub seen: ServiceSeen,
    /// The last attempt to start it, if this process made one.
    pub attempt: Option<Attempt>,
    /// Stopping it failed under the present decision.
    pub stuck: bool,
}

/// What stood when a start was attempted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The decision.
    pub decision: u64,
    /// The service's own restart count.
    pub restart: u64,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bring down.
    Stop {
        /// Which.
        name: String,
    },
    /// Bring up.
    Start {
        /// Which.
        service: Box<Service>,
        /// Noted, so that a failure is not repeated.
        attempt: Attempt,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop { name } => write!(f, "- service {name}"),
            Self::Start { service, .. } => write!(f, "+ service {}", service.name),
        }
    }
}

/// Called when the services, seen as one, changed, and once for each decision. Must not block.
pub type OnState = Arc<dyn Fn(&ClusterId, ServiceState) + Send + Sync>;

type Name = (ClusterId, String);

/// State and note of a service, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// Starting, running, stopping, stopped, failed.
    pub state: &'static str,
    /// Why.
    pub note: String,
}

/// What this process remembers of the services.
#[derive(Default)]
struct Memory {
    attempts: BTreeMap<Name, Attempt>,
    /// Decision under which a stop failed.
    stuck: BTreeMap<Name, u64>,
    /// The attempt that failed and why: the manager need not know of it.
    failures: BTreeMap<Name, (Attempt, String)>,
    lines: BTreeMap<Name, Line>,
    told: BTreeMap<ClusterId, (u64, ServiceState)>,
}

/// The reconciler.
pub struct ServiceReconciler<M> {
    wishes: Wishes<Desired>,
    manager: M,
    memory: Mutex<Memory>,
    bus: Bus,
    on_state: OnState,
}

/// The facts after which the services are looked at.
pub fn wakes(fact: &Fact) -> bool {
    matches!(fact, Fact::ServiceExited { .. })
}

impl<M: ServiceManager> ServiceReconciler<M> {
    /// Through this manager.
    pub fn new(wishes: Wishes<Desired>, manager: M, bus: Bus, on_state: OnState) -> Self {
        Self { wishes, manager, memory: Mutex::default(), bus, on_state }
    }

    /// What is last known of a service.
    pub fn line(&self, cluster: &ClusterId, service: &str) -> Option<Line> {
        self.memory().lines.get(&(cluster.clone(), service.to_owned())).cloned()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, key: &ClusterId, service: &str, state: &'static str, note: &str) {
        let line = Line { state, note: note.to_owned() };
        self.memory().lines.insert((key.clone(), service.to_owned()), line);
        if state == "failed" {
            tracing::error!(cluster = %key, service, note, error_code = codes::SVC_START.id, "service failed");
        }
        let fact = Fact::ServiceChanged { service: service.into(), state: state.into(), note: note.into() };
        self.bus.publish(Some(&key.0), fact);
    }

    fn tell(&self, key: &ClusterId, desired: &Desired, state: ServiceState) {
        // A newer decision has made it uninteresting, and a failure of the older one must not count.
        let overtaken = self.wishes.get(key).is_some_and(|wish| wish.decision != desired.decision);
        let now = (desired.decision, state);
        if !overtaken && self.memory().told.insert(key.clone(), now) != Some(now) {
            tracing::debug!(cluster = %key, ?state, decision = desired.decision, "services");
            (self.on_state)(key, state);
        }
    }

    /// Adds the services whose start failed before the manager knew of them.
    fn add_failures(&self, key: &ClusterId, desired: &Desired, seen: &mut Vec<ServiceSeen>) {
        let memory = self.memory();
        for service in &desired.services {
            let Some((attempt, why)) = memory.failures.get(&(key.clone(), service.name.clone())) else {
                continue;
            };
            if *attempt == wish(desired, &service.name) && !seen.iter().any(|s| s.name == service.name) {
                let phase = ServicePhase::Failed(why.clone());
                seen.push(ServiceSeen { name: service.name.clone(), phase, current: true });
            }
        }
    }

    /// Says what changed without us.
    fn notice(&self, key: &ClusterId, observed: &[Observed]) {
        for one in observed {
            let ServicePhase::Failed(why) = &one.seen.phase else { continue };
            if self.line(key, &one.seen.name).is_none_or(|line| line.state != "failed") {
                self.say(key, &one.seen.name, "failed", why);
            }
        }
    }
}

fn wish(desired: &Desired, name: &str) -> Attempt {
    Attempt { decision: desired.decision, restart: desired.restarts.get(name).copied().unwrap_or(0) }
}

/// The services as one, for the core.
pub fn summary(desired: &Desired, observed: &[Observed]) -> ServiceState {
    if desired.up { summary_up(desired, observed) } else { summary_down(observed) }
}

fn summary_up(desired: &Desired, observed: &[Observed]) -> ServiceState {
    let all: Vec<_> =
        desired.services.iter().map(|s| observed.iter().find(|o| o.seen.name == s.name)).collect();
    let found = || all.iter().flatten();
    // A failure of an older decision is about to be started anew.
    if found().any(|o| o.seen.current && failed_in(o, wish(desired, &o.seen.name))) {
        ServiceState::Failed
    } else if all.iter().all(|o| o.is_some_and(|o| o.seen.phase == ServicePhase::Running && o.seen.current)) {
        ServiceState::Running
    } else if found().any(|o| o.seen.phase == ServicePhase::Stopping) {
        ServiceState::Stopping
    } else {
        ServiceState::Starting
    }
}

fn summary_down(observed: &[Observed]) -> ServiceState {
    let left = || observed.iter().filter(|o| o.seen.phase != ServicePhase::Stopped);
    if left().any(|o| !o.stuck) {
        ServiceState::Stopping
    } else if left().next().is_some() {
        // All that is left was asked to stop and did not.
        ServiceState::Failed
    } else {
        ServiceState::Stopped
    }
}

impl<M: ServiceManager> Reconciler for ServiceReconciler<M> {
    type Key = ClusterId;
    type Desired = Desired;
    type Observed = Vec<Observed>;
    type Step = Step;
    type Error = PortError;

    fn desired(&self, key: &ClusterId) -> Option<Desired> {
        self.wishes.get(key)
    }

    async fn observe(&self, key: &ClusterId, desired: &Desired) -> Result<Vec<Observed>, PortError> {
        let mut seen = self.manager.list(key, &desired.services).await?;
        self.add_failures(key, desired, &mut seen);
        let observed: Vec<_> = {
            let memory = self.memory();
            let one = |seen: ServiceSeen| {
                let name = (key.clone(), seen.name.clone());
                let stuck = memory.stuck.get(&name) == Some(&desired.decision);
                Observed { attempt: memory.attempts.get(&name).copied(), stuck, seen }
            };
            seen.into_iter().map(one).collect()
        };
        self.notice(key, &observed);
        self.tell(key, desired, summary(desired, &observed));
        Ok(observed)
    }

    fn plan(desired: &Desired, observed: &Vec<Observed>) -> Vec<Step> {
        let place = |name: &str| desired.services.iter().position(|s| s.name == name);
        // Down: strangers to the spec first, then in reverse order; last what refused before.
        let mut down: Vec<_> = observed.iter().filter(|o| must_stop(desired, o)).collect();
        down.sort_by_key(|o| (o.stuck, std::cmp::Reverse(place(&o.seen.name).unwrap_or(usize::MAX))));
        let mut steps: Vec<Step> = down.iter().map(|o| Step::Stop { name: o.seen.name.clone() }).collect();
        if !desired.up {
            return steps;
        }
        for service in &desired.services {
            let attempt = wish(desired, &service.name);
            let found = observed.iter().find(|o| o.seen.name == service.name);
            let stopped_first = down.iter().any(|o| o.seen.name == service.name);
            match found {
                Some(o) if o.seen.phase == ServicePhase::Running && !stopped_first => {}
                Some(o) if failed_in(o, attempt) && o.seen.current => break,
                _ => steps.push(Step::Start { service: Box::new(service.clone()), attempt }),
            }
        }
        steps
    }

    async fn execute(&self, key: &ClusterId, desired: &Desired, step: &Step) -> Result<(), PortError> {
        match step {
            Step::Stop { name } => {
                let id = (key.clone(), name.clone());
                // Why it failed stays to be read after it was cleared away.
                let why = self.line(key, name).map(|line| line.note).unwrap_or_default();
                self.say(key, name, "stopping", &why);
                if self.memory().stuck.get(&id) != Some(&desired.decision) {
                    self.tell(key, desired, ServiceState::Stopping);
                }
                if let Err(error) = self.manager.stop(key, name).await {
                    self.memory().stuck.insert(id, desired.decision);
                    self.say(key, name, "failed", &error.message);
                    return Err(error);
                }
                {
                    let mut memory = self.memory();
                    memory.attempts.remove(&id);
                    memory.stuck.remove(&id);
                    memory.failures.remove(&id);
                }
                self.say(key, name, "stopped", &why);
                if !desired.services.iter().any(|s| s.name == *name) {
                    self.memory().lines.remove(&id);
                }
            }
            Step::Start { service, attempt } => {
                self.say(key, &service.name, "starting", "");
                self.tell(key, desired, ServiceState::Starting);
                let id = (key.clone(), service.name.clone());
                {
                    let mut memory = self.memory();
                    memory.attempts.insert(id.clone(), *attempt);
                    memory.failures.remove(&id);
                }
                if let Err(error) = self.manager.start(key, service).await {
                    self.memory().failures.insert(id, (*attempt, error.message.clone()));
                    self.say(key, &service.name, "failed", &error.message);
                    self.tell(key, desired, ServiceState::Failed);
                    return Err(error);
                }
                self.say(key, &service.name, "running", "");
            }
        }
        Ok(())
    }

    fn deadline(&self, step: &Step) -> Duration {
        match step {
            // The manager knows the stop timeout of what it started; the spec may have changed since.
            Step::Stop { .. } => Duration::from_secs(3600) + GRACE,
            Step::Start { service, .. } => {
                service.start_timeout.as_std() + service.stop_timeout.as_std() + GRACE
            }
        }
    }

    /// Down must not wait for a start that takes long. The manager goes on with what it was asked; the
    /// stop that follows ends it.
    fn interruptible(step: &Step) -> bool {
        matches!(step, Step::Start { .. })
    }

    fn settled(&self, key: &ClusterId) -> Action {
        let up = self.wishes.get(key).is_some_and(|wish| wish.up);
        if up { Action::Requeue(LOOK) } else { Action::AwaitChange }
    }

    fn report(&self, key: &ClusterId, report: Report<'_, Step, PortError>) {
        if let Report::Failed { error, repeated: false } = report {
            let code = match error {
                RunError::Observe(e) | RunError::Step { source: e, .. } => e.code,
                _ => codes::SVC_START.id,
            };
            text::publish(&self.bus, &key.0, "services", code, chain(error));
        }
    }
}

fn must_stop(desired: &Desired, observed: &Observed) -> bool {
    let name = &observed.seen.name;
    let wanted = desired.up && desired.services.iter().any(|s| s.name == *name);
    match &observed.seen.phase {
        ServicePhase::Stopped => false,
        // What failed may still have processes; stopping is what makes sure.
        ServicePhase::Failed(_) => !wanted,
        ServicePhase::Stopping => true,
        ServicePhase::Starting | ServicePhase::Running => {
            let older = observed.attempt.is_some_and(|attempt| attempt != wish(desired, name));
            !wanted || !observed.seen.current || older
        }
    }
}

fn failed_in(observed: &Observed, attempt: Attempt) -> bool {
    matches!(observed.seen.phase, ServicePhase::Failed(_)) && observed.attempt == Some(attempt)
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
