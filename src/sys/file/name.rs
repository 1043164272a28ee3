//! Calls that open, make, move and remove names.

use crate::ports::Errno;
use crate::sys::errno::{Name, ProcFd, check, check_len, retry};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Always set: a symlink is never followed, nothing is inherited by a child.
const ALWAYS: i32 = libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// Never passed to the backing file: the append offset comes from the mount's kernel (Linux
/// ignores pwrite's offset on O_APPEND descriptors), syncs are issued explicitly on both nodes,
/// truncation is an operation of its own, and O_DIRECT would need aligned buffers.
const NEVER: i32 = libc::O_APPEND
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_TRUNC
    | libc::O_DIRECT
    | libc::O_NOCTTY
    | libc::O_NONBLOCK
    | libc::O_ASYNC;

/// The flags that a backing file is opened with when `wanted` was asked for.
pub(in crate::sys) const fn clean_flags(wanted: i32) -> i32 {
    (wanted & !NEVER) | ALWAYS
}

/// Like [`clean_flags`] for a file that is append-only: every descriptor that writes it must be O_APPEND. The
/// caller sees to it that what is written stands at the end anyway.
pub(in crate::sys) const fn clean_append(wanted: i32) -> i32 {
    clean_flags(wanted) | libc::O_APPEND
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel returned this descriptor to us just now; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// openat(2) of `name` in `dir` with the flags cleaned as described at the module's constants.
pub fn open_at(dir: BorrowedFd<'_>, name: &[u8], flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
    let name = Name::new(name)?;
    let flags = clean_flags(flags);
    retry(|| {
        // SAFETY: `dir` is open, `name` is NUL-terminated and outlives the call.
        check(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode) })
    })
    .map(owned)
}

/// A readable descriptor of the directory that `fd` (also O_PATH) refers to.
pub fn open_dir(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NOATIME;
    // SAFETY: `fd` is open and the path is a NUL-terminated literal.
    check(unsafe { libc::openat(fd.as_raw_fd(), c".".as_ptr(), flags) }).map(owned)
}

/// O_PATH descriptor of the directory that holds the directory `fd`.
pub fn open_parent(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `fd` is open and the path is a NUL-terminated literal.
    check(unsafe { libc::openat(fd.as_raw_fd(), c"..".as_ptr(), flags) }).map(owned)
}

/// Opens again, with other flags, the object that `fd` (also O_PATH) refers to.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
    let path = ProcFd::new(fd);
    // The magic link itself must be followed: no O_NOFOLLOW here. It leads to the inode, no further.
    let flags = clean_flags(flags) & !libc::O_NOFOLLOW;
    // SAFETY: the path is NUL-terminated and outlives the call.
    retry(|| check(unsafe { libc::open(path.as_ptr(), flags) })).map(owned)
}

/// An unnamed regular file in the file system of `dir` (O_TMPFILE). `exclusive`: it can never be
/// given a name.
pub fn open_tmpfile(dir: BorrowedFd<'_>, mode: u32, exclusive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    if exclusive {
        flags |= libc::O_EXCL;
    }
    // SAFETY: `dir` is open and the path is a NUL-terminated literal.
    check(unsafe { libc::openat(dir.as_raw_fd(), c".".as_ptr(), flags, mode) }).map(owned)
}

/// mkdirat(2).
pub fn make_dir(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    let name = Name::new(name)?;
    // SAFETY: `dir` is open, `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// mknodat(2): regular file, FIFO, socket or device (`rdev` as `makedev`).
pub fn make_node(dir: BorrowedFd<'_>, name: &[u8], mode: u32, rdev: u64) -> Result<(), Errno> {
    let name = Name::new(name)?;
    // SAFETY: `dir` is open, `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
}

/// symlinkat(2).
pub fn make_symlink(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<(), Errno> {
    let name = Name::new(name)?;
    let target = CString::new(target).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: `dir` is open; both strings are NUL-terminated and outlive the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Gives the inode behind `fd` (O_PATH, or an O_TMPFILE descriptor) another name.
pub fn link_at(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let name = Name::new(name)?;
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: both descriptors are open; both strings are NUL-terminated and outlive the call.
    check(unsafe { libc::linkat(fd.as_raw_fd(), c"".as_ptr(), dir.as_raw_fd(), name.as_ptr(), flags) })
        .map(drop)
}

/// unlinkat(2) of anything but a directory.
pub fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let name = Name::new(name)?;
    // SAFETY: `dir` is open, `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// unlinkat(2) of an empty directory.
pub fn unlink_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let name = Name::new(name)?;
    // SAFETY: `dir` is open, `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// renameat2(2) with the kernel's RENAME_* flags.
pub fn rename(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    to_name: &[u8],
    flags: u32,
) -> Result<(), Errno> {
    let (name, to_name) = (Name::new(name)?, Name::new(to_name)?);
    // SAFETY: both descriptors are open; both strings are NUL-terminated and outlive the call.
    check(unsafe {
        libc::renameat2(from.as_raw_fd(), name.as_ptr(), to.as_raw_fd(), to_name.as_ptr(), flags)
    })
    .map(drop)
}

/// Longest symlink target the kernel accepts (PATH_MAX) including the NUL.
const TARGET_MAX: usize = 4096;

/// The target of the symlink that the O_PATH descriptor `fd` refers to.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0u8; TARGET_MAX];
    // SAFETY: `fd` is open, the path is a literal, and the buffer is writable for its length.
    let len = check_len(unsafe {
        libc::readlinkat(fd.as_raw_fd(), c"".as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    })?;
    buf.truncate(len);
    Ok(buf)
}
