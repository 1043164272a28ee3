//! Inode flags (chattr(1)) of regular files and directories, by ioctl.
//!
//! The ioctls need a descriptor that is not O_PATH; helpers here open the object again where theirs is.

use super::{Stat, reopen, stat};
use crate::ports::Errno;
use crate::sys::errno::{check, retry};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Nobody writes, renames, links or removes it.
pub const IMMUTABLE: u32 = 0x10;
/// It only grows (a directory: names only come).
pub const APPEND: u32 = 0x20;
/// Flags that change what later operations may do.
const LOCKS: u32 = IMMUTABLE | APPEND;

/// Flags that are the same on both nodes, as far as their file systems have them: secure deletion, undelete,
/// compress, synchronous, immutable, append-only, no dump, no atime, no compression, synchronous directory,
/// top directory, no copy-on-write (FS_*_FL of linux/fs.h).
///
/// Not among them: what describes the layout (extents, index, inline data, encrypt, verity) and what would
/// need more than the flag (project inheritance: project ids; data journalling: the journal; case folding:
/// another rule for names).
pub const TRAVELLING: u32 =
    0x1 | 0x2 | 0x4 | 0x8 | LOCKS | 0x40 | 0x80 | 0x400 | 0x1_0000 | 0x2_0000 | 0x80_0000;

/// FS_IOC_GETFLAGS, FS_IOC_SETFLAGS: `long` in the number, `int` in memory.
pub const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
/// See [`FS_IOC_GETFLAGS`].
pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR.
pub const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// FS_IOC_FSSETXATTR.
pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// struct fsxattr (linux/fs.h): xflags, extsize, nextents, projid, cowextsize, padding.
pub type Fsx = [u8; 28];

/// The flags as the file system shows them.
pub fn get_flags(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut flags: libc::c_long = 0;
    // SAFETY: `fd` is open; the call writes an int, and there is room for a long.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFLAGS as _, &raw mut flags) })?;
    Ok(flags as u32)
}

/// Sets all flags.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    let flags = libc::c_long::from(flags);
    // SAFETY: `fd` is open; the call reads an int of the long.
    retry(|| check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_SETFLAGS as _, &raw const flags) }).map(drop))
}

/// The extended form.
pub fn get_fsx(fd: BorrowedFd<'_>) -> Result<Fsx, Errno> {
    let mut fsx = [0u32; 7];
    // SAFETY: `fd` is open and `fsx` has the size and alignment of struct fsxattr.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR as _, fsx.as_mut_ptr()) })?;
    let mut out = [0; 28];
    for (to, from) in out.chunks_exact_mut(4).zip(fsx) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    Ok(out)
}

/// Sets the extended form.
pub fn set_fsx(fd: BorrowedFd<'_>, fsx: &Fsx) -> Result<(), Errno> {
    let mut words = [0u32; 7];
    for (to, from) in words.iter_mut().zip(fsx.chunks_exact(4)) {
        *to = from.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    }
    // SAFETY: `fd` is open and `words` has the size and alignment of struct fsxattr.
    retry(|| check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR as _, words.as_ptr()) }).map(drop))
}

/// The file system has no such thing, or not for this object.
const fn is_lacking(errno: Errno) -> bool {
    matches!(errno.0, libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
}

/// A descriptor for the ioctls. `None`: an object that is not opened to look at it (devices, FIFOs, symlinks).
fn openable(fd: BorrowedFd<'_>, stat: &Stat) -> Result<Option<OwnedFd>, Errno> {
    if !(stat.is_file() || stat.is_dir()) {
        return Ok(None);
    }
    reopen(fd, libc::O_RDONLY | libc::O_NOATIME).map(Some)
}

/// The travelling flags of an object (also O_PATH); none where there cannot be any.
pub fn travelling_flags(fd: BorrowedFd<'_>, stat: &Stat) -> Result<u32, Errno> {
    if !(stat.is_file() || stat.is_dir()) {
        return Ok(0);
    }
    let flags = match get_flags(fd) {
        Err(Errno(libc::EBADF)) => match openable(fd, stat)? {
            Some(again) => get_flags(again.as_fd()),
            None => Ok(0),
        },
        other => other,
    };
    match flags {
        Ok(flags) => Ok(flags & TRAVELLING),
        Err(errno) if is_lacking(errno) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// Makes the travelling flags those of `wanted`, as far as this file system has them; its others stay.
pub fn set_travelling_flags(fd: BorrowedFd<'_>, stat: &Stat, wanted: u32) -> Result<(), Errno> {
    if !(stat.is_file() || stat.is_dir()) {
        return Ok(());
    }
    match get_flags(fd) {
        Ok(own) => bring(fd, own, wanted),
        Err(Errno(libc::EBADF)) => {
            let Some(again) = openable(fd, stat)? else { return Ok(()) };
            match get_flags(again.as_fd()) {
                Ok(own) => bring(again.as_fd(), own, wanted),
                Err(errno) if is_lacking(errno) => Ok(()),
                Err(errno) => Err(errno),
            }
        }
        Err(errno) if is_lacking(errno) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn bring(fd: BorrowedFd<'_>, mut own: u32, wanted: u32) -> Result<(), Errno> {
    let goal = (own & !TRAVELLING) | (wanted & TRAVELLING);
    if own == goal {
        return Ok(());
    }
    // An immutable object takes no other change than to be immutable no more.
    if own & LOCKS != 0 {
        own &= !LOCKS;
        set_flags(fd, own)?;
    }
    match set_flags(fd, goal) {
        Err(errno) if is_lacking(errno) => {}
        other => return other,
    }
    // This file system lacks one of them: each by itself, what locks the object last.
    let changed = own ^ goal;
    let mut single: Vec<u32> = (0..32).map(|bit| 1 << bit).filter(|bit| changed & bit != 0).collect();
    single.sort_by_key(|bit| LOCKS & bit);
    for bit in single {
        match set_flags(fd, own ^ bit) {
            Ok(()) => own ^= bit,
            Err(errno) if is_lacking(errno) => {
                tracing::debug!(flag = format_args!("{bit:#x}"), "this file system lacks an inode flag");
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What [`unlock`] took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locks(u32);

/// Is it immutable or append-only?
pub const fn is_locked(stat: &Stat) -> bool {
    stat.attributes & (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64 != 0
}

/// Takes immutable and append-only away, if it is there.
pub fn unlock(fd: BorrowedFd<'_>) -> Result<Option<Locks>, Errno> {
    let stat = stat(fd)?;
    if !is_locked(&stat) {
        return Ok(None);
    }
    let Some(fd) = openable(fd, &stat)? else { return Ok(None) };
    let own = get_flags(fd.as_fd())?;
    set_flags(fd.as_fd(), own & !LOCKS)?;
    Ok(Some(Locks(own & LOCKS)))
}

/// Puts back what [`unlock`] took away.
pub fn relock(fd: BorrowedFd<'_>, locks: Locks) -> Result<(), Errno> {
    let again = reopen(fd, libc::O_RDONLY | libc::O_NOATIME)?;
    set_flags(again.as_fd(), get_flags(again.as_fd())? | locks.0)
}

/// Runs `call`, which changes the object `fd`; where immutable or append-only forbids that, without them.
pub fn unlocked<T>(fd: BorrowedFd<'_>, mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match call() {
        Err(Errno(libc::EPERM)) => {}
        other => return other,
    }
    let Some(locks) = unlock(fd)? else { return Err(Errno(libc::EPERM)) };
    let result = call();
    relock(fd, locks)?;
    result
}
