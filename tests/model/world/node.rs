//! One machine: its decision core, its tree with both copies, its queues, and what its layers hold.

use super::{Ack, Frame, Stream};
use skc::base::{Epoch, Mono};
use skc::engine::{Cluster, Durable, Effect, Gate, Input, Token, Tombstone};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A core behind a shared pointer with its hash: most transitions leave at least one core alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    cluster: Arc<Cluster>,
    hash: u64,
}

impl Core {
    pub(super) fn new(cluster: Cluster) -> Self {
        let mut core = Self { cluster: Arc::new(cluster), hash: 0 };
        core.change(|_| ());
        core
    }

    pub(super) fn change<T>(&mut self, f: impl FnOnce(&mut Cluster) -> T) -> T {
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
    /// Its disk answers nothing: no sync ends.
    pub sick: bool,
}

impl Node {
    pub(super) fn new() -> Self {
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
            sick: false,
        }
    }

    pub(super) fn busy(&self) -> bool {
        self.core.is_some() && (!self.queue.is_empty() || !self.inbox.is_empty())
    }

    pub(super) fn no_data(&self) -> bool {
        self.core.is_some() && self.stream.is_none() && self.frames.is_empty() && self.acks.is_empty()
    }

    pub fn writes_pass(&self) -> bool {
        self.core.is_some() && matches!(self.gate, Gate::Replicated { .. } | Gate::Alone { .. })
    }

    /// The worker is gone: everything that lived in it. The page cache stays.
    pub(super) fn forget_worker(&mut self) {
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
        self.sick = false;
    }
}
