//! The state of one cluster on one node, and the dispatch of its inputs.
//!
//! # Phases
//! ```text
//!  Stopped --start--> Wait --handshake--> Second --session lost--> Lost --clean probe, tombstone--> Alone
//!                      |  \--handshake--> Alone --resync done--> Prim         \--answered, late--> Wait (Behind)
//!                      \--own record says alone--> Alone
//!  Prim --session lost--> Frozen --handshake--> Prim | --hold over, peer outdated--> Alone | --deadline--> Wait
//!  Prim --swap--> Handover --drained, recorded--> Handed --taken--> Second
//!  Second --token--> Prim          any --stop--> (Handover) --> Leaving --> Stopped
//!  any --record cannot be written--> Broken --written again--> Stopped or Wait
//! ```
//! Who leaves a waiting phase: `Wait` by handshake, record or operator (status names the command);
//! `Lost`, `Frozen`, `Handover`, `Handed`, `Leaving`, `Broken` all by a deadline.

use crate::base::{Epoch, Generation, Millis, Mono, NodeId};
use crate::engine::config::Config;
use crate::engine::durable::{Damage, Durable, Inconsistent};
use crate::engine::io::{
    Effect, Event, EventKind, Gate, Input, OperatorResult, Plan, ServiceState, StreamFacts, StreamRole,
    Ticket, Token, Tombstone, TreeState,
};
use crate::engine::lineage;
use crate::engine::peer::{HeartbeatBody, LiveRole, PeerMessage};
use crate::engine::restart::Limiter;
use crate::engine::session::Link;
use crate::engine::timers::Timers;

/// Why a node waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// Nothing known of the peer yet.
    Peer,
    /// The frozen writer reached its deadline.
    Frozen,
    /// The peer went on alone.
    PeerAlone,
    /// See `Durable::behind`.
    Behind,
    /// A resync broke off.
    Resync,
    /// Ejected as a standby; asks again by itself.
    Ejected,
    /// syncfs failed.
    DiskSync,
    /// The directory is not usable.
    Tree,
    /// Split brain, and the other side keeps serving.
    SplitBrain,
}

/// What a hand-over is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Aim {
    /// Exchange roles.
    Swap,
    /// Leave and stop; `remember` = by the operator.
    Stop {
        /// Stay stopped after a reboot.
        remember: bool,
    },
    /// Leave because the local disk fails, or the mount was taken away; wait afterwards.
    SickDisk,
    /// Leave because the local disk hangs; wait afterwards.
    HungDisk,
}

/// Where a hand-over stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Services are stopping.
    Services,
    /// Frozen, waiting for what is in flight.
    Drain(Token),
}

/// Phases; see the module's diagram.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Stopped,
    Wait {
        since: Mono,
        why: Why,
        cold_at: Mono,
    },
    Alone {
        vip_at: Mono,
    },
    Prim {
        standby: bool,
        stable_since: Option<Mono>,
    },
    Frozen {
        since: Mono,
        lost: Option<Mono>,
    },
    Second {
        ready: bool,
        syncing: Option<Token>,
    },
    Lost {
        since: Mono,
        lost: Option<Mono>,
    },
    /// `standby`: there is an eligible standby to give the role to.
    Handover {
        aim: Aim,
        step: Step,
        standby: bool,
        deadline: Mono,
        ticket: Option<Ticket>,
    },
    Handed {
        deadline: Mono,
        ticket: Option<Ticket>,
    },
    /// `taken`: the peer knows.
    Leaving {
        aim: Aim,
        deadline: Mono,
        taken: bool,
        ticket: Option<Ticket>,
    },
    Broken {
        retry_at: Mono,
        run: Option<Token>,
    },
}

/// Is everything the other side held in memory durable here?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Solid {
    #[default]
    No,
    Running(Token),
    Yes,
}

