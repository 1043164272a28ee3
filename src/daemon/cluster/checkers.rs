//! The checkers of one cluster: role, services and spec become the wish of their reconciler, verdicts go
//! to whom they concern.
//!
//! `restart`, `failover`, `wait` and `stop` are the core's; `restartService` is carried out by the
//! services; `event` is only reported. Time during which our own mount froze the application does
//! not count against it.

use super::services::Services;
use super::{ClusterUnit, Line, ended};
use crate::base::ClusterId;
use crate::bus::Bus;
use crate::controller::Backoff;
use crate::engine::health::Health;
use crate::engine::{self, Input, Role, ServiceState};
use crate::failover::Handle;
use crate::net::check::Standing;
use crate::reconcile::checkers::{CheckerReconciler, Desired, Situation, wakes, wanted};
use crate::reconcile::{self, Running};
use crate::spec::{self, ClusterSpec, OnFailure};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// The checkers of one cluster.
pub struct Checkers {
    cluster: ClusterId,
    controller: Running<CheckerReconciler>,
    /// A verdict or the spec changed.
    news: Arc<Notify>,
}

impl Checkers {
    /// None runs yet.
    pub fn new(cluster: ClusterId, bus: &Bus, core: &Handle, services: Arc<Services>) -> Self {
        let news = Arc::new(Notify::new());
        let (to_core, changed) = (core.clone(), news.clone());
        let on_verdict = Arc::new(move |_: &ClusterId, checker: &spec::Checker, standing: &Standing| {
            if standing.health != Health::Up {
                act(checker, &to_core, &services);
            }
            changed.notify_one();
        });
        let to_core = core.clone();
        let on_health = Arc::new(move |_: &ClusterId, healthy| to_core.input(Input::Checkers { healthy }));
        let make = |wishes| CheckerReconciler::new(wishes, bus.clone(), on_verdict, on_health);
        let controller = reconcile::start(bus, wakes, Backoff::default(), make);
        Self { cluster, controller, news }
    }

    /// The spec changed.
    pub fn configure(&self) {
        self.news.notify_one();
    }

    /// Each of them, for status.
    pub fn lines(&self, spec: &ClusterSpec) -> Vec<Line> {
        let standings = self.controller.reconciler.standings(&self.cluster);
        let one = |name: &str| match standings.iter().find(|(running, _)| running.name == name) {
            Some((_, standing)) => {
                (name.to_owned(), super::facts::word(&standing.health), standing.output.clone())
            }
            None => (name.to_owned(), "not running here".to_owned(), String::new()),
        };
        spec.spec.checkers.iter().map(|c| one(&c.name)).collect()
    }

    /// Checkers that are down and whose failure means to wait for them.
    fn waiting(&self) -> Vec<String> {
        let standings = self.controller.reconciler.standings(&self.cluster).into_iter();
        let waits = |(spec, standing): &(spec::Checker, Standing)| {
            spec.on_failure == OnFailure::Wait && standing.health == Health::Down
        };
        standings.filter(waits).map(|(spec, _)| spec.name).collect()
    }
}

/// What a failure makes happen.
fn act(checker: &spec::Checker, core: &Handle, services: &Services) {
    let action = match checker.on_failure {
        OnFailure::Restart => engine::OnFailure::Restart,
        OnFailure::Failover => engine::OnFailure::Failover,
        OnFailure::Wait => engine::OnFailure::Wait,
        OnFailure::Stop => engine::OnFailure::Stop,
        OnFailure::RestartService => {
            if let Some(service) = &checker.service {
                services.restart(service);
            }
            return;
        }
        OnFailure::Event => return,
    };
    core.input(Input::CheckerFired(action));
}

/// Keeps the wish up to date.
pub async fn follow(unit: Arc<ClusterUnit>, mut stop: watch::Receiver<bool>) {
    let (mut snapshots, mut services) = (unit.core.watch(), unit.services.watch());
    let checkers = &unit.checkers;
    let mut wish = Desired::default();
    let mut ran = false;
    loop {
        let view = snapshots.borrow_and_update().view.clone();
        let runs = *services.borrow_and_update() == ServiceState::Running;
        if runs && !std::mem::replace(&mut ran, runs) {
            wish.run += 1;
        }
        ran = runs;
        let waiting = checkers.waiting();
        let situation = Situation { role: view.role, services_running: runs, waiting: &waiting };
        wish.checkers = wanted(&unit.spec().spec.checkers, situation);
        // A standby's mount is read-only, not frozen.
        let frozen = matches!(view.role, Role::Prim | Role::Alone) && !view.serving;
        checkers.controller.reconciler.freeze(&checkers.cluster, frozen);
        checkers.controller.wishes.set(&checkers.cluster, wish.clone());
        tokio::select! {
            biased; // the end first
            () = ended(&mut stop) => return,
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = services.changed() => if changed.is_err() { return },
            () = checkers.news.notified() => {}
        }
    }
}
