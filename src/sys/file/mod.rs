//! System calls on files, relative to held descriptors. One function, one call.
//!
//! Every function takes descriptors and single path components, never paths, so nothing here can
//! reach the tree through the mount that covers it. Descriptors are opened `O_NOFOLLOW|O_CLOEXEC`.
//! Failure: the kernel's errno, unchanged.

mod attr;
mod dir;
mod extent;
pub mod flags;
mod io;
mod name;
mod stat;
mod xattr;

pub use attr::{SetTime, chmod, chown, set_times, truncate};
pub use dir::{DirEntry, Entries, read_dir};
pub use extent::{unwritten, write_back};
pub use io::{
    Fallocate, copy_range, data_sync, drop_cache, fallocate, pread, pwrite, seek_data, seek_hole, set_len,
    sync, sync_fs,
};
pub(in crate::sys) use name::{clean_append, clean_flags};
pub use name::{
    link_at, make_dir, make_node, make_symlink, open_at, open_dir, open_parent, open_tmpfile, read_link,
    rename, reopen, unlink, unlink_dir,
};
pub use stat::{FsStat, Stat, Timestamp, mount_flags, stat, stat_at, stat_fs};
pub use xattr::{fd_get_xattr, fd_list_xattr, get_xattr, list_xattr, remove_xattr, set_xattr};