/// What the operator named as the source, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Adopt {
    pub(crate) source: NodeId,
    pub(crate) force: bool,
    pub(crate) ticket: Ticket,
    pub(crate) until: Mono,
}

/// A probe round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Probing {
    /// Running round and when its report is overdue.
    pub(crate) run: Option<(Token, Mono)>,
    /// When it began.
    pub(crate) began: Mono,
    /// When to begin the next.
    pub(crate) at: Option<Mono>,
    /// The last finished round found the witness unreachable.
    pub(crate) no_witness: bool,
}

/// The core. See the module [`crate::engine`] for the contract.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cluster {
    pub(crate) me: NodeId,
    pub(crate) boot_id: u128,
    pub(crate) seed: u128,
    pub(crate) config: Config,
    pub(crate) timers: Timers,
    /// The tree was written past the mount since the last compare of both.
    pub(crate) touched: bool,
    /// T and i of the peer's last hello: what it counts with until it says otherwise.
    pub(crate) peer_timers: Option<(Millis, Millis)>,
    /// The record as last handed to `Persist`.
    pub(crate) d: Durable,
    /// The record that is certainly on disk.
    pub(crate) committed: Durable,
    pub(crate) phase: Phase,
    pub(crate) tree: TreeState,
    /// Start as soon as the tree is known.
    pub(crate) autostart: bool,
    pub(crate) link: Option<Link>,
    /// A stream was opened and not closed: its session and our end.
    pub(crate) stream: Option<(Epoch, StreamRole)>,
    /// `CloseStream` was emitted and has not reported yet.
    pub(crate) closing: Option<Token>,
    /// May go on alone, and will once everything the peer held in memory is durable here.
    pub(crate) decided: Option<(crate::engine::failover::How, Option<Ticket>)>,
    pub(crate) facts: StreamFacts,
    /// The epoch in which this agent was an eligible standby, until something newer happens.
    pub(crate) eligible: Option<Epoch>,
    /// Any heartbeat of the peer.
    pub(crate) raw: Option<Mono>,
    /// Last heartbeat whose sender's own evidence was fresh: the primary's hold counts from no
    /// earlier than half a timeout before it. Never moved but by a heartbeat.
    pub(crate) word: Option<Mono>,
    /// Evidence clock: the last sign that both directions work; moved forward after a stall of our own.
    pub(crate) heard: Option<Mono>,
    pub(crate) peer_hb: Option<HeartbeatBody>,
    /// Gave up the claim to succeed the peer in this epoch (said in heartbeats).
    pub(crate) yielded: Option<Epoch>,
    /// A handshake was agreed since the session was lost: a late heartbeat that yields the old
    /// session proves nothing any more.
    pub(crate) yields_void: bool,
    pub(crate) solid: Solid,
    pub(crate) probing: Probing,
    /// Woke later than the lease, or was cut off from the witness: may have been replaced, no lone
    /// decision by rule until a handshake, or until the peer's own heartbeat says that it did not.
    pub(crate) replaced: bool,
    pub(crate) gate: Gate,
    pub(crate) vips: bool,
    pub(crate) services_wanted: bool,
    pub(crate) services: ServiceState,
    pub(crate) healthy: bool,
    pub(crate) vip_held: bool,
    pub(crate) vip_conflict: bool,
    /// A checker's `wait` released services and VIPs.
    pub(crate) held_by_checker: bool,
    pub(crate) restart_limit_hit: bool,
    pub(crate) paused: bool,
    pub(crate) adopt: Option<Adopt>,
    /// Operator waiting for a swap that was asked of the peer, and until when.
    pub(crate) swap_asked: Option<(Ticket, Mono)>,
    /// Do not greet before this (back-off of an ejected standby), and the next back-off.
    pub(crate) hello_after: Option<Mono>,
    pub(crate) readmit: Millis,
    pub(crate) failed_back: bool,
    pub(crate) tombstone: Option<Tombstone>,
    pub(crate) limiter: Limiter,
    pub(crate) failover_id: u64,
    pub(crate) next_token: u64,
    pub(crate) promised: Option<Mono>,
    /// `now` of the last step.
    pub(crate) stepped: Mono,
    pub(crate) out: Vec<Effect>,
}

