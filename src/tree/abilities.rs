//! What the file system of a directory lacks of what a mirror may be asked to hold.
//!
//! Looked at in an unnamed file, so that nothing in the directory changes. Two directories that lack the same mirror each
//! other truly: an application gets the same errors on both. Sizes that differ from one file system to the next (long links, large
//! attributes) are no reason to refuse a pair: what does not fit is told when it comes (`limits.md`).

use crate::ports::Errno;
use crate::sys::backing::Backing;
use crate::sys::file::{self, SetTime, flags};
use std::os::fd::{AsFd, BorrowedFd};

/// Longest name that Linux file systems know (`NAME_MAX`).
const NAME_MAX: u32 = 255;
/// FS_CASEFOLD_FL (linux/fs.h).
const CASEFOLD: u32 = 0x4000_0000;
/// Version 2, and owner rw, group r, others r: what mode 0644 says, as an ACL (linux/posix_acl_xattr.h).
const ACL: [u8; 28] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255,
    255,
];
/// In the year 2096, not a whole second.
const LATE: (i64, u32) = (4_000_000_000, 123_456_789);

/// In words that both nodes use; sorted. Empty for ext4 as it is made today, XFS and btrfs.
pub fn lacks(backing: &Backing) -> Result<Vec<String>, Errno> {
    let file = file::open_tmpfile(backing.base(), 0o644, false)?;
    let fd = file.as_fd();
    let mut out = Vec::new();
    let mut look = |has: bool, what: &str| {
        if !has {
            out.push(what.to_owned());
        }
    };
    look(is_supported(file::set_xattr(fd, b"system.posix_acl_access", &ACL, 0)), "access control lists");
    look(backing.stat_fs()?.namelen >= NAME_MAX, "names of 255 bytes");
    look(is_supported(file::set_xattr(fd, b"trusted.probe", b"1", 0)), "trusted extended attributes");
    look(is_supported(file::set_xattr(fd, b"user.probe", b"1", 0)), "extended attributes of users");
    let time = kept_time(fd)?;
    look(time.1 == LATE.1, "modification times to the nanosecond");
    look(time.0 == LATE.0, "times after the year 2038");
    let folded = flags::get_flags(file::open_dir(backing.base())?.as_fd()).is_ok_and(|f| f & CASEFOLD != 0);
    look(!folded, "names in upper and lower case");
    out.sort_unstable();
    Ok(out)
}

/// A full disk has no room to try; it lacks nothing by that.
fn is_supported(result: Result<(), Errno>) -> bool {
    !matches!(result, Err(Errno(libc::EOPNOTSUPP | libc::EPERM | libc::EINVAL)))
}

fn kept_time(fd: BorrowedFd<'_>) -> Result<(i64, u32), Errno> {
    file::set_times(fd, SetTime::Omit, SetTime::At(LATE))?;
    Ok(file::stat(fd)?.mtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_changes_nothing_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let before = std::fs::metadata(dir.path()).unwrap().modified().unwrap();
        let lacks = lacks(&Backing::open(dir.path()).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().modified().unwrap(), before);
        assert!(!lacks.contains(&"names of 255 bytes".to_owned()), "{lacks:?}");
    }
}
