//! The backing tree of one volume: the root directory held open, every object in it named by a
//! [`FileHandle`].
//!
//! Invariants: nothing is reached by path; what the tree's root does not contain cannot be reached
//! by name (single components, no `..`, no symlink following). File systems mounted *below* the
//! root are not part of the volume: where the kernel allows it (CAP_SYS_ADMIN), the tree is worked
//! on through a private, non-recursive clone of its mount, in which they do not exist.
//! No descriptor per inode is held. Failure: the kernel's errno; ESTALE = the object is gone.

mod handle;

pub use handle::FileHandle;

use super::errno::{ProcFd, check, check_len};
use super::file::{self, FsStat, Stat};
use crate::ports::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The held root of a backing tree.
#[derive(Debug)]
pub struct Backing {
    /// As opened or passed in: the mount point of the mirror.
    root: OwnedFd,
    /// Readable root, reached through the private mount: start of every name and handle.
    base: OwnedFd,
    /// Keeps the private mount alive (None: no clone, `base` is on the original mount).
    _private: Option<OwnedFd>,
    root_handle: FileHandle,
    dev: u64,
}

impl Backing {
    /// Opens the directory `path` (not following a final symlink). Must happen before anything is
    /// mounted over it.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno(libc::EINVAL))?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the path is NUL-terminated and outlives the call.
        let fd = check(unsafe { libc::open(path.as_ptr(), flags) })?;
        // SAFETY: the kernel returned this descriptor to us just now.
        Self::from_fd(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Takes a directory descriptor (O_PATH or readable), for example from the guard.
    ///
    /// # Errors
    /// EOPNOTSUPP: the file system has no file handles and cannot be mirrored.
    pub fn from_fd(root: OwnedFd) -> Result<Self, Errno> {
        let private = clone_mount(root.as_fd()).ok();
        let base = file::open_dir(private.as_ref().unwrap_or(&root).as_fd())?;
        let root_handle = handle::of_fd(base.as_fd())?;
        let dev = file::stat(base.as_fd())?.dev;
        Ok(Self { root, base, _private: private, root_handle, dev })
    }

    /// The descriptor as it was opened or passed in, on the original mount: where to mount over.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A readable descriptor of the root directory, for names in the root, syncfs and listings.
    pub fn base(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }

    /// The root's handle.
    pub const fn root_handle(&self) -> &FileHandle {
        &self.root_handle
    }

    /// Device number of the root's file system.
    pub const fn dev(&self) -> u64 {
        self.dev
    }

    /// Opens the object `handle` names, with `flags` cleaned like [`file::open_at`]'s.
    /// Costs about 2 us; the descriptor is the caller's.
    pub fn open_handle(&self, handle: &FileHandle, flags: i32) -> Result<OwnedFd, Errno> {
        handle::open(self.base.as_fd(), handle, file::clean_flags(flags))
    }

    /// Opens an append-only file for reading and writing at its end.
    pub fn open_append(&self, handle: &FileHandle) -> Result<OwnedFd, Errno> {
        let flags = file::clean_append(libc::O_RDWR | libc::O_NOATIME);
        handle::open(self.base.as_fd(), handle, flags)
    }

    /// O_PATH descriptor of the object: for attributes, xattrs, links and as a directory of names.
    pub fn open_path(&self, handle: &FileHandle) -> Result<OwnedFd, Errno> {
        handle::open(self.base.as_fd(), handle, file::clean_flags(libc::O_PATH))
    }

    /// A readable descriptor of a directory, for [`file::read_dir`].
    pub fn open_dir(&self, handle: &FileHandle) -> Result<OwnedFd, Errno> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
        handle::open(self.base.as_fd(), handle, file::clean_flags(flags))
    }

    /// The handle of `name` in `dir` (a symlink is not followed).
    pub fn handle_at(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<FileHandle, Errno> {
        handle::of_name(dir, name)
    }

    /// The handle of what `fd` (also O_PATH) refers to.
    pub fn handle_of(&self, fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
        handle::of_fd(fd)
    }

    /// Handle and attributes of one object: what `name` in `dir` is at one moment.
    pub fn lookup(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(FileHandle, Stat), Errno> {
        // Asking twice by name would be a call cheaper, but a rename in between would pair one
        // object's handle with another's attributes.
        let fd = file::open_at(dir, name, libc::O_PATH, 0)?;
        Ok((handle::of_fd(fd.as_fd())?, file::stat(fd.as_fd())?))
    }

    /// Space and limits.
    pub fn stat_fs(&self) -> Result<FsStat, Errno> {
        file::stat_fs(self.base.as_fd())
    }

    /// Everything of this file system onto its disk.
    pub fn sync_fs(&self) -> Result<(), Errno> {
        file::sync_fs(self.base.as_fd())
    }

    /// Where the kernel's name cache believes `fd` is, relative to the root; a hint to be verified.
    /// `None` where it is deleted, unknown or outside.
    pub fn path_hint(&self, fd: BorrowedFd<'_>) -> Option<Vec<Vec<u8>>> {
        let own = proc_link(self.base.as_fd()).ok()?;
        let path = proc_link(fd).ok()?;
        let rest = if own == b"/" { &path[..] } else { path.strip_prefix(&own[..])? };
        let rest = rest.strip_prefix(b"/")?;
        Some(rest.split(|b| *b == b'/').map(<[u8]>::to_vec).collect())
    }
}

/// readlink of `/proc/self/fd/N`.
fn proc_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = ProcFd::new(fd);
    let mut buf = vec![0u8; 8192];
    // SAFETY: the path is NUL-terminated and the buffer is writable for its length.
    let len = check_len(unsafe { libc::readlink(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })?;
    buf.truncate(len);
    Ok(buf)
}

/// open_tree(2) flag (linux/mount.h): a detached, non-recursive bind mount of the directory.
const OPEN_TREE_CLONE: u32 = 1;

fn clone_mount(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    // SAFETY: `dir` is open and the path is a NUL-terminated literal.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), c"".as_ptr(), flags) };
    let fd = check(fd as i32)?;
    // SAFETY: the kernel returned this descriptor to us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests;
