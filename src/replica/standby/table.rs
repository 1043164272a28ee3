//! What the sender's ids mean here: file handles, a few open descriptors, and how sure we are.

use crate::base::Volume;
use crate::ports::Errno;
use crate::proto::FileId;
use crate::replica::local::sync_trees;
use crate::sys::backing::FileHandle;
use crate::sys::file;
use crate::tree::Tree;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files that were closed dirty, by handle. Beyond, every file counts as one.
const CLOSED_MAX: usize = 64 * 1024;

/// One object of the sender.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub handle: FileHandle,
    /// Its place was made or confirmed by the stream (in a resync: not just by a live `Bind`).
    pub placed: bool,
    /// A directory whose names all are the source's. One that is not will be listed (again).
    pub exact: bool,
    /// Its last known name here is gone: operations on it may find nothing.
    pub unlinked: bool,
    /// What it was is out of reach (in quarantine): the handle must not lead there.
    pub gone: bool,
}

/// A data descriptor. It sees a failed writeback of the file only if it was open before.
struct Open {
    fd: Arc<OwnedFd>,
    tick: u64,
    /// Written since the last fsync.
    dirty: bool,
}

/// What makes an object durable, or says that it cannot be known.
pub(super) enum Sync {
    /// fsync of this descriptor, open since the object was last clean.
    Object(Arc<OwnedFd>),
    /// The object was written, closed and opened again: a failed writeback in between may be known to its
    /// file system only, through the descriptor that is held for life.
    Volume(VolumeSync),
}

/// See [`Sync::Volume`].
pub(super) struct VolumeSync {
    tree: Arc<Tree>,
    tick: u64,
    synced: Arc<AtomicU64>,
}

impl VolumeSync {
    pub fn run(&self) -> Result<(), Errno> {
        sync_trees(std::slice::from_ref(&self.tree))?;
        self.synced.fetch_max(self.tick, Ordering::AcqRel);
        Ok(())
    }
}

