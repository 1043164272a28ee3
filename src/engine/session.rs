//! The session: handshake over the ordered link, agreement, and who does what in which order.
//!
//! ```text
//!  LinkUp (stream closed first) -> Hello both ways -> Verdict both ways, equal for the same two hellos
//!   replay: target records s -> TargetReady -> source records s -> stream opens
//!   full:   source syncs if the target was intact -> SourceReady -> target records `inconsistent` -> TargetReady
//!           -> source records grant, lineage, `alone` -> stream opens
//! ```
//! The source syncs *before* the target gives up its claim (facts b5 has it after): else the source could lose power in
//! between and the only complete copy would be marked as one to be overwritten.
//!
//! A Hello after agreement means that the peer's session ended: ours ends too, and both start over. FIFO order makes
//! stale answers harmless: they arrive before the peer's newer Hello is answered.

use crate::base::{Epoch, Generation, Mono, NodeId};
use crate::engine::cluster::{Cluster, Phase, Solid, Why};
use crate::engine::durable::{Damage, Inconsistent};
use crate::engine::io::{
    Effect, EventKind, Gate, Input, LinkId, Plan, StreamFacts, StreamRole, Token, Tombstone,
};
use crate::engine::lineage;
use crate::engine::peer::{Hello, PeerMessage, SwapRefusal, Verdict, VerdictKind};
use crate::engine::timers::SYNC_MAX;

/// State of the ordered link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    /// Our hellos on this link, counted.
    n: u64,
    /// Our hello in force.
    sent: Option<Hello>,
    /// The peer's newest.
    got: Option<Hello>,
    /// The peer's verdict: (its hello, ours, what).
    theirs: Option<(u64, u64, Verdict)>,
    /// Hello is due as soon as the stream has closed.
    due: bool,
    pub(crate) shake: Shake,
}

/// Steps of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shake {
    /// Exchanging hellos and verdicts. Ends with the link or the peer's silence.
    Greeting,
    /// Source: making durable what the target holds in memory.
    SourceSync { verdict: Verdict, token: Token, deadline: Mono },
    /// Source: waiting for the target's record.
    AwaitTarget { verdict: Verdict, deadline: Mono },
    /// Target: waiting for the source's sync.
    AwaitSource { verdict: Verdict, deadline: Mono },
    /// Agreed on a session.
    Session(Epoch),
    /// Agreed that nothing can be done now.
    Idle(VerdictKind),
    /// The two sides judge the same facts differently: versions do not fit.
    Disagree { retry_at: Mono },
}

impl Shake {
    pub(crate) fn deadline(&self) -> Option<Mono> {
        match self {
            Self::SourceSync { deadline, .. }
            | Self::AwaitTarget { deadline, .. }
            | Self::AwaitSource { deadline, .. }
            | Self::Disagree { retry_at: deadline } => Some(*deadline),
            Self::Greeting | Self::Session(_) | Self::Idle(_) => None,
        }
    }
}

impl Shake {
    pub(crate) fn deadline_mut(&mut self) -> Option<&mut Mono> {
        match self {
            Self::SourceSync { deadline, .. }
            | Self::AwaitTarget { deadline, .. }
            | Self::AwaitSource { deadline, .. }
            | Self::Disagree { retry_at: deadline } => Some(deadline),
            Self::Greeting | Self::Session(_) | Self::Idle(_) => None,
        }
    }
}

impl Link {
    fn new(id: LinkId) -> Self {
        Self { id, n: 0, sent: None, got: None, theirs: None, due: false, shake: Shake::Greeting }
    }

    /// The peer's hello in force.
    pub(crate) fn peer_hello(&self) -> Option<&Hello> {
        self.got.as_ref()
    }
}

impl Cluster {
    pub(crate) fn link_up(&mut self, now: Mono, id: LinkId) {
        if self.link.as_ref().is_some_and(|l| l.id >= id) {
            return;
        }
        if self.link.take().is_some() {
            self.session_lost(now);
        }
        self.link = Some(Link::new(id));
        // Both directions work now. Whoever was called lost is back; but a connection says nothing of
        // what the peer did meanwhile: a standby that was out of touch may have taken over.
        let fresh = self.heard.is_some_and(|at| now - at <= self.timers.one_way);
        if matches!(self.phase, Phase::Frozen { .. }) && !fresh {
            self.replaced = true;
        }
        self.heard = Some(now);
        self.back_in_touch();
        self.event(EventKind::LinkUp);
        self.greet(now);
    }

