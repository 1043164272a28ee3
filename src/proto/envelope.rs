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
        /// The YAML text; empty when the stamp says deleted.
        text: String,
    },
    /// "Send me this one."
    SpecWant(ClusterId),
}

/// Identity of one revision of one cluster's spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecStamp {
    /// `metadata.name`.
    pub cluster: ClusterId,
    /// Counts every change; the higher one is in force on both nodes.
    pub revision: u64,
    /// BLAKE3 of the text, to notice equal revisions made on both sides of a cut.
    pub digest: String,
    /// A tombstone: the cluster was removed.
    pub deleted: bool,
}

/// Two nodes changed the same spec while apart: which text is in force? The higher revision; at
/// equal revisions the larger digest, so that both sides decide alike without a clock.
pub fn newer(mine: &SpecStamp, theirs: &SpecStamp) -> bool {
    (theirs.revision, &theirs.digest) > (mine.revision, &mine.digest)
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

    fn stamp(revision: u64, digest: &str) -> SpecStamp {
        SpecStamp { cluster: ClusterId("c".into()), revision, digest: digest.into(), deleted: false }
    }

    #[test]
    fn both_sides_choose_the_same_spec() {
        for (a, b) in [(stamp(1, "x"), stamp(2, "a")), (stamp(3, "x"), stamp(3, "y"))] {
            assert!(newer(&a, &b));
            assert!(!newer(&b, &a));
        }
        assert!(!newer(&stamp(1, "x"), &stamp(1, "x")));
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        assert!(Envelope::decode(&[]).is_err());
        assert!(Envelope::decode(&[0xff; 40]).is_err());
    }
}
