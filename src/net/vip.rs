//! A virtual IP: an address that the kernel drops by itself when nobody renews it.
//!
//! It is added with `valid_lft` = `preferred_lft` = lease, so an agent that died or hangs gives the
//! address up without doing anything (measured on veth: gone 1.0 to 1.2 s after a renewal of 1 s). IPv6
//! addresses skip duplicate detection (`IFA_F_NODAD`): it would cost a second of outage, and the probe
//! before adding has asked already.

use super::Error;
use super::iface::{Netlink, answered};
use crate::base::Millis;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

/// A virtual IP as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vip {
    /// The address.
    pub address: IpAddr,
    /// Prefix length of its subnet.
    pub prefix: u8,
    /// The interface, when it cannot be found by subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Vip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Syntax { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > longest || address.is_multicast() || address.is_unspecified() {
            return Err(wrong());
        }
        Ok(Self { address, prefix, interface: None })
    }
}

/// How long the kernel keeps an address that is not renewed. Whole seconds: the unit of `valid_lft`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease(u32);

impl Lease {
    /// max(1 s, `timeout` rounded up to seconds), at most an hour.
    pub fn from_timeout(timeout: Millis) -> Self {
        Self(timeout.div_ceil(1000).clamp(1, 3600) as u32)
    }

    /// In seconds.
    pub const fn seconds(self) -> u32 {
        self.0
    }

    /// In milliseconds.
    pub const fn millis(self) -> Millis {
        self.0 as Millis * 1000
    }

    /// Time between renewals: a third, so that one may be missed.
    pub const fn renewal(self) -> Duration {
        Duration::from_millis(self.millis() / 3)
    }
}

impl Netlink {
    /// Adds `vip` to the interface, or renews it there, for one lease from now.
    pub async fn set_vip(&self, vip: &Vip, ifindex: u32, lease: Lease) -> Result<(), Error> {
        // The library shifts by the prefix; a hand-made value must not reach it.
        if vip.prefix > if vip.address.is_ipv4() { 32 } else { 128 } {
            return Err(Error::Syntax { text: vip.to_string() });
        }
        let mut request = self.handle.address().add(ifindex, vip.address, vip.prefix).replace();
        let message = request.message_mut();
        let mut cache = CacheInfo::default();
        cache.ifa_valid = lease.seconds();
        cache.ifa_preferred = lease.seconds();
        message.attributes.push(AddressAttribute::CacheInfo(cache));
        if vip.address.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        answered(&format!("set {vip} on interface {ifindex}"), request.execute()).await
    }

    /// Removes `address` from every interface that has it with a lease; returns whether one had.
    ///
    /// A permanent one was configured by somebody else and is never touched.
    pub async fn remove_vip(&self, address: IpAddr) -> Result<bool, Error> {
        let interfaces = self.interfaces().await?;
        let mut removed = false;
        for (interface, assigned) in interfaces.holders(address) {
            if assigned.valid_seconds.is_none() {
                tracing::warn!(%address, interface = interface.name, "a permanent address is not ours to remove");
                continue;
            }
            let message = address_message(interface.index, address, assigned.prefix);
            let request = self.handle.address().del(message).execute();
            match answered(&format!("remove {address} from {}", interface.name), request).await {
                // It ran out in between.
                Err(Error::Netlink { errno: libc::EADDRNOTAVAIL, .. }) => {}
                other => other?,
            }
            removed = true;
        }
        Ok(removed)
    }
}

fn address_message(ifindex: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    match address {
        IpAddr::V4(a) => AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(a, prefix).build(),
        IpAddr::V6(a) => AddressMessageBuilder::<Ipv6Addr>::new().index(ifindex).address(a, prefix).build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_the_timeout_rounded_up_and_at_least_a_second() {
        let seconds = |ms| Lease::from_timeout(ms).seconds();
        assert_eq!([seconds(0), seconds(500), seconds(1000), seconds(1001), seconds(2000)], [1, 1, 1, 2, 2]);
        assert_eq!(seconds(u64::MAX), 3600);
        assert_eq!(Lease::from_timeout(500).renewal(), Duration::from_millis(333));
    }

    #[test]
    fn a_vip_is_read_and_written_as_address_and_prefix() {
        for good in ["10.0.1.100/24", "fd00::5/64"] {
            assert_eq!(good.parse::<Vip>().unwrap().to_string(), good);
        }
        for bad in
            ["", "10.0.1.1", "10.0.1.1/33", "10.0.1.1/0", "fd00::1/129", "224.0.0.1/24", "0.0.0.0/8", "x/1"]
        {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }
}