impl Cluster {
    /// A core that has just started; the mount is expected to be read-only and no stream open.
    /// `durable`: what the store read (`None`: never written). `seed`: OS randomness, fresh in every
    /// process. Nothing happens before the first [`Input::LocalTree`].
    pub fn new(
        me: NodeId,
        boot_id: u128,
        seed: u128,
        config: Config,
        durable: Option<Durable>,
        now: Mono,
    ) -> Self {
        let mut d = durable.unwrap_or_default();
        let autostart = config.boot.starts(d.stopped, d.boot == Some(boot_id));
        // Not written yet: both go to the disk with the next change, at the latest with a stop.
        d.stopped &= !autostart;
        d.boot = Some(boot_id);
        Self {
            me,
            boot_id,
            seed,
            timers: Timers::nearest(&config),
            touched: false,
            peer_timers: None,
            config,
            committed: d.clone(),
            d,
            phase: Phase::Stopped,
            tree: TreeState::Unknown,
            autostart,
            link: None,
            stream: None,
            closing: None,
            decided: None,
            facts: StreamFacts::default(),
            eligible: None,
            raw: None,
            word: None,
            heard: None,
            peer_hb: None,
            yielded: None,
            yields_void: false,
            solid: Solid::No,
            probing: Probing::default(),
            replaced: false,
            gate: Gate::ReadOnly,
            vips: false,
            services_wanted: false,
            services: ServiceState::Stopped,
            healthy: true,
            vip_held: false,
            vip_conflict: false,
            held_by_checker: false,
            restart_limit_hit: false,
            paused: false,
            adopt: None,
            swap_asked: None,
            hello_after: None,
            readmit: crate::engine::timers::READMIT.0,
            failed_back: false,
            tombstone: None,
            limiter: Limiter::default(),
            failover_id: 0,
            next_token: 0,
            promised: None,
            stepped: now,
            out: Vec::new(),
        }
    }

    /// One input. Effects are to be executed in order; see [`crate::engine::io`].
    pub fn step(&mut self, now: Mono, input: Input) -> Vec<Effect> {
        debug_assert!(self.out.is_empty());
        if !matches!(input, Input::PersistFailed) {
            self.committed = self.d.clone();
        }
        self.stepped = now;
        self.notice_stall(now, &input);
        self.dispatch(now, input);
        self.settle(now);
        self.promised = self.next_deadline().map(|at| at.max(now));
        std::mem::take(&mut self.out)
    }

    /// Each node counts with the other's timers, so both count with the larger ones: a node that was
    /// restarted with a new spec meets one that still runs with the old.
    pub(crate) fn retime(&mut self) {
        self.timers = Timers::common(&self.config, self.peer_timers);
    }

    fn dispatch(&mut self, now: Mono, input: Input) {
        if let Phase::Broken { .. } = self.phase {
            return self.broken_input(now, input);
        }
        match input {
            Input::Tick => {}
            Input::Configure(config) => {
                // What was answered early may still be in flight.
                let answers_early = self.config.answers_early || config.answers_early;
                self.config = Config { answers_early, ..*config };
                self.retime();
            }
            Input::Operator { ticket, command } => self.operator(now, ticket, command),
            Input::Shutdown { ticket } => self.stop(now, Aim::Stop { remember: false }, Some(ticket)),
            Input::LinkUp { link } => self.link_up(now, link),
            Input::LinkDown { link } => self.link_down(now, link),
            Input::Peer { link, message } => self.peer_message(now, link, message),
            Input::Heartbeat(body) => self.heartbeat_in(now, body),
            Input::Tombstone(tombstone) => self.tombstone_in(now, tombstone),
            Input::StreamUp { .. } => {}
            Input::StreamDown { s, why } => self.stream_down(now, s, why),
            Input::StreamClosed { token, facts } => self.stream_closed(now, token, facts),
            Input::ResyncDone { s } => self.resync_done(now, s),
            Input::MarkerReached { s } => self.marker_reached(now, s),
            Input::Synced { token, ok } => self.synced(now, token, ok),
            Input::Drained { token } => self.drained(now, token),
            Input::Probe { token, result } => self.probe_in(now, token, result),
            Input::LocalTree(tree) => self.local_tree(now, tree),
            Input::Services(state) => self.services_in(now, state),
            Input::Checkers { healthy } => self.checkers(healthy),
            Input::CheckerFired(action) => self.checker_fired(now, action),
            Input::VipHeld(held) => self.vip_held = held,
            Input::VipConflict(conflict) => self.vip_conflict = conflict,
            Input::PersistFailed => self.persist_failed(now),
        }
    }

