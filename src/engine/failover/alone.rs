//! Going on alone, and taking the peer back under the alone right.

use crate::base::{Epoch, Generation, Mono};
use crate::engine::cluster::{Cluster, Phase, Solid, Why};
use crate::engine::durable::Damage;
use crate::engine::io::{Effect, EventKind, Gate, Ticket, Token};
use crate::engine::lineage;
use crate::engine::session::Shake;

/// By which right a node goes on alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum How {
    /// The peer itself said that it is out of date.
    Confirmed,
    /// By the level's rule.
    Rule,
    /// The operator insists.
    Forced,
}

impl Cluster {
    /// The right to go on alone is there. Ends the old session and its queue, makes durable what page
    /// caches held, **then** records the claim: a record that says `alone` must never outlive a power cut
    /// that took acknowledged data which the peer still holds.
    pub(crate) fn decide(&mut self, now: Mono, how: How, ticket: Option<Ticket>) {
        match self.phase {
            Phase::Prim { .. } | Phase::Handover { .. } | Phase::Handed { .. } => {
                self.set_gate(Gate::Frozen);
                self.close_stream();
                self.phase = Phase::Frozen { since: now, lost: None };
            }
            Phase::Second { .. } => {
                self.close_stream();
                self.phase = Phase::Lost { since: now, lost: None };
            }
            _ => {}
        }
        if self.solid == Solid::Yes || !self.config.rules.syncfs_before_alone {
            return self.go_alone(now, how, ticket);
        }
        self.undecide();
        self.decided = Some((how, ticket));
        self.start_sync();
    }

    /// The decision was overtaken before it was recorded.
    pub(crate) fn undecide(&mut self) {
        if let Some((_, ticket)) = self.decided.take() {
            self.refuse(ticket, "SKC-E0403", "overtaken by events; see status");
        }
    }

    /// Grant, lineage and `alone` on record, then the gate.
    fn go_alone(&mut self, now: Mono, how: How, ticket: Option<Ticket>) {
        let was_writer = matches!(self.phase, Phase::Frozen { .. });
        self.decided = None;
        if !was_writer {
            // The role was taken over, not handed over: once the preferred node is back, it may have it back.
            self.failed_back = false;
        }
        self.set_tombstone(None);
        if self.config.rules.close_before_serve || was_writer {
            self.close_stream();
        }
        let fresh = self.fresh(2);
        let (me, boot) = (self.me, self.boot_id);
        self.persist_with(|d| {
            d.epoch.g = d.epoch.g.saturating_add(1);
            d.owner = Some(me);
            d.grant = fresh;
            lineage::mint(d, Generation(fresh));
            d.alone = true;
            d.peer_outdated = how == How::Confirmed;
            d.last_primary = true;
            d.intact_boot = Some(boot);
            d.inconsistent = None;
            d.behind = false;
            d.handed = None;
        });
        self.event(match how {
            How::Forced => EventKind::Forced,
            _ if was_writer => EventKind::WentAlone { confirmed: how == How::Confirmed },
            _ => EventKind::Promoted,
        });
        // The old holder of the VIP may live until its lease runs out, unless it spoke itself or it is us.
        let vip_at = match how {
            How::Rule if !was_writer => {
                self.raw.map_or(now, |raw| raw + self.timers.interval + self.timers.lease).max(now)
            }
            _ => now,
        };
        self.enter_alone(now, vip_at);
        self.done(ticket);
        self.greet(now);
    }

    /// The record says `alone`, and everything the peer ever held is durable here: answer.
    pub(crate) fn enter_alone(&mut self, now: Mono, vip_at: Mono) {
        self.undecide();
        self.yielded = None;
        self.yields_void = false;
        self.eligible = None;
        self.facts = crate::engine::io::StreamFacts::default();
        self.probing = crate::engine::cluster::Probing::default();
        self.phase = Phase::Alone { vip_at };
        if matches!(self.gate, Gate::ReadOnly | Gate::Shut) {
            self.emit(Effect::InvalidateCaches);
        }
        self.set_gate(Gate::Alone { epoch: self.session().unwrap_or(self.d.epoch) });
        self.settle_alone(now, vip_at);
    }

