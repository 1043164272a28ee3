//! The role moves in order: stops, reboots, failback.

use crate::harness::{Arena, always, arena, until};
use crate::scenario::{Cluster, Spec};
use skc::lab::wait::Part;
use skc::lab::{Kill, Node};
use skc::sys::file::{link_at, open_tmpfile};
use skc::sys::namespace::{Signal, signal};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Longest time without an answer while the role moves in order, the start of the service included.
const MOVE: Duration = Duration::from_secs(1);
/// Longest orderly end of an agent: the service manager's patience in the README.
const END: Duration = Duration::from_secs(60);
/// `stableFor` of the specs here.
const STABLE: Duration = Duration::from_secs(2);

const FAILBACK: Spec =
    Spec { failover: "{preferredPrimary: node-a, failback: automatic, stableFor: 2s}", ..Spec::LEDGER };

/// What a service manager does: SIGTERM, then it waits for the end.
#[track_caller]
pub fn end_agent(lab: &Arena, node: Node, parts: &[Part]) {
    for part in parts {
        for pid in lab.processes(node, *part).expect("its processes") {
            // The other part may have been quicker.
            let _ = signal(pid, Signal::Term);
        }
    }
    until("the agent ends in order", END, || {
        [Part::Guard, Part::Agent].iter().all(|part| lab.processes(node, *part).is_ok_and(|p| p.is_empty()))
    });
}

/// Nobody became Behind, and the two did not disagree.
#[track_caller]
fn nobody_is_behind(cluster: &Cluster<'_>) {
    for node in Node::PAIR {
        let events = cluster.events(node);
        let wrong = events.iter().find(|(code, _)| matches!(&**code, "SKC-V0012" | "SKC-V0024"));
        assert_eq!(wrong, None, "{node}: {events:#?}");
    }
}

/// The primary's agent ends in order, then `and_then` happens to its machine.
fn primary_leaves(lab: &Arena, parts: &[Part], and_then: impl FnOnce(Node)) {
    let (cluster, primary, standby) = Cluster::start(lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    let before = load.now();
    end_agent(lab, primary, parts);
    cluster.progress(&load, 200);
    let (outage, _) = load.longest_gap(before, load.now());
    eprintln!("outage {outage:?}");
    assert!(outage <= MOVE, "outage {outage:?}, at most {MOVE:?}");
    cluster.wait(standby, &["ALONE", "Ready", "UpToDate", "vip"]);
    cluster.vip_is_at(standby);
    nobody_is_behind(&cluster);
    and_then(primary);
    lab.start_agent(primary).expect("its agent starts again");
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), standby, "the roles are exchanged");
}

#[test]
fn clean_stop_of_the_primarys_agent_is_a_handover() {
    let Some(lab) = arena("clean-stop") else { return };
    primary_leaves(&lab, &[Part::Guard], |_| {});
}

/// An init without `KillMode=mixed` sends it to every process of the service.
#[test]
fn stop_signal_to_guard_and_agent_at_once_is_a_handover() {
    let Some(lab) = arena("stop-all") else { return };
    primary_leaves(&lab, &[Part::Guard, Part::Agent], |_| {});
}

#[test]
fn orderly_reboot_of_the_primary_is_a_handover() {
    let Some(lab) = arena("reboot") else { return };
    primary_leaves(&lab, &[Part::Guard], |primary| {
        lab.kill(primary, Kill::Power).expect("the machine goes down");
        lab.boot(primary).expect("and comes up");
    });
}

#[test]
fn orderly_reboot_of_the_standby_is_not_noticed_by_writers() {
    let Some(lab) = arena("standby-reboot") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 300);
    let before = load.now();
    end_agent(&lab, standby, &[Part::Guard]);
    cluster.progress(&load, 200);
    let (pause, _) = load.longest_gap(before, load.now());
    eprintln!("pause {pause:?}");
    assert!(pause <= MOVE, "writers waited {pause:?}, at most {MOVE:?}");
    cluster.wait(primary, &["ALONE", "vip"]);
    nobody_is_behind(&cluster);
    lab.kill(standby, Kill::Power).expect("the machine goes down");
    cluster.power_on(standby);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}

/// How often the node took the role over in a hand-over.
fn taken_over(cluster: &Cluster<'_>, node: Node) -> usize {
    cluster.events(node).iter().filter(|(code, _)| code == "SKC-V0018").count()
}

/// Node-a is primary, and both are ready.
#[track_caller]
fn preferred_serves(cluster: &Cluster<'_>) {
    cluster.wait(Node::NodeA, &["PRIM", "Ready", "vip"]);
    cluster.wait(Node::NodeB, &["SECOND", "Ready", "UpToDate"]);
}

#[track_caller]
fn stays_at(cluster: &Cluster<'_>, node: Node) {
    let epoch = cluster.status(node)["epoch"].clone();
    always("the role stays where it is", 3 * STABLE, || {
        cluster.is(node, &["PRIM", "vip"]) && cluster.status(node)["epoch"] == epoch
    });
}

