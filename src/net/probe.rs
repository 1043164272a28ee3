//! Who answers for an address? Evidence for the failover driver and for the keeper.
//!
//! Asked below IP (ARP, neighbour solicitation), because that is answered by the kernel of whoever
//! holds the address, even when its agent and services are dead. Our own MACs never count.
//!
//! Three answers, not two: [`Presence::Unknown`] means that nothing could be asked (no interface, no
//! carrier, no socket). Silence of a probe that never left is no evidence that nobody lives, so
//! callers must not treat it as [`Presence::Silent`].

use super::iface::{Interface, Interfaces, Netlink};
use super::ping::{ping, ping_any};
use super::socket::{ArpLink, NdLink};
use super::{Error, Mac, Vip};
use crate::engine::{ProbeResult as CoreResult, WitnessState};
use crate::sys::arp::Arp;
use futures::StreamExt;
use futures::future::{BoxFuture, Either, FutureExt, select};
use futures::stream::FuturesUnordered;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Probes in one round; two may be lost.
const PROBES: u32 = 3;
/// How far a round may overrun its window before it counts as not done: the timers of a busy machine
/// come late, and its silence then proves nothing.
const OVERRUN: Duration = Duration::from_millis(150);
/// Addresses asked in one round (virtual IPs and peer addresses each).
const ADDRESSES_MAX: usize = 64;

/// Is somebody there?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Yes.
    Answered {
        /// Who; unknown when it was a ping through a router.
        mac: Option<Mac>,
    },
    /// Asked, and nobody answered.
    Silent,
    /// Could not be asked.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Presence {
    /// Did somebody answer?
    pub const fn answered(&self) -> bool {
        matches!(self, Self::Answered { .. })
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown { reason: reason.into() }
    }
}

/// Does one of the witnesses answer?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// One does.
    Reachable,
    /// None does.
    Unreachable,
    /// There is none.
    NotConfigured,
}

/// What one round found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// Does anybody hold one of the virtual IPs?
    pub vip: Presence,
    /// Does the peer's kernel live?
    pub peer: Presence,
    /// Is the rest of the network there?
    pub witness: Witness,
    /// How long the round took.
    pub elapsed: Duration,
}

impl ProbeResult {
    /// For the decision core, which knows yes and no only. Where no virtual IP could be asked for the
    /// witness is reported unreachable, also when none is configured: a node that cannot ask must not
    /// conclude that it is alone.
    ///
    /// Having no virtual IP is no obstacle, nor is a peer address that could not be asked: a direct cable
    /// loses its carrier when the peer loses its power.
    pub fn to_core(&self) -> CoreResult {
        let blind = !self.peer.answered()
            && matches!(&self.vip, Presence::Unknown { reason } if reason != NOTHING_TO_ASK);
        let witness = match self.witness {
            _ if blind => WitnessState::Unreachable,
            Witness::NotConfigured => WitnessState::None,
            Witness::Reachable => WitnessState::Reachable,
            Witness::Unreachable => WitnessState::Unreachable,
        };
        CoreResult { vip_answered: self.vip.answered(), peer_answered: self.peer.answered(), witness }
    }
}

const NOTHING_TO_ASK: &str = "no address configured";

/// Probes virtual IPs, peer addresses and witnesses in parallel, three times within `window`.
///
/// Ends as soon as a virtual IP or the peer answered and the witness is known, else when the window is
/// over. An overrun by more than `OVERRUN` makes silence `Unknown`.
///
/// # Cancel safety
/// Dropping it closes its sockets.
pub async fn probe_round(
    vips: &[Vip],
    peer_addresses: &[IpAddr],
    witnesses: &[IpAddr],
    window: Duration,
) -> ProbeResult {
    let start = Instant::now();
    let deadline = start + window;
    let witness = ping_any(witnesses, window);
    let kernels = async {
        let interfaces = match timeout_at(deadline, list()).await {
            Ok(Ok(interfaces)) => interfaces,
            Ok(Err(error)) => {
                return (Presence::unknown(error.to_string()), Presence::unknown(error.to_string()));
            }
            Err(_) => {
                let late = Presence::unknown("listing interfaces took the whole window");
                return (late.clone(), late);
            }
        };
        let gap = deadline.saturating_duration_since(Instant::now()) / PROBES;
        let own = interfaces.macs();
        let vips = any(vips.iter().take(ADDRESSES_MAX).map(|vip| match interfaces.of_vip(vip) {
            Ok(interface) => ask(vip.address, interface, &own, PROBES, gap).boxed(),
            Err(error) => futures::future::ready(Presence::unknown(error.to_string())).boxed(),
        }));
        let peers = peer_addresses.iter().take(ADDRESSES_MAX);
        let peers = any(peers.map(|a| ask_host(*a, &interfaces, &own, gap).boxed()));
        both(vips, peers).await
    };
    let hard = deadline + OVERRUN;
    let (kernels, witness) = futures::join!(timeout_at(hard, kernels), timeout_at(hard, witness));
    let late = || Presence::unknown("the round did not end in time");
    let (mut vip, mut peer) = kernels.unwrap_or_else(|_| (late(), late()));
    let witness = witness.unwrap_or(Witness::Unreachable);
    let elapsed = start.elapsed();
    if elapsed > window + OVERRUN {
        for presence in [&mut vip, &mut peer] {
            if *presence == Presence::Silent {
                *presence = Presence::unknown("this node was too busy to probe in time");
            }
        }
    }
    ProbeResult { vip, peer, witness, elapsed }
}

