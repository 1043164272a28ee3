//! Orderly stop, and the state in which the fencing record cannot be written.

use crate::base::Mono;
use crate::engine::cluster::{Aim, Cluster, Phase, Solid, Step, Why};
use crate::engine::durable::Damage;
use crate::engine::io::{Effect, EventKind, Gate, Input, Ticket, Token, TreeState};
use crate::engine::peer::PeerMessage;

/// Between two attempts to write the record: a disk that answers EIO at once must not be hammered.
const RETRY: u64 = 5_000;
/// Longest flush of a stop; past it the node stops all the same, and counts as crashed after a reboot.
const FLUSH: u64 = 60_000;

impl Cluster {
    /// Stop, whatever the phase; with an eligible standby the role goes there first.
    pub(crate) fn stop(&mut self, now: Mono, aim: Aim, ticket: Option<Ticket>) {
        self.autostart = false;
        let remember = aim == Aim::Stop { remember: true };
        match self.phase.clone() {
            Phase::Prim { .. } | Phase::Alone { .. } => self.begin_handover(now, aim, ticket),
            Phase::Handover { ticket: old, step, standby, deadline, .. } => {
                self.refuse(old, "SKC-E0406", "superseded by a stop");
                self.phase = Phase::Handover { aim, step, standby, deadline, ticket };
                if let (Step::Services, true) = (step, now >= deadline) {
                    self.services_down(now);
                }
            }
            Phase::Second { .. } => self.leave(now, aim, ticket),
            Phase::Leaving { ticket: old, taken, deadline, .. } => {
                self.refuse(old, "SKC-E0406", "superseded by a stop");
                self.phase = Phase::Leaving { aim, deadline, taken, ticket };
                if remember {
                    self.persist_with(|d| d.stopped = true);
                }
            }
            _ => self.stop_now(now, remember, ticket),
        }
    }

    /// Give up any claim in this epoch, on record, and tell the peer so that it goes on at once.
    pub(crate) fn leave(&mut self, now: Mono, aim: Aim, ticket: Option<Ticket>) {
        let Some(epoch) = self.session() else {
            return self.stop_now(now, aim == Aim::Stop { remember: true }, ticket);
        };
        self.release(Gate::ReadOnly);
        self.set_tombstone(None);
        self.eligible = None;
        self.persist_with(|d| {
            d.behind = true;
            d.stopped |= aim == Aim::Stop { remember: true };
        });
        self.send(PeerMessage::Leaving { epoch });
        self.close_stream();
        let deadline = now + self.timers.timeout;
        self.phase = Phase::Leaving { aim, deadline, taken: false, ticket };
        if self.intact() && !matches!(aim, Aim::SickDisk | Aim::HungDisk) {
            self.start_sync();
        }
    }

    pub(crate) fn leave_taken(&mut self, _epoch: crate::base::Epoch) {
        if let Phase::Leaving { taken, .. } = &mut self.phase {
            *taken = true;
        }
    }

    /// Finishes when the peer knows (or had its time) and the tree is durable (or had its time).
    /// A copy that was intact and is flushed stays intact over a reboot: it cannot lose anything any more.
    pub(crate) fn settle_leaving(&mut self, now: Mono) {
        let Phase::Leaving { aim, deadline, taken, ticket } = self.phase else { return };
        let told = taken || now >= deadline;
        let flushed = self.solid == Solid::Yes;
        if !told {
            return;
        }
        if let Aim::SickDisk | Aim::HungDisk = aim {
            // No flush is waited for that may never end. A disk that only hangs has lost nothing: should the
            // peer lose its memory before it has gone on alone, this is the copy that has it all.
            if aim == Aim::SickDisk || self.touched || self.tree == TreeState::DiskError {
                self.mark_inconsistent(Damage::Sync, |_| {});
            }
            self.wait(now, Why::Tree);
            return self.greet(now);
        }
        if self.intact() && !flushed && now < deadline + FLUSH {
            return;
        }
        if self.intact() && flushed {
            self.persist_with(|d| d.clean = true);
        }
        self.phase = Phase::Stopped;
        self.event(EventKind::Stopped);
        self.done(ticket);
        self.greet(now);
    }

    /// When `settle_leaving` has something to do at the latest.
    pub(crate) fn leave_by(&self) -> Option<Mono> {
        match self.phase {
            Phase::Leaving { deadline, taken: false, .. } if !self.told_by(deadline) => Some(deadline),
            Phase::Leaving { deadline, .. } => Some(deadline + FLUSH),
            _ => None,
        }
    }

    /// The deadline for the peer's answer has passed already.
    fn told_by(&self, deadline: Mono) -> bool {
        self.stepped >= deadline
    }

