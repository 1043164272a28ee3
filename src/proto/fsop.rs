//! One mutation of the tree, as it travels from the primary to the standby.
//!
//! Files are named by [`FileId`], which the sender binds to (parent id, name) before its first
//! use in a stream. Bulk bytes (write data, xattr values above the header) follow the MessagePack
//! header of the frame and are never inside it.

use serde::{Deserialize, Serialize};

/// Identity of a file for the life of the primary's agent; 1 is the root of a volume.
/// Never reused. It is the FUSE nodeid on the sender's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl FileId {
    /// The volume's root directory.
    pub const ROOT: Self = Self(1);
    /// Ids from here on are of objects that stay on one node (`exclude`). They never travel.
    pub const FIRST_LOCAL: Self = Self(1 << 63);

    /// Does the object stay on one node? It does so for the whole life of its id.
    pub const fn is_local(self) -> bool {
        self.0 >= Self::FIRST_LOCAL.0
    }
}

/// Settable attributes as the sender's file system shows them after the operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Size in bytes (regular files).
    pub size: u64,
    /// Access time: seconds and nanoseconds since 1970. Set only where the caller set it.
    pub atime: (i64, u32),
    /// Modification time.
    pub mtime: (i64, u32),
    /// Inode flags (FS_*_FL) that both nodes share; regular files and directories.
    pub flags: u32,
}

/// A POSIX ACL or other xattr a new object inherited: (name, value).
pub type Xattr = (Vec<u8>, serde_bytes::ByteBuf);

/// Modification time (seconds, nanoseconds).
pub type Time = (i64, u32);

/// One operation of the ordered stream. Names are raw bytes without `/` and NUL.
///
/// `dir_mtime` is the parent's mtime after the operation: the standby sets it, because its own
/// kernel stamped another time.
#[allow(missing_docs)] // the variant's text and the system call name its fields
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsOp {
    /// From here on `id` means the object at (`parent`, `name`). Changes nothing.
    Bind {
        id: FileId,
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// The sender's kernel forgot `id`; the receiver may drop its handle.
    Forget { ids: Vec<FileId> },
    /// mknod, create, mkdir (by `attr.mode`'s type). `mode_arg` is what the caller passed, so that
    /// a default ACL is inherited alike; `attr` is the result.
    Make {
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        id: FileId,
        mode_arg: u32,
        attr: Attr,
        xattrs: Vec<Xattr>,
        dir_mtime: Time,
    },
    /// O_TMPFILE: a regular file without a name in `parent`'s file system.
    Tmpfile { parent: FileId, id: FileId, attr: Attr, xattrs: Vec<Xattr> },
    /// symlink(2).
    Symlink {
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        id: FileId,
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
        attr: Attr,
        dir_mtime: Time,
    },
    /// link(2), also linkat of an O_TMPFILE.
    Link {
        id: FileId,
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        dir_mtime: Time,
    },
    /// unlink(2).
    Unlink {
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        dir_mtime: Time,
    },
    /// rmdir(2).
    Rmdir {
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        dir_mtime: Time,
    },
    /// renameat2(2); flags are the kernel's RENAME_* bits (NOREPLACE, EXCHANGE; WHITEOUT is refused).
    Rename {
        parent: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        to_parent: FileId,
        #[serde(with = "serde_bytes")]
        to_name: Vec<u8>,
        flags: u32,
        dir_mtime: Time,
        to_dir_mtime: Time,
        /// Of RENAME_EXCHANGE: modification times of what is at (`to_parent`, `to_name`) and at (`parent`, `name`)
        /// now. Some file systems (XFS) change those of the exchanged objects, others do not.
        exchanged: Option<[Time; 2]>,
    },
    /// pwrite(2) of the frame's bulk bytes at `offset`. `clear` = the kernel asked to clear
    /// suid/sgid and file capabilities, `mode` is the mode afterwards.
    Write { id: FileId, offset: u64, mtime: Time, clear: Option<u32> },
    /// Any subset of setattr; fields that are `None` are untouched. `mtime` is always the result.
    SetAttr {
        id: FileId,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<Time>,
        mtime: Time,
    },
    /// setxattr(2); the value is the frame's bulk. `mode` after it (an ACL changes it).
    SetXattr {
        id: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        flags: u32,
        mode: u32,
    },
    /// removexattr(2).
    RemoveXattr {
        id: FileId,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        mode: u32,
    },
    /// fallocate(2) with the kernel's FALLOC_FL_* bits; `clear` as in `Write`.
    Fallocate { id: FileId, mode: u32, offset: u64, length: u64, mtime: Time, clear: Option<u32> },
    /// FS_IOC_SETFLAGS: the shared flags as they are now.
    SetFlags { id: FileId, flags: u32 },
    /// fsync (`data_only` = fdatasync) of a file or directory: acknowledged by its own SyncAck.
    Fsync { id: FileId, data_only: bool },
    /// The whole volume (`skc sync`), likewise.
    SyncFs,
    /// Something that stays local was made, moved or removed in a directory, or from one to the `other`: only
    /// their modification times are news.
    Touch { parent: FileId, dir_mtime: Time, other: Option<(FileId, Time)> },
}
