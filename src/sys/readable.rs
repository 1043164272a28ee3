//! Registers our raw sockets with tokio's reactor.

use super::icmp::{EchoSocket, NdSocket};
use super::packet::PacketSocket;
use std::io;
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A type whose descriptor is open, and the same, as long as the value lives.
///
/// # Safety
/// Implementors own the descriptor, never replace or close it, and always return it from `as_raw_fd`.
pub unsafe trait StableFd: AsRawFd {}

// SAFETY: owns an `OwnedFd` that is set once and never taken out.
unsafe impl StableFd for PacketSocket {}
// SAFETY: owns a `socket2::Socket` that is set once and never taken out.
unsafe impl StableFd for EchoSocket {}
// SAFETY: owns a `socket2::Socket` that is set once and never taken out.
unsafe impl StableFd for NdSocket {}

/// Waits for readability only: these sockets never wait to send.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn readable<T: StableFd>(socket: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `StableFd` promises a valid descriptor that stays the same while the value lives, and the
    // `AsyncFd` owns the value.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}
