//! What two cores tell each other: over the ordered control link, and in heartbeats.
//!
//! Wire form is MessagePack, variants by name, structs as arrays in the order of their fields: a field
//! more, less or elsewhere is another protocol version, which the link negotiates before anything here is
//! sent. A message of another shape is refused as a whole. Golden bytes: `tests/proto_wire/core.rs`.

use crate::base::{Epoch, Generation, Millis, NodeId, OpSeq};
use crate::engine::durable::{Damage, Inconsistent};
use crate::engine::io::{Plan, TreeState};
use serde::{Deserialize, Serialize};

/// What a node is doing right now, as far as the peer's decisions need it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LiveRole {
    /// Stopped by the operator, or not started yet.
    #[default]
    Stop,
    /// Started, no right to serve.
    Wait,
    /// Acknowledges alone.
    Alone,
    /// Writer with a standby.
    Prim,
    /// Writer whose session is lost; nothing is acknowledged.
    Frozen,
    /// Standby (also while it is being resynced, and while it lost its primary).
    Second,
}

/// What a core puts into every heartbeat and reads from the peer's. Unordered, may be lost; every
/// decision that needs order goes over the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeartbeatBody {
    /// What the sender does.
    pub role: LiveRole,
    /// The sender's durable epoch.
    pub epoch: Epoch,
    /// The sender has acknowledged alone or may do so now.
    pub alone: bool,
    /// Services up and checkers content.
    pub ready: bool,
    /// Milliseconds since any heartbeat of this node reached the sender; `None`: not since its start.
    /// More than half of the timeout = one-way loss, which counts as lost on both sides (hole 9).
    pub heard_ms: Option<u64>,
    /// Age of the sender's evidence, the clock by which it will declare the loss of this node.
    /// The standby's deadline to decide counts from a word with fresh evidence only.
    pub sure_ms: Option<u64>,
    /// "I am the frozen writer of this epoch, we hear each other but have no session: please give up your claim."
    pub ask_yield: Option<Epoch>,
    /// "I durably gave up my claim to succeed you in this epoch" (I am Behind).
    pub yielded: Option<Epoch>,
}

/// Handshake fields (facts b6), a snapshot of the sender.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// Number of this hello on this link; a newer one replaces all older.
    pub n: u64,
    /// Sender.
    pub node: NodeId,
    /// The sender takes part (started). If not, nothing is decided.
    pub started: bool,
    /// Durable epoch.
    pub epoch: Epoch,
    /// Owner of grant `epoch.g`.
    pub owner: Option<NodeId>,
    /// Id of grant `epoch.g`.
    pub grant: u128,
    /// Lineage.
    pub cur: Generation,
    /// What `cur` was minted from.
    pub base: Generation,
    /// Ancestors.
    pub history: Vec<Generation>,
    /// See [`crate::engine::Durable`].
    pub alone: bool,
    /// See [`crate::engine::Durable`].
    pub last_primary: bool,
    /// `intact_boot` equals the running boot.
    pub intact: bool,
    /// See [`crate::engine::Durable`].
    pub inconsistent: Option<Inconsistent>,
    /// What the sender does now.
    pub role: LiveRole,
    /// Never left PRIM or frozen since it last had a session, and its list of unacknowledged
    /// frames is whole and starts no later than this position. `None`: replay is impossible.
    pub replay_from: Option<OpSeq>,
    /// Standby: last applied position in the lineage `cur`, if this agent knows it.
    pub applied: Option<OpSeq>,
    /// State of the local directory.
    pub tree: TreeState,
    /// Operator named this node as the source (`skc adopt`).
    pub adopt: Option<NodeId>,
    /// `adopt --force`: also against a verdict that would not ask.
    pub adopt_force: bool,
    /// Id the sender will use if it has to mint a lineage.
    pub mint: u128,
    /// `failover.preferredPrimary` as the sender's configuration has it (breaks ties of a split brain).
    pub preferred: Option<NodeId>,
    /// `heartbeat.timeout` as the sender's configuration has it: both count with the larger one.
    pub timeout: Millis,
    /// `heartbeat.interval`, likewise.
    pub interval: Millis,
}

/// Outcome of the decision table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VerdictKind {
    /// Go on: `source` feeds `target` by `plan`.
    Sync {
        /// Who is right.
        source: NodeId,
        /// How the other one gets equal.
        plan: Plan,
        /// The target held every acknowledged operation in memory: the source must sync its own
        /// disk before the target gives up that claim (hole 13 ii).
        target_was_intact: bool,
        /// Lineage both have once the target is UpToDate.
        cur: Generation,
    },
    /// Both never initialised and at least one holds data: the operator names the source.
    AskSource,
    /// Both hold acknowledged data the other has not: the operator names the source; `keeps` goes on meanwhile.
    SplitBrain {
        /// Who keeps serving until the operator decided (the other one stops).
        keeps: NodeId,
    },
    /// Neither tree is usable.
    BothInconsistent,
    /// No common ancestor is known: never overwrite.
    Unrelated,
    /// At least one side does not take part now.
    NotStarted,
    /// Neither side has a usable directory.
    NoTree,
}

/// Verdict with the epoch it opens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Verdict {
    /// What.
    pub kind: VerdictKind,
    /// Row of the decision table, for the event log.
    pub row: u8,
    /// (g, s) of the session that follows.
    pub epoch: Epoch,
}

/// Why a primary does not hand over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SwapRefusal {
    /// The asked node is not primary with a standby.
    NotPrimary,
    /// The standby is not UpToDate.
    StandbyNotReady,
    /// Another operation is under way.
    Busy,
}

/// Everything two cores of one cluster say over the ordered control link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Handshake.
    Hello(Box<Hello>),
    /// "For my hello `mine` and yours `yours` I decide this." Both must say the same.
    Verdict {
        /// The sender's hello number.
        mine: u64,
        /// The receiver's hello number.
        yours: u64,
        /// What the sender decided.
        verdict: Box<Verdict>,
    },
    /// Source: everything acknowledged so far is durable here, you may give up being intact.
    SourceReady {
        /// Session about to open.
        epoch: Epoch,
    },
    /// Target: the old queue is dead, my record is durable, you may open the stream.
    TargetReady {
        /// Session about to open.
        epoch: Epoch,
    },
    /// Target: marker applied, synced and recorded; from here on I am an eligible standby.
    UpToDate {
        /// Session.
        epoch: Epoch,
    },
    /// The writer role is yours with this epoch.
    Token {
        /// New session.
        epoch: Epoch,
    },
    /// The token arrived and is durable.
    TokenTaken {
        /// Session of the token.
        epoch: Epoch,
    },
    /// The sender stops in an orderly way and has durably given up any claim in this epoch.
    Leaving {
        /// Session it leaves.
        epoch: Epoch,
    },
    /// The receiver of `Leaving` has recorded that it goes on alone.
    LeaveTaken {
        /// Session that was left.
        epoch: Epoch,
    },
    /// The standby cannot apply any more and has given up its claim, on record.
    Ejected {
        /// Session it drops out of.
        epoch: Epoch,
        /// Why.
        damage: Damage,
    },
    /// Standby to primary: please hand over to me.
    SwapRequest,
    /// Primary to standby: not now.
    SwapRefused {
        /// Why.
        why: SwapRefusal,
    },
}
