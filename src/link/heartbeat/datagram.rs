//! Heartbeat and tombstone datagrams: layout, authentication, refusal.
//!
//! Little endian: magic 4, version 1, kind 1, path 1, flags 1, pair 16, boot 16, incarnation 16,
//! start 8, sequence 8, interval 4, body length 2, zero 2, sent 8, echoed incarnation 16, echoed
//! sent 8, held 8, body, BLAKE3 keyed hash 32 of everything before it.
//!
//! The key is derived from the pair's heartbeat key and the *sender's* name, so a datagram cannot be
//! sent back to its author as the peer's.

use crate::link::pki::{Identity, Node};
use crate::link::{BODY_MAX, Life};
use zeroize::Zeroizing;

const MAGIC: [u8; 4] = *b"skcH";
const VERSION: u8 = 1;
const HEADER: usize = 120;
const CODE: usize = 32;
const FLAG_ECHO: u8 = 1;

/// Longest datagram.
pub(crate) const DATAGRAM_MAX: usize = HEADER + BODY_MAX + CODE;

/// `path` of a datagram that may come over any (a tombstone).
pub(crate) const ANY_PATH: u8 = 0xff;

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// "I live."
    Heartbeat,
    /// "My agent is dead for good."
    Tombstone,
}

/// What the sender had last heard on this path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echo {
    /// Life of the agent it heard.
    pub incarnation: u128,
    /// The `sent` of that heartbeat.
    pub sent: u64,
    /// Microseconds between receiving it and sending this.
    pub held: u64,
}

/// A datagram's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub kind: Kind,
    pub path: u8,
    pub life: Life,
    pub sequence: u64,
    /// The sender's heartbeat interval in milliseconds.
    pub interval: u32,
    /// The sender's clock in nanoseconds; only the sender interprets it.
    pub sent: u64,
    pub echo: Option<Echo>,
    pub body: Vec<u8>,
}

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    Malformed,
    OtherPair,
    Forged,
}

/// Keys of one direction each.
pub(crate) struct Keys {
    pair: u128,
    ours: Zeroizing<[u8; 32]>,
    theirs: Zeroizing<[u8; 32]>,
}

impl Keys {
    /// Keys between this node and its peer.
    pub(crate) fn new(identity: &Identity, peer: &Node) -> Self {
        // Checked when pair.json was read: 32 hexadecimal digits.
        let pair = u128::from_str_radix(identity.pair_id(), 16).unwrap_or_default();
        let derive = |name: &str| {
            let mut hasher = blake3::Hasher::new_derive_key("skc.dev heartbeat v1 sender key");
            hasher.update(identity.heartbeat_key().bytes()).update(name.as_bytes());
            Zeroizing::new(*hasher.finalize().as_bytes())
        };
        Self { pair, ours: derive(&identity.me().name), theirs: derive(&peer.name) }
    }

    /// The bytes to send. A body above [`BODY_MAX`] is cut; callers refuse it before.
    pub(crate) fn seal(&self, datagram: &Datagram) -> Vec<u8> {
        let body = datagram.body.get(..BODY_MAX).unwrap_or(&datagram.body);
        let mut bytes = Vec::with_capacity(HEADER + body.len() + CODE);
        bytes.extend_from_slice(&MAGIC);
        let kind = match datagram.kind {
            Kind::Heartbeat => 1,
            Kind::Tombstone => 2,
        };
        let flags = if datagram.echo.is_some() { FLAG_ECHO } else { 0 };
        bytes.extend_from_slice(&[VERSION, kind, datagram.path, flags]);
        bytes.extend_from_slice(&self.pair.to_le_bytes());
        bytes.extend_from_slice(&datagram.life.boot.to_le_bytes());
        bytes.extend_from_slice(&datagram.life.incarnation.to_le_bytes());
        bytes.extend_from_slice(&datagram.life.start.to_le_bytes());
        bytes.extend_from_slice(&datagram.sequence.to_le_bytes());
        bytes.extend_from_slice(&datagram.interval.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&datagram.sent.to_le_bytes());
        let echo = datagram.echo.unwrap_or(Echo { incarnation: 0, sent: 0, held: 0 });
        bytes.extend_from_slice(&echo.incarnation.to_le_bytes());
        bytes.extend_from_slice(&echo.sent.to_le_bytes());
        bytes.extend_from_slice(&echo.held.to_le_bytes());
        debug_assert_eq!(bytes.len(), HEADER);
        bytes.extend_from_slice(body);
        let code = blake3::keyed_hash(&self.ours, &bytes);
        bytes.extend_from_slice(code.as_bytes());
        bytes
    }

