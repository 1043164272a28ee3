//! Two machines, their network and one cluster: the world in which the decision core is tried out.
//!
//! Runs exactly `engine::Cluster::step`. One effect is one transition, so a power cut between any two effects
//! is a state of its own. Data are reduced to numbered writes: a tree is a set of them, with a volatile (page
//! cache) and a durable copy. Assumptions that the real layers must meet are the driver's contract in `engine::io`.
//!
//! Time: one clock for both nodes (only differences mean anything to the core), moved from deadline to
//! deadline; a deadline may fire up to `JITTER` late, and which node fires first is free. Messages arrive
//! before time moves unless the link is cut; then they arrive late, or never.

use skc::base::{Epoch, Mono, NodeId, OpSeq};
use skc::engine::{
    Cluster, Config, Durable, Effect, Gate, Input, LinkId, OperatorCommand, PeerMessage, Plan, ProbeResult,
    ServiceState, StreamFacts, StreamLoss, StreamRole, Ticket, Token, Tombstone, TreeState, WitnessState,
};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// How late a deadline may fire (the core's own slack at T = 2 s is 125 ms).
pub const JITTER: u64 = 50;
/// A sync ends before this many deadlines have passed: long enough to be overtaken by every other wait.
pub const SYNC_STEPS: u8 = 2;
/// Where every state's clock is put, so that only differences count.
pub const NOW: Mono = Mono(1_000_000);

/// A core behind a shared pointer with its hash: most transitions leave at least one core alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    cluster: Arc<Cluster>,
    hash: u64,
}

impl Core {
    fn new(cluster: Cluster) -> Self {
        let mut core = Self { cluster: Arc::new(cluster), hash: 0 };
        core.change(|_| ());
        core
    }

    fn change<T>(&mut self, f: impl FnOnce(&mut Cluster) -> T) -> T {
        let cluster = Arc::make_mut(&mut self.cluster);
        let result = f(cluster);
        let mut hasher = DefaultHasher::new();
        cluster.hash(&mut hasher);
        self.hash = hasher.finish();
        result
    }
}

impl Hash for Core {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl std::ops::Deref for Core {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// A tree: bit `w` = write `w` is in it.
pub type Tree = u8;

/// What goes through a data stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frame {
    Write {
        seq: u64,
        write: u8,
    },
    /// The resync as one step: the source's tree at this position.
    Fill {
        seq: u64,
        tree: Tree,
    },
    Marker {
        tree: Tree,
    },
}

/// What comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ack {
    Write { seq: u64 },
    Filled,
}

/// One end of a data stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stream {
    pub role: StreamRole,
    pub epoch: Epoch,
    /// Source: the resync's Fill is still to be sent.
    pub fill_due: bool,
    /// Target: stopped at the marker until released.
    pub at_marker: bool,
    /// The connection is gone: nothing more enters it; what was sent may still arrive.
    pub severed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub powered: bool,
    pub core: Option<Core>,
    pub boots: u8,
    pub lives: u8,
    pub disk: Option<Durable>,
    pub cache: Tree,
    pub durable: Tree,
    pub queue: VecDeque<Effect>,
    pub inbox: VecDeque<Input>,
    pub gate: Gate,
    pub stream: Option<Stream>,
    /// Frames on their way to this node, with the epoch of their session.
    pub frames: VecDeque<(Epoch, Frame)>,
    pub acks: VecDeque<(Epoch, Ack)>,
    /// Applied here, answer still waiting.
    pub parked: Vec<(u64, u8)>,
    pub seq: u64,
    pub applied: Option<u64>,
    pub syncs: Vec<(Token, Tree)>,
    /// Time steps the oldest of them has taken.
    pub sync_age: u8,
    pub drain: Option<Token>,
    /// Run, end of the window, seen something answer.
    pub probe: Option<(Token, Mono, bool)>,
    pub vips: bool,
    pub tombstone: Option<Tombstone>,
    pub services: bool,
}

/// The control link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Conn {
    pub id: u64,
    pub up: [bool; 2],
    pub broken: bool,
    pub to: [VecDeque<PeerMessage>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Net {
    Ok,
    /// Links and heartbeats between the nodes are cut; probes and witness still pass.
    Cut,
    /// One node reaches nothing.
    Isolated(NodeId),
    /// Heartbeats from this node are lost; the rest passes.
    OneWay(NodeId),
}

/// An acknowledged write and who is answerable for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Promise {
    pub acked: bool,
    /// Nodes that held it when it was acknowledged (or became UpToDate with it).
    pub holders: [bool; 2],
    /// Nodes that lost power since they got it ...
    pub cut: [bool; 2],
    /// ... while it was not durable there (some bytes may have reached the disk by luck).
    pub lost: [bool; 2],
}

impl Promise {
    /// Node `n` holds it (again).
    fn got(&mut self, n: NodeId) {
        self.cut[ix(n)] = false;
        self.lost[ix(n)] = false;
    }
}

/// Remaining faults and commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    pub power: [u8; 2],
    pub cuts: u8,
    pub isolations: [u8; 2],
    pub one_way: [u8; 2],
    pub agent: [u8; 2],
    pub tombstones: u8,
    pub swaps: u8,
    pub stops: [u8; 2],
    pub reboots: [u8; 2],
    pub apply_errors: u8,
    pub persist_errors: u8,
}

