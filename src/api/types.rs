//! Requests, answers and the status shape. Field names are a contract: scripts rely on them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One file given to `apply` or `diff`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// Name for error messages.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// What an operator can do to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Bring the cluster up on this node.
    Start,
    /// Hand over if possible, then stop on this node; the mount stays, read-only.
    Stop,
    /// Exchange the roles.
    Swap,
    /// Become primary. With `force` even if the peer may hold newer data.
    Promote {
        /// Accept the loss of what only the peer holds.
        force: bool,
    },
    /// First start, split brain, or identity changed: name the node whose directories are the source.
    Adopt {
        /// Its name; absent: the node that is asked.
        source: Option<String>,
        /// Accept that the peer's differing data is replaced (kept in quarantine).
        force: bool,
    },
    /// Hold automatic decisions.
    Pause,
    /// Take them up again.
    Resume,
    /// Unmount and leave a plain directory (after `stop`).
    Eject,
}

impl Action {
    /// The command's name.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Swap => "swap",
            Self::Promote { .. } => "promote",
            Self::Adopt { .. } => "adopt",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Eject => "eject",
        }
    }
}

/// A request, one a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Request {
    /// State of all clusters or of one.
    Status {
        /// Only this one.
        cluster: Option<String>,
    },
    /// The event log.
    Events {
        /// Go on with new ones until the client closes.
        follow: bool,
        /// At most this many of the past.
        last: usize,
        /// Only those of this failover.
        #[serde(default)]
        failover: Option<String>,
    },
    /// Validate, persist, replicate and act on specs.
    Apply {
        /// The files.
        documents: Vec<Document>,
        /// Only say what would change.
        dry_run: bool,
        /// Refuse unless the cluster's revision is this one.
        check_index: Option<u64>,
    },
    /// What `apply` would change.
    Diff {
        /// The files.
        documents: Vec<Document>,
    },
    /// The specs in force.
    Get {
        /// Only this one.
        cluster: Option<String>,
    },
    /// Remove a cluster's spec from both nodes; it must be stopped on both.
    Delete {
        /// Which.
        cluster: String,
        /// Although the other node cannot be asked whether the cluster runs there.
        #[serde(default)]
        force: bool,
    },
    /// An operation; the answer comes when it is done or refused.
    Operate {
        /// Which cluster.
        cluster: String,
        /// What to do.
        action: Action,
    },
    /// Make everything durable on both nodes.
    Sync {
        /// Which cluster.
        cluster: String,
    },
    /// A new enrolment token.
    Ping,
}

/// An error for the person at the terminal.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// `SKC-E####`; `skc explain` has the page.
    pub code: String,
    /// What happened and what skc did.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl ApiError {
    /// An error with a hint.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: Some(hint.into()) }
    }
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// More lines follow.
    pub more: bool,
    /// The result or one item of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// One cluster in `skc status -o json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// `metadata.name`; empty: the entry is about the node itself, whose agent cannot serve.
    pub name: String,
    /// This node's name.
    pub node: String,
    /// STOP, WAIT, ALONE, PRIM, SECOND.
    pub role: String,
    /// NotReady, Transient, Ready.
    pub ready: String,
    /// UpToDate, Consistent, Outdated, Inconsistent, Crashed, Behind.
    pub data_state: String,
    /// `g.s`.
    pub epoch: String,
    /// L0, L1, L2 with its counter-example.
    pub level: String,
    /// What the level does not protect from.
    pub level_note: String,
    /// Revision of the spec in force.
    pub revision: u64,
    /// Virtual addresses and whether this node holds them.
    pub vips: Vec<VipStatus>,
    /// Services and their state.
    pub services: Vec<ItemStatus>,
    /// Checkers and their state.
    pub checkers: Vec<ItemStatus>,
    /// Mounts, their state and consistency.
    pub directories: Vec<DirectoryStatus>,
    /// What resyncs replaced on this node and keep there.
    pub quarantine: Vec<QuarantineStatus>,
    /// Why it is as it is, worst first.
    pub reasons: Vec<Reason>,
    /// The one command it waits for, if any.
    pub command: Option<String>,
    /// Resync of the standby.
    pub resync: ResyncStatus,
    /// The other node.
    pub peer: PeerStatus,
    /// Would it fail over now?
    pub would_fail_over: WouldFailOver,
    /// Parked mutations and requests.
    pub parked: u64,
    /// Operations sent and not yet acknowledged.
    pub unacknowledged: u64,
    /// How far the standby is behind, and how far it may be.
    pub window: WindowStatus,
    /// Milliseconds since this was computed.
    pub age_ms: u64,
    /// Everything else, by name; `since_ms`: how long what keeps it down has lasted.
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// A virtual address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VipStatus {
    /// With prefix length.
    pub address: String,
    /// On this node now.
    pub held: bool,
    /// What is wrong with it.
    #[serde(default)]
    pub note: String,
}

