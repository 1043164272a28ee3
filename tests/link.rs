//! Two links on loopback addresses: each address pair is a path.
#![cfg(feature = "daemon")]

use skc::link::pki::{NodeSetup, enroll_offline, init, token};
use skc::link::{
    BODY_MAX, DataConn, DownReason, Faults, Identity, Link, LinkConfig, LinkError, LinkEvent, LinkHandle,
    join,
};
use skc::store::StateDir;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const PORT: u16 = 7690;
const DEADLINE: Duration = Duration::from_secs(20);

/// Loopback addresses nobody else uses: by process, then counted.
fn addresses(count: usize) -> Vec<IpAddr> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    (0..count)
        .map(|_| {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            IpAddr::V4(Ipv4Addr::new(127, 64 + (pid >> 8 & 63) as u8, pid as u8, n))
        })
        .collect()
}

fn setup(name: &str, addresses: &[IpAddr]) -> NodeSetup {
    NodeSetup { name: name.into(), addresses: addresses.to_vec(), port: PORT }
}

fn state() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    (dir, state)
}

struct Pair {
    a: Identity,
    b: Identity,
    _dirs: [tempfile::TempDir; 2],
}

fn pair(paths: usize) -> Pair {
    let all = addresses(2 * paths);
    pair_at(&all[..paths], &all[paths..])
}

fn pair_at(ours: &[IpAddr], theirs: &[IpAddr]) -> Pair {
    let ((a_dir, a), (b_dir, b)) = (state(), state());
    let (a, b) = enroll_offline((&a, setup("node-a", ours)), (&b, setup("node-b", theirs))).unwrap();
    Pair { a, b, _dirs: [a_dir, b_dir] }
}

struct Side {
    link: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    faults: Arc<Faults>,
    up: Option<u64>,
}

impl Side {
    fn start(identity: &Identity) -> Self {
        Self::with_room(identity, 1000)
    }

    fn with_room(identity: &Identity, room: usize) -> Self {
        let (sender, events) = mpsc::channel(room);
        let faults = Arc::new(Faults::default());
        let config = LinkConfig { faults: faults.clone(), ..LinkConfig::new(identity.clone()).unwrap() };
        Self { link: Link::start(config, sender).unwrap(), events, faults, up: None }
    }