/// Deliberate faults of the *layers around* the core, to show that the checks would notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Sabotage {
    /// The replica acknowledges behind the marker before it is released.
    pub acks_before_release: bool,
    /// `CloseStream` forgets to drop the apply queue.
    pub queue_survives_close: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub now: Mono,
    pub nodes: [Node; 2],
    pub net: Net,
    pub conn: Conn,
    pub promises: [Promise; 4],
    pub next_write: u8,
    pub budget: Budget,
    pub sabotage: Sabotage,
    /// The newest epoch anyone acknowledged in, and who.
    pub last_ack: Option<(Epoch, u128, NodeId)>,
    pub violation: Option<&'static str>,
    /// Was each node a writer since the start of the exploration (for reachability)?
    pub config: Config,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Exec(NodeId),
    Feed(NodeId),
    Deliver(NodeId),
    LinkNotice(NodeId),
    Connect,
    Apply(NodeId),
    AckIn(NodeId),
    Fill(NodeId),
    SyncDone(NodeId),
    DrainDone(NodeId),
    ProbeSeen(NodeId),
    Advance(NodeId),
    Write(NodeId),
    Cut,
    Isolate(NodeId),
    OneWay(NodeId),
    Heal,
    /// The mask says which unsynced writes happened to reach the disk.
    Power(NodeId, Tree),
    PowerOn(NodeId),
    AgentDies(NodeId),
    AgentStarts(NodeId),
    Tombstone(NodeId),
    Swap,
    Stop(NodeId),
    Reboot(NodeId),
    Start(NodeId),
    /// The end of an orderly reboot: everything was flushed.
    CameBack(NodeId),
    ApplyError(NodeId),
    PersistError(NodeId),
}

pub const BOTH: [NodeId; 2] = [NodeId::A, NodeId::B];

pub fn ix(n: NodeId) -> usize {
    match n {
        NodeId::A => 0,
        NodeId::B => 1,
    }
}

impl Node {
    fn new() -> Self {
        Self {
            powered: false,
            core: None,
            boots: 0,
            lives: 0,
            disk: None,
            cache: 0,
            durable: 0,
            queue: VecDeque::new(),
            inbox: VecDeque::new(),
            gate: Gate::ReadOnly,
            stream: None,
            frames: VecDeque::new(),
            acks: VecDeque::new(),
            parked: Vec::new(),
            seq: 0,
            applied: None,
            syncs: Vec::new(),
            sync_age: 0,
            drain: None,
            probe: None,
            vips: false,
            tombstone: None,
            services: false,
        }
    }

    fn busy(&self) -> bool {
        self.core.is_some() && (!self.queue.is_empty() || !self.inbox.is_empty())
    }

    fn no_data(&self) -> bool {
        self.core.is_some() && self.stream.is_none() && self.frames.is_empty() && self.acks.is_empty()
    }

    pub fn writes_pass(&self) -> bool {
        self.core.is_some() && matches!(self.gate, Gate::Replicated { .. } | Gate::Alone { .. })
    }

    /// The worker is gone: everything that lived in it. The page cache stays.
    fn forget_worker(&mut self) {
        self.core = None;
        self.queue.clear();
        self.inbox.clear();
        self.gate = Gate::ReadOnly;
        self.stream = None;
        self.frames.clear();
        self.acks.clear();
        self.parked.clear();
        self.applied = None;
        self.syncs.clear();
        self.sync_age = 0;
        self.drain = None;
        self.probe = None;
        self.vips = false;
        self.services = false;
    }
}

impl World {
    /// Both machines off, both directories empty.
    pub fn new(config: Config) -> Self {
        Self {
            now: NOW,
            nodes: [Node::new(), Node::new()],
            net: Net::Ok,
            conn: Conn::default(),
            promises: [Promise::default(); 4],
            next_write: 0,
            budget: Budget::default(),
            sabotage: Sabotage::default(),
            last_ack: None,
            violation: None,
            config,
        }
    }

    /// A world whose pair has come up by itself and is PRIM + SECOND.
    pub fn ready(config: Config) -> Self {
        let mut world = Self::new(config);
        assert!(world.settle_down(20_000), "the pair does not come up: {world:?}");
        assert!(world.is_ready(), "{world:?}");
        // The first heartbeats pass both ways.
        for n in [NodeId::A, NodeId::B, NodeId::A, NodeId::B] {
            world.act(Action::Advance(n));
        }
        world.normalise();
        world
    }

    pub fn node(&self, n: NodeId) -> &Node {
        &self.nodes[ix(n)]
    }

    pub fn node_mut(&mut self, n: NodeId) -> &mut Node {
        &mut self.nodes[ix(n)]
    }

    fn fail(&mut self, what: &'static str) {
        self.violation.get_or_insert(what);
    }

    fn linked(&self) -> bool {
        matches!(self.net, Net::Ok | Net::OneWay(_))
    }

    /// Does the kernel of `n` answer the other node's probes?
    fn answers(&self, n: NodeId) -> bool {
        self.node(n).powered && !matches!(self.net, Net::Isolated(_))
    }

    // ---- the core's side ----

    fn input(&mut self, n: NodeId, input: Input) {
        let now = self.now;
        if let Some(core) = &mut self.node_mut(n).core {
            let effects = core.change(|core| core.step(now, input));
            self.node_mut(n).queue.extend(effects);
        }
        self.run_invisible(n);
        self.check_lone_claims();
    }

