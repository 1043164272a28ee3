//! Two machines, their network and one cluster: the world in which the decision core is tried out.
//!
//! Runs exactly `engine::Cluster::step`. One effect is one transition, so a power cut between any two effects
//! is a state of its own. Data are reduced to numbered writes: a tree is a set of them, with a volatile (page
//! cache) and a durable copy. Assumptions that the real layers must meet are the driver's contract in `engine::io`.
//!
//! Time: one clock for both nodes (only differences mean anything to the core), moved from deadline to
//! deadline; a deadline may fire up to `JITTER` late, and which node fires first is free. Messages arrive
//! before time moves unless the link is cut; then they arrive late, or never.

mod act;
mod actions;
mod effects;
mod faults;
mod network;
mod node;
mod promises;
mod settle;
mod streams;
mod time;

pub use actions::Action;
pub use network::{Conn, Net};
pub use node::{Core, Node, Tree};
pub use promises::Promise;
pub use streams::{Ack, Frame, Stream};
pub use time::{JITTER, NOW, SYNC_STEPS};

use skc::base::{Epoch, Mono, NodeId};
use skc::engine::Config;

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
    pub sick: [u8; 2],
}

impl Budget {
    /// No fault and no write.
    pub const NONE: Self = Self {
        writes: 0,
        power: [0, 0],
        cuts: 0,
        isolations: [0, 0],
        one_way: [0, 0],
        agent: [0, 0],
        tombstones: 0,
        swaps: 0,
        stops: [0, 0],
        reboots: [0, 0],
        apply_errors: 0,
        persist_errors: 0,
        sick: [0, 0],
    };
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
    /// What an agent starts with, a node each: a spec may have reached only one of them.
    pub config: [Config; 2],
}

pub const BOTH: [NodeId; 2] = [NodeId::A, NodeId::B];

pub fn ix(n: NodeId) -> usize {
    match n {
        NodeId::A => 0,
        NodeId::B => 1,
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
            config: [config.clone(), config],
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
}
