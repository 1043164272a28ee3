//! Machines and agents that die.

use crate::harness::{always, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec, TIMEOUT};
use skc::lab::Kill;
use skc::lab::wait::Part;
use std::time::Duration;

/// Longest time without an answer after the primary's power cut: silence, a clean window of probes, the
/// lease of the address (`skc::engine` timers), and half a second for the start of the service, for the
/// clients' connections and for a busy machine.
const OUTAGE: Duration = TIMEOUT.saturating_add(Duration::from_millis(150 + 1000 + 500));

#[test]
fn power_cut_of_the_primary() {
    let Some(lab) = arena("primary-power") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 500);
    let before = load.now();
    lab.kill(primary, Kill::Power).expect("the power cut");
    cluster.progress(&load, 200);
    let (outage, _) = load.longest_gap(before, load.now());
    eprintln!("outage {outage:?}");
    assert!(outage <= OUTAGE, "outage {outage:?}, at most {OUTAGE:?}");
    cluster.vip_is_at(standby);
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), standby, "roles do not go back by themselves");
}

#[test]
fn power_cut_of_the_standby() {
    let Some(lab) = arena("standby-power") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 500);
    let before = load.now();
    lab.kill(standby, Kill::Power).expect("the power cut");
    cluster.progress(&load, 200);
    eprintln!("freeze {:?}", load.longest_gap(before, load.now()).0);
    cluster.wait(primary, &["ALONE", "vip"]);
    cluster.power_on(standby);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary, "the primary stays where it is");
}

#[test]
fn agent_is_killed() {
    let Some(lab) = arena("agent-killed") else { return };
    let (cluster, primary, _) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    let before = load.now();
    lab.kill_part(primary, Part::Agent).expect("kill -9 of the worker");
    cluster.progress(&load, 200);
    eprintln!("outage {:?}", load.longest_gap(before, load.now()).0);
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}

#[test]
fn standbys_agent_is_killed() {
    let Some(lab) = arena("standby-agent") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    lab.kill_part(standby, Part::Agent).expect("kill -9 of the worker");
    cluster.progress(&load, 200);
    assert_eq!(cluster.finish(load), primary, "the primary stays where it is");
}

/// Nothing is left that could speak for the primary, but its kernel answers ARP: at L2 the standby
/// must not take over (the primary may have acknowledged alone, as far as it can know). It says so,
/// and the cluster is back as soon as the agent is, which a service manager sees to.
#[test]
fn agent_and_guard_are_killed() {
    let Some(lab) = arena("guard-killed") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    // The guard first, so that it starts nothing anew.
    lab.kill_part(primary, Part::Guard).expect("kill -9 of the guard");
    // The worker may have noticed and ended by itself.
    let _ = lab.kill_part(primary, Part::Agent);
    let services = || {
        let pids = lab.processes(primary, Part::All).unwrap_or_default();
        pids.into_iter().filter(|pid| skc::lab::process::arguments(*pid).iter().any(|a| a == "serve")).count()
    };
    until("no service outlives agent and guard", Duration::from_secs(5), || services() == 0);
    until("its lease of the address runs out", Duration::from_secs(5), || !cluster.holds_vip(primary));
    until("the standby takes over or says why not", SETTLE, || {
        let status = cluster.status(standby);
        status["role"] == "ALONE" || status["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty())
    });
    lab.start_agent(primary).expect("the agent starts again");
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}

#[test]
fn stale_node_alone_after_both_were_down() {
    let Some(lab) = arena("stale-alone") else { return };
    let (cluster, fresh, stale) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    lab.kill(stale, Kill::Power).expect("the power cut");
    cluster.progress(&load, 200);
    lab.kill(fresh, Kill::Power).expect("the second power cut");
    cluster.power_on(stale);
    cluster.wait(stale, &["WAIT"]);
    let acknowledged = load.acknowledged();
    always("the stale node does not serve", Duration::from_secs(8), || !cluster.holds_vip(stale));
    assert_eq!(load.acknowledged(), acknowledged, "nobody was answered by the stale node");
    assert!(cluster.is(stale, &["WAIT"]), "it still waits: {}", cluster.status(stale));
    assert!(
        cluster.status(stale)["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()),
        "it says why it waits"
    );
    cluster.power_on(fresh);
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}

#[test]
fn both_lose_power_and_come_back() {
    let Some(lab) = arena("both-power") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    lab.kill(standby, Kill::Power).expect("the power cut");
    lab.kill(primary, Kill::Power).expect("the second power cut");
    cluster.power_on(standby);
    cluster.power_on(primary);
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}

#[test]
fn swap_and_swap_back() {
    let Some(lab) = arena("swap") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    for (from, to) in [(primary, standby), (standby, primary)] {
        cluster.progress(&load, 200);
        let before = load.now();
        cluster.does(from, "swap", &[]);
        cluster.progress(&load, 100);
        eprintln!("swap {:?}", load.longest_gap(before, load.now()).0);
        assert_eq!(cluster.settled(), to);
        cluster.vip_is_at(to);
    }
    assert_eq!(cluster.finish(load), primary);
}