    // ---- small tools used by every phase ----

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.out.push(effect);
    }

    pub(crate) fn event(&mut self, kind: EventKind) {
        let event = Event { failover_id: self.failover_id, epoch: self.d.epoch, kind };
        self.emit(Effect::Event(Box::new(event)));
    }

    pub(crate) fn send(&mut self, message: PeerMessage) {
        if self.link.is_some() {
            self.emit(Effect::Send(Box::new(message)));
        }
    }

    pub(crate) fn done(&mut self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.emit(Effect::OperatorDone { ticket, result: OperatorResult::Done });
        }
    }

    pub(crate) fn refuse(&mut self, ticket: Option<Ticket>, code: &'static str, hint: impl Into<String>) {
        if let Some(ticket) = ticket {
            let result = OperatorResult::Refused { code, hint: hint.into() };
            self.emit(Effect::OperatorDone { ticket, result });
        }
    }

    pub(crate) fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    pub(crate) fn persist(&mut self) {
        self.emit(Effect::Persist(Box::new(self.d.clone())));
    }

    /// Writes the record if it differs from what was last handed out.
    pub(crate) fn persist_with(&mut self, change: impl FnOnce(&mut Durable)) {
        let before = self.d.clone();
        change(&mut self.d);
        if self.d != before {
            self.persist();
        }
    }

    pub(crate) fn set_gate(&mut self, gate: Gate) {
        if self.gate != gate {
            self.gate = gate;
            self.emit(Effect::Gate(gate));
        }
    }

    pub(crate) fn set_tombstone(&mut self, tombstone: Option<Tombstone>) {
        if self.tombstone != tombstone {
            self.tombstone = tombstone;
            self.emit(Effect::SetTombstone(tombstone));
        }
    }

    pub(crate) fn add_vips(&mut self) {
        if !self.vips && !self.held_by_checker {
            self.vips = true;
            self.emit(Effect::AddVips);
        }
    }

    pub(crate) fn drop_vips(&mut self) {
        if self.vips {
            self.vips = false;
            self.emit(Effect::DropVips);
        }
    }

    pub(crate) fn start_services(&mut self) {
        if !self.services_wanted && !self.held_by_checker {
            self.services_wanted = true;
            self.emit(Effect::StartServices);
        }
    }

    pub(crate) fn stop_services(&mut self) {
        if self.services_wanted {
            self.services_wanted = false;
            self.emit(Effect::StopServices);
        }
    }

    /// The kernel may cache what the mount showed: nobody else writes.
    pub(crate) fn is_writer(&self) -> bool {
        matches!(self.gate, Gate::Replicated { .. } | Gate::Alone { .. } | Gate::Frozen)
    }

    /// VIP away, services down, write gate shut: in this order, so that nobody is directed here
    /// while writes fail.
    pub(crate) fn release(&mut self, gate: Gate) {
        self.held_by_checker = false;
        self.drop_vips();
        self.stop_services();
        let was_writer = self.is_writer();
        if was_writer && gate == Gate::ReadOnly {
            self.set_gate(Gate::Shut);
        }
        self.set_gate(gate);
        if was_writer {
            self.emit(Effect::InvalidateCaches);
        }
    }

    pub(crate) fn close_stream(&mut self) {
        if self.stream.take().is_some() {
            let token = self.token();
            self.closing = Some(token);
            self.emit(Effect::CloseStream { token });
        }
    }

    pub(crate) fn open_stream(&mut self, role: StreamRole, epoch: Epoch, plan: Plan) {
        self.stream = Some((epoch, role));
        if !matches!(plan, Plan::Replay { .. } | Plan::Continue) {
            self.touched = false;
        }
        self.facts = StreamFacts::default();
        self.emit(Effect::OpenStream { role, epoch, plan });
    }

    pub(crate) fn wait(&mut self, now: Mono, why: Why) {
        self.probing = Probing::default();
        self.phase = Phase::Wait { since: now, why, cold_at: now + self.timers.cold };
    }

    /// One write: with it go the claims that `also` gives up.
    pub(crate) fn mark_inconsistent(&mut self, damage: Damage, also: impl FnOnce(&mut Durable)) {
        self.eligible = None;
        let source = Generation::default();
        self.persist_with(|d| {
            also(d);
            d.intact_boot = None;
            d.clean = false;
            if d.inconsistent.is_none_or(|i| i.damage != damage) {
                d.inconsistent = Some(Inconsistent { source, damage });
            }
        });
        self.event(EventKind::Inconsistent { damage });
    }

    pub(crate) fn intact(&self) -> bool {
        let boot_matters = self.config.rules.boot_voids_intact;
        let kept = self.d.clean || self.d.intact_boot == Some(self.boot_id);
        self.d.inconsistent.is_none() && (kept || (self.d.intact_boot.is_some() && !boot_matters))
    }

    pub(crate) fn tree_ok(&self) -> bool {
        matches!(self.tree, TreeState::Ok { .. })
    }

    pub(crate) fn fresh(&self, purpose: u64) -> u128 {
        lineage::fresh_id(self.seed ^ self.boot_id.rotate_left(64), self.d.epoch, purpose)
    }

    pub(crate) fn live_role(&self) -> LiveRole {
        match &self.phase {
            Phase::Stopped | Phase::Broken { .. } | Phase::Leaving { .. } => LiveRole::Stop,
            Phase::Wait { .. } => LiveRole::Wait,
            Phase::Alone { .. } => LiveRole::Alone,
            Phase::Handover { standby: false, .. } if self.d.alone => LiveRole::Alone,
            Phase::Prim { .. } | Phase::Handover { .. } => LiveRole::Prim,
            Phase::Frozen { .. } => LiveRole::Frozen,
            Phase::Second { .. } | Phase::Lost { .. } | Phase::Handed { .. } => LiveRole::Second,
        }
    }

    pub(crate) fn started(&self) -> bool {
        !matches!(self.phase, Phase::Stopped | Phase::Broken { .. } | Phase::Leaving { .. })
    }

    /// What goes into every heartbeat. Cheap; call it for each datagram.
    pub fn heartbeat(&self, now: Mono) -> HeartbeatBody {
        let asks = match self.phase {
            Phase::Frozen { since, lost: None } if !self.yields_void => {
                now - since >= self.timers.yield_after
            }
            _ => false,
        };
        HeartbeatBody {
            role: self.live_role(),
            epoch: self.d.epoch,
            alone: self.live_role() == LiveRole::Alone,
            ready: self.services == ServiceState::Running && self.healthy,
            heard_ms: self.raw.map(|at| now - at),
            sure_ms: self.heard.map(|at| now - at),
            ask_yield: asks.then_some(self.d.epoch),
            yielded: self.yielded,
        }
    }
}

