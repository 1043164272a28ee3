//! Directory listing by getdents64(2) into a caller's buffer.

use crate::ports::Errno;
use crate::sys::errno::check_len;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One entry of a listing; borrows the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Position after this entry: where a listing continues (lseek).
    pub next: u64,
    /// DT_* type; DT_UNKNOWN where the file system does not say.
    pub kind: u8,
    /// The name (`.` and `..` included).
    pub name: &'a [u8],
}

/// Length of the fixed part of struct linux_dirent64.
const HEAD: usize = 19;

/// Entries of one filled buffer.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Reads entries from `filled`, the part of a buffer that [`read_dir`] filled.
    pub const fn new(filled: &'a [u8]) -> Self {
        Self { rest: filled }
    }

    /// Bytes not yet iterated.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = DirEntry<'a>;

    fn next(&mut self) -> Option<DirEntry<'a>> {
        let head = self.rest.get(..HEAD)?;
        let u64_at = |at: usize| head[at..at + 8].try_into().map(u64::from_ne_bytes).ok();
        let len = usize::from(u16::from_ne_bytes(head[16..18].try_into().ok()?));
        let entry = self.rest.get(..len)?;
        let name = entry.get(HEAD..)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let item = DirEntry { ino: u64_at(0)?, next: u64_at(8)?, kind: head[18], name: &name[..end] };
        self.rest = &self.rest[len..];
        Some(item)
    }
}

/// Reads the next entries of the open directory `dir` into `buf`; returns the filled length, 0 at
/// the end. With `Some(offset)` it goes there first (0 = start, else a [`DirEntry::next`]).
pub fn read_dir(dir: BorrowedFd<'_>, buf: &mut [u8], offset: Option<u64>) -> Result<usize, Errno> {
    if let Some(offset) = offset {
        // SAFETY: `dir` is open. ext4 and others use all 63 bits of the offset as a cookie.
        let at = unsafe { libc::lseek(dir.as_raw_fd(), offset as i64, libc::SEEK_SET) };
        if at < 0 {
            return Err(crate::sys::errno::last());
        }
    }
    // SAFETY: `dir` is open and the buffer is writable for its length.
    let got = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    check_len(got as isize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_listing_continues_where_it_stopped() {
        let tmp = tempfile::tempdir().expect("temporary directory");
        for i in 0..300 {
            std::fs::write(tmp.path().join(format!("file-{i:04}")), b"").expect("write");
        }
        let dir = std::fs::File::open(tmp.path()).expect("open");
        let mut buf = [0; 1024];
        let (mut names, mut at) = (Vec::new(), 0);
        loop {
            let len = read_dir(dir.as_fd(), &mut buf, Some(at)).expect("getdents64");
            if len == 0 {
                break;
            }
            // Only the first entry of each buffer is taken: every cookie must work.
            let first = Entries::new(&buf[..len]).next().expect("an entry");
            names.push(first.name.to_vec());
            at = first.next;
        }
        names.sort();
        assert_eq!(names.len(), 302);
        names.dedup();
        assert_eq!(names.len(), 302);
    }

    #[test]
    fn garbage_ends_the_listing() {
        assert_eq!(Entries::new(&[0xff; 40]).next(), None);
        assert_eq!(Entries::new(&[0; 10]).next(), None);
    }
}
