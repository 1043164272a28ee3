//! AF_PACKET socket for one EtherType on one interface, without link header (SOCK_DGRAM: the kernel
//! writes and strips it).
//!
//! Non-blocking; owners wrap it in `AsyncFd`. A socket belongs to the network namespace of the thread
//! that opened it. Frames this host sends are not seen by it (packet(7): only ETH_P_ALL taps see them).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// EtherType of ARP (IEEE).
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Unknown.
    pub const ZERO: Self = Self([0; 6]);
    /// Everyone on the wire.
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A packet socket bound to one interface and one EtherType.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    ifindex: i32,
    ethertype: u16,
}

impl PacketSocket {
    /// Opens and binds. Needs CAP_NET_RAW.
    pub fn open(ifindex: u32, ethertype: u16) -> io::Result<Self> {
        let ifindex = i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Protocol 0 receives nothing: frames of other interfaces cannot slip in before `bind`.
        // SAFETY: no pointers are passed.
        let raw = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let socket = Self { fd, ifindex, ethertype };
        let address = socket.address(Mac::ZERO, 0);
        // SAFETY: `address` is a valid sockaddr_ll for the length given and outlives the call.
        let done = unsafe {
            libc::bind(socket.fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    /// Sends one payload to `to`. `ENETDOWN` when the interface is down.
    pub fn send(&self, to: Mac, payload: &[u8]) -> io::Result<()> {
        let address = self.address(to, 6);
        // SAFETY: `payload` is readable for its length; `address` is a valid sockaddr_ll.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                payload.as_ptr().cast(),
                payload.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        match usize::try_from(sent) {
            Ok(n) if n == payload.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Receives one payload; longer ones are cut. `WouldBlock` when there is none.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buf` is writable for its length.
        let got = unsafe { libc::recv(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn address(&self, mac: Mac, halen: u8) -> libc::sockaddr_ll {
        let mut sll_addr = [0; 8];
        sll_addr[..6].copy_from_slice(&mac.0);
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: self.ethertype.to_be(),
            sll_ifindex: self.ifindex,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: halen,
            sll_addr,
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_reads_like_a_mac() {
        assert_eq!(Mac([0, 0x1b, 2, 0xff, 4, 5]).to_string(), "00:1b:02:ff:04:05");
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        assert!(PacketSocket::open(u32::MAX, ETHERTYPE_ARP).is_err());
        assert!(PacketSocket::open(0x7fff_fff0, ETHERTYPE_ARP).is_err());
    }
}
