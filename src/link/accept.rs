//! Listening: TLS by ALPN, then control, data or join.
//!
//! Strangers cost little: a bounded number of handshakes at a time, fewer for unknown addresses, and
//! a deadline for each.

use super::control::{Arrival, Established};
use super::handle::{Inner, lock};
use super::pki::{self, Identity, Node};
use super::wire;
use super::{LinkError, LinkEvent, data, dial, tls};
use crate::base::NodeId;
use crate::proto::control::{Control, GREETING_MAX, JoinRequest, VERSIONS};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

/// Time for TLS and greeting of an incoming connection.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Time for a join, several durable writes on a slow disk included.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// Greetings at a time from the peer's addresses (one data connection a cluster, dialled at once).
const FROM_PEER: usize = 64;
/// Greetings at a time from everyone else.
const FROM_OTHERS: usize = 16;
/// Pause after a failed bind or accept.
const PAUSE: Duration = Duration::from_millis(500);

/// Listens on one address until the link stops.
pub(super) async fn listen(inner: Arc<Inner>, address: SocketAddr, arrivals: mpsc::Sender<Arrival>) {
    let peers = Arc::new(Semaphore::new(FROM_PEER));
    let others = Arc::new(Semaphore::new(FROM_OTHERS));
    let serve = async {
        loop {
            let listener = match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(error) => {
                    lock(&inner.listen_errors).insert(address.ip(), error.to_string());
                    sleep(PAUSE).await;
                    continue;
                }
            };
            lock(&inner.listen_errors).remove(&address.ip());
            loop {
                let (socket, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) if is_local(&error) => {
                        lock(&inner.listen_errors).insert(address.ip(), error.to_string());
                        sleep(PAUSE).await;
                        break;
                    }
                    // The connection died before it was accepted.
                    Err(_) => continue,
                };
                let identity = inner.identity.load();
                let known = identity.peer().is_some_and(|peer| peer.addresses.contains(&from.ip()));
                let budget = if known { &peers } else { &others };
                let Ok(permit) = budget.clone().try_acquire_owned() else {
                    tracing::debug!(peer = %from, "too many greetings at a time");
                    continue;
                };
                let (inner, arrivals) = (inner.clone(), arrivals.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let served = tokio::select! {
                        biased;
                        () = inner.stopped() => Ok(()),
                        served = serve(&inner, socket, from, &arrivals) => served,
                    };
                    match served {
                        Ok(()) => {}
                        Err(error @ (LinkError::Io { .. } | LinkError::NotConnected)) => {
                            tracing::debug!(peer = %from, %error, "incoming connection ended");
                        }
                        Err(error) => inner.refuse(&error, from),
                    }
                });
            }
        }
    };
    tokio::select! {
        biased;
        () = inner.stopped() => {}
        () = serve => {}
    }
}

/// Is it about this socket or process (no descriptors, address gone), not about one connection?
fn is_local(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn serve(
    inner: &Arc<Inner>,
    socket: TcpStream,
    from: SocketAddr,
    arrivals: &mpsc::Sender<Arrival>,
) -> Result<(), LinkError> {
    const OPERATION: &str = "shake hands with";
    let failed = |source| LinkError::Io { operation: OPERATION, with: from, source };
    let local = socket.local_addr().map_err(failed)?;
    dial::tune(&socket, inner.timers.timeout()).map_err(failed)?;
    let handshake = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
        let joins =
            start.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == tls::ALPN_JOIN));
        let config = if joins { &inner.configs.join } else { &inner.configs.peer };
        start.into_stream(config.clone()).await
    };
    let stream = timeout(GREETING_LIMIT, handshake)
        .await
        .map_err(|_| dial::late("the TLS handshake", from, GREETING_LIMIT))?
        .map_err(|error| tls::sort(error, from, OPERATION))?;
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    if alpn.as_deref() == Some(tls::ALPN_JOIN) {
        return timeout(JOIN_LIMIT, join(inner, stream.into(), from))
            .await
            .map_err(|_| dial::late("the join", from, JOIN_LIMIT))?;
    }
    let generation = *inner.enrolment.borrow();
    let identity = inner.identity.load_full();
    let mut stream = TlsStream::from(stream);
    let Some(peer) = identity.peer() else {
        return refuse(&mut stream, LinkError::WrongNode { from, peer: "a second node".into() }).await;
    };
    if let Err(error) = tls::check_peer(&identity, peer, stream.get_ref().1.peer_certificates(), from) {
        return refuse(&mut stream, error).await;
    }
    match alpn.as_deref() {
        Some(tls::ALPN_DATA) => {
            let (hello, conn) = data::accept(inner, stream, from).await?;
            let _ = arrivals.send(Arrival::Data(hello, conn)).await;
            Ok(())
        }
        Some(tls::ALPN_PEER) => {
            let work = control(inner, &identity, peer, stream, from, local);
            let (stream, life, version, path) = timeout(GREETING_LIMIT, work)
                .await
                .map_err(|_| dial::late("the greeting", from, GREETING_LIMIT))??;
            // Nobody waits for the end of a connection that the peer dialled.
            let (gone, _) = oneshot::channel();
            let new = Established { stream, peer: life, path, version, from, enrolment: generation, gone };
            let _ = arrivals.send(Arrival::Control(new)).await;
            Ok(())
        }
        _ => Err(LinkError::Garbage { from, why: "it names no protocol of ours".into() }),
    }
}

