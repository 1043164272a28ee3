//! The kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.45), as far as skc speaks it.
//!
//! Layouts are fixed by the kernel since 7.36 and only grow by negotiated flags; `tests.rs` holds
//! every size. Everything is native-endian. Structs are read by copy, so a request buffer needs no
//! alignment.

mod structs;

pub use structs::*;

/// Protocol major version; another one is another protocol.
pub const MAJOR: u32 = 7;
/// Newest minor version whose structs are known here.
pub const MINOR: u32 = 45;
/// Oldest minor version accepted: HANDLE_KILLPRIV_V2 came with 7.33 (Linux 5.12).
pub const MINOR_MIN: u32 = 33;
/// First minor with FUSE_NOTIFY_INC_EPOCH (Linux 6.16).
pub const MINOR_INC_EPOCH: u32 = 44;
/// The root's node id.
pub const ROOT_ID: u64 = 1;

/// Operation codes.
#[allow(missing_docs)] // the kernel's names
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// INIT flags (`flags | flags2 << 32`).
#[allow(missing_docs)] // the kernel's names
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const HAS_RESEND: u64 = 1 << 39;
}

/// Notification codes.
pub mod notify {
    /// Drop attributes and pages of an inode.
    pub const INVAL_INODE: i32 = 2;
    /// Drop one name.
    pub const INVAL_ENTRY: i32 = 3;
    /// Send again what was read and never answered.
    pub const RESEND: i32 = 7;
    /// Look every name up again.
    pub const INC_EPOCH: i32 = 8;
}

/// SETATTR `valid` bits.
#[allow(missing_docs)] // the kernel's names
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// GETATTR: `fh` is valid.
pub const GETATTR_FH: u32 = 1;
/// OPEN reply: reads and writes bypass the page cache.
pub const FOPEN_DIRECT_IO: u32 = 1;
/// OPEN reply: cached pages stay valid.
pub const FOPEN_KEEP_CACHE: u32 = 2;
/// WRITE: dirty pages of a mapping, written by the kernel.
pub const WRITE_CACHE: u32 = 1 << 0;
/// WRITE: clear suid, sgid and file capabilities.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// SETXATTR: clear sgid along with an ACL.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// FSYNC: data only.
pub const FSYNC_FDATASYNC: u32 = 1;
/// IOCTL: of a directory, so `fh` is one.
pub const IOCTL_DIR: u32 = 1 << 4;
/// Type of the supplementary-groups extension.
pub const EXT_GROUPS: u32 = 32;

#[cfg(test)]
mod tests;
