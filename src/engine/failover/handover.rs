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
use crate::engine::timers::SICK_STOP;

impl Cluster {
    /// Begins to give the role away (or, without an eligible standby, to stop).
    pub(crate) fn begin_handover(&mut self, now: Mono, aim: Aim, ticket: Option<Ticket>) {
        let standby = matches!(self.phase, Phase::Prim { standby: true, .. });
        self.failover_id = crate::engine::session::failover_id(self.d.epoch);
        self.drop_vips();
        let stopping = self.services_wanted || self.services != ServiceState::Stopped;
        self.stop_services();
        let patience = match aim {
            Aim::SickDisk | Aim::HungDisk => self.config.service_stop_timeout.min(SICK_STOP),
            Aim::Swap | Aim::Stop { .. } => self.config.service_stop_timeout,
        };
        let deadline = now + patience;
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
                Aim::Stop { .. } | Aim::SickDisk | Aim::HungDisk => self.leave(now, aim, ticket),
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
            (Aim::Stop { .. } | Aim::SickDisk | Aim::HungDisk, Step::Services) => self.services_down(now),
            // What is not drained was answered: the standby must not be told that it holds everything. It
            // waits for this node, or for the operator.
            (Aim::Stop { remember }, Step::Drain(_)) if self.config.answers_early => {
                self.event(EventKind::HandoverAborted);
                self.stop_now(now, remember, ticket);
            }
            (Aim::Stop { .. } | Aim::SickDisk | Aim::HungDisk, Step::Drain(_)) => {
                self.leave(now, aim, ticket);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;
    use crate::engine::cluster::Cluster;
    use crate::engine::io::{Effect, LinkId};
    use crate::engine::{Config, Durable, Input, TreeState};

    /// A primary that stops and whose standby does not acknowledge everything in time: what it tells the peer.
    fn stops_undrained(answers_early: bool) -> (Vec<PeerMessage>, Durable) {
        let config = Config { answers_early, ..Config::default() };
        let durable = Durable { last_primary: true, intact_boot: Some(1), ..Durable::default() };
        let mut core = Cluster::new(NodeId::A, 1, 1, config, Some(durable), Mono(0));
        core.step(Mono(0), Input::LocalTree(TreeState::Ok { empty: false, stamp_ok: true }));
        core.step(Mono(0), Input::LinkUp { link: LinkId(1) });
        let epoch = Epoch { g: 1, s: 1 };
        core.d.epoch = epoch;
        core.session_is(epoch);
        core.phase = Phase::Prim { standby: true, stable_since: None };
        core.begin_handover(Mono(0), Aim::Stop { remember: true }, None);
        assert!(core.out.iter().any(|e| matches!(e, Effect::Drain { .. })));
        core.out.clear();
        let Phase::Handover { deadline, .. } = core.phase else { panic!("{:?}", core.phase) };
        assert_eq!(deadline, Mono(0) + core.timers.drain);
        let drain = Step::Drain(core.token());
        core.handover_overdue(deadline, Aim::Stop { remember: true }, drain, true, None);
        let said = core.out.iter().filter_map(|effect| match effect {
            Effect::Send(message) => Some((**message).clone()),
            _ => None,
        });
        (said.collect(), core.d.clone())
    }

    #[test]
    fn a_standby_is_never_told_to_take_over_while_it_lacks_what_was_answered() {
        let leaves = |said: &[PeerMessage]| said.iter().any(|m| matches!(m, PeerMessage::Leaving { .. }));
        let (said, record) = stops_undrained(false);
        assert!(leaves(&said) && record.behind, "strict: what is in flight was answered to nobody");
        let (said, record) = stops_undrained(true);
        assert!(!leaves(&said) && !record.behind && record.last_primary && record.stopped, "{said:?}");
    }

    #[test]
    fn a_change_to_strict_does_not_forget_what_may_be_in_flight() {
        let config = |answers_early| Config { answers_early, ..Config::default() };
        let mut core = Cluster::new(NodeId::A, 1, 1, config(true), None, Mono(0));
        let drain = core.timers.drain;
        assert!(drain > core.timers.timeout);
        core.step(Mono(0), Input::Configure(Box::new(config(false))));
        assert_eq!((core.config.answers_early, core.timers.drain), (true, drain));
    }
}