    pub(crate) fn settle_alone(&mut self, now: Mono, vip_at: Mono) {
        if now >= vip_at || !self.config.has_vips {
            self.add_vips();
            self.start_services();
        }
    }

    pub(crate) fn synced(&mut self, now: Mono, token: Token, ok: bool) {
        if let Phase::Second { ready: false, syncing: Some(run) } = self.phase
            && run == token
        {
            return if ok { self.become_up_to_date(now) } else { self.eject(now, Damage::Sync) };
        }
        if self.solid != Solid::Running(token) {
            return;
        }
        if !ok {
            self.solid = Solid::No;
            return self.sync_failed(now);
        }
        self.solid = Solid::Yes;
        if self.phase == Phase::Stopped && self.intact() {
            // A flush that outlasted its deadline, but ended before the machine went down.
            self.persist_with(|d| d.clean = true);
        }
        let shake = self.link.as_ref().map(|l| l.shake.clone());
        match shake {
            Some(Shake::SourceSync { verdict, token: run, .. }) if run == token => {
                self.source_synced(now, verdict);
            }
            _ => {}
        }
        if let Some((how, ticket)) = self.decided.take() {
            if matches!(self.phase, Phase::Frozen { .. } | Phase::Lost { .. } | Phase::Wait { .. }) {
                self.go_alone(now, how, ticket);
            } else {
                self.decided = Some((how, ticket));
                self.undecide();
            }
        }
    }

    /// What is on this disk is unknown: not a copy to build on. Nothing was answered alone yet, so
    /// the peer's copy lacks nothing.
    fn sync_failed(&mut self, now: Mono) {
        if let Phase::Leaving { .. } = self.phase {
            return self.mark_inconsistent(Damage::Sync, |_| {});
        }
        let undecided = matches!(self.phase, Phase::Frozen { .. } | Phase::Lost { .. } | Phase::Wait { .. });
        if !undecided {
            return;
        }
        self.undecide();
        self.set_tombstone(None);
        self.mark_inconsistent(Damage::Sync, |d| {
            d.alone = false;
            d.peer_outdated = false;
        });
        self.release(Gate::Shut);
        self.close_link();
        self.close_stream();
        self.wait(now, Why::DiskSync);
    }

    // ---- taking the peer back ----

    /// Source: both trees are equal but for live operations.
    pub(crate) fn resync_done(&mut self, now: Mono, s: u64) {
        let Some(epoch) = self.session().filter(|epoch| epoch.s == s) else { return };
        if !matches!(self.phase, Phase::Alone { .. }) {
            return;
        }
        if !self.config.rules.clear_alone_before_marker {
            return self.emit(Effect::MarkUpToDate { epoch });
        }
        // No lone answer after `alone` is cleared, no marker before (hole 11).
        self.set_gate(Gate::Frozen);
        self.persist_with(|d| {
            d.alone = false;
            d.peer_outdated = false;
        });
        self.emit(Effect::MarkUpToDate { epoch });
        self.solid = Solid::No;
        self.serve_replicated(now, epoch, false);
    }

    /// Source: the standby's record says UpToDate.
    pub(crate) fn peer_up_to_date(&mut self, now: Mono, epoch: Epoch) {
        if self.session() != Some(epoch) {
            return;
        }
        if let (Phase::Alone { .. }, false) = (&self.phase, self.config.rules.clear_alone_before_marker) {
            self.persist_with(|d| d.alone = false);
            self.solid = Solid::No;
            self.serve_replicated(now, epoch, true);
        }
        if let Phase::Prim { standby: false, .. } = self.phase {
            self.phase = Phase::Prim { standby: true, stable_since: Some(now) };
            self.event(EventKind::UpToDate);
        }
    }
}
