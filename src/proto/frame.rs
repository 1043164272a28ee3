//! Frames of a data connection: a fixed prefix, a MessagePack header, bulk bytes.
//!
//! Layout of the prefix (big endian, [`PREFIX`] bytes):
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `skcD` |
//! | 4 | version ([`VERSION`]) |
//! | 5 | kind ([`Kind`]) |
//! | 6..8 | reserved, zero |
//! | 8..12 | header length (at most [`MAX_HEADER`]) |
//! | 12..16 | bulk length (at most [`MAX_BULK`]) |
//! | 16..24 | sequence number (0 = outside the ordered stream) |
//! | 24..40 | epoch `g`, `s` |
//!
//! Sequence and epoch stand in the prefix and not in the header, so that a retained frame can be
//! sent again in a new session without encoding it twice. There is no checksum: TLS authenticates.
//! Nothing here panics on any input; lengths are checked before anything is allocated.

use crate::base::Epoch;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"skcD";
/// The version this build speaks. A stream never mixes versions.
pub const VERSION: u8 = 1;
/// Length of the fixed prefix in bytes.
pub const PREFIX: usize = 40;
/// Longest header. The largest are the inherited xattrs of a `Make` (three values of at most
/// 64 KiB, XATTR_SIZE_MAX) and the entries of a directory, which are cut at a quarter of this.
pub const MAX_HEADER: usize = 512 * 1024;
/// Longest bulk: the largest FUSE write (1 MiB) and slack for one xattr value.
pub const MAX_BULK: usize = 1024 * 1024 + 64 * 1024;

/// What the header is. One serde type each (see `proto::stream`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// `StreamHello`: the source opens the stream.
    Hello = 1,
    /// `Welcome`: the target's answer.
    Welcome = 2,
    /// `OpFrame`: one live operation.
    Op = 3,
    /// `Resync`: one step of the ordered resync.
    Resync = 4,
    /// `Marker`: UpToDate.
    Marker = 5,
    /// `Ping` (no header).
    Ping = 6,
    /// `Reply`: target to source.
    Reply = 7,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Op,
            4 => Self::Resync,
            5 => Self::Marker,
            6 => Self::Ping,
            7 => Self::Reply,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame, or a message does not fit one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not ours.
    #[error("not a frame: starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A version this build does not speak.
    #[error("frame version {0}, this build speaks {VERSION}")]
    Version(u8),
    /// An unknown kind.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// Reserved bytes are not zero.
    #[error("reserved bytes are {0:#06x}")]
    Reserved(u16),
    /// The header is too long.
    #[error("header of {0} bytes (limit {MAX_HEADER})")]
    HeaderTooLong(usize),
    /// The bulk is too long.
    #[error("bulk of {0} bytes (limit {MAX_BULK})")]
    BulkTooLong(usize),
    /// The header is not the message its kind says.
    #[error("header of kind {kind:?} does not decode: {what}")]
    Decode {
        /// Kind of the frame.
        kind: Kind,
        /// The codec's words.
        what: String,
    },
    /// A message could not be encoded.
    #[error("message of kind {kind:?} does not encode: {what}")]
    Encode {
        /// Kind of the frame.
        kind: Kind,
        /// The codec's words.
        what: String,
    },
}

/// The decoded prefix of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// What the header is.
    pub kind: Kind,
    /// Length of the header in bytes.
    pub header: usize,
    /// Length of the bulk in bytes.
    pub bulk: usize,
    /// Position in the stream, 0 = none.
    pub seq: u64,
    /// Session the frame belongs to.
    pub epoch: Epoch,
}

impl Prefix {
    /// Bytes of the whole frame.
    pub const fn total(&self) -> usize {
        PREFIX + self.header + self.bulk
    }

