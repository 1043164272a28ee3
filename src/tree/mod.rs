//! One volume's tree as the mirror works with it: backing directory, inode table, locks, names.
//!
//! Used by `fuse` (the mount), by the sending side of `replica` (stream and resync, source) and for
//! the directory's identity.
//!
//! # Locks
//! Order: gate ticket -> [`Tree::ns`] -> [`Tree::stripe`] -> stream. Whoever changes names holds `ns`
//! exclusively from the local system call until the frame is queued; whoever changes data or
//! attributes holds `ns` shared and the inode's stripe. At most one stripe is held at a time.
//! `ns` must not be taken shared twice by one thread (a waiting writer between would deadlock).
//! The inode table's own lock is a leaf: nothing is called while it is held. Pure reads (lookup,
//! getattr, read, readdir) take no lock but that one.
//!
//! # Hidden
//! `.skc/` in the root and xattrs named `trusted.skc.*` belong to the mirror itself: not shown in the
//! mount, not replicated, not compared.
//!
//! # Local
//! What [`Tree::patterns`] leave to each node is in the mount like everything else, and not replicated: [`local`].

pub mod abilities;
mod descriptors;
pub mod identity;
mod inodes;
pub mod local;
mod names;

pub use descriptors::{Descriptors, Share};
pub use inodes::{Alias, InodeTable, Known};
pub use names::Trees;

use crate::base::{Patterns, Volume};
use crate::ports::Errno;
use crate::proto::FileId;
use crate::sys::backing::{Backing, FileHandle};
use crate::sys::file::{self, Stat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Directory in the backing root that holds the mirror's own things (limbo, quarantine).
pub const HIDDEN_DIR: &[u8] = b".skc";

/// Prefix of the mirror's own xattrs.
pub const HIDDEN_XATTR: &[u8] = b"trusted.skc.";

/// Locks for data and attributes: enough that two busy files rarely share one.
const STRIPES: usize = 256;

/// Is this name in this directory the mirror's own?
pub fn is_hidden(parent: FileId, name: &[u8]) -> bool {
    parent == FileId::ROOT && name == HIDDEN_DIR
}

/// Is this xattr the mirror's own?
pub fn is_hidden_xattr(name: &[u8]) -> bool {
    name.starts_with(HIDDEN_XATTR)
}

/// One volume.
#[derive(Debug)]
pub struct Tree {
    /// Index of the directory in the spec.
    pub volume: Volume,
    /// System calls below the root.
    pub backing: Backing,
    /// Ids and handles.
    pub inodes: InodeTable,
    /// The namespace lock, see the module's documentation; taken by [`Tree::ns_shared`] and
    /// [`Tree::ns_exclusive`].
    pub ns: RwLock<()>,
    /// What of it stays on each node; `None`: nothing does.
    pub patterns: Option<Arc<Patterns>>,
    /// What open files are counted in.
    pub descriptors: Arc<Descriptors>,
    _counted: descriptors::Counted,
    distrusted: AtomicBool,
    stripes: [Mutex<()>; STRIPES],
}

/// O_PATH descriptor of an object: freshly opened, or the one kept for an unlinked object.
#[derive(Debug)]
pub enum PathFd {
    /// Opened by handle; closed when dropped.
    Opened(OwnedFd),
    /// Kept by the inode table because the object has no name any more.
    Kept(Arc<OwnedFd>),
}

impl AsFd for PathFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Opened(fd) => fd.as_fd(),
            Self::Kept(fd) => fd.as_fd(),
        }
    }
}

impl Tree {
    /// A tree whose only known object is the root, mirrored as a whole.
    pub fn new(volume: Volume, backing: Backing) -> Self {
        Self::with(volume, backing, None, Descriptors::of_process())
    }

    /// A tree of which `patterns` leave something to each node, counted in `descriptors`.
    pub fn with(
        volume: Volume,
        backing: Backing,
        patterns: Option<Patterns>,
        descriptors: Arc<Descriptors>,
    ) -> Self {
        let patterns = patterns.map(Arc::new);
        let inodes = InodeTable::new(
            *backing.root_handle(),
            Arc::clone(&descriptors),
            patterns.as_ref().map(Arc::clone),
        );
        Self {
            patterns,
            volume,
            backing,
            inodes,
            ns: RwLock::new(()),
            _counted: descriptors.count_volume(),
            descriptors,
            distrusted: AtomicBool::new(false),
            stripes: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// A sync failed: the page cache may show what never reached the disk (after a failed write-back
    /// the kernel calls its pages clean). Until a compare has made it good nothing may be concluded
    /// from cached pages.
    pub fn distrust_cache(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// The tree was compared with the disk and synced.
    pub fn trust_cache(&self) {
        self.distrusted.store(false, Ordering::Release);
    }

    /// Did a sync fail since the last complete compare?
    pub fn is_cache_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Acquire)
    }

    /// The namespace lock, shared. A panic elsewhere does not poison it: it guards order, not data.
    pub fn ns_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.ns.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace lock, exclusive.
    pub fn ns_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.ns.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock for data and attributes of `id`.
    pub fn stripe(&self, id: FileId) -> MutexGuard<'_, ()> {
        // Ids are consecutive, so the low bits spread them evenly.
        let stripe = &self.stripes[(id.0 % STRIPES as u64) as usize];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle of a known id; ESTALE for others.
    pub fn handle(&self, id: FileId) -> Result<FileHandle, Errno> {
        self.inodes.handle(id).ok_or(Errno(libc::ESTALE))
    }

    /// O_PATH descriptor of `id`: for attributes, xattrs, links, and as a directory of names.
    pub fn open_path(&self, id: FileId) -> Result<PathFd, Errno> {
        let (handle, kept) = self.inodes.handle_and_kept(id).ok_or(Errno(libc::ESTALE))?;
        match kept {
            Some(fd) => Ok(PathFd::Kept(fd)),
            None => self.backing.open_path(&handle).map(PathFd::Opened),
        }
    }

    /// Opens the data of `id` (a regular file).
    pub fn open(&self, id: FileId, flags: i32) -> Result<OwnedFd, Errno> {
        let (handle, kept) = self.inodes.handle_and_kept(id).ok_or(Errno(libc::ESTALE))?;
        match kept {
            Some(fd) => file::reopen(fd.as_fd(), flags),
            None => self.backing.open_handle(&handle, flags),
        }
    }

    /// Opens an append-only file, which takes no other descriptors for writing.
    pub fn open_append(&self, id: FileId) -> Result<OwnedFd, Errno> {
        self.backing.open_append(&self.handle(id)?)
    }

    /// Opens the directory `id` for listing.
    pub fn open_dir(&self, id: FileId) -> Result<OwnedFd, Errno> {
        match self.open_path(id)? {
            PathFd::Opened(fd) => file::open_dir(fd.as_fd()),
            PathFd::Kept(fd) => file::open_dir(fd.as_fd()),
        }
    }

    /// Attributes of `id`.
    pub fn stat(&self, id: FileId) -> Result<Stat, Errno> {
        file::stat(self.open_path(id)?.as_fd())
    }
}

#[cfg(test)]
mod tests;
