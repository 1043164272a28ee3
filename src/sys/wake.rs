//! Getting a thread out of a blocking read.

use super::errno::check;
use crate::ports::Errno;
use std::os::unix::thread::RawPthread;

/// A real-time signal nobody else in this process uses.
fn signal() -> i32 {
    libc::SIGRTMIN() + 7
}

extern "C" fn nothing(_: i32) {}

/// Makes the signal harmless: it only interrupts system calls. Idempotent.
pub fn install() -> Result<(), Errno> {
    // SAFETY: zeroed is a valid value of this plain C struct (no flags: no SA_RESTART).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: `action` is initialised and its handler does nothing, so it is async-signal-safe.
    check(unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) }).map(drop)
}

/// Interrupts the system call that `thread` blocks in. It may be just before the call: repeat until the
/// thread has ended. The thread must not have been joined.
pub fn poke(thread: RawPthread) {
    // SAFETY: the caller holds the thread's JoinHandle, so the id is valid.
    unsafe { libc::pthread_kill(thread, signal()) };
}
