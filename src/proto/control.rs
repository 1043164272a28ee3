//! Frames of the control connection, of a data connection's greeting, and of a join.
//!
//! `u32 length, u32 header length` (little endian), MessagePack header, bulk bytes. The length
//! counts what follows it. Headers are maps by field name: a later release may add fields, an
//! older one ignores them; new kinds need a higher protocol version, which [`Hello`] negotiates.
//!
//! Decoding never panics and never allocates more than the frame it was given; the caller enforces
//! [`FRAME_MAX`] (or [`GREETING_MAX`] before the peer is known) by [`length`] before it reads on.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Versions of the control protocol that this release speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// Longest frame: a message carries at most one spec file (1 MiB) or a batch of states; 16 MiB is
/// far above both and small enough to be held in memory twice.
pub const FRAME_MAX: usize = 16 << 20;

/// Longest frame before both sides know each other: names, addresses, one certificate request.
pub const GREETING_MAX: usize = 64 << 10;

/// Longest header; everything large travels as bulk.
pub const HEADER_MAX: usize = 64 << 10;

/// Longest message, so that its frame fits.
pub const MESSAGE_MAX: usize = FRAME_MAX - HEADER_MAX;

/// Inclusive range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// The newest version both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// Who speaks, in which life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions spoken.
    pub versions: VersionRange,
    /// The pair both must belong to.
    pub pair: String,
    /// Name of the speaking node; must fit its certificate.
    pub node: String,
    /// Boot of the speaking node's kernel.
    pub boot: u128,
    /// Random, one a life of the agent.
    pub incarnation: u128,
    /// Orders the incarnations of one node.
    pub start: u64,
    /// Index of the address pair the connection uses.
    pub path: u8,
}

/// Greeting of a data connection; the opaque hello of its user is the bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataHello {
    /// The dialler's life; must be that of the control connection.
    pub incarnation: u128,
    /// The life it expects to reach.
    pub expects: u128,
    /// Index of the address pair; must be that of the control connection.
    pub path: u8,
}

/// A node that wants to become the second of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Protocol versions spoken.
    pub versions: VersionRange,
    /// The token's secret.
    #[serde(with = "serde_bytes")]
    pub secret: Vec<u8>,
    /// Name it wants.
    pub name: String,
    /// Addresses it listens on.
    pub addresses: Vec<IpAddr>,
    /// Port it listens on.
    pub port: u16,
    /// Certificate signing request (DER); proves that it holds the key.
    #[serde(with = "serde_bytes")]
    pub request: Vec<u8>,
}

/// What a joining node gets: everything it keeps, but its own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Certificate of the pair's authority.
    pub authority: String,
    /// The new node's certificate.
    pub certificate: String,
    /// Content of `pair.json` as seen by the new node.
    pub pair: String,
}

/// The header of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// First frame of both sides.
    Hello(Hello),
    /// The dialler accepted the other side's hello; both know the version now.
    Ready {
        /// Negotiated version.
        version: u16,
    },
    /// The speaker will not go on.
    Refuse {
        /// `SKC-E....`.
        code: String,
        /// For a person.
        why: String,
    },
    /// "I am here", while there is nothing else to say.
    Ping,
    /// An opaque message for the other agent: the bulk.
    Message,
    /// The speaker closes on purpose.
    Bye,
    /// First frame of a data connection.
    DataHello(DataHello),
    /// The data connection is accepted; from here on it belongs to its users.
    DataAccept,
    /// First frame of a join.
    JoinRequest(JoinRequest),
    /// Answer to it.
    JoinReply(JoinReply),
}

/// A frame that cannot be sent or understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed here.
    #[error("a frame of {length} bytes; at most {limit} are allowed")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit in force.
        limit: usize,
    },
    /// Shorter than its own lengths say.
    #[error("a frame cut short")]
    Short,
    /// A header that is no MessagePack of a known kind.
    #[error("an unintelligible header: {0}")]
    Header(String),
}