/// One volume's ids.
pub(super) struct Table {
    pub tree: Arc<Tree>,
    ids: HashMap<FileId, Node>,
    by_handle: HashMap<FileHandle, FileId>,
    fds: HashMap<FileId, Open>,
    /// Fewer than the descriptors allow, in tests.
    fds_max: usize,
    unnamed: HashMap<FileId, (Arc<OwnedFd>, u64)>,
    tick: u64,
    /// When a file was closed dirty; what is older than `synced` is durable.
    closed: HashMap<FileHandle, u64>,
    /// Any file may have been closed dirty up to here.
    closed_all: u64,
    /// The whole volume was durable here.
    synced: Arc<AtomicU64>,
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
            fds_max: usize::MAX,
            unnamed: HashMap::new(),
            tick: 0,
            closed: HashMap::new(),
            closed_all: 0,
            synced: Arc::default(),
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
        self.ids
            .insert(FileId::ROOT, Node { handle, placed: true, exact: false, unlinked: false, gone: false });
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
        let mut exact = self.ids.get(&id).is_some_and(|n| n.exact);
        let mut placed = placed || self.ids.get(&id).is_some_and(|n| n.placed);
        if let Some(other) = self.by_handle.insert(handle, id)
            && other != id
        {
            // The sender forgot the object and met it again: its place is as sure as before.
            if let Some(node) = self.ids.remove(&other) {
                // One that lost its name is gone from the sender, and what is left of it here is not it.
                placed |= node.placed && !node.unlinked;
                exact |= node.exact;
            }
            if let Some(open) = self.fds.remove(&other) {
                self.fds.insert(id, open);
            }
            self.unnamed.remove(&other);
        }
        self.ids.insert(id, Node { handle, placed, exact, unlinked: false, gone: false });
    }

    /// `id` means nothing any more.
    pub fn unbind(&mut self, id: FileId) {
        if id == FileId::ROOT {
            return;
        }
        self.close(id);
        if let Some(node) = self.ids.remove(&id)
            && self.by_handle.get(&node.handle) == Some(&id)
        {
            self.by_handle.remove(&node.handle);
        }
        self.unnamed.remove(&id);
    }

    fn close(&mut self, id: FileId) {
        if self.fds.remove(&id).is_some_and(|open| open.dirty)
            && let Some(node) = self.ids.get(&id)
        {
            self.closed_dirty(node.handle);
        }
    }

    fn closed_dirty(&mut self, handle: FileHandle) {
        self.tick += 1;
        if self.closed.len() >= CLOSED_MAX {
            let synced = self.synced.load(Ordering::Acquire);
            self.closed.retain(|_, tick| *tick > synced);
        }
        if self.closed.len() >= CLOSED_MAX {
            self.closed.clear();
            self.closed_all = self.tick;
        }
        self.closed.insert(handle, self.tick);
    }

    /// Everything up to here is durable: somebody synced the volume.
    pub fn settled(&mut self) {
        self.closed.clear();
        self.synced.fetch_max(self.tick, Ordering::AcqRel);
        self.fds.values_mut().for_each(|open| open.dirty = false);
    }

    /// A name of `id` is gone; later operations on it may find nothing.
    pub fn name_lost(&mut self, id: FileId) {
        self.close(id);
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
        if let Some((fd, _)) = self.unnamed.remove(&id) {
            self.remember(id, &fd);
            self.written(id);
        }
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

    fn written(&mut self, id: FileId) {
        if let Some(open) = self.fds.get_mut(&id) {
            open.dirty = true;
        }
    }

    /// Descriptor for reading and writing a regular file; kept open for the next time. It counts as
    /// written.
    pub fn data(&mut self, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
        let fd = self.open(id)?;
        self.written(id);
        Ok(fd)
    }

    fn open(&mut self, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
        self.tick += 1;
        if let Some(open) = self.fds.get_mut(&id) {
            open.tick = self.tick;
            return Ok(Arc::clone(&open.fd));
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
        let open = || self.tree.backing.open_handle(&node.handle, flags);
        let fd = Arc::new(file::flags::unlocked(path.as_fd(), open)?);
        self.remember(id, &fd);
        Ok(fd)
    }

    /// Keeps an open data descriptor, of a file in which nothing is to be made durable yet.
    pub fn remember(&mut self, id: FileId, fd: &Arc<OwnedFd>) {
        if self.fds.len() >= self.fds_max.min(self.tree.descriptors.standby_data()) {
            let mut ticks: Vec<u64> = self.fds.values().map(|open| open.tick).collect();
            ticks.sort_unstable();
            let cut = ticks[ticks.len() / 4];
            let old: Vec<FileId> =
                self.fds.iter().filter(|(_, open)| open.tick <= cut).map(|(id, _)| *id).collect();
            for id in old {
                self.close(id);
            }
        }
        self.tick += 1;
        self.fds.insert(id, Open { fd: Arc::clone(fd), tick: self.tick, dirty: false });
    }

    /// What an fsync of `id` has to do. From here on it counts as clean: a sync that fails ends the stream.
    pub fn for_sync(&mut self, id: FileId) -> Result<Sync, Errno> {
        let handle = self.reachable(id)?.handle;
        let synced = self.synced.load(Ordering::Acquire);
        if self.closed_all > synced || self.closed.get(&handle).is_some_and(|tick| *tick > synced) {
            return Ok(self.for_sync_of_all());
        }
        match self.open(id) {
            Ok(fd) => {
                if let Some(open) = self.fds.get_mut(&id) {
                    open.dirty = false;
                }
                Ok(Sync::Object(fd))
            }
            Err(Errno(libc::EISDIR)) => self.tree.backing.open_dir(&handle).map(Arc::new).map(Sync::Object),
            Err(errno) => Err(errno),
        }
    }

    /// What a sync of the whole volume has to do.
    pub fn for_sync_of_all(&self) -> Sync {
        let (tree, synced) = (Arc::clone(&self.tree), Arc::clone(&self.synced));
        Sync::Volume(VolumeSync { tree, tick: self.tick, synced })
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::backing::Backing;

    fn table(dir: &tempfile::TempDir, files: u64) -> Table {
        let tree = Arc::new(Tree::new(Volume(0), Backing::open(dir.path()).unwrap()));
        let mut table = Table::new(Arc::clone(&tree));
        table.fds_max = 4;
        for id in 2..files + 2 {
            let name = id.to_string();
            std::fs::write(dir.path().join(&name), b"").unwrap();
            let handle = tree.backing.handle_at(tree.backing.base(), name.as_bytes()).unwrap();
            table.bind(FileId(id), handle, true);
        }
        table
    }

    fn of_volume(table: &mut Table, id: u64) -> Option<VolumeSync> {
        match table.for_sync(FileId(id)).unwrap() {
            Sync::Volume(sync) => Some(sync),
            Sync::Object(_) => None,
        }
    }

    #[test]
    fn a_file_that_was_closed_dirty_is_synced_with_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = table(&dir, 12);
        table.data(FileId(2)).unwrap();
        table.data(FileId(3)).unwrap();
        assert!(of_volume(&mut table, 3).is_none(), "open since it was written");
        for id in 4..12 {
            table.data(FileId(id)).unwrap();
        }
        assert!(of_volume(&mut table, 3).is_none(), "closed, but clean");
        let first = of_volume(&mut table, 2).expect("closed dirty");
        // Opening it again shows nothing of what happened before.
        table.data(FileId(2)).unwrap();
        assert!(of_volume(&mut table, 2).is_some());
        table.unbind(FileId(2));
        let handle = table.tree.backing.handle_at(table.tree.backing.base(), b"2").unwrap();
        table.bind(FileId(99), handle, true);
        first.run().unwrap();
        // That sync began before the last write.
        of_volume(&mut table, 99).expect("closed dirty under its former id").run().unwrap();
        assert!(of_volume(&mut table, 99).is_none());
    }

    #[test]
    fn a_file_that_got_its_first_name_stays_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = table(&dir, 0);
        let fd = file::open_tmpfile(table.tree.backing.base(), 0o600, false).unwrap();
        let handle = table.tree.backing.handle_of(fd.as_fd()).unwrap();
        table.bind(FileId(2), handle, true);
        table.keep_unnamed(FileId(2), fd);
        table.data(FileId(2)).unwrap();
        table.named(FileId(2));
        assert!(of_volume(&mut table, 2).is_none());
        table.data(FileId(2)).unwrap();
        table.name_lost(FileId(2));
        assert!(of_volume(&mut table, 2).is_some());
    }
}