/// Tells the other side why, and gives the error back.
async fn refuse<T>(stream: &mut TlsStream<TcpStream>, error: LinkError) -> Result<T, LinkError> {
    let refuse = Control::Refuse { code: error.code().into(), why: error.to_string() };
    let _ = wire::say(stream, &refuse, &[], GREETING_LIMIT).await;
    Err(error)
}

type Greeted = (TlsStream<TcpStream>, super::Life, u16, usize);

/// The accepting half of the control greeting: hello, hello, ready.
async fn control(
    inner: &Inner,
    identity: &Identity,
    peer: &Node,
    mut stream: TlsStream<TcpStream>,
    from: SocketAddr,
    local: SocketAddr,
) -> Result<Greeted, LinkError> {
    const OPERATION: &str = "greet";
    let limit = inner.timers.timeout();
    let failed = |error| dial::greeting(error, from, OPERATION);
    let contradiction = |why: &str| LinkError::Contradiction { from, why: why.to_owned() };
    let (first, _) = wire::read_frame(&mut stream, GREETING_MAX, limit).await.map_err(failed)?;
    let Control::Hello(hello) = first else {
        return Err(LinkError::Garbage { from, why: "no hello".into() });
    };
    let path = usize::from(hello.path);
    let checked = if identity.node_id() == Some(NodeId::A) {
        Err(contradiction("it dials although its name sorts after ours"))
    } else if identity.me().addresses.get(path) != Some(&local.ip()) || path >= peer.addresses.len() {
        Err(contradiction("the path it names does not lead to the address it reached"))
    } else {
        dial::check_hello(identity, peer, &hello, from)
    };
    let (life, version) = match checked {
        Ok(checked) => checked,
        Err(error) => return refuse(&mut stream, error).await,
    };
    wire::say(&mut stream, &dial::hello(inner, identity, path), &[], limit).await.map_err(failed)?;
    match wire::read_frame(&mut stream, GREETING_MAX, limit).await.map_err(failed)? {
        (Control::Ready { version: agreed }, _) if agreed == version => Ok((stream, life, version, path)),
        (Control::Ready { .. }, _) => Err(contradiction("it counts on another protocol version")),
        (Control::Refuse { code, why }, _) => Err(dial::refused(from, &code, &why)),
        _ => Err(LinkError::Garbage { from, why: "no answer to our hello".into() }),
    }
}

/// Serves one join: the token decides. Joins run one at a time.
async fn join(
    inner: &Arc<Inner>,
    mut stream: TlsStream<TcpStream>,
    from: SocketAddr,
) -> Result<(), LinkError> {
    const OPERATION: &str = "enrol";
    let failed = |error| dial::greeting(error, from, OPERATION);
    let (first, _) = wire::read_frame(&mut stream, GREETING_MAX, GREETING_LIMIT).await.map_err(failed)?;
    let Control::JoinRequest(request) = first else {
        return Err(LinkError::Garbage { from, why: "no request to join".into() });
    };
    match admit(inner, request, from).await {
        Ok((reply, node)) => {
            // The answer first: the new node's agent starts after it.
            let said = wire::say(&mut stream, &Control::JoinReply(reply), &[], GREETING_LIMIT).await;
            tracing::info!(node = %node.name, peer = %from, "node enrolled");
            inner.emit(LinkEvent::Joined { node }).await;
            said.map_err(failed)
        }
        Err(error) => refuse(&mut stream, error).await,
    }
}

async fn admit(
    inner: &Arc<Inner>,
    request: JoinRequest,
    from: SocketAddr,
) -> Result<(crate::proto::control::JoinReply, Node), LinkError> {
    if VERSIONS.common(request.versions).is_none() {
        return Err(LinkError::Version {
            ours: (VERSIONS.min, VERSIONS.max),
            theirs: (request.versions.min, request.versions.max),
            from,
        });
    }
    let _one_at_a_time = inner.joining.lock().await;
    let shared = inner.clone();
    let task = tokio::task::spawn_blocking(move || {
        let state = shared.identity.load().state().clone();
        let reply = pki::admit(&state, &request)?;
        let identity = Identity::load(&state)?;
        let node = identity.peer().cloned().ok_or(LinkError::NotConnected)?;
        shared.identity.store(Arc::new(identity));
        // Waits for the former threads: a quarter of a second, once in a pair's life.
        let started = shared.start_heartbeats();
        // Here and not after the await: the new node is on disk, whatever becomes of this connection.
        shared.enrolment.send_modify(|count| *count += 1);
        started.map(|()| (reply, node))
    });
    let died = |error: tokio::task::JoinError| LinkError::Start {
        what: "enrolment",
        source: io::Error::other(error),
    };
    task.await.map_err(died)?
}
