//! Ports, addresses, virtual IPs, the way to the other node.

use super::Finding;
use crate::base::codes;
use crate::net::iface::{Interfaces, Netlink};
use crate::net::probe::probe_vip;
use crate::net::{Presence, Vip, ping};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// ARP requests for a virtual IP, and the time between them: two of three may be lost.
const ASK: (u32, Duration) = (3, Duration::from_millis(300));
/// Longest wait for the other node's answer: far above the round trip of any network it is meant for.
const PEER: Duration = Duration::from_secs(1);

/// Both ports of the link; `ours`: the socket at which our own agent answers.
pub(super) fn ports(port: u16, ours: Option<&str>) -> Vec<Finding> {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    // A machine without IPv6 has the older address only.
    let tcp = TcpListener::bind(any).or_else(|_| TcpListener::bind(("0.0.0.0", port))).map(drop);
    let udp = UdpSocket::bind(any).or_else(|_| UdpSocket::bind(("0.0.0.0", port))).map(drop);
    [("tcp", tcp), ("udp", udp)]
        .into_iter()
        .map(|(kind, bound)| {
            let what = format!("port {port}/{kind}");
            match (bound, ours) {
                (Ok(()), None) => Finding::good(what, "free"),
                (Ok(()), Some(socket)) => Finding::good(
                    what,
                    format!("free; our own agent answers at {socket} and does not use it"),
                ),
                (Err(error), Some(socket)) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    Finding::good(what, format!("in use by our own agent, which answers at {socket}"))
                }
                (Err(error), _) => {
                    let note = format!("{error}: another program holds it (`ss -lntup`)");
                    Finding::bad(what, codes::LINK_IO, note)
                }
            }
        })
        .collect()
}

/// What needs netlink or sockets that ask.
pub(super) fn all(addresses: &[IpAddr], vips: &[Vip], peers: &[IpAddr], port: u16) -> Vec<Finding> {
    if addresses.is_empty() && vips.is_empty() && peers.is_empty() {
        return Vec::new();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(ask(addresses, vips, peers, port)),
        Err(error) => vec![Finding::bad("network", codes::LINK_START, error.to_string())],
    }
}

async fn ask(addresses: &[IpAddr], vips: &[Vip], peers: &[IpAddr], port: u16) -> Vec<Finding> {
    let interfaces = match Netlink::open() {
        Ok(netlink) => netlink.interfaces().await,
        Err(error) => Err(error),
    };
    let interfaces = match interfaces {
        Ok(interfaces) => interfaces,
        Err(error) => return vec![Finding::bad("interfaces", codes::NET_NETLINK, error.to_string())],
    };
    let mut findings: Vec<_> = addresses.iter().map(|address| own(*address, &interfaces)).collect();
    for vip in vips {
        findings.push(virtual_ip(vip, &interfaces).await);
    }
    for peer in peers {
        findings.extend(way(*peer, port).await);
    }
    findings
}

fn own(address: IpAddr, interfaces: &Interfaces) -> Finding {
    let what = format!("address {address}");
    match interfaces.holders(address).next() {
        Some((interface, held)) => Finding::good(what, format!("/{} at {}", held.prefix, interface.name)),
        None => Finding::bad(what, codes::LINK_NODE, "no interface of this host has it"),
    }
}

async fn virtual_ip(vip: &Vip, interfaces: &Interfaces) -> Finding {
    let what = format!("vip {vip}");
    if let Some((interface, held)) = interfaces.holders(vip.address).next() {
        let at = &interface.name;
        return match held.valid_seconds {
            // Ours always has a lease: the kernel removes it when nobody renews it.
            Some(seconds) => Finding::good(what, format!("held here, at {at}, for {seconds} s more")),
            None => Finding::bad(what, codes::NET_PERMANENT, format!("a permanent address of {at}")),
        };
    }
    let interface = match interfaces.of_vip(vip) {
        Ok(interface) => interface.name.clone(),
        Err(error) => {
            return Finding {
                code: Some(error.code()),
                ..Finding::bad(what, codes::NET_NO_INTERFACE, error.to_string())
            };
        }
    };
    match probe_vip(vip, ASK.0, ASK.1).await {
        Presence::Silent => Finding::good(what, format!("nobody answers for it on {interface}")),
        Presence::Answered { mac } => {
            let mac = mac.map_or("somebody".to_owned(), |mac| mac.to_string());
            let note = format!(
                "{mac} answers for it on {interface}: the other node if it holds it, else a stranger"
            );
            Finding::bad(what, codes::NET_VIP_TAKEN, note)
        }
        Presence::Unknown { reason } => Finding::bad(what, codes::NET_SOCKET, reason),
    }
}

async fn way(peer: IpAddr, port: u16) -> Vec<Finding> {
    let what = format!("peer {peer}");
    let echo = match ping::ping(peer, PEER).await {
        Ok(Some(time)) => Finding::good(&what, format!("answers ping in {} us", time.as_micros())),
        Ok(None) => Finding::bad(&what, codes::LINK_NOT_CONNECTED, "does not answer ping"),
        Err(error) => {
            Finding { code: Some(error.code()), ..Finding::bad(&what, codes::NET_SOCKET, error.to_string()) }
        }
    };
    let what = format!("peer {peer} {port}/tcp");
    let link = match TcpStream::connect_timeout(&SocketAddr::new(peer, port), PEER) {
        Ok(_) => Finding::good(what, "something listens"),
        // The way is open; the agent there may not be started yet.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Finding::good(what, "reached, but nothing listens (yet)")
        }
        Err(error) => Finding::bad(what, codes::LINK_NOT_CONNECTED, error.to_string()),
    };
    vec![echo, link]
}
