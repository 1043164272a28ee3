//! Enrolment without a network.

use super::*;
use crate::base::NodeId;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

fn setup(name: &str, address: &str) -> NodeSetup {
    NodeSetup { name: name.into(), addresses: vec![address.parse().unwrap()], port: 7690 }
}

fn state() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    (dir, state)
}

#[test]
fn both_nodes_of_an_offline_pair_know_each_other() {
    let ((a_dir, a), (_b_dir, b)) = (state(), state());
    let (first, second) =
        enroll_offline((&a, setup("node-b", "10.0.0.1")), (&b, setup("node-a", "10.0.0.2"))).unwrap();
    assert_eq!((first.node_id(), second.node_id()), (Some(NodeId::B), Some(NodeId::A)));
    assert_eq!(first.peer(), Some(second.me()));
    assert_eq!(second.peer(), Some(first.me()));
    assert_eq!(first.heartbeat_key(), second.heartbeat_key());
    assert!(b.read_small("pki/ca.key").unwrap().is_none(), "the authority's key does not travel");
    for file in ["pair.json", "pki/ca.key", "pki/node.key", "pki/ca.pem", "pki/node.pem"] {
        let mode = std::fs::metadata(a_dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert!(!format!("{first:?}").contains("PRIVATE"));
}

#[test]
fn a_token_works_once_and_only_within_its_lifetime() {
    let (_a_dir, a) = state();
    let identity = init(&a, setup("node-a", "10.0.0.1")).unwrap();
    assert_eq!(identity.node_id(), None);

    let expired = token::issue(&identity, Duration::ZERO).unwrap();
    let (_b_dir, b) = state();
    let (_, request) = prepare_join(&b, &setup("node-b", "10.0.0.2"), &expired).unwrap();
    assert!(matches!(admit(&a, &request), Err(LinkError::TokenExpired)));

    let good = token::issue(&identity, token::LIFETIME).unwrap();
    let good = Token::decode(&good.encode().unwrap()).unwrap();
    // What the operator mistyped leaves the token valid.
    for wrong in [setup("node-a", "10.0.0.2"), setup("node-b", "10.0.0.1"), setup("node-b", "fd00::2")] {
        let (_, request) = prepare_join(&b, &wrong, &good).unwrap();
        assert!(matches!(admit(&a, &request), Err(LinkError::Node(_))));
    }
    let join = setup("node-b", "10.0.0.2");
    let (key, request) = prepare_join(&b, &join, &good).unwrap();
    let reply = admit(&a, &request).unwrap();
    assert!(matches!(admit(&a, &request), Err(LinkError::TokenUsed)));
    let second = finish_join(&b, &join, &key, &reply).unwrap();
    assert_eq!(second.peer().unwrap().name, "node-a");

    // A third node is refused; the second may enrol again, with a new certificate and key.
    let first = Identity::load(&a).unwrap();
    let again = token::issue(&first, token::LIFETIME).unwrap();
    let (_c_dir, c) = state();
    let (_, request) = prepare_join(&c, &setup("node-c", "10.0.0.3"), &again).unwrap();
    assert!(matches!(admit(&a, &request), Err(LinkError::PairComplete(_))));
    let (_, request) = prepare_join(&c, &join, &again).unwrap();
    admit(&a, &request).unwrap();
    let renewed = Identity::load(&a).unwrap();
    assert_ne!(renewed.peer(), first.peer());
    assert_ne!(renewed.heartbeat_key(), first.heartbeat_key());
    assert!(matches!(prepare_join(&b, &join, &again), Err(LinkError::AlreadyInPair(_))));
}

#[test]
fn every_changed_or_cut_token_is_refused() {
    let (_dir, a) = state();
    let identity = init(&a, setup("node-a", "10.0.0.1")).unwrap();
    let text = token::issue(&identity, token::LIFETIME).unwrap().encode().unwrap();
    for at in 0..text.len() {
        assert!(Token::decode(&text[..at]).is_err());
        let mut changed = text.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(Token::decode(std::str::from_utf8(&changed).unwrap()).is_err(), "at {at}");
    }
    assert!(Token::decode(&"x".repeat(5000)).is_err());
}

#[test]
fn names_and_addresses_that_cannot_be_are_refused() {
    let (_dir, a) = state();
    for name in ["", "-a", "a-", "A", "a.b", "a/b", &"x".repeat(64)] {
        assert!(matches!(init(&a, setup(name, "10.0.0.1")), Err(LinkError::Node(_))), "{name}");
    }
    for address in ["0.0.0.0", "224.0.0.1", "::"] {
        assert!(matches!(init(&a, setup("a", address)), Err(LinkError::Node(_))), "{address}");
    }
    let twice = NodeSetup { addresses: vec!["10.0.0.1".parse().unwrap(); 2], ..setup("a", "10.0.0.1") };
    assert!(matches!(init(&a, twice), Err(LinkError::Node(_))));
    assert!(matches!(Identity::load(&a), Err(LinkError::NoPair(_))));
}
