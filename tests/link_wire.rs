//! Two links in network namespaces with two wires between them, which are then cut.
//!
//! Needs root; says SKIPPED and passes without.
#![cfg(feature = "daemon")]

#[path = "skip/mod.rs"]
mod skip;

use skc::link::pki::{NodeSetup, PORT, enroll_offline};
use skc::link::{DownReason, Identity, Link, LinkConfig, LinkEvent};
use skc::store::StateDir;
use skc::sys::namespace::join_net;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// Two namespaces named after this process, joined by wires w0 and w1; gone when dropped.
struct Wires {
    names: [String; 2],
}

fn ip(line: &str) -> bool {
    Command::new("ip").args(line.split_whitespace()).output().is_ok_and(|output| output.status.success())
}

impl Wires {
    fn new(tag: &str) -> Option<Self> {
        let names = ["a", "b"].map(|side| format!("skclink-{}-{tag}-{side}", std::process::id()));
        let wires = Self { names };
        let [a, b] = &wires.names;
        if !ip(&format!("netns add {a}")) || !ip(&format!("netns add {b}")) {
            skip::skipped(&skip::this_test(), "network namespaces need root and ip(8)");
            return None;
        }
        for wire in 0..2 {
            assert!(ip(&format!("-n {a} link add w{wire} type veth peer name w{wire} netns {b}")));
            for (name, host) in [(a, 1), (b, 2)] {
                assert!(ip(&format!("-n {name} addr add 10.79.{wire}.{host}/24 dev w{wire}")));
                assert!(ip(&format!("-n {name} link set w{wire} up")));
            }
        }
        Some(wires)
    }

    fn set(&self, side: usize, wire: usize, state: &str) {
        assert!(ip(&format!("-n {} link set w{wire} {state}", self.names[side])));
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// A link on a thread of its own namespace; it ends with the handle.
struct Node {
    events: Receiver<(Instant, LinkEvent)>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Node {
    fn start(namespace: &str, identity: Identity) -> Self {
        let (sender, events) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let path = format!("/run/netns/{namespace}");
        std::thread::spawn(move || {
            join_net(Path::new(&path)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (events, mut taken) = tokio::sync::mpsc::channel(100);
                let link = Link::start(LinkConfig::new(identity).unwrap(), events).unwrap();
                let forward = async {
                    while let Some(event) = taken.recv().await {
                        if sender.send((Instant::now(), event)).is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = forward => {}, _ = stopped => {} }
                link.shutdown().await;
            });
        });
        Self { events, _stop: stop }
    }

    fn wait<T>(&self, what: &str, mut pick: impl FnMut(&LinkEvent) -> Option<T>) -> (Instant, T) {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((at, event)) => {
                    if let Some(found) = pick(&event) {
                        return (at, found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the link ended before {what}"),
            }
        }
    }

    fn up(&self) -> (Instant, usize) {
        self.wait("Up", |event| match event {
            LinkEvent::Up { path, .. } => Some(*path),
            LinkEvent::Down { reason, .. } => panic!("Down before Up: {reason}"),
            _ => None,
        })
    }

    fn down(&self) -> (Instant, DownReason) {
        self.wait("Down", |event| match event {
            LinkEvent::Down { reason, .. } => Some(reason.clone()),
            LinkEvent::Up { .. } => panic!("Up before Down"),
            _ => None,
        })
    }

    /// Heartbeats pass both ways on `path`, again and again for a second.
    fn settled(&self, path: usize) {
        let begun = Instant::now();
        self.wait("heartbeats", |event| match event {
            LinkEvent::Heartbeat { path: p, heard_me_ms_ago: Some(ago), .. } if *p == path && *ago < 500 => {
                (begun.elapsed() > Duration::from_secs(1)).then_some(())
            }
            LinkEvent::Down { reason, .. } => panic!("down: {reason}"),
            _ => None,
        });
    }
}

fn nodes(wires: &Wires) -> (Node, Node, [tempfile::TempDir; 2]) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = [0, 1].map(|side: usize| StateDir::open(dirs[side].path()).unwrap());
    let setup = |name: &str, host: u8| NodeSetup {
        name: name.into(),
        addresses: (0..2).map(|wire| [10, 79, wire, host].into()).collect(),
        port: PORT,
    };
    let (a, b) = enroll_offline((&a, setup("node-a", 1)), (&b, setup("node-b", 2))).unwrap();
    let (a, b) = (Node::start(&wires.names[0], a), Node::start(&wires.names[1], b));
    a.up();
    b.up();
    (a, b, dirs)
}

#[test]
fn control_leaves_a_cut_wire_within_a_second_and_stays_where_it_went() {
    let Some(wires) = Wires::new("move") else { return };
    let (a, b, _dirs) = nodes(&wires);
    let mut path = 0;
    for side in [0, 1] {
        for node in [&a, &b] {
            node.settled(1 - path);
            node.settled(path);
        }
        let cut = Instant::now();
        wires.set(side, path, "down");
        let (_, reason) = a.down();
        let (at, to) = a.up();
        let moved = at.duration_since(cut);
        assert_eq!(to, 1 - path, "{reason}");
        b.down();
        assert_eq!(b.up().1, 1 - path);
        println!("cut at node {side}: moved to wire {to} after {moved:?} ({reason})");
        assert!(moved < Duration::from_secs(1), "{moved:?}");
        wires.set(side, path, "up");
        path = 1 - path;
    }
}

#[test]
fn a_vanished_peer_is_reported_once_and_met_again() {
    let Some(wires) = Wires::new("lost") else { return };
    let (a, b, _dirs) = nodes(&wires);
    for node in [&a, &b] {
        node.settled(0);
    }
    let cut = Instant::now();
    for wire in 0..2 {
        wires.set(1, wire, "down");
    }
    for node in [&a, &b] {
        let (at, reason) = node.down();
        let after = at.duration_since(cut);
        println!("down after {after:?} ({reason})");
        assert!(after < Duration::from_secs(4), "{after:?}");
    }
    for wire in 0..2 {
        wires.set(1, wire, "up");
    }
    a.up();
    b.up();
}
