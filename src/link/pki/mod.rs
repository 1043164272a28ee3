//! Who belongs to the pair: its certificate authority, node certificates, one-time tokens, keys.
//!
//! `skc init` makes an authority and the first node; a token invites the second over TLS; labs and
//! air-gapped pairs use [`enroll_offline`]. A node is trusted if its certificate is signed by the
//! pair's authority, carries `NAME.PAIR.pair.skc`, **and** is the very certificate that was
//! enrolled (its fingerprint is in `pair.json`): enrolling a replacement machine under the same
//! name thus locks the old one out, and the heartbeat key changes with it.
//!
//! Certificates do not expire: they live as long as the pair, and a machine whose clock is wrong
//! must still find its peer. The authority's key stays on the node where it was made; if that
//! machine is lost, the pair goes on, but a replacement needs a new `skc init`.

mod authority;
mod enroll;
mod identity;
mod pair;
pub mod token;

pub use authority::fingerprint;
pub use enroll::{NodeSetup, admit, enroll_offline, finish_join, init, prepare_join};
pub use identity::{Identity, boot_id};
pub use pair::{Node, PairFile, Secret};

/// Default port of link and heartbeats (DESIGN section 8).
pub const PORT: u16 = 7690;

/// Most addresses of a node: each is a heartbeat path with a socket and a thread.
pub const ADDRESSES_MAX: usize = 8;

/// The name a node's certificate carries.
pub fn certificate_name(node: &str, pair: &str) -> String {
    format!("{node}.{pair}.pair.skc")
}

/// `N` random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], super::LinkError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| super::LinkError::Keys { what: "kernel random numbers", why: error.to_string() })?;
    Ok(bytes)
}