    /// Effects that no other part of the world can observe in between are executed at once.
    fn run_invisible(&mut self, n: NodeId) {
        while let Some(effect) = self.node(n).queue.front() {
            match effect {
                Effect::Event(_)
                | Effect::OperatorDone { .. }
                | Effect::InvalidateCaches
                | Effect::AcceptTree
                | Effect::SetTombstone(_)
                | Effect::AddVips
                | Effect::DropVips
                | Effect::StartServices
                | Effect::StopServices => {
                    if let Some(effect) = self.node_mut(n).queue.pop_front() {
                        self.execute(n, effect);
                    }
                }
                _ => return,
            }
        }
    }

    fn execute(&mut self, n: NodeId, effect: Effect) {
        let peer = n.peer();
        let linked = self.linked();
        match effect {
            Effect::Persist(record) => self.node_mut(n).disk = Some(*record),
            Effect::Send(message) => {
                if self.conn.up[ix(n)] && !self.conn.broken && linked {
                    self.conn.to[ix(peer)].push_back(*message);
                }
            }
            Effect::CloseLink(id) => {
                if self.conn.up[ix(n)] && self.conn.id == id.0 {
                    self.drop_link(n);
                }
            }
            Effect::Gate(gate) => self.set_gate(n, gate),
            Effect::OpenStream { role, epoch, plan } => self.open_stream(n, role, epoch, plan),
            Effect::CloseStream { token } => {
                let keep = self.sabotage.queue_survives_close;
                let node = self.node_mut(n);
                let facts = StreamFacts {
                    replay_from: Some(OpSeq(node.parked.first().map_or(node.seq + 1, |(seq, _)| *seq))),
                    applied: node.applied.map(OpSeq),
                };
                if !keep || node.stream.as_ref().is_some_and(|s| s.role == StreamRole::Source) {
                    node.stream = None;
                    node.frames.clear();
                }
                node.acks.clear();
                node.drain = None;
                node.inbox.push_back(Input::StreamClosed { token, facts });
            }
            Effect::MarkUpToDate { epoch } => {
                let tree = self.node(n).cache;
                self.send_frame(n, epoch, Frame::Marker { tree });
            }
            Effect::ReleaseMarker { epoch } => {
                let holder = ix(n);
                let tree = self.node(n).cache;
                for (w, promise) in self.promises.iter_mut().enumerate() {
                    if promise.acked && tree & (1 << w) != 0 {
                        promise.holders[holder] = true;
                    }
                }
                if let Some(stream) = &mut self.node_mut(n).stream
                    && stream.epoch == epoch
                {
                    stream.at_marker = false;
                }
            }
            Effect::Syncfs { token } => {
                let node = self.node_mut(n);
                let tree = node.cache;
                node.syncs.push((token, tree));
            }
            Effect::Drain { token } => self.node_mut(n).drain = Some(token),
            Effect::StartProbe { token, window } => {
                let end = self.now + window;
                let seen = self.answers(peer);
                self.node_mut(n).probe = Some((token, end, seen));
            }
            Effect::AddVips => self.node_mut(n).vips = true,
            Effect::DropVips => self.node_mut(n).vips = false,
            Effect::SetTombstone(tombstone) => self.node_mut(n).tombstone = tombstone,
            Effect::StartServices => self.node_mut(n).services = true,
            Effect::StopServices => {
                let node = self.node_mut(n);
                node.services = false;
                node.inbox.push_back(Input::Services(ServiceState::Stopped));
            }
            Effect::InvalidateCaches
            | Effect::Event(_)
            | Effect::OperatorDone { .. }
            | Effect::AcceptTree => {}
        }
    }

    fn drop_link(&mut self, n: NodeId) {
        self.conn.up[ix(n)] = false;
        self.conn.broken = true;
        self.conn.to[ix(n)].clear();
        if self.conn.up == [false, false] {
            self.conn = Conn::default();
        }
    }

    // ---- the data path ----

    fn set_gate(&mut self, n: NodeId, gate: Gate) {
        let node = self.node_mut(n);
        node.gate = gate;
        match gate {
            Gate::Alone { epoch } => {
                let parked = std::mem::take(&mut node.parked);
                for (_, write) in parked {
                    self.acknowledge(n, epoch, write, [n == NodeId::A, n == NodeId::B]);
                }
            }
            Gate::Shut | Gate::ReadOnly => node.parked.clear(),
            Gate::Frozen | Gate::Replicated { .. } => {}
        }
        self.check_writer(n);
    }

    fn open_stream(&mut self, n: NodeId, role: StreamRole, epoch: Epoch, plan: Plan) {
        let node = self.node_mut(n);
        let full = matches!(plan, Plan::FullCompare { .. } | Plan::SeedEmpty | Plan::Ranges);
        node.stream = Some(Stream {
            role,
            epoch,
            fill_due: full && role == StreamRole::Source,
            at_marker: false,
            severed: false,
        });
        match role {
            StreamRole::Target => {
                if plan == Plan::Continue {
                    node.applied = Some(node.seq);
                } else if full {
                    node.applied = None;
                }
                node.frames.retain(|(of, _)| *of == epoch);
            }
            StreamRole::Source => {
                node.acks.clear();
                if plan == Plan::Continue {
                    node.seq = node.applied.unwrap_or(node.seq);
                }
                node.applied = None;
                if let Plan::Replay { applied } = plan {
                    for (seq, write) in node.parked.clone() {
                        if seq > applied.0 {
                            self.send_frame(n, epoch, Frame::Write { seq, write });
                        }
                    }
                    // The target had these; only the answers were missing.
                    let had: Vec<_> =
                        self.node(n).parked.iter().copied().filter(|(s, _)| *s <= applied.0).collect();
                    self.node_mut(n).parked.retain(|(s, _)| *s > applied.0);
                    for (_, write) in had {
                        self.acknowledge(n, epoch, write, [true, true]);
                    }
                }
            }
        }
    }

