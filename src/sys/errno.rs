//! From the C convention (-1 and `errno`) to `Result`, and the two small strings that paths need.

use crate::ports::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `errno` of this thread.
pub fn last() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// The errno of a `std::io::Error`; EIO where it carries none.
pub fn of(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Negative means failed.
pub(super) fn check(ret: i32) -> Result<i32, Errno> {
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

/// Negative means failed; else a length or offset.
pub(super) fn check_len(ret: isize) -> Result<usize, Errno> {
    usize::try_from(ret).map_err(|_| last())
}

/// Repeats a call that a signal interrupted. Only for calls that either finish or did nothing.
pub(super) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno(libc::EINTR)) => {}
            other => return other,
        }
    }
}

/// Longest file name of every Linux file system (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// One path component with its NUL, on the stack.
///
/// What may not be in one (a slash, NUL, `..`) is refused here, so that no call below a directory
/// descriptor can leave the tree.
pub(super) struct Name([u8; NAME_MAX + 1]);

impl Name {
    pub(super) fn new(name: &[u8]) -> Result<Self, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        if name.is_empty() {
            return Err(Errno(libc::ENOENT));
        }
        if matches!(name, b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(Errno(libc::EINVAL));
        }
        let mut buf = [0; NAME_MAX + 1];
        buf[..name.len()].copy_from_slice(name);
        Ok(Self(buf))
    }

    /// NUL-terminated: the array is one longer than any accepted name and starts zeroed.
    pub(super) fn as_ptr(&self) -> *const libc::c_char {
        self.0.as_ptr().cast()
    }
}

/// `/proc/self/fd/N`: the only way to name an O_PATH descriptor to calls that take no descriptor
/// (chmod, truncate, xattrs).
pub(super) struct ProcFd([u8; 32]);

impl ProcFd {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Self {
        const PREFIX: &[u8] = b"/proc/self/fd/";
        let mut buf = [0; 32];
        buf[..PREFIX.len()].copy_from_slice(PREFIX);
        let mut digits = [0u8; 10];
        let mut n = fd.as_raw_fd().unsigned_abs();
        let mut len = 0;
        loop {
            digits[len] = b'0' + (n % 10) as u8;
            len += 1;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        for i in 0..len {
            buf[PREFIX.len() + i] = digits[len - 1 - i];
        }
        Self(buf)
    }

    pub(super) fn as_ptr(&self) -> *const libc::c_char {
        self.0.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in [&b"a/b"[..], b"..", b".", b"/", b"a\0b"] {
            assert_eq!(Name::new(bad).err(), Some(Errno(libc::EINVAL)), "{bad:?}");
        }
        assert_eq!(Name::new(b"").err(), Some(Errno(libc::ENOENT)));
        assert_eq!(Name::new(&[b'x'; 256]).err(), Some(Errno(libc::ENAMETOOLONG)));
        let long = Name::new(&[b'x'; 255]).expect("255 bytes are allowed");
        assert_eq!(long.0[255], 0);
    }

    #[test]
    fn proc_path_names_the_descriptor() {
        let f = std::fs::File::open("/").expect("open /");
        let p = ProcFd::new(f.as_fd());
        let s = p.0.split(|b| *b == 0).next().expect("one part");
        assert_eq!(s, format!("/proc/self/fd/{}", f.as_raw_fd()).as_bytes());
    }
}
