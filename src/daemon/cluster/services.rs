//! The services of one cluster: what the core decides becomes the wish of their reconciler.
//!
//! `StartServices` and `StopServices` are numbered decisions; the reconciler
//! ([`crate::reconcile::services`]) brings the services up in order and down in reverse order through
//! the guard. Every step is bounded by the service's own deadlines (the guard holds them). What it finds
//! goes to the core: Starting, Running, Stopping, Stopped, Failed. Before the first decision nothing is
//! touched.

use super::{Line, Shared};
use crate::base::ClusterId;
use crate::bus::Fact;
use crate::controller::Backoff;
use crate::engine::{Input, ServiceState};
use crate::failover::Handle;
use crate::reconcile::guarded::GuardedServices;
use crate::reconcile::services::{Desired, ServiceReconciler, wakes};
use crate::reconcile::{self, Running};
use crate::service::{Manager, ServiceId, ServiceStatus, State};
use crate::spec::ClusterSpec;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// What the guard may need beyond a service's stop timeout to kill what is left of it.
const KILL: u64 = 6_000;

/// The services of one cluster.
pub struct Services {
    cluster: ClusterId,
    shared: Arc<Shared>,
    controller: Running<ServiceReconciler<GuardedServices>>,
    /// The wish as it is when decided next.
    wish: Mutex<Desired>,
    state: watch::Receiver<ServiceState>,
}

impl Services {
    /// Nothing is decided yet.
    pub fn new(cluster: ClusterId, shared: Arc<Shared>, spec: &ClusterSpec, core: Handle) -> Arc<Self> {
        let (told, state) = watch::channel(ServiceState::Stopped);
        let on_state = Arc::new(move |_: &ClusterId, state: ServiceState| {
            told.send_replace(state);
            core.input(Input::Services(state));
        });
        let manager = GuardedServices::new(Manager::new(shared.guard.clone()));
        let make = |wishes| ServiceReconciler::new(wishes, manager, shared.bus.clone(), on_state);
        let controller = reconcile::start(&shared.bus, wakes, Backoff::default(), make);
        let services = spec.spec.services.clone();
        let wish = Desired { up: false, decision: 0, services, restarts: BTreeMap::new() };
        Arc::new(Self { cluster, shared, controller, wish: Mutex::new(wish), state })
    }

    fn wish(&self) -> MutexGuard<'_, Desired> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, up: bool) -> Desired {
        let mut wish = self.wish();
        wish.decision += 1;
        wish.up = up;
        // Under the lock, so that the order of decisions is the order of wishes.
        self.controller.wishes.set(&self.cluster, wish.clone());
        wish.clone()
    }

    /// Up or down from now on.
    pub fn want(&self, up: bool) {
        self.decide(up);
    }

    /// Changes what is wanted without a new decision.
    fn adjust(&self, change: impl FnOnce(&mut Desired)) {
        let mut wish = self.wish();
        change(&mut wish);
        if wish.decision > 0 {
            self.controller.wishes.set(&self.cluster, wish.clone());
        }
    }

    /// A new spec: changed services restart, removed ones stop.
    pub fn configure(&self, spec: &ClusterSpec) {
        self.adjust(|wish| wish.services.clone_from(&spec.spec.services));
    }

    /// Restarts one service (a checker's `restartService`).
    pub fn restart(&self, service: &str) {
        self.adjust(|wish| *wish.restarts.entry(service.to_owned()).or_default() += 1);
    }

    /// The guard says that a service ended by itself. The fact makes the reconciler look.
    pub fn exited(&self, status: &ServiceStatus) {
        let wish = self.wish();
        let Some(service) =
            wish.services.iter().find(|s| ServiceId::new(&self.cluster, &s.name) == status.id)
        else {
            return;
        };
        let how = match &status.state {
            State::Failed(failure) => failure.to_string(),
            other => format!("{other:?}"),
        };
        let fact = Fact::ServiceExited { service: service.name.clone(), how };
        self.shared.bus.publish(Some(&self.cluster.0), fact);
    }

    /// The services as one.
    pub fn watch(&self) -> watch::Receiver<ServiceState> {
        self.state.clone()
    }

    /// Each of them, for status.
    pub fn lines(&self, spec: &ClusterSpec) -> Vec<Line> {
        let known = |name: &str| self.controller.reconciler.line(&self.cluster, name);
        let one = |name: &str| match known(name) {
            Some(line) => (name.to_owned(), line.state.to_owned(), line.note),
            None => (name.to_owned(), "stopped".to_owned(), String::new()),
        };
        spec.spec.services.iter().map(|s| one(&s.name)).collect()
    }

    /// Stops them and waits for it.
    pub async fn end(&self) {
        let wish = self.decide(false);
        let limit: u64 = wish.services.iter().map(|s| s.stop_timeout.as_millis() + KILL).sum();
        let stopped = self.controller.wishes.reach(&self.cluster, wish);
        match tokio::time::timeout(Duration::from_millis(limit + 1_000), stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(cluster = %self.cluster, error, "services did not stop"),
            Err(_) => tracing::error!(cluster = %self.cluster, limit, "services did not stop in time"),
        }
    }
}
