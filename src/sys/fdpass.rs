//! Packets with descriptors over a Unix `SOCK_SEQPACKET` pair: the wire between guard and worker.
//!
//! A packet is atomic: its bytes and its descriptors arrive together or not at all, and the death
//! of the other side reads as an empty packet. Received descriptors are close-on-exec from birth.
//! Nothing here interprets a packet; lengths and descriptor counts are bounded on both sides.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Most descriptors in one packet. The kernel's own limit is 253 (SCM_MAX_FD); a volume needs three.
pub const MAX_FDS: usize = 16;

/// Longest packet in bytes; below the default socket buffer (212992), so one packet always fits.
pub const MAX_PACKET: usize = 128 * 1024;

/// Room for one control message with `MAX_FDS` descriptors, aligned as `cmsghdr` needs it.
#[repr(C, align(8))]
struct Control([u8; 16 + MAX_FDS * size_of::<RawFd>()]);

/// A connected pair; both ends are close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    // SAFETY: `fds` has room for the two descriptors that the call writes.
    let rc = unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so both are open descriptors that nobody else owns.
    let ends = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    Ok(ends)
}

/// Makes operations on the descriptor fail with `WouldBlock` instead of waiting.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer; `fd` is open for the borrow.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes an int; `fd` is open for the borrow.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bounds every blocking send on the socket.
pub fn set_send_timeout(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_usec: libc::suseconds_t::from(timeout.subsec_micros()),
    };
    // SAFETY: pointer and length describe `value`, which lives over the call.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            (&raw const value).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if rc != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes ownership of a descriptor inherited over exec, if that number is an open socket.
///
/// The caller reads the number from the environment that its parent set for it, once.
pub fn adopt_socket(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut kind: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe `kind`; a closed `number` only yields EBADF.
    let rc = unsafe {
        libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len)
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    if kind != libc::SOCK_SEQPACKET {
        return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
    }
    // SAFETY: F_SETFD takes an int; the descriptor is open (checked above).
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, and by the contract above nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends one packet.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 16 + MAX_FDS * size_of::<RawFd>()]);
    // SAFETY: msghdr is plain data; all zero is a valid empty header.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = size_of_val(fds) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE is arithmetic only.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as usize;
        // SAFETY: msg_control is set, aligned, and large enough for one header.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: `first` points into `control`, which is exclusively ours; CMSG_LEN(payload) fits
        // because `fds.len() <= MAX_FDS`.
        unsafe {
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(payload) as usize;
        }
        for (index, fd) in fds.iter().enumerate() {
            let number = fd.as_raw_fd().to_ne_bytes();
            // SAFETY: index < MAX_FDS, so the bytes written lie inside `control`; the source is a local array.
            unsafe {
                let slot = libc::CMSG_DATA(first).add(index * number.len());
                std::ptr::copy_nonoverlapping(number.as_ptr(), slot, number.len());
            }
        }
    }
    loop {
        // SAFETY: header, iov and control live over the call and describe valid memory.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one packet into `buffer`; returns its length (0: the other side is gone) and descriptors.
///
/// # Errors
/// `EMSGSIZE` if the packet or its descriptors did not fit (what arrived is closed).
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 16 + MAX_FDS * size_of::<RawFd>()]);
    // SAFETY: msghdr is plain data; all zero is a valid empty header.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    let received = loop {
        // SAFETY: header, iov and control live over the call and describe writable memory.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if n >= 0 {
            break n as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled header and control consistently.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !cursor.is_null() {
        // SAFETY: a non-null cursor points at a complete header inside `control`.
        let (level, kind, len) = unsafe { ((*cursor).cmsg_level, (*cursor).cmsg_type, (*cursor).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN is arithmetic only.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..len.saturating_sub(overhead) / size_of::<RawFd>() {
                let mut number = [0; size_of::<RawFd>()];
                // SAFETY: index is inside the message's payload, as its length says; the target is a local array.
                unsafe {
                    let slot = libc::CMSG_DATA(cursor).add(index * number.len());
                    std::ptr::copy_nonoverlapping(slot.cast_const(), number.as_mut_ptr(), number.len());
                }
                let fd = RawFd::from_ne_bytes(number);
                // SAFETY: the kernel just installed this descriptor for us; nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: header and cursor are the pair of this walk.
        cursor = unsafe { libc::CMSG_NXTHDR(&raw const header, cursor) };
    }
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((received, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_travel_with_their_packet() {
        let (left, right) = pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"held").unwrap();
        send(left.as_fd(), b"hello", &[file.as_fd(), left.as_fd()]).unwrap();
        let mut buffer = vec![0; MAX_PACKET];
        let (len, mut fds) = recv(right.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"hello");
        assert_eq!(fds.len(), 2);
        let mut copy = File::from(fds.remove(0));
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "held");
        drop((fds, left));
        assert_eq!(recv(right.as_fd(), &mut buffer).unwrap().0, 0, "death reads as an empty packet");
    }

    #[test]
    fn limits_hold_at_the_limit_and_refuse_one_over() {
        let (left, right) = pair().unwrap();
        let bytes = vec![7; MAX_PACKET];
        let fds = vec![left.as_fd(); MAX_FDS];
        send(left.as_fd(), &bytes, &fds).unwrap();
        let mut buffer = vec![0; MAX_PACKET];
        let (len, got) = recv(right.as_fd(), &mut buffer).unwrap();
        assert_eq!((len, got.len()), (MAX_PACKET, MAX_FDS));
        assert!(send(left.as_fd(), &vec![7; MAX_PACKET + 1], &[]).is_err());
        assert!(send(left.as_fd(), b"x", &[left.as_fd(); MAX_FDS + 1]).is_err());
        assert!(send(left.as_fd(), b"", &[]).is_err(), "an empty packet would read as death");
    }

    #[test]
    fn only_an_inherited_seqpacket_socket_is_adopted() {
        assert!(adopt_socket(-1).is_err());
        assert!(adopt_socket(1).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(adopt_socket(file.as_raw_fd()).is_err());
    }
}