    /// Decodes a prefix and checks every limit.
    pub fn decode(bytes: &[u8; PREFIX]) -> Result<Self, FrameError> {
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version(bytes[4]));
        }
        let kind = Kind::from_u8(bytes[5]).ok_or(FrameError::Kind(bytes[5]))?;
        let reserved = u16::from_be_bytes([bytes[6], bytes[7]]);
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let header = u32_at(bytes, 8) as usize;
        if header > MAX_HEADER {
            return Err(FrameError::HeaderTooLong(header));
        }
        let bulk = u32_at(bytes, 12) as usize;
        if bulk > MAX_BULK {
            return Err(FrameError::BulkTooLong(bulk));
        }
        let epoch = Epoch { g: u64_at(bytes, 24), s: u64_at(bytes, 32) };
        Ok(Self { kind, header, bulk, seq: u64_at(bytes, 16), epoch })
    }

    /// Encodes the prefix.
    pub fn encode(&self) -> [u8; PREFIX] {
        let mut out = [0; PREFIX];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.kind as u8;
        out[8..12].copy_from_slice(&(self.header as u32).to_be_bytes());
        out[12..16].copy_from_slice(&(self.bulk as u32).to_be_bytes());
        out[16..24].copy_from_slice(&self.seq.to_be_bytes());
        out[24..32].copy_from_slice(&self.epoch.g.to_be_bytes());
        out[32..40].copy_from_slice(&self.epoch.s.to_be_bytes());
        out
    }
}

fn u32_at(bytes: &[u8; PREFIX], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; PREFIX], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// Appends one frame to `out`. On an error `out` is as before.
pub fn encode_into<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    kind: Kind,
    seq: u64,
    epoch: Epoch,
    message: &T,
    bulk: &[u8],
) -> Result<(), FrameError> {
    let start = out.len();
    let result = encode_tail(out, start, kind, seq, epoch, message, bulk);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_tail<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    start: usize,
    kind: Kind,
    seq: u64,
    epoch: Epoch,
    message: &T,
    bulk: &[u8],
) -> Result<(), FrameError> {
    if bulk.len() > MAX_BULK {
        return Err(FrameError::BulkTooLong(bulk.len()));
    }
    out.extend_from_slice(&[0; PREFIX]);
    rmp_serde::encode::write(&mut *out, message)
        .map_err(|e| FrameError::Encode { kind, what: e.to_string() })?;
    let header = out.len() - start - PREFIX;
    if header > MAX_HEADER {
        return Err(FrameError::HeaderTooLong(header));
    }
    let prefix = Prefix { kind, header, bulk: bulk.len(), seq, epoch }.encode();
    out[start..start + PREFIX].copy_from_slice(&prefix);
    out.extend_from_slice(bulk);
    Ok(())
}

/// Puts a frame that is already encoded at another position of another session.
/// Does nothing if `frame` is shorter than a prefix.
pub fn restamp(frame: &mut [u8], seq: u64, epoch: Epoch) {
    if frame.len() >= PREFIX {
        frame[16..24].copy_from_slice(&seq.to_be_bytes());
        frame[24..32].copy_from_slice(&epoch.g.to_be_bytes());
        frame[32..40].copy_from_slice(&epoch.s.to_be_bytes());
    }
}

/// Decodes a header. Trailing bytes are refused: they would be a message of another version.
pub fn decode_header<T: DeserializeOwned>(kind: Kind, header: &[u8]) -> Result<T, FrameError> {
    let mut rest = header;
    let value =
        rmp_serde::from_read(&mut rest).map_err(|e| FrameError::Decode { kind, what: e.to_string() })?;
    if !rest.is_empty() {
        return Err(FrameError::Decode { kind, what: format!("{} bytes left over", rest.len()) });
    }
    Ok(value)
}

/// One whole frame inside a receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct FrameRef<'a> {
    /// The prefix.
    pub prefix: Prefix,
    /// MessagePack bytes.
    pub header: &'a [u8],
    /// Bulk bytes.
    pub bulk: &'a [u8],
}

impl FrameRef<'_> {
    /// Decodes the header as `T`.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        decode_header(self.prefix.kind, self.header)
    }
}

