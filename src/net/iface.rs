//! Interfaces and addresses as the kernel lists them.
//!
//! [`Netlink`] owns one rtnetlink connection and its task. Every request has a deadline: the kernel
//! answers in microseconds, so a miss means that this process was starved, and the caller must know.

use super::{Error, Mac, Vip};
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

/// Longest wait for the kernel's answer to one request.
pub const NETLINK_DEADLINE: Duration = Duration::from_secs(2);

/// Lifetime that the kernel reads as "for ever" (`INFINITY_LIFE_TIME`).
const FOREVER: u32 = u32::MAX;

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Seconds until the kernel removes it; `None` = never.
    pub valid_seconds: Option<u32>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` for interfaces without one.
    pub mac: Option<Mac>,
    /// Administratively up and with carrier: what is sent has a chance to leave.
    pub running: bool,
    /// Does it speak ARP (not loopback, tunnels, dummies)?
    pub arp: bool,
    /// Its addresses.
    pub addresses: Vec<Assigned>,
}

/// All interfaces at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces(pub Vec<Interface>);

impl Interfaces {
    /// Where `vip` belongs: the interface named, else the one with another address in its subnet
    /// (longest prefix first, then lowest index).
    pub fn of_vip(&self, vip: &Vip) -> Result<&Interface, Error> {
        match &vip.interface {
            Some(name) => self
                .0
                .iter()
                .find(|i| i.name == *name)
                .ok_or_else(|| Error::NoSuchInterface { name: name.clone() }),
            None => self.on_link(vip.address).ok_or(Error::NoInterface { address: vip.address }),
        }
    }

    /// The interface whose subnet contains `address`, not counting `address` itself.
    pub fn on_link(&self, address: IpAddr) -> Option<&Interface> {
        let best = |i: &Interface| {
            let inside = |a: &&Assigned| a.address != address && contains(a.address, a.prefix, address);
            i.addresses.iter().filter(inside).map(|a| a.prefix).max()
        };
        let candidates = self.0.iter().filter_map(|i| best(i).map(|prefix| (i, prefix)));
        candidates.min_by_key(|(i, prefix)| (u8::MAX - prefix, i.index)).map(|(i, _)| i)
    }

    /// The interfaces that have `address` now.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = (&Interface, &Assigned)> {
        let matching = move |a: &&Assigned| a.address == address;
        self.0.iter().flat_map(move |i| i.addresses.iter().filter(matching).map(move |a| (i, a)))
    }

    /// Our own MACs: an answer from one of them is no stranger (bridges and bonds echo).
    pub fn macs(&self) -> Vec<Mac> {
        self.0.iter().filter_map(|i| i.mac).collect()
    }
}

/// Is `address` in the subnet of `network`/`prefix`?
pub fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            let shift = 32_u32.saturating_sub(prefix.into());
            (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            let shift = 128_u32.saturating_sub(prefix.into());
            (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// One rtnetlink connection; dropping it ends its task.
pub struct Netlink {
    pub(super) handle: rtnetlink::Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection in the network namespace of this thread. Needs a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(Error::socket("open a netlink socket"))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Lists interfaces and their addresses.
    pub async fn interfaces(&self) -> Result<Interfaces, Error> {
        let links: Vec<LinkMessage> =
            answered("list interfaces", self.handle.link().get().execute().try_collect()).await?;
        let addresses: Vec<AddressMessage> =
            answered("list addresses", self.handle.address().get().execute().try_collect()).await?;
        let mut interfaces: Vec<_> = links.iter().map(interface).collect();
        for message in &addresses {
            if let (Some(i), Some(a)) =
                (interfaces.iter_mut().find(|i| i.index == message.header.index), assigned(message))
            {
                i.addresses.push(a);
            }
        }
        Ok(Interfaces(interfaces))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for a netlink answer with the deadline, and names what was asked.
pub(super) async fn answered<T>(
    action: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(NETLINK_DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let (message, errno) = match &error {
                rtnetlink::Error::NetlinkError(e) => {
                    (e.to_io().to_string(), e.code.map_or(0, |c| c.get().saturating_neg()))
                }
                other => (other.to_string(), 0),
            };
            Err(Error::Netlink { action: action.to_owned(), message, errno })
        }
        Err(_) => Err(Error::Deadline { action: format!("netlink: {action}"), limit: NETLINK_DEADLINE }),
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut found = Interface {
        index: message.header.index,
        name: String::new(),
        mac: None,
        running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        arp: !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(bytes) => found.mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    found
}

fn assigned(message: &AddressMessage) -> Option<Assigned> {
    let mut local = None;
    let mut address = None;
    let mut valid_seconds = None;
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links IFA_ADDRESS is the other end and IFA_LOCAL is ours.
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Address(a) => address = Some(*a),
            AddressAttribute::CacheInfo(CacheInfo { ifa_valid, .. }) if *ifa_valid != FOREVER => {
                valid_seconds = Some(*ifa_valid);
            }
            _ => {}
        }
    }
    Some(Assigned { address: local.or(address)?, prefix: message.header.prefix_len, valid_seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iface(index: u32, name: &str, addresses: &[(&str, u8)]) -> Interface {
        let assign = |(a, prefix): &(&str, u8)| Assigned {
            address: a.parse().unwrap(),
            prefix: *prefix,
            valid_seconds: None,
        };
        Interface {
            index,
            name: name.into(),
            mac: None,
            running: true,
            arp: true,
            addresses: addresses.iter().map(assign).collect(),
        }
    }

    #[test]
    fn subnets_end_at_their_prefix() {
        let has = |n: &str, p, a: &str| contains(n.parse().unwrap(), p, a.parse().unwrap());
        assert!(has("10.0.1.1", 24, "10.0.1.255"));
        assert!(!has("10.0.1.1", 24, "10.0.2.0"));
        assert!(has("10.0.1.1", 0, "192.0.2.1"));
        assert!(!has("10.0.1.1", 32, "10.0.1.2"));
        assert!(has("fd00::1", 64, "fd00::ffff"));
        assert!(!has("fd00::1", 64, "fd00:0:0:1::1"));
        assert!(!has("10.0.1.1", 0, "::1"));
    }

    #[test]
    fn the_vip_goes_where_another_address_shares_its_subnet() {
        let all = Interfaces(vec![
            iface(1, "wide", &[("10.0.0.1", 8)]),
            iface(2, "other", &[("10.0.2.1", 24), ("10.0.1.100", 24)]),
            iface(3, "right", &[("10.0.1.1", 24)]),
        ]);
        let vip: Vip = "10.0.1.100/24".parse().unwrap();
        assert_eq!(all.of_vip(&vip).unwrap().name, "right");
        let named = Vip { interface: Some("other".into()), ..vip.clone() };
        assert_eq!(all.of_vip(&named).unwrap().name, "other");
        let gone = Vip { interface: Some("gone".into()), ..vip };
        assert!(matches!(all.of_vip(&gone), Err(Error::NoSuchInterface { .. })));
        let far: Vip = "192.0.2.1/24".parse().unwrap();
        assert!(matches!(all.of_vip(&far), Err(Error::NoInterface { .. })));
    }
}