    fn send_frame(&mut self, n: NodeId, epoch: Epoch, frame: Frame) {
        let peer = n.peer();
        let open = self.node(n).stream.as_ref().is_some_and(|s| !s.severed);
        if open && self.linked() && self.node(peer).core.is_some() {
            self.node_mut(peer).frames.push_back((epoch, frame));
        }
    }

    fn acknowledge(&mut self, n: NodeId, epoch: Epoch, write: u8, holders: [bool; 2]) {
        let promise = &mut self.promises[write as usize];
        if promise.acked {
            return;
        }
        promise.acked = true;
        promise.holders = holders;
        let grant = self.node(n).core.as_ref().map_or(0, |c| c.record().grant);
        if let Some((last, last_grant, who)) = self.last_ack
            && who != n
            && (epoch < last || (epoch == last && grant == last_grant))
        {
            self.fail("two nodes acknowledged in one epoch, or an older one after a newer");
        }
        if self.last_ack.is_none_or(|(last, _, _)| epoch >= last) {
            self.last_ack = Some((epoch, grant, n));
        }
        self.check_writer(n);
    }

    /// Every promise that still binds must be in the tree of whoever may write.
    fn check_writer(&mut self, n: NodeId) {
        if !self.node(n).writes_pass() {
            return;
        }
        let tree = self.node(n).cache;
        let broken = self.promises.iter().enumerate().any(|(w, p)| {
            // Every holder lost power, and one of them before it was durable: what a single machine
            // would have lost as well.
            let all_cut = p.holders.iter().zip(p.cut).all(|(held, cut)| !held || cut);
            let excused = all_cut && p.holders.iter().zip(p.lost).any(|(held, lost)| *held && lost);
            p.acked && !excused && tree & (1 << w) == 0
        });
        if broken {
            self.fail("an acknowledged write is not in the writer's tree");
        }
    }

    /// Stronger than "never two acknowledge in one epoch": never two lone claims at once.
    fn check_lone_claims(&mut self) {
        let claim = |n: &Node| {
            n.core.as_ref().is_some_and(|c| {
                let open = matches!(n.gate, Gate::Alone { .. });
                c.record().alone && !c.record().behind && c.record().inconsistent.is_none() && open
            })
        };
        if claim(&self.nodes[0]) && claim(&self.nodes[1]) {
            self.fail("both nodes went on alone");
        }
    }

    fn apply(&mut self, n: NodeId) {
        let Some((epoch, frame)) = self.node_mut(n).frames.pop_front() else { return };
        let peer = n.peer();
        let early = self.sabotage.acks_before_release;
        let newest = self.node(n).core.as_ref().map(|c| c.record().epoch);
        if newest.is_some_and(|newest| epoch < newest) {
            self.fail("a standby applied a frame of an older epoch");
        }
        let mut answer = None;
        match frame {
            Frame::Write { seq, write } => {
                self.promises[write as usize].got(n);
                let node = self.node_mut(n);
                node.cache |= 1 << write;
                node.applied = Some(seq);
                answer = Some(Ack::Write { seq });
            }
            Frame::Fill { seq, tree } => {
                for (w, promise) in self.promises.iter_mut().enumerate() {
                    if tree & (1 << w) != 0 {
                        promise.got(n);
                    }
                }
                let node = self.node_mut(n);
                node.cache = tree;
                node.applied = Some(seq);
                answer = Some(Ack::Filled);
            }
            Frame::Marker { tree } => {
                let node = self.node_mut(n);
                let equal = node.cache == tree;
                if let Some(stream) = &mut node.stream {
                    stream.at_marker = !early;
                }
                node.inbox.push_back(Input::MarkerReached { s: epoch.s });
                if !equal {
                    self.fail("trees differ at the end of a resync");
                }
            }
        }
        let open = self.node(n).stream.as_ref().is_some_and(|s| !s.severed);
        if let (Some(ack), true) = (answer, open && self.linked()) {
            self.node_mut(peer).acks.push_back((epoch, ack));
        }
    }

    fn can_apply(&self, n: NodeId) -> bool {
        let node = self.node(n);
        match (&node.stream, node.frames.front()) {
            (Some(s), Some((epoch, _))) => {
                let survives = self.sabotage.queue_survives_close;
                s.role == StreamRole::Target && !s.at_marker && (s.epoch == *epoch || survives)
            }
            _ => false,
        }
    }

    fn ack_in(&mut self, n: NodeId) {
        let Some((epoch, ack)) = self.node_mut(n).acks.pop_front() else { return };
        match ack {
            Ack::Filled => self.node_mut(n).inbox.push_back(Input::ResyncDone { s: epoch.s }),
            Ack::Write { seq } => {
                let counts = match self.node(n).gate {
                    Gate::Replicated { epoch: gate } => gate == epoch,
                    Gate::Frozen => true,
                    _ => false,
                };
                if counts {
                    let done: Vec<_> =
                        self.node(n).parked.iter().copied().filter(|(s, _)| *s <= seq).collect();
                    self.node_mut(n).parked.retain(|(s, _)| *s > seq);
                    for (_, write) in done {
                        self.acknowledge(n, epoch, write, [true, true]);
                    }
                }
            }
        }
    }

