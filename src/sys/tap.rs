//! AF_PACKET socket that takes every whole frame that arrives at an interface and puts whole frames on it:
//! the ends of the lab's forwarder.
//!
//! Frames carry the kernel's offload header (PACKET_VNET_HDR, packet(7)) in front and are handed on as they
//! are: a veth passes unsegmented TCP of up to 64 KiB with unfinished checksums, and only with that header
//! can the next interface finish the work. What this host itself sends on the interface is not seen.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Longest frame with its offload header: 64 KiB of TCP, its headers, and room to spare.
pub const FRAME_MAX: usize = 70_000;

/// All frames, any EtherType (linux/if_ether.h, ETH_P_ALL).
const EVERYTHING: u16 = 3;
/// Not in every libc: linux/if_packet.h.
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// Receive buffer: what may arrive while the owner is not scheduled, at 10 Gbit/s for some 20 ms.
const RECEIVE_BUFFER: i32 = 32 << 20;

/// One end. It belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Opens it at the interface called `name`. Needs CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn open(name: &str) -> io::Result<Self> {
        let c_name = CString::new(name)?;
        // SAFETY: a NUL-terminated string that lives through the call.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Protocol 0 receives nothing: frames of other interfaces cannot slip in before `bind`.
        // SAFETY: no pointers are passed.
        let raw = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let tap = Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } };
        tap.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        tap.set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        tap.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: EVERYTHING.to_be(),
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: `address` is a valid sockaddr_ll for the length given and outlives the call.
        let done = unsafe {
            libc::bind(tap.fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(tap) }
    }

    fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: `value` is readable for the length given and outlives the call.
        let done = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as u32,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes one frame with its offload header; longer ones are cut. `WouldBlock` when there is none.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buffer` is writable for its length.
        let got = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// Puts one frame with its offload header on the interface.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: `frame` is readable for its length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until a frame can be taken or `limit` is over (`None`: as long as it takes).
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let time = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one pollfd, a time that is null or outlives the call, no signal mask.
        let ready = unsafe { libc::ppoll(&raw mut poll, 1, time, std::ptr::null()) };
        match io::Error::last_os_error() {
            error if ready < 0 && error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        assert!(Tap::open("no-such-port").is_err());
        assert!(Tap::open("a\0b").is_err());
    }
}
