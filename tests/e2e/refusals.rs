//! Wrong input and wrong circumstances: one clear answer, and all goes on.

use crate::harness::{always, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use crate::skip::{skipped, this_test};
use skc::lab::{Kill, Lab, Node};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn bad_spec_while_running_changes_nothing() {
    let Some(lab) = arena("bad-spec") else { return };
    let (cluster, primary, _) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 100);
    let before = load.now();
    let good = fs::read_to_string(lab.dir().join("ledger.yaml")).expect("the spec");
    // Each with the place and the code of what is wrong with it.
    let bad = [
        ("broken.yaml", "spec: [".to_owned(), ":2:1", "SKC-E1002"),
        ("unknown.yaml", good.replace("heartbeat:", "hartbeat:"), ":16:3", "SKC-E1010"),
        ("units.yaml", good.replace("1000ms", "1000 parsecs"), ":16:24", "SKC-E1013"),
        ("empty.yaml", String::new(), ":1:1", "SKC-E1007"),
    ];
    let state = || Node::PAIR.map(|node| (cluster.status(node)["epoch"].clone(), cluster.get(node)));
    let unchanged = state();
    for (name, text, place, code) in bad {
        let path = cluster.write_spec(name, &text);
        let error = lab.apply(Node::NodeB, &path).expect_err(name).to_string();
        assert!(error.contains(&format!("error[{code}]")), "{name}: refused with {code}: {error}");
        let place = format!("{}{place}", path.display());
        assert!(error.contains(&format!("--> {place}\n")), "{name}: at {place}: {error}");
    }
    assert_eq!(state(), unchanged, "epochs and specs in force are what they were");
    cluster.progress(&load, 100);
    let (pause, _) = load.longest_gap(before, load.now());
    assert!(pause < Duration::from_millis(800), "writers did not notice: {pause:?}");
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn first_start_of_two_different_directories_asks() {
    let Some(lab) = arena("two-sources") else { return };
    for node in Node::PAIR {
        let dir = lab.backing(node, Spec::LEDGER.directory);
        fs::create_dir_all(&dir).expect("create the directory");
        fs::write(dir.join(node.name()), node.name()).expect("a file of its own");
    }
    let cluster = Cluster::apply(&lab, &Spec::LEDGER);
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
    cluster.does(Node::NodeB, "adopt", &["--force"]);
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
    // One of them sees the foreign certificate first; the other may only be told so.
    until("a node notes down that the other's certificate is of another pair", SETTLE, || {
        Node::PAIR
            .into_iter()
            .any(|node| crate::scenario::events(&lab, node).iter().any(|(code, _)| code == "SKC-E2020"))
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
    let cluster = Cluster::apply(&lab, &Spec::LEDGER);
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

/// By `umount -a`, a clean-up script, a tired operator. What is written at the path then passes the mirror by.
#[test]
fn mount_that_is_taken_away_moves_the_service() {
    let Some(lab) = arena("unmounted") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let step = Duration::from_secs(5);
    let stray = ["sh", "-c", "umount -l /srv/ledger && echo stray > /srv/ledger/by-hand"];
    lab.run(primary, &stray, step).expect("the mount is taken away");
    cluster.wait(standby, &["PRIM", "vip"]);
    cluster.progress(&load, 200);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    assert_eq!(cluster.quarantine(primary), 1, "what was written past the mirror is kept");
    // On a standby it costs the session only.
    lab.run(primary, &["sh", "-c", "umount -l /srv/ledger && echo stray > /srv/ledger/by-hand"], step)
        .expect("the standby's mount is taken away");
    until("the standby is compared anew", SETTLE, || cluster.quarantine(primary) == 2);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    let error = lab.run(primary, &["touch", "/srv/ledger/again"], step).expect_err("mounted again");
    assert!(error.to_string().contains("Read-only"), "{error}");
    assert_eq!(cluster.finish(load), standby);
}

#[test]
fn a_file_system_mounted_below_the_directory_is_never_hidden() {
    let Some(lab) = arena("mounted-below") else { return };
    const BELOW: &str = "/srv/ledger/sub";
    lab.kill(Node::NodeB, Kill::Power).expect("power off");
    lab.create_volume(Node::NodeB, BELOW, 8).expect("a volume below the directory");
    lab.boot(Node::NodeB).expect("boot with the volume");
    let cluster = Cluster::apply(&lab, &Spec::LEDGER);
    cluster.says(Node::NodeB, "what is mounted below", &[BELOW]);
    let step = Duration::from_secs(5);
    lab.run(Node::NodeB, &["touch", "/srv/ledger/sub/seen"], step).expect("it is not hidden");
    lab.run(Node::NodeB, &["umount", BELOW], step).expect("unmounted");
    lab.detach_volume(Node::NodeB, BELOW).expect("and not there for the comparison at the end");
    cluster.says(Node::NodeA, "that one of them is not empty", &["new to each other"]);
    cluster.does(Node::NodeB, "adopt", &["--force"]);
    let primary = cluster.settled();
    // Mounted while the mirror serves it is used, and named.
    lab.run(primary, &["sh", "-c", "mkdir /srv/ledger/tmp && mount -t tmpfs none /srv/ledger/tmp"], step)
        .expect("a mount on the mirror");
    cluster.says(primary, "what is mounted below", &["not replicated: /srv/ledger/tmp"]);
    lab.run(primary, &["umount", "/srv/ledger/tmp"], step).expect("unmounted");
    let load = cluster.load();
    cluster.progress(&load, 50);
    assert_eq!(cluster.finish(load), primary);
}

/// ext4 with small inodes knows neither fractions of a second nor the year 2039.
#[test]
fn a_directory_that_cannot_hold_what_the_other_can_is_refused() {
    let Some(lab) = arena("unlike") else { return };
    if !Path::new("/usr/sbin/mkfs.ext4").exists() || !Path::new("/dev/loop-control").exists() {
        return skipped(&this_test(), "mkfs.ext4 or loop devices are missing");
    }
    const VOLUME: &str = "/srv/data";
    const SPEC: Spec = Spec { directory: "/srv/data/ledger", ..Spec::LEDGER };
    let old = Node::NodeB;
    lab.kill(old, Kill::Power).expect("power off");
    let image = lab.node_dir(old).join("image");
    let home = lab.node_dir(old).join("volumes/srv-data");
    fs::create_dir_all(&home).expect("create a directory");
    File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("an image");
    let run = |program: &str, arguments: &[&str]| {
        let done =
            Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let (image, at) = (image.display().to_string(), home.display().to_string());
    run("mkfs.ext4", &["-q", "-I", "128", &image]);
    run("mount", &["-o", "loop", &image, &at]);
    lab.attach_volume(old, VOLUME).expect("the volume is there");
    lab.boot(old).expect("boot with the volume");

    let cluster = Cluster::apply(&lab, &SPEC);
    cluster.says(Node::NodeA, "why node-b takes no part", &["SKC-E7019"]);
    cluster.says(
        Node::NodeA,
        "what it lacks",
        &["modification times to the nanosecond, times after the year 2038"],
    );
    assert!(cluster.get(old).to_string().len() < 10, "no spec is in force there: {}", cluster.get(old));
    assert!(!cluster.backing(old).join(".skc").exists(), "its directory was not touched");
    // On a file system that can hold it all it takes the spec, which it asks for when the nodes meet anew.
    lab.kill(old, Kill::Power).expect("power off");
    lab.detach_volume(old, VOLUME).expect("the volume is gone");
    fs::create_dir_all(cluster.backing(old)).expect("the directory below, on the node's own disk");
    lab.boot(old).expect("boot");
    lab.start_agent(old).expect("the agent starts");
    cluster.settled();
    cluster.verdict();
}