    fn write(&mut self, n: NodeId) {
        let write = self.next_write;
        self.next_write += 1;
        self.budget.writes -= 1;
        let node = self.node_mut(n);
        node.seq += 1;
        node.cache |= 1 << write;
        let seq = node.seq;
        let source = node.stream.as_ref().filter(|s| s.role == StreamRole::Source).map(|s| s.epoch);
        let gate = node.gate;
        if let Gate::Replicated { .. } = gate {
            node.parked.push((seq, write));
        }
        if let Some(epoch) = source {
            self.send_frame(n, epoch, Frame::Write { seq, write });
        }
        if let Gate::Alone { epoch } = gate {
            self.acknowledge(n, epoch, write, [n == NodeId::A, n == NodeId::B]);
        }
    }

    // ---- faults and returns ----

    fn start_worker(&mut self, n: NodeId) {
        let (now, config) = (self.now, self.config.clone());
        let node = self.node_mut(n);
        node.lives += 1;
        let boot = u128::from(node.boots) * 2 + ix(n) as u128 + 10;
        let seed = (u128::from(node.lives) << 8) | ix(n) as u128;
        let core = Cluster::new(n, boot, seed, config, node.disk.clone(), now);
        node.core = Some(Core::new(core));
        node.tombstone = None;
        let empty = node.cache == 0 && node.disk.is_none();
        self.input(n, Input::LocalTree(TreeState::Ok { empty, stamp_ok: true }));
    }

    fn agent_dies(&mut self, n: NodeId) {
        if self.conn.up[ix(n)] {
            self.drop_link(n);
        }
        self.node_mut(n).forget_worker();
        self.sever_streams();
    }

    fn power(&mut self, n: NodeId, kept: Tree) {
        self.agent_dies(n);
        let holder = ix(n);
        let node = self.node_mut(n);
        let (cache, durable) = (node.cache, node.durable);
        let after = (durable & !(cache ^ durable)) | ((cache ^ durable) & kept);
        node.cache = after;
        node.durable = after;
        node.powered = false;
        node.tombstone = None;
        for (w, promise) in self.promises.iter_mut().enumerate() {
            if cache & (1 << w) != 0 {
                promise.cut[holder] = true;
                promise.lost[holder] |= durable & (1 << w) == 0;
            }
        }
    }

    fn connect(&mut self) {
        let id = self.conn.id + 1;
        self.conn = Conn { id, up: [true, true], broken: false, to: Default::default() };
        for n in BOTH {
            self.node_mut(n).inbox.push_back(Input::LinkUp { link: LinkId(id) });
        }
    }

    // ---- time ----

    /// When this node has something to do without anyone else.
    pub fn deadline(&self, n: NodeId) -> Option<Mono> {
        let node = self.node(n);
        let core = node.core.as_ref()?.next_deadline();
        let probe = node.probe.map(|(_, end, _)| end);
        match (core, probe) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn advance(&mut self, n: NodeId) {
        let Some(at) = self.deadline(n) else { return };
        self.now = self.now.max(at);
        for node in &mut self.nodes {
            node.sync_age += u8::from(!node.syncs.is_empty());
        }
        let now = self.now;
        self.exchange_heartbeats();
        if self.node(n).busy() {
            // The heartbeat's step did everything that was due; its effects come first.
            return;
        }
        if let Some((token, end, seen)) = self.node(n).probe
            && now >= end
        {
            let result = self.probe_result(n, seen);
            self.node_mut(n).probe = None;
            self.input(n, Input::Probe { token, result });
            return;
        }
        self.input(n, Input::Tick);
    }

    fn probe_result(&self, n: NodeId, seen: bool) -> ProbeResult {
        let answered = seen || self.answers(n.peer());
        let witness =
            if self.net == Net::Isolated(n) { WitnessState::Unreachable } else { WitnessState::Reachable };
        ProbeResult { vip_answered: answered && self.node(n.peer()).vips, peer_answered: answered, witness }
    }

    /// Heartbeats are frequent against every deadline: both ends are as fresh as the network allows.
    fn exchange_heartbeats(&mut self) {
        let now = self.now;
        for to in BOTH {
            let from = to.peer();
            let passes = match self.net {
                Net::Ok => true,
                Net::OneWay(mute) => from != mute,
                _ => false,
            };
            // Sent a moment ago: what the sender knew before this moment's words arrived.
            let body = self.node(from).core.as_ref().map(|c| c.heartbeat(now));
            if let (true, Some(mut body), true) = (passes, body, self.node(to).core.is_some()) {
                if self.net == Net::Ok {
                    // The stream of heartbeats between two deadlines, summed up in its last.
                    (body.heard_ms, body.sure_ms) = (Some(0), Some(0));
                }
                self.input(to, Input::Heartbeat(body));
            }
        }
    }

    /// Makes states equal that differ in nothing but the time of day.
    pub fn normalise(&mut self) {
        let (now, budget) = (self.now, self.budget);
        for node in &mut self.nodes {
            if let Some(core) = &mut node.core {
                let quiet = node.syncs.is_empty()
                    && node.drain.is_none()
                    && node.probe.is_none()
                    && node.queue.is_empty()
                    && node.inbox.is_empty()
                    && core.tokens_used();
                if now != NOW || quiet || core.can_forget() {
                    core.change(|core| {
                        core.rebase(now, NOW, budget.persist_errors == 0);
                        if quiet {
                            core.restart_tokens();
                        }
                    });
                }
            }
            if let Some((_, end, _)) = &mut node.probe {
                *end = Mono((end.0 + NOW.0).saturating_sub(now.0));
            }
        }
        self.now = NOW;
        let idle = self.nodes.iter().all(|n| !n.busy());
        if idle && self.conn.up == [true, true] && self.conn.id != 1 {
            self.conn.id = 1;
            for node in &mut self.nodes {
                if let Some(core) = &mut node.core {
                    core.change(|core| core.relabel_link(LinkId(1)));
                }
            }
        }
    }
}

// ---- what can happen ----

impl World {
    /// Everything that may happen next. Effects and local reports of a node go first: they commute
    /// with what the other node does, only faults of the same node make a difference in between.
    pub fn actions(&self, out: &mut Vec<Action>) {
        let busy: Vec<NodeId> = BOTH.into_iter().filter(|n| self.node(*n).busy()).collect();
        for n in &busy {
            let exec = !self.node(*n).queue.is_empty();
            out.push(if exec { Action::Exec(*n) } else { Action::Feed(*n) });
            if exec {
                self.faults_of(*n, out);
            }
        }
        if !busy.is_empty() {
            return;
        }
        // A handshake without data streams: what the two nodes read next commutes, whatever follows.
        if self.net == Net::Ok && !self.conn.broken && self.nodes.iter().all(Node::no_data) {
            let reads = |n: &NodeId| self.conn.up[ix(*n)] && !self.conn.to[ix(*n)].is_empty();
            if let Some(n) = BOTH.into_iter().find(reads) {
                out.push(Action::Deliver(n));
                self.local(n, out);
                self.faults_of(n, out);
                return;
            }
        }
        let before = out.len();
        self.network(out);
        let pressing = out.len() > before && self.net == Net::Ok;
        for n in BOTH {
            self.local(n, out);
            self.faults_of(n, out);
            self.commands(n, out);
        }
        if self.net == Net::Ok {
            if self.budget.cuts > 0 {
                out.push(Action::Cut);
            }
            for n in BOTH {
                if self.budget.isolations[ix(n)] > 0 {
                    out.push(Action::Isolate(n));
                }
                if self.budget.one_way[ix(n)] > 0 {
                    out.push(Action::OneWay(n));
                }
            }
        } else {
            out.push(Action::Heal);
        }
        if !pressing {
            self.time(out);
        }
    }

