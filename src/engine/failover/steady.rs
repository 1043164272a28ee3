//! With a session: the standby's way to UpToDate, stream events, failback.

use crate::base::{Epoch, Generation, Mono};
use crate::engine::cluster::{Aim, Cluster, Phase, Why};
use crate::engine::config::Failback;
use crate::engine::durable::Damage;
use crate::engine::failover::How;
use crate::engine::io::{Effect, EventKind, Gate, StreamLoss, StreamRole, Tombstone, TreeState};
use crate::engine::lineage;
use crate::engine::peer::PeerMessage;
use crate::engine::timers::READMIT;

impl Cluster {
    /// Target: everything before the marker is applied, nothing behind it.
    pub(crate) fn marker_reached(&mut self, now: Mono, s: u64) {
        let here = self.session().is_some_and(|epoch| epoch.s == s);
        if !here || !matches!(self.phase, Phase::Second { ready: false, syncing: None }) {
            return;
        }
        if !self.config.rules.syncfs_before_uptodate {
            return self.become_up_to_date(now);
        }
        let token = self.token();
        self.phase = Phase::Second { ready: false, syncing: Some(token) };
        self.emit(Effect::Syncfs { token });
    }

    /// Target: applied, durable, now on record; then acknowledgements behind the marker may flow.
    pub(crate) fn become_up_to_date(&mut self, _now: Mono) {
        let (Some(epoch), Some(source)) =
            (self.session(), self.link.as_ref().and_then(|link| link.peer_hello().cloned()))
        else {
            return;
        };
        let cur = self.d.inconsistent.map_or(Generation::default(), |i| i.source);
        let boot = self.boot_id;
        self.persist_with(|d| {
            lineage::adopt(d, &source, cur);
            d.inconsistent = None;
            d.intact_boot = Some(boot);
        });
        self.forget_hellos();
        self.phase = Phase::Second { ready: true, syncing: None };
        self.eligible = Some(epoch);
        self.readmit = READMIT.0;
        self.set_tombstone(Some(Tombstone { epoch, role: StreamRole::Target }));
        self.emit(Effect::ReleaseMarker { epoch });
        self.send(PeerMessage::UpToDate { epoch });
        self.event(EventKind::UpToDate);
    }

    pub(crate) fn stream_down(&mut self, now: Mono, s: u64, why: StreamLoss) {
        let Some((epoch, role)) = self.stream.filter(|(epoch, _)| epoch.s == s) else { return };
        match (role, why) {
            (StreamRole::Target, StreamLoss::Apply { errno }) => self.eject(now, Damage::Apply { errno }),
            (StreamRole::Target, StreamLoss::Sync) => self.eject(now, Damage::Sync),
            (StreamRole::Source, StreamLoss::Sync) => self.give_up(now, epoch),
            _ => {
                self.session_lost(now);
                self.greet(now);
            }
        }
    }

    /// This standby cannot follow: record it, say so, come back later.
    pub(crate) fn eject(&mut self, now: Mono, damage: Damage) {
        let Some(epoch) = self.session() else { return };
        self.set_tombstone(None);
        let prefix = matches!(damage, Damage::Apply { .. }) && self.eligible.is_some();
        if prefix {
            // Everything acknowledged is here; only what follows is not. Should the writer lose
            // power before it has gone on alone, this is the copy that has it all.
            self.eligible = None;
            self.persist_with(|d| d.behind = true);
        } else {
            self.mark_inconsistent(damage, |_| {});
        }
        self.event(EventKind::Ejected { damage });
        self.send(PeerMessage::Ejected { epoch, damage });
        self.close_stream();
        self.wait(now, Why::Ejected);
        self.hello_after = Some(now + self.readmit);
        self.readmit = self.readmit.saturating_mul(2).min(READMIT.1);
        self.greet(now);
    }

