//! Tells the network where a virtual IP is now: gratuitous ARP in both forms for IPv4, unsolicited
//! neighbour advertisements for IPv6.
//!
//! One lost frame must not cost an outage, so the announcement is a burst ([`BURST`]) followed by
//! repetitions ([`REPEAT`] for [`REPEAT_FOR`]): switches and hosts that slept or were rebooting learn
//! it too. A conflicting ARP packet (our address, a foreign MAC) is reported and answered by one
//! announcement at most every [`DEFEND_INTERVAL`] (RFC 5227 section 2.4 b). Absent: the same watch for
//! IPv6; the neighbour caches there are repaired by the repetitions.

use super::iface::Interface;
use super::socket::{ArpLink, NdLink};
use super::{Error, Mac};
use crate::sys::arp::{Arp, Operation};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Moments of the first announcements, counted from the first one. Dense at first, because the outage a
/// client sees ends with the first frame that arrives; the last one outlives a port that is still learning.
pub const BURST: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1)];
/// Time between the repetitions after the burst.
pub const REPEAT: Duration = Duration::from_secs(10);
/// How long they go on: the common lifetime of a switch's MAC table entry (IEEE 802.1D: 300 s).
pub const REPEAT_FOR: Duration = Duration::from_secs(300);
/// RFC 5227 `DEFEND_INTERVAL`.
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// After an error of the socket (interface down) it is not read for this long, so that the task cannot spin.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Called when somebody else claims the address.
pub type OnConflict = Arc<dyn Fn(Mac) + Send + Sync>;

/// Announces one address until dropped.
pub struct Announcer {
    again: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Announcer {
    /// Starts with the burst. `own` are MACs that are no strangers.
    ///
    /// An interface without ARP needs no announcement: the task then does nothing.
    pub fn start(
        address: IpAddr,
        interface: &Interface,
        own: Vec<Mac>,
        on_conflict: OnConflict,
    ) -> Result<Self, Error> {
        let again = Arc::new(Notify::new());
        let voice = Voice::open(address, interface)
            .map_err(Error::socket(format!("announce {address} on {}", interface.name)))?;
        let run = run(voice, again.clone(), own, on_conflict);
        Ok(Self { again, task: tokio::spawn(run) })
    }

    /// Starts over with the burst.
    pub fn again(&self) {
        self.again.notify_one();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When the announcement after `sent` ones is due, counted from the first.
fn due(sent: usize) -> Option<Duration> {
    if let Some(moment) = BURST.get(sent) {
        return Some(*moment);
    }
    let repetitions = u32::try_from(sent + 1 - BURST.len()).ok()?;
    Some(REPEAT.checked_mul(repetitions)?).filter(|moment| *moment <= REPEAT_FOR)
}

async fn run(voice: Voice, again: Arc<Notify>, own: Vec<Mac>, on_conflict: OnConflict) {
    let mut start = Instant::now();
    let mut sent = 0;
    let mut deaf_until = start;
    let mut defended: Option<Instant> = None;
    loop {
        let next = due(sent).map(|after| start + after);
        let timer = async {
            match next {
                Some(moment) => sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            sleep_until(deaf_until).await;
            voice.stranger(&own).await
        };
        tokio::select! {
            biased; // sending is what ends an outage
            () = timer => {
                voice.announce();
                sent += 1;
            }
            () = again.notified() => {
                start = Instant::now();
                sent = 0;
            }
            claim = heard => match claim {
                Ok(mac) => {
                    on_conflict(mac);
                    let now = Instant::now();
                    if defended.is_none_or(|at| now - at >= DEFEND_INTERVAL) {
                        defended = Some(now);
                        voice.announce();
                    }
                    // A stranger in a loop must neither flood us nor the one we report to.
                    deaf_until = now + AFTER_ERROR;
                }
                Err(error) => {
                    tracing::debug!(address = %voice.address, %error, "cannot listen for conflicting ARP");
                    deaf_until = Instant::now() + AFTER_ERROR;
                }
            }
        }
    }
}

/// The socket to announce on.
struct Voice {
    address: IpAddr,
    mac: Mac,
    link: Link,
}

enum Link {
    Arp(ArpLink),
    Nd(NdLink),
    Mute,
}

impl Voice {
    fn open(address: IpAddr, interface: &Interface) -> io::Result<Self> {
        let (mac, link) = match (interface.mac.filter(|_| interface.arp), address) {
            (None, _) => (Mac::ZERO, Link::Mute),
            (Some(mac), IpAddr::V4(_)) => (mac, Link::Arp(ArpLink::open(interface.index)?)),
            (Some(mac), IpAddr::V6(a)) => {
                let link = NdLink::open(interface.index)?;
                link.socket().bind(a)?;
                (mac, Link::Nd(link))
            }
        };
        Ok(Self { address, mac, link })
    }

    fn announce(&self) {
        let result = match (&self.link, self.address) {
            (Link::Arp(link), IpAddr::V4(a)) => [Operation::Request, Operation::Reply]
                .into_iter()
                .try_for_each(|form| link.send(Mac::BROADCAST, &Arp::gratuitous(form, self.mac, a))),
            (Link::Nd(link), IpAddr::V6(a)) => link.socket().advertise(self.mac, a),
            _ => Ok(()),
        };
        if let Err(error) = result {
            // Not fatal: repetitions follow, and the keeper notices an interface that is gone.
            tracing::warn!(address = %self.address, %error, "announcement could not be sent");
        }
    }

    /// Waits for a packet in which somebody else claims the address.
    async fn stranger(&self, own: &[Mac]) -> io::Result<Mac> {
        match (&self.link, self.address) {
            (Link::Arp(link), IpAddr::V4(address)) => loop {
                let arp = link.recv().await?;
                if arp.sender == address && !own.contains(&arp.sender_mac) {
                    return Ok(arp.sender_mac);
                }
            },
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_every_ten_seconds_for_five_minutes() {
        let moments: Vec<u128> = (0..).map_while(due).map(|d| d.as_millis()).collect();
        assert_eq!(moments[..6], [0, 50, 200, 1000, 10_000, 20_000]);
        assert_eq!((moments.len(), moments.last()), (34, Some(&300_000)));
    }
}
