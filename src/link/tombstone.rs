//! Tombstones: "my agent is dead and will not come back", sent by the guard with a plain socket.
//!
//! The worker prepares the datagram while it lives (authenticated like a heartbeat, bound to its
//! life) and hands it to the guard, which needs no keys. The receiver accepts it only for the life
//! that it knows as the peer's present one.

use super::pki::Identity;
use super::{Life, LinkError, heartbeat};
use crate::link::heartbeat::datagram::{ANY_PATH, Datagram, Keys, Kind};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A ready-made datagram and where to send it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The bytes of one datagram.
    #[serde(with = "serde_bytes")]
    pub datagram: Vec<u8>,
    /// From which of our addresses (any port) to which of the peer's; send on every one, a few
    /// times.
    pub routes: Vec<(IpAddr, SocketAddr)>,
}

/// Prepares the tombstone of this life of the agent.
///
/// # Errors
/// No peer yet; a body above [`super::BODY_MAX`].
pub fn seal(identity: &Identity, life: &Life, body: &[u8]) -> Result<Tombstone, LinkError> {
    heartbeat::check_body(body)?;
    let peer = identity.peer().ok_or(LinkError::NotConnected)?;
    let datagram = Keys::new(identity, peer).seal(&Datagram {
        kind: Kind::Tombstone,
        path: ANY_PATH,
        life: *life,
        sequence: 0,
        interval: 0,
        sent: 0,
        echo: None,
        body: body.to_vec(),
    });
    let routes = identity
        .me()
        .addresses
        .iter()
        .zip(&peer.addresses)
        .map(|(ours, theirs)| (*ours, SocketAddr::new(*theirs, peer.port)))
        .collect();
    Ok(Tombstone { datagram, routes })
}