    /// Stop without anyone to hand over to. `alone` stays on record: this node may start again by it.
    pub(crate) fn stop_now(&mut self, now: Mono, remember: bool, ticket: Option<Ticket>) {
        let undecided = matches!(self.phase, Phase::Frozen { .. });
        self.undecide();
        self.set_tombstone(None);
        self.release(if undecided { Gate::Shut } else { Gate::ReadOnly });
        if remember {
            self.persist_with(|d| d.stopped = true);
        }
        self.close_stream();
        self.eligible = None;
        self.probing = crate::engine::cluster::Probing::default();
        if self.phase == Phase::Stopped {
            return self.done(ticket);
        }
        if matches!(self.phase, Phase::Alone { .. } | Phase::Prim { .. } | Phase::Handover { .. }) {
            // It was writable until now.
            self.solid = Solid::No;
        }
        self.phase = Phase::Leaving { aim: Aim::Stop { remember }, deadline: now, taken: true, ticket };
        if self.intact() {
            self.start_sync();
        }
        self.greet(now);
    }

    // ---- the record cannot be written ----

    /// Nothing after the failed write was done. What is on disk is either record; this agent acts
    /// on neither until one is certainly written.
    pub(crate) fn persist_failed(&mut self, now: Mono) {
        let ticket = match &self.phase {
            Phase::Handover { ticket, .. } | Phase::Handed { ticket, .. } | Phase::Leaving { ticket, .. } => {
                *ticket
            }
            _ => None,
        };
        self.d = self.committed.clone();
        // Stopped stays stopped; the others start anew, from the record, once it can be written.
        let takes_part = !matches!(self.phase, Phase::Stopped | Phase::Leaving { .. });
        self.autostart = !self.d.stopped && (takes_part || self.autostart);
        self.undecide();
        let was_writer = self.is_writer();
        self.emit(Effect::Gate(Gate::Shut));
        if was_writer {
            self.emit(Effect::InvalidateCaches);
        }
        self.emit(Effect::DropVips);
        self.emit(Effect::StopServices);
        self.emit(Effect::SetTombstone(None));
        let token = self.token();
        self.emit(Effect::CloseStream { token });
        self.close_link();
        self.gate = Gate::Shut;
        (self.vips, self.services_wanted, self.tombstone) = (false, false, None);
        (self.stream, self.closing, self.eligible, self.solid) = (None, Some(token), None, Solid::No);
        self.facts = crate::engine::io::StreamFacts::default();
        self.probing = crate::engine::cluster::Probing::default();
        self.refuse(ticket, "SKC-E0401", "the fencing record cannot be written; see status");
        self.event(EventKind::PersistFailed);
        self.phase = Phase::Broken { retry_at: now + RETRY, run: None };
    }

    pub(crate) fn broken_input(&mut self, now: Mono, input: Input) {
        match input {
            Input::PersistFailed => {
                self.phase = Phase::Broken { retry_at: now + RETRY, run: None };
            }
            Input::Synced { token, ok } => {
                if let Phase::Broken { run: Some(run), .. } = self.phase
                    && run == token
                {
                    self.heard = self.link.as_ref().map(|_| now);
                    // Through the start, which voids `clean` before anything else: the record that was
                    // written may be one of a stopped node.
                    self.phase = Phase::Stopped;
                    if self.autostart && self.tree != crate::engine::io::TreeState::Unknown {
                        self.autostart = false;
                        self.start(now);
                    } else {
                        self.set_gate(Gate::ReadOnly);
                        if ok && self.intact() {
                            // Nothing was written since the gate shut, and all of it is durable now.
                            self.persist_with(|d| d.clean = true);
                        }
                        self.greet(now);
                    }
                }
            }
            input @ (Input::LinkUp { .. } | Input::LinkDown { .. } | Input::Peer { .. }) => {
                self.listen_only(input);
            }
            Input::Operator { ticket, .. } | Input::Shutdown { ticket } => {
                self.refuse(Some(ticket), "SKC-E0401", "the fencing record cannot be written; see status");
            }
            Input::Configure(config) => {
                self.config = *config;
                self.retime();
            }
            Input::LocalTree(tree) => self.tree = tree,
            Input::Services(state) => self.services = state,
            Input::StreamClosed { token, .. } if self.closing == Some(token) => {
                self.closing = None;
            }
            _ => {}
        }
    }

    /// Tries again. The syncfs behind the write is only there to report that the list went on.
    pub(crate) fn settle_broken(&mut self, now: Mono, retry_at: Mono, _run: Option<Token>) {
        if now >= retry_at {
            self.persist();
            let token = self.token();
            self.emit(Effect::Syncfs { token });
            self.phase = Phase::Broken { retry_at: now + RETRY, run: Some(token) };
        }
    }
}
