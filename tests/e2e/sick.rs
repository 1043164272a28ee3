//! Disks that hang, and disks that answer with errors.
//!
//! A node's volume is an ext4 image on a loop device. It hangs while the file system is frozen
//! (`fsfreeze`: every write waits in the kernel, and nothing can kill who waits), and it fails when the tmpfs
//! below the sparse image is full: the loop device answers with errors then, and ext4 makes itself read-only.

use crate::harness::{Arena, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::{Kill, Lab, Node};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const VOLUME: &str = "/srv/data";
/// The disk counts as sick sooner than by default, so that the scenarios are short.
const SPEC: Spec = Spec { directory: "/srv/data/ledger", replication: "diskTimeout: 3s", ..Spec::LEDGER };
/// `diskTimeout`, the pause between two looks (a third of it), the time services get to stop and
/// `heartbeat.timeout`, with five seconds for a busy machine.
const BOUND: Duration = Duration::from_secs(3 + 1 + 5 + 1 + 5);
/// Longest time for a status to be answered, whatever hangs.
const ANSWER: Duration = Duration::from_secs(2);

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of a lab are text")
}

/// The disks of a pair. Thaws what is frozen when it is dropped: a frozen file system cannot be unmounted.
struct Disks {
    lab: Lab,
}

impl Disks {
    /// Gives every node of the pair a disk, mounted below [`VOLUME`]. `None`: there are no loop devices here.
    fn new(lab: &Arena) -> Option<Self> {
        for needed in ["/dev/loop-control", "/usr/sbin/mkfs.ext4", "/usr/sbin/fsfreeze"] {
            if !Path::new(needed).exists() {
                crate::skip::skipped(&crate::skip::this_test(), format!("{needed} is missing"));
                return None;
            }
        }
        let disks = Self { lab: (**lab).clone() };
        for node in Node::PAIR {
            lab.kill(node, Kill::Power).expect("power off");
            let (store, image, home) = (disks.store(node), disks.image(node), disks.home(node));
            for dir in [&store, &home] {
                fs::create_dir_all(dir).expect("create a directory");
            }
            run("mount", &["-t", "tmpfs", "-o", "size=72m", "tmpfs", text(&store)]);
            File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
            run("mkfs.ext4", &["-q", text(&image)]);
            run("mount", &["-o", "loop", text(&image), text(&home)]);
            lab.attach_volume(node, VOLUME).expect("the volume is there");
            lab.boot(node).expect("boot with the volume");
        }
        Some(disks)
    }

    fn store(&self, node: Node) -> PathBuf {
        self.lab.node_dir(node).join("volumes/store")
    }

    fn image(&self, node: Node) -> PathBuf {
        self.store(node).join("image")
    }

    /// Where `Lab::attach_volume` looks for it.
    fn home(&self, node: Node) -> PathBuf {
        self.lab.node_dir(node).join("volumes").join(VOLUME.trim_matches('/').replace('/', "-"))
    }

    /// From here on every write waits.
    fn hang(&self, node: Node) {
        run("fsfreeze", &["-f", text(&self.home(node))]);
    }

    fn answer(&self, _: &Cluster<'_>, node: Node) {
        run("fsfreeze", &["-u", text(&self.home(node))]);
    }

    /// From here on what is written to new places of the disk fails.
    fn fail(&self, node: Node) {
        let mut file = File::create(self.store(node).join("filler")).expect("create a filler");
        for block in [1 << 16, 1 << 12, 1] {
            let bytes = vec![1; block];
            while file.write(&bytes).is_ok_and(|n| n > 0) {}
        }
    }

    /// ext4 does not trust itself any more after that: the node is switched off, and gets
    /// a checked copy of its disk.
    fn repair(&self, cluster: &Cluster<'_>, node: Node) {
        fs::remove_file(self.store(node).join("filler")).expect("remove the filler");
        self.lab.kill(node, Kill::Power).expect("power off");
        self.lab.detach_volume(node, VOLUME).expect("the volume is gone");
        run("umount", &[text(&self.home(node))]);
        // The other node's mount namespace may still know the old disk, so it goes on under another name.
        let spare = self.store(node).join("spare");
        run("cp", &["--sparse=always", text(&self.image(node)), text(&spare)]);
        // 1: errors were corrected.
        let check = Command::new("e2fsck").args(["-fy", text(&spare)]).output().expect("e2fsck");
        assert!(matches!(check.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&check.stdout));
        run("mount", &["-o", "loop", text(&spare), text(&self.home(node))]);
        self.lab.attach_volume(node, VOLUME).expect("the volume is back");
        cluster.power_on(node);
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for node in Node::PAIR {
            // Fails where nothing is frozen.
            let _ = Command::new("fsfreeze").args(["-u", text(&self.home(node))]).output();
        }
    }
}

/// Waits for `what`; meanwhile status is answered in time on both nodes.
#[track_caller]
fn within(cluster: &Cluster<'_>, limit: Duration, what: &str, mut check: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    until(what, limit, || {
        for node in Node::PAIR {
            let asked = Instant::now();
            if let Err(error) = cluster.lab.cluster(node, cluster.name) {
                panic!("{node} does not answer after {:?}, waiting for: {what}: {error}", began.elapsed());
            }
            let took = asked.elapsed();
            assert!(took < ANSWER, "status of {node} took {took:?}");
        }
        check()
    });
    began.elapsed()
}

