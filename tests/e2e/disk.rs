//! Disks that are full or missing.

use crate::harness::{Arena, always, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::{Kill, Node};
use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

const VOLUME: &str = "/srv/data";
const SPEC: Spec = Spec { directory: "/srv/data/ledger", ..Spec::LEDGER };

/// Gives every node of the pair a small file system of its own below [`VOLUME`].
fn volumes(lab: &Arena) {
    for node in Node::PAIR {
        lab.kill(node, Kill::Power).expect("power off");
        lab.create_volume(node, VOLUME, 48).expect("a volume");
        lab.boot(node).expect("boot with the volume");
    }
}

/// Fills the node's volume beside the mirrored directory, to the last byte.
fn fill(lab: &Arena, node: Node) {
    let mut file = File::create(lab.backing(node, VOLUME).join("filler")).expect("create a filler");
    for block in [1 << 16, 1] {
        let bytes = vec![1; block];
        while file.write(&bytes).is_ok_and(|n| n > 0) {}
    }
}

fn make_room(lab: &Arena, node: Node) {
    fs::remove_file(lab.backing(node, VOLUME).join("filler")).expect("remove the filler");
}

#[test]
fn standbys_disk_is_full() {
    let Some(lab) = arena("standby-full") else { return };
    volumes(&lab);
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 200);
    fill(&lab, standby);
    until("the standby is not UpToDate any more", SETTLE, || !cluster.is(standby, &["UpToDate"]));
    cluster.progress(&load, 200);
    assert!(cluster.is(primary, &["vip"]), "the primary goes on");
    let said = cluster.status(standby).to_string().to_lowercase();
    make_room(&lab, standby);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 100);
    assert_eq!(cluster.finish(load), primary);
    let named = ["space", "full", "enospc", "errno 28"].iter().any(|word| said.contains(word));
    assert!(named, "status of the standby named its full disk: {said}");
}

#[test]
fn primarys_disk_is_full() {
    let Some(lab) = arena("primary-full") else { return };
    volumes(&lab);
    let (cluster, primary, _) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 200);
    fill(&lab, primary);
    until("the application is told", SETTLE, || load.complaint().contains("No space"));
    make_room(&lab, primary);
    cluster.progress(&load, 200);
    assert_eq!(cluster.finish(load), primary, "a full disk of the application is no failover");
}

#[test]
fn primary_reboots_with_its_data_volume_unmounted() {
    let Some(lab) = arena("unmounted") else { return };
    volumes(&lab);
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let load = cluster.load();
    cluster.progress(&load, 200);
    lab.kill(primary, Kill::Power).expect("the power cut");
    cluster.progress(&load, 200);
    lab.detach_volume(primary, VOLUME).expect("the volume is gone");
    // The mount point below is there, and empty.
    fs::create_dir_all(cluster.backing(primary)).expect("the empty directory below");
    cluster.power_on(primary);
    cluster.says(
        primary,
        "that its directory is not the one it was",
        &["identity", "adopt", "mounted", "missing"],
    );
    always("it neither serves nor mirrors", Duration::from_secs(3), || {
        !cluster.is(primary, &["UpToDate"]) && !cluster.is(primary, &["vip"])
    });
    let below = fs::read_dir(cluster.backing(primary)).expect("read the directory below").flatten();
    let names: Vec<_> = below.map(|entry| entry.file_name()).filter(|name| name != ".skc").collect();
    assert!(names.is_empty(), "nothing was written beside the volume: {names:?}");
    cluster.progress(&load, 100);
    lab.kill(primary, Kill::Power).expect("off again");
    lab.attach_volume(primary, VOLUME).expect("the volume is back");
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    assert_eq!(cluster.finish(load), standby);
}
