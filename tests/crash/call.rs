//! The system calls of the test's operations, by path as an application makes them. One function, one call;
//! an error is its errno.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub type Res<T> = Result<T, i32>;

pub fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn check(rc: i32) -> Res<()> {
    if rc < 0 { Err(errno(&io::Error::last_os_error())) } else { Ok(()) }
}

fn check_len(rc: isize) -> Res<u64> {
    u64::try_from(rc).map_err(|_| errno(&io::Error::last_os_error()))
}

fn off(at: u64) -> i64 {
    i64::try_from(at).expect("an offset of a test")
}

pub fn open(path: &CStr, flags: i32, mode: u32) -> Res<File> {
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    check(fd)?;
    // SAFETY: the kernel returned this descriptor just now; nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

pub fn link(from: &CStr, to: &CStr) -> Res<()> {
    // SAFETY: both paths are NUL-terminated.
    check(unsafe { libc::link(from.as_ptr(), to.as_ptr()) })
}

/// Gives an unnamed file its name.
pub fn link_file(file: &File, to: &CStr) -> Res<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no NUL");
    let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both paths are NUL-terminated.
    check(unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) })
}

pub fn symlink(target: &CStr, path: &CStr) -> Res<()> {
    // SAFETY: both paths are NUL-terminated.
    check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) })
}

pub fn rename(from: &CStr, to: &CStr, flags: u32) -> Res<()> {
    let here = libc::AT_FDCWD;
    // SAFETY: both paths are NUL-terminated.
    check(unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), flags) })
}

pub fn unlink(path: &CStr) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::unlink(path.as_ptr()) })
}

pub fn mkdir(path: &CStr, mode: u32) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::mkdir(path.as_ptr(), mode) })
}

pub fn rmdir(path: &CStr) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::rmdir(path.as_ptr()) })
}

pub fn mknod(path: &CStr, mode: u32, device: u64) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) })
}

pub fn chmod(path: &CStr, mode: u32) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::chmod(path.as_ptr(), mode) })
}

pub fn lchown(path: &CStr, uid: u32, gid: u32) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::lchown(path.as_ptr(), uid, gid) })
}

/// Sets both times, of a symbolic link itself; a nanosecond value may be UTIME_NOW or UTIME_OMIT.
pub fn utimens(path: &CStr, times: [(i64, i64); 2]) -> Res<()> {
    let times = times.map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the path is NUL-terminated, `times` holds the two values that are read.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) })
}

pub fn set_xattr(path: &CStr, name: &CStr, value: &[u8], flags: i32) -> Res<()> {
    let (at, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings are NUL-terminated; `at` and `len` describe `value`.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), at, len, flags) })
}

pub fn remove_xattr(path: &CStr, name: &CStr) -> Res<()> {
    // SAFETY: both strings are NUL-terminated.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
}

pub fn truncate(path: &CStr, size: u64) -> Res<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::truncate(path.as_ptr(), off(size)) })
}

pub fn fallocate(file: &File, mode: i32, at: u64, len: u64) -> Res<()> {
    // SAFETY: plain numbers; the descriptor is open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, off(at), off(len)) })
}

pub fn copy(from: &File, at: u64, to: &File, to_at: u64, len: usize) -> Res<u64> {
    let (mut a, mut b) = (off(at), off(to_at));
    // SAFETY: both descriptors are open, both offsets are valid for the call.
    check_len(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut a, to.as_raw_fd(), &raw mut b, len, 0)
    })
}

/// FS_IOC_FIEMAP: a request of 32 bytes with room for extents of 56 bytes behind it.
const FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
const FIEMAP_FLAG_SYNC: u32 = 1;
/// Longest answer: a file of the test has fewer blocks.
const EXTENTS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// The ranges of a file that have blocks, written or preallocated, after a flush; neighbours are not joined.
pub fn allocated(file: &File) -> Res<Vec<(u64, u64)>> {
    let none =
        Extent { logical: 0, physical: 0, length: 0, reserved: [0; 2], flags: 0, reserved_too: [0; 3] };
    let mut map = Box::new(Fiemap {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped: 0,
        room: EXTENTS as u32,
        reserved: 0,
        extents: [none; EXTENTS],
    });
    // SAFETY: the descriptor is open; `map` is a struct fiemap with the room that it says it has.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut *map) })?;
    let found = &map.extents[..map.mapped as usize];
    if found.len() == EXTENTS {
        return Err(libc::E2BIG);
    }
    Ok(found.iter().map(|extent| (extent.logical, extent.logical + extent.length)).collect())
}

/// Nanoseconds of a clock that all processes share.
pub fn clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a writable timespec.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    check(rc).expect("a clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