#[test]
fn preferred_node_takes_its_role_back_once() {
    let Some(lab) = arena("failback") else { return };
    let (a, b) = (Node::NodeA, Node::NodeB);
    let cluster = Cluster::apply(&lab, &FAILBACK);
    preferred_serves(&cluster);
    let load = cluster.load();
    // Every return of the preferred node counts, not only the first.
    for _ in 0..2 {
        cluster.progress(&load, 200);
        lab.kill(a, Kill::Power).expect("the power cut");
        cluster.progress(&load, 200);
        cluster.wait(b, &["ALONE", "vip"]);
        let before = taken_over(&cluster, a);
        cluster.power_on(a);
        cluster.wait(a, &["SECOND", "Ready", "UpToDate"]);
        always("the pair has to be stable first", STABLE * 3 / 4, || cluster.is(b, &["PRIM"]));
        preferred_serves(&cluster);
        stays_at(&cluster, a);
        assert_eq!(taken_over(&cluster, a) - before, 1, "it was swapped once");
    }
    assert_eq!(cluster.finish(load), a);
}

/// Whoever swaps away from the preferred node wants the role there, and not for `stableFor` only.
#[test]
fn automatic_failback_leaves_the_operators_swap_alone() {
    let Some(lab) = arena("swap-away") else { return };
    let (a, b) = (Node::NodeA, Node::NodeB);
    let cluster = Cluster::apply(&lab, &FAILBACK);
    preferred_serves(&cluster);
    let load = cluster.load();
    for asked in [a, b] {
        cluster.progress(&load, 100);
        // Either node can be asked.
        cluster.does(asked, "swap", &[]);
        cluster.wait(b, &["PRIM", "Ready", "vip"]);
        cluster.wait(a, &["SECOND", "Ready", "UpToDate"]);
        stays_at(&cluster, b);
        cluster.does(b, "swap", &[]);
        preferred_serves(&cluster);
    }
    assert_eq!(cluster.finish(load), a);
}

/// The descriptors of a program that is no service: it lives on where it is, whatever the role does.
#[test]
fn open_files_through_a_swap_and_a_power_cut() {
    let Some(lab) = arena("open-files") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let dir = lab.mounted(primary, "/srv/ledger").expect("mounted");
    let open = |path: &Path| File::options().read(true).write(true).create(true).truncate(true).open(path);
    let (named, gone) = (open(&dir.join("named")).expect("create"), open(&dir.join("gone")).expect("create"));
    let unnamed =
        File::from(open_tmpfile(File::open(&dir).expect("open").as_fd(), 0o600, false).expect("O_TMPFILE"));
    fs::remove_file(dir.join("gone")).expect("unlink");
    let files = [&named, &gone, &unnamed];
    for file in files {
        file.write_all_at(b"before", 0).expect("write");
    }
    cluster.trees_equal();
    let reads = |file: &File| {
        let mut text = [0; 6];
        file.read_exact_at(&mut text, 0).expect("read");
        assert_eq!(&text, b"before");
    };
    let refuses = |file: &File, errno| {
        assert_eq!(file.write_at(b"after", 0).map_err(|e| e.raw_os_error()), Err(Some(errno)));
    };

    cluster.does(primary, "swap", &[]);
    cluster.wait(standby, &["PRIM", "Ready", "vip"]);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    files.into_iter().for_each(reads);
    for file in files {
        refuses(file, libc::EROFS);
    }

    cluster.does(primary, "swap", &[]);
    cluster.wait(primary, &["PRIM", "Ready", "vip"]);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    files.into_iter().for_each(reads);
    // Written by a descriptor from before: to be opened anew.
    for file in files {
        refuses(file, libc::ESTALE);
    }
    let again = File::options().write(true).open(dir.join("named")).expect("open anew");
    again.write_all_at(b"behind", 6).expect("write");
    // What gets its first name is whole on both nodes.
    let late =
        File::from(open_tmpfile(File::open(&dir).expect("open").as_fd(), 0o600, false).expect("O_TMPFILE"));
    late.write_all_at(b"before", 0).expect("write");
    link_at(late.as_fd(), File::open(&dir).expect("open").as_fd(), b"late").expect("link");
    cluster.trees_equal();
    for (name, text) in [("named", "beforebehind"), ("late", "before")] {
        assert_eq!(fs::read_to_string(cluster.backing(standby).join(name)).expect("read"), text);
    }

    // Without a name a file is on no other node.
    drop((named, gone, unnamed, late, again));
    lab.kill(primary, Kill::Power).expect("the power cut");
    cluster.wait(standby, &["ALONE", "vip"]);
    let left = fs::read_dir(cluster.backing(standby)).expect("list").flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).filter(|n| *n == "gone" || *n == "named").collect();
    assert_eq!(left, ["named"]);
    cluster.power_on(primary);
    cluster.settled();
    cluster.trees_equal();
    cluster.verdict();
}
