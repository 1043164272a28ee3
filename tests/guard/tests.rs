//! The tests, seen from outside of guard and worker.

use crate::support::{PATIENCE, Stage, eventually, lives, until_dead};
use skc::sys::process;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Instant;

type Test = fn();

pub fn all() -> Vec<(&'static str, Test)> {
    vec![
        ("a_workers_death_fences_everything_and_the_next_finds_what_was_held", worker_death),
        ("a_guards_death_takes_worker_and_services_with_it_and_leftovers_die_at_the_next_start", guard_death),
        ("a_stopped_worker_is_killed_and_replaced", hang),
        ("a_worker_that_dies_again_and_again_is_restarted_more_slowly", crash_loop),
        ("a_tombstone_is_sent_when_no_worker_gets_ready_and_the_next_is_told", tombstone),
        ("no_tombstone_leaves_when_a_worker_is_back_in_time", no_tombstone),
        ("an_orderly_shutdown_leaves_nothing_and_exits_with_zero", orderly),
        ("a_worker_that_ignores_a_shutdown_is_fenced", deaf),
        ("services_keep_their_promises", services),
        ("a_second_guard_on_the_same_directory_refuses_to_start", second_guard),
    ]
}

fn worker_death() {
    let stage = Stage::new("full", true);
    stage.read("ready", 0);
    let victims: Vec<_> =
        [("service", 0), ("service", 1), ("stray", 0), ("daemon", 0), ("client", 0), ("checker", 0)]
            .map(|(head, n)| (head, stage.process(head, n)))
            .into();
    assert!(victims.iter().all(|(_, id)| lives(*id)));
    let worker = stage.process("worker", 0);
    assert!(process::signal(worker, libc::SIGKILL).expect("kill"));
    for (what, id) in victims {
        until_dead(what, id);
    }
    assert_eq!(stage.read("welcome", 1), "2 false");
    assert_eq!(
        stage.read("addresses", 0),
        "false false",
        "both addresses are dropped before the next worker starts"
    );
    let steps = stage.read("steps", 0);
    let order = ["ServicesAsked", "ServicesKilled", "VipsDropped", "MountsAborted"];
    let places: Vec<_> = order.iter().map(|step| steps.find(step).expect(step)).collect();
    assert!(places.is_sorted(), "{steps}");
    assert!(stage.read("fetched", 0).ends_with("/mount"), "the directory is still held, the device is not");
    let stops = stage.dir.path().join("stop-command");
    assert_eq!(std::fs::read_to_string(stops).expect("the stop command ran"), "stopped\n");
    stage.read("ready", 1);
}

fn guard_death() {
    let mut stage = Stage::new("leftovers", false);
    stage.read("ready", 0);
    let worker = stage.process("worker", 0);
    let service = stage.process("service", 0);
    let stray = stage.process("stray", 0);
    stage.signal(libc::SIGKILL);
    stage.wait();
    until_dead("worker", worker);
    until_dead("service", service);
    assert!(lives(stray), "the kernel only kills the guard's own children");
    std::fs::remove_file(stage.dir.path().join("stray")).expect("pid file");
    stage.again("leftovers");
    until_dead("stray", stray);
    stage.read("ready", 1);
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.wait().code(), Some(0));
}

fn hang() {
    let stage = Stage::new("hang", false);
    stage.read("ready", 0);
    let worker = stage.process("worker", 0);
    assert!(process::signal(worker, libc::SIGSTOP).expect("stop"));
    until_dead("the stopped worker", worker);
    stage.read("ready", 1);
}

fn crash_loop() {
    let stage = Stage::new("crash", false);
    let starts: Vec<u64> = (0..4).map(|n| stage.read("started", n).parse().expect("time")).collect();
    let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[1] >= 200 && gaps[2] >= 1000, "{gaps:?}");
}

fn peer(stage_dir: &std::path::Path) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    std::fs::write(stage_dir.join("peer.new"), socket.local_addr().expect("address").to_string())
        .expect("peer");
    std::fs::rename(stage_dir.join("peer.new"), stage_dir.join("peer")).expect("peer");
    socket
}

/// A guard whose first worker finds the peer's address in its directory.
fn with_peer(scenario: &str) -> (Stage, UdpSocket) {
    let dir = tempfile::tempdir().expect("directory");
    let socket = peer(dir.path());
    (Stage::within(dir, scenario), socket)
}

fn tombstone() {
    let (mut stage, socket) = with_peer("tombstone");
    stage.read("ready", 0);
    let killed = Instant::now();
    assert!(process::signal(stage.process("worker", 0), libc::SIGKILL).expect("kill"));
    let mut buffer = [0; 64];
    for shot in 0..5 {
        let (len, _) = socket.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..len], b"never alone");
        if shot == 0 {
            assert!(killed.elapsed().as_millis() >= 290, "not before the budget is over");
        }
    }
    std::fs::write(stage.dir.path().join("get-ready"), "").expect("file");
    assert_eq!(stage.read("cleared", 0), "true", "the next worker learns that it was sent");
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.wait().code(), Some(0));
}

fn no_tombstone() {
    let (mut stage, socket) = with_peer("tombstone");
    std::fs::write(stage.dir.path().join("get-ready"), "").expect("file");
    stage.read("ready", 0);
    assert!(process::signal(stage.process("worker", 0), libc::SIGKILL).expect("kill"));
    assert_eq!(stage.read("cleared", 0), "false");
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.wait().code(), Some(0));
    socket.set_nonblocking(true).expect("nonblocking");
    let error = socket.recv_from(&mut [0; 64]).expect_err("nothing was sent");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

fn orderly() {
    let mut stage = Stage::new("orderly", false);
    stage.read("ready", 0);
    let service = stage.process("service", 0);
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.read("shutdown", 0), "false");
    assert_eq!(stage.wait().code(), Some(0));
    assert!(!lives(service), "gone before the guard leaves");
    assert_eq!(stage.diary().matches("worker ").count(), 1, "not restarted");
}

fn deaf() {
    let mut stage = Stage::new("deaf", false);
    stage.read("ready", 0);
    let service = stage.process("service", 0);
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.wait().code(), Some(1));
    assert!(!lives(service));
    assert!(!lives(stage.process("worker", 0)));
}

fn services() {
    let mut stage = Stage::new("services", false);
    eventually("the scenario ends", || {
        let diary = stage.diary();
        let done = diary.contains("services done");
        assert!(done || diary.matches("worker ").count() <= 1, "the worker failed");
        done.then_some(())
    });
    stage.signal(libc::SIGKILL);
    stage.wait();
}

fn second_guard() {
    let mut stage = Stage::new("orderly", false);
    stage.read("ready", 0);
    let first = stage.guard_id();
    let status = stage.rival("orderly");
    assert_eq!(status.code(), Some(2));
    assert!(lives(first));
    assert!(stage.log().contains("another agent runs"));
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.wait().code(), Some(0));
}