/// The frame as bytes, length prefix included.
///
/// # Errors
/// Header or frame too long.
pub fn encode(header: &Control, bulk: &[u8]) -> Result<Vec<u8>, FrameError> {
    let header = rmp_serde::to_vec_named(header).map_err(|error| FrameError::Header(error.to_string()))?;
    if header.len() > HEADER_MAX {
        return Err(FrameError::TooLong { length: header.len(), limit: HEADER_MAX });
    }
    let length = 4 + header.len() + bulk.len();
    if length > FRAME_MAX {
        return Err(FrameError::TooLong { length, limit: FRAME_MAX });
    }
    let mut frame = Vec::with_capacity(4 + length);
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.extend_from_slice(&(header.len() as u32).to_le_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(bulk);
    Ok(frame)
}

/// How many bytes follow a length prefix.
///
/// # Errors
/// More than `limit`, or less than a frame can have.
pub fn length(prefix: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    if length < 5 {
        return Err(FrameError::Short);
    }
    Ok(length)
}

/// Header and bulk of a frame (without its length prefix).
///
/// # Errors
/// Anything but a whole frame with a known header.
pub fn decode(frame: &[u8]) -> Result<(Control, &[u8]), FrameError> {
    let (prefix, rest) = frame.split_first_chunk::<4>().ok_or(FrameError::Short)?;
    let header_length = u32::from_le_bytes(*prefix) as usize;
    if header_length > HEADER_MAX {
        return Err(FrameError::TooLong { length: header_length, limit: HEADER_MAX });
    }
    let (header, bulk) = rest.split_at_checked(header_length).ok_or(FrameError::Short)?;
    let header = rmp_serde::from_slice(header).map_err(|error| FrameError::Header(error.to_string()))?;
    Ok((header, bulk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            versions: VERSIONS,
            pair: "0f".repeat(16),
            node: "node-a".into(),
            boot: u128::MAX - 1,
            incarnation: 7,
            start: u64::MAX,
            path: 1,
        }
    }

    #[test]
    fn frames_come_back_with_their_bulk() {
        let kinds = [
            Control::Hello(hello()),
            Control::Message,
            Control::Refuse { code: "SKC-E2024".into(), why: "x".into() },
            Control::DataHello(DataHello { incarnation: 1, expects: u128::MAX, path: 0 }),
            Control::JoinRequest(JoinRequest {
                versions: VERSIONS,
                secret: vec![1; 32],
                name: "node-b".into(),
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                port: 7690,
                request: vec![0x30; 300],
            }),
        ];
        for kind in kinds {
            let frame = encode(&kind, b"bulk").unwrap();
            let (prefix, rest) = frame.split_first_chunk::<4>().unwrap();
            assert_eq!(length(*prefix, FRAME_MAX).unwrap(), rest.len());
            assert_eq!(decode(rest).unwrap(), (kind, &b"bulk"[..]));
        }
    }

    #[test]
    fn the_golden_bytes_of_version_1_do_not_change() {
        let frame = encode(&Control::Ready { version: 1 }, b"").unwrap();
        assert_eq!(frame, b"\x15\0\0\0\x11\0\0\0\x81\xa5Ready\x81\xa7version\x01");
        assert_eq!(encode(&Control::Ping, b"").unwrap(), b"\x09\0\0\0\x05\0\0\0\xa4Ping");
        assert_eq!(encode(&Control::Message, b"hi").unwrap(), b"\x0e\0\0\0\x08\0\0\0\xa7Messagehi");
    }

    #[test]
    fn the_cap_holds_at_the_limit_and_one_over() {
        let overhead = encode(&Control::Message, b"").unwrap().len() - 4;
        assert!(encode(&Control::Message, &vec![0; FRAME_MAX - overhead]).is_ok());
        assert!(encode(&Control::Message, &vec![0; FRAME_MAX - overhead + 1]).is_err());
        assert!(encode(&Control::Message, &vec![0; MESSAGE_MAX]).is_ok());
        assert_eq!(length(100_u32.to_le_bytes(), 100), Ok(100));
        assert!(length(101_u32.to_le_bytes(), 100).is_err());
        assert_eq!(length(4_u32.to_le_bytes(), 100), Err(FrameError::Short));
    }

    #[test]
    fn versions_meet_at_the_newest_common_one() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 2)), None);
        assert_eq!(range(3, 1).common(range(1, 3)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn any_change_of_a_frame_decodes_or_fails_without_panic(at in 0_usize..400, to in any::<u8>()) {
            let mut frame = encode(&Control::Hello(hello()), b"bulk").unwrap().split_off(4);
            if let Some(byte) = frame.get_mut(at) { *byte = to; }
            let _ = decode(&frame);
            let _ = decode(frame.get(..at).unwrap_or(&frame));
        }
    }
}
