//! What a stream tells the failover driver. Facts only; the driver decides.

use crate::base::{Epoch, Generation};
use std::sync::Arc;

/// Why a stream ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// Closed, reset or timed out.
    Closed(String),
    /// The other side broke the protocol.
    Protocol(String),
    /// Acknowledgements made no progress for the configured time.
    Stalled,
    /// Something was changed that the stream cannot name or express: only a full compare helps.
    Unnamed(String),
}

/// Resync figures; bytes are of regular files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Directories compared.
    pub dirs_done: u64,
    /// Files known so far (grows while directories are walked).
    pub files_total: u64,
    /// Files compared.
    pub files_done: u64,
    /// Bytes in the known files.
    pub bytes_total: u64,
    /// Bytes hashed on this side.
    pub bytes_compared: u64,
    /// Fill bytes sent (`resync_bytes`).
    pub bytes_sent: u64,
    /// Bytes compared a second since the start.
    pub rate: u64,
    /// Milliseconds since the start.
    pub elapsed_ms: u64,
    /// Milliseconds to go at this rate; `None` while directories are still being walked.
    pub eta_ms: Option<u64>,
    /// The target's quarantine: bytes kept.
    pub kept_bytes: u64,
    /// The target's quarantine: objects moved there.
    pub kept_objects: u64,
    /// The target stopped keeping (size limit or free space).
    pub kept_truncated: bool,
}

/// One fact. `epoch` names the stream it belongs to; the driver ignores those of old ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Either side: the stream ended and not by `close`.
    StreamDown {
        /// Which.
        epoch: Epoch,
        /// Why.
        why: StreamEnd,
    },
    /// Source: the standby cannot apply or sync (and has stopped).
    PeerFailed {
        /// Which.
        epoch: Epoch,
        /// Positive errno, 0 if unknown.
        errno: i32,
        /// The failed operation.
        what: String,
    },
    /// Source: all frames a reconnected standby lacked were sent and acknowledged.
    ReplayDone {
        /// Which.
        epoch: Epoch,
    },
    /// Source: how far the resync is (at most twice a second).
    ResyncProgress {
        /// Which.
        epoch: Epoch,
        /// Figures.
        progress: Progress,
    },
    /// Source: everything is equal but for live operations, and the target synced once.
    ResyncDone {
        /// Which.
        epoch: Epoch,
        /// Final figures.
        progress: Progress,
    },
    /// Source: the target is behind the marker.
    UpToDateAcked {
        /// Which.
        epoch: Epoch,
    },
    /// Target: everything before the marker is applied. Nothing behind it is until
    /// `Standby::release_marker`.
    MarkerReached {
        /// Which.
        epoch: Epoch,
        /// Grant to adopt.
        g: u64,
        /// Lineage to adopt.
        cur: Generation,
    },
    /// Target: an operation could not be applied; the stream is closed.
    ApplyFailed {
        /// Which.
        epoch: Epoch,
        /// Positive errno.
        errno: i32,
        /// The failed operation.
        what: String,
    },
    /// Target: fsync or syncfs failed; the stream is closed.
    SyncFailed {
        /// Which.
        epoch: Epoch,
        /// Positive errno.
        errno: i32,
    },
    /// Target: what the resync replaced here and quarantine keeps (I5); at its end, and as soon as nothing
    /// more can be kept.
    Kept {
        /// Which.
        epoch: Epoch,
        /// Bytes of overwritten blocks.
        bytes: u64,
        /// Objects moved there.
        objects: u64,
        /// Why nothing more is kept: what the resync replaces from there on is lost.
        truncated: Option<String>,
    },
    /// Primary: a local fsync failed (the application saw the error).
    LocalDiskError {
        /// Positive errno.
        errno: i32,
    },
    /// The local disk failed a request of the mount (the application saw the error).
    LocalFailed {
        /// Positive errno.
        errno: i32,
    },
}

/// Where events go. Called from replication threads, sometimes with stream locks held: it must only
/// queue (a channel's `try_send`, an unbounded `send`), never call back and never wait.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;
