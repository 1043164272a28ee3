//! Wrong input and wrong circumstances: one clear answer, and all goes on.

use crate::harness::{always, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::{Lab, Node};
use std::fs;
use std::time::Duration;

#[test]
fn bad_spec_while_running_changes_nothing() {
    let Some(lab) = arena("bad-spec") else { return };
    let (cluster, primary, _) = Cluster::start(&lab, &Spec::default());
    let load = cluster.load();
    cluster.progress(&load, 100);
    let before = load.now();
    let good = fs::read_to_string(lab.dir().join("ledger.yaml")).expect("the spec");
    let bad = [
        ("broken.yaml", "spec: [".to_owned()),
        ("unknown.yaml", good.replace("heartbeat:", "hartbeat:")),
        ("units.yaml", good.replace("1000ms", "1000 parsecs")),
        ("empty.yaml", String::new()),
    ];
    for (name, text) in bad {
        let error = lab.apply(Node::NodeB, &cluster.write_spec(name, &text)).expect_err(name).to_string();
        assert!(error.contains("SKC-E"), "{name}: an error with a code: {error}");
    }
    cluster.progress(&load, 100);
    let (pause, _) = load.longest_gap(before, load.now());
    assert!(pause < Duration::from_millis(800), "writers did not notice: {pause:?}");
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn first_start_of_two_different_directories_asks() {
    let Some(lab) = arena("two-sources") else { return };
    for node in Node::PAIR {
        let dir = lab.backing(node, Spec::default().directory);
        fs::create_dir_all(&dir).expect("create the directory");
        fs::write(dir.join(node.name()), node.name()).expect("a file of its own");
    }
    let cluster = Cluster::apply(&lab, &Spec::default());
    for node in Node::PAIR {
        cluster.says(node, "that both directories hold data", &["adopt", "differ", "source", "promote"]);
    }
    always("nothing is touched", Duration::from_secs(3), || {
        Node::PAIR.into_iter().all(|node| {
            let dir = cluster.backing(node);
            let peer = node.peer().expect("a pair");
            dir.join(node.name()).exists() && !dir.join(peer.name()).exists()
        })
    });
    lab.skc(Node::NodeB, &["adopt", "--force", crate::scenario::CLUSTER, "--yes"], SETTLE)
        .expect("the source is named");
    assert_eq!(cluster.settled(), Node::NodeB);
    cluster.trees_equal();
    assert!(cluster.backing(Node::NodeA).join("node-b").exists(), "the named source won");
    assert!(cluster.quarantine(Node::NodeA) > 0, "what was replaced is in quarantine");
    cluster.verdict();
}

#[test]
fn certificate_of_another_pair_is_refused() {
    let Some(lab) = arena("wrong-cert") else { return };
    lab.enrol().expect("the pair");
    // Another pair's node-b: enrolled by the same means, with another authority.
    let other =
        Lab::new("elsewhere", Some(lab.dir().join("elsewhere")), lab.program().to_owned()).expect("a lab");
    for node in Node::PAIR {
        fs::create_dir_all(other.node_dir(node)).expect("create");
    }
    other.enrol().expect("the other pair");
    let (ours, theirs) = (lab.node_dir(Node::NodeB).join("state"), other.node_dir(Node::NodeB).join("state"));
    fs::rename(&ours, lab.dir().join("unused")).expect("move away");
    // The node's bind mount keeps the old directory: boot it with the foreign one.
    lab.kill(Node::NodeB, skc::lab::Kill::Power).expect("off");
    fs::rename(&theirs, &ours).expect("the foreign identity moves in");
    lab.boot(Node::NodeB).expect("on");
    for node in Node::PAIR {
        fs::create_dir_all(lab.backing(node, "/srv/ledger")).expect("create");
        lab.start_agent(node).expect("the agent starts");
    }
    until("a node's log says that it refuses the other", SETTLE, || {
        Node::PAIR.into_iter().any(|node| {
            let log = fs::read_to_string(lab.agent_log(node)).unwrap_or_default().to_lowercase();
            ["certificate", "unknownissuer", "unknown issuer", "not of this pair"]
                .iter()
                .any(|word| log.contains(word))
        })
    });
    let status = |node: Node| lab.status(node).unwrap_or_default();
    always("they never connect", Duration::from_secs(3), || {
        Node::PAIR
            .into_iter()
            .all(|node| status(node).iter().all(|cluster| cluster["peer"]["connected"] != true))
    });
}

#[test]
fn start_on_a_mounted_directory() {
    let Some(lab) = arena("mounted") else { return };
    for node in Node::PAIR {
        fs::create_dir_all(lab.backing(node, "/srv/ledger")).expect("create");
    }
    let program = lab.program().to_string_lossy().into_owned();
    let log = lab.dir().join("passthrough.log");
    lab.detach(Node::NodeA, &[&program, "passthrough", "/srv/ledger"], &log).expect("a live mount of ours");
    let mounts = |lab: &Lab| {
        let argv = ["grep", "-c", " /srv/ledger fuse", "/proc/mounts"];
        let output = lab.exec(Node::NodeA, &argv, Duration::from_secs(5)).expect("count mounts");
        output.stdout.trim().parse::<u32>().unwrap_or(0)
    };
    until("it is mounted", SETTLE, || mounts(&lab) == 1);
    let cluster = Cluster::apply(&lab, &Spec::default());
    cluster.says(Node::NodeA, "that something is mounted there", &["mounted", "mount"]);
    always("no second mount is put on top", Duration::from_secs(3), || mounts(&lab) == 1);
    // Its server dies: a dead mount stays, and the agent clears it away by itself.
    for pid in lab.processes(Node::NodeA, skc::lab::wait::Part::All).expect("its processes") {
        if skc::lab::process::arguments(pid).iter().any(|argument| argument == "passthrough") {
            skc::sys::namespace::signal(pid, skc::sys::namespace::Signal::Kill).expect("kill -9");
        }
    }
    cluster.settled();
    let load = cluster.load();
    cluster.progress(&load, 100);
    cluster.finish(load);
}
