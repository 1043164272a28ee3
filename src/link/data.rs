//! Data connections: made here, owned by replication threads afterwards.

use super::handle::Inner;
use super::wire::{self, WireError};
use super::{LinkError, dial, tls};
use crate::proto::control::{Control, DataHello, GREETING_MAX};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

/// A TLS connection taken apart: blocking socket, TLS state, and what already arrived.
///
/// The socket has TCP_NODELAY, keepalive and `TCP_USER_TIMEOUT` = the link's timeout. To end it at
/// once (after `Down`, from another thread) use `tcp.shutdown(Both)` on a clone.
#[derive(Debug)]
pub struct DataConn {
    /// The control session it belongs to.
    pub session: u64,
    /// In blocking mode, without read or write timeout.
    pub tcp: std::net::TcpStream,
    /// Keys and buffers; nothing is waiting to be written.
    pub tls: rustls::Connection,
    /// Plaintext that arrived with the greeting: read this first.
    pub early: Vec<u8>,
}

impl DataConn {
    fn take_apart(stream: TlsStream<TcpStream>, session: u64) -> io::Result<Self> {
        let (tcp, mut tls) = match stream {
            TlsStream::Client(stream) => {
                let (tcp, tls) = stream.into_inner();
                (tcp, rustls::Connection::Client(tls))
            }
            TlsStream::Server(stream) => {
                let (tcp, tls) = stream.into_inner();
                (tcp, rustls::Connection::Server(tls))
            }
        };
        let tcp = tcp.into_std()?;
        tcp.set_nonblocking(false)?;
        let mut early = Vec::new();
        match tls.reader().read_to_end(&mut early) {
            // Everything that was there, then "nothing more yet".
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => {
                result?;
            }
        }
        Ok(Self { session, tcp, tls, early })
    }
}

/// Opens a data connection to the peer.
pub(super) async fn dial(inner: &Inner, hello: &[u8]) -> Result<DataConn, LinkError> {
    const OPERATION: &str = "open a data connection to";
    let session = inner.session.borrow().as_ref().map(|session| session.status.clone());
    let session = session.ok_or(LinkError::NotConnected)?;
    let identity = inner.identity.load_full();
    let peer = identity.peer().ok_or(LinkError::NotConnected)?;
    let limit = inner.timers.timeout();
    let work = async {
        let (mut stream, from) = dial::open(&identity, peer, session.path, tls::ALPN_DATA, limit).await?;
        let failed = |error| dial::greeting(error, from, OPERATION);
        let greeting = Control::DataHello(DataHello {
            incarnation: inner.life.incarnation,
            expects: session.peer_incarnation,
            path: session.path as u8,
        });
        wire::say(&mut stream, &greeting, hello, limit).await.map_err(failed)?;
        match wire::read_frame(&mut stream, GREETING_MAX, limit).await.map_err(failed)? {
            (Control::DataAccept, _) => {}
            (Control::Refuse { code, why }, _) => return Err(dial::refused(from, &code, &why)),
            _ => return Err(LinkError::Garbage { from, why: "no answer to a data connection".into() }),
        }
        DataConn::take_apart(stream, session.session).map_err(|source| LinkError::Io {
            operation: OPERATION,
            with: from,
            source,
        })
    };
    // Connect, handshake and greeting have limits of their own; together they may take this long.
    let address = peer.addresses.get(session.path).copied().unwrap_or_else(|| [0, 0, 0, 0].into());
    let whole = |_| dial::late("opening a data connection", SocketAddr::new(address, peer.port), limit * 2);
    timeout(limit * 2, work).await.map_err(whole)?
}

/// Accepts a data connection of the recognised peer: hello and connection, or why not.
pub(super) async fn accept(
    inner: &Inner,
    mut stream: TlsStream<TcpStream>,
    from: SocketAddr,
) -> Result<(Vec<u8>, DataConn), LinkError> {
    const OPERATION: &str = "accept a data connection of";
    let limit = inner.timers.timeout();
    let failed = |error: WireError| dial::greeting(error, from, OPERATION);
    let (first, bulk) = wire::read_frame(&mut stream, GREETING_MAX, limit).await.map_err(failed)?;
    let Control::DataHello(hello) = first else {
        return Err(LinkError::Garbage { from, why: "no greeting of a data connection".into() });
    };
    let session = match session_of(inner, &hello, limit).await {
        Ok(session) => session,
        Err(why) => {
            let error = LinkError::Contradiction { from, why: why.to_owned() };
            let refuse = Control::Refuse { code: error.code().into(), why: error.to_string() };
            let _ = wire::say(&mut stream, &refuse, &[], limit).await;
            return Err(error);
        }
    };
    wire::say(&mut stream, &Control::DataAccept, &[], limit).await.map_err(failed)?;
    let conn = DataConn::take_apart(stream, session).map_err(|source| LinkError::Io {
        operation: OPERATION,
        with: from,
        source,
    })?;
    Ok((bulk, conn))
}

/// The session a data connection belongs to. The dialler may know of it a moment before we do.
async fn session_of(inner: &Inner, hello: &DataHello, limit: Duration) -> Result<u64, &'static str> {
    if hello.expects != inner.life.incarnation {
        return Err("it expects another life of this agent");
    }
    let mut sessions = inner.session.subscribe();
    let matching = sessions.wait_for(|session| {
        session.as_ref().is_some_and(|session| {
            session.status.peer_incarnation == hello.incarnation
                && session.status.path == usize::from(hello.path)
        })
    });
    match timeout(limit, matching).await {
        Ok(Ok(session)) => session.as_ref().map(|session| session.status.session).ok_or("no session"),
        _ => Err("it belongs to no control connection that we know"),
    }
}
