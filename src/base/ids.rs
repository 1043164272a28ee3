//! Identifiers and monotone counters, one newtype each so that they cannot be confused.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of a ClusterSpec (`metadata.name`): unique within a pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(pub String);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of the two machines of a pair. The lower id breaks ties (facts b7 rows 2, 13, 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeId {
    /// The node whose name sorts first.
    A,
    /// The other one.
    B,
}

impl NodeId {
    /// The other node of the pair.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Epoch = (`g`, `s`), facts b1: `g` moves by a grant, `s` with every session and hand-over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch {
    /// Grant number.
    pub g: u64,
    /// Session number.
    pub s: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.g, self.s)
    }
}

/// A lineage generation: random, never reused, compared for equality only. Zero = never initialised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub u128);

/// Position in the ordered stream of one session lineage; the first operation is 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpSeq(pub u64);

/// Index of a directory within its cluster's `spec.directories`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Volume(pub u16);
