//! Operator commands. Each is refused with the reason and what to do, or done and true.

use crate::base::{Millis, Mono, NodeId};
use crate::engine::cluster::{Adopt, Aim, Cluster, Phase};
use crate::engine::config::Level;
use crate::engine::failover::How;
use crate::engine::io::{Effect, OperatorCommand, Ticket, TreeState};
use crate::engine::peer::{PeerMessage, VerdictKind};
use crate::engine::session::Shake;

/// A named source is forgotten after this: it must not decide a later, different conflict.
const ADOPT_FOR: Millis = 60_000;

impl Cluster {
    pub(crate) fn operator(&mut self, now: Mono, ticket: Ticket, command: OperatorCommand) {
        match command {
            OperatorCommand::Start => {
                let stops = matches!(
                    self.phase,
                    Phase::Leaving { .. } | Phase::Handover { aim: Aim::Stop { .. }, .. }
                );
                if stops {
                    return self.refuse(Some(ticket), "SKC-E0407", "it is still stopping; try again");
                }
                self.limiter.clear();
                self.restart_limit_hit = false;
                self.failed_back = false;
                if self.tree == TreeState::Unknown {
                    self.autostart = true;
                    self.persist_with(|d| d.stopped = false);
                } else {
                    self.start(now);
                }
                self.done(Some(ticket));
            }
            OperatorCommand::Stop => self.stop(now, Aim::Stop { remember: true }, Some(ticket)),
            OperatorCommand::Swap => self.swap(now, ticket),
            OperatorCommand::Promote { force } => self.promote(now, ticket, force),
            OperatorCommand::Adopt { source, force } => self.adopt(now, ticket, source, force),
            OperatorCommand::Pause => {
                self.paused = true;
                self.done(Some(ticket));
            }
            OperatorCommand::Resume => {
                self.paused = false;
                self.failed_back = false;
                self.done(Some(ticket));
            }
        }
    }

    fn swap(&mut self, now: Mono, ticket: Ticket) {
        match self.phase {
            Phase::Prim { standby: true, .. } => {
                self.failed_back = true;
                self.begin_handover(now, Aim::Swap, Some(ticket));
            }
            Phase::Prim { .. } | Phase::Alone { .. } => {
                self.refuse(Some(ticket), "SKC-E0402", "the standby is not UpToDate yet; see status");
            }
            Phase::Second { ready: true, .. } if self.swap_asked.is_none() => {
                let until = now + self.config.service_stop_timeout + self.timers.shake;
                self.swap_asked = Some((ticket, until));
                self.send(PeerMessage::SwapRequest);
            }
            Phase::Handover { .. } | Phase::Handed { .. } | Phase::Second { ready: true, .. } => {
                self.refuse(Some(ticket), "SKC-E0402", "another hand-over is under way");
            }
            _ => self.refuse(Some(ticket), "SKC-E0402", "a swap needs a primary and an UpToDate standby"),
        }
    }

    fn promote(&mut self, now: Mono, ticket: Ticket, force: bool) {
        let ticket = Some(ticket);
        match self.phase {
            Phase::Prim { .. } | Phase::Alone { .. } => return self.done(ticket),
            Phase::Stopped => return self.refuse(ticket, "SKC-E0403", "start the cluster here first"),
            Phase::Wait { .. } | Phase::Lost { .. } | Phase::Frozen { .. } => {}
            _ => return self.refuse(ticket, "SKC-E0403", "the peer is connected: use swap"),
        }
        if !self.tree_ok() {
            return self.refuse(
                ticket,
                "SKC-E0403",
                "the directory is not usable; see status, then adopt --force",
            );
        }
        if !self.d.initialised() || self.d.inconsistent.is_some() {
            return self.refuse(
                ticket,
                "SKC-E0403",
                "this copy is not complete; name it as the source with adopt --force if it is all there is",
            );
        }
        let idle = |kind: &VerdictKind| matches!(kind, VerdictKind::NotStarted | VerdictKind::NoTree);
        let reachable =
            self.link.as_ref().is_some_and(|l| !matches!(&l.shake, Shake::Idle(kind) if idle(kind)));
        if reachable {
            return self.refuse(
                ticket,
                "SKC-E0403",
                "the peer is connected: use swap, or adopt to name the source",
            );
        }
        if force {
            self.decide(now, How::Forced, ticket);
        } else if self.may_start_cold() && !self.in_touch(now) {
            self.start_alone(now);
            self.done(ticket);
        } else if self.safe_without_force() {
            self.decide(now, How::Rule, ticket);
        } else {
            let hint =
                "the peer may hold acknowledged data that this node lacks; promote --force accepts that";
            self.refuse(ticket, "SKC-E0403", hint);
        }
    }

    /// L0: a primary without a session never answers alone by itself, so a standby that lost it
    /// holds everything that was acknowledged.
    fn safe_without_force(&self) -> bool {
        self.config.level == Level::L0
            && matches!(self.phase, Phase::Lost { lost: Some(_), .. })
            && self.intact()
            && !self.d.behind
    }

    fn adopt(&mut self, now: Mono, ticket: Ticket, source: NodeId, force: bool) {
        if self.adopt.is_some() {
            return self.refuse(Some(ticket), "SKC-E0408", "another adopt is pending");
        }
        if matches!(self.phase, Phase::Stopped | Phase::Leaving { .. }) {
            return self.refuse(Some(ticket), "SKC-E0408", "start the cluster here first");
        }
        if self.session().is_some() {
            return self.refuse(Some(ticket), "SKC-E0408", "the nodes agree already; nothing to adopt");
        }
        if self.link.is_none() && !(force && source == self.me) {
            return self.refuse(
                Some(ticket),
                "SKC-E0408",
                "the peer is not connected; --force adopts this node's directory without it",
            );
        }
        self.adopt = Some(Adopt { source, force, ticket, until: now + ADOPT_FOR });
        if force
            && matches!(
                self.tree,
                TreeState::Replaced | TreeState::EmptyWhereNotEmpty | TreeState::Ok { stamp_ok: false, .. }
            )
        {
            self.emit(Effect::AcceptTree);
        }
    }

    /// The nodes agreed on `source`: answers whoever named one.
    pub(crate) fn adopted(&mut self, source: NodeId) {
        match self.adopt.take() {
            Some(adopt) if adopt.source == source => self.done(Some(adopt.ticket)),
            Some(adopt) => {
                let hint = "the nodes agreed by themselves on the other source; --force would overrule that";
                self.refuse(Some(adopt.ticket), "SKC-E0408", hint);
            }
            None => {}
        }
    }

    pub(crate) fn settle_operator(&mut self, now: Mono) {
        if let Some((ticket, until)) = self.swap_asked {
            let possible = matches!(self.phase, Phase::Second { ready: true, .. });
            if now >= until || !possible {
                self.swap_asked = None;
                self.refuse(Some(ticket), "SKC-E0404", "the primary did not hand over; see status");
            }
        }
        if let Some(adopt) = self.adopt.filter(|adopt| now >= adopt.until) {
            self.adopt = None;
            self.refuse(
                Some(adopt.ticket),
                "SKC-E0408",
                "not used within a minute: the nodes were not waiting for it, the named source is not usable, or --force is needed",
            );
        }
    }
}
