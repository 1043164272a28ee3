//! Owner, permission bits, times and size of an inode named by an O_PATH descriptor.

use super::Timestamp;
use crate::ports::Errno;
use crate::sys::errno::{ProcFd, check};
use std::os::fd::{AsRawFd, BorrowedFd};

/// chmod(2) through `/proc/self/fd`: works for O_PATH descriptors. A symlink gives EOPNOTSUPP.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let path = ProcFd::new(fd);
    // SAFETY: the path is NUL-terminated and outlives the call.
    check(unsafe { libc::chmod(path.as_ptr(), mode & 0o7777) }).map(drop)
}

/// fchownat(2); `None` leaves that id alone. Clears suid and file capabilities as chown always does.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `fd` is open and the path is a NUL-terminated literal.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, flags) }).map(drop)
}

/// What to do with one of the two times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Omit,
    /// The kernel's present time.
    Now,
    /// This time.
    At(Timestamp),
}

impl SetTime {
    fn timespec(self) -> libc::timespec {
        let (tv_sec, tv_nsec) = match self {
            Self::Omit => (0, libc::UTIME_OMIT),
            Self::Now => (0, libc::UTIME_NOW),
            Self::At((s, ns)) => (s, i64::from(ns)),
        };
        libc::timespec { tv_sec, tv_nsec }
    }
}

/// utimensat(2) of atime and mtime.
pub fn set_times(fd: BorrowedFd<'_>, atime: SetTime, mtime: SetTime) -> Result<(), Errno> {
    let times = [atime.timespec(), mtime.timespec()];
    // SAFETY: `fd` is open, the path is a literal, `times` holds the two values the call reads.
    check(unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) })
        .map(drop)
}

/// truncate(2) of a regular file named by an O_PATH descriptor.
pub fn truncate(fd: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    let path = ProcFd::new(fd);
    let len = i64::try_from(len).map_err(|_| Errno(libc::EFBIG))?;
    // SAFETY: the path is NUL-terminated and outlives the call.
    check(unsafe { libc::truncate(path.as_ptr(), len) }).map(drop)
}
