//! `skc lab link`: the forwarder delays, loses and limits as asked, is healed without a trace, and a
//! mirrored cluster lives over a slow line.

#[path = "e2e/harness.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which need more of it")]
mod harness;
#[path = "skip/mod.rs"]
mod skip;

use harness::{Arena, arena, until};
use skc::lab::forward::shape::Shape;
use skc::lab::ledger::client::{Load, Options};
use skc::lab::{Kill, Link, Node, compare};
use skc::sys::namespace::join_net;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_secs(10);

fn inside<T: Send + 'static>(
    arena: &Arena,
    node: Node,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let netns = arena.netns_path(node.name());
    std::thread::spawn(move || {
        join_net(&netns).expect("join the network namespace");
        work()
    })
}

/// Answers every datagram to port 9999 until nobody asks for a while.
fn echo(arena: &Arena, node: Node) {
    let (ready, is_ready) = channel();
    inside(arena, node, move || {
        let socket = UdpSocket::bind("0.0.0.0:9999").expect("a socket");
        ready.send(()).expect("the test waits");
        socket.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    is_ready.recv_timeout(STEP).expect("the echo runs");
}

/// Round trips of `count` datagrams, sorted; what got lost is not among them.
fn round_trips(arena: &Arena, from: Node, to: Node, net: u8, count: usize) -> Vec<Duration> {
    let work = inside(arena, from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(150))).expect("a timeout");
        let mut times = Vec::new();
        for n in 0..count as u64 {
            let begin = Instant::now();
            socket.send_to(&n.to_le_bytes(), (to.address(net), 9999)).expect("it is sent");
            let mut answer = [0; 8];
            while socket.recv(&mut answer).is_ok() {
                if answer == n.to_le_bytes() {
                    times.push(begin.elapsed());
                    break;
                }
            }
        }
        times
    });
    let mut times = work.join().expect("the probe ends");
    times.sort_unstable();
    times
}

fn median(arena: &Arena, from: Node, to: Node, net: u8) -> Duration {
    let times = round_trips(arena, from, to, net, 20);
    assert!(times.len() >= 18, "{from} to {to}: {} of 20 came back", times.len());
    times[times.len() / 2]
}

fn shape(rtt: f64, loss: f64, rate: Option<f64>) -> Shape {
    Shape::new(rtt, loss, rate, 7).expect("a shape")
}

/// Sends `bytes` of a known pattern over TCP; the time it took. Fails when a byte is wrong.
fn transfer(arena: &Arena, bytes: usize) -> Duration {
    let (port, is_port) = channel();
    let server = inside(arena, Node::NodeB, move || {
        let listener = TcpListener::bind((Node::NodeB.address(1), 0)).expect("a listener");
        port.send(listener.local_addr().expect("an address")).expect("the test waits");
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(STEP)).expect("a timeout");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("everything arrives");
        stream.write_all(b"!").expect("the receipt is sent");
        all
    });
    let address = is_port.recv_timeout(STEP).expect("the server listens");
    let data: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let sent = data.clone();
    let client = inside(arena, Node::NodeA, move || {
        let mut stream = TcpStream::connect_timeout(&address, STEP).expect("a connection");
        stream.set_read_timeout(Some(STEP)).expect("a timeout");
        let begin = Instant::now();
        stream.write_all(&sent).expect("it is sent");
        stream.shutdown(std::net::Shutdown::Write).expect("the end is sent");
        stream.read_exact(&mut [0]).expect("the receipt comes");
        begin.elapsed()
    });
    let took = client.join().expect("the client ends");
    assert!(server.join().expect("the server ends") == data, "bytes were damaged");
    took
}

