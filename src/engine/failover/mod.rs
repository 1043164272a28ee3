//! Phases of a node: who may write here, decided one input at a time. Split by phase.
//!
//! Every function leaves the core in a phase that a deadline, the peer or one named operator
//! command ends; [`Cluster::next_deadline`] is complete: nothing else in the core waits for time.

mod alone;
mod checkers;
mod handover;
mod operator;
mod start;
mod steady;
mod stop;
mod suspect;

pub(crate) use alone::How;

use crate::base::{Millis, Mono};
use crate::engine::cluster::{Aim, Cluster, Phase, Solid, Why};
use crate::engine::io::{Effect, EventKind, Gate, Input, StreamRole, Token, Tombstone};
use crate::engine::peer::{HeartbeatBody, LiveRole};
use crate::engine::session::Shake;

impl Cluster {
    /// The session (or the attempt at one) is over; the link may live. Idempotent.
    /// The caller greets again if the link is up.
    pub(crate) fn session_lost(&mut self, now: Mono) {
        match self.phase.clone() {
            Phase::Prim { .. } => {
                self.freeze(now);
            }
            Phase::Handover { aim, ticket, standby, .. } => {
                if standby {
                    self.handover_lost(now, aim, ticket);
                } else {
                    self.close_stream();
                }
            }
            Phase::Second { ready: true, .. } => self.lose_primary(now),
            Phase::Second { ready: false, .. } => {
                self.close_stream();
                self.wait(now, Why::Resync);
            }
            Phase::Handed { ticket, .. } => {
                self.refuse(
                    ticket,
                    "SKC-E0405",
                    "the peer did not confirm the hand-over; see status for who serves",
                );
                self.lose_primary(now);
            }
            Phase::Stopped
            | Phase::Wait { .. }
            | Phase::Alone { .. }
            | Phase::Frozen { .. }
            | Phase::Lost { .. }
            | Phase::Leaving { .. }
            | Phase::Broken { .. } => self.close_stream(),
        }
    }

    /// The writer lost its standby: nothing is answered until somebody decides.
    fn freeze(&mut self, now: Mono) {
        self.failover_id = crate::engine::session::failover_id(self.d.epoch);
        self.event(EventKind::SessionLost { silent_ms: self.silent(now) });
        self.set_gate(Gate::Frozen);
        self.close_stream();
        // Whichever way it ends, what both page caches hold must be durable before a lone answer.
        self.start_sync();
        self.phase = Phase::Frozen { since: now, lost: None };
    }

    /// The standby lost its primary.
    fn lose_primary(&mut self, now: Mono) {
        self.failover_id = crate::engine::session::failover_id(self.d.epoch);
        self.event(EventKind::SessionLost { silent_ms: self.silent(now) });
        if self.config.rules.close_before_serve {
            self.close_stream();
        }
        self.start_sync();
        self.phase = Phase::Lost { since: now, lost: None };
    }

    /// syncfs, begun after the stream has closed: covers everything the peer held in memory.
    pub(crate) fn start_sync(&mut self) -> Token {
        if let Solid::Running(token) = self.solid {
            return token;
        }
        let token = self.token();
        self.solid = Solid::Running(token);
        self.emit(Effect::Syncfs { token });
        token
    }

    pub(crate) fn silent(&self, now: Mono) -> Millis {
        self.raw.map_or(0, |at| now - at)
    }

    /// Nothing says that both directions work for longer than the timeout.
    pub(crate) fn is_silent(&self, now: Mono) -> bool {
        self.heard.is_none_or(|at| now - at >= self.timers.timeout)
    }

    /// Words of the peer are fresh.
    pub(crate) fn in_touch(&self, now: Mono) -> bool {
        self.raw.is_some_and(|at| now - at < self.timers.timeout)
    }

    /// Whoever was called lost is heard again.
    pub(crate) fn back_in_touch(&mut self) {
        if matches!(self.decided, Some((How::Rule, _))) {
            self.undecide();
        }
        if let Phase::Frozen { lost, .. } | Phase::Lost { lost, .. } = &mut self.phase
            && lost.take().is_some()
        {
            self.probing = crate::engine::cluster::Probing::default();
        }
    }

