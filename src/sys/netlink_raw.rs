//! Removal of one interface address over a raw rtnetlink socket, without a runtime.
//!
//! The guard fences with it when the worker, which normally owns the addresses through the
//! `rtnetlink` crate, is dead. One request, one answer, one second; an address that is already
//! gone counts as removed.

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// How long the kernel may take to answer: it only waits for the rtnl lock.
const ANSWER_TIMEOUT_SECS: libc::time_t = 1;

const HEADER: usize = 16;
const IFADDRMSG: usize = 8;
const SEQUENCE: u32 = 1;

/// The RTM_DELADDR message for `address/prefix` on interface `ifindex`.
fn delete_request(address: IpAddr, prefix: u8, ifindex: u32) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    };
    let mut body = vec![family, prefix, 0, 0];
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&((4 + octets.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&libc::IFA_LOCAL.to_ne_bytes());
    body.extend_from_slice(&octets);
    debug_assert_eq!(body.len(), IFADDRMSG + 4 + octets.len());
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&libc::RTM_DELADDR.to_ne_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend_from_slice(&SEQUENCE.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&body);
    message
}

/// The error number in an acknowledgement (0: done), `None` if it is no acknowledgement.
fn ack_errno(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != libc::NLMSG_ERROR as u16 {
        return None;
    }
    let code = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    Some(code.saturating_neg())
}

/// Removes `address/prefix` from interface `ifindex`; already absent (address or interface) is success.
pub fn delete_address(address: IpAddr, prefix: u8, ifindex: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    let raw =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let timeout = libc::timeval { tv_sec: ANSWER_TIMEOUT_SECS, tv_usec: 0 };
    // SAFETY: pointer and length describe `timeout`, which lives over the call.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let message = delete_request(address, prefix, ifindex);
    // SAFETY: pointer and length describe `message`; an unconnected netlink socket sends to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 512];
    // SAFETY: pointer and length describe `answer`.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    match ack_errno(answer.get(..got as usize).unwrap_or_default()) {
        Some(0 | libc::EADDRNOTAVAIL | libc::ENODEV) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::from_raw_os_error(libc::EBADMSG)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_the_kernels_layout() {
        let v4 = delete_request("10.1.2.3".parse().unwrap(), 24, 5);
        assert_eq!(v4.len(), 32);
        assert_eq!(&v4[4..6], &21_u16.to_ne_bytes(), "RTM_DELADDR");
        assert_eq!(&v4[16..18], &[2, 24]);
        assert_eq!(&v4[20..24], &5_u32.to_ne_bytes());
        assert_eq!(&v4[28..32], &[10, 1, 2, 3]);
        assert_eq!(delete_request("fd00::1".parse().unwrap(), 64, 5).len(), 44);
    }

    #[test]
    fn an_absent_address_counts_as_removed() {
        // TEST-NET-3 on loopback: nobody has it, so the kernel says EADDRNOTAVAIL.
        delete_address("203.0.113.77".parse().unwrap(), 32, 1).unwrap();
        delete_address("2001:db8::77".parse().unwrap(), 128, 1).unwrap();
        delete_address("203.0.113.77".parse().unwrap(), 32, 999_999).unwrap();
    }

    #[test]
    fn a_short_answer_is_no_acknowledgement() {
        assert_eq!(ack_errno(&[]), None);
        assert_eq!(ack_errno(&[0; 10]), None);
    }
}