/// Who answers for `vip`: `n` probes, `gap` apart.
pub async fn probe_vip(vip: &Vip, n: u32, gap: Duration) -> Presence {
    match list().await {
        Ok(all) => match all.of_vip(vip) {
            Ok(interface) => ask(vip.address, interface, &all.macs(), n, gap).await,
            Err(error) => Presence::unknown(error.to_string()),
        },
        Err(error) => Presence::unknown(error.to_string()),
    }
}

/// Does any of the peer's addresses answer within `window`? ARP where it is on-link, else ping.
pub async fn probe_peer(addresses: &[IpAddr], window: Duration) -> Presence {
    match list().await {
        Ok(all) => {
            let own = all.macs();
            let asked = addresses.iter().take(ADDRESSES_MAX);
            any(asked.map(|a| ask_host(*a, &all, &own, window / PROBES).boxed())).await
        }
        Err(error) => Presence::unknown(error.to_string()),
    }
}

async fn list() -> Result<Interfaces, Error> {
    Netlink::open()?.interfaces().await
}

async fn ask_host(address: IpAddr, all: &Interfaces, own: &[Mac], gap: Duration) -> Presence {
    match all.on_link(address).filter(|i| i.arp && i.mac.is_some()) {
        Some(interface) => ask(address, interface, own, PROBES, gap).await,
        None => match ping(address, gap * PROBES).await {
            Ok(Some(_)) => Presence::Answered { mac: None },
            Ok(None) => Presence::Silent,
            Err(error) => Presence::unknown(error.to_string()),
        },
    }
}

/// Asks `n` times, `gap` apart, who has `address` on `interface`. Ends with the first answer.
pub(super) async fn ask(
    address: IpAddr,
    interface: &Interface,
    own: &[Mac],
    n: u32,
    gap: Duration,
) -> Presence {
    if !interface.running {
        return Presence::unknown(Error::InterfaceDown { name: interface.name.clone() }.to_string());
    }
    let Some(mac) = interface.mac.filter(|_| interface.arp) else {
        return Presence::unknown(format!("interface {} does not speak ARP", interface.name));
    };
    let asker = match Asker::open(address, interface, mac) {
        Ok(asker) => asker,
        Err(error) => return Presence::unknown(format!("cannot ask on {}: {error}", interface.name)),
    };
    let mut next = Instant::now();
    let mut problem = None;
    for _ in 0..n {
        if let Err(error) = asker.send() {
            problem = Some(format!("cannot ask on {}: {error}", interface.name));
        }
        next += gap;
        loop {
            // `timeout_at` polls the socket before the timer: an answer that waited while this process
            // did not run is still seen.
            match timeout_at(next, asker.answer()).await {
                Ok(Ok(mac)) if own.contains(&mac) => {}
                Ok(Ok(mac)) => return Presence::Answered { mac: Some(mac) },
                Ok(Err(error)) => {
                    // Interface went down: what was sent before may never have left.
                    return Presence::unknown(format!("cannot listen on {}: {error}", interface.name));
                }
                Err(_) => break,
            }
        }
    }
    // Silence counts only if every question was put.
    problem.map_or(Presence::Silent, |reason| Presence::Unknown { reason })
}

/// One open question.
enum Asker {
    Arp { link: ArpLink, target: Ipv4Addr, mac: Mac, source: Option<Ipv4Addr> },
    Nd { link: NdLink, target: std::net::Ipv6Addr, mac: Mac },
}