    /// Things that happen by themselves within moments while the network works.
    fn network(&self, out: &mut Vec<Action>) {
        for n in BOTH {
            if self.conn.up[ix(n)] && !self.conn.to[ix(n)].is_empty() {
                out.push(Action::Deliver(n));
            }
            if self.conn.up[ix(n)] && self.conn.broken {
                out.push(Action::LinkNotice(n));
            }
            if self.can_apply(n) {
                out.push(Action::Apply(n));
            }
            let node = self.node(n);
            let source = node.stream.as_ref().is_some_and(|s| s.role == StreamRole::Source);
            if source && !node.acks.is_empty() {
                out.push(Action::AckIn(n));
            }
            let feeds = node.stream.as_ref().is_some_and(|s| s.fill_due && self.reaches_target(n, s.epoch));
            if feeds {
                out.push(Action::Fill(n));
            }
        }
        let alive = self.nodes.iter().all(|n| n.core.is_some());
        if alive && self.linked() && self.conn.up != [true, true] {
            out.push(Action::Connect);
        }
    }

    fn reaches_target(&self, n: NodeId, epoch: Epoch) -> bool {
        let open = |s: &Stream| s.role == StreamRole::Target && s.epoch == epoch && !s.severed;
        self.linked() && self.node(n.peer()).stream.as_ref().is_some_and(open)
    }

    fn local(&self, n: NodeId, out: &mut Vec<Action>) {
        let node = self.node(n);
        if !node.powered {
            out.push(Action::PowerOn(n));
            return;
        }
        if node.core.is_none() {
            out.push(Action::AgentStarts(n));
            let claims = self.budget.tombstones > 0 && node.tombstone.is_some();
            if claims && self.linked() && self.node(n.peer()).core.is_some() {
                out.push(Action::Tombstone(n));
            }
            return;
        }
        if !node.syncs.is_empty() {
            out.push(Action::SyncDone(n));
        }
        if node.drain.is_some() && node.parked.is_empty() {
            out.push(Action::DrainDone(n));
        }
        if node.probe.is_some_and(|(_, _, seen)| seen) {
            out.push(Action::ProbeSeen(n));
        }
        if node.writes_pass() && self.budget.writes > 0 {
            out.push(Action::Write(n));
        }
    }

    fn faults_of(&self, n: NodeId, out: &mut Vec<Action>) {
        let node = self.node(n);
        if node.powered && self.budget.power[ix(n)] > 0 {
            let open = node.cache ^ node.durable;
            let mut kept = open;
            loop {
                out.push(Action::Power(n, kept));
                if kept == 0 {
                    break;
                }
                kept = (kept - 1) & open;
            }
        }
        if node.core.is_some() && self.budget.agent[ix(n)] > 0 {
            out.push(Action::AgentDies(n));
        }
        if self.budget.persist_errors > 0 && matches!(node.queue.front(), Some(Effect::Persist(_))) {
            out.push(Action::PersistError(n));
        }
        let target = node.stream.as_ref().is_some_and(|s| s.role == StreamRole::Target);
        if self.budget.apply_errors > 0 && target && node.queue.is_empty() && node.core.is_some() {
            out.push(Action::ApplyError(n));
        }
    }

