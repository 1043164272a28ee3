//! The messages of a data connection: live operations and the ordered resync.
//!
//! Source to target: [`StreamHello`], then frames with consecutive sequence numbers:
//! [`OpFrame`], [`Resync`], [`Marker`]. Target to source: [`Welcome`], then [`Reply`] without
//! sequence numbers. A `Redo` or `Want` caused by frame n is sent before the first `Ack` that
//! covers n, so an `Ack` says that nothing more will be asked about what it covers.

use crate::base::{ClusterId, Generation, Volume};
use crate::proto::fsop::{Attr, FileId, FsOp, Xattr};
use serde::{Deserialize, Serialize};

/// Block of the resync comparison (facts/protocol: a range is 64 KiB).
pub const BLOCK: u64 = 64 * 1024;
/// Most bytes one `Hash` or `Fill` covers.
pub const SPAN: u64 = 1024 * 1024;
/// Length of one BLAKE3 digest.
pub const DIGEST: usize = 32;
/// Most encoded bytes of directory entries or xattrs put into one frame before it is cut.
pub const PART: usize = super::frame::MAX_HEADER / 4;

/// How the target catches up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    /// The target's applied position is known: the frames behind it are sent again.
    Replay,
    /// Compare everything (also the seeding of an empty target).
    Resync {
        /// Keep what is removed or overwritten on the target.
        quarantine: bool,
    },
}

/// First frame of a data connection, source to target. The epoch stands in the prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHello {
    /// The cluster this connection carries.
    pub cluster: ClusterId,
    /// Identity of the numbering and of the bindings: random, kept over a replay.
    pub stream: u128,
    /// How the target catches up.
    pub plan: Plan,
    /// The source can send from this sequence number on.
    pub from: u64,
    /// Number of volumes.
    pub volumes: u16,
}

/// The target's answer to [`StreamHello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// Go on behind `applied` (0 at the start of a new stream).
    Accepted {
        /// Last operation applied in this stream.
        applied: u64,
    },
    /// This stream cannot be taken.
    Refused {
        /// Why, for the log.
        reason: String,
    },
}

/// One live operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpFrame {
    /// Directory of the cluster.
    pub volume: Volume,
    /// Must be durable: answered by a `SyncAck` of its own besides the `Ack`.
    pub sync: bool,
    /// What was done.
    pub op: FsOp,
}

/// [`OpFrame`] by reference, so that encoding copies nothing. Same bytes.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename = "OpFrame")]
pub struct OpFrameRef<'a> {
    /// See [`OpFrame::volume`].
    pub volume: Volume,
    /// See [`OpFrame::sync`].
    pub sync: bool,
    /// See [`OpFrame::op`].
    pub op: &'a FsOp,
}

/// Type of a directory entry, with what makes two objects of a type different at creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link and its target.
    Symlink(#[serde(with = "serde_bytes")] Vec<u8>),
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device and its number.
    Char(u64),
    /// Block device and its number.
    Block(u64),
}

/// One entry of a directory under resync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name in any bytes.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Its object.
    pub id: FileId,
    /// Its type.
    pub kind: EntryKind,
}

/// One step of the ordered resync. Each is exact at its position in the stream.
#[allow(missing_docs)] // the variant's text names its fields
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resync {
    /// A part of a directory's entries. Parts of one directory follow one another; after the
    /// last the target makes the directory exactly so and sets its attributes.
    Dir {
        volume: Volume,
        id: FileId,
        entries: Vec<Entry>,
        /// Attributes and xattrs, only with the last part.
        end: Option<(Attr, Vec<Xattr>)>,
    },
    /// Digests of the blocks of [offset, offset + length). Bytes in `holes` read as zero and are
    /// not allocated on the source; blocks wholly inside one have an all-zero digest.
    Hash {
        volume: Volume,
        id: FileId,
        offset: u64,
        length: u64,
        holes: Vec<(u64, u64)>,
        #[serde(with = "serde_bytes")]
        digests: Vec<u8>,
    },
    /// The frame's bulk belongs at `offset`.
    Fill { volume: Volume, id: FileId, offset: u64 },
    /// [offset, offset + length) is a hole.
    Hole { volume: Volume, id: FileId, offset: u64, length: u64 },
    /// Size (regular files), owner, mode, times, and all xattrs. Parts with `more` are collected.
    Meta { volume: Volume, id: FileId, attr: Attr, xattrs: Vec<Xattr>, more: bool },
    /// Nothing is left to send and nothing was asked.
    End,
}

/// In the stream, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Marker {
    /// Everything before this is complete: the target syncs, persists and answers.
    UpToDate {
        /// Grant number to adopt.
        g: u64,
        /// Lineage to adopt.
        cur: Generation,
    },
}

/// Target to source.
#[allow(missing_docs)] // the variant's text names its fields
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Everything up to `applied` is in the target's kernel.
    Ack { applied: u64 },
    /// The frame `seq` asked for durability: 0 = durable, else the errno.
    SyncAck { seq: u64, errno: i32 },
    /// Frame `seq` found these objects missing or different: send them (again). `lost`: they have
    /// no known place here, so their directory must come again too.
    Redo { seq: u64, volume: Volume, ids: Vec<FileId>, lost: bool },
    /// Bytes that differ.
    Want { volume: Volume, id: FileId, ranges: Vec<(u64, u64)> },
    /// The target stopped applying at `seq`.
    Failed { seq: u64, errno: i32, what: String },
    /// The marker at `seq` is durable.
    UpToDate { seq: u64 },
    /// What the target did so far in this resync, and whether quarantine had to stop keeping.
    Progress { kept_bytes: u64, kept_objects: u64, truncated: bool },
}