    /// The next event that `pick` takes; checks on the way that Up and Down alternate.
    async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(LinkEvent) -> Option<T>) -> T {
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                let event = self.events.recv().await.expect("the link ended");
                match &event {
                    LinkEvent::Up { session, .. } => {
                        assert!(self.up.replace(*session).is_none(), "Up twice");
                    }
                    LinkEvent::Down { session, .. } => {
                        assert_eq!(self.up.take(), Some(*session), "Down without its Up");
                    }
                    LinkEvent::Message(_) | LinkEvent::Data { .. } => {
                        assert!(self.up.is_some(), "{event:?} while down");
                    }
                    _ => {}
                }
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("no {what}; status {:?}", self.link.status()))
    }

    async fn up(&mut self) -> (usize, u128) {
        self.wait("Up", |event| match event {
            LinkEvent::Up { path, peer_incarnation, .. } => Some((path, peer_incarnation)),
            _ => None,
        })
        .await
    }

    async fn down(&mut self) -> DownReason {
        self.wait("Down", |event| match event {
            LinkEvent::Down { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }

    async fn message(&mut self) -> Vec<u8> {
        self.wait("Message", |event| match event {
            LinkEvent::Message(message) => Some(message),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> (&'static str, String) {
        self.wait("Refused", |event| match event {
            LinkEvent::Refused { code, why, .. } => Some((code, why)),
            _ => None,
        })
        .await
    }

    /// Waits until heartbeats pass both ways on every path, and the connection is old enough to be
    /// judged by them.
    async fn settled(&mut self) {
        let begun = Instant::now();
        loop {
            let status = self.link.status();
            let both = |path: &skc::link::PathStatus| path.alive && path.heard_me_ms_ago.is_some();
            if status.paths.iter().all(both) && begun.elapsed() > Duration::from_millis(800) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{status:?}");
            self.wait("any event", |_| Some(())).await;
        }
    }
}

async fn connected(pair: &Pair) -> (Side, Side) {
    let (mut a, mut b) = (Side::start(&pair.a), Side::start(&pair.b));
    a.up().await;
    b.up().await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_meets_and_messages_and_heartbeats_pass_both_ways() {
    let pair = pair(2);
    let mut a = Side::start(&pair.a);
    assert!(matches!(a.link.send(vec![1]), Err(LinkError::NotConnected)));
    let mut b = Side::start(&pair.b);
    assert_eq!(a.up().await.1, b.link.life().incarnation);
    assert_eq!(b.up().await.1, a.link.life().incarnation);

    let large = vec![3; 4 << 20];
    for message in [b"one".to_vec(), Vec::new(), large.clone()] {
        a.link.send(message).unwrap();
    }
    b.link.send(b"back").unwrap();
    assert_eq!(b.message().await, b"one");
    assert_eq!(b.message().await, b"");
    assert_eq!(b.message().await, large);
    assert_eq!(a.message().await, b"back");
    assert!(matches!(a.link.send(vec![0; 16 << 20]), Err(LinkError::Frame(_))));
    assert!(a.link.send(vec![0; 16 << 20]).unwrap_err().code().starts_with("SKC-E2"));

    a.link.set_heartbeat(b"PRIM 5.3".to_vec()).unwrap();
    assert!(a.link.set_heartbeat(vec![0; BODY_MAX + 1]).is_err());
    for wanted in [0, 1] {
        let heard = b
            .wait("Heartbeat", |event| match event {
                LinkEvent::Heartbeat { path, body, heard_me_ms_ago, rtt, .. }
                    if path == wanted && body == b"PRIM 5.3" && heard_me_ms_ago.is_some() =>
                {
                    Some((heard_me_ms_ago.unwrap(), rtt.unwrap()))
                }
                _ => None,
            })
            .await;
        assert!(heard.0 < 2000 && heard.1 < Duration::from_secs(1), "{heard:?}");
    }
    let status = b.link.status();
    assert!(status.session.is_some() && status.paths.iter().all(|path| path.alive), "{status:?}");
    assert_eq!((status.refused, status.listen_errors.len()), (0, 0));

    a.link.shutdown().await;
    assert_eq!(a.down().await, DownReason::Shutdown);
    assert_eq!(b.down().await, DownReason::PeerLeft);
    // The ports are free again: a second life on the same addresses.
    let mut a = Side::start(&pair.a);
    let (_, incarnation) = b.up().await;
    assert_eq!(incarnation, a.link.life().incarnation);
    a.up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_moves_within_a_second_when_its_path_falls_silent() {
    let pair = pair(2);
    let (mut a, mut b) = connected(&pair).await;
    a.settled().await;
    b.settled().await;
    let old = a.link.status().session.unwrap().path;
    for side in [&a, &b] {
        side.faults.drop_path(old, true, true);
    }
    let cut = Instant::now();
    assert!(matches!(
        a.down().await,
        DownReason::PathLost { .. } | DownReason::PeerLeft | DownReason::Broken(_)
    ));
    assert_eq!(a.up().await.0, 1 - old);
    let moved = cut.elapsed();
    b.down().await;
    assert_eq!(b.up().await.0, 1 - old);
    assert!(moved < Duration::from_secs(1), "moved after {moved:?}");
    println!("moved after {moved:?}");

    // The path returns: noticed, and nothing moves back.
    for side in [&a, &b] {
        side.faults.drop_path(old, false, false);
    }
    a.wait("PathUp", |event| matches!(event, LinkEvent::PathUp { path } if path == old).then_some(())).await;
    assert_eq!(a.link.status().session.unwrap().path, 1 - old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_way_silence_moves_it_too_and_shows_who_is_not_heard() {
    let pair = pair(2);
    let (mut a, mut b) = connected(&pair).await;
    a.settled().await;
    b.settled().await;
    // B no longer hears A on its path; A hears B and learns from B that it is not heard.
    let old = a.link.status().session.unwrap().path;
    b.faults.drop_path(old, false, true);
    a.down().await;
    assert_eq!(a.up().await.0, 1 - old);
    a.wait("an old echo", |event| match event {
        LinkEvent::Heartbeat { path, heard_me_ms_ago: Some(ago), .. } if path == old && ago > 1000 => {
            Some(())
        }
        _ => None,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_without_a_word_is_noticed_and_met_again() {
    let pair = pair(1);
    let mut a = Side::start(&pair.a);
    let identity = pair.b.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let b = {
        let _in = runtime.enter();
        Side::start(&identity)
    };
    let first = a.up().await;
    // All its tasks vanish at once, as by SIGKILL: the sockets close without a farewell.
    runtime.shutdown_background();
    drop(b);
    a.down().await;
    let mut b = Side::start(&pair.b);
    let second = a.up().await;
    assert_ne!(first.1, second.1, "another life");
    b.up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_authority_is_refused_with_its_code() {
    let all = addresses(2);
    let ours = pair_at(&all[..1], &all[1..]);
    let theirs = pair_at(&all[..1], &all[1..]);
    let (mut a, mut b) = (Side::start(&ours.a), Side::start(&theirs.b));
    assert_eq!(a.refused().await.0, "SKC-E2020");
    assert_eq!(b.refused().await.0, "SKC-E2020");
    let dropped = Instant::now();
    while a.link.status().paths[0].dropped == 0 {
        assert!(dropped.elapsed() < DEADLINE, "its heartbeats must be dropped");
        tokio::task::yield_now().await;
    }
    assert_eq!(a.link.status().session, None);
    assert!(!a.link.status().paths[0].alive);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_a_token_that_works_once() {
    let all = addresses(3);
    let (_a_dir, a_state) = state();
    let first = init(&a_state, setup("node-b", &all[..1])).unwrap();
    let mut a = Side::start(&first);
    let (_b_dir, b_state) = state();
    let second = setup("node-a", &all[1..2]);

    let expired = token::issue(&first, Duration::ZERO).unwrap();
    let error = join::join(&b_state, &expired, &second).await.unwrap_err();
    assert!(matches!(&error, LinkError::RefusedByPeer { code, .. } if code == "SKC-E2011"), "{error}");

    let invitation = token::issue(&first, token::LIFETIME).unwrap();
    let mut wrong = invitation.clone();
    wrong.authority = "00".repeat(32);
    let error = join::join(&b_state, &wrong, &second).await.unwrap_err();
    assert_eq!(error.code(), "SKC-E2013", "{error}");

    let text = invitation.encode().unwrap();
    let invitation = token::Token::decode(&text).unwrap();
    let joined = join::join(&b_state, &invitation, &second).await.unwrap();
    assert_eq!(joined.peer().unwrap().name, "node-b");
    let name = a
        .wait("Joined", |event| match event {
            LinkEvent::Joined { node } => Some(node.name),
            _ => None,
        })
        .await;
    assert_eq!(name, "node-a");
    let mut b = Side::start(&joined);
    a.up().await;
    b.up().await;

    let (_c_dir, c_state) = state();
    let error = join::join(&c_state, &invitation, &second).await.unwrap_err();
    assert!(matches!(&error, LinkError::RefusedByPeer { code, .. } if code == "SKC-E2012"), "{error}");

    // The machine is replaced under its name: the old one is out, the new one in.
    let again = token::issue(&a.link.identity(), token::LIFETIME).unwrap();
    let replacement = join::join(&c_state, &again, &setup("node-a", &all[2..])).await.unwrap();
    assert_eq!(a.down().await, DownReason::PeerChanged);
    b.down().await;
    assert_eq!(b.refused().await.0, "SKC-E2026");
    let mut c = Side::start(&replacement);
    c.up().await;
    assert_eq!(a.up().await.1, c.link.life().incarnation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_both_ports_disturbs_nobody() {
    let pair = pair(1);
    let (a, mut b) = connected(&pair).await;
    let target = SocketAddr::new(pair.b.me().addresses[0], PORT);
    let mut idle = Vec::new();
    for n in 0..100_u32 {
        let junk: Vec<u8> = (0..n * 7).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut socket = std::net::TcpStream::connect(target).unwrap();
        let _ = socket.write_all(&junk);
        if n % 10 == 0 {
            idle.push(socket);
        }
    }
    let udp = std::net::UdpSocket::bind((pair.a.me().addresses[0], 0)).unwrap();
    for n in 0..2000_usize {
        let _ = udp.send_to(&vec![n as u8; n], target);
    }
    assert_eq!(b.refused().await.0, "SKC-E2024");
    a.link.send(b"still here").unwrap();
    assert_eq!(b.message().await, b"still here");
    let begun = Instant::now();
    b.wait("heartbeats", |event| match event {
        LinkEvent::Heartbeat { .. } => (begun.elapsed() > Duration::from_secs(1)).then_some(()),
        LinkEvent::Down { reason, .. } => panic!("down: {reason}"),
        _ => None,
    })
    .await;
    assert!(b.link.status().paths[0].dropped > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_to_a_peer_that_does_not_read_is_bounded() {
    let pair = pair(1);
    let mut a = Side::start(&pair.a);
    // Room for one event, and nobody takes any after Up.
    let mut b = Side::with_room(&pair.b, 1);
    a.up().await;
    b.up().await;
    let mut queued = 0;
    let error = loop {
        match a.link.send(vec![0; 1 << 20]) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
        assert!(queued < 1000, "the queue grows without bound");
    };
    assert!(matches!(error, LinkError::QueueFull), "{error}");
    // It does not wait for ever: the writer's deadline ends the session.
    let reason = a.down().await;
    assert!(matches!(reason, DownReason::Silent | DownReason::Broken(_) | DownReason::PeerLeft), "{reason}");
}

fn exchange(mut conn: DataConn, say: &[u8], expect: usize) -> Vec<u8> {
    conn.tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    for part in say.chunks(16 << 10) {
        conn.tls.writer().write_all(part).unwrap();
        while conn.tls.wants_write() {
            conn.tls.write_tls(&mut conn.tcp).unwrap();
        }
    }
    let mut heard = conn.early;
    while heard.len() < expect {
        conn.tls.read_tls(&mut conn.tcp).unwrap();
        conn.tls.process_new_packets().unwrap();
        let mut part = vec![0; 1 << 16];
        match conn.tls.reader().read(&mut part) {
            Ok(n) => heard.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_node_opens_data_connections_that_threads_own() {
    let pair = pair(2);
    let (mut a, mut b) = connected(&pair).await;
    for _ in 0..3 {
        for a_dials in [true, false] {
            let (dialler, acceptor) = if a_dials { (&a, &mut b) } else { (&b, &mut a) };
            let dialled = dialler.link.dial_data(b"cluster shop-db".to_vec());
            let accepted = acceptor.wait("Data", |event| match event {
                LinkEvent::Data { hello, conn, session } => Some((hello, conn, session)),
                _ => None,
            });
            let (ours, (hello, theirs, session)) = tokio::join!(dialled, accepted);
            let ours = ours.unwrap();
            assert_eq!(hello, b"cluster shop-db");
            assert_eq!(theirs.session, session);
            assert!(ours.tcp.nodelay().unwrap() && theirs.tcp.nodelay().unwrap());
            let threads = [
                std::thread::spawn(move || exchange(ours, &vec![1; 100_000], 50_000)),
                std::thread::spawn(move || exchange(theirs, &vec![2; 50_000], 100_000)),
            ];
            let [near, far] = threads.map(|thread| thread.join().unwrap());
            assert_eq!((near, far), (vec![2; 50_000], vec![1; 100_000]));
        }
    }
    b.link.shutdown().await;
    a.down().await;
    let error = a.link.dial_data(Vec::new()).await.unwrap_err();
    assert!(matches!(error, LinkError::NotConnected), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_counts_for_the_life_that_is_known_only() {
    let pair = pair(1);
    let (a, mut b) = connected(&pair).await;
    let former = a.link.tombstone(b"g 4, never alone").unwrap();
    a.link.shutdown().await;
    b.down().await;
    let mut a = Side::start(&pair.a);
    a.up().await;
    b.up().await;
    let present = a.link.tombstone(b"g 5, never alone").unwrap();
    let life = a.link.life();
    a.link.shutdown().await;
    let send = |tombstone: &skc::link::Tombstone| {
        for (from, to) in &tombstone.routes {
            let socket = std::net::UdpSocket::bind((*from, 0)).unwrap();
            socket.send_to(&tombstone.datagram, to).unwrap();
        }
    };
    send(&former);
    send(&present);
    let (body, incarnation) = b
        .wait("Tombstone", |event| match event {
            LinkEvent::Tombstone { body, peer_incarnation, .. } => Some((body, peer_incarnation)),
            _ => None,
        })
        .await;
    assert_eq!((body.as_slice(), incarnation), (&b"g 5, never alone"[..], life.incarnation));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_change_while_the_link_runs() {
    let pair = pair(1);
    let (mut a, b) = connected(&pair).await;
    for side in [&a, &b] {
        side.link.reconfigure(Duration::from_millis(20), Duration::from_millis(500));
    }
    let begun = Instant::now();
    let mut beats = 0;
    a.wait("heartbeats", |event| {
        if let LinkEvent::Down { reason, .. } = &event {
            panic!("down: {reason}");
        }
        beats += u32::from(matches!(event, LinkEvent::Heartbeat { .. }));
        (beats >= 20).then_some(())
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(3), "20 beats of 20 ms took {:?}", begun.elapsed());
}
