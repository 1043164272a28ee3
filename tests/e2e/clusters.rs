//! Several clusters on one pair.

use crate::harness::arena;
use crate::scenario::{Cluster, Spec};
use skc::lab::{Kill, Node};
use std::time::Duration;

const LEFT: Spec = Spec {
    cluster: "left",
    directory: "/srv/left",
    port: 7701,
    vip: Some("10.77.1.101"),
    failover: "{preferredPrimary: node-a}",
    ..Spec::LEDGER
};
const RIGHT: Spec = Spec {
    cluster: "right",
    directory: "/srv/right",
    port: 7702,
    vip: Some("10.77.1.102"),
    failover: "{preferredPrimary: node-b}",
    ..Spec::LEDGER
};
/// What a cluster may feel of another one's operations: scheduling on a busy machine, not a timer.
const NOTHING: Duration = Duration::from_millis(600);

#[test]
fn clusters_of_one_pair_move_apart_from_each_other() {
    let Some(lab) = arena("two-clusters") else { return };
    let (a, b) = (Node::NodeA, Node::NodeB);
    let left = Cluster::apply(&lab, &LEFT);
    let right = Cluster::add_on(b, &lab, &RIGHT);
    assert_eq!((left.settled(), right.settled()), (a, b), "each at the node that is preferred");
    let (writers, others) = (left.load(), right.load());
    left.progress(&writers, 200);
    right.progress(&others, 200);

    // Only what was served by the node that died moves.
    lab.kill(a, Kill::Power).expect("the power cut");
    left.progress(&writers, 200);
    right.progress(&others, 200);
    for cluster in [&left, &right] {
        cluster.wait(b, &["ALONE", "Ready", "vip"]);
        cluster.vip_is_at(b);
    }
    assert!(right.events(b).iter().any(|(code, _)| code == "SKC-V0008"), "one went on alone");
    left.power_on(a);
    for cluster in [&left, &right] {
        cluster.wait(a, &["SECOND", "Ready", "UpToDate"]);
        cluster.wait(b, &["PRIM", "Ready", "vip"]);
    }

    // Crossed again by a swap of one; then one is stopped and started.
    let begin = others.now();
    left.does(b, "swap", &[]);
    left.wait(a, &["PRIM", "Ready", "vip"]);
    left.wait(b, &["SECOND", "Ready", "UpToDate"]);
    left.progress(&writers, 200);
    left.does(b, "stop", &[]);
    left.does(a, "stop", &[]);
    right.progress(&others, 200);
    assert!(right.is(b, &["PRIM", "Ready", "vip"]) && right.is(a, &["SECOND", "Ready", "UpToDate"]));
    left.does(a, "start", &[]);
    left.does(b, "start", &[]);
    assert_eq!(left.settled(), a);
    left.progress(&writers, 100);
    let (pause, _) = others.longest_gap(begin, others.now());
    eprintln!("the other cluster's writers waited {pause:?}");
    assert!(pause <= NOTHING, "the other cluster did not notice: {pause:?}");
    assert_eq!(left.finish(writers), a);
    assert_eq!(right.finish(others), b);
}
