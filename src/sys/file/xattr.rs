//! Extended attributes, also of O_PATH descriptors (through `/proc/self/fd`), symlinks included.

use crate::ports::Errno;
use crate::sys::errno::{ProcFd, check, check_len};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Longest value and list the kernel knows (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const XATTR_MAX: usize = 65536;

fn cname(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno(libc::EINVAL))
}

/// Calls with an empty buffer first, then with room for what was announced, then with the maximum.
fn grow(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let announced = call(&mut [])?;
    if announced == 0 {
        return Ok(Vec::new());
    }
    let mut buf = vec![0; announced];
    let len = match call(&mut buf) {
        Err(Errno(libc::ERANGE)) => {
            buf.resize(XATTR_MAX, 0);
            call(&mut buf)?
        }
        other => other?,
    };
    buf.truncate(len);
    Ok(buf)
}

/// getxattr(2) by an O_PATH descriptor.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let (path, name) = (ProcFd::new(fd), cname(name)?);
    grow(|buf| {
        // SAFETY: both strings are NUL-terminated; the buffer is writable for its length (0 = ask).
        check_len(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })
    })
}

/// listxattr(2) by an O_PATH descriptor: names, each ended by NUL.
pub fn list_xattr(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = ProcFd::new(fd);
    grow(|buf| {
        // SAFETY: the path is NUL-terminated; the buffer is writable for its length (0 = ask).
        check_len(unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })
    })
}

/// fgetxattr(2): for descriptors that are not O_PATH.
pub fn fd_get_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let name = cname(name)?;
    grow(|buf| {
        // SAFETY: `fd` is open; the buffer is writable for its length (0 = ask).
        check_len(unsafe {
            libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
        })
    })
}

/// flistxattr(2): for descriptors that are not O_PATH.
pub fn fd_list_xattr(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    grow(|buf| {
        // SAFETY: `fd` is open; the buffer is writable for its length (0 = ask).
        check_len(unsafe { libc::flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) })
    })
}

/// setxattr(2) with XATTR_CREATE / XATTR_REPLACE in `flags`.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
    let (path, name) = (ProcFd::new(fd), cname(name)?);
    // SAFETY: both strings are NUL-terminated; the value is readable for its length.
    check(unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags as i32)
    })
    .map(drop)
}

/// removexattr(2).
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let (path, name) = (ProcFd::new(fd), cname(name)?);
    // SAFETY: both strings are NUL-terminated and outlive the call.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}
