//! Data: read, write, truncate, allocate, seek, copy, sync.

use crate::ports::Errno;
use crate::sys::errno::{check, check_len, retry};
use std::os::fd::{AsRawFd, BorrowedFd};

fn off(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))
}

/// One pread(2); short at the end of the file.
pub fn pread(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let offset = off(offset)?;
    retry(|| {
        // SAFETY: `fd` is open and the buffer is writable for its length.
        check_len(unsafe { libc::pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), offset) })
    })
}

/// One pwrite(2); the length may be short (space, limits).
pub fn pwrite(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> Result<usize, Errno> {
    let offset = off(offset)?;
    retry(|| {
        // SAFETY: `fd` is open and the buffer is readable for its length.
        check_len(unsafe { libc::pwrite(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), offset) })
    })
}

/// ftruncate(2) of a descriptor that is open for writing.
pub fn set_len(fd: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    let len = off(len)?;
    // SAFETY: `fd` is open.
    retry(|| check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }).map(drop))
}

/// The kernel's FALLOC_FL_* bits.
pub type Fallocate = u32;

/// Drops clean cached pages that lie wholly in the range (posix_fadvise(2), POSIX_FADV_DONTNEED):
/// the next read asks the disk.
pub fn drop_cache(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let (offset, len) = (off(offset)?, off(len)?);
    // SAFETY: `fd` is open. The call returns its error instead of setting errno.
    match unsafe { libc::posix_fadvise(fd.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

/// fallocate(2).
pub fn fallocate(fd: BorrowedFd<'_>, mode: Fallocate, offset: u64, len: u64) -> Result<(), Errno> {
    let (offset, len) = (off(offset)?, off(len)?);
    // SAFETY: `fd` is open.
    retry(|| check(unsafe { libc::fallocate(fd.as_raw_fd(), mode as i32, offset, len) }).map(drop))
}

fn seek(fd: BorrowedFd<'_>, offset: u64, whence: i32) -> Result<u64, Errno> {
    // Past i64::MAX: a negative one to the kernel, which finds nothing there (ENXIO), as on the disk.
    let offset = offset.cast_signed();
    // SAFETY: `fd` is open; only its file position changes, which nothing here relies on.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    u64::try_from(at).map_err(|_| crate::sys::errno::last())
}

/// Start of the next data at or after `offset`; ENXIO past the last.
pub fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> Result<u64, Errno> {
    seek(fd, offset, libc::SEEK_DATA)
}

/// Start of the next hole at or after `offset` (the end of the file counts as one).
pub fn seek_hole(fd: BorrowedFd<'_>, offset: u64) -> Result<u64, Errno> {
    seek(fd, offset, libc::SEEK_HOLE)
}

/// copy_file_range(2); may copy less.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: usize,
) -> Result<usize, Errno> {
    let (mut a, mut b) = (off(from_offset)?, off(to_offset)?);
    // SAFETY: both descriptors are open; both offsets are valid for the call.
    check_len(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut a, to.as_raw_fd(), &raw mut b, len, 0)
    })
}

/// fsync(2).
pub fn sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: `fd` is open.
    retry(|| check(unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop))
}

/// fdatasync(2).
pub fn data_sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: `fd` is open.
    retry(|| check(unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop))
}

/// syncfs(2) of the file system that `fd` (not O_PATH) lives on.
pub fn sync_fs(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: `fd` is open.
    retry(|| check(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop))
}