    pub(crate) fn heartbeat_in(&mut self, now: Mono, body: HeartbeatBody) {
        let fresh = |ms: Option<u64>| ms.is_some_and(|ms| ms <= self.timers.one_way);
        let both_ways = fresh(body.heard_ms);
        self.raw = Some(now);
        if both_ways && fresh(body.sure_ms) && !body.alone {
            self.word = Some(now);
        }
        self.peer_hb = Some(body);
        if both_ways {
            self.heard = Some(now);
            self.back_in_touch();
        }
        let still_mine = both_ways && !body.alone && body.epoch.g <= self.d.epoch.g;
        if still_mine && !matches!(body.role, LiveRole::Prim | LiveRole::Alone | LiveRole::Frozen) {
            // It has not taken over, and hears us: it cannot from now on without new evidence.
            self.replaced = false;
        }
        match self.phase {
            Phase::Frozen { .. } => {
                let gone_on = matches!(body.role, LiveRole::Alone | LiveRole::Prim | LiveRole::Frozen)
                    && body.epoch.g > self.d.epoch.g;
                if gone_on {
                    self.demote(now, Why::PeerAlone);
                } else if body.yielded == Some(self.d.epoch) && !self.yields_void {
                    self.decide(now, How::Confirmed, None);
                }
            }
            Phase::Lost { .. } | Phase::Wait { .. } | Phase::Stopped => self.hear_writer(now, &body),
            _ => {}
        }
    }

    /// A node without a role hears a writer it has no session with.
    fn hear_writer(&mut self, now: Mono, body: &HeartbeatBody) {
        if matches!(self.phase, Phase::Lost { .. }) && body.alone && body.epoch.g > self.d.epoch.g {
            return self.become_behind(now);
        }
        // Without this the two would wait for each other: it hears us, so it never goes on alone.
        let claimless = !self.d.alone && body.ask_yield.is_some_and(|epoch| epoch.g >= self.d.epoch.g);
        if claimless && self.yielded != body.ask_yield {
            self.eligible = None;
            self.persist_with(|d| d.behind = true);
            self.yielded = body.ask_yield;
            if matches!(self.phase, Phase::Lost { .. }) {
                self.wait(now, Why::Behind);
            }
            self.event(EventKind::Behind);
        }
    }

    /// The peer's guard speaks for a dead worker. A restarted worker of either end does nothing
    /// without a handshake, so this end may go on at once.
    pub(crate) fn tombstone_in(&mut self, now: Mono, tombstone: Tombstone) {
        match tombstone.role {
            StreamRole::Source => {
                if self.eligible != Some(tombstone.epoch) || !self.automatic() {
                    return;
                }
                if matches!(self.phase, Phase::Second { ready: true, .. }) {
                    self.close_link();
                    self.session_lost(now);
                }
                if matches!(self.phase, Phase::Lost { .. } | Phase::Wait { why: Why::Behind, .. }) {
                    self.event(EventKind::TombstoneSeen);
                    self.decide(now, How::Confirmed, None);
                }
            }
            StreamRole::Target => {
                let writer = matches!(self.phase, Phase::Prim { .. } | Phase::Frozen { .. });
                if writer && self.d.epoch == tombstone.epoch {
                    self.event(EventKind::TombstoneSeen);
                    self.decide(now, How::Confirmed, None);
                }
            }
        }
    }

    pub(crate) fn automatic(&self) -> bool {
        self.config.mode == crate::engine::config::Mode::Automatic && !self.paused
    }

    /// A tick that comes late means that *we* stalled: what we did not hear is no evidence.
    pub(crate) fn notice_stall(&mut self, now: Mono, _input: &Input) {
        let Some(late) = self.promised.map(|at| now - at).filter(|late| *late > self.timers.slack) else {
            return;
        };
        // What the peer said meanwhile is queued; give it time to be read. `word` stays: the
        // standby's deadline to decide is not ours to move.
        let floor = Mono(now.0.saturating_sub(self.timers.timeout)) + self.timers.grace;
        self.heard = self.heard.map(|at| at.max(floor));
        if late <= self.timers.lease {
            return;
        }
        let writer = matches!(
            self.phase,
            Phase::Prim { .. } | Phase::Frozen { .. } | Phase::Handover { standby: true, .. }
        );
        if writer || matches!(self.phase, Phase::Second { .. } | Phase::Lost { .. } | Phase::Handed { .. }) {
            self.event(EventKind::Stalled { late_ms: late });
            self.replaced = true;
            self.close_link();
            self.session_lost(now);
        }
    }

