//! Small helpers over `sys::file` that both ends of a stream use.

use crate::ports::Errno;
use crate::proto::Attr;
use crate::proto::fsop::Xattr;
use crate::sys::file::{self, Stat};
use crate::tree::{Tree, is_hidden_xattr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// syncfs of every tree. What failed distrusts its page cache: the kernel reports a lost page once and
/// shows it as if it were on the disk from then on, so a later compare must not read it from there.
///
/// # Errors
/// The first failure; every tree is tried, so that no error is left for a later sync to report.
pub fn sync_trees(trees: &[Arc<Tree>]) -> Result<(), Errno> {
    sync_each(trees, |tree| tree.backing.sync_fs())
}

fn sync_each(trees: &[Arc<Tree>], sync: impl Fn(&Tree) -> Result<(), Errno>) -> Result<(), Errno> {
    let all = trees.iter().map(|tree| sync(tree).inspect_err(|_| tree.distrust_cache()));
    all.fold(Ok(()), Result::and)
}

/// The attributes that travel, of the object `fd` (also O_PATH), whose `stat` was just read.
pub fn attr_of(fd: BorrowedFd<'_>, stat: &Stat) -> Result<Attr, Errno> {
    let kind = stat.kind();
    let device = kind == libc::S_IFCHR || kind == libc::S_IFBLK;
    Ok(Attr {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        rdev: if device { stat.rdev } else { 0 },
        size: if stat.is_file() { stat.size } else { 0 },
        atime: stat.atime,
        mtime: stat.mtime,
        flags: file::flags::travelling_flags(fd, stat)?,
    })
}

/// Names of all xattrs that travel, sorted. A file system without xattrs has none.
pub fn xattr_names(path: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let list = match file::list_xattr(path) {
        Ok(list) => list,
        Err(Errno(libc::EOPNOTSUPP)) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let names = list.split(|b| *b == 0).filter(|n| !n.is_empty() && !is_hidden_xattr(n));
    let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
    names.sort_unstable();
    Ok(names)
}

/// All xattrs that travel, sorted by name.
pub fn xattrs_of(path: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    let mut out = Vec::new();
    for name in xattr_names(path)? {
        match file::get_xattr(path, &name) {
            Ok(value) => out.push((name, value.into())),
            // Removed between the two calls by somebody who bypasses the mount.
            Err(Errno(libc::ENODATA)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(out)
}

/// The parts of [from, to) that are not holes. A file system without SEEK_DATA has one part.
///
/// A page that was read from a preallocated block passes for data as long as it is cached, on this node only. So
/// where data is found in such blocks it is written back: what is data stands in written blocks then.
pub fn data_ranges(fd: BorrowedFd<'_>, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let data = seek_ranges(fd, from, to)?;
    let (Some(first), Some(last)) = (data.first(), data.last()) else { return Ok(data) };
    let (start, end) = (first.0, last.1);
    let doubtful = file::unwritten(fd, start, end)?;
    if doubtful.iter().all(|&range| overlap(&data, range).is_empty()) {
        return Ok(data);
    }
    for &(a, b) in &doubtful {
        file::write_back(fd, a, b)?;
    }
    let holes = file::unwritten(fd, start, end)?;
    Ok(gaps(&holes, start, end).into_iter().flat_map(|written| overlap(&data, written)).collect())
}

/// What `ranges` (sorted) and `range` have in common.
fn overlap(ranges: &[(u64, u64)], range: (u64, u64)) -> Vec<(u64, u64)> {
    let cut = ranges.iter().map(|&(start, end)| (start.max(range.0), end.min(range.1)));
    cut.filter(|(start, end)| start < end).collect()
}

/// What SEEK_DATA says.
fn seek_ranges(fd: BorrowedFd<'_>, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut out = Vec::new();
    let mut at = from;
    while at < to {
        let start = match file::seek_data(fd, at) {
            Ok(start) => start,
            Err(Errno(libc::ENXIO)) => break,
            Err(Errno(libc::EINVAL | libc::EOPNOTSUPP)) => return Ok(vec![(from, to)]),
            Err(errno) => return Err(errno),
        };
        if start >= to {
            break;
        }
        let end = match file::seek_hole(fd, start) {
            Ok(end) => end.min(to),
            // Truncated in between.
            Err(Errno(libc::ENXIO)) => break,
            Err(errno) => return Err(errno),
        };
        if end <= start {
            break;
        }
        out.push((start, end));
        at = end;
    }
    Ok(out)
}

/// The complement of `ranges` (sorted) within [from, to).
pub fn gaps(ranges: &[(u64, u64)], from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut at = from;
    for &(start, end) in ranges {
        if start > at {
            out.push((at, start.min(to)));
        }
        at = at.max(end);
    }
    if at < to {
        out.push((at, to));
    }
    out
}

/// Fills `buf` from `offset`; what lies past the end of the file stays zero. Returns the bytes read.
pub fn read_full(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buf.len() {
        match file::pread(fd, &mut buf[done..], offset + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    buf[done..].fill(0);
    Ok(done)
}

/// Writes all of `buf` at `offset`.
pub fn write_full(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < buf.len() {
        match file::pwrite(fd, &buf[done..], offset + done as u64)? {
            0 => return Err(Errno(libc::EIO)),
            n => done += n,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Volume;
    use crate::sys::backing::Backing;
    use std::cell::Cell;

    #[test]
    fn a_failed_sync_distrusts_its_tree_and_skips_no_other() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let tree = |n: usize| Arc::new(Tree::new(Volume(n as u16), Backing::open(dirs[n].path()).unwrap()));
        let trees = [tree(0), tree(1), tree(2)];
        let tried = Cell::new(0);
        let result = sync_each(&trees, |tree| {
            tried.set(tried.get() + 1);
            if tree.volume == Volume(1) { Err(Errno(libc::EIO)) } else { Ok(()) }
        });
        assert_eq!((result, tried.get()), (Err(Errno(libc::EIO)), 3));
        assert_eq!(trees.each_ref().map(|tree| tree.is_cache_distrusted()), [false, true, false]);
        assert_eq!(sync_trees(&trees), Ok(()));
        assert!(trees[1].is_cache_distrusted(), "a later success proves nothing");
    }

    #[test]
    fn gaps_are_the_complement() {
        assert_eq!(gaps(&[], 3, 9), [(3, 9)]);
        assert_eq!(gaps(&[(3, 9)], 3, 9), []);
        assert_eq!(gaps(&[(0, 1), (4, 5)], 0, 9), [(1, 4), (5, 9)]);
        assert_eq!(gaps(&[(2, 4)], 0, 4), [(0, 2)]);
        assert_eq!(gaps(&[], 5, 5), []);
    }
}