/// Cuts a byte stream into frames. Holds at most one frame's maximum plus what one read brought.
#[derive(Debug, Default)]
pub struct FrameBuf {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuf {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what arrived.
    pub fn extend(&mut self, more: &[u8]) {
        if self.start > 0 && (self.start == self.bytes.len() || self.start > 256 * 1024) {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(more);
    }

    /// Bytes not yet handed out.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether a whole frame (or an error) is ready, without taking it.
    pub fn has_frame(&self) -> bool {
        match self.peek() {
            Ok(Some(prefix)) => self.pending() >= prefix.total(),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    fn peek(&self) -> Result<Option<Prefix>, FrameError> {
        let live = self.bytes.get(self.start..).unwrap_or_default();
        live.first_chunk::<PREFIX>().map(Prefix::decode).transpose()
    }

    /// Takes the next whole frame; `None` = more bytes are needed. After an error the stream is
    /// out of step and must be closed.
    pub fn next_frame(&mut self) -> Result<Option<FrameRef<'_>>, FrameError> {
        let Some(prefix) = self.peek()? else { return Ok(None) };
        let total = prefix.total();
        if self.pending() < total {
            return Ok(None);
        }
        let from = self.start;
        self.start += total;
        let frame = &self.bytes[from..from + total];
        let (header, bulk) = frame[PREFIX..].split_at(prefix.header);
        Ok(Some(FrameRef { prefix, header, bulk }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch { g: 7, s: 9 };

    #[test]
    fn golden_prefix_of_version_1() {
        let prefix = Prefix { kind: Kind::Op, header: 0x0102, bulk: 0x1000, seq: 0x11, epoch: EPOCH };
        let bytes = prefix.encode();
        let hex = bytes.iter().fold(String::new(), |text, b| text + &format!("{b:02x}"));
        assert_eq!(hex, "736b6344010300000000010200001000000000000000001100000000000000070000000000000009");
        assert_eq!(Prefix::decode(&bytes), Ok(prefix));
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_over() {
        let at = |header, bulk| Prefix { kind: Kind::Op, header, bulk, seq: 0, epoch: EPOCH }.encode();
        assert!(Prefix::decode(&at(MAX_HEADER, MAX_BULK)).is_ok());
        assert_eq!(Prefix::decode(&at(MAX_HEADER + 1, 0)), Err(FrameError::HeaderTooLong(MAX_HEADER + 1)));
        assert_eq!(Prefix::decode(&at(0, MAX_BULK + 1)), Err(FrameError::BulkTooLong(MAX_BULK + 1)));

        let mut out = vec![1, 2, 3];
        let bulk = vec![0; MAX_BULK + 1];
        assert!(encode_into(&mut out, Kind::Ping, 0, EPOCH, &(), &bulk).is_err());
        assert_eq!(out, [1, 2, 3]);
        assert!(encode_into(&mut out, Kind::Ping, 0, EPOCH, &(), &bulk[1..]).is_ok());
        let long = "x".repeat(MAX_HEADER);
        let mut out = Vec::new();
        assert!(encode_into(&mut out, Kind::Ping, 0, EPOCH, &long, &[]).is_err());
        assert!(out.is_empty());
        // A string of this length has a five byte MessagePack head.
        assert!(encode_into(&mut out, Kind::Ping, 0, EPOCH, &long[5..], &[]).is_ok());
    }

    #[test]
    fn frames_come_out_of_any_cut_of_the_stream() {
        let mut stream = Vec::new();
        for i in 0..50_u64 {
            let bulk = vec![i as u8; (i * 37 % 211) as usize];
            encode_into(&mut stream, Kind::Op, i, EPOCH, &format!("message {i}"), &bulk).unwrap();
        }
        for cut in [1, 2, 39, 40, 41, 97, 1000, stream.len()] {
            let mut buf = FrameBuf::new();
            let mut seen = 0_u64;
            for piece in stream.chunks(cut) {
                buf.extend(piece);
                while let Some(frame) = buf.next_frame().unwrap() {
                    assert_eq!(frame.prefix.seq, seen);
                    assert_eq!(frame.message::<String>().unwrap(), format!("message {seen}"));
                    assert_eq!(frame.bulk.len() as u64, seen * 37 % 211);
                    seen += 1;
                }
                assert!(!buf.has_frame());
            }
            assert_eq!((seen, buf.pending()), (50, 0));
        }
    }

    #[test]
    fn a_restamped_frame_is_the_same_message_elsewhere() {
        let mut frame = Vec::new();
        encode_into(&mut frame, Kind::Op, 1, EPOCH, "hello", b"bulk").unwrap();
        restamp(&mut frame, 5, Epoch { g: 8, s: 10 });
        let mut buf = FrameBuf::new();
        buf.extend(&frame);
        let got = buf.next_frame().unwrap().unwrap();
        assert_eq!((got.prefix.seq, got.prefix.epoch), (5, Epoch { g: 8, s: 10 }));
        assert_eq!(got.message::<String>().unwrap(), "hello");
        restamp(&mut [0; 3], 1, EPOCH);
    }

    #[test]
    fn bytes_behind_a_message_are_refused() {
        let mut header = rmp_serde::to_vec("x").unwrap();
        header.push(0xc0);
        assert!(matches!(decode_header::<String>(Kind::Op, &header), Err(FrameError::Decode { .. })));
    }
}