    /// Everything that time or the last input made due. Runs at the end of every step.
    pub(crate) fn settle(&mut self, now: Mono) {
        if let Phase::Broken { retry_at, run } = self.phase {
            return self.settle_broken(now, retry_at, run);
        }
        self.settle_link(now);
        match self.phase.clone() {
            Phase::Wait { since, cold_at, .. } => self.settle_wait(now, since, cold_at),
            Phase::Frozen { since, lost } => self.settle_frozen(now, since, lost),
            Phase::Lost { lost, .. } => self.settle_lost(now, lost),
            Phase::Alone { vip_at } => self.settle_alone(now, vip_at),
            Phase::Prim { standby, stable_since } => self.settle_prim(now, standby, stable_since),
            Phase::Handover { aim, step, standby, deadline, ticket } => {
                if now >= deadline {
                    self.handover_overdue(now, aim, step, standby, ticket);
                }
            }
            Phase::Handed { deadline, .. } => {
                if now >= deadline {
                    self.close_link();
                    self.session_lost(now);
                }
            }
            Phase::Leaving { .. } => self.settle_leaving(now),
            Phase::Stopped | Phase::Second { .. } | Phase::Broken { .. } => {}
        }
        self.settle_operator(now);
        if self.hello_after.is_some_and(|at| now >= at) {
            self.hello_after = None;
        }
        self.refresh_hello(now);
        self.say_hello(now);
    }

    fn settle_link(&mut self, now: Mono) {
        let Some(link) = &self.link else { return };
        let overdue = link.shake.deadline().is_some_and(|at| now >= at);
        if let (true, Shake::Disagree { .. }) = (overdue, &link.shake) {
            return self.greet(now);
        }
        if overdue || self.is_silent(now) {
            self.close_link();
            self.session_lost(now);
        }
    }

    /// When `step(now, Tick)` is due at the latest. Complete: nothing else waits for time.
    pub fn next_deadline(&self) -> Option<Mono> {
        let mut at: Option<Mono> = None;
        let mut due = |when: Option<Mono>| {
            if let Some(when) = when {
                at = Some(at.map_or(when, |first: Mono| first.min(when)));
            }
        };
        if let Phase::Broken { retry_at, .. } = self.phase {
            return Some(retry_at);
        }
        let silence = self.heard.map(|heard| heard + self.timers.timeout);
        if let Some(link) = &self.link {
            due(silence);
            due(link.shake.deadline());
            due(self.hello_after);
        }
        due(self.probing.at);
        due(self.probing.run.map(|(_, overdue)| overdue));
        due(self.swap_asked.map(|(_, until)| until));
        due(self.adopt.map(|adopt| adopt.until));
        match &self.phase {
            Phase::Wait { cold_at, .. } if self.may_start_cold() && self.probing.run.is_none() => {
                due(Some(*cold_at));
            }
            Phase::Frozen { since, lost } => {
                let patience = if self.decided.is_some() { crate::engine::timers::SYNC_MAX } else { 0 };
                due(Some(*since + self.timers.freeze + patience));
                if lost.is_none() {
                    due(silence);
                }
            }
            Phase::Lost { lost, .. } => {
                if lost.is_none() {
                    due(silence);
                } else if self.decides() && self.decided.is_none() && self.config.rules.behind {
                    due(self.decide_by().map(|by| by + 1));
                }
            }
            Phase::Alone { vip_at } if !self.vips && !self.held_by_checker => due(Some(*vip_at)),
            Phase::Prim { standby: true, stable_since: Some(since) } if self.wants_failback() => {
                due(Some(*since + self.config.stable_for));
            }
            Phase::Handover { deadline, .. } | Phase::Handed { deadline, .. } => {
                due(Some(*deadline));
            }
            _ => {}
        }
        due(self.leave_by());
        at
    }

    /// What a hand-over does when its session is lost under it.
    fn handover_lost(&mut self, now: Mono, aim: Aim, ticket: Option<crate::engine::io::Ticket>) {
        self.event(EventKind::HandoverAborted);
        self.freeze(now);
        match aim {
            Aim::Swap => {
                self.refuse(ticket, "SKC-E0404", "the session to the standby was lost; the role stayed here");
            }
            Aim::Stop { remember } => self.stop_now(now, remember, ticket),
            Aim::SickDisk | Aim::HungDisk => {}
        }
    }
}
