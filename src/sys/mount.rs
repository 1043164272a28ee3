//! mount(2) and umount2(2) for the mirror.

use super::errno::{ProcFd, check};
use crate::ports::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Mounts the FUSE connection `device` exactly over the held directory `target`, whatever its path
/// means by now. `flags`: MS_NOSUID and its kin.
pub fn mount_fuse(
    target: BorrowedFd<'_>,
    device: BorrowedFd<'_>,
    rootmode: u32,
    flags: u64,
) -> Result<(), Errno> {
    let target = ProcFd::new(target);
    let options = format!(
        "fd={},rootmode={rootmode:o},user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: every string is NUL-terminated and outlives the call; `options` is what the fuse file
    // system expects as data.
    check(unsafe {
        libc::mount(
            c"skc".as_ptr(),
            target.as_ptr(),
            c"fuse.skc".as_ptr(),
            flags as libc::c_ulong,
            options.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nobody uses it (EBUSY).
    IfIdle,
    /// Abort a FUSE connection: users get ENOTCONN. The mount itself may stay (EBUSY).
    Abort,
    /// Out of the namespace now, gone when the last user is.
    Detach,
}

/// umount2(2), never following a symlink. Sends no request to a dead or hung FUSE daemon.
pub fn unmount(path: &Path, how: Unmount) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno(libc::EINVAL))?;
    let flags = libc::UMOUNT_NOFOLLOW
        | match how {
            Unmount::IfIdle => 0,
            Unmount::Abort => libc::MNT_FORCE,
            Unmount::Detach => libc::MNT_DETACH,
        };
    // SAFETY: the path is NUL-terminated and outlives the call.
    check(unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop)
}

/// A mount namespace of this thread's own, in which mounts do not propagate to others. For tests.
pub fn private_namespace() -> Result<(), Errno> {
    // SAFETY: only flags.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings are literals; source, type and data may be null for a propagation change.
    check(unsafe { libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()) })
        .map(drop)
}
