//! Runs a cluster's checkers while its role asks for them, and hands failures to whom they concern.
//!
//! `restart`, `failover`, `wait` and `stop` are the core's; `restartService` is carried out by the
//! services; `event` is only reported. Time during which our own mount froze the application does
//! not count against it.

use super::{ClusterUnit, ended};
use crate::bus::Fact;
use crate::engine::health::Health;
use crate::engine::{self, Input, Role, ServiceState};
use crate::net::check::{Checker, OnChange, all_healthy};
use crate::spec::{self, OnFailure};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Starts and stops checkers as role, services and spec change.
pub async fn run(unit: Arc<ClusterUnit>, mut stop: watch::Receiver<bool>) {
    let mut snapshots = unit.core.watch();
    let mut running: Vec<(spec::Checker, Checker)> = Vec::new();
    let mut healthy = true;
    loop {
        let wanted = wanted(&unit);
        running.retain(|(spec, _)| wanted.contains(spec));
        for spec in wanted {
            if !running.iter().any(|(known, _)| *known == spec) {
                let checker = Checker::start(spec.clone(), on_change(unit.clone()));
                running.push((spec, checker));
            }
        }
        let frozen = !unit.core.snapshot().view.serving;
        for (_, checker) in &running {
            checker.freeze(frozen);
        }
        let now_healthy = all_healthy(running.iter().map(|(_, c)| c));
        if now_healthy != healthy {
            healthy = now_healthy;
            unit.core.input(Input::Checkers { healthy });
        }
        show(&unit, &running);
        tokio::select! {
            biased; // the end first
            () = ended(&mut stop) => return,
            changed = snapshots.changed() => if changed.is_err() { return },
            // Standings and services change without a change of the core's view.
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
}

/// Checkers of the primary wait until the services run: a start that takes long is no failure.
fn wanted(unit: &ClusterUnit) -> Vec<spec::Checker> {
    let view = unit.core.snapshot().view;
    let primary = matches!(view.role, Role::Prim | Role::Alone);
    let standby = view.role == Role::Second;
    let services = unit.services.state() == ServiceState::Running;
    let spec = unit.spec();
    spec.spec
        .checkers
        .iter()
        .filter(|c| (primary && services && c.on.runs(true)) || (standby && c.on.runs(false)))
        .cloned()
        .collect()
}

fn on_change(unit: Arc<ClusterUnit>) -> OnChange {
    Arc::new(move |checker, standing| {
        let up = standing.health == Health::Up;
        unit.shared().bus.publish(
            Some(&unit.id.0),
            Fact::CheckerChanged { checker: checker.name.clone(), up, output: standing.output.clone() },
        );
        if up {
            return;
        }
        let action = match checker.on_failure {
            OnFailure::Restart => engine::OnFailure::Restart,
            OnFailure::Failover => engine::OnFailure::Failover,
            OnFailure::Wait => engine::OnFailure::Wait,
            OnFailure::Stop => engine::OnFailure::Stop,
            OnFailure::RestartService => {
                if let Some(service) = &checker.service {
                    unit.services.restart(service);
                }
                return;
            }
            OnFailure::Event => return,
        };
        unit.core.input(Input::CheckerFired(action));
    })
}

fn show(unit: &ClusterUnit, running: &[(spec::Checker, Checker)]) {
    let spec = unit.spec();
    let lines = spec
        .spec
        .checkers
        .iter()
        .map(|c| match running.iter().find(|(known, _)| known.name == c.name) {
            Some((_, checker)) => {
                let standing = checker.standing();
                (c.name.clone(), super::facts::word(&standing.health), standing.output)
            }
            None => (c.name.clone(), "not running here".to_owned(), String::new()),
        })
        .collect();
    unit.items.lock().unwrap_or_else(PoisonError::into_inner).checkers = lines;
}