    fn commands(&self, n: NodeId, out: &mut Vec<Action>) {
        let Some(core) = &self.node(n).core else { return };
        let view = core.view(self.now);
        if self.budget.swaps > 0 && view.standby_ready {
            out.push(Action::Swap);
        }
        let runs = view.role != skc::engine::Role::Stop;
        if runs && self.budget.stops[ix(n)] > 0 {
            out.push(Action::Stop(n));
        }
        if runs && self.budget.reboots[ix(n)] > 0 {
            out.push(Action::Reboot(n));
        }
        // While it still tells its peer, a start is refused: nothing new happens by asking.
        let leaving = view.reasons.iter().any(|reason| reason.code == "SKC-R0311");
        if !runs && !leaving {
            if core.record().stopped {
                out.push(Action::Start(n));
            } else if self.node(n).syncs.is_empty() {
                out.push(Action::CameBack(n));
            }
        }
    }

    fn time(&self, out: &mut Vec<Action>) {
        if self.nodes.iter().any(|n| n.sync_age >= SYNC_STEPS) {
            return;
        }
        let due = [self.deadline(NodeId::A), self.deadline(NodeId::B)];
        for n in BOTH {
            let Some(mine) = due[ix(n)] else { continue };
            let other = due[ix(n.peer())].map(|at| at.max(self.now) + JITTER);
            if other.is_none_or(|other| mine <= other) {
                out.push(Action::Advance(n));
            }
        }
    }

    /// Carries one action out.
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Exec(n) => {
                if let Some(effect) = self.node_mut(n).queue.pop_front() {
                    self.execute(n, effect);
                    self.run_invisible(n);
                }
            }
            Action::Feed(n) => {
                if let Some(input) = self.node_mut(n).inbox.pop_front() {
                    self.input(n, input);
                }
            }
            Action::Deliver(n) => {
                if let Some(message) = self.conn.to[ix(n)].pop_front() {
                    let link = LinkId(self.conn.id);
                    self.input(n, Input::Peer { link, message });
                }
            }
            Action::LinkNotice(n) => {
                let link = LinkId(self.conn.id);
                self.drop_link(n);
                self.input(n, Input::LinkDown { link });
            }
            Action::Connect => self.connect(),
            Action::Apply(n) => self.apply(n),
            Action::AckIn(n) => self.ack_in(n),
            Action::Fill(n) => {
                let node = self.node_mut(n);
                let (seq, tree) = (node.seq, node.cache);
                if let Some(stream) = &mut node.stream {
                    stream.fill_due = false;
                    let epoch = stream.epoch;
                    self.send_frame(n, epoch, Frame::Fill { seq, tree });
                }
            }
            Action::SyncDone(n) => {
                let node = self.node_mut(n);
                let (token, tree) = node.syncs.remove(0);
                node.sync_age = 0;
                // What was in the tree at the call and still is; what left the tree since may be gone on disk too.
                node.durable = (node.durable | tree) & node.cache;
                self.input(n, Input::Synced { token, ok: true });
            }
            Action::DrainDone(n) => {
                if let Some(token) = self.node_mut(n).drain.take() {
                    let epoch = self.node(n).stream.as_ref().map(|s| s.epoch);
                    let target = self.node(n.peer()).stream.as_ref().map(|s| s.epoch);
                    if epoch.is_some() && epoch == target && self.nodes[0].cache != self.nodes[1].cache {
                        self.fail("drained, but the trees differ");
                    }
                    self.input(n, Input::Drained { token });
                }
            }
            Action::ProbeSeen(n) => {
                if let Some((token, _, _)) = self.node_mut(n).probe.take() {
                    let result = self.probe_result(n, true);
                    self.input(n, Input::Probe { token, result });
                }
            }
            Action::Advance(n) => self.advance(n),
            Action::Write(n) => self.write(n),
            Action::Cut => {
                self.budget.cuts -= 1;
                self.sever(Net::Cut);
            }
            Action::Isolate(n) => {
                self.budget.isolations[ix(n)] -= 1;
                self.sever(Net::Isolated(n));
            }
            Action::OneWay(n) => {
                self.budget.one_way[ix(n)] -= 1;
                self.net = Net::OneWay(n);
            }
            Action::Heal => self.net = Net::Ok,
            Action::Power(n, kept) => {
                self.budget.power[ix(n)] -= 1;
                self.power(n, kept);
            }
            Action::PowerOn(n) => {
                let node = self.node_mut(n);
                node.powered = true;
                node.boots += 1;
                self.start_worker(n);
            }
            Action::AgentDies(n) => {
                self.budget.agent[ix(n)] -= 1;
                self.agent_dies(n);
            }
            Action::AgentStarts(n) => self.start_worker(n),
            Action::Tombstone(n) => {
                self.budget.tombstones -= 1;
                if let Some(tombstone) = self.node(n).tombstone {
                    self.input(n.peer(), Input::Tombstone(tombstone));
                }
            }
            Action::Swap => {
                self.budget.swaps -= 1;
                let now = self.now;
                let primary = BOTH
                    .into_iter()
                    .find(|n| self.node(*n).core.as_ref().is_some_and(|c| c.view(now).standby_ready));
                if let Some(n) = primary {
                    self.input(n, Input::Operator { ticket: Ticket(1), command: OperatorCommand::Swap });
                }
            }
            Action::Stop(n) => {
                self.budget.stops[ix(n)] -= 1;
                self.input(n, Input::Operator { ticket: Ticket(2), command: OperatorCommand::Stop });
            }
            Action::Start(n) => {
                self.input(n, Input::Operator { ticket: Ticket(3), command: OperatorCommand::Start });
            }
            Action::CameBack(n) => {
                self.agent_dies(n);
                let node = self.node_mut(n);
                node.durable = node.cache;
                node.boots += 1;
                self.start_worker(n);
            }
            Action::Reboot(n) => {
                self.budget.reboots[ix(n)] -= 1;
                self.input(n, Input::Shutdown { ticket: Ticket(4) });
            }
            Action::ApplyError(n) => {
                self.budget.apply_errors -= 1;
                if let Some(s) = self.node(n).stream.as_ref().map(|s| s.epoch.s) {
                    let why = StreamLoss::Apply { errno: 28 };
                    self.input(n, Input::StreamDown { s, why });
                }
            }
            Action::PersistError(n) => {
                self.budget.persist_errors -= 1;
                self.node_mut(n).queue.clear();
                self.input(n, Input::PersistFailed);
            }
        }
    }

    fn sever_streams(&mut self) {
        for node in &mut self.nodes {
            if let Some(stream) = &mut node.stream {
                stream.severed = true;
            }
        }
    }

    fn sever(&mut self, net: Net) {
        self.net = net;
        self.conn.broken = self.conn.up != [false, false];
        self.sever_streams();
    }

    // ---- no dead end ----

    /// PRIM with an UpToDate standby, nothing open.
    pub fn is_ready(&self) -> bool {
        let views: Vec<_> =
            self.nodes.iter().filter_map(|n| n.core.as_ref()).map(|c| c.view(self.now)).collect();
        views.len() == 2
            && views.iter().filter(|v| v.standby_ready && v.serving).count() == 1
            && views.iter().filter(|v| v.role == skc::engine::Role::Second).count() == 1
    }

    /// Faults stop, machines return, the network heals, operators do nothing but start what they
    /// stopped: runs on fairly. True if the pair is ready within `steps`, or says what it waits for.
    pub fn settle_down(&mut self, steps: usize) -> bool {
        self.budget = Budget::default();
        self.net = Net::Ok;
        let mut actions = Vec::new();
        for step in 0..steps {
            actions.clear();
            self.actions(&mut actions);
            let useful = actions.iter().copied().filter(|a| !matches!(a, Action::Write(_)));
            let useful: Vec<Action> = useful.collect();
            let quiet = useful.iter().all(|a| matches!(a, Action::Advance(_)));
            if quiet && (self.is_ready() || (step > steps / 2 && self.waits_for_operator())) {
                return true;
            }
            // Everything that happens by itself before time moves; alternate where there is a choice.
            let moves: Vec<Action> =
                useful.iter().copied().filter(|a| !matches!(a, Action::Advance(_))).collect();
            let next = if moves.is_empty() {
                useful.iter().copied().min_by_key(|a| match a {
                    Action::Advance(n) => self.deadline(*n),
                    _ => None,
                })
            } else {
                moves.get(step % moves.len()).copied()
            };
            match next {
                Some(action) => self.act(action),
                None => return self.is_ready() || self.waits_for_operator(),
            }
            if self.violation.is_some() {
                return false;
            }
        }
        self.is_ready() || self.waits_for_operator()
    }

    /// Every node that is not serving or standing by names a command.
    pub fn waits_for_operator(&self) -> bool {
        self.nodes.iter().filter_map(|n| n.core.as_ref()).any(|c| {
            let view = c.view(self.now);
            view.command.is_some() && view.command.is_some_and(|c| c.starts_with("adopt"))
        })
    }
}

