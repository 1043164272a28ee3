//! What lies in a directory's quarantines, for status: read from the disk, so that it is true after a
//! restart and after somebody removed one.
//!
//! Layout: see `standby::quarantine`. Bounded: at most `ENTRIES_MAX` entries are looked at; what is
//! beyond is said to be more, never counted as nothing. Blocking.

use crate::ports::Errno;
use crate::sys::file::{self, Entries, Stat};
use crate::tree::{HIDDEN_DIR, Tree};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Below [`HIDDEN_DIR`].
pub(super) const DIRECTORY: &[u8] = b"quarantine";
/// A file of a quarantine that says why it keeps not everything.
pub(super) const INCOMPLETE: &[u8] = b"incomplete";

/// Entries looked at in one survey: tens of milliseconds on a slow disk.
const ENTRIES_MAX: usize = 10_000;
/// Directories below each other: a descriptor is held for each.
const DEPTH_MAX: usize = 64;
/// Longest reason read.
const REASON_MAX: usize = 256;

/// One resync's quarantine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Its directory: when the resync began, in seconds since 1970.
    pub name: String,
    /// Objects moved there.
    pub objects: u64,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// There is more than was counted.
    pub more: bool,
    /// Why it does not keep everything that was replaced.
    pub incomplete: Option<String>,
}

/// Every quarantine of the directory, oldest first.
///
/// # Errors
/// The disk's; none of them is there: an empty list.
pub fn survey(tree: &Tree) -> Result<Vec<Kept>, Errno> {
    let absent = |result: Result<OwnedFd, Errno>| match result {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno(libc::ENOENT)) => Ok(None),
        Err(errno) => Err(errno),
    };
    let Some(hidden) = absent(directory(tree.backing.base(), HIDDEN_DIR))? else { return Ok(Vec::new()) };
    let Some(all) = absent(directory(hidden.as_fd(), DIRECTORY))? else { return Ok(Vec::new()) };
    let mut names = names(all.as_fd(), ENTRIES_MAX)?;
    names.sort();
    let mut count = Count { left: ENTRIES_MAX, bytes: 0 };
    let mut out = Vec::new();
    for name in names {
        let own = match directory(all.as_fd(), &name) {
            Ok(own) => own,
            // Removed meanwhile, or something of somebody else.
            Err(Errno(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => continue,
            Err(errno) => return Err(errno),
        };
        count.bytes = 0;
        let mut kept = Kept { name: String::from_utf8_lossy(&name).into_owned(), ..Kept::default() };
        if let Some(objects) = absent(directory(own.as_fd(), b"objects"))? {
            kept.objects = count.below(objects.as_fd(), DEPTH_MAX)?;
        }
        if let Some(blocks) = absent(directory(own.as_fd(), b"blocks"))? {
            count.below(blocks.as_fd(), 1)?;
        }
        kept.bytes = count.bytes;
        kept.more = count.left == 0;
        kept.incomplete = absent(file::open_at(own.as_fd(), INCOMPLETE, libc::O_RDONLY, 0))?.map(reason);
        out.push(kept);
    }
    Ok(out)
}

fn directory(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    file::open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

fn reason(fd: OwnedFd) -> String {
    let mut text = vec![0; REASON_MAX];
    let len = file::pread(fd.as_fd(), &mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(text.get(..len).unwrap_or_default()).trim().to_owned()
}

/// At most `most` names.
fn names(dir: BorrowedFd<'_>, most: usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut raw = vec![0; 32 << 10];
    let mut out = Vec::new();
    while out.len() < most {
        let len = file::read_dir(dir, &mut raw, None)?;
        if len == 0 {
            break;
        }
        let real = Entries::new(&raw[..len]).filter(|e| !matches!(e.name, b"." | b".."));
        out.extend(real.take(most - out.len()).map(|e| e.name.to_vec()));
    }
    Ok(out)
}

struct Count {
    left: usize,
    bytes: u64,
}

impl Count {
    /// Adds up what lies below `dir`; returns how many entries it has itself.
    fn below(&mut self, dir: BorrowedFd<'_>, depth: usize) -> Result<u64, Errno> {
        let names = names(dir, self.left)?;
        let found = names.len() as u64;
        self.left -= names.len();
        for name in names {
            match file::stat_at(dir, &name) {
                Ok(stat) => self.add(dir, &name, &stat, depth)?,
                Err(Errno(libc::ENOENT)) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(found)
    }

    fn add(&mut self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat, depth: usize) -> Result<(), Errno> {
        self.bytes += stat.blocks * 512;
        if !stat.is_dir() || self.left == 0 {
            return Ok(());
        }
        if depth == 0 {
            self.left = 0;
            return Ok(());
        }
        match directory(dir, name) {
            Ok(inner) => self.below(inner.as_fd(), depth - 1).map(drop),
            Err(Errno(libc::ENOENT)) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Volume;
    use crate::sys::backing::Backing;
    use std::fs;

    #[test]
    fn quarantines_are_counted_from_the_disk_and_gone_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(Volume(0), Backing::open(dir.path()).unwrap());
        assert_eq!(survey(&tree), Ok(Vec::new()));
        let all = dir.path().join(".skc/quarantine");
        let deep = all.join("1700000000/objects/0-d/deeper");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("f"), vec![1; 100_000]).unwrap();
        fs::create_dir_all(all.join("1700000001/blocks")).unwrap();
        fs::write(all.join("1700000001/incomplete"), "little space is left\n").unwrap();
        let found = survey(&tree).unwrap();
        let shown: Vec<_> = found.iter().map(|k| (k.name.as_str(), k.objects, k.more)).collect();
        assert_eq!(shown, [("1700000000", 1, false), ("1700000001", 0, false)]);
        assert!(found[0].bytes >= 100_000, "{found:?}");
        assert_eq!(found[0].incomplete, None);
        assert_eq!(found[1].incomplete.as_deref(), Some("little space is left"));
        fs::remove_dir_all(all.join("1700000000")).unwrap();
        assert_eq!(survey(&tree).unwrap().len(), 1);
    }

    #[test]
    fn a_survey_is_bounded_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(Volume(0), Backing::open(dir.path()).unwrap());
        let objects = dir.path().join(".skc/quarantine/1700000000/objects");
        fs::create_dir_all(&objects).unwrap();
        for n in 0..ENTRIES_MAX - 1 {
            fs::File::create(objects.join(n.to_string())).unwrap();
        }
        let more = |tree: &Tree| (survey(tree).unwrap()[0].objects, survey(tree).unwrap()[0].more);
        assert_eq!(more(&tree), (ENTRIES_MAX as u64 - 1, false));
        fs::File::create(objects.join("last")).unwrap();
        assert_eq!(more(&tree), (ENTRIES_MAX as u64, true), "exactly as many may be more");
    }
}
