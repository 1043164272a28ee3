//! Hand-over: swap, failback, and the first half of an orderly stop.
//!
//! Services down and VIP away -> frozen -> drained -> record {handed, s + 1} -> token -> the peer's
//! record -> it serves. Broken off before the record: the role stays. After it: both are standbys that hold everything
//! acknowledged; the handshake (or the level's rule) picks one.

use crate::base::{Epoch, Mono};
use crate::engine::cluster::{Aim, Cluster, Phase, Solid, Step};
use crate::engine::io::{EventKind, Gate, Plan, ServiceState, StreamRole, Ticket, Token, Tombstone};
use crate::engine::peer::{PeerMessage, SwapRefusal};
use crate::engine::session::raise;

impl Cluster {
    /// Begins to give the role away (or, without an eligible standby, to stop).
    pub(crate) fn begin_handover(&mut self, now: Mono, aim: Aim, ticket: Option<Ticket>) {
        let standby = matches!(self.phase, Phase::Prim { standby: true, .. });
        self.failover_id = crate::engine::session::failover_id(self.d.epoch);
        self.drop_vips();
        let stopping = self.services_wanted || self.services != ServiceState::Stopped;
        self.stop_services();
        let deadline = now + self.config.service_stop_timeout;
        self.phase = Phase::Handover { aim, step: Step::Services, standby, deadline, ticket };
        if !stopping {
            self.services_down(now);
        }
    }

    /// The services are down: freeze and wait for what is in flight.
    pub(crate) fn services_down(&mut self, now: Mono) {
        let Phase::Handover { aim, step: Step::Services, standby, ticket, .. } = self.phase else { return };
        if !standby {
            // A standby that has had the marker may be UpToDate already, before its word arrived: it goes on
            // only if it is told that this node leaves.
            let settling = matches!(self.gate, Gate::Replicated { .. }) && self.session().is_some();
            if settling && aim != Aim::Swap {
                return self.leave(now, aim, ticket);
            }
            let remember = aim == Aim::Stop { remember: true };
            return self.stop_now(now, remember, ticket);
        }
        self.set_gate(Gate::Frozen);
        let token = self.token();
        self.emit(crate::engine::io::Effect::Drain { token });
        let deadline = now + self.timers.drain;
        self.phase = Phase::Handover { aim, step: Step::Drain(token), standby, deadline, ticket };
    }

    pub(crate) fn drained(&mut self, now: Mono, token: Token) {
        let Phase::Handover { aim, step: Step::Drain(run), ticket, .. } = self.phase else { return };
        if run == token {
            match aim {
                Aim::Swap => self.hand_over(now, ticket),
                Aim::Stop { .. } | Aim::SickDisk => self.leave(now, aim, ticket),
            }
        }
    }

    fn hand_over(&mut self, now: Mono, ticket: Option<Ticket>) {
        let epoch = Epoch { g: self.d.epoch.g, s: self.d.epoch.s.saturating_add(1) };
        self.set_gate(Gate::ReadOnly);
        self.invalidate();
        self.set_tombstone(None);
        self.persist_with(|d| {
            d.epoch = epoch;
            d.handed = Some(epoch.s);
            d.last_primary = false;
        });
        self.close_stream();
        self.solid = Solid::No;
        self.phase = Phase::Handed { deadline: now + self.timers.shake, ticket };
        self.eligible = Some(epoch);
        self.session_is(epoch);
        self.set_tombstone(Some(Tombstone { epoch, role: StreamRole::Target }));
        self.open_stream(StreamRole::Target, epoch, Plan::Continue);
        self.send(PeerMessage::Token { epoch });
    }

    /// The standby receives the role.
    pub(crate) fn token_in(&mut self, now: Mono, epoch: Epoch) {
        let next = self.session().is_some_and(|e| e.g == epoch.g && e.s.saturating_add(1) == epoch.s);
        if !next || !matches!(self.phase, Phase::Second { ready: true, .. }) || !self.intact() {
            return;
        }
        self.close_stream();
        self.persist_with(|d| {
            raise(&mut d.epoch, epoch);
            d.last_primary = true;
            d.handed = None;
        });
        self.eligible = None;
        self.solid = Solid::No;
        // What the preferred node gave away (a swap, a checker) is not given back by itself.
        self.failed_back = true;
        self.session_is(epoch);
        self.send(PeerMessage::TokenTaken { epoch });
        self.open_stream(StreamRole::Source, epoch, Plan::Continue);
        self.serve_replicated(now, epoch, true);
        self.took_over();
        if let Some((ticket, _)) = self.swap_asked.take() {
            self.done(Some(ticket));
        }
    }

    pub(crate) fn token_taken(&mut self, _now: Mono, epoch: Epoch) {
        if let (Phase::Handed { ticket, .. }, Some(session)) = (self.phase.clone(), self.session())
            && session == epoch
        {
            self.phase = Phase::Second { ready: true, syncing: None };
            self.event(EventKind::HandedOver);
            self.done(ticket);
        }
    }

    pub(crate) fn swap_requested(&mut self, now: Mono) {
        let why = match self.phase {
            Phase::Prim { standby: true, .. } => return self.begin_handover(now, Aim::Swap, None),
            Phase::Prim { .. } | Phase::Alone { .. } => SwapRefusal::StandbyNotReady,
            Phase::Handover { .. } => SwapRefusal::Busy,
            _ => SwapRefusal::NotPrimary,
        };
        self.send(PeerMessage::SwapRefused { why });
    }

    pub(crate) fn handover_overdue(
        &mut self,
        now: Mono,
        aim: Aim,
        step: Step,
        standby: bool,
        ticket: Option<Ticket>,
    ) {
        match (aim, step) {
            // Who stops goes on stopping: the service manager kills what is left.
            (Aim::Stop { .. } | Aim::SickDisk, Step::Services) => self.services_down(now),
            (Aim::Stop { .. } | Aim::SickDisk, Step::Drain(_)) => self.leave(now, aim, ticket),
            (Aim::Swap, _) => {
                self.event(EventKind::HandoverAborted);
                self.refuse(
                    ticket,
                    "SKC-E0404",
                    "services did not stop or the standby did not drain in time; the role stayed here",
                );
                self.send(PeerMessage::SwapRefused { why: SwapRefusal::Busy });
                let epoch = self.d.epoch;
                if standby {
                    self.serve_replicated(now, epoch, true);
                }
            }
        }
    }
}
