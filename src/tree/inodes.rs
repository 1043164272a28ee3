//! The inode table: ids the kernel and the peer use, handles the file system uses.
//!
//! Invariants: an id is never reused; one handle has one id; the parent of every remembered name is in
//! the table (the name holds a reference on it), so an object can be named up to the root as long as
//! its names are true. An entry lives while the kernel's lookup count, a pin (resync) or a
//! child's name holds it. About 250 bytes an entry, no descriptor; the exception are objects without a
//! name (unlinked while in use, O_TMPFILE): one O_PATH descriptor keeps them alive until the kernel
//! forgets them, bounded by what applications hold open and counted with it.
//!
//! Where the directory has patterns, an object is mirrored or local from the first time it is met, by the name
//! it is met at, and its id says which. No name may lead from one side to the other (`fuse` refuses it), so names of the
//! wrong side are somebody's who bypasses the mount: they are not remembered.

use super::descriptors::{Descriptors, Share};
use crate::base::Patterns;
use crate::base::patterns::Scope;
use crate::proto::FileId;
use crate::sys::backing::FileHandle;
use crate::sys::file::Stat;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where an object was last seen: (parent, name). True only after verification.
pub type Alias = (FileId, Vec<u8>);

/// Names remembered for one object; more hard links are found by a scan if it ever comes to that.
const ALIASES_MAX: usize = 8;

#[derive(Debug)]
struct Inode {
    handle: FileHandle,
    /// References by the kernel (its lookup count).
    lookups: u64,
    /// References by pins and by names of children.
    pins: u64,
    /// Newest last. One for almost every object.
    aliases: Vec<(FileId, Box<[u8]>)>,
    kept: Option<Kept>,
    /// Of a mirrored directory, where there are patterns. It never changes.
    scope: Option<Box<Scope>>,
}

/// The descriptor of an object without a name.
type Kept = (Arc<OwnedFd>, Share);

#[derive(Debug)]
struct Inner {
    next: u64,
    next_local: u64,
    patterns: Option<Arc<Patterns>>,
    by_id: HashMap<FileId, Inode>,
    by_handle: HashMap<FileHandle, FileId>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct InodeTable {
    inner: Mutex<Inner>,
    descriptors: Arc<Descriptors>,
    /// There are patterns.
    filtered: bool,
}

/// An object the kernel knows, for invalidation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: FileId,
    /// Its remembered names.
    pub aliases: Vec<Alias>,
}

/// What a name makes of the object that is met at it.
enum Side {
    Local,
    Mirrored(Option<Box<Scope>>),
}

impl Side {
    const fn is_of(&self, id: FileId) -> bool {
        matches!(self, Self::Local) == id.is_local()
    }
}

impl Inner {
    /// The side of a name. A parent that is not known, or no directory, has no say: nothing can be there.
    fn side(&self, parent: FileId, name: &[u8], is_dir: bool) -> Side {
        let Some(patterns) = &self.patterns else { return Side::Mirrored(None) };
        if parent.is_local() {
            return Side::Local;
        }
        let Some(scope) = self.by_id.get(&parent).and_then(|p| p.scope.as_deref()) else {
            return Side::Mirrored(None);
        };
        match patterns.child(*scope, name, is_dir) {
            Some(scope) => Side::Mirrored(is_dir.then(|| Box::new(scope))),
            None => Side::Local,
        }
    }

    fn insert(&mut self, handle: FileHandle, side: Side) -> FileId {
        if let Some(id) = self.by_handle.get(&handle) {
            return *id;
        }
        let (counter, scope) = match side {
            Side::Local => (&mut self.next_local, None),
            Side::Mirrored(scope) => (&mut self.next, scope),
        };
        let id = FileId(*counter);
        *counter += 1;
        self.by_handle.insert(handle, id);
        self.by_id.insert(id, Inode { handle, lookups: 0, pins: 0, aliases: Vec::new(), kept: None, scope });
        id
    }

    /// Remembers a name, `only`: instead of all others.
    fn add_alias(&mut self, id: FileId, parent: FileId, name: &[u8], only: bool, gone: &mut Vec<FileId>) {
        if id == FileId::ROOT || !self.by_id.contains_key(&parent) {
            return;
        }
        let Some(inode) = self.by_id.get_mut(&id) else { return };
        if only && inode.aliases.len() == 1 && inode.aliases[0].0 == parent && &*inode.aliases[0].1 == name {
            return;
        }
        let known = inode.aliases.iter().position(|(p, n)| *p == parent && &**n == name);
        let entry = match known {
            Some(at) => inode.aliases.remove(at),
            None => (parent, name.into()),
        };
        let drop_first =
            if only { inode.aliases.len() } else { (inode.aliases.len() + 1).saturating_sub(ALIASES_MAX) };
        let dropped: Vec<FileId> = inode.aliases.drain(..drop_first).map(|(p, _)| p).collect();
        inode.aliases.push(entry);
        if known.is_none()
            && let Some(p) = self.by_id.get_mut(&parent)
        {
            p.pins += 1;
        }
        for p in dropped {
            self.unpin(p, gone);
        }
    }

