//! ICMP echo sockets (v4, v6) and Neighbour Discovery messages (RFC 4861), non-blocking.
//!
//! Raw sockets where permitted (the agent is root), else the unprivileged "ping" socket, which the
//! sysctl `net.ipv4.ping_group_range` closes even to root on many systems; so raw comes first.

use super::packet::Mac;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
/// Option types of RFC 4861 section 4.6.1.
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;
/// RFC 4861 section 7.1: messages with another hop limit came through a router and are dropped.
const ND_HOP_LIMIT: u32 = 255;
/// `ICMP6_FILTER` of linux/icmpv6.h; the libc crate has no name for it.
const ICMP6_FILTER: libc::c_int = 1;

/// One echo exchange partner: a socket connected to `target`.
#[derive(Debug)]
pub struct EchoSocket {
    socket: Socket,
    v6: bool,
    raw: bool,
    id: u16,
}

impl EchoSocket {
    /// Opens a socket connected to `target`; `id` tells our echoes from those of others (raw only).
    pub fn open(target: IpAddr, id: u16) -> io::Result<Self> {
        let v6 = target.is_ipv6();
        let (domain, protocol) =
            if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let (socket, raw) = match Socket::new(domain, Type::RAW, Some(protocol)) {
            Ok(socket) => (socket, true),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                (Socket::new(domain, Type::DGRAM, Some(protocol))?, false)
            }
            Err(e) => return Err(e),
        };
        socket.set_nonblocking(true)?;
        if v6 && raw {
            pass_only(&socket, ECHO_REPLY_V6)?;
        }
        socket.connect(&SockAddr::from(SocketAddr::new(target, 0)))?;
        Ok(Self { socket, v6, raw, id })
    }

    /// Sends echo request number `seq`.
    pub fn send(&self, seq: u16) -> io::Result<()> {
        let packet = encode_echo(self.v6, self.id, seq);
        self.socket.send(&packet).map(|_| ())
    }

    /// The number of the next echo reply to us, `None` for something else. `WouldBlock` when empty.
    pub fn recv(&self) -> io::Result<Option<u16>> {
        let mut buf = [0; 256];
        let got = (&self.socket).read(&mut buf)?;
        let bytes = buf.get(..got).unwrap_or_default();
        let bytes = if self.raw && !self.v6 { strip_ipv4(bytes) } else { Some(bytes) };
        let want = if self.v6 { ECHO_REPLY_V6 } else { ECHO_REPLY_V4 };
        // The unprivileged socket replaces the id with its own and filters by it.
        Ok(bytes
            .and_then(|b| decode_echo(b, want))
            .filter(|(id, _)| !self.raw || *id == self.id)
            .map(|e| e.1))
    }
}

impl AsRawFd for EchoSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A raw ICMPv6 socket for solicitations and advertisements on one interface. Needs CAP_NET_RAW.
#[derive(Debug)]
pub struct NdSocket {
    socket: Socket,
    ifindex: u32,
}

impl NdSocket {
    /// Opens; only neighbour advertisements are received.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_nonblocking(true)?;
        pass_only(&socket, NEIGHBOUR_ADVERT)?;
        socket.set_multicast_hops_v6(ND_HOP_LIMIT)?;
        socket.set_unicast_hops_v6(ND_HOP_LIMIT)?;
        socket.set_multicast_if_v6(ifindex)?;
        socket.set_multicast_loop_v6(false)?;
        socket.bind_device_by_index_v6(std::num::NonZeroU32::new(ifindex))?;
        Ok(Self { socket, ifindex })
    }

    /// Makes `source` the sender (it must be an address of this host).
    pub fn bind(&self, source: Ipv6Addr) -> io::Result<()> {
        self.socket.bind(&self.address(source))
    }

    /// Asks who has `target` (to its solicited-node group).
    pub fn solicit(&self, mac: Mac, target: Ipv6Addr) -> io::Result<()> {
        let packet = encode_nd(NEIGHBOUR_SOLICIT, 0, target, OPTION_SOURCE_MAC, mac);
        self.socket.send_to(&packet, &self.address(solicited_node(target))).map(|_| ())
    }

    /// Tells all nodes that `address` is at `mac` (unsolicited, override flag set).
    pub fn advertise(&self, mac: Mac, address: Ipv6Addr) -> io::Result<()> {
        const OVERRIDE: u8 = 0x20;
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let packet = encode_nd(NEIGHBOUR_ADVERT, OVERRIDE, address, OPTION_TARGET_MAC, mac);
        self.socket.send_to(&packet, &self.address(all_nodes)).map(|_| ())
    }

    /// The next advertisement as (address, its MAC), `None` for anything else.
    pub fn recv(&self) -> io::Result<Option<(Ipv6Addr, Mac)>> {
        let mut buf = [0; 512];
        let got = (&self.socket).read(&mut buf)?;
        Ok(decode_advert(buf.get(..got).unwrap_or_default()))
    }

    fn address(&self, ip: Ipv6Addr) -> SockAddr {
        SockAddr::from(SocketAddrV6::new(ip, 0, 0, self.ifindex))
    }
}

