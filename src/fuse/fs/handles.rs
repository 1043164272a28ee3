//! Open files and directories, by the number the kernel knows them by.

use crate::ports::Errno;
use crate::proto::FileId;
use crate::tree::Share;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// An open regular file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) id: FileId,
    pub(super) fd: OwnedFd,
    /// Opened for writing by the application; the descriptor is then readable as well.
    pub(super) writable: bool,
    /// The file was append-only: the descriptor is O_APPEND, so only what stands at the end can be written.
    pub(super) append: bool,
    /// When it was opened.
    pub(super) era: u64,
    /// Its place among the process's descriptors.
    pub(super) _share: Share,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub(super) id: FileId,
    pub(super) fd: OwnedFd,
    pub(super) listing: Mutex<Listing>,
    /// Its place among the process's descriptors.
    pub(super) _share: Share,
}

/// Entries read from the backing directory and not yet given to the kernel.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) buf: Vec<u8>,
    /// Consumed part of `buf`.
    pub(super) at: usize,
    /// The kernel's position that `at` belongs to; another one starts anew.
    pub(super) next: u64,
}

/// Table of open objects. Numbers are never reused, so a late request cannot hit a wrong file.
/// Bounded by [`crate::tree::Descriptors`]: past it opens fail with ENFILE.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::default() }
    }
}

impl<T> Handles<T> {
    pub(super) fn insert(&self, value: T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(value));
        fh
    }

    /// EBADF: not open.
    pub(super) fn get(&self, fh: u64) -> Result<Arc<T>, Errno> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }

    /// Is there one that `is` holds for? Looks at all of them.
    pub(super) fn any(&self, is: impl Fn(&T) -> bool) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).values().any(|open| is(open))
    }

    pub(super) fn remove(&self, fh: u64) {
        // Dropped after the lock: closing may take long (the last close of an unlinked file).
        let old = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&fh);
        drop(old);
    }
}
