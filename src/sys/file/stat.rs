//! statx(2) and fstatfs(2).

use crate::ports::Errno;
use crate::sys::errno::{Name, check};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Seconds and nanoseconds since 1970.
pub type Timestamp = (i64, u32);

/// What the backing file system says about one inode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Device of the file system (`makedev`).
    pub dev: u64,
    /// Device number of a device node (`makedev`).
    pub rdev: u64,
    /// Access time.
    pub atime: Timestamp,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time.
    pub ctime: Timestamp,
    /// Birth time, where the file system keeps one.
    pub btime: Option<Timestamp>,
    /// STATX_ATTR_* bits that are set.
    pub attributes: u64,
    /// STATX_ATTR_* bits that the file system knows.
    pub attributes_mask: u64,
}

impl Stat {
    /// The S_IFMT bits.
    pub const fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Is it a directory?
    pub const fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Is it a regular file?
    pub const fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
}

fn statx(fd: BorrowedFd<'_>, name: *const libc::c_char, flags: i32) -> Result<Stat, Errno> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `fd` is open, `name` is NUL-terminated and outlives the call, `out` has the size of
    // struct statx and is written by the kernel.
    check(unsafe { libc::statx(fd.as_raw_fd(), name, flags, mask, out.as_mut_ptr()) })?;
    // SAFETY: zeroed is a valid value of this plain C struct, and the kernel filled it.
    let s = unsafe { out.assume_init() };
    let time = |t: libc::statx_timestamp| (t.tv_sec, t.tv_nsec);
    Ok(Stat {
        mode: u32::from(s.stx_mode),
        nlink: s.stx_nlink,
        uid: s.stx_uid,
        gid: s.stx_gid,
        ino: s.stx_ino,
        size: s.stx_size,
        blocks: s.stx_blocks,
        blksize: s.stx_blksize,
        dev: libc::makedev(s.stx_dev_major, s.stx_dev_minor),
        rdev: libc::makedev(s.stx_rdev_major, s.stx_rdev_minor),
        atime: time(s.stx_atime),
        mtime: time(s.stx_mtime),
        ctime: time(s.stx_ctime),
        btime: (s.stx_mask & libc::STATX_BTIME != 0).then(|| time(s.stx_btime)),
        attributes: s.stx_attributes,
        attributes_mask: s.stx_attributes_mask,
    })
}

/// statx of an open (also O_PATH) descriptor.
pub fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH)
}

/// statx of `name` in `dir`, not following a symlink.
pub fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    let name = Name::new(name)?;
    statx(dir, name.as_ptr(), libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT)
}

/// Space and limits of the file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsStat {
    /// File system magic number.
    pub kind: i64,
    /// File system id, as one number.
    pub id: u64,
    /// Size in `frsize` units.
    pub blocks: u64,
    /// Free.
    pub bfree: u64,
    /// Free for unprivileged users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size.
    pub bsize: u32,
    /// Unit of the block counts.
    pub frsize: u32,
    /// Longest name.
    pub namelen: u32,
}

/// fstatfs(2).
pub fn stat_fs(fd: BorrowedFd<'_>) -> Result<FsStat, Errno> {
    let mut out = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `fd` is open and `out` has the size of struct statfs.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), out.as_mut_ptr()) })?;
    // SAFETY: zeroed is a valid value of this plain C struct, and the kernel filled it.
    let s = unsafe { out.assume_init() };
    // SAFETY: `fsid_t` is two plain 32-bit integers on Linux; libc hides its field.
    let id: u64 = unsafe { std::mem::transmute::<libc::fsid_t, u64>(s.f_fsid) };
    Ok(FsStat {
        kind: s.f_type,
        id,
        blocks: s.f_blocks,
        bfree: s.f_bfree,
        bavail: s.f_bavail,
        files: s.f_files,
        ffree: s.f_ffree,
        bsize: s.f_bsize as u32,
        frsize: s.f_frsize as u32,
        namelen: s.f_namelen as u32,
    })
}

/// ST_* flags of the mount that `fd` is on (nosuid, nodev, ...).
pub fn mount_flags(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut out = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `fd` is open and `out` has the size of struct statvfs.
    check(unsafe { libc::fstatvfs(fd.as_raw_fd(), out.as_mut_ptr()) })?;
    // SAFETY: zeroed is a valid value of this plain C struct, and the C library filled it.
    Ok(unsafe { out.assume_init() }.f_flag)
}