impl Asker {
    fn open(target: IpAddr, interface: &Interface, mac: Mac) -> std::io::Result<Self> {
        Ok(match target {
            IpAddr::V4(target) => {
                let source = interface.addresses.iter().find_map(|a| match a.address {
                    IpAddr::V4(ip)
                        if ip != target && super::iface::contains(ip.into(), a.prefix, target.into()) =>
                    {
                        Some(ip)
                    }
                    _ => None,
                });
                Self::Arp { link: ArpLink::open(interface.index)?, target, mac, source }
            }
            IpAddr::V6(target) => Self::Nd { link: NdLink::open(interface.index)?, target, mac },
        })
    }

    fn send(&self) -> std::io::Result<()> {
        match self {
            Self::Arp { link, target, mac, source } => {
                link.send(Mac::BROADCAST, &Arp::probe(*mac, *target))?;
                // Hosts with arp_ignore=2 answer only a sender of their own subnet.
                source.map_or(Ok(()), |s| link.send(Mac::BROADCAST, &Arp::request(*mac, s, *target)))
            }
            Self::Nd { link, target, mac } => link.socket().solicit(*mac, *target),
        }
    }

    async fn answer(&self) -> std::io::Result<Mac> {
        match self {
            Self::Arp { link, target, .. } => loop {
                let arp = link.recv().await?;
                if arp.sender == *target {
                    return Ok(arp.sender_mac);
                }
            },
            Self::Nd { link, target, .. } => loop {
                let (address, mac) = link.recv().await?;
                if address == *target {
                    return Ok(mac);
                }
            },
        }
    }
}

/// The first answer; else silence if somebody was asked; else why nobody was.
async fn any<'a>(asked: impl Iterator<Item = BoxFuture<'a, Presence>>) -> Presence {
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut silent = false;
    let mut reason = NOTHING_TO_ASK.to_owned();
    while let Some(presence) = asked.next().await {
        match presence {
            answered @ Presence::Answered { .. } => return answered,
            Presence::Silent => silent = true,
            Presence::Unknown { reason: why } => reason = why,
        }
    }
    if silent { Presence::Silent } else { Presence::Unknown { reason } }
}

/// Both presences; an answer of one ends the other, which is then what it is when nobody answered yet.
async fn both(
    vips: impl Future<Output = Presence>,
    peers: impl Future<Output = Presence>,
) -> (Presence, Presence) {
    let cut = || Presence::unknown("the round ended with the other answer");
    match select(std::pin::pin!(vips), std::pin::pin!(peers)).await {
        Either::Left((vip, _)) if vip.answered() => (vip, cut()),
        Either::Left((vip, rest)) => (vip, rest.await),
        Either::Right((peer, _)) if peer.answered() => (cut(), peer),
        Either::Right((peer, rest)) => (rest.await, peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(vip: Presence, peer: Presence, witness: Witness) -> ProbeResult {
        ProbeResult { vip, peer, witness, elapsed: Duration::ZERO }
    }

    #[test]
    fn a_node_that_could_not_ask_is_not_told_that_it_is_alone() {
        let blind = Presence::unknown("interface eth0 is down");
        for witness in [Witness::Reachable, Witness::NotConfigured] {
            let core = result(blind.clone(), Presence::Silent, witness).to_core();
            assert!(!core.vip_answered);
            assert_eq!(core.witness, WitnessState::Unreachable);
        }
    }

    #[test]
    fn a_direct_cable_that_lost_its_carrier_does_not_blind() {
        let cable = Presence::unknown("interface eth1 is down");
        let core = result(Presence::Silent, cable, Witness::Reachable).to_core();
        assert_eq!((core.peer_answered, core.witness), (false, WitnessState::Reachable));
    }

    #[test]
    fn without_a_virtual_ip_the_rest_still_counts() {
        let none = Presence::unknown(NOTHING_TO_ASK);
        let core = result(none, Presence::Silent, Witness::Reachable).to_core();
        assert_eq!(core.witness, WitnessState::Reachable);
    }

    #[tokio::test]
    async fn one_answer_outweighs_silence_and_silence_outweighs_ignorance() {
        let ready = |p: Presence| futures::future::ready(p).boxed();
        let unknown = || ready(Presence::unknown("x"));
        let answered = Presence::Answered { mac: None };
        let all = vec![unknown(), ready(Presence::Silent), ready(answered.clone())];
        assert_eq!(any(all.into_iter()).await, answered);
        assert_eq!(any(vec![unknown(), ready(Presence::Silent)].into_iter()).await, Presence::Silent);
        assert_eq!(any(vec![unknown()].into_iter()).await, Presence::unknown("x"));
    }
}