/// For the exhaustive model only: states that differ in nothing but the passage of time are one.
#[doc(hidden)]
impl Cluster {
    /// Moves every stored time so that `now` becomes `to`; times too old to matter become equal.
    /// With `forget` also what only reporting and a failed `Persist` would need.
    pub fn rebase(&mut self, now: Mono, to: Mono, forget: bool) {
        if forget {
            self.committed = self.d.clone();
            self.failover_id = 0;
            self.promised = None;
        }
        self.stepped = to;
        let by_record = self.may_start_cold();
        let keep = 12_000;
        let clamp = |at: &mut Mono, keep: Millis| {
            let floor = Mono(now.0.saturating_sub(keep));
            *at = (*at).max(floor);
            *at = Mono((to.0 + at.0).saturating_sub(now.0));
        };
        let timers = self.timers;
        let each = |at: &mut Option<Mono>, keep: Millis| {
            if let Some(at) = at {
                clamp(at, keep);
            }
        };
        each(&mut self.raw, timers.timeout + timers.lease + timers.interval);
        each(&mut self.word, timers.decide + 1);
        each(&mut self.heard, timers.timeout);
        each(&mut self.probing.at, keep);
        if self.probing.run.is_some() {
            clamp(&mut self.probing.began, keep);
        } else {
            self.probing.began = to;
        }
        if let Some((_, at)) = &mut self.probing.run {
            clamp(at, keep);
        }
        each(&mut self.hello_after, keep);
        each(&mut self.promised, keep);
        if let Some((_, at)) = &mut self.swap_asked {
            clamp(at, keep);
        }
        if let Some(adopt) = &mut self.adopt {
            clamp(&mut adopt.until, keep);
        }
        if let Some(deadline) = self.link.as_mut().and_then(|link| link.shake.deadline_mut()) {
            clamp(deadline, keep);
        }
        match &mut self.phase {
            Phase::Wait { since, cold_at, .. } => {
                clamp(since, keep);
                clamp(cold_at, 0);
                if !by_record {
                    (*since, *cold_at) = (to, to);
                }
            }
            Phase::Alone { vip_at, .. } => clamp(vip_at, 0),
            Phase::Prim { stable_since, .. } => each(stable_since, 0),
            Phase::Frozen { since, lost } => {
                clamp(since, keep);
                each(lost, keep);
            }
            Phase::Lost { since, lost } => {
                *since = to;
                each(lost, 0);
            }
            Phase::Handover { deadline, .. }
            | Phase::Handed { deadline, .. }
            | Phase::Leaving { deadline, .. } => {
                clamp(deadline, keep);
            }
            Phase::Broken { retry_at, .. } => clamp(retry_at, keep),
            Phase::Stopped | Phase::Second { .. } => {}
        }
        if let Some(hb) = &mut self.peer_hb {
            (hb.heard_ms, hb.sure_ms) = (None, None);
        }
    }

    /// Starts the numbering of tokens over if none is outstanding.
    pub fn restart_tokens(&mut self) {
        let outstanding = matches!(self.solid, Solid::Running(_))
            || self.probing.run.is_some()
            || self.closing.is_some()
            || matches!(
                self.phase,
                Phase::Second { syncing: Some(_), .. }
                    | Phase::Handover { step: Step::Drain(_), .. }
                    | Phase::Broken { run: Some(_), .. }
            );
        if !outstanding {
            self.next_token = 0;
        }
    }

    /// Would `rebase` with `forget` change anything without time having passed?
    pub fn can_forget(&self) -> bool {
        self.failover_id != 0 || self.promised.is_some() || self.committed != self.d
    }

    /// Is there anything for `restart_tokens` to do?
    pub fn tokens_used(&self) -> bool {
        self.next_token != 0
    }

    /// Renames the current link.
    pub fn relabel_link(&mut self, id: crate::engine::io::LinkId) {
        if let Some(link) = &mut self.link {
            link.id = id;
        }
    }

    /// The record as the core sees it.
    pub fn record(&self) -> &Durable {
        &self.d
    }
}
