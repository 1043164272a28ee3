//! Start: the directory, the record, and a cold start by the node's own `alone`.

use crate::base::Mono;
use crate::engine::cluster::{Aim, Cluster, Phase, Why};
use crate::engine::config::Level;
use crate::engine::durable::Damage;
use crate::engine::failover::How;
use crate::engine::io::{EventKind, Gate, ProbeResult, TreeState, WitnessState};
use crate::engine::peer::LiveRole;
use crate::engine::session::Shake;

/// What the standby's disk did to the operation that hangs in it.
const ETIMEDOUT: i32 = 110;

impl Cluster {
    pub(crate) fn local_tree(&mut self, now: Mono, tree: TreeState) {
        let before = std::mem::replace(&mut self.tree, tree);
        if matches!(tree, TreeState::Ok { stamp_ok: false, .. })
            && self.d.inconsistent.is_none()
            && self.d.initialised()
        {
            self.mark_inconsistent(Damage::Stamp, |_| {});
        }
        if self.autostart && tree != TreeState::Unknown {
            self.autostart = false;
            self.start(now);
        }
        let news = |state: TreeState| tree == state && before != state;
        // Neither side's position in the stream describes this tree any more.
        self.touched |= news(TreeState::Unmounted);
        match self.phase {
            // A running compare has missed what was written past it.
            Phase::Alone { .. } | Phase::Prim { standby: false, .. } if news(TreeState::Unmounted) => {
                self.greet(now);
            }
            // A sick disk makes `settle_prim` hand over: the standby may be ready only after the news.
            Phase::Prim { standby: true, .. } if news(TreeState::Unmounted) => {
                self.begin_handover(now, Aim::SickDisk, None);
            }
            // As if an operation could not be applied: a prefix, and unless the disk fails a whole one.
            Phase::Second { .. } if news(TreeState::DiskHangs) => {
                self.eject(now, Damage::Apply { errno: ETIMEDOUT });
            }
            Phase::Second { .. } if news(TreeState::DiskError) || news(TreeState::Unmounted) => {
                self.eject(now, Damage::Sync);
            }
            _ => {}
        }
    }

    /// Take part.
    pub(crate) fn start(&mut self, now: Mono) {
        if self.phase != Phase::Stopped {
            return;
        }
        let boot = self.boot_id;
        self.persist_with(|d| {
            d.stopped = false;
            if std::mem::take(&mut d.clean) && d.inconsistent.is_none() {
                d.intact_boot = Some(boot);
            }
        });
        self.set_gate(Gate::ReadOnly);
        self.event(EventKind::Started);
        self.wait(now, Why::Peer);
        self.greet(now);
    }

    /// The record alone gives the right to start; the rest of the evidence is gathered in `settle_wait`.
    pub(crate) fn may_start_cold(&self) -> bool {
        let record = self.d.alone || (!self.config.rules.cold_start_needs_alone && self.d.last_primary);
        record
            && !self.d.behind
            && self.d.inconsistent.is_none()
            && self.tree_ok()
            && self.automatic()
            && !matches!(self.phase, Phase::Wait { why: Why::SplitBrain, .. })
    }

    pub(crate) fn settle_wait(&mut self, now: Mono, since: Mono, cold_at: Mono) {
        if self.adopt_here(now) {
            return;
        }
        if !self.may_start_cold() {
            return;
        }
        if self.peer_harmless() {
            return self.start_alone(now);
        }
        if self.probing.run.is_some_and(|(_, overdue)| now >= overdue) {
            self.probing.run = None;
        }
        if now < cold_at || self.probing.run.is_some() {
            return;
        }
        // A handshake settles it better than a record.
        let shaking = self.link.as_ref().is_some_and(|l| !matches!(l.shake, Shake::Idle(_)));
        let patience = now - since < self.timers.freeze;
        let serves = self
            .peer_hb
            .is_some_and(|hb| matches!(hb.role, LiveRole::Alone | LiveRole::Prim | LiveRole::Frozen));
        let again = now + self.timers.cold;
        let again_wait = |me: &mut Self| {
            if let Phase::Wait { cold_at, .. } = &mut me.phase {
                *cold_at = again;
            }
        };
        if (shaking && patience) || (serves && self.in_touch(now)) || self.link.is_some() && !shaking {
            return again_wait(self);
        }
        if self.d.peer_outdated {
            return self.start_alone(now);
        }
        again_wait(self);
        if self.config.level >= Level::L1 {
            self.start_probe(now);
        }
    }

    pub(crate) fn cold_probe(&mut self, now: Mono, result: ProbeResult) {
        let answered = self.config.level >= Level::L2 && (result.vip_answered || result.peer_answered);
        let witness = result.witness != WitnessState::Unreachable;
        if self.may_start_cold() && self.link.is_none() && witness && !answered {
            self.start_alone(now);
        }
    }

    /// Serve by record: no new grant, no new lineage.
    pub(crate) fn start_alone(&mut self, now: Mono) {
        let boot = self.boot_id;
        self.persist_with(|d| {
            d.last_primary = true;
            d.intact_boot = Some(boot);
            d.alone = true;
        });
        self.event(EventKind::WentAlone { confirmed: self.d.peer_outdated });
        // `alone` was recorded only after the sync: nothing the peer ever held is missing on this disk.
        self.enter_alone(now, now);
        self.greet(now);
    }

    /// `adopt --force` of the local tree while the peer is out of reach.
    fn adopt_here(&mut self, now: Mono) -> bool {
        let here = self.adopt.is_some_and(|adopt| adopt.source == self.me && adopt.force);
        if !here || !self.tree_ok() || self.link.is_some() || self.in_touch(now) {
            return false;
        }
        let ticket = self.adopt.take().map(|adopt| adopt.ticket);
        self.decide(now, How::Forced, ticket);
        true
    }
}
