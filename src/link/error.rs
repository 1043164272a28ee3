//! What can go wrong between the two nodes, each with the code the operator sees.

use crate::proto::control::FrameError;
use crate::store::StoreError;
use std::io;
use std::net::SocketAddr;

/// An operation of the link, of enrolment or of the keys failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The state directory belongs to no pair yet.
    #[error("{0} belongs to no pair")]
    NoPair(String),
    /// It already belongs to one.
    #[error("{0} already belongs to a pair")]
    AlreadyInPair(String),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key, certificate or `pair.json` that cannot be used.
    #[error("{what}: {why}")]
    Keys {
        /// Which one.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A node name or address that cannot be used.
    #[error("{0}")]
    Node(String),
    /// A text that is no token.
    #[error("this is no skc token: {0}")]
    TokenSyntax(&'static str),
    /// Its hour is over.
    #[error("the token has expired")]
    TokenExpired,
    /// Never made here, or used before.
    #[error("the token is unknown here or was used before")]
    TokenUsed,
    /// The node that answered is not the one that made the token.
    #[error("{0} is not the node that made the token: its certificate authority differs")]
    WrongAuthority(SocketAddr),
    /// A pair has two nodes.
    #[error("the pair is complete: it consists of {0}")]
    PairComplete(String),
    /// Only the node that made the pair can enrol.
    #[error("this node does not hold the pair's certificate authority")]
    NoAuthority,
    /// The other side refused, with its reason.
    #[error("refused by {from}: {why} ({code})")]
    RefusedByPeer {
        /// Its address.
        from: SocketAddr,
        /// Its code.
        code: String,
        /// Its reason.
        why: String,
    },
    /// A certificate that this pair's authority did not sign, or none.
    #[error("certificate of {from} is not from this pair: {why}")]
    Certificate {
        /// Who showed it.
        from: SocketAddr,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate of this pair, but not the peer's present one.
    #[error("certificate of {from} is not the one enrolled for {peer}")]
    WrongNode {
        /// Who showed it.
        from: SocketAddr,
        /// Who was expected.
        peer: String,
    },
    /// A greeting that contradicts the certificate or the configuration.
    #[error("{from} contradicts itself: {why}")]
    Contradiction {
        /// Who.
        from: SocketAddr,
        /// In what.
        why: String,
    },
    /// No protocol version in common.
    #[error(
        "no common protocol version: this node speaks {}-{}, {from} {}-{}",
        ours.0, ours.1, theirs.0, theirs.1
    )]
    Version {
        /// Our range.
        ours: (u16, u16),
        /// Its range.
        theirs: (u16, u16),
        /// Who.
        from: SocketAddr,
    },
    /// Bytes that are no TLS or no frame.
    #[error("{from} speaks another protocol: {why}")]
    Garbage {
        /// Who.
        from: SocketAddr,
        /// Where it failed.
        why: String,
    },
    /// A step did not finish in time.
    #[error("{step} with {with} did not finish within {limit_ms} ms")]
    Deadline {
        /// Which step.
        step: &'static str,
        /// With whom.
        with: SocketAddr,
        /// The limit.
        limit_ms: u64,
    },
    /// The network.
    #[error("cannot {operation} {with}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With whom, or on which address.
        with: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no control connection.
    #[error("the peer is not connected")]
    NotConnected,
    /// The bounded queue to the peer is full.
    #[error("the queue to the peer is full")]
    QueueFull,
    /// A message that no frame can carry.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A thread or timer the system did not give.
    #[error("cannot start {what}: {source}")]
    Start {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl LinkError {
    /// The code shown to the operator.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoPair(_) => "SKC-E2001",
            Self::AlreadyInPair(_) => "SKC-E2002",
            Self::Keys { .. } => "SKC-E2003",
            Self::Node(_) => "SKC-E2004",
            Self::TokenSyntax(_) => "SKC-E2010",
            Self::TokenExpired => "SKC-E2011",
            Self::TokenUsed => "SKC-E2012",
            Self::WrongAuthority(_) => "SKC-E2013",
            Self::PairComplete(_) => "SKC-E2014",
            Self::NoAuthority => "SKC-E2015",
            Self::Certificate { .. } => "SKC-E2020",
            Self::WrongNode { .. } => "SKC-E2021",
            Self::Contradiction { .. } => "SKC-E2022",
            Self::Version { .. } => "SKC-E2023",
            Self::Garbage { .. } => "SKC-E2024",
            Self::Deadline { .. } => "SKC-E2025",
            Self::RefusedByPeer { .. } => "SKC-E2026",
            Self::Io { .. } => "SKC-E2027",
            Self::NotConnected => "SKC-E2030",
            Self::QueueFull => "SKC-E2031",
            Self::Frame(_) => "SKC-E2032",
            Self::Start { .. } => "SKC-E2033",
            Self::Store(error) => error.code(),
        }
    }

    /// What the operator can do next.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoPair(_) => "run `skc init` on the first node, `skc join TOKEN` on the second",
            Self::AlreadyInPair(_) => "name another --state directory, or move this one away",
            Self::Keys { .. } => "restore the state directory's pki folder, or enrol this node again",
            Self::Node(_) => "names are lower-case letters, digits and '-'; addresses are the node's own",
            Self::TokenSyntax(_) => "copy the whole line that `skc token` printed",
            Self::TokenExpired | Self::TokenUsed => "run `skc token` on the first node for a new one",
            Self::WrongAuthority(_) => "check that the token's address belongs to the first node",
            Self::PairComplete(_) => "a pair has two nodes; to replace one, join under its name",
            Self::NoAuthority => "run this on the node where `skc init` was run",
            Self::Certificate { .. } | Self::WrongNode { .. } => {
                "if this is the other node, enrol it again: `skc token` there, `skc join` here"
            }
            Self::Contradiction { .. } => "compare pair.json on both nodes",
            Self::Version { .. } => "install the same release on both nodes",
            Self::Garbage { .. } => "find out what connects to skc's port",
            Self::Deadline { .. } | Self::Io { .. } => {
                "check that the other node runs and its port is reachable"
            }
            Self::RefusedByPeer { .. } => "the reason is the other node's",
            Self::NotConnected | Self::QueueFull => "check the network between the nodes",
            Self::Frame(_) => "both nodes should run the same release",
            Self::Start { .. } => "check the limits on threads and descriptors",
            Self::Store(_) => "check the state directory, its owner and its disk",
        }
    }
}
