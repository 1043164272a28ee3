//! What goes in and comes out of a [`super::Link`].

use super::pki::Node;
use super::{DataConn, Identity};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Default of `heartbeat.interval`.
const INTERVAL: Duration = Duration::from_millis(200);
/// Default of `heartbeat.timeout`.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How a link is started.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Who this node is; names the peer and all addresses.
    pub identity: Identity,
    /// Time between heartbeats, and between pings of an idle control connection.
    pub interval: Duration,
    /// Silence after which a control connection is given up, and the limit of every network step.
    pub timeout: Duration,
    /// Boot id of this kernel ([`super::pki::boot_id`]).
    pub boot: u128,
    /// What tests drop; nothing by default.
    pub faults: Arc<Faults>,
}

impl LinkConfig {
    /// Default timers.
    ///
    /// # Errors
    /// The boot id cannot be read.
    pub fn new(identity: Identity) -> Result<Self, super::LinkError> {
        Ok(Self {
            identity,
            interval: INTERVAL,
            timeout: TIMEOUT,
            boot: super::pki::boot_id()?,
            faults: Arc::default(),
        })
    }
}

/// One life of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Boot of its kernel.
    pub boot: u128,
    /// Random.
    pub incarnation: u128,
    /// Grows with every start of this node's agent.
    pub start: u64,
}

/// Why a control connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DownReason {
    /// The peer closed it on purpose (its agent stops).
    PeerLeft,
    /// The path's heartbeats stopped while another path lives.
    PathLost {
        /// Which.
        path: usize,
    },
    /// Nothing came for `timeout`.
    Silent,
    /// The peer dialled again.
    Replaced,
    /// The peer was enrolled anew.
    PeerChanged,
    /// The connection broke.
    Broken(String),
    /// The user of the link asked for a fresh connection.
    Unwanted,
    /// This side shuts down.
    Shutdown,
}

impl std::fmt::Display for DownReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PeerLeft => f.write_str("the peer closed it"),
            Self::PathLost { path } => write!(f, "heartbeats stopped on path {path}"),
            Self::Silent => f.write_str("the peer was silent"),
            Self::Replaced => f.write_str("the peer connected anew"),
            Self::PeerChanged => f.write_str("the peer was enrolled anew"),
            Self::Broken(why) => write!(f, "connection broken: {why}"),
            Self::Unwanted => f.write_str("a fresh connection is wanted"),
            Self::Shutdown => f.write_str("this agent stops"),
        }
    }
}

/// What happened on the link.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "Data is the large one and as rare as Up")]
pub enum LinkEvent {
    /// The control connection stands.
    Up {
        /// Counts control connections of this agent's life; the same in `Down` and `Data`.
        session: u64,
        /// Boot of the peer's kernel.
        peer_boot: u128,
        /// Life of the peer's agent.
        peer_incarnation: u128,
        /// Index of the address pair.
        path: usize,
        /// Negotiated protocol version.
        version: u16,
    },
    /// It is gone. Nothing of this session follows.
    Down {
        /// Which.
        session: u64,
        /// Why.
        reason: DownReason,
    },
    /// A message of the peer.
    Message(Vec<u8>),
    /// The newest heartbeat of a path.
    Heartbeat {
        /// Index of the address pair.
        path: usize,
        /// What the peer's agent set.
        body: Vec<u8>,
        /// Boot of the peer's kernel.
        peer_boot: u128,
        /// Life of the peer's agent.
        peer_incarnation: u128,
        /// When the peer sent it, it had heard *this life* of us on this path so long ago; `None`:
        /// never. Only `Some` proves that the heartbeat is fresh (a recorded one cannot know us).
        heard_me_ms_ago: Option<u64>,
        /// Round trip.
        rtt: Option<Duration>,
        /// How late our own newest heartbeat left: above the interval, silence proves little.
        own_late: Duration,
    },
    /// Heartbeats arrive on this path (again).
    PathUp {
        /// Index of the address pair.
        path: usize,
    },
    /// They stopped.
    PathDown {
        /// Index of the address pair.
        path: usize,
    },
    /// We ourselves were late by more than an interval: evidence against the peer is void.
    OwnStall {
        /// By how much.
        late: Duration,
    },
    /// The peer opened a data connection.
    Data {
        /// The control session it belongs to.
        session: u64,
        /// What it said first.
        hello: Vec<u8>,
        /// The connection.
        conn: DataConn,
    },
    /// A connection was refused, by us or by the other side. At most one per source and code in
    /// ten seconds.
    Refused {
        /// For a person.
        why: String,
        /// `SKC-E....`.
        code: &'static str,
        /// Who.
        from: SocketAddr,
    },
    /// The peer's guard says that its agent is dead for good.
    Tombstone {
        /// Over which path it came.
        path: usize,
        /// Life of the agent that died.
        peer_incarnation: u128,
        /// What that agent had prepared.
        body: Vec<u8>,
    },
    /// A node was enrolled through this agent; the link goes on with it.
    Joined {
        /// The new peer.
        node: Node,
    },
}

/// The link as it is now.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// The control connection.
    pub session: Option<SessionStatus>,
    /// Every address pair.
    pub paths: Vec<PathStatus>,
    /// How late our newest heartbeat left.
    pub own_late: Duration,
    /// Strangers and broken greetings refused since the start.
    pub refused: u64,
    /// Own addresses that cannot be listened on, with the reason.
    pub listen_errors: Vec<(IpAddr, String)>,
}

/// A live control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Its number.
    pub session: u64,
    /// Index of the address pair.
    pub path: usize,
    /// Life of the peer's agent.
    pub peer_incarnation: u128,
    /// Boot of the peer's kernel.
    pub peer_boot: u128,
    /// Negotiated protocol version.
    pub version: u16,
}

/// One address pair.
#[derive(Debug, Clone)]
pub struct PathStatus {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Heartbeats arrive.
    pub alive: bool,
    /// Age of the newest one.
    pub heard_ms_ago: Option<u64>,
    /// Age of the newest one of ours that the peer is known to have received.
    pub heard_me_ms_ago: Option<u64>,
    /// Round trip.
    pub rtt: Option<Duration>,
    /// Share of the last 64 heartbeats that is missing; 1 when the path is not alive.
    pub loss: f32,
    /// Heartbeats accepted.
    pub received: u64,
    /// Datagrams dropped: malformed, of another pair, forged, replayed.
    pub dropped: u64,
    /// Why datagrams cannot be sent or received, if so.
    pub error: Option<String>,
}

/// Datagrams that tests drop, by path.
#[derive(Debug, Default)]
pub struct Faults {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Faults {
    /// From now on datagrams of `path` are dropped: `(ours, the peer's)`.
    pub fn drop_path(&self, path: usize, ours: bool, theirs: bool) {
        for (mask, on) in [(&self.sent, ours), (&self.received, theirs)] {
            let bit = 1 << (path % 64);
            if on {
                mask.fetch_or(bit, Ordering::Relaxed);
            } else {
                mask.fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn drops_sent(&self, path: usize) -> bool {
        self.sent.load(Ordering::Relaxed) >> (path % 64) & 1 == 1
    }

    pub(crate) fn drops_received(&self, path: usize) -> bool {
        self.received.load(Ordering::Relaxed) >> (path % 64) & 1 == 1
    }
}
