//! What travels on the pair's control connection, addressed by cluster.

use crate::base::ClusterId;
use serde::{Deserialize, Serialize};

/// One message of the control connection (ordered, at most once).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Envelope {
    /// A decision core talks to its twin; the body is MessagePack of `engine::PeerMessage`.
    Core {
        /// Whose.
        cluster: ClusterId,
        /// Encoded message; opaque here because `proto` lies below `engine`.
        #[serde(with = "serde_bytes")]
        body: Vec<u8>,
    },
    /// "These specs I have" (sent once by both sides at every connect).
    SpecList(Vec<SpecStamp>),
    /// A spec, because it was applied here or because the peer's list lacks it.
    SpecPut {
        /// Which revision this is.
        stamp: SpecStamp,
        /// The YAML text; empty when the stamp says removed.
        text: String,
        /// What the sender's directories lack, of those that it looked at.
        #[serde(default)]
        lacks: Vec<Lacks>,
    },
    /// "Send me this one."
    SpecWant(ClusterId),
    /// "This one of yours is not in force here": told to whoever applied it.
    SpecRefused {
        /// Which revision.
        stamp: SpecStamp,
        /// `SKC-E####`.
        code: String,
        /// Why, for people.
        reason: String,
    },
}

/// What the file system of one directory cannot hold (`tree::abilities`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacks {
    /// The directory.
    pub path: String,
    /// In words; sorted.
    pub what: Vec<String>,
}

/// Identity of one revision of one cluster's spec. Order: number, then the author's name: two nodes
/// that changed the same spec while apart agree which text is in force without a clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecStamp {
    /// `metadata.name`.
    pub cluster: ClusterId,
    /// One more than the newest its author knew.
    pub number: u64,
    /// The node where it was applied.
    pub node: String,
    /// A tombstone: the cluster was removed.
    pub removed: bool,
}

impl SpecStamp {
    /// Does this one replace `other`?
    pub fn newer_than(&self, other: &Self) -> bool {
        (self.number, &self.node) > (other.number, &other.node)
    }
}

impl Envelope {
    /// Encodes for the link.
    pub fn encode(&self) -> Vec<u8> {
        // Serialising owned plain data to a Vec cannot fail; an empty message is refused by decode.
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// Decodes what the peer sent.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(number: u64, node: &str) -> SpecStamp {
        SpecStamp { cluster: ClusterId("c".into()), number, node: node.into(), removed: false }
    }

    #[test]
    fn both_sides_choose_the_same_spec() {
        for (older, newer) in [(stamp(1, "b"), stamp(2, "a")), (stamp(3, "a"), stamp(3, "b"))] {
            assert!(newer.newer_than(&older));
            assert!(!older.newer_than(&newer));
        }
        assert!(!stamp(1, "a").newer_than(&stamp(1, "a")));
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        assert!(Envelope::decode(&[]).is_err());
        assert!(Envelope::decode(&[0xff; 40]).is_err());
    }
}