/// A service, checker or directory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ItemStatus {
    /// Its name.
    pub name: String,
    /// Its state in one word.
    pub state: String,
    /// Why.
    #[serde(default)]
    pub note: String,
}

/// A mirrored directory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectoryStatus {
    /// Its path.
    pub name: String,
    /// Its state in one word.
    pub state: String,
    /// Why.
    pub note: String,
    /// strict, commit or async.
    pub consistency: String,
}

/// What the standby has not acknowledged, on the primary.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowStatus {
    /// Bytes in flight.
    pub bytes: u64,
    /// Of these, answered to applications: what the death of this machine would lose now.
    pub answered_bytes: u64,
    /// Age of the oldest operation in flight.
    pub oldest_ms: Option<u64>,
    /// `replication.window.bytes`: past it calls in `commit` and `async` directories wait.
    pub limit_bytes: u64,
    /// `replication.window.age`, likewise.
    pub limit_ms: u64,
}

/// What one resync replaced in one directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuarantineStatus {
    /// The mirrored directory; the copies are in `.skc/quarantine/<name>` below it.
    pub directory: String,
    /// Its folder: when the resync began, in seconds since 1970.
    pub name: String,
    /// Whole objects in it.
    pub objects: u64,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// There is more than was counted.
    pub more: bool,
    /// Why it does not hold everything.
    pub incomplete: Option<String>,
}

/// A condition with its code.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reason {
    /// `SKC-E####` or a condition's name.
    pub code: String,
    /// One sentence.
    pub text: String,
}

/// Progress of a resync.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResyncStatus {
    /// Going on now.
    pub active: bool,
    /// What this node is in it: source or target; empty if there was none. The target knows only what
    /// arrived.
    pub side: String,
    /// Files compared.
    pub files: u64,
    /// Files to compare, once all are known.
    pub total_files: Option<u64>,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Bytes to compare, once all are known.
    pub total_bytes: Option<u64>,
    /// Bytes sent (or received) because they differed.
    pub bytes: u64,
    /// Bytes compared (target: received) a second, since it began.
    pub bytes_per_second: u64,
    /// Seconds since it began, or that the last one took.
    pub seconds: f64,
    /// Seconds left, if known.
    pub eta_s: Option<u64>,
    /// Milliseconds since these figures were told.
    pub age_ms: Option<u64>,
}

/// The link to the other node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Control connection up.
    pub connected: bool,
    /// Its role as it last said in a heartbeat; empty: never heard of this cluster.
    pub role: String,
    /// Its epoch, as it last said.
    pub epoch: String,
    /// Its services are up and its checkers content, as it last said.
    pub ready: bool,
    /// Milliseconds since it said so.
    pub age_ms: Option<u64>,
    /// Every heartbeat path.
    pub paths: Vec<PathStatus>,
}

/// One heartbeat path.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PathStatus {
    /// The peer's address.
    pub address: String,
    /// Heard within the timeout.
    pub alive: bool,
    /// Milliseconds since last heard.
    #[serde(default)]
    pub age_ms: Option<u64>,
    /// Round trip in microseconds.
    #[serde(default)]
    pub rtt_us: Option<u64>,
}

/// The question an operator asks before a night.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WouldFailOver {
    /// Yes or no.
    pub now: bool,
    /// Why.
    pub why: String,
}