    /// Checks and reads the peer's datagram.
    pub(crate) fn open(&self, bytes: &[u8]) -> Result<Datagram, Reject> {
        if bytes.len() > DATAGRAM_MAX {
            return Err(Reject::Malformed);
        }
        let (signed, code) = bytes.split_last_chunk::<CODE>().ok_or(Reject::Malformed)?;
        let (header, body) = signed.split_at_checked(HEADER).ok_or(Reject::Malformed)?;
        let mut fields = Fields(header);
        if fields.take::<4>()? != MAGIC {
            return Err(Reject::Malformed);
        }
        let [version, kind, path, flags] = fields.take::<4>()?;
        if fields.u128()? != self.pair {
            return Err(Reject::OtherPair);
        }
        // blake3::Hash compares in constant time.
        if blake3::keyed_hash(&self.theirs, signed) != blake3::Hash::from_bytes(*code) {
            return Err(Reject::Forged);
        }
        let kind = match (version, kind) {
            (VERSION, 1) => Kind::Heartbeat,
            (VERSION, 2) => Kind::Tombstone,
            _ => return Err(Reject::Malformed),
        };
        let life = Life { boot: fields.u128()?, incarnation: fields.u128()?, start: fields.u64()? };
        let sequence = fields.u64()?;
        let interval = u32::from_le_bytes(fields.take()?);
        let length = u16::from_le_bytes(fields.take()?);
        let _reserved: [u8; 2] = fields.take()?;
        let sent = fields.u64()?;
        let echo = Echo { incarnation: fields.u128()?, sent: fields.u64()?, held: fields.u64()? };
        if usize::from(length) != body.len() {
            return Err(Reject::Malformed);
        }
        let echo = (flags & FLAG_ECHO != 0).then_some(echo);
        Ok(Datagram { kind, path, life, sequence, interval, sent, echo, body: body.to_vec() })
    }
}

/// Reads fields from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Reject::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u64(&mut self) -> Result<u64, Reject> {
        self.take().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Result<u128, Reject> {
        self.take().map(u128::from_le_bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const GOLDEN: &str = "\
        736b63480101010105000000000000000000000000000000000000000000000000000000100000000700000000000000\
        000000000000000003000000000000000100000000000000c8000000040000006300000000000000ffffffffffffffff\
        ffffffffffffffff05000000000000000600000000000000726f6c650d4a92e80ae1c6988aa9bd34e520906eab562138\
        2ff58768c9be0dfab0ad2ec2\n\
        736b63480102010105000000000000000000000000000000000000000000000000000000100000000700000000000000\
        000000000000000003000000000000000100000000000000c8000000040000006300000000000000ffffffffffffffff\
        ffffffffffffffff05000000000000000600000000000000726f6c658fb2d815851f1eb095f1173531d1264a363008e4\
        dc7d842d924557f6507443b3\n";

    /// Keys of both sides of a pair.
    pub(in crate::link) fn keys() -> (Keys, Keys) {
        let key = |n: u8| Zeroizing::new([n; 32]);
        let a = Keys { pair: 5, ours: key(1), theirs: key(2) };
        let b = Keys { pair: 5, ours: key(2), theirs: key(1) };
        (a, b)
    }

    pub(in crate::link) fn heartbeat(sequence: u64) -> Datagram {
        Datagram {
            kind: Kind::Heartbeat,
            path: 1,
            life: Life { boot: 1 << 100, incarnation: 7, start: 3 },
            sequence,
            interval: 200,
            sent: 99,
            echo: Some(Echo { incarnation: u128::MAX, sent: 5, held: 6 }),
            body: b"role".to_vec(),
        }
    }

    #[test]
    fn a_datagram_comes_back_on_the_other_side_only() {
        let (a, b) = keys();
        let bytes = a.seal(&heartbeat(1));
        assert_eq!(b.open(&bytes), Ok(heartbeat(1)));
        assert_eq!(a.open(&bytes), Err(Reject::Forged), "our own datagram sent back to us");
        let other = Keys { pair: 6, ours: Zeroizing::new([2; 32]), theirs: Zeroizing::new([1; 32]) };
        assert_eq!(other.open(&bytes), Err(Reject::OtherPair));
    }

    /// A change of these bytes is a new version of the datagram.
    #[test]
    fn the_golden_bytes_of_version_1_do_not_change() {
        let (a, _) = keys();
        let mut text = String::new();
        for kind in [Kind::Heartbeat, Kind::Tombstone] {
            let bytes = a.seal(&Datagram { kind, ..heartbeat(1) });
            for byte in &bytes {
                use std::fmt::Write;
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        assert_eq!(text, GOLDEN);
    }

    #[test]
    fn a_datagram_of_another_version_is_refused_although_its_code_fits() {
        let (a, b) = keys();
        let bytes = a.seal(&heartbeat(1));
        for version in [0, VERSION + 1, u8::MAX] {
            let mut signed = bytes[..bytes.len() - CODE].to_vec();
            signed[4] = version;
            let code = blake3::keyed_hash(&a.ours, &signed);
            signed.extend_from_slice(code.as_bytes());
            assert_eq!(b.open(&signed), Err(Reject::Malformed), "version {version}");
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let (a, b) = keys();
        let bytes = a.seal(&heartbeat(1));
        for at in 0..bytes.len() {
            assert!(b.open(&bytes[..at]).is_err());
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(b.open(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_longest_body_fits_and_no_more() {
        let (a, b) = keys();
        let bytes = a.seal(&Datagram { body: vec![1; BODY_MAX], ..heartbeat(1) });
        assert_eq!(bytes.len(), DATAGRAM_MAX);
        assert!(bytes.len() <= 1452, "Ethernet, IPv6 and UDP headers included");
        assert_eq!(b.open(&bytes).unwrap().body.len(), BODY_MAX);
        assert_eq!(b.open(&[bytes, vec![0]].concat()), Err(Reject::Malformed));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1500),
        ) {
            let (_, b) = keys();
            assert!(b.open(&bytes).is_err());
        }
    }
}