impl AsRawFd for NdSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Blocks every ICMPv6 type but `kind`.
fn pass_only(socket: &Socket, kind: u8) -> io::Result<()> {
    // struct icmp6_filter: 256 bits, a set bit blocks the type.
    let mut filter = [u32::MAX; 8];
    filter[usize::from(kind >> 5)] &= !(1 << (kind & 31));
    // SAFETY: `filter` is 32 readable bytes, as the option demands, and outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            filter.as_ptr().cast(),
            size_of_val(&filter) as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn encode_echo(v6: bool, id: u16, seq: u16) -> [u8; 16] {
    let mut out = [0; 16];
    out[0] = if v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST_V4 };
    out[4..6].copy_from_slice(&id.to_be_bytes());
    out[6..8].copy_from_slice(&seq.to_be_bytes());
    out[8..].copy_from_slice(b"skc-echo");
    if !v6 {
        // The kernel sums ICMPv6 itself (RFC 3542), ICMPv4 is ours.
        let sum = checksum(&out);
        out[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

fn decode_echo(bytes: &[u8], kind: u8) -> Option<(u16, u16)> {
    let head = bytes.first_chunk::<8>()?;
    (head[0] == kind)
        .then(|| (u16::from_be_bytes([head[4], head[5]]), u16::from_be_bytes([head[6], head[7]])))
}

/// Raw IPv4 sockets deliver the IP header too; its length is in its first byte.
fn strip_ipv4(bytes: &[u8]) -> Option<&[u8]> {
    let words = bytes.first()? & 0x0f;
    bytes.get(usize::from(words) * 4..)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn encode_nd(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> [u8; 32] {
    let mut out = [0; 32];
    out[0] = kind;
    out[4] = flags;
    out[8..24].copy_from_slice(&target.octets());
    out[24] = option;
    out[25] = 1; // length in units of 8 bytes
    out[26..].copy_from_slice(&mac.0);
    out
}

fn decode_advert(bytes: &[u8]) -> Option<(Ipv6Addr, Mac)> {
    let (head, mut options) = bytes.split_at_checked(24)?;
    if head[0] != NEIGHBOUR_ADVERT {
        return None;
    }
    let target = Ipv6Addr::from(*head.get(8..)?.first_chunk::<16>()?);
    // An answer to a multicast solicitation carries the option (RFC 4861 section 4.4).
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        let option = options.get(..len).filter(|o| !o.is_empty())?;
        if kind == OPTION_TARGET_MAC {
            return Some((target, Mac(*option.get(2..)?.first_chunk()?)));
        }
        options = &options[len..];
    }
    None
}

/// ff02::1:ffXX:XXXX (RFC 4291 section 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let o = target.octets();
    let mut out = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    out[13..].copy_from_slice(&o[13..]);
    Ipv6Addr::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_sums_to_zero() {
        assert_eq!(checksum(&encode_echo(false, 0x1234, 7)), 0);
        assert_eq!(checksum(&[0xff]), 0x00ff);
    }

    #[test]
    fn solicited_node_group_keeps_the_last_three_bytes() {
        let group = solicited_node("2001:db8::12:3456".parse().unwrap());
        assert_eq!(group, "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn an_advert_without_or_with_broken_options_is_none() {
        let target: Ipv6Addr = "fe80::1".parse().unwrap();
        let mac = Mac([2, 3, 4, 5, 6, 7]);
        let good = encode_nd(NEIGHBOUR_ADVERT, 0, target, OPTION_TARGET_MAC, mac);
        assert_eq!(decode_advert(&good), Some((target, mac)));
        for len in 0..good.len() {
            assert_eq!(decode_advert(&good[..len]), None, "{len} bytes");
        }
        let mut endless = good;
        endless[24] = 9;
        endless[25] = 0; // an option of no length must not loop
        assert_eq!(decode_advert(&endless), None);
    }

    #[test]
    fn a_short_or_foreign_echo_is_none() {
        assert_eq!(decode_echo(&[0; 7], 0), None);
        assert_eq!(decode_echo(&encode_echo(false, 1, 2), ECHO_REPLY_V4), None);
        assert_eq!(strip_ipv4(&[]), None);
        assert_eq!(strip_ipv4(&[0x4f, 0]), None);
    }
}
