//! What the sender's ids mean here: file handles, a few open descriptors, and how sure we are.

use crate::base::Volume;
use crate::ports::Errno;
use crate::proto::FileId;
use crate::sys::backing::FileHandle;
use crate::sys::file;
use crate::tree::Tree;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// One object of the sender.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub handle: FileHandle,
    /// Its place was made or confirmed by the stream (in a resync: not just by a live `Bind`).
    pub placed: bool,
    /// Its last known name here is gone: operations on it may find nothing.
    pub unlinked: bool,
    /// What it was is out of reach (in quarantine): the handle must not lead there.
    pub gone: bool,
}

/// One volume's ids.
pub(super) struct Table {
    pub tree: Arc<Tree>,
    ids: HashMap<FileId, Node>,
    by_handle: HashMap<FileHandle, FileId>,
    fds: HashMap<FileId, (Arc<OwnedFd>, u64)>,
    unnamed: HashMap<FileId, (Arc<OwnedFd>, u64)>,
    tick: u64,
}

/// O_PATH descriptor of an object.
pub(super) enum Path {
    Opened(OwnedFd),
    Kept(Arc<OwnedFd>),
}

impl AsFd for Path {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Opened(fd) => fd.as_fd(),
            Self::Kept(fd) => fd.as_fd(),
        }
    }
}

impl Table {
    pub fn new(tree: Arc<Tree>) -> Self {
        let mut table = Self {
            tree,
            ids: HashMap::new(),
            by_handle: HashMap::new(),
            fds: HashMap::new(),
            unnamed: HashMap::new(),
            tick: 0,
        };
        table.clear();
        table
    }

    /// Forgets every id but the root.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.by_handle.clear();
        self.fds.clear();
        self.unnamed.clear();
        let handle = *self.tree.backing.root_handle();
        self.ids.insert(FileId::ROOT, Node { handle, placed: true, unlinked: false, gone: false });
        self.by_handle.insert(handle, FileId::ROOT);
    }

    pub fn volume(&self) -> Volume {
        self.tree.volume
    }

    pub fn node(&self, id: FileId) -> Option<&Node> {
        self.ids.get(&id)
    }

    pub fn node_mut(&mut self, id: FileId) -> Option<&mut Node> {
        self.ids.get_mut(&id)
    }

    pub fn id_of(&self, handle: &FileHandle) -> Option<FileId> {
        self.by_handle.get(handle).copied()
    }

    /// From here on `id` is `handle`, and no other id is.
    pub fn bind(&mut self, id: FileId, handle: FileHandle, placed: bool) {
        if id == FileId::ROOT {
            return;
        }
        if self.ids.get(&id).is_some_and(|n| n.handle != handle) {
            self.unbind(id);
        }
        let mut placed = placed || self.ids.get(&id).is_some_and(|n| n.placed);
        if let Some(other) = self.by_handle.insert(handle, id)
            && other != id
        {
            // The sender forgot the object and met it again: its place is as sure as before.
            placed |= self.ids.remove(&other).is_some_and(|n| n.placed);
            self.fds.remove(&other);
            self.unnamed.remove(&other);
        }
        self.ids.insert(id, Node { handle, placed, unlinked: false, gone: false });
    }

    /// `id` means nothing any more.
    pub fn unbind(&mut self, id: FileId) {
        if id == FileId::ROOT {
            return;
        }
        if let Some(node) = self.ids.remove(&id)
            && self.by_handle.get(&node.handle) == Some(&id)
        {
            self.by_handle.remove(&node.handle);
        }
        self.fds.remove(&id);
        self.unnamed.remove(&id);
    }

    /// A name of `id` is gone; later operations on it may find nothing.
    pub fn name_lost(&mut self, id: FileId) {
        self.fds.remove(&id);
        if let Some(node) = self.ids.get_mut(&id) {
            node.unlinked = true;
        }
    }

    /// The object lost its last name by the stream and was moved out of the way.
    pub fn moved_away(&mut self, id: FileId) {
        self.name_lost(id);
        if let Some(node) = self.ids.get_mut(&id) {
            node.gone = true;
            if self.by_handle.get(&node.handle) == Some(&id) {
                self.by_handle.remove(&node.handle);
            }
        }
    }

    fn reachable(&self, id: FileId) -> Result<&Node, Errno> {
        self.ids.get(&id).filter(|n| !n.gone).ok_or(Errno(libc::ESTALE))
    }

    /// Keeps an object without a name alive.
    pub fn keep_unnamed(&mut self, id: FileId, fd: OwnedFd) {
        self.tick += 1;
        // Beyond, the oldest are let go: their content would only matter if they were linked later.
        if self.unnamed.len() >= self.tree.descriptors.standby_unnamed() {
            let oldest = self.unnamed.iter().min_by_key(|(_, (_, tick))| *tick).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.unnamed.remove(&oldest);
                self.name_lost(oldest);
            }
        }
        self.unnamed.insert(id, (Arc::new(fd), self.tick));
    }

    /// It has a name now.
    pub fn named(&mut self, id: FileId) {
        self.unnamed.remove(&id);
        if let Some(node) = self.ids.get_mut(&id) {
            node.unlinked = false;
        }
    }

    /// O_PATH descriptor (of an unnamed file: its own). ESTALE for unknown ids.
    pub fn path(&self, id: FileId) -> Result<Path, Errno> {
        if let Some((fd, _)) = self.unnamed.get(&id) {
            return Ok(Path::Kept(Arc::clone(fd)));
        }
        let node = self.reachable(id)?;
        self.tree.backing.open_path(&node.handle).map(Path::Opened)
    }

    /// Descriptor for reading and writing a regular file; kept open for the next time.
    pub fn data(&mut self, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
        self.tick += 1;
        if let Some((fd, tick)) = self.fds.get_mut(&id) {
            *tick = self.tick;
            return Ok(Arc::clone(fd));
        }
        if let Some((fd, _)) = self.unnamed.get(&id) {
            return Ok(Arc::clone(fd));
        }
        let node = self.reachable(id)?;
        let path = self.tree.backing.open_path(&node.handle)?;
        // Opening a FIFO or a device would block or do something.
        match file::stat(path.as_fd())?.kind() {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno(libc::EINVAL)),
        }
        let flags = libc::O_RDWR | libc::O_NOATIME;
        let fd = Arc::new(self.tree.backing.open_handle(&node.handle, flags)?);
        self.remember(id, &fd);
        Ok(fd)
    }

    /// Keeps an open data descriptor.
    pub fn remember(&mut self, id: FileId, fd: &Arc<OwnedFd>) {
        if self.fds.len() >= self.tree.descriptors.standby_data() {
            let mut ticks: Vec<u64> = self.fds.values().map(|(_, tick)| *tick).collect();
            ticks.sort_unstable();
            let cut = ticks[ticks.len() / 4];
            self.fds.retain(|_, (_, tick)| *tick > cut);
        }
        self.tick += 1;
        self.fds.insert(id, (Arc::clone(fd), self.tick));
    }

    /// Descriptor to fsync `id` with.
    pub fn for_sync(&mut self, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
        match self.data(id) {
            Err(Errno(libc::EISDIR)) => {
                let node = self.reachable(id)?;
                self.tree.backing.open_dir(&node.handle).map(Arc::new)
            }
            other => other,
        }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }
}