    pub(crate) fn link_down(&mut self, now: Mono, id: LinkId) {
        if self.link.as_ref().is_some_and(|l| l.id == id) {
            self.link = None;
            self.session_lost(now);
        }
    }

    /// While the record cannot be written: keep the link and what the peer says, answer nothing.
    pub(crate) fn listen_only(&mut self, input: Input) {
        match input {
            Input::LinkUp { link } => self.link = Some(Link::new(link)),
            Input::LinkDown { link } if self.link.as_ref().is_some_and(|l| l.id == link) => self.link = None,
            Input::Peer { link, message: PeerMessage::Hello(hello) } => {
                if let Some(current) = self.link.as_mut().filter(|l| l.id == link) {
                    self.peer_timers = Some((hello.timeout, hello.interval));
                    current.got = Some(*hello);
                }
            }
            _ => {}
        }
    }

    /// Ends the link from our side.
    pub(crate) fn close_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.emit(Effect::CloseLink(link.id));
        }
    }

    /// Starts the handshake over on a live link: closes what is open, then says Hello.
    pub(crate) fn greet(&mut self, now: Mono) {
        if self.link.is_none() {
            return;
        }
        self.close_stream();
        if let Some(link) = &mut self.link {
            link.sent = None;
            link.theirs = None;
            link.shake = Shake::Greeting;
            link.due = true;
        }
        self.say_hello(now);
    }

    /// Says Hello if one is due and its facts are known.
    pub(crate) fn say_hello(&mut self, now: Mono) {
        let held_back = self.closing.is_some() || self.hello_after.is_some_and(|at| now < at);
        let unknown_tree = self.tree == crate::engine::io::TreeState::Unknown;
        let Some(link) = &self.link else { return };
        if !link.due || held_back || unknown_tree {
            return;
        }
        self.hello_after = None;
        let hello = self.hello(link.n + 1);
        if let Some(link) = &mut self.link {
            link.n = hello.n;
            link.sent = Some(hello.clone());
            link.due = false;
        }
        self.send(PeerMessage::Hello(Box::new(hello)));
        self.evaluate(now);
    }

    fn hello(&self, n: u64) -> Hello {
        let unbroken = matches!(self.phase, Phase::Frozen { .. })
            || (!self.config.rules.replay_needs_unbroken_source && matches!(self.phase, Phase::Wait { .. }));
        Hello {
            n,
            node: self.me,
            started: self.started(),
            epoch: self.d.epoch,
            owner: self.d.owner,
            grant: self.d.grant,
            cur: self.d.cur,
            base: self.d.base,
            history: self.d.history.clone(),
            alone: self.d.alone,
            last_primary: self.d.last_primary,
            intact: self.intact(),
            inconsistent: self.d.inconsistent,
            role: self.live_role(),
            replay_from: if unbroken && !self.touched { self.facts.replay_from } else { None },
            applied: if self.eligible.is_some() && !self.touched { self.facts.applied } else { None },
            tree: self.tree,
            adopt: self.adopt.map(|adopt| adopt.source),
            adopt_force: self.adopt.is_some_and(|adopt| adopt.force),
            mint: self.fresh(1),
            preferred: self.config.preferred,
            timeout: self.config.heartbeat_timeout,
            interval: self.config.heartbeat_interval,
        }
    }

    /// Facts of ours changed while a handshake is open or idle: say so.
    pub(crate) fn refresh_hello(&mut self, now: Mono) -> bool {
        let stale = match &self.link {
            Some(link) if matches!(link.shake, Shake::Greeting | Shake::Idle(_)) => {
                link.sent.as_ref().is_some_and(|sent| *sent != self.hello(sent.n))
            }
            _ => false,
        };
        if stale {
            if let Some(link) = &mut self.link {
                link.shake = Shake::Greeting;
                link.due = true;
            }
            self.say_hello(now);
        }
        stale
    }

    pub(crate) fn peer_message(&mut self, now: Mono, id: LinkId, message: PeerMessage) {
        if self.link.as_ref().is_none_or(|l| l.id != id) {
            return;
        }
        match message {
            PeerMessage::Hello(hello) => self.hello_in(now, *hello),
            PeerMessage::Verdict { mine, yours, verdict } => {
                if let Some(link) = &mut self.link {
                    link.theirs = Some((mine, yours, *verdict));
                }
                self.agree(now);
            }
            PeerMessage::SourceReady { epoch } => self.source_ready(now, epoch),
            PeerMessage::TargetReady { epoch } => self.target_ready(now, epoch),
            PeerMessage::UpToDate { epoch } => self.peer_up_to_date(now, epoch),
            PeerMessage::Token { epoch } => self.token_in(now, epoch),
            PeerMessage::TokenTaken { epoch } => self.token_taken(now, epoch),
            PeerMessage::Leaving { epoch } => self.peer_leaving(now, epoch),
            PeerMessage::LeaveTaken { epoch } => self.leave_taken(epoch),
            PeerMessage::Ejected { epoch, damage } => self.peer_ejected(now, epoch, damage),
            PeerMessage::SwapRequest => self.swap_requested(now),
            PeerMessage::SwapRefused { why } => self.swap_refused(why),
        }
    }

    fn hello_in(&mut self, now: Mono, hello: Hello) {
        if self.link.is_none() || hello.node == self.me {
            return;
        }
        self.peer_timers = Some((hello.timeout, hello.interval));
        self.retime();
        let Some(link) = &self.link else { return };
        let open = matches!(link.shake, Shake::Greeting | Shake::Idle(_) | Shake::Disagree { .. });
        if !open {
            self.session_lost(now);
        }
        let Some(link) = &mut self.link else { return };
        link.got = Some(hello);
        if open {
            if let Some(link) = &mut self.link {
                link.shake = Shake::Greeting;
            }
            // An idle agreement is void; our own facts may be old as well.
            if !self.refresh_hello(now) {
                self.evaluate(now);
            }
        } else {
            self.greet(now);
        }
    }

    /// Computes and tells the verdict for the two hellos in force.
    fn evaluate(&mut self, now: Mono) {
        let Some(Link { sent: Some(sent), got: Some(got), shake: Shake::Greeting, due: false, .. }) =
            &self.link
        else {
            return;
        };
        let verdict = lineage::decide(sent, got, self.config.rules);
        let message = PeerMessage::Verdict { mine: sent.n, yours: got.n, verdict: Box::new(verdict) };
        self.send(message);
        self.agree(now);
    }

    fn agree(&mut self, now: Mono) {
        let Some(Link {
            sent: Some(sent),
            got: Some(got),
            theirs: Some(theirs),
            shake: Shake::Greeting,
            due: false,
            ..
        }) = &self.link
        else {
            return;
        };
        let (their_n, our_n, their_verdict) = theirs;
        if *their_n != got.n || *our_n != sent.n {
            return;
        }
        let verdict = lineage::decide(sent, got, self.config.rules);
        if verdict != *their_verdict {
            let retry_at = now + self.timers.shake;
            if let Some(link) = &mut self.link {
                link.shake = Shake::Disagree { retry_at };
            }
            return self.event(EventKind::HandshakeRetry);
        }
        if *sent != self.hello(sent.n) {
            // Facts changed since we said them (row 0).
            self.event(EventKind::HandshakeRetry);
            self.refresh_hello(now);
            return;
        }
        self.execute(now, verdict);
    }

    fn set_shake(&mut self, shake: Shake) {
        if let Some(link) = &mut self.link {
            link.shake = shake;
        }
    }

    fn execute(&mut self, now: Mono, verdict: Verdict) {
        let (source, plan) = match &verdict.kind {
            VerdictKind::Sync { source, plan, .. } => (*source, *plan),
            other => return self.idle(now, verdict.row, other.clone()),
        };
        self.failover_id = failover_id(verdict.epoch);
        self.event(EventKind::Agreed { row: verdict.row, source_here: source == self.me, plan: Some(plan) });
        if source == self.me {
            self.begin_source(now, verdict, plan);
        } else {
            self.begin_target(now, verdict, plan);
        }
    }

    fn idle(&mut self, now: Mono, row: u8, kind: VerdictKind) {
        self.event(EventKind::Agreed { row, source_here: false, plan: None });
        let split = matches!(kind, VerdictKind::SplitBrain { .. });
        let stops = matches!(kind, VerdictKind::SplitBrain { keeps } if keeps != self.me);
        self.set_shake(Shake::Idle(kind));
        if split {
            self.event(EventKind::SplitBrain);
        }
        if stops {
            // `alone` stays: both histories are still there when the two meet again. `behind` bars a start by record.
            self.release(Gate::Shut);
            self.set_tombstone(None);
            self.persist_with(|d| d.behind = true);
            self.wait(now, Why::SplitBrain);
        }
    }

    fn begin_source(&mut self, now: Mono, verdict: Verdict, plan: Plan) {
        let deadline = now + self.timers.shake;
        // From here on the peer may be a standby of the next session: an older "I yielded" is void.
        self.yields_void = true;
        if matches!(plan, Plan::Replay { .. }) {
            return self.set_shake(Shake::AwaitTarget { verdict, deadline });
        }
        // Alone: what the target held was made durable before the claim was recorded.
        let alone = matches!(self.phase, Phase::Alone { .. });
        if !alone && self.config.rules.syncfs_before_overwrite && self.solid != Solid::Yes {
            let token = self.start_sync();
            let deadline = now + SYNC_MAX;
            return self.set_shake(Shake::SourceSync { verdict, token, deadline });
        }
        self.source_synced(now, verdict);
    }

    /// The source's disk holds everything: the target may give up its claim.
    pub(crate) fn source_synced(&mut self, now: Mono, verdict: Verdict) {
        self.send(PeerMessage::SourceReady { epoch: verdict.epoch });
        let deadline = now + self.timers.shake;
        self.set_shake(Shake::AwaitTarget { verdict, deadline });
    }

    fn begin_target(&mut self, now: Mono, verdict: Verdict, plan: Plan) {
        // Whatever we served ends here; the peer's history wins.
        if !matches!(self.phase, Phase::Second { .. } | Phase::Lost { .. } | Phase::Wait { .. }) {
            self.release(Gate::Shut);
            self.set_tombstone(None);
            self.wait(now, Why::PeerAlone);
        }
        if matches!(plan, Plan::Replay { .. }) {
            return self.target_go(now, verdict);
        }
        let deadline = now + SYNC_MAX + self.timers.shake;
        self.set_shake(Shake::AwaitSource { verdict, deadline });
    }

    fn source_ready(&mut self, now: Mono, epoch: Epoch) {
        let verdict = match &self.link {
            Some(Link { shake: Shake::AwaitSource { verdict, .. }, .. }) if verdict.epoch == epoch => {
                verdict.clone()
            }
            _ => return,
        };
        self.target_go(now, verdict);
    }

    /// Target: record, tell, open.
    fn target_go(&mut self, now: Mono, verdict: Verdict) {
        let VerdictKind::Sync { plan, cur, .. } = verdict.kind else { return };
        let Some(got) = self.link.as_ref().and_then(|l| l.got.clone()) else { return };
        let replay = matches!(plan, Plan::Replay { .. });
        self.close_stream();
        let epoch = verdict.epoch;
        self.persist_with(|d| {
            raise(&mut d.epoch, epoch);
            (d.owner, d.grant) = grant_of(&got, cur);
            d.alone = false;
            d.peer_outdated = false;
            d.last_primary = false;
            d.behind = false;
            d.handed = None;
            if !replay {
                d.intact_boot = None;
                d.clean = false;
                // On record, because `last_primary` and the lineage no longer tell.
                let keeps = plan == Plan::FullCompare { quarantine: true };
                let damage = if keeps { Damage::Returning } else { Damage::Resync };
                d.inconsistent = Some(Inconsistent { source: cur, damage });
            }
        });
        self.yielded = None;
        self.undecide();
        self.replaced = false;
        self.adopted(self.me.peer());
        self.solid = Solid::No;
        self.probing = crate::engine::cluster::Probing::default();
        self.send(PeerMessage::TargetReady { epoch });
        self.set_shake(Shake::Session(epoch));
        self.phase = Phase::Second { ready: replay, syncing: None };
        self.eligible = replay.then_some(epoch);
        self.set_tombstone(replay.then_some(Tombstone { epoch, role: StreamRole::Target }));
        self.set_gate(Gate::ReadOnly);
        self.open_stream(StreamRole::Target, epoch, plan);
        self.heard = Some(now);
        if replay {
            self.forget_hellos();
        } else {
            // UpToDate comes only after the source has read what was just sent, so its hold counts from no
            // earlier than now, also when it dies before the first heartbeat that says so.
            self.word = Some(now);
            self.event(EventKind::ResyncStarted);
        }
    }

    /// Source: the target's record is durable.
    fn target_ready(&mut self, now: Mono, epoch: Epoch) {
        let verdict = match &self.link {
            Some(Link { shake: Shake::AwaitTarget { verdict, .. }, .. }) if verdict.epoch == epoch => {
                verdict.clone()
            }
            _ => return,
        };
        let VerdictKind::Sync { plan, cur, .. } = verdict.kind else { return };
        self.replaced = false;
        self.adopted(self.me);
        self.yielded = None;
        self.yields_void = false;
        self.undecide();
        self.eligible = None;
        self.probing = crate::engine::cluster::Probing::default();
        self.set_shake(Shake::Session(epoch));
        self.forget_hellos();
        self.heard = Some(now);
        if matches!(plan, Plan::Replay { .. }) {
            self.persist_with(|d| {
                raise(&mut d.epoch, epoch);
                d.last_primary = true;
                d.behind = false;
                d.handed = None;
            });
            self.open_stream(StreamRole::Source, epoch, plan);
            self.solid = Solid::No;
            self.serve_replicated(now, epoch, true);
            return self.event(EventKind::Thawed);
        }
        let (me, boot) = (self.me, self.boot_id);
        self.set_tombstone(None);
        self.persist_with(|d| {
            raise(&mut d.epoch, epoch);
            if cur != d.cur {
                d.owner = Some(me);
                d.grant = cur.0;
                lineage::mint(d, cur);
            }
            d.alone = true;
            d.peer_outdated = true;
            d.last_primary = true;
            d.intact_boot = Some(boot);
            d.inconsistent = None;
            d.behind = false;
            d.handed = None;
        });
        self.open_stream(StreamRole::Source, epoch, plan);
        self.event(EventKind::ResyncStarted);
        match &self.phase {
            Phase::Alone { .. } => self.set_gate(Gate::Alone { epoch }),
            _ => self.enter_alone(now, now),
        }
    }

    /// Gate, VIP, services as the writer with a session.
    pub(crate) fn serve_replicated(&mut self, now: Mono, epoch: Epoch, standby: bool) {
        self.set_tombstone(Some(Tombstone { epoch, role: StreamRole::Source }));
        self.phase = Phase::Prim { standby, stable_since: standby.then_some(now) };
        if !self.is_writer() {
            self.emit(Effect::InvalidateCaches);
        }
        self.set_gate(Gate::Replicated { epoch });
        self.add_vips();
        self.start_services();
    }

    pub(crate) fn stream_closed(&mut self, now: Mono, token: Token, facts: StreamFacts) {
        if self.closing != Some(token) {
            return;
        }
        self.closing = None;
        // A writer or standby that has moved on since has no use for the old stream's facts.
        if self.stream.is_none()
            && matches!(self.phase, Phase::Frozen { .. } | Phase::Lost { .. } | Phase::Wait { .. })
        {
            self.facts = facts;
        }
        self.say_hello(now);
    }

    fn swap_refused(&mut self, why: SwapRefusal) {
        let ticket = self.swap_asked.take().map(|(ticket, _)| ticket);
        let hint = match why {
            SwapRefusal::NotPrimary => "the peer is not primary",
            SwapRefusal::StandbyNotReady => "wait until this node is UpToDate",
            SwapRefusal::Busy => "another operation is under way; try again",
        };
        self.refuse(ticket, "SKC-E0402", hint);
    }

    /// (source?, epoch) of the live session.
    pub(crate) fn session(&self) -> Option<Epoch> {
        match &self.link {
            Some(Link { shake: Shake::Session(epoch), .. }) => Some(*epoch),
            _ => None,
        }
    }

    /// The handshake is done: what was said in it is of no more use.
    pub(crate) fn forget_hellos(&mut self) {
        if let Some(link) = &mut self.link {
            (link.sent, link.got, link.theirs) = (None, None, None);
        }
    }

    /// The session goes on under a new number (hand-over).
    pub(crate) fn session_is(&mut self, epoch: Epoch) {
        self.set_shake(Shake::Session(epoch));
    }

    /// The peer told its facts and does not hold anything this node lacks.
    pub(crate) fn peer_harmless(&self) -> bool {
        let Some(Link {
            sent: Some(sent), got: Some(got), shake: Shake::Idle(VerdictKind::NotStarted), ..
        }) = &self.link
        else {
            return false;
        };
        let started = |h: &Hello| Hello {
            started: true,
            tree: crate::engine::io::TreeState::Ok { empty: false, stamp_ok: true },
            ..h.clone()
        };
        let verdict = lineage::decide(&started(sent), &started(got), self.config.rules);
        matches!(verdict.kind, VerdictKind::Sync { source, .. } if source == self.me)
    }
}

/// Numbers only grow.
pub(crate) fn raise(mine: &mut Epoch, other: Epoch) {
    mine.g = mine.g.max(other.g);
    mine.s = mine.s.max(other.s);
}

/// Identity of the grant a source goes on under: the one minted with `cur`, or its own.
fn grant_of(source: &Hello, cur: Generation) -> (Option<NodeId>, u128) {
    if cur == source.cur { (source.owner, source.grant) } else { (Some(source.node), cur.0) }
}

/// Groups the events of one change of session.
pub(crate) fn failover_id(epoch: Epoch) -> u64 {
    (epoch.g << 32) | (epoch.s & 0xffff_ffff)
}
