//! Machines and agents that stop for a while, and kernels that outlive what ran on them.

use crate::harness::{always, arena};
use crate::scenario::{Cluster, Spec, TIMEOUT};
use skc::lab::Kill;
use skc::lab::wait::Part;
use std::time::Duration;

/// With two heartbeats (one that is not sent, one that says so) and what the look at the other node takes longer, on a busy
/// machine 200 ms, still shorter than `heartbeat.timeout`.
const SHORT: Duration = Duration::from_millis(300);
/// Longer than timeout, probe, lease and hold together; shorter than the guard's patience with its worker.
const LONG: Duration = Duration::from_secs(4);

#[test]
fn stall_shorter_than_the_timeout_changes_no_role() {
    let Some(lab) = arena("stall-short") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let epoch = cluster.status(primary)["epoch"].clone();
    for part in [Part::Agent, Part::Guard, Part::All] {
        for (stalled, awake) in [(primary, standby), (standby, primary)] {
            lab.stall(stalled, part).expect("stall");
            always("the other node keeps its role", SHORT, || {
                cluster.is(awake, &[if awake == primary { "PRIM" } else { "SECOND" }])
            });
            lab.go(stalled, part).expect("go");
            cluster.progress(&load, 100);
            cluster.wait(primary, &["PRIM", "Ready", "vip"]);
            cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
        }
    }
    assert_eq!(cluster.status(primary)["epoch"], epoch, "not even a new session");
    assert_eq!(cluster.finish(load), primary);
}

/// Nobody stalls for the time of `LONG` without consequences; whatever they are, both end well.
fn stall_long(name: &str, part: Part, of_primary: bool) {
    let Some(lab) = arena(name) else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    let (stalled, awake) = if of_primary { (primary, standby) } else { (standby, primary) };
    let before = load.now();
    lab.stall(stalled, part).expect("stall");
    // The watcher looks for two writers all the time; here only the time has to pass.
    always("the other node answers", LONG, || cluster.status(awake)["role"].is_string());
    let meanwhile = cluster.status(awake);
    lab.go(stalled, part).expect("go");
    cluster.progress(&load, 300);
    let (outage, _) = load.longest_gap(before, load.now());
    eprintln!("{awake} meanwhile: {} {}, outage {outage:?}", meanwhile["role"], meanwhile["data_state"]);
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}

#[test]
fn primarys_agent_stalls_longer_than_the_timeout() {
    stall_long("stall-agent", Part::Agent, true);
}

#[test]
fn standbys_agent_stalls_longer_than_the_timeout() {
    stall_long("stall-sec-agent", Part::Agent, false);
}

#[test]
fn primarys_machine_stalls_longer_than_the_timeout() {
    stall_long("stall-machine", Part::All, true);
}

#[test]
fn standbys_machine_stalls_longer_than_the_timeout() {
    stall_long("stall-sec-all", Part::All, false);
}

/// Every process of the primary dies, its kernel answers ARP and resets connections: it cannot be told
/// from a primary that acknowledged alone, so the standby does not take over, says why, and which command would.
#[test]
fn kernel_outlives_the_primary() {
    let Some(lab) = arena("kernel-lives") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    lab.kill(primary, Kill::Processes).expect("its processes die");
    cluster.wait(standby, &["WAIT", "Behind", "SKC-R0205"]);
    let command = cluster.status(standby)["command"].clone();
    assert!(
        command.as_str().is_some_and(|text| text.starts_with("skc promote ledger --force")),
        "the one command is named: {command}"
    );
    always("it does not serve", 3 * TIMEOUT, || cluster.is(standby, &["WAIT", "no-vip"]));
    cluster.power_on(primary);
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}
