//! `pair.json`: the pair as one node sees it.

use super::ADDRESSES_MAX;
use crate::link::LinkError;
use crate::store::StateDir;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::net::IpAddr;
use zeroize::Zeroizing;

/// Name of the file in the state directory.
pub(super) const FILE: &str = "pair.json";
const VERSION: u32 = 1;

/// 32 secret bytes: wiped on drop, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// Fresh from the kernel.
    pub(crate) fn random() -> Result<Self, LinkError> {
        super::random().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// The bytes, for key derivation only.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(HEXLOWER.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(
            HEXLOWER
                .decode(text.as_bytes())
                .map_err(|_| D::Error::custom("a key is 64 hexadecimal digits"))?,
        );
        let bytes = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| D::Error::custom("a key is 64 hexadecimal digits"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

/// One machine of the pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name; the lower one is `NodeId::A`.
    pub name: String,
    /// Where it listens; address i of both nodes make path i.
    pub addresses: Vec<IpAddr>,
    /// TCP and UDP port.
    pub port: u16,
    /// Fingerprint of its certificate ([`super::fingerprint`]).
    pub certificate: String,
}

/// Content of `pair.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairFile {
    /// Format version.
    pub version: u32,
    /// Random, 32 hexadecimal digits.
    pub pair_id: String,
    /// Which of `nodes` this machine is.
    pub me: String,
    /// One until the second has joined, then two.
    pub nodes: Vec<Node>,
    /// Source of the heartbeat keys.
    pub heartbeat_key: Secret,
}

impl PairFile {
    /// A pair of one node with a fresh id and key.
    pub(super) fn new(me: Node) -> Result<Self, LinkError> {
        Ok(Self {
            version: VERSION,
            pair_id: HEXLOWER.encode(&super::random::<16>()?),
            me: me.name.clone(),
            nodes: vec![me],
            heartbeat_key: Secret::random()?,
        })
    }

    /// Reads and checks the file of a state directory; `None` if the node is in no pair.
    ///
    /// # Errors
    /// I/O, or content that no release of ours writes.
    pub fn load(state: &StateDir) -> Result<Option<Self>, LinkError> {
        let Some(bytes) = state.read_small(FILE)? else { return Ok(None) };
        Self::parse(&Zeroizing::new(bytes)).map(Some)
    }

    /// Decodes and checks.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, LinkError> {
        let broken = |why: String| LinkError::Keys { what: FILE, why };
        let pair: Self = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
        if pair.version != VERSION {
            return Err(broken(format!("version {} where {VERSION} is known", pair.version)));
        }
        if pair.pair_id.len() != 32 || !pair.pair_id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(broken("the pair id is not 32 hexadecimal digits".into()));
        }
        if pair.nodes.len() > 2 || !pair.nodes.iter().any(|node| node.name == pair.me) {
            return Err(broken("it must list this node and at most one other".into()));
        }
        if matches!(pair.nodes.as_slice(), [a, b] if a.name == b.name) {
            return Err(broken("both nodes have the same name".into()));
        }
        for node in &pair.nodes {
            check_node(&node.name, &node.addresses, node.port)?;
        }
        Ok(pair)
    }

    /// Writes the file.
    pub(super) fn save(&self, state: &StateDir) -> Result<(), LinkError> {
        Ok(state.write_atomic(FILE, &self.encode()?)?)
    }

    /// As JSON text.
    pub(super) fn encode(&self) -> Result<Zeroizing<Vec<u8>>, LinkError> {
        serde_json::to_vec_pretty(self)
            .map(Zeroizing::new)
            .map_err(|error| LinkError::Keys { what: FILE, why: error.to_string() })
    }

    /// This machine.
    pub fn me(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == self.me)
    }

    /// The other one, once it has joined.
    pub fn peer(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name != self.me)
    }
}

/// Refuses what cannot be a node: the name becomes a DNS label in a certificate.
pub(super) fn check_node(name: &str, addresses: &[IpAddr], port: u16) -> Result<(), LinkError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let shown: String = name.chars().take(64).collect();
    if name.is_empty()
        || name.len() > 63
        || !name.bytes().all(legal)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        return Err(LinkError::Node(format!("{shown:?} is no node name")));
    }
    if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
        return Err(LinkError::Node(format!("node {name} needs 1 to {ADDRESSES_MAX} addresses")));
    }
    if port == 0 {
        return Err(LinkError::Node(format!("node {name} needs a port other than 0")));
    }
    for (index, address) in addresses.iter().enumerate() {
        if address.is_unspecified() || address.is_multicast() {
            return Err(LinkError::Node(format!("{address} cannot be an address of node {name}")));
        }
        if addresses.iter().skip(index + 1).any(|other| other == address) {
            return Err(LinkError::Node(format!("node {name} names {address} twice")));
        }
    }
    Ok(())
}
