//! Dialling: sockets, the control greeting as `NodeId::A` does it, and the loop that keeps trying.

use super::control::{Arrival, Established};
use super::handle::Inner;
use super::pki::{Identity, Node};
use super::wire::{self, WireError};
use super::{Life, LinkError, heartbeat, tls};
use crate::base::NodeId;
use crate::proto::control::{Control, GREETING_MAX, Hello, VERSIONS};
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsConnector, TlsStream};

/// First pause after a failed round over all paths, doubled up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(1);
/// Before a second attempt on a path whose machine has nobody listening yet.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// A connection that lived shorter does not reset the pause: refusals after the greeting must not
/// make a busy loop.
const SETTLED: Duration = Duration::from_secs(1);

/// Keeps a control connection up while this node is `NodeId::A`.
pub(super) async fn run(inner: Arc<Inner>, arrivals: mpsc::Sender<Arrival>) {
    let mut enrolment = inner.enrolment.subscribe();
    let mut pause = PAUSE_FIRST;
    loop {
        let generation = *enrolment.borrow_and_update();
        let identity = inner.identity.load_full();
        let round = async {
            let (Some(NodeId::A), Some(peer)) = (identity.node_id(), identity.peer()) else {
                // The other node dials, or there is none yet.
                return std::future::pending().await;
            };
            for path in order(&inner, peer) {
                let mut result = control(&inner, &identity, peer, path).await;
                if matches!(&result, Err(error) if is_refused(error)) {
                    // The machine is there and its agent is about to listen: both start at once
                    // after a power cut, and the configured order of paths should hold then, too.
                    sleep(REFUSED_PAUSE).await;
                    result = control(&inner, &identity, peer, path).await;
                }
                match result {
                    Ok((stream, life, version, from)) => {
                        let (gone, lost) = oneshot::channel();
                        let new = Established {
                            stream,
                            peer: life,
                            path,
                            version,
                            from,
                            enrolment: generation,
                            gone,
                        };
                        let begun = Instant::now();
                        if arrivals.send(Arrival::Control(new)).await.is_err() {
                            return false;
                        }
                        let _ = lost.await;
                        return begun.elapsed() > SETTLED;
                    }
                    Err(error) => report(&inner, &error, peer, path),
                }
            }
            false
        };
        let settled = tokio::select! {
            biased;
            () = inner.stopped() => return,
            changed = enrolment.changed() => {
                if changed.is_err() { return; }
                true
            }
            settled = round => settled,
        };
        if settled {
            pause = PAUSE_FIRST;
            continue;
        }
        tokio::select! {
            biased;
            () = inner.stopped() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

fn is_refused(error: &LinkError) -> bool {
    matches!(error, LinkError::Io { source, .. } if source.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn report(inner: &Inner, error: &LinkError, peer: &Node, path: usize) {
    match error {
        // The other side is down, unreachable or busy: heartbeats tell that story.
        LinkError::Io { .. } | LinkError::Deadline { .. } => {
            tracing::debug!(path, %error, "cannot reach the peer");
        }
        _ => {
            if let Some(address) = peer.addresses.get(path) {
                inner.refuse(error, SocketAddr::new(*address, peer.port));
            }
        }
    }
}

/// Paths in the order to try: those where both hear each other, those where we hear the peer, the
/// rest; the configured order within each.
fn order(inner: &Inner, peer: &Node) -> Vec<usize> {
    let count = inner.identity.load().me().addresses.len().min(peer.addresses.len());
    let mut paths: Vec<usize> = (0..count).collect();
    if let Some(shared) = inner.heartbeats.load().as_ref() {
        let (now, interval) = (heartbeat::now(), shared.interval());
        paths.sort_by_key(|path| match shared.path(*path) {
            Some(state) if state.both_ways(interval, now) => 0,
            Some(state) if state.alive(interval, now) => 1,
            _ => 2,
        });
    }
    paths
}

/// Socket options every connection of the link has: no delay, and death within `limit`.
pub(super) fn tune(socket: &TcpStream, limit: Duration) -> std::io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
    socket.set_tcp_keepalive(&keepalive)?;
    // Also bounds keepalive (tcp(7)): unanswered probes or data for this long end the connection.
    socket.set_tcp_user_timeout(Some(limit))
}

/// A connected, tuned socket on a path.
async fn connect(
    identity: &Identity,
    peer: &Node,
    path: usize,
    limit: Duration,
) -> Result<TcpStream, LinkError> {
    let (Some(local), Some(remote)) = (identity.me().addresses.get(path), peer.addresses.get(path)) else {
        return Err(LinkError::NotConnected);
    };
    let remote = SocketAddr::new(*remote, peer.port);
    let failed = |operation| move |source| LinkError::Io { operation, with: remote, source };
    let socket = if remote.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        .map_err(failed("make a socket for"))?;
    socket.bind(SocketAddr::new(*local, 0)).map_err(failed("use our address of the path to"))?;
    // A living peer answers within a round trip; a black hole must not cost the other paths their time.
    let patience = (limit / 4).clamp(Duration::from_millis(100), Duration::from_secs(1));
    let stream = timeout(patience, socket.connect(remote))
        .await
        .map_err(|_| late("connecting", remote, patience))?
        .map_err(failed("connect to"))?;
    tune(&stream, limit).map_err(failed("set options of the socket to"))?;
    Ok(stream)
}

/// A TLS connection to the peer on a path, the peer recognised.
pub(super) async fn open(
    identity: &Identity,
    peer: &Node,
    path: usize,
    alpn: &[u8],
    limit: Duration,
) -> Result<(TlsStream<TcpStream>, SocketAddr), LinkError> {
    let socket = connect(identity, peer, path, limit).await?;
    let from = socket.peer_addr().map_err(|source| LinkError::Io {
        operation: "reach",
        with: SocketAddr::from(([0, 0, 0, 0], 0)),
        source,
    })?;
    let connector = TlsConnector::from(tls::client(identity, alpn)?);
    let name = tls::server_name(&peer.name, identity.pair_id())?;
    let stream = timeout(limit, connector.connect(name, socket))
        .await
        .map_err(|_| late("the TLS handshake", from, limit))?
        .map_err(|error| tls::sort(error, from, "shake hands with"))?;
    tls::check_peer(identity, peer, stream.get_ref().1.peer_certificates(), from)?;
    Ok((stream.into(), from))
}

pub(super) fn late(step: &'static str, with: SocketAddr, limit: Duration) -> LinkError {
    LinkError::Deadline { step, with, limit_ms: limit.as_millis() as u64 }
}

/// A failed step of a greeting.
pub(super) fn greeting(error: WireError, with: SocketAddr, operation: &'static str) -> LinkError {
    match error {
        WireError::Io(source) => tls::sort(source, with, operation),
        WireError::Silent(limit) => late("the greeting", with, limit),
        WireError::Closed => {
            LinkError::Io { operation, with, source: std::io::ErrorKind::UnexpectedEof.into() }
        }
        WireError::Frame(error) => LinkError::Garbage { from: with, why: error.to_string() },
    }
}

/// Longest foreign text shown to a person.
const FOREIGN_TEXT_MAX: usize = 300;

/// What the other side says when it refuses, bounded and printable.
pub(super) fn refused(from: SocketAddr, code: &str, why: &str) -> LinkError {
    let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(FOREIGN_TEXT_MAX).collect();
    LinkError::RefusedByPeer { from, code: clean(code), why: clean(why) }
}

/// Our hello on a path.
pub(super) fn hello(inner: &Inner, identity: &Identity, path: usize) -> Control {
    Control::Hello(Hello {
        versions: VERSIONS,
        pair: identity.pair_id().to_owned(),
        node: identity.me().name.clone(),
        boot: inner.life.boot,
        incarnation: inner.life.incarnation,
        start: inner.life.start,
        path: path as u8,
    })
}

/// Checks the other side's hello; gives its life and the common version.
pub(super) fn check_hello(
    identity: &Identity,
    peer: &Node,
    hello: &Hello,
    from: SocketAddr,
) -> Result<(Life, u16), LinkError> {
    let contradiction = |why: &str| Err(LinkError::Contradiction { from, why: why.to_owned() });
    let Some(version) = VERSIONS.common(hello.versions) else {
        return Err(LinkError::Version {
            ours: (VERSIONS.min, VERSIONS.max),
            theirs: (hello.versions.min, hello.versions.max),
            from,
        });
    };
    if hello.pair != identity.pair_id() {
        return contradiction("it names another pair");
    }
    if hello.node != peer.name {
        return contradiction("it names another node than its certificate");
    }
    Ok((Life { boot: hello.boot, incarnation: hello.incarnation, start: hello.start }, version))
}

/// The dialler's half of the greeting: hello, hello, ready.
async fn control(
    inner: &Inner,
    identity: &Identity,
    peer: &Node,
    path: usize,
) -> Result<(TlsStream<TcpStream>, Life, u16, SocketAddr), LinkError> {
    const OPERATION: &str = "greet";
    let limit = inner.timers.timeout();
    let (mut stream, from) = open(identity, peer, path, tls::ALPN_PEER, limit).await?;
    let failed = |error| greeting(error, from, OPERATION);
    wire::say(&mut stream, &hello(inner, identity, path), &[], limit).await.map_err(failed)?;
    let (life, version) = match wire::read_frame(&mut stream, GREETING_MAX, limit).await.map_err(failed)? {
        (Control::Hello(theirs), _) => check_hello(identity, peer, &theirs, from)?,
        (Control::Refuse { code, why }, _) => return Err(refused(from, &code, &why)),
        _ => return Err(LinkError::Garbage { from, why: "no hello".into() }),
    };
    wire::say(&mut stream, &Control::Ready { version }, &[], limit).await.map_err(failed)?;
    Ok((stream, life, version, from))
}