    /// The writer's own disk failed an fsync: nothing here can be trusted; the standby, if it is
    /// eligible, holds everything that was acknowledged.
    fn give_up(&mut self, now: Mono, epoch: Epoch) {
        if matches!(self.phase, Phase::Alone { .. }) {
            // Nobody else holds what was answered alone; the application saw its own error.
            self.close_stream();
            return self.greet(now);
        }
        if let Phase::Handover { ticket, .. } = self.phase {
            self.refuse(
                ticket,
                "SKC-E0404",
                "the disk of this node failed a sync; the standby is told to take over",
            );
        }
        self.set_tombstone(None);
        self.release(Gate::Shut);
        self.close_stream();
        self.mark_inconsistent(Damage::Sync, |d| d.behind = true);
        self.send(PeerMessage::Leaving { epoch });
        self.wait(now, Why::DiskSync);
        self.greet(now);
    }

    /// Is `epoch` the session in which this node is (or was a moment ago) the writer? Also true
    /// for a token that the peer cannot have taken because it left before it read it.
    fn is_my_writing(&self, epoch: Epoch) -> bool {
        match self.phase {
            Phase::Prim { .. } | Phase::Frozen { .. } | Phase::Handover { standby: true, .. } => {
                self.d.epoch == epoch
            }
            Phase::Handed { .. } => self.d.epoch.g == epoch.g && self.d.epoch.s == epoch.s.saturating_add(1),
            _ => false,
        }
    }

    /// The standby said by itself that it is out of date.
    pub(crate) fn peer_ejected(&mut self, now: Mono, epoch: Epoch, _damage: Damage) {
        self.peer_gone(now, epoch);
    }

    /// The peer stops in an orderly way.
    pub(crate) fn peer_leaving(&mut self, now: Mono, epoch: Epoch) {
        let standby = self.eligible == Some(epoch)
            && matches!(self.phase, Phase::Second { ready: true, .. } | Phase::Lost { .. });
        if standby {
            self.send(PeerMessage::LeaveTaken { epoch });
            return self.decide(now, How::Confirmed, None);
        }
        self.send(PeerMessage::LeaveTaken { epoch });
        self.peer_gone(now, epoch);
    }

    fn peer_gone(&mut self, now: Mono, epoch: Epoch) {
        if self.is_my_writing(epoch) {
            let (aim, ticket) = match self.phase {
                Phase::Handover { aim, ticket, .. } => (Some(aim), ticket),
                Phase::Handed { ticket, .. } => (Some(Aim::Swap), ticket),
                _ => (None, None),
            };
            self.decide(now, How::Confirmed, None);
            match aim {
                Some(Aim::Stop { remember }) => self.stop(now, Aim::Stop { remember }, ticket),
                Some(_) => self.refuse(ticket, "SKC-E0404", "the standby left; the role stayed here"),
                None => {}
            }
        } else {
            self.session_lost(now);
            self.greet(now);
        }
    }

    pub(crate) fn wants_failback(&self) -> bool {
        self.config.failback == Failback::Automatic
            && self.config.preferred == Some(self.me.peer())
            && !self.failed_back
            && self.automatic()
    }

    pub(crate) fn settle_prim(&mut self, now: Mono, standby: bool, stable_since: Option<Mono>) {
        let aim = match self.tree {
            TreeState::DiskError => Some(Aim::SickDisk),
            TreeState::DiskHangs => Some(Aim::HungDisk),
            _ => None,
        };
        if let Some(aim) = aim.filter(|_| standby) {
            return self.begin_handover(now, aim, None);
        }
        self.add_vips();
        self.start_services();
        let stable = stable_since.is_some_and(|since| now >= since + self.config.stable_for);
        if standby && stable && self.wants_failback() {
            // Once: a preferred node that gives the role back does not get it again by itself.
            self.failed_back = true;
            self.begin_handover(now, Aim::Swap, None);
        }
    }

    /// The VIP and services follow the emptiness of `Emit`ted wishes; see `held_by_checker`.
    pub(crate) fn serving(&self) -> bool {
        matches!(self.phase, Phase::Prim { .. } | Phase::Alone { .. })
            && !matches!(self.gate, Gate::Frozen | Gate::Shut)
    }

    /// Announces that caches of a read-only mount are void.
    pub(crate) fn invalidate(&mut self) {
        self.emit(Effect::InvalidateCaches);
    }

    pub(crate) fn took_over(&mut self) {
        self.event(EventKind::TookOver);
    }
}
