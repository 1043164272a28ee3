//! A shared mapping of a file, and buffers for O_DIRECT.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Page size and direct-I/O alignment that satisfy every file system.
pub const PAGE: usize = 4096;

/// Bytes `0..len` of a file, mapped shared and writable. Touching a page behind the file's end is SIGBUS.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn new(fd: BorrowedFd<'_>, len: usize) -> Self {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh place is asked for; `fd` is open.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { at: at.cast(), len }
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.len);
        // SAFETY: inside the mapping; the caller keeps inside the file.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at.add(offset), data.len()) };
    }

    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= self.len);
        // SAFETY: inside the mapping; the caller keeps inside the file.
        unsafe { std::ptr::copy_nonoverlapping(self.at.add(offset), into.as_mut_ptr(), into.len()) };
    }

    /// msync(MS_SYNC) of everything.
    pub fn sync(&self) -> std::io::Result<()> {
        // SAFETY: exactly the mapping.
        match unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping; nothing borrows from it.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Bytes that begin at a multiple of [`PAGE`].
pub struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE];
        let from = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, from, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.len]
    }
}
