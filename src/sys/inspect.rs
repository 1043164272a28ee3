//! Extended attributes, inode flags and data ranges of a file, for the independent tree comparison of `lab`.
//!
//! Deliberately apart from the system calls that replication uses: a fault there must not blind
//! the checker.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// XATTR_SIZE_MAX and XATTR_LIST_MAX of the kernel.
const XATTR_MAX: usize = 64 * 1024;

/// All extended attributes (ACLs included) of `path` itself, symbolic links not followed.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0_u8; XATTR_MAX];
    // SAFETY: pointer and length describe `names`; the path is NUL-terminated.
    let length = unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        // A file system without attributes has none.
        return if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(BTreeMap::new()) } else { Err(error) };
    };
    let mut out = BTreeMap::new();
    for name in names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name)?;
        let mut value = vec![0_u8; XATTR_MAX];
        // SAFETY: pointer and length describe `value`; both strings are NUL-terminated.
        let size = unsafe {
            libc::lgetxattr(c_path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        let Ok(size) = usize::try_from(size) else { return Err(io::Error::last_os_error()) };
        value.truncate(size);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

/// The ranges of a file that hold data; the rest, up to its size, is holes.
pub fn data_ranges(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let seek = |at: i64, whence: i32| {
        // SAFETY: plain integers; the descriptor is open.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let begin = match seek(at, libc::SEEK_DATA) {
            Ok(begin) => begin,
            // No data from here to the end.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(ranges),
            Err(error) => return Err(error),
        };
        at = seek(begin, libc::SEEK_HOLE)?;
        ranges.push((begin as u64, at as u64));
    }
}

/// FS_IOC_GETFLAGS of a regular file or directory; none where the file system has no flags.
pub fn inode_flags(file: &File) -> io::Result<u32> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open; the call writes an int, and there is room for a long.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } == 0 {
        return Ok(flags as u32);
    }
    let error = io::Error::last_os_error();
    let lacking = [Some(libc::ENOTTY), Some(libc::EOPNOTSUPP)].contains(&error.raw_os_error());
    if lacking { Ok(0) } else { Err(error) }
}
