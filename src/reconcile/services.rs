//! Services: all up in order, or all down in reverse order.
//!
//! A service that failed is started again only under another decision ([`Desired::decision`]) or by a
//! counted restart of its own: restarting, failing over or giving up is the core's choice. Services
//! behind a failed one in the order are not started.

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
const LOOK: Duration = Duration::from_secs(5);

/// What is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Up or down.
    pub up: bool,
    /// Number of the decision that said so; a new one starts what had failed.
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

/// Called when the services, seen as one, changed. Must not block.
pub type OnState = Arc<dyn Fn(&ClusterId, ServiceState) + Send + Sync>;

/// The reconciler.
pub struct ServiceReconciler<M> {
    wishes: Wishes<Desired>,
    manager: M,
    attempts: Mutex<BTreeMap<(ClusterId, String), Attempt>>,
    bus: Bus,
    on_state: OnState,
}

impl<M: ServiceManager> ServiceReconciler<M> {
    /// Through this manager.
    pub fn new(wishes: Wishes<Desired>, manager: M, bus: Bus, on_state: OnState) -> Self {
        Self { wishes, manager, attempts: Mutex::default(), bus, on_state }
    }

    fn attempts(&self) -> MutexGuard<'_, BTreeMap<(ClusterId, String), Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, key: &ClusterId, service: &str, state: &str, note: &str) {
        let fact = Fact::ServiceChanged { service: service.into(), state: state.into(), note: note.into() };
        self.bus.publish(Some(&key.0), fact);
    }
}

/// The services as one, for the core.
pub fn summary(desired: &Desired, observed: &[Observed]) -> ServiceState {
    let wanted: Vec<_> =
        desired.services.iter().map(|s| observed.iter().find(|o| o.seen.name == s.name)).collect();
    let any = |test: fn(&ServicePhase) -> bool| observed.iter().any(|o| test(&o.seen.phase));
    if any(|p| matches!(p, ServicePhase::Failed(_))) {
        ServiceState::Failed
    } else if any(|p| *p == ServicePhase::Stopping) {
        ServiceState::Stopping
    } else if !any(|p| *p != ServicePhase::Stopped) && (!desired.up || !wanted.is_empty()) {
        ServiceState::Stopped
    } else if desired.up
        && wanted.iter().all(|o| o.is_some_and(|o| o.seen.phase == ServicePhase::Running && o.seen.current))
    {
        ServiceState::Running
    } else if desired.up {
        ServiceState::Starting
    } else {
        ServiceState::Stopping
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
        let seen = self.manager.list(key, &desired.services).await?;
        let observed: Vec<_> = {
            let attempts = self.attempts();
            let attempt = |name: &str| attempts.get(&(key.clone(), name.to_owned())).copied();
            seen.into_iter().map(|seen| Observed { attempt: attempt(&seen.name), seen }).collect()
        };
        (self.on_state)(key, summary(desired, &observed));
        Ok(observed)
    }

    fn plan(desired: &Desired, observed: &Vec<Observed>) -> Vec<Step> {
        let place = |name: &str| desired.services.iter().position(|s| s.name == name);
        let wish = |name: &str| Attempt {
            decision: desired.decision,
            restart: desired.restarts.get(name).copied().unwrap_or(0),
        };
        // Down: strangers to the spec first, then in reverse order.
        let mut down: Vec<_> =
            observed.iter().filter(|o| must_stop(desired, o, wish(&o.seen.name).restart)).collect();
        down.sort_by_key(|o| std::cmp::Reverse(place(&o.seen.name).unwrap_or(usize::MAX)));
        let mut steps: Vec<Step> = down.iter().map(|o| Step::Stop { name: o.seen.name.clone() }).collect();
        if !desired.up {
            return steps;
        }
        for service in &desired.services {
            let attempt = wish(&service.name);
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

    async fn execute(&self, key: &ClusterId, _desired: &Desired, step: &Step) -> Result<(), PortError> {
        match step {
            Step::Stop { name } => {
                self.say(key, name, "stopping", "");
                (self.on_state)(key, ServiceState::Stopping);
                self.manager.stop(key, name).await?;
                self.attempts().remove(&(key.clone(), name.clone()));
                self.say(key, name, "stopped", "");
            }
            Step::Start { service, attempt } => {
                self.say(key, &service.name, "starting", "");
                (self.on_state)(key, ServiceState::Starting);
                self.attempts().insert((key.clone(), service.name.clone()), *attempt);
                if let Err(error) = self.manager.start(key, service).await {
                    self.say(key, &service.name, "failed", &error.message);
                    (self.on_state)(key, ServiceState::Failed);
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
        if let Report::Failed(error) = report {
            let code = match error {
                RunError::Observe(e) | RunError::Step { source: e, .. } => e.code,
                _ => codes::SVC_START.id,
            };
            text::publish(&self.bus, &key.0, "services", code, chain(error));
        }
    }
}

fn must_stop(desired: &Desired, observed: &Observed, restart: u64) -> bool {
    let wanted = desired.up && desired.services.iter().any(|s| s.name == observed.seen.name);
    match &observed.seen.phase {
        ServicePhase::Stopped => false,
        // What failed may still have processes; stopping is what makes sure.
        ServicePhase::Failed(_) => !wanted,
        ServicePhase::Stopping => true,
        ServicePhase::Starting | ServicePhase::Running => {
            let restarted = observed.attempt.is_some_and(|a| a.restart != restart);
            !wanted || !observed.seen.current || restarted
        }
    }
}

fn failed_in(observed: &Observed, attempt: Attempt) -> bool {
    matches!(observed.seen.phase, ServicePhase::Failed(_)) && observed.attempt == Some(attempt)
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
