//! The lab's own promises: a power cut is silent on the wire, cuts go one way, labs clean up.

use crate::harness::{Arena, arena, at, until};
use skc::lab::{Kill, Link, Node, Orphan};
use skc::sys::namespace::join_net;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_secs(10);

/// Runs `work` on a thread inside the network of `role`.
fn inside<T: Send + 'static>(
    arena: &Arena,
    role: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let netns = arena.netns_path(role);
    std::thread::spawn(move || {
        join_net(&netns).expect("join the network namespace");
        work()
    })
}

type Frames = Arc<Mutex<Vec<(Instant, Vec<u8>)>>>;

/// Frames whose source is `node`, captured at the switch with the time they were seen.
struct Capture {
    frames: Frames,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    fn start(arena: &Arena, node: Node) -> Self {
        const AF_PACKET: i32 = 17;
        const ETH_P_ALL: u16 = 3;
        let (frames, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let sources: Vec<[u8; 6]> =
            node.nets().iter().map(|net| [2, 0x77, 0, 0, *net, node.host()]).collect();
        let (to, halt) = (frames.clone(), stop.clone());
        let (ready, is_ready) = channel();
        let thread = inside(arena, "switch", move || {
            let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            let mut socket =
                Socket::new(Domain::from(AF_PACKET), Type::RAW, Some(protocol)).expect("a packet socket");
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
            ready.send(()).expect("the test waits");
            let mut buffer = vec![0; 70_000];
            while !halt.load(Ordering::Acquire) {
                match socket.read(&mut buffer) {
                    Ok(length)
                        if buffer.get(6..12).is_some_and(|source| sources.iter().any(|s| s == source)) =>
                    {
                        to.lock().unwrap().push((Instant::now(), buffer[..length].to_vec()));
                    }
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    // The interface a packet came from went down.
                    Err(error) if error.raw_os_error() == Some(100) => {}
                    Err(error) => panic!("capture: {error}"),
                }
            }
        });
        is_ready.recv_timeout(STEP).expect("the capture runs");
        Self { frames, stop, thread: Some(thread) }
    }

    fn since(&self, time: Instant) -> Vec<Vec<u8>> {
        self.frames.lock().unwrap().iter().filter(|(at, _)| *at >= time).map(|(_, f)| f.clone()).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tcp_flags(frame: &[u8]) -> Option<u8> {
    let is_tcp = frame.get(12..14)? == [8, 0] && *frame.get(23)? == 6;
    let header = 14 + usize::from(*frame.get(14)? & 15) * 4;
    if is_tcp { frame.get(header + 13).copied() } else { None }
}

const FIN_OR_RST: u8 = 0x01 | 0x04;

fn is_arp_reply(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 2])
}

/// Client and server busy with each other: the client's thread ends when the server is gone.
fn talk(arena: &Arena) -> (std::process::Child, JoinHandle<()>, Receiver<()>) {
    let data = arena.node_dir(Node::NodeA).join("plain");
    let listen = "0.0.0.0:7700";
    let program = arena.program().to_string_lossy().into_owned();
    let argv = [&*program, "ledger", "serve", "--data", &data.to_string_lossy(), "--listen", listen];
    let mut command = arena.command(Node::NodeA, &argv);
    command.stdin(Stdio::null());
    let server = arena.spawn(Node::NodeA, &mut command, Orphan::LivesOn).expect("the server starts");
    let (sender, receiver) = channel();
    let client = inside(arena, "client", move || {
        let address = at(Node::NodeA, 7700).parse().expect("an address");
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok();
        let mut stream = skc::lab::process::poll(STEP, connect).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let mut answer = [0; 64];
        while stream.write_all(b"append id payload\n").is_ok()
            && stream.read(&mut answer).is_ok_and(|n| n > 0)
        {
            let _ = sender.send(());
        }
        // After the death: connect again, so that ARP and TCP would have something to answer.
        for _ in 0..5 {
            let _ = connect();
        }
    });
    (server, client, receiver)
}

#[test]
fn power_cut_is_silent_on_the_wire() {
    let Some(arena) = arena("wire-power") else { return };
    let begin = Instant::now();
    let capture = Capture::start(&arena, Node::NodeA);
    let (mut server, client, answers) = talk(&arena);
    for _ in 0..100 {
        answers.recv_timeout(STEP).expect("the server answers");
    }
    let asked = Instant::now();
    arena.kill(Node::NodeA, Kill::Power).expect("the power cut");
    let dead = Instant::now();
    client.join().expect("the client ends");
    server.wait().expect("the server is dead");
    assert!(!capture.since(begin).is_empty(), "the capture sees a living node");
    let late = capture.since(dead);
    assert!(late.is_empty(), "{} frames after death, first {:02x?}", late.len(), late.first());
    let farewell = capture.since(asked).into_iter().filter_map(|frame| tcp_flags(&frame));
    assert_eq!(farewell.filter(|flags| flags & FIN_OR_RST != 0).count(), 0, "no FIN or RST at all");
}

#[test]
fn kernel_that_lives_answers_arp_and_resets() {
    let Some(arena) = arena("wire-kernel") else { return };
    let capture = Capture::start(&arena, Node::NodeA);
    let (mut server, client, answers) = talk(&arena);
    answers.recv_timeout(STEP).expect("the server answers");
    let asked = Instant::now();
    arena.kill(Node::NodeA, Kill::Processes).expect("the processes die");
    client.join().expect("the client ends");
    server.wait().expect("the server is dead");
    until("a RST or FIN of the living kernel", STEP, || {
        capture.since(asked).iter().filter_map(|f| tcp_flags(f)).any(|flags| flags & FIN_OR_RST != 0)
    });
    // The stranger asks for the address: the kernel answers.
    let asked = Instant::now();
    let flush = ["ip", "neigh", "flush", "all"];
    arena.run(Node::Client, &flush, STEP).expect("flush the neighbour table");
    let probe = inside(&arena, "client", || {
        let address = at(Node::NodeA, 7700).parse().expect("an address");
        TcpStream::connect_timeout(&address, Duration::from_millis(300)).map(drop).unwrap_err().kind()
    });
    assert_eq!(probe.join().expect("the probe ends"), ErrorKind::ConnectionRefused);
    assert!(capture.since(asked).iter().any(|frame| is_arp_reply(frame)));
}

fn echo(arena: &Arena, node: Node) {
    let (ready, is_ready) = channel();
    inside(arena, node.name(), move || {
        let socket = UdpSocket::bind("0.0.0.0:9999").expect("a socket");
        ready.send(()).expect("the test waits");
        let mut buffer = [0; 64];
        // Ends with its namespace: the thread holds the socket, so give up when nobody asks.
        socket.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    is_ready.recv_timeout(STEP).expect("the echo runs");
}

fn reaches(arena: &Arena, from: Node, to: Node, net: u8) -> bool {
    let thread = inside(arena, from.name(), move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a timeout");
        socket.send_to(b"x", (to.address(net), 9999)).is_ok() && socket.recv(&mut [0; 8]).is_ok()
    });
    thread.join().expect("the probe ends")
}

#[test]
fn cuts_separate_exactly_what_was_asked() {
    use Node::{Client, NodeA, NodeB, Witness};
    let Some(arena) = arena("wire-cuts") else { return };
    for node in [NodeA, NodeB, Witness] {
        echo(&arena, node);
    }
    let see = |label: &str, want: [bool; 5]| {
        let got = [
            reaches(&arena, NodeA, NodeB, 1),
            reaches(&arena, NodeA, NodeB, 2),
            reaches(&arena, Client, NodeA, 1),
            reaches(&arena, NodeA, Witness, 1),
            reaches(&arena, NodeB, Witness, 1),
        ];
        assert_eq!(got, want, "{label}: a-b net1, a-b net2, client-a, a-witness, b-witness");
    };
    see("whole", [true; 5]);
    arena.cut(Link::Net1, None, None).expect("cut");
    see("net1 cut", [false, true, true, true, true]);
    arena.cut(Link::Net2, Some(NodeB), Some(NodeA)).expect("cut");
    see("net2 one way", [false, false, true, true, true]);
    arena.heal(None, None, None).expect("heal");
    see("healed", [true; 5]);
    arena.cut(Link::Witness, Some(NodeA), None).expect("cut");
    see("witness cut for node-a", [true, true, true, false, true]);
    arena.heal(None, None, None).expect("heal");
    arena.cut(Link::All, Some(NodeA), None).expect("cut");
    arena.cut(Link::All, None, Some(NodeA)).expect("cut");
    see("node-a isolated", [false, false, false, false, true]);
    arena.heal(None, None, None).expect("heal");
    see("healed again", [true; 5]);
}

#[test]
fn exec_passes_the_exit_code_on_and_dies_with_the_node() {
    let Some(arena) = arena("wire-exec") else { return };
    let output = arena.exec(Node::NodeB, &["sh", "-c", "hostname; exit 7"], STEP).expect("it runs");
    assert_eq!((output.stdout.trim(), output.status.code()), ("node-b", Some(7)));
    let first = arena.booted(Node::NodeB).expect("it is up");
    let mut command = arena.command(Node::NodeB, &["sleep", "1000"]);
    let mut child = arena.spawn(Node::NodeB, &mut command, Orphan::LivesOn).expect("it starts");
    arena.kill(Node::NodeB, Kill::Power).expect("the power cut");
    assert!(!child.wait().expect("it ends").success());
    arena.boot(Node::NodeB).expect("it boots again");
    assert_ne!(arena.booted(Node::NodeB).expect("it is up").boot_id, first.boot_id);
}

#[test]
fn a_node_has_its_own_address_and_the_host_sees_none_of_it() {
    let Some(arena) = arena("wire-apart") else { return };
    let listener = inside(&arena, "node-a", || TcpListener::bind("10.77.1.1:0").map(drop).is_ok());
    assert!(listener.join().expect("it ends"));
    assert!(TcpListener::bind("10.77.1.1:0").is_err(), "the address is not the host's");
    let dir = arena.dir().to_owned();
    drop(arena);
    assert!(!dir.exists(), "nothing is left");
}

#[test]
fn a_volume_outlives_a_power_cut_and_may_be_missing() {
    let Some(arena) = arena("wire-volume") else { return };
    arena.kill(Node::NodeB, Kill::Power).expect("off");
    arena.create_volume(Node::NodeB, "/srv/data", 4).expect("a volume");
    arena.boot(Node::NodeB).expect("on");
    let run = |argv: &[&str]| arena.exec(Node::NodeB, argv, STEP).expect("it runs").status.success();
    assert!(run(&["dd", "if=/dev/zero", "of=/srv/data/file", "bs=1M", "count=2"]));
    assert!(!run(&["dd", "if=/dev/zero", "of=/srv/data/more", "bs=1M", "count=4"]), "it is small");
    assert!(arena.backing(Node::NodeB, "/srv/data/file").exists(), "the host sees it, too");
    arena.kill(Node::NodeB, Kill::Power).expect("off");
    arena.detach_volume(Node::NodeB, "/srv/data").expect("detach");
    arena.boot(Node::NodeB).expect("on");
    assert!(!run(&["test", "-e", "/srv/data/file"]), "the directory below is empty");
    arena.kill(Node::NodeB, Kill::Power).expect("off");
    arena.attach_volume(Node::NodeB, "/srv/data").expect("attach");
    arena.boot(Node::NodeB).expect("on");
    assert!(run(&["test", "-e", "/srv/data/file"]), "its content is there again");
}
