//! Preallocated blocks: which parts of a file have blocks that were never written.

use crate::ports::Errno;
use crate::sys::errno::{check, retry};
use std::os::fd::{AsRawFd, BorrowedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `_IOWR('f', 11, struct fiemap)` of linux/fiemap.h.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
/// FIEMAP_EXTENT_LAST
const LAST: u32 = 1;
/// FIEMAP_EXTENT_UNWRITTEN: allocated, reads as zeros.
const UNWRITTEN: u32 = 0x800;
/// Extents asked for in one call: most files have fewer.
const EXTENTS: usize = 64;

/// `struct fiemap_extent`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// `struct fiemap` with room for its extents.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// The parts of [from, to) that lie in preallocated blocks which nothing was written to yet, in order. Dirty
/// pages may still be on their way to them. None where the file system cannot tell.
pub fn unwritten(fd: BorrowedFd<'_>, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut out = Vec::new();
    let mut at = from;
    while at < to {
        let extents = [Extent::default(); EXTENTS];
        let mut map = Fiemap {
            start: at,
            length: to - at,
            flags: 0,
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents,
        };
        // SAFETY: `map` is the structure that the call reads and fills, with room for `count` extents.
        match retry(|| check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) })) {
            Ok(_) => {}
            Err(Errno(libc::EOPNOTSUPP | libc::ENOTTY)) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        let found = map.extents.get(..(map.mapped as usize).min(EXTENTS)).unwrap_or_default();
        for extent in found.iter().filter(|extent| extent.flags & UNWRITTEN != 0) {
            let (start, end) =
                (extent.logical.max(from), extent.logical.saturating_add(extent.length).min(to));
            if start < end {
                out.push((start, end));
            }
        }
        match found.last() {
            Some(last) if last.flags & LAST == 0 => {
                let next = last.logical.saturating_add(last.length);
                // Whoever does not get on would ask for ever.
                if next <= at {
                    return Err(Errno(libc::EIO));
                }
                at = next;
            }
            _ => break,
        }
    }
    Ok(out)
}

/// Writes the dirty pages of [from, to) to their blocks and waits for it. Nothing is durable by that
/// (sync_file_range(2)).
pub fn write_back(fd: BorrowedFd<'_>, from: u64, to: u64) -> Result<(), Errno> {
    let off = |at: u64| i64::try_from(at).map_err(|_| Errno(libc::EINVAL));
    let (from, len) = (off(from)?, off(to.saturating_sub(from))?);
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: plain integers; `fd` is open.
    retry(|| check(unsafe { libc::sync_file_range(fd.as_raw_fd(), from, len, flags) }).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_structures_are_the_kernels() {
        assert_eq!(size_of::<Extent>(), 56);
        assert_eq!(size_of::<Fiemap>(), 32 + EXTENTS * 56);
    }

    #[test]
    fn preallocated_blocks_are_found_in_pieces_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let (block, count) = (4096, 300_u64);
        if file::fallocate(file.as_fd(), 0, 0, count * block).is_err() {
            return;
        }
        for n in (0..count).filter(|n| n % 2 == 1) {
            file.write_all_at(&[1; 4096], n * block).unwrap();
        }
        write_back(file.as_fd(), 0, count * block).unwrap();
        let found = unwritten(file.as_fd(), block, (count - 1) * block).unwrap();
        if found.is_empty() {
            return; // tmpfs cannot tell
        }
        // ext4 fills short preallocated gaps with zeros instead of splitting extents further.
        for (start, end) in found {
            assert!(start >= block && end <= (count - 1) * block, "{start}..{end}");
            let mut bytes = vec![1; (end - start) as usize];
            assert_eq!(file::pread(file.as_fd(), &mut bytes, start), Err(Errno(libc::EBADF)));
            let file = File::open(dir.path().join("f")).unwrap();
            file.read_exact_at(&mut bytes, start).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{start}..{end} reads as zeros");
        }
    }
}
