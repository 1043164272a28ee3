//! Services and checkers that fail.

use crate::harness::{arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::Node;
use skc::lab::process::arguments;
use skc::lab::wait::Part;
use skc::sys::namespace::{Signal, signal};
use std::time::Duration;

#[test]
fn service_that_dies_is_started_again() {
    let Some(lab) = arena("service-dies") else { return };
    let (cluster, _, _) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let servers = || -> Vec<(Node, u32)> {
        let of =
            |node| lab.processes(node, Part::All).unwrap_or_default().into_iter().map(move |pid| (node, pid));
        let all = Node::PAIR.into_iter().flat_map(of);
        all.filter(|(_, pid)| arguments(*pid).iter().any(|argument| argument == "serve")).collect()
    };
    let before = servers();
    assert_eq!(before.len(), 1, "one server runs: {before:?}");
    signal(before[0].1, Signal::Kill).expect("kill -9 of the service");
    until("another server runs", SETTLE, || {
        let now = servers();
        now.len() == 1 && now != before
    });
    cluster.progress(&load, 200);
    cluster.finish(load);
}

#[test]
fn checker_that_fails_moves_the_service() {
    let Some(lab) = arena("checker-fails") else { return };
    let spec = Spec {
        checkers: "    - {name: sound, exec: {command: [test, '!', -e, /run/broken]}, interval: 300ms, timeout: 200ms, onFailure: failover}",
        ..Spec::LEDGER
    };
    let (cluster, primary, standby) = Cluster::start(&lab, &spec);
    let load = cluster.load();
    cluster.progress(&load, 200);
    // Private to the node: /run is its own.
    lab.run(primary, &["touch", "/run/broken"], Duration::from_secs(5)).expect("break it");
    cluster.wait(standby, &["PRIM", "vip"]);
    lab.run(primary, &["rm", "/run/broken"], Duration::from_secs(5)).expect("repair it");
    cluster.progress(&load, 200);
    assert_eq!(cluster.finish(load), standby);
}
