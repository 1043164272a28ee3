//! Orderly stop, and the state in which the fencing record cannot be written.

use crate::base::Mono;
use crate::engine::cluster::{Aim, Cluster, Phase, Solid, Step, Why};
use crate::engine::durable::Damage;
use crate::engine::io::{Effect, EventKind, Gate, Input, Ticket, Token};
use crate::engine::peer::PeerMessage;

/// Between two attempts to write the record: a disk that answers EIO at once must not be hammered.
const RETRY: u64 = 5_000;

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
            Phase::Leaving { ticket: old, .. } => {
                self.refuse(old, "SKC-E0406", "superseded by a stop");
                self.phase = Phase::Leaving { aim, deadline: now + self.timers.timeout, ticket };
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
        self.phase = Phase::Leaving { aim, deadline: now + self.timers.timeout, ticket };
    }

    pub(crate) fn leave_taken(&mut self, now: Mono, _epoch: crate::base::Epoch) {
        if let Phase::Leaving { aim, ticket, .. } = self.phase {
            self.left(now, aim, ticket);
        }
    }

    /// The peer knows, or had its time.
    pub(crate) fn left(&mut self, now: Mono, aim: Aim, ticket: Option<Ticket>) {
        if aim == Aim::SickDisk {
            self.mark_inconsistent(Damage::Sync, |_| {});
            self.wait(now, Why::Tree);
            return self.greet(now);
        }
        self.phase = Phase::Stopped;
        self.event(EventKind::Stopped);
        self.done(ticket);
        self.greet(now);
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
        self.solid = Solid::No;
        if self.phase != Phase::Stopped {
            self.event(EventKind::Stopped);
        }
        self.phase = Phase::Stopped;
        self.done(ticket);
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
        self.undecide();
        self.emit(Effect::Gate(Gate::Shut));
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
            Input::Synced { token, .. } => {
                if let Phase::Broken { run: Some(run), .. } = self.phase {
                    if run == token {
                        self.wait(now, Why::Peer);
                    }
                }
            }
            Input::LinkUp { link } => self.emit(Effect::CloseLink(link)),
            Input::Operator { ticket, .. } | Input::Shutdown { ticket } => {
                self.refuse(Some(ticket), "SKC-E0401", "the fencing record cannot be written; see status");
            }
            Input::Configure(config) => {
                self.timers = crate::engine::timers::Timers::nearest(&config);
                self.config = *config;
            }
            Input::LocalTree(tree) => self.tree = tree,
            Input::Services(state) => self.services = state,
            Input::StreamClosed { token, .. } => {
                if self.closing == Some(token) {
                    self.closing = None;
                }
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
