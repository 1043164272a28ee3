//! The link between the two nodes of a pair: one control connection, data connections, heartbeats.
//!
//! - **Control**: one TLS 1.3 connection with mutual authentication, dialled by `NodeId::A` over the
//!   first path that lives. When that path's heartbeats stop while another path lives, both sides
//!   close it and A dials over the living one (detected after 2.75 intervals, 550 ms by default).
//!   It stays where it is when the first path returns: every move costs a session.
//! - **Data**: [`LinkHandle::dial_data`] makes a connection on the control connection's path and
//!   hands over the blocking socket and the TLS state, so that replication threads own both.
//! - **Heartbeats**: authenticated datagrams on every path, sent by a thread of their own.
//!
//! Path i = address i of this node with address i of the peer.
//!
//! Events (one bounded channel): exactly one [`LinkEvent::Down`] for each [`LinkEvent::Up`]; messages
//! in order, at most once, only between the two; heartbeats are coalesced to the newest of each path
//! when the receiver is slow. Data connections outlive `Down`: their owner closes them (their
//! socket has `TCP_USER_TIMEOUT`, so nothing waits for ever).
//!
//! Failure: nothing here decides anything. A path, a connection or the peer that is lost is
//! reported; a stranger is refused, counted and reported; what fails is tried again with a bounded
//! back-off until [`LinkHandle::shutdown`].

mod accept;
mod connection;
mod control;
mod data;
mod dial;
pub mod error;
mod handle;
mod heartbeat;
pub mod join;
pub mod pki;
mod tls;
pub mod tombstone;
mod types;
mod wire;

pub use data::DataConn;
pub use error::LinkError;
pub use handle::{Link, LinkHandle};
pub use pki::Identity;
pub use tombstone::Tombstone;
pub use types::{DownReason, Faults, Life, LinkConfig, LinkEvent, LinkStatus, PathStatus, SessionStatus};

/// Longest heartbeat or tombstone body: header, body and code fit an Ethernet frame over IPv6.
pub const BODY_MAX: usize = 1200;
