//! The fencing record (facts b3): everything a node must remember to never promote wrongly.
//!
//! The store writes it O_DIRECT|O_DSYNC into one of two checksummed slots; this is the value.
//!
//! On the disk it is MessagePack with named fields. A release reads records that lack a later field if
//! that one has a default, and ignores fields it does not know: a field whose meaning an older release
//! must not ignore needs a higher version of the slot, which an older release refuses (SKC-E2103).
//! Golden bytes: `tests/proto_wire/core.rs`.

use crate::base::{Epoch, Generation, NodeId};
use serde::{Deserialize, Serialize};

/// Longest remembered lineage. Older ancestors fall off: a peer that far back is "no common
/// ancestor known" and is refused until the operator adopts, never overwritten.
pub const HISTORY_MAX: usize = 32;

/// Why a tree is not a copy that may be promoted or be a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Damage {
    /// A resync was under way.
    Resync,
    /// The same, of a tree that may hold what nobody else has (a former primary's): what the resync
    /// replaces is kept, also when it begins anew.
    Returning,
    /// The standby could not apply an operation (`errno`): ENOSPC, EIO, EROFS. An eligible standby
    /// stays a prefix and is only Behind.
    Apply {
        /// Positive errno; 0 if unknown.
        errno: i32,
    },
    /// fsync, syncfs or close failed (fsyncgate: what is on disk is unknown).
    Sync,
    /// The tree's stamp does not match the state directory (one of them was restored).
    Stamp,
}

/// Mark of a tree that must be compared in full before it counts for anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Inconsistent {
    /// Lineage of the source it was being made equal to; zero if none.
    pub source: Generation,
    /// Why.
    pub damage: Damage,
}

/// The fencing record. Numbers only grow; see facts b3 for who sets and clears each flag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Durable {
    /// Highest adopted epoch.
    pub epoch: Epoch,
    /// Who holds grant `epoch.g`, and the random id of that lone decision: two sides that decide
    /// alone never share an epoch identity even when their numbers are equal (hole 34).
    pub owner: Option<NodeId>,
    /// Random id of grant `epoch.g`.
    pub grant: u128,
    /// Lineage of the tree; zero = never initialised.
    pub cur: Generation,
    /// The lineage `cur` was minted from.
    pub base: Generation,
    /// Ancestors, newest first, at most [`HISTORY_MAX`].
    pub history: Vec<Generation>,
    /// I may acknowledge without a peer.
    pub alone: bool,
    /// The peer itself said that it is out of date (clean leave, tombstone, resync target, yield).
    pub peer_outdated: bool,
    /// I was the writer of `cur`.
    pub last_primary: bool,
    /// Boot in which the tree has held every acknowledged operation without a power loss.
    pub intact_boot: Option<u128>,
    /// Stopped in an orderly way while intact, everything flushed: still intact at the next start.
    #[serde(default)]
    pub clean: bool,
    /// The peer may have acknowledged alone since the cut: never promote; still valid as a source.
    pub behind: bool,
    /// Set: not a usable copy.
    pub inconsistent: Option<Inconsistent>,
    /// The writer role was given away with this session number.
    pub handed: Option<u64>,
    /// The operator stopped the cluster on this node: do not start by yourself.
    pub stopped: bool,
    /// Boot of the node in which this record was written: tells a stop before the last boot from one after it.
    #[serde(default)]
    pub boot: Option<u128>,
}

impl Durable {
    /// Does the tree hold data of a known lineage?
    pub fn initialised(&self) -> bool {
        self.cur != Generation::default()
    }
}