#[test]
fn a_link_is_delayed_limited_and_healed() {
    let Some(arena) = arena("link-shape") else { return };
    for node in [Node::NodeA, Node::NodeB] {
        echo(&arena, node);
    }
    let bare = median(&arena, Node::NodeA, Node::NodeB, 1);
    arena.link(Some(shape(20.0, 0.0, None))).expect("shape the link");
    for (from, to, net) in
        [(Node::NodeA, Node::NodeB, 1), (Node::NodeB, Node::NodeA, 2), (Node::Client, Node::NodeA, 1)]
    {
        let slow = median(&arena, from, to, net);
        let added = slow.saturating_sub(bare).as_secs_f64() * 1e3;
        assert!((19.0..45.0).contains(&added), "{from} to {to}: {added} ms more than {bare:?}");
    }
    // Cuts separate as before, although other ports are at the bridge.
    arena.cut(Link::Net1, Some(Node::NodeA), Some(Node::NodeB)).expect("cut");
    assert!(round_trips(&arena, Node::NodeA, Node::NodeB, 1, 3).is_empty(), "net1 is cut");
    assert_eq!(round_trips(&arena, Node::NodeA, Node::NodeB, 2, 3).len(), 3, "net2 is not");
    arena.heal(None, None, None).expect("heal");
    // A node that gets power again is behind the same line.
    arena.kill(Node::NodeB, Kill::Power).expect("power cut");
    assert!(round_trips(&arena, Node::NodeA, Node::NodeB, 1, 2).is_empty(), "a dead node is silent");
    arena.boot(Node::NodeB).expect("boot");
    echo(&arena, Node::NodeB);
    let again = median(&arena, Node::NodeA, Node::NodeB, 1);
    assert!(again >= Duration::from_millis(19), "{again:?} after a reboot");
    // 4 MiB at 100 Mbit/s take a third of a second; without a limit only some of them.
    arena.link(Some(shape(0.0, 0.0, Some(100.0)))).expect("limit the link");
    let limited = transfer(&arena, 4 << 20);
    assert!(limited >= Duration::from_millis(300), "{limited:?} for 4 MiB at 100 Mbit/s");
    let forwarders = arena.state().expect("the state").forwarders;
    assert_eq!(forwarders.len(), Node::ALL.len());
    arena.link(None).expect("heal the link");
    let healed = median(&arena, Node::NodeA, Node::NodeB, 1);
    assert!(healed < Duration::from_millis(10), "{healed:?} after the line was healed");
    let free = transfer(&arena, 4 << 20);
    assert!(free < limited, "{free:?} without a limit, {limited:?} with one");
    for f in forwarders {
        assert!(!skc::lab::process::alive(f.pid, f.started), "forwarder {} lives on", f.pid);
    }
    assert!(arena.state().expect("the state").forwarders.is_empty());
}

#[test]
fn a_lossy_link_loses_its_share_and_damages_nothing() {
    let Some(arena) = arena("link-loss") else { return };
    echo(&arena, Node::NodeB);
    arena.link(Some(shape(0.0, 20.0, None))).expect("shape the link");
    let back = round_trips(&arena, Node::NodeA, Node::NodeB, 1, 60).len();
    // 0.8 * 0.8 = 64 % come back; ARP may cost a few at the beginning.
    assert!((20..55).contains(&back), "{back} of 60 came back");
    arena.link(Some(shape(2.0, 0.5, None))).expect("shape the link");
    transfer(&arena, 4 << 20);
    // The end of the lab kills the forwarders by their ids.
    let forwarders = arena.state().expect("the state").forwarders;
    drop(arena);
    assert!(forwarders.iter().all(|f| !skc::lab::process::alive(f.pid, f.started)));
}

#[test]
fn a_mirrored_ledger_lives_over_a_slow_line() {
    let Some(arena) = arena("link-ledger") else { return };
    for node in Node::PAIR {
        std::fs::create_dir_all(arena.backing(node, "/srv/ledger")).expect("the directory");
    }
    arena.link(Some(shape(5.0, 0.0, None))).expect("shape the link");
    arena.start_pair().expect("the agents start");
    let spec = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("specs/clusters/ledger.yaml");
    arena.apply(Node::NodeA, &spec).expect("the spec is applied");
    let is = |node: Node, role: &str| {
        arena.cluster(node, "ledger").is_ok_and(|c| c["role"] == role && c["ready"] == "Ready")
    };
    let roles = |a: &str, b: &str| is(Node::NodeA, a) && is(Node::NodeB, b);
    until("one primary, one standby", Duration::from_secs(60), || {
        roles("PRIM", "SECOND") || roles("SECOND", "PRIM")
    });
    let load = Load::start(Options {
        connect: "10.77.1.100:7700".parse().expect("the address"),
        clients: 4,
        sync_every: 1,
        seed: 1,
        netns: Some(arena.netns_path(Node::Client.name())),
        journal: None,
        count: Some(200),
    })
    .expect("the load starts");
    until("200 records are acknowledged", Duration::from_secs(60), || load.acknowledged() >= 200);
    let (p50, _) = load.latency(Duration::ZERO, load.now());
    assert!(p50 >= Duration::from_millis(10), "{p50:?}: client to primary, and primary to standby");
    let acks = load.stop();
    let trees = Node::PAIR.map(|node| arena.backing(node, "/srv/ledger"));
    until("the trees are equal", STEP, || compare::trees(&trees[0], &trees[1]).is_ok_and(|c| c.equal()));
    for tree in &trees {
        let found = skc::lab::ledger::check::check(tree, &acks).expect("the ledger is read");
        assert!(found.good(), "{found:?}");
    }
}
