//! The guarantee levels below the one that all other scenarios have.

use crate::harness::{always, arena};
use crate::scenario::{Cluster, Spec, TIMEOUT};
use skc::lab::{Kill, Node};
use std::time::Duration;

/// Without arbitration nobody but the operator decides.
#[test]
fn without_arbitration_the_standby_waits_for_the_operator() {
    let Some(lab) = arena("level-0") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec { witness: false, ..Spec::LEDGER });
    assert_eq!(cluster.status(standby)["level"], "L0");
    assert_eq!(cluster.status(standby)["would_fail_over"]["now"], false);
    let load = cluster.load();
    cluster.progress(&load, 200);
    lab.kill(primary, Kill::Power).expect("the power cut");
    cluster.wait(standby, &["WAIT", "SKC-R0302"]);
    always("the standby waits", 4 * TIMEOUT, || cluster.is(standby, &["WAIT", "no-vip"]));
    let command = cluster.status(standby)["command"].clone();
    assert!(
        command.as_str().is_some_and(|text| text.starts_with("skc promote ledger")),
        "the one command is named: {command}"
    );
    cluster.does(standby, "promote", &["--force"]);
    cluster.wait(standby, &["ALONE", "Ready", "vip"]);
    cluster.progress(&load, 200);
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), standby);
}

/// The standby's death is decided by the operator, too: the primary freezes, then waits.
#[test]
fn without_arbitration_the_primary_waits_for_the_operator() {
    let Some(lab) = arena("level-0-primary") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec { witness: false, ..Spec::LEDGER });
    let load = cluster.load();
    cluster.progress(&load, 200);
    lab.kill(standby, Kill::Power).expect("the power cut");
    // Writes wait up to the freeze deadline, then the role is given up.
    cluster.wait(primary, &["WAIT", "no-vip", "SKC-R0203"]);
    let command = cluster.status(primary)["command"].clone();
    assert!(
        command.as_str().is_some_and(|text| text.starts_with("skc promote ledger --force")),
        "the one command is named: {command}"
    );
    cluster.does(primary, "promote", &["--force"]);
    cluster.progress(&load, 200);
    cluster.power_on(standby);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}

/// A witness and no address: nothing to probe, no lease to wait for.
#[test]
fn with_a_witness_alone_the_standby_takes_over() {
    let Some(lab) = arena("level-1") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec { vip: None, ..Spec::LEDGER });
    assert_eq!(cluster.status(standby)["level"], "L1");
    let at = |node: Node, seed| cluster.load_at(&node.address(1).to_string(), seed);
    let load = at(primary, 11);
    cluster.progress(&load, 200);
    lab.kill(primary, Kill::Power).expect("the power cut");
    let begin = std::time::Instant::now();
    let rest = at(standby, 12);
    cluster.progress(&rest, 200);
    eprintln!("service after {:?}", begin.elapsed());
    cluster.wait(standby, &["ALONE", "Ready"]);
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&rest, 100);
    assert_eq!(cluster.finish_all(load.stop(), rest), standby);
    assert!(begin.elapsed() < Duration::from_secs(60));
}
