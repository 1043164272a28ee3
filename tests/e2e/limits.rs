//! Services that cannot be kept alive: restarts are limited, and the end is loud.

use crate::harness::{Arena, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::Node;
use skc::lab::process::arguments;
use skc::lab::wait::Part;
use skc::sys::namespace::{Signal, signal};
use std::collections::HashSet;

/// The server's processes in the pair.
fn servers(lab: &Arena) -> Vec<u32> {
    let all = Node::PAIR.into_iter().flat_map(|node| lab.processes(node, Part::All).unwrap_or_default());
    all.filter(|pid| arguments(*pid).iter().any(|argument| argument == "serve")).collect()
}

/// A node in STOP says that it is for the limit; so does the other, or it was no standby yet when that
/// happened, and waits for the named start. Nothing runs, nobody has the address.
#[track_caller]
fn ended_loudly(cluster: &Cluster<'_>) {
    let limit = |node: Node| cluster.is(node, &["STOP", "no-vip", "SKC-R0503"]);
    let asks = |node: Node, peer: Node| {
        let start = format!("skc start {} (on node {peer})", cluster.name);
        cluster.is(node, &["WAIT", "no-vip"]) && cluster.status(node)["command"] == start
    };
    until("the limit ends it", SETTLE, || {
        let [a, b] = Node::PAIR;
        [(a, b), (b, a)].into_iter().any(|(one, other)| limit(one) && (limit(other) || asks(other, one)))
    });
    for node in Node::PAIR {
        assert!(!cluster.holds_vip(node), "{node} gave the address up");
        let loud = cluster.events(node).iter().any(|(code, _)| code == "SKC-V0021");
        assert!(loud || !limit(node), "the limit is an event of {node}: {:?}", cluster.events(node));
    }
    assert_eq!(servers(cluster.lab), [0; 0], "nothing runs");
}

/// Starts the cluster where it is stopped now: nothing is started while it stops again.
#[track_caller]
fn start_the_stopped(cluster: &Cluster<'_>) {
    let stopped = Node::PAIR.map(|node| cluster.is(node, &["STOP"]));
    for (node, _) in Node::PAIR.into_iter().zip(stopped).filter(|(_, stopped)| *stopped) {
        cluster.does(node, "start", &[]);
    }
}

#[test]
fn service_that_dies_again_and_again_ends_in_stop() {
    let Some(lab) = arena("dies-again") else { return };
    let spec = Spec { failover: "{maxRestarts: 2, window: 1h}", ..Spec::LEDGER };
    let (cluster, ..) = Cluster::start(&lab, &spec);
    let load = cluster.load();
    cluster.progress(&load, 100);
    let mut deaths = HashSet::new();
    until("the restart limit ends it", SETTLE, || {
        for pid in servers(&lab) {
            deaths.extend(signal(pid, Signal::Kill).is_ok().then_some(pid));
        }
        Node::PAIR.into_iter().all(|node| cluster.is(node, &["STOP"]))
    });
    let deaths = deaths.len();
    eprintln!("{deaths} deaths");
    ended_loudly(&cluster);
    // Each node counts its own: two of each are allowed, one more each ends it.
    assert!((3..=6).contains(&deaths), "{deaths} deaths with two restarts allowed on each node");
    // The operator mended it: a start forgives.
    for node in Node::PAIR {
        cluster.does(node, "start", &[]);
    }
    cluster.settled();
    cluster.progress(&load, 200);
    cluster.finish(load);
}

#[test]
fn service_that_never_starts_ends_in_stop_and_starts_when_mended() {
    let Some(lab) = arena("never-starts") else { return };
    for (name, run) in [("missing", "[/nonexistent/program]"), ("failing", "[sh, -c, 'exit 7']")] {
        let spec = Spec { run, failover: "{maxRestarts: 1, window: 1h}", ..Spec::LEDGER };
        let cluster = if name == "missing" {
            Cluster::apply(&lab, &spec)
        } else {
            Cluster::add_on(Node::NodeA, &lab, &spec)
        };
        if name == "failing" {
            start_the_stopped(&cluster);
        }
        ended_loudly(&cluster);
        let said = Node::PAIR.map(|node| cluster.status(node)["services"].to_string());
        let word = if name == "missing" { "could not be executed" } else { "ended by itself" };
        assert!(said.iter().any(|text| text.contains(word)), "{name}: status says why: {said:?}");
        cluster.verdict();
    }
    let cluster = Cluster::add_on(Node::NodeB, &lab, &Spec::LEDGER);
    start_the_stopped(&cluster);
    cluster.settled();
    let load = cluster.load();
    cluster.progress(&load, 200);
    cluster.finish(load);
}
