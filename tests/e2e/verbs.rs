//! What the operator can do: stop and start, pause and resume, eject, delete.

use crate::harness::{Arena, always, arena};
use crate::scenario::{CLUSTER, Cluster, SETTLE, Spec, TIMEOUT};
use skc::lab::ledger::check;
use skc::lab::ledger::client::{Ack, Load};
use skc::lab::{Kill, Node};
use std::fs;
use std::time::Duration;

const STEP: Duration = Duration::from_secs(10);

/// Stops the primary, which hands over, and then the other node; returns what was acknowledged.
#[track_caller]
fn stop_both(cluster: &Cluster<'_>, load: Load, primary: Node, standby: Node) -> Vec<Ack> {
    let before = load.now();
    cluster.does(primary, "stop", &[]);
    cluster.wait(primary, &["STOP", "no-vip", "SKC-R0507"]);
    cluster.progress(&load, 200);
    let (outage, _) = load.longest_gap(before, load.now());
    assert!(outage <= Duration::from_secs(1), "the stop handed over: {outage:?}");
    cluster.wait(standby, &["ALONE", "Ready", "UpToDate", "vip"]);
    cluster.does(standby, "stop", &[]);
    cluster.wait(standby, &["STOP", "no-vip"]);
    load.stop()
}

/// Is there a mount of ours at the directory, as the node sees it?
fn is_mounted(lab: &Arena, node: Node) -> bool {
    let argv = ["grep", "-q", " /srv/ledger fuse", "/proc/mounts"];
    lab.exec(node, &argv, STEP).expect("look for the mount").status.success()
}

#[test]
fn stop_hands_over_and_the_fresher_node_starts_again() {
    let Some(lab) = arena("stop-start") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let acks = stop_both(&cluster, load, primary, standby);
    for node in Node::PAIR {
        assert!(is_mounted(&lab, node), "the mount of {node} stays");
        let argv = ["touch", "/srv/ledger/by-hand"];
        let error = lab.run(node, &argv, STEP).expect_err("it is read-only").to_string();
        assert!(error.contains("Read-only"), "{node}: {error}");
    }
    // The node that stopped first lacks what the other one acknowledged alone.
    cluster.does(primary, "start", &[]);
    cluster.wait(primary, &["WAIT"]);
    always("the older copy does not serve", 4 * TIMEOUT, || cluster.is(primary, &["WAIT", "no-vip"]));
    cluster.does(standby, "start", &[]);
    assert_eq!(cluster.settled(), standby, "the fresher copy serves");
    cluster.nothing_lost(&acks);
    let load = cluster.load_at(cluster.vip.expect("an address"), 8);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish_all(acks, load), standby);
}

#[test]
fn eject_leaves_a_plain_directory() {
    let Some(lab) = arena("eject") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    for node in Node::PAIR {
        cluster.refuses(node, "eject", &[], "SKC-E7023");
    }
    let acks = stop_both(&cluster, load, primary, standby);
    for node in Node::PAIR {
        cluster.does(node, "eject", &[]);
        assert!(!is_mounted(&lab, node), "{node} has no mount any more");
        always("and gets no new one", Duration::from_secs(3), || !is_mounted(&lab, node));
        lab.run(node, &["touch", "/srv/ledger/by-hand"], STEP).expect("a plain directory is writable");
        lab.run(node, &["rm", "/srv/ledger/by-hand"], STEP).expect("and plain");
    }
    // Every file is reached by the path inside the node, and is what was acknowledged.
    let inside = lab.mounted(standby, "/srv/ledger").expect("the node is up");
    let found = check::check(&inside, &acks).expect("read the ledger");
    assert!(found.good(), "{found:?}");
    cluster.does(standby, "start", &[]);
    cluster.does(primary, "start", &[]);
    assert_eq!(cluster.settled(), standby);
    for node in Node::PAIR {
        assert!(is_mounted(&lab, node), "{node} mirrors again");
    }
    let load = cluster.load_at(cluster.vip.expect("an address"), 8);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish_all(acks, load), standby);
}

#[test]
fn pause_bars_failover_until_resume() {
    let Some(lab) = arena("pause") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    cluster.does(standby, "pause", &[]);
    let outlook = cluster.status(standby)["would_fail_over"].clone();
    assert!(outlook["now"] == false && outlook["why"].as_str().is_some_and(|why| why.contains("paused")));
    lab.kill(primary, Kill::Power).expect("the power cut");
    cluster.wait(standby, &["WAIT", "SKC-R0302"]);
    always("it does not take over", 4 * TIMEOUT, || cluster.is(standby, &["WAIT", "no-vip"]));
    let command = cluster.status(standby)["command"].clone();
    assert!(command.as_str().is_some_and(|c| c.starts_with("skc promote ledger")), "a command: {command}");
    cluster.power_on(primary);
    let served = cluster.settled();
    cluster.progress(&load, 200);
    let other = served.peer().expect("a pair");
    cluster.does(standby, "resume", &[]);
    lab.kill(served, Kill::Power).expect("the power cut");
    cluster.progress(&load, 200);
    cluster.wait(other, &["ALONE", "Ready", "vip"]);
    cluster.power_on(served);
    assert_eq!(cluster.finish(load), other);
}

#[test]
fn delete_forgets_the_cluster_and_keeps_its_files() {
    let Some(lab) = arena("delete") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    cluster.refuses(primary, "delete", &[], "SKC-E7022");
    let acks = stop_both(&cluster, load, primary, standby);
    cluster.does(primary, "delete", &[]);
    for node in Node::PAIR {
        crate::harness::until("the cluster is forgotten", SETTLE, || {
            lab.status(node).is_ok_and(|all| all.is_empty())
        });
        assert!(!is_mounted(&lab, node), "{node}: nothing is mounted");
        cluster.refuses(node, "start", &[], "SKC-E7015");
    }
    let found = check::check(&cluster.backing(standby), &acks).expect("read the ledger");
    assert!(found.good(), "{found:?}");
    // It does not come back with a restart of the agents.
    for node in Node::PAIR {
        crate::handover::end_agent(&lab, node, &[skc::lab::wait::Part::Guard]);
        lab.start_agent(node).expect("the agent starts");
        lab.wait(node, None, &[skc::lab::wait::Condition::Agent], SETTLE).expect("it answers");
        assert_eq!(lab.status(node).expect("status").len(), 0, "{node} knows no cluster");
    }
    let names = fs::read_dir(cluster.backing(primary)).expect("read the directory").count();
    assert!(names > 2, "the files of {CLUSTER} stay");
    cluster.verdict();
}
