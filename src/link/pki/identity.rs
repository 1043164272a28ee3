//! [`Identity`]: what a running node needs to prove who it is and to recognise its peer.

use super::authority::{CA_CERT, NODE_CERT, NODE_KEY, fingerprint};
use super::pair::FILE;
use super::{Node, PairFile, Secret};
use crate::base::NodeId;
use crate::link::LinkError;
use crate::store::StateDir;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Keys, certificates and names of one node. Immutable; read anew after a join.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    pair: PairFile,
    me: Node,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    state: StateDir,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("pair", &self.0.pair.pair_id)
            .field("me", &self.0.me.name)
            .field("peer", &self.peer().map(|node| &node.name))
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity kept in a state directory and checks that its parts fit together.
    ///
    /// # Errors
    /// [`LinkError::NoPair`] before `init` or `join`; otherwise unusable files.
    pub fn load(state: &StateDir) -> Result<Self, LinkError> {
        let pair =
            PairFile::load(state)?.ok_or_else(|| LinkError::NoPair(state.root().display().to_string()))?;
        let broken = |what, why: String| LinkError::Keys { what, why };
        let read = |what| {
            state.read_small(what)?.map(Zeroizing::new).ok_or_else(|| broken(what, "it is missing".into()))
        };
        let certificate = CertificateDer::from_pem_slice(&read(NODE_CERT)?)
            .map_err(|error| broken(NODE_CERT, error.to_string()))?;
        let authority = CertificateDer::from_pem_slice(&read(CA_CERT)?)
            .map_err(|error| broken(CA_CERT, error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&read(NODE_KEY)?)
            .map_err(|error| broken(NODE_KEY, error.to_string()))?;
        let me = pair.me().cloned().ok_or_else(|| broken(FILE, "it does not list this node".into()))?;
        if me.certificate != fingerprint(&certificate) {
            return Err(broken(NODE_CERT, format!("it is not the certificate that {FILE} names")));
        }
        Ok(Self(Arc::new(Inner { pair, me, certificate, authority, key, state: state.clone() })))
    }

    /// The pair's id: 32 hexadecimal digits.
    pub fn pair_id(&self) -> &str {
        &self.0.pair.pair_id
    }

    /// This node.
    pub fn me(&self) -> &Node {
        &self.0.me
    }

    /// The other node, once it has joined.
    pub fn peer(&self) -> Option<&Node> {
        self.0.pair.peer()
    }

    /// A or B by the order of names; `None` while the pair has one node.
    pub fn node_id(&self) -> Option<NodeId> {
        self.peer().map(|peer| if self.0.me.name < peer.name { NodeId::A } else { NodeId::B })
    }

    /// Where it was read from.
    pub fn state(&self) -> &StateDir {
        &self.0.state
    }

    pub(crate) fn heartbeat_key(&self) -> &Secret {
        &self.0.pair.heartbeat_key
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.0.certificate
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.0.authority
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.0.key.clone_key()
    }
}

/// The boot id of the running kernel. `SKC_BOOT_ID` (a UUID) stands in for it in the lab, where two
/// nodes share one kernel.
///
/// # Errors
/// Neither is readable as a UUID.
pub fn boot_id() -> Result<u128, LinkError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = match std::env::var("SKC_BOOT_ID") {
        Ok(text) => text,
        Err(_) => std::fs::read_to_string(PATH)
            .map_err(|error| LinkError::Keys { what: PATH, why: error.to_string() })?,
    };
    parse_boot_id(&text).ok_or(LinkError::Keys { what: "boot id", why: "it is no UUID".into() })
}

fn parse_boot_id(text: &str) -> Option<u128> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    if digits.len() == 32 { u128::from_str_radix(&digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    #[test]
    fn boot_ids_are_uuids() {
        assert_eq!(super::parse_boot_id("00000000-0000-0000-0000-0000000000ff\n"), Some(255));
        for bad in ["", "ff", "zz000000-0000-0000-0000-0000000000ff", "é0000000-0000-0000-0000-0000000000f"]
        {
            assert_eq!(super::parse_boot_id(bad), None);
        }
        assert!(super::boot_id().is_ok());
    }
}
