//! ICMP echo: does a host answer, and how fast?

use super::Error;
use super::probe::Witness;
use super::socket::EchoLink;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Requests within one timeout, so that one lost packet is not a dead host.
const ATTEMPTS: u16 = 3;
/// Witnesses asked at once; more is a mistake in the spec, which refuses it before.
const TARGETS_MAX: usize = 16;

static NEXT_ID: AtomicU16 = AtomicU16::new(0);

/// Sends up to three echo requests within `timeout`; the time from the first one to the first answer.
///
/// `Ok(None)`: no answer, or the network refuses to carry it there.
///
/// # Errors
/// Only when no socket could be opened: then nothing was asked.
///
/// # Cancel safety
/// Dropping it closes the socket; nothing else is left.
pub async fn ping(target: IpAddr, timeout: Duration) -> Result<Option<Duration>, Error> {
    // Many pings run at once in one process; the pid keeps two processes of a host apart.
    let id = (std::process::id() as u16).wrapping_add(NEXT_ID.fetch_add(1, Ordering::Relaxed));
    let link = match EchoLink::open(target, id) {
        Ok(link) => link,
        Err(e) if unreachable(&e) => return Ok(None),
        Err(e) => return Err(Error::socket(format!("ping {target}"))(e)),
    };
    let start = Instant::now();
    let deadline = start + timeout;
    for attempt in 0..ATTEMPTS {
        if let Err(error) = link.send(attempt) {
            tracing::debug!(%target, %error, "echo request could not be sent");
        }
        let next = start + timeout * u32::from(attempt + 1) / u32::from(ATTEMPTS);
        match timeout_at(next.min(deadline), link.recv()).await {
            Ok(Ok(_)) => return Ok(Some(start.elapsed())),
            // An ICMP error for this target; a later attempt may still get through.
            Ok(Err(_)) => sleep_until(next).await,
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Reachable if one of `witnesses` answers within `timeout`.
///
/// A socket that cannot be opened counts as unreachable: who cannot ask must not claim to be connected.
pub async fn ping_any(witnesses: &[IpAddr], timeout: Duration) -> Witness {
    if witnesses.is_empty() {
        return Witness::NotConfigured;
    }
    let mut asked: FuturesUnordered<_> =
        witnesses.iter().take(TARGETS_MAX).map(|w| async move { (*w, ping(*w, timeout).await) }).collect();
    while let Some((witness, answer)) = asked.next().await {
        match answer {
            Ok(Some(_)) => return Witness::Reachable,
            Ok(None) => {}
            Err(error) => tracing::warn!(%witness, %error, "witness could not be asked"),
        }
    }
    Witness::Unreachable
}

fn unreachable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(error.kind(), K::NetworkUnreachable | K::HostUnreachable | K::NetworkDown | K::AddrNotAvailable)
}
