//! Power cuts in the middle of a resync: a copy that is being made is nobody's data until it is whole.

use crate::harness::{always, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec, TIMEOUT};
use skc::lab::{Kill, Lab, Node};
use std::time::Duration;

/// Slow enough to be met in the middle: [`BULK`] takes six seconds.
const SPEC: Spec = Spec { replication: "resyncBandwidth: 4MiB/s", ..Spec::LEDGER };
/// What the standby lacks when it comes back.
const BULK: &str =
    "dd if=/dev/urandom of=/srv/ledger/bulk bs=1M count=24 status=none && sync /srv/ledger/bulk";

/// Cuts the standby's power, lets it miss a lot, brings it back, and returns while it is being resynced.
fn in_the_middle(lab: &Lab, cluster: &Cluster<'_>, primary: Node, standby: Node) {
    lab.kill(standby, Kill::Power).expect("the power cut");
    cluster.wait(primary, &["ALONE", "vip"]);
    lab.run(primary, &["sh", "-c", BULK], Duration::from_secs(30)).expect("write a lot");
    cluster.power_on(standby);
    cluster.wait(standby, &["SECOND", "Inconsistent", "SKC-R0306"]);
    let begun = || std::fs::metadata(cluster.backing(standby).join("bulk")).is_ok_and(|file| file.len() > 0);
    until("some of it has come", SETTLE, begun);
}

#[test]
fn target_loses_power_in_a_resync() {
    let Some(lab) = arena("resync-target") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 100);
    in_the_middle(&lab, &cluster, primary, standby);
    lab.kill(standby, Kill::Power).expect("the power cut");
    cluster.progress(&load, 100);
    cluster.wait(primary, &["ALONE", "Ready", "vip"]);
    cluster.power_on(standby);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn source_loses_power_in_a_resync() {
    let Some(lab) = arena("resync-source") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 100);
    in_the_middle(&lab, &cluster, primary, standby);
    lab.kill(primary, Kill::Power).expect("the power cut");
    // Half a copy serves nobody, however long it is alone.
    cluster.wait(standby, &["WAIT", "Inconsistent"]);
    always("it does not serve half a copy", 4 * TIMEOUT, || {
        cluster.is(standby, &["WAIT", "Inconsistent", "no-vip"])
    });
    let refused = cluster.verb(standby, "promote", &[]);
    assert!(refused.is_err(), "not without force: {refused:?}");
    cluster.power_on(primary);
    assert_eq!(cluster.settled(), primary);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn both_lose_power_in_a_resync() {
    let Some(lab) = arena("resync-both") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 100);
    in_the_middle(&lab, &cluster, primary, standby);
    for node in [primary, standby] {
        lab.kill(node, Kill::Power).expect("the power cut");
    }
    // The one with half a copy is up first, and waits.
    cluster.power_on(standby);
    cluster.wait(standby, &["WAIT", "Inconsistent"]);
    cluster.power_on(primary);
    assert_eq!(cluster.settled(), primary);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}
