//! The raw sockets of `sys` as async ones.

use crate::sys::arp::Arp;
use crate::sys::icmp::{EchoSocket, NdSocket};
use crate::sys::packet::{ETHERTYPE_ARP, Mac, PacketSocket};
use crate::sys::readable::readable;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use tokio::io::unix::AsyncFd;

/// ARP on one interface.
pub(super) struct ArpLink(AsyncFd<PacketSocket>);

impl ArpLink {
    pub(super) fn open(ifindex: u32) -> io::Result<Self> {
        Ok(Self(readable(PacketSocket::open(ifindex, ETHERTYPE_ARP)?)?))
    }

    /// Never waits: an interface queue that is full counts as an error.
    pub(super) fn send(&self, to: Mac, arp: &Arp) -> io::Result<()> {
        self.0.get_ref().send(to, &arp.encode())
    }

    /// The next well-formed ARP packet. Cancel safe.
    pub(super) async fn recv(&self) -> io::Result<Arp> {
        let mut buf = [0; 64];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| fd.get_ref().recv(&mut buf)) {
                Ok(Ok(len)) => {
                    if let Some(arp) = Arp::decode(buf.get(..len).unwrap_or_default()) {
                        return Ok(arp);
                    }
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }
}

/// Neighbour Discovery on one interface.
pub(super) struct NdLink(AsyncFd<NdSocket>);

impl NdLink {
    pub(super) fn open(ifindex: u32) -> io::Result<Self> {
        Ok(Self(readable(NdSocket::open(ifindex)?)?))
    }

    pub(super) fn socket(&self) -> &NdSocket {
        self.0.get_ref()
    }

    /// The next advertisement. Cancel safe.
    pub(super) async fn recv(&self) -> io::Result<(Ipv6Addr, Mac)> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| fd.get_ref().recv()) {
                Ok(Ok(Some(advert))) => return Ok(advert),
                Ok(Ok(None)) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }
}

/// ICMP echo with one host.
pub(super) struct EchoLink(AsyncFd<EchoSocket>);

impl EchoLink {
    pub(super) fn open(target: IpAddr, id: u16) -> io::Result<Self> {
        Ok(Self(readable(EchoSocket::open(target, id)?)?))
    }

    pub(super) fn send(&self, seq: u16) -> io::Result<()> {
        self.0.get_ref().send(seq)
    }

    /// The number of the next reply to us. Cancel safe.
    pub(super) async fn recv(&self) -> io::Result<u16> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| fd.get_ref().recv()) {
                Ok(Ok(Some(seq))) => return Ok(seq),
                Ok(Ok(None)) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }
}
