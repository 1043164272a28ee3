//! Becoming a pair: `init`, both halves of a join, and enrolment without a network.

use super::authority::{Authority, CA_CERT, NODE_CERT, NODE_KEY, fingerprint, generate_key, signing_request};
use super::pair::{FILE, check_node};
use super::token::Token;
use super::{Identity, Node, PairFile, Secret, token};
use crate::link::LinkError;
use crate::proto::control::{JoinReply, JoinRequest, VERSIONS};
use crate::store::StateDir;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::IpAddr;
use zeroize::Zeroizing;

/// What the operator says about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSetup {
    /// A DNS label.
    pub name: String,
    /// Its own addresses, in the order of paths.
    pub addresses: Vec<IpAddr>,
    /// TCP and UDP port.
    pub port: u16,
}

impl NodeSetup {
    fn check(&self) -> Result<(), LinkError> {
        check_node(&self.name, &self.addresses, self.port)
    }

    fn into_node(self, certificate: String) -> Node {
        Node { name: self.name, addresses: self.addresses, port: self.port, certificate }
    }
}

fn refuse_member(state: &StateDir) -> Result<(), LinkError> {
    if state.read_small(FILE)?.is_some() {
        return Err(LinkError::AlreadyInPair(state.root().display().to_string()));
    }
    Ok(())
}

/// Makes a pair of one node. `pair.json` is written last, so an interrupted run is repeated.
///
/// # Errors
/// Bad names or addresses, a state directory that is in a pair, I/O.
pub fn init(state: &StateDir, setup: NodeSetup) -> Result<Identity, LinkError> {
    setup.check()?;
    refuse_member(state)?;
    state.make_dir("pki")?;
    let mut pair = PairFile::new(setup.clone().into_node(String::new()))?;
    let authority = Authority::create(state, &pair.pair_id)?;
    let key = generate_key()?;
    let certificate = authority.sign(&signing_request(&key, &setup.name)?, &setup.name, &pair.pair_id)?;
    state.write_atomic(NODE_KEY, Zeroizing::new(key.serialize_pem()).as_bytes())?;
    state.write_atomic(NODE_CERT, certificate.pem().as_bytes())?;
    pair.nodes = vec![setup.into_node(fingerprint(certificate.der()))];
    pair.save(state)?;
    Identity::load(state)
}

/// First half of a join, on the new node: its key and the request for the first node.
///
/// # Errors
/// Bad names or addresses, a state directory that is in a pair.
pub fn prepare_join(
    state: &StateDir,
    setup: &NodeSetup,
    token: &Token,
) -> Result<(KeyPair, JoinRequest), LinkError> {
    refuse_member(state)?;
    prepare(setup, token.secret())
}

fn prepare(setup: &NodeSetup, secret: &[u8]) -> Result<(KeyPair, JoinRequest), LinkError> {
    setup.check()?;
    let key = generate_key()?;
    let request = JoinRequest {
        versions: VERSIONS,
        secret: secret.to_vec(),
        name: setup.name.clone(),
        addresses: setup.addresses.clone(),
        port: setup.port,
        request: signing_request(&key, &setup.name)?,
    };
    Ok((key, request))
}

/// The first node's half of a join: checks the token, uses it up, signs, remembers the new node.
/// Callers run one at a time.
///
/// Order: secret, then everything the operator may have mistyped (which leaves the token valid),
/// then the token is gone for good, then the certificate, `pair.json`, and the reply. If the reply
/// is lost, a new token and the same name repair it.
///
/// # Errors
/// Token, name or authority refused; I/O.
pub fn admit(state: &StateDir, request: &JoinRequest) -> Result<JoinReply, LinkError> {
    token::verify(state, &request.secret)?;
    let pair = member_to_be(state, request)?;
    token::consume(state, &request.secret)?;
    sign_in(state, pair, request)
}