impl World {
    /// A ready pair with equal trees may forget old writes: room for new ones.
    pub fn forget_writes(&mut self) {
        if self.nodes[0].cache != self.nodes[1].cache {
            self.fail("ready, but the trees differ");
        }
        for node in &mut self.nodes {
            (node.cache, node.durable) = (0, 0);
        }
        self.promises = [Promise::default(); 4];
        self.next_write = 0;
        self.last_ack = None;
    }

    /// One line per state for counter-examples.
    pub fn brief(&self) -> String {
        let node = |n: &Node| match &n.core {
            Some(core) => {
                let view = core.view(self.now);
                let why = view.reasons.first().map(|r| r.code.clone()).unwrap_or_default();
                let r = core.record();
                format!(
                    "{:?}/{:?} {why} {} gate {:?} tree {:02b}/{:02b} alone {} behind {} inc {} q{} in{} fr{} syncs{}",
                    view.role,
                    view.data,
                    r.epoch,
                    n.gate,
                    n.cache,
                    n.durable,
                    r.alone,
                    r.behind,
                    r.inconsistent.is_some(),
                    n.queue.len(),
                    n.inbox.len(),
                    n.frames.len(),
                    n.syncs.len()
                )
            }
            None => format!(
                "{} tree {:02b}/{:02b}",
                if n.powered { "no agent" } else { "off" },
                n.cache,
                n.durable
            ),
        };
        format!(
            "A: {} | B: {} | net {:?} acked {:?}",
            node(&self.nodes[0]),
            node(&self.nodes[1]),
            self.net,
            self.promises.iter().map(|p| p.acked).collect::<Vec<_>>()
        )
    }
}
