//! The kinds of looks.

use super::exec::Runner;
use super::{Finding, Probe};
use crate::net::ping::ping;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;

/// Name look-ups under way at once, all checkers together. Each holds a thread for as long as the
/// resolver pleases, which no timeout of ours can shorten.
static RESOLVERS: Semaphore = Semaphore::const_new(16);

/// Looks at one thing, again and again.
pub(super) enum Looker {
    Tcp { host: String, port: u16 },
    Ping { host: String },
    Exec(Runner),
}

impl Looker {
    pub(super) fn new(probe: &Probe) -> Self {
        match probe {
            Probe::Tcp { host, port } => Self::Tcp { host: host.clone(), port: *port },
            Probe::Ping { host } => Self::Ping { host: host.clone() },
            Probe::Exec { command } => Self::Exec(Runner::new(command.clone())),
        }
    }

    /// One look. The caller drops it at its timeout; that leaves no process and no socket behind.
    pub(super) async fn look(&mut self, timeout: Duration) -> Finding {
        match self {
            Self::Tcp { host, port } => match tcp(host, *port).await {
                Ok(()) => Finding::good("connected"),
                Err(error) => Finding::bad(format!("{host}:{port}: {error}")),
            },
            Self::Ping { host } => match echo(host, timeout).await {
                Ok(Some(rtt)) => Finding::good(format!("{:.1} ms", rtt.as_secs_f64() * 1000.0)),
                Ok(None) => Finding::bad(format!("{host} does not answer")),
                Err(error) => Finding::bad(format!("{host}: {error}")),
            },
            Self::Exec(runner) => runner.run().await,
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in resolve(host, port).await? {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn echo(host: &str, timeout: Duration) -> io::Result<Option<Duration>> {
    // The first address that can be asked decides: asking all of them would divide the timeout.
    let all = resolve(host, 0).await?;
    let address = all.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    ping(address.ip(), timeout).await.map_err(io::Error::other)
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let slot = RESOLVERS.try_acquire().map_err(|_| io::Error::other("too many name look-ups hang"))?;
    let host = host.to_owned();
    // A task of its own: the slot stays taken until the resolver answers, also when the look is dropped.
    let lookup = tokio::spawn(async move {
        let found = lookup_host((host, port)).await.map(Iterator::collect);
        drop(slot);
        found
    });
    lookup.await.map_err(io::Error::other)?
}
