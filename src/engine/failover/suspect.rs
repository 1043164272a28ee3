//! Undecided: the writer is `Frozen`, the standby is `Lost`, and each needs evidence to go on.
//!
//! See [`crate::engine::timers`] for the arithmetic that keeps the two apart at level L2.

use crate::base::Mono;
use crate::engine::cluster::{Cluster, Phase, Why};
use crate::engine::config::Level;
use crate::engine::failover::How;
use crate::engine::io::{Effect, EventKind, Gate, ProbeResult, Token, WitnessState};
use crate::engine::timers::SYNC_MAX;

impl Cluster {
    pub(crate) fn start_probe(&mut self, now: Mono) {
        let token = self.token();
        // The driver reports at the end of the window; half of another is for its own scheduling.
        let overdue = now + self.timers.window + self.timers.window / 2;
        self.probing.began = now;
        self.probing.run = Some((token, overdue));
        self.probing.at = None;
        self.emit(Effect::StartProbe { token, window: self.timers.window });
    }

    /// Begins a round that is due; a round without a report is no evidence and is repeated.
    fn drive_probe(&mut self, now: Mono) {
        let overdue = self.probing.run.is_some_and(|(_, at)| now >= at);
        let due = self.probing.at.is_some_and(|at| now >= at);
        if overdue || due {
            self.start_probe(now);
        }
    }

    // ---- the writer ----

    pub(crate) fn settle_frozen(&mut self, now: Mono, since: Mono, lost: Option<Mono>) {
        // A decision that only waits for the disk gets the time a sync may take.
        let patience = if self.decided.is_some() { SYNC_MAX } else { 0 };
        if now >= since + self.timers.freeze + patience {
            return self.demote(now, Why::Frozen);
        }
        if lost.is_none() && self.is_silent(now) && self.link.is_none() {
            self.phase = Phase::Frozen { since, lost: Some(now) };
            self.event(EventKind::SessionLost { silent_ms: self.silent(now) });
            if self.may_go_alone() {
                self.start_probe(now);
            }
        } else if lost.is_some() && self.may_go_alone() && self.decided.is_none() {
            self.drive_probe(now);
        }
    }

    fn may_go_alone(&self) -> bool {
        self.config.level >= Level::L1 && !self.replaced && self.tree_ok() && self.d.inconsistent.is_none()
    }

    /// When a lone decision may be carried out. Also at L1, where no address is probed: a standby that was
    /// cut off for a moment decides within `decide` or never, and until then nobody may have been answered
    /// alone, else the cut and the death of this agent behind it would lose what was.
    fn lone_at(&self, lost: Mono) -> Mono {
        if self.config.rules.hold { lost + self.timers.hold } else { lost }
    }

    /// Rounds follow each other without a gap from the loss to the end of the hold. One without the
    /// witness means that this node may have been cut off while the standby looked, and was replaced: it
    /// may not go on by rule any more, not even when the witness is back.
    fn frozen_probe(&mut self, now: Mono, lost: Mono, result: ProbeResult) {
        self.probing.no_witness = result.witness == WitnessState::Unreachable;
        if self.probing.no_witness {
            // Whoever is not cut off from the world may take the address.
            self.replaced = true;
            self.drop_vips();
        } else if now >= self.lone_at(lost) && self.may_go_alone() {
            self.decide(now, How::Rule, None);
        } else {
            let started = self.probing.began;
            self.probing.at = Some((started + self.timers.window).max(now));
        }
    }

    /// The write gate shuts for good in this epoch. `intact` stays: losing a decision does not
    /// void the claim to hold everything acknowledged.
    pub(crate) fn demote(&mut self, now: Mono, why: Why) {
        self.undecide();
        self.set_tombstone(None);
        self.release(Gate::Shut);
        self.event(EventKind::Demoted);
        self.wait(now, why);
    }

    // ---- the standby ----

    /// Does this node decide by itself?
    pub(crate) fn decides(&self) -> bool {
        self.config.level >= Level::L1 && self.automatic()
    }

    /// Last moment at which a clean probe proves that the primary cannot have answered alone.
    pub(crate) fn decide_by(&self) -> Option<Mono> {
        self.word.map(|word| word + self.timers.decide)
    }

    fn too_late(&self, now: Mono) -> bool {
        self.config.rules.behind && self.decide_by().is_none_or(|by| now > by)
    }

    pub(crate) fn settle_lost(&mut self, now: Mono, lost: Option<Mono>) {
        let Phase::Lost { since, .. } = self.phase else { return };
        if lost.is_none() {
            if self.is_silent(now) && self.link.is_none() {
                self.phase = Phase::Lost { since, lost: Some(now) };
                self.event(EventKind::SessionLost { silent_ms: self.silent(now) });
                if self.decides() {
                    self.start_probe(now);
                }
            }
        } else if self.decides() && self.decided.is_none() {
            if self.too_late(now) || self.replaced {
                self.become_behind(now);
            } else {
                self.drive_probe(now);
            }
        }
    }

    fn lost_probe(&mut self, now: Mono, result: ProbeResult) {
        let answered = self.config.level >= Level::L2 && (result.vip_answered || result.peer_answered);
        if self.too_late(now) || (answered && self.config.rules.behind) {
            return self.become_behind(now);
        }
        if answered {
            self.probing.at = Some(now + self.timers.window);
        } else if result.witness == WitnessState::Unreachable {
            self.probing.no_witness = true;
            self.start_probe(now);
        } else if self.intact() && !self.d.behind && self.tree_ok() {
            self.decide(now, How::Rule, None);
        } else {
            self.become_behind(now);
        }
    }

    /// The primary's kernel lives, or it may by now have answered alone: never promote without it.
    pub(crate) fn become_behind(&mut self, now: Mono) {
        self.persist_with(|d| d.behind = true);
        self.event(EventKind::Behind);
        self.wait(now, Why::Behind);
    }

    pub(crate) fn probe_in(&mut self, now: Mono, token: Token, result: ProbeResult) {
        if self.probing.run.is_none_or(|(run, _)| run != token) {
            return;
        }
        self.probing.run = None;
        match self.phase {
            Phase::Frozen { lost: Some(lost), .. } => self.frozen_probe(now, lost, result),
            Phase::Lost { lost: Some(_), .. } => self.lost_probe(now, result),
            Phase::Wait { .. } => self.cold_probe(now, result),
            _ => {}
        }
    }
}