    fn unpin(&mut self, id: FileId, gone: &mut Vec<FileId>) {
        if let Some(inode) = self.by_id.get_mut(&id) {
            inode.pins = inode.pins.saturating_sub(1);
        }
        self.collect(id, gone);
    }

    /// Removes `id` if nothing holds it, then the parents that only it held.
    fn collect(&mut self, id: FileId, gone: &mut Vec<FileId>) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let unused = self.by_id.get(&id).is_some_and(|i| i.lookups == 0 && i.pins == 0);
            if !unused || id == FileId::ROOT {
                continue;
            }
            let Some(inode) = self.by_id.remove(&id) else { continue };
            self.by_handle.remove(&inode.handle);
            gone.push(id);
            for (parent, _) in inode.aliases {
                if let Some(p) = self.by_id.get_mut(&parent) {
                    p.pins = p.pins.saturating_sub(1);
                    todo.push(parent);
                }
            }
        }
    }
}

impl InodeTable {
    /// A table that knows the root and counts what it keeps in `descriptors`.
    pub fn new(root: FileHandle, descriptors: Arc<Descriptors>, patterns: Option<Arc<Patterns>>) -> Self {
        let scope = patterns.as_ref().map(|p| Box::new(p.root()));
        let filtered = patterns.is_some();
        let mut inner = Inner {
            next: FileId::ROOT.0,
            next_local: FileId::FIRST_LOCAL.0,
            patterns,
            by_id: HashMap::new(),
            by_handle: HashMap::new(),
        };
        inner.insert(root, Side::Mirrored(scope));
        Self { inner: Mutex::new(inner), descriptors, filtered }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle of `id`.
    pub fn handle(&self, id: FileId) -> Option<FileHandle> {
        self.lock().by_id.get(&id).map(|i| i.handle)
    }

    /// The handle of `id`, and the descriptor kept for it if it has no name.
    pub fn handle_and_kept(&self, id: FileId) -> Option<(FileHandle, Option<Arc<OwnedFd>>)> {
        self.lock().by_id.get(&id).map(|i| (i.handle, i.kept.as_ref().map(|(fd, _)| Arc::clone(fd))))
    }

    /// The id of `handle` if it is known.
    pub fn id_of(&self, handle: &FileHandle) -> Option<FileId> {
        self.lock().by_handle.get(handle).copied()
    }

    /// The kernel looked `handle` up at (parent, name): one more reference by the kernel.
    /// With one link the name replaces older ones.
    pub fn lookup(&self, handle: FileHandle, parent: FileId, name: &[u8], stat: &Stat) -> FileId {
        let mut inner = self.lock();
        let side = inner.side(parent, name, stat.is_dir());
        // One of two names, the other of which is on the other side, is no name to go by.
        let known = inner.by_handle.get(&handle).is_none_or(|id| side.is_of(*id));
        let id = inner.insert(handle, side);
        if let Some(inode) = inner.by_id.get_mut(&id) {
            inode.lookups += 1;
        }
        if known {
            // The gone list stays empty: the parent is held by the kernel, older ones are rarely ours.
            inner.add_alias(id, parent, name, stat.nlink <= 1, &mut Vec::new());
        }
        id
    }

    /// The kernel got an object without a name (O_TMPFILE) in `parent`, whose side it takes: one reference, `kept`
    /// keeps it alive.
    pub fn lookup_unnamed(&self, handle: FileHandle, parent: FileId, kept: OwnedFd) -> FileId {
        let mut inner = self.lock();
        let side = if parent.is_local() { Side::Local } else { Side::Mirrored(None) };
        let id = inner.insert(handle, side);
        if let Some(inode) = inner.by_id.get_mut(&id) {
            inode.lookups += 1;
            inode.kept = Some((Arc::new(kept), self.descriptors.take_anyway()));
        }
        id
    }

    /// The id of `handle` seen at (parent, name), made known and **pinned once**: give it back with
    /// [`InodeTable::unpin`]. For resync and for binding parents.
    pub fn get_or_insert(&self, handle: FileHandle, parent: FileId, name: &[u8], is_dir: bool) -> FileId {
        let mut inner = self.lock();
        let side = inner.side(parent, name, is_dir);
        let known = inner.by_handle.get(&handle).is_none_or(|id| side.is_of(*id));
        let id = inner.insert(handle, side);
        if let Some(inode) = inner.by_id.get_mut(&id) {
            inode.pins += 1;
        }
        if known {
            inner.add_alias(id, parent, name, false, &mut Vec::new());
        }
        id
    }

    /// Does what is or will be at (parent, name) stay local? Free of cost where there are no patterns.
    pub fn is_local_name(&self, parent: FileId, name: &[u8], is_dir: bool) -> bool {
        parent.is_local() || (self.filtered && matches!(self.lock().side(parent, name, is_dir), Side::Local))
    }

    /// May an object of this type be moved from one name to the other? Not where it, or something that may be
    /// below it, would be on the other side there.
    pub fn may_move(&self, from: (FileId, &[u8]), to: (FileId, &[u8]), is_dir: bool) -> bool {
        if !self.filtered {
            return true;
        }
        let inner = self.lock();
        match (inner.side(from.0, from.1, is_dir), inner.side(to.0, to.1, is_dir)) {
            (Side::Local, Side::Local) => true,
            (Side::Mirrored(from), Side::Mirrored(to)) => from == to,
            _ => false,
        }
    }

    /// One more pin on a known id; false if it is not known.
    pub fn pin(&self, id: FileId) -> bool {
        self.lock().by_id.get_mut(&id).map(|i| i.pins += 1).is_some()
    }

    /// Gives one pin back. Ids that are no longer held by anybody are forgotten and appended to `gone`.
    pub fn unpin(&self, id: FileId, gone: &mut Vec<FileId>) {
        if id != FileId::ROOT {
            self.lock().unpin(id, gone);
        }
    }

    /// The kernel gives `count` references back. Ids that are no longer held by anybody are
    /// forgotten and appended to `gone`.
    pub fn forget(&self, id: FileId, count: u64, gone: &mut Vec<FileId>) {
        let mut inner = self.lock();
        let mut kept = None;
        if let Some(inode) = inner.by_id.get_mut(&id) {
            inode.lookups = inode.lookups.saturating_sub(count);
            // A pin keeps the id, never an object without a name: only applications can need that.
            if inode.lookups == 0 {
                kept = inode.kept.take();
            }
        }
        inner.collect(id, gone);
        // A last close may delete a file: not under the lock.
        drop(inner);
        drop(kept);
    }

    /// (parent, name) is a name of `id` now; `only`: its only one.
    pub fn set_alias(&self, id: FileId, parent: FileId, name: &[u8], only: bool) {
        self.lock().add_alias(id, parent, name, only, &mut Vec::new());
    }

    /// (parent, name) is no longer a name of `id`.
    pub fn drop_alias(&self, id: FileId, parent: FileId, name: &[u8]) {
        let mut inner = self.lock();
        let Some(inode) = inner.by_id.get_mut(&id) else { return };
        if let Some(at) = inode.aliases.iter().position(|(p, n)| *p == parent && &**n == name) {
            inode.aliases.remove(at);
            inner.unpin(parent, &mut Vec::new());
        }
    }

    /// Remembered names of `id`, newest first; to be verified.
    pub fn aliases(&self, id: FileId) -> Vec<Alias> {
        let inner = self.lock();
        let Some(inode) = inner.by_id.get(&id) else { return Vec::new() };
        inode.aliases.iter().rev().map(|(p, n)| (*p, n.to_vec())).collect()
    }

    /// The object behind `id` lost its last name (`Some`) or got one again (`None`).
    pub fn set_kept(&self, id: FileId, fd: Option<OwnedFd>) {
        // The old descriptor is closed after the lock is released: a last close may delete a file.
        let old = match self.lock().by_id.get_mut(&id) {
            Some(inode) => {
                let kept = fd.map(|fd| (Arc::new(fd), self.descriptors.take_anyway()));
                std::mem::replace(&mut inode.kept, kept)
            }
            None => None,
        };
        drop(old);
    }

    /// Everything the kernel holds references on (the root too).
    pub fn known(&self) -> Vec<Known> {
        let inner = self.lock();
        let held = inner.by_id.iter().filter(|(id, i)| i.lookups > 0 || **id == FileId::ROOT);
        held.map(|(id, i)| Known {
            id: *id,
            aliases: i.aliases.iter().map(|(p, n)| (*p, n.to_vec())).collect(),
        })
        .collect()
    }

    /// The kernel's connection ended: every reference it held is gone.
    pub fn forget_all_lookups(&self, gone: &mut Vec<FileId>) {
        let mut inner = self.lock();
        let ids: Vec<FileId> = inner.by_id.keys().copied().collect();
        let mut kept = Vec::new();
        for id in &ids {
            if let Some(inode) = inner.by_id.get_mut(id) {
                inode.lookups = 0;
                kept.extend(inode.kept.take());
            }
        }
        for id in ids {
            inner.collect(id, gone);
        }
        drop(inner);
        drop(kept);
    }

    /// Number of known objects.
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Never true: the root is always known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