/// The sick disk of `node` is in its status, with how long it has been so.
#[track_caller]
fn is_told(cluster: &Cluster<'_>, node: Node) {
    within(cluster, SETTLE, "the sick disk is in the status", || {
        let status = cluster.status(node);
        let reasons = status["reasons"].as_array().cloned().unwrap_or_default();
        reasons.iter().any(|reason| {
            reason["code"] == "SKC-E3014" && reason["text"].as_str().is_some_and(|t| t.contains("sick for"))
        })
    });
}

/// The primary's disk falls ill under load: the standby serves within the bound, and the former primary
/// is its standby once the disk is well again.
fn primary_falls_ill(name: &str, ill: fn(&Disks, Node), well: fn(&Disks, &Cluster<'_>, Node)) {
    let Some(lab) = arena(name) else { return };
    let Some(disks) = Disks::new(&lab) else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let before = load.now();
    ill(&disks, primary);
    let took = within(&cluster, BOUND, "the standby serves", || cluster.is(standby, &["ALONE", "vip"]));
    assert!(!cluster.holds_vip(primary), "the sick node has no address");
    is_told(&cluster, primary);
    cluster.progress(&load, 200);
    eprintln!("{name}: took over after {took:?}, outage {:?}", load.longest_gap(before, load.now()).0);
    assert!(cluster.is(primary, &["WAIT", "no-vip"]), "it waits: {}", cluster.status(primary));
    well(&disks, &cluster, primary);
    let began = Instant::now();
    until("the disk is well and the copy complete again", SETTLE, || {
        cluster.is(primary, &["SECOND", "Ready", "UpToDate"])
    });
    eprintln!("{name}: UpToDate {:?} after the disk was well", began.elapsed());
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), standby, "roles do not go back by themselves");
}

/// The same on the standby: it is ejected within the bound, and comes back by itself.
fn standby_falls_ill(name: &str, ill: fn(&Disks, Node), well: fn(&Disks, &Cluster<'_>, Node)) {
    let Some(lab) = arena(name) else { return };
    let Some(disks) = Disks::new(&lab) else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 200);
    let before = load.now();
    ill(&disks, standby);
    let took =
        within(&cluster, BOUND, "the primary goes on alone", || cluster.is(primary, &["ALONE", "vip"]));
    cluster.progress(&load, 200);
    eprintln!("{name}: alone after {took:?}, outage {:?}", load.longest_gap(before, load.now()).0);
    is_told(&cluster, standby);
    assert!(!cluster.is(standby, &["UpToDate"]), "it is no copy: {}", cluster.status(standby));
    well(&disks, &cluster, standby);
    let began = Instant::now();
    until("the disk is well and the copy complete again", SETTLE, || {
        cluster.is(standby, &["SECOND", "Ready", "UpToDate"])
    });
    eprintln!("{name}: UpToDate {:?} after the disk was well", began.elapsed());
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn primarys_disk_hangs() {
    primary_falls_ill("primary-hangs", Disks::hang, Disks::answer);
}

#[test]
fn standbys_disk_hangs() {
    standby_falls_ill("standby-hangs", Disks::hang, Disks::answer);
}

#[test]
fn primarys_disk_fails() {
    primary_falls_ill("primary-fails", Disks::fail, Disks::repair);
}

#[test]
fn standbys_disk_fails() {
    standby_falls_ill("standby-fails", Disks::fail, Disks::repair);
}

/// Nobody uses the cluster, so no operation tells: the look at the disk does.
#[test]
#[ignore = "long form of primarys_disk_hangs: cargo test --test e2e sick -- --ignored"]
fn idle_primarys_disk_hangs() {
    let Some(lab) = arena("idle-hangs") else { return };
    let Some(disks) = Disks::new(&lab) else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 100);
    let acks = load.stop();
    disks.hang(primary);
    within(&cluster, BOUND, "the standby serves", || cluster.is(standby, &["ALONE", "vip"]));
    is_told(&cluster, primary);
    disks.answer(&cluster, primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    let load = cluster.load();
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish_all(acks, load), standby);
}

/// The disk hangs while the agent starts: it says so instead of waiting in silence, and goes on when it answers.
#[test]
#[ignore = "long form of standbys_disk_hangs: cargo test --test e2e sick -- --ignored"]
fn disk_hangs_while_the_agent_starts() {
    let Some(lab) = arena("start-hangs") else { return };
    let Some(disks) = Disks::new(&lab) else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 100);
    lab.kill(standby, Kill::Power).expect("power off");
    disks.hang(standby);
    cluster.power_on(standby);
    until("its agent answers", SETTLE, || cluster.status(standby)["role"].is_string());
    is_told(&cluster, standby);
    cluster.progress(&load, 100);
    disks.answer(&cluster, standby);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
}

/// Both disks hang at once: nobody can serve, both say why, and both go on when the disks do.
#[test]
#[ignore = "long form of primarys_disk_hangs: cargo test --test e2e sick -- --ignored"]
fn both_disks_hang() {
    let Some(lab) = arena("both-hang") else { return };
    let Some(disks) = Disks::new(&lab) else { return };
    let (cluster, ..) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 100);
    for node in Node::PAIR {
        disks.hang(node);
    }
    for node in Node::PAIR {
        is_told(&cluster, node);
    }
    for node in Node::PAIR {
        disks.answer(&cluster, node);
    }
    cluster.settled();
    cluster.progress(&load, 100);
    cluster.finish(load);
}
