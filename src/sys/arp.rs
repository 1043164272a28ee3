//! The ARP packet for IPv4 over Ethernet (RFC 826, RFC 5227): encode and decode, no I/O.
//!
//! Anything that is not Ethernet/IPv4 decodes to `None`: frames come from whoever shares the wire.

use super::packet::Mac;
use std::net::Ipv4Addr;

/// Length of an ARP packet for Ethernet and IPv4 (RFC 826).
pub const ARP_LEN: usize = 28;

/// Hardware type 1 (Ethernet), protocol 0x0800 (IPv4), address lengths 6 and 4.
const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What the packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// "Who has target?"
    Request,
    /// "Sender is at this MAC."
    Reply,
}

/// One ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// MAC of the sender.
    pub sender_mac: Mac,
    /// Address of the sender; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// MAC of the target; zero in a request.
    pub target_mac: Mac,
    /// Address asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// An RFC 5227 probe: asks for `target` without claiming any address (no cache is touched).
    pub const fn probe(mac: Mac, target: Ipv4Addr) -> Self {
        Self::request(mac, Ipv4Addr::UNSPECIFIED, target)
    }

    /// An ordinary request from `sender`. Answered also by hosts with `arp_ignore=2`, which demand a
    /// sender of their own subnet.
    pub const fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self { operation: Operation::Request, sender_mac: mac, sender, target_mac: Mac::ZERO, target }
    }

    /// Gratuitous ARP in one of its two forms (RFC 5227 section 3 allows both; switches and old
    /// stacks differ in which one they learn from).
    pub const fn gratuitous(operation: Operation, mac: Mac, address: Ipv4Addr) -> Self {
        let target_mac = match operation {
            Operation::Request => Mac::ZERO,
            Operation::Reply => Mac::BROADCAST,
        };
        Self { operation, sender_mac: mac, sender: address, target_mac, target: address }
    }

    /// The packet as it stands behind the Ethernet header.
    pub fn encode(&self) -> [u8; ARP_LEN] {
        let mut out = [0; ARP_LEN];
        out[..6].copy_from_slice(&HEADER);
        out[7] = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        out[8..14].copy_from_slice(&self.sender_mac.0);
        out[14..18].copy_from_slice(&self.sender.octets());
        out[18..24].copy_from_slice(&self.target_mac.0);
        out[24..28].copy_from_slice(&self.target.octets());
        out
    }

    /// Decodes what follows the Ethernet header (padding behind it is allowed).
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<ARP_LEN>()?;
        if bytes[..6] != HEADER {
            return None;
        }
        let operation = match [bytes[6], bytes[7]] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        let mac = |at: usize| -> Option<Mac> { Some(Mac(*bytes.get(at..)?.first_chunk()?)) };
        let ip =
            |at: usize| -> Option<Ipv4Addr> { Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?)) };
        Some(Self { operation, sender_mac: mac(8)?, sender: ip(14)?, target_mac: mac(18)?, target: ip(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn a_probe_claims_no_address() {
        let bytes = Arp::probe(MAC, Ipv4Addr::new(10, 0, 0, 9)).encode();
        assert_eq!(&bytes[..8], &[0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(&bytes[14..18], &[0; 4]);
        assert_eq!(&bytes[24..], &[10, 0, 0, 9]);
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        for operation in [Operation::Request, Operation::Reply] {
            let arp = Arp::gratuitous(operation, MAC, Ipv4Addr::new(10, 1, 2, 3));
            let mut padded = arp.encode().to_vec();
            padded.resize(46, 0); // shortest Ethernet payload
            assert_eq!(Arp::decode(&padded), Some(arp));
        }
    }

    #[test]
    fn foreign_and_short_packets_are_none() {
        let good = Arp::probe(MAC, Ipv4Addr::LOCALHOST).encode();
        assert_eq!(Arp::decode(&good[..27]), None);
        for at in 0..8 {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(Arp::decode(&bad), None, "byte {at}");
        }
    }
}