/// Both state directories of a pair at once, for labs, tests and machines without a network.
///
/// # Errors
/// As `init` and `join`.
#[expect(clippy::needless_pass_by_value, reason = "both nodes are given in the same form")]
pub fn enroll_offline(
    first: (&StateDir, NodeSetup),
    second: (&StateDir, NodeSetup),
) -> Result<(Identity, Identity), LinkError> {
    second.1.check()?;
    refuse_member(second.0)?;
    init(first.0, first.1)?;
    let (key, request) = prepare(&second.1, &[])?;
    let reply = sign_in(first.0, member_to_be(first.0, &request)?, &request)?;
    let second = finish_join(second.0, &second.1, &key, &reply)?;
    Ok((Identity::load(first.0)?, second))
}

/// May this node become the second one? Gives the pair as it is now.
fn member_to_be(state: &StateDir, request: &JoinRequest) -> Result<PairFile, LinkError> {
    let pair = PairFile::load(state)?.ok_or_else(|| LinkError::NoPair(state.root().display().to_string()))?;
    check_node(&request.name, &request.addresses, request.port)?;
    if request.name == pair.me {
        return Err(LinkError::Node(format!("{} is the name of the first node", pair.me)));
    }
    if let Some(peer) = pair.peer().filter(|peer| peer.name != request.name) {
        return Err(LinkError::PairComplete(format!("{} and {}", pair.me, peer.name)));
    }
    let taken = |address: &&IpAddr| pair.me().is_some_and(|me| me.addresses.contains(*address));
    if let Some(address) = request.addresses.iter().find(taken) {
        return Err(LinkError::Node(format!("{address} is an address of {}", pair.me)));
    }
    let families =
        |me: &Node| me.addresses.iter().zip(&request.addresses).all(|(a, b)| a.is_ipv4() == b.is_ipv4());
    if !pair.me().is_some_and(families) {
        return Err(LinkError::Node(
            "address i of one node must reach address i of the other: IPv4 and IPv6 are mixed up".into(),
        ));
    }
    Ok(pair)
}

fn sign_in(state: &StateDir, mut pair: PairFile, request: &JoinRequest) -> Result<JoinReply, LinkError> {
    let authority = Authority::load(state)?;
    let certificate = authority.sign(&request.request, &request.name, &pair.pair_id)?;
    let member = Node {
        name: request.name.clone(),
        addresses: request.addresses.clone(),
        port: request.port,
        certificate: fingerprint(certificate.der()),
    };
    pair.nodes.retain(|node| node.name == pair.me);
    pair.nodes.push(member);
    // A machine that was replaced must not be able to forge heartbeats.
    pair.heartbeat_key = Secret::random()?;
    pair.save(state)?;
    pair.me.clone_from(&request.name);
    let text = String::from_utf8(pair.encode()?.to_vec())
        .map_err(|_| LinkError::Keys { what: FILE, why: "not UTF-8".into() })?;
    Ok(JoinReply { authority: authority.pem, certificate: certificate.pem(), pair: text })
}

/// Last half of a join, on the new node: checks and keeps what it got; `pair.json` last.
///
/// # Errors
/// A reply that does not fit the request; I/O.
pub fn finish_join(
    state: &StateDir,
    setup: &NodeSetup,
    key: &KeyPair,
    reply: &JoinReply,
) -> Result<Identity, LinkError> {
    refuse_member(state)?;
    let broken = |why: &str| LinkError::Keys { what: "reply to the join", why: why.to_owned() };
    let pair = PairFile::parse(reply.pair.as_bytes())?;
    let me = pair.me().ok_or_else(|| broken("it does not list this node"))?;
    let certificate = CertificateDer::from_pem_slice(reply.certificate.as_bytes())
        .map_err(|_| broken("no certificate in it"))?;
    if me.name != setup.name || me.certificate != fingerprint(&certificate) || pair.peer().is_none() {
        return Err(broken("it is about another node"));
    }
    state.make_dir("pki")?;
    state.write_atomic(CA_CERT, reply.authority.as_bytes())?;
    state.write_atomic(NODE_KEY, Zeroizing::new(key.serialize_pem()).as_bytes())?;
    state.write_atomic(NODE_CERT, reply.certificate.as_bytes())?;
    pair.save(state)?;
    Identity::load(state)
}

#[cfg(test)]
#[path = "enroll_tests.rs"]
mod tests;
