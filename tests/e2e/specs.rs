//! Specs: where they are applied, changes while the cluster runs, refusals.

use crate::harness::{arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::{Kill, Node};
use std::time::Duration;

/// What writers may feel of a change in place: scheduling on a busy machine, not a timer.
const NOTHING: Duration = Duration::from_millis(600);

/// Text and revision of the specs in force are the same on both nodes.
#[track_caller]
fn agree(cluster: &Cluster<'_>, revision: u64) {
    until("both nodes have the same specs in force", SETTLE, || {
        let [a, b] = Node::PAIR.map(|node| cluster.get(node));
        a == b && a[0]["revision"] == revision
    });
}

#[test]
fn spec_applied_on_either_node_reaches_the_other() {
    let Some(lab) = arena("spec-node-b") else { return };
    let cluster = Cluster::apply_on(Node::NodeB, &lab, &Spec::LEDGER);
    let primary = cluster.settled();
    agree(&cluster, 1);
    let load = cluster.load();
    cluster.progress(&load, 100);
    // A node that was down when it changed learns of it, and so does one that changed it meanwhile.
    let standby = primary.peer().expect("a pair");
    lab.kill(standby, Kill::Power).expect("the power cut");
    cluster.wait(primary, &["ALONE", "vip"]);
    cluster.change_on(primary, &Spec::LEDGER.text().replace("failover: {}", "failover: {maxRestarts: 5}"));
    cluster.power_on(standby);
    agree(&cluster, 2);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn change_in_place_is_taken_over_without_a_role_change() {
    let Some(lab) = arena("in-place") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let epochs = || Node::PAIR.map(|node| cluster.status(node)["epoch"].clone());
    let (before, epoch) = (load.now(), epochs());
    let changed = Spec {
        checkers: "    - {name: port, tcp: {port: 7700}, interval: 300ms, timeout: 200ms, onFailure: event}",
        ..Spec::LEDGER
    };
    let text =
        changed.text().replace("  services:", "  replication: {resyncBandwidth: 200MiB/s}\n  services:");
    let said = cluster.change_on(standby, &text);
    for path in ["spec.checkers[port]", "spec.replication.resyncBandwidth"] {
        let line = said.lines().find(|line| line.contains(path));
        assert!(line.is_some_and(|line| line.contains("in place")), "{path} changes in place: {said}");
    }
    agree(&cluster, 2);
    until("the new checker looks", SETTLE, || {
        let checkers = cluster.status(primary)["checkers"].clone();
        checkers[0]["name"] == "port" && checkers[0]["state"] == "Up"
    });
    cluster.progress(&load, 200);
    let (pause, _) = load.longest_gap(before, load.now());
    assert!(pause <= NOTHING, "writers did not notice: {pause:?}");
    assert!(cluster.is(primary, &["PRIM", "Ready", "vip"]) && cluster.is(standby, &["SECOND", "Ready"]));
    assert_eq!(epochs(), epoch, "no new epoch");

    // What needs a stop is refused whole, with the way out: the nodes must count with the same timers.
    for hard in
        [text.replace("/srv/ledger", "/srv/elsewhere"), text.replace("timeout: 1000ms", "timeout: 2s")]
    {
        assert_ne!(hard, text);
        let path = cluster.write_spec("hard.yaml", &hard);
        let error = lab.apply(primary, &path).expect_err("this needs a stop").to_string();
        assert!(error.contains("SKC-E7016") && error.contains("skc stop ledger"), "{error}");
        agree(&cluster, 2);
    }
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn refusal_of_the_other_node_reaches_the_one_who_applies() {
    let Some(lab) = arena("spec-refused") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let specs = lab.node_dir(standby).join("state/specs");
    let immutable = |flag: &str| {
        let done = std::process::Command::new("chattr").arg(flag).arg(&specs).status().expect("chattr runs");
        assert!(done.success(), "chattr {flag} {}", specs.display());
    };
    immutable("+i");
    let text = Spec::LEDGER.text().replace("failover: {}", "failover: {maxRestarts: 5}");
    cluster.change_on(primary, &text);
    let named = |status: &serde_json::Value| {
        let said = status["extra"]["peer_refused"].as_str().unwrap_or_default().to_owned();
        said.contains("SKC-E7014") && said.contains(standby.name())
    };
    until("the refusal is told", SETTLE, || named(&cluster.status(primary)));
    let reasons = cluster.status(primary)["reasons"].to_string();
    assert!(reasons.contains("SKC-E7014"), "{reasons}");
    // The disk is mended: the node asks again by itself.
    immutable("-i");
    agree(&cluster, 2);
    until("the refusal is void", SETTLE, || !named(&cluster.status(primary)));
    cluster.verdict();
}
