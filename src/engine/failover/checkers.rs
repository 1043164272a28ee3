//! Services and checkers: what a sick application makes the node do.

use crate::base::Mono;
use crate::engine::cluster::{Aim, Cluster, Phase, Step};
use crate::engine::io::{EventKind, OnFailure, ServiceState};
use crate::engine::restart::Allowance;

impl Cluster {
    pub(crate) fn services_in(&mut self, now: Mono, state: ServiceState) {
        self.services = state;
        let down = matches!(state, ServiceState::Stopped | ServiceState::Failed);
        match self.phase {
            Phase::Handover { step: Step::Services, .. } if down => self.services_down(now),
            _ if state == ServiceState::Failed && self.services_wanted && self.serving() => {
                self.checker_fired(now, OnFailure::Failover);
            }
            _ => {}
        }
    }

    pub(crate) fn checkers(&mut self, healthy: bool) {
        self.healthy = healthy;
        if healthy && self.held_by_checker {
            // `settle` starts again what was released.
            self.held_by_checker = false;
        }
    }

    pub(crate) fn checker_fired(&mut self, now: Mono, action: OnFailure) {
        if !self.serving() {
            return;
        }
        self.event(EventKind::Checker(action));
        match action {
            OnFailure::Wait => {
                self.drop_vips();
                self.stop_services();
                self.held_by_checker = true;
            }
            OnFailure::Stop => self.stop(now, Aim::Stop { remember: true }, None),
            OnFailure::Restart | OnFailure::Failover => {
                let (max, window) = (self.config.max_restarts, self.config.restart_window);
                if self.limiter.ask(now, max, window) == Allowance::Stop {
                    self.restart_limit_hit = true;
                    self.event(EventKind::RestartLimit);
                    return self.stop(now, Aim::Stop { remember: true }, None);
                }
                let standby = matches!(self.phase, Phase::Prim { standby: true, .. });
                if action == OnFailure::Failover && standby && self.automatic() {
                    self.begin_handover(now, Aim::Swap, None);
                } else {
                    self.stop_services();
                    self.start_services();
                }
            }
        }
    }
}
