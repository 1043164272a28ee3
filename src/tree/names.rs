//! From an id to a true name, and a locked lookup by name.
//!
//! Remembered names are only hints; what is returned was compared with the file system under the
//! caller's namespace lock. Where no hint holds, the kernel's name cache is asked, and at last the tree
//! is scanned (by inode number, a fraction of a microsecond a name): binding a file that still has a
//! name as if it had none would let the standby diverge, so slow is the right answer.

use super::{Tree, is_hidden};
use crate::base::patterns::Scope;
use crate::base::{Patterns, Volume};
use crate::ports::Names;
use crate::proto::FileId;
use crate::sys::backing::FileHandle;
use crate::sys::file::{self, Entries};
use std::os::fd::AsFd;
use std::sync::Arc;

/// A directory seen by the scan: handle, index of its parent in the list, name.
struct Seen {
    handle: FileHandle,
    parent: usize,
    name: Vec<u8>,
    /// Where there are patterns.
    scope: Option<Scope>,
}

impl Tree {
    fn holds(&self, parent: FileId, name: &[u8], handle: &FileHandle) -> bool {
        let Ok(dir) = self.open_path(parent) else { return false };
        self.backing.handle_at(dir.as_fd(), name).is_ok_and(|h| h == *handle)
    }

    /// Makes the directories of `path` known, and `id` as its last component if that is `handle`.
    fn adopt(
        &self,
        path: &[Vec<u8>],
        id: FileId,
        handle: &FileHandle,
        is_dir: bool,
    ) -> Option<(FileId, Vec<u8>)> {
        let (name, dirs) = path.split_last()?;
        let mut pinned = Vec::with_capacity(dirs.len());
        let mut parent = FileId::ROOT;
        let mut walk = || {
            for dir in dirs {
                if is_hidden(parent, dir) || self.inodes.is_local_name(parent, dir, true) {
                    return None;
                }
                let fd = self.open_path(parent).ok()?;
                let next = self.backing.handle_at(fd.as_fd(), dir).ok()?;
                parent = self.inodes.get_or_insert(next, parent, dir, true);
                pinned.push(parent);
            }
            let foreign = is_hidden(parent, name) || self.inodes.is_local_name(parent, name, is_dir);
            (!foreign && self.holds(parent, name, handle)).then(|| {
                self.inodes.set_alias(id, parent, name, false);
                (parent, name.clone())
            })
        };
        let found = walk();
        // From here on the remembered names hold the parents.
        let mut gone = Vec::new();
        for id in pinned {
            self.inodes.unpin(id, &mut gone);
        }
        found
    }

    /// Looks through the whole tree for a name of the inode `ino` with this handle, other than `not`.
    fn scan(&self, ino: u64, handle: &FileHandle, not: Option<(FileHandle, &[u8])>) -> Option<Vec<Vec<u8>>> {
        let patterns = self.patterns.as_deref();
        let scope = patterns.map(Patterns::root);
        let mut dirs = vec![Seen { handle: *self.backing.root_handle(), parent: 0, name: Vec::new(), scope }];
        let mut buf = vec![0; 64 << 10];
        let mut at = 0;
        while at < dirs.len() {
            let (here, scope) = (dirs[at].handle, dirs[at].scope);
            // A directory that vanished meanwhile holds nothing.
            if let Ok(fd) = self.backing.open_dir(&here) {
                while let Ok(len @ 1..) = file::read_dir(fd.as_fd(), &mut buf, None) {
                    for entry in Entries::new(&buf[..len]) {
                        if matches!(entry.name, b"." | b"..")
                            || (at == 0 && is_hidden(FileId::ROOT, entry.name))
                        {
                            continue;
                        }
                        let dir = matches!(entry.kind, libc::DT_DIR | libc::DT_UNKNOWN);
                        if entry.ino != ino && !dir {
                            continue;
                        }
                        // What stays local names nothing that is mirrored.
                        let child = |is_dir| match (patterns, scope) {
                            (Some(p), Some(scope)) => p.child(scope, entry.name, is_dir).map(Some),
                            _ => Some(None),
                        };
                        let Some(scope) = child(dir) else { continue };
                        let Ok(found) = self.backing.handle_at(fd.as_fd(), entry.name) else { continue };
                        if found == *handle && not != Some((here, entry.name)) {
                            let mut path = vec![entry.name.to_vec()];
                            let mut up = at;
                            while up != 0 {
                                path.push(std::mem::take(&mut dirs[up].name));
                                up = dirs[up].parent;
                            }
                            path.reverse();
                            return Some(path);
                        }
                        if dir {
                            dirs.push(Seen { handle: found, parent: at, name: entry.name.to_vec(), scope });
                        }
                    }
                }
            }
            at += 1;
        }
        None
    }

    /// A verified name of `id`; see [`Names::alias`]. The caller holds the namespace lock.
    pub fn alias(&self, id: FileId) -> Option<(FileId, Vec<u8>)> {
        self.alias_except(id, None)
    }

    /// Like [`Tree::alias`], but never the name `not`: what the object was called before it was
    /// linked there.
    pub fn alias_except(&self, id: FileId, not: Option<(FileId, &[u8])>) -> Option<(FileId, Vec<u8>)> {
        if id == FileId::ROOT {
            return None;
        }
        let handle = self.inodes.handle(id)?;
        for (parent, name) in self.inodes.aliases(id) {
            if not != Some((parent, &name)) && self.holds(parent, &name, &handle) {
                return Some((parent, name));
            }
        }
        let fd = self.open_path(id).ok()?;
        let stat = file::stat(fd.as_fd()).ok()?;
        if stat.nlink <= u32::from(not.is_some()) {
            return None;
        }
        if let Some(path) = self.backing.path_hint(fd.as_fd())
            && let Some(found) = self.adopt(&path, id, &handle, stat.is_dir())
            && not != Some((found.0, &found.1))
        {
            return Some(found);
        }
        tracing::debug!(id = id.0, ino = stat.ino, "no remembered name holds, scanning the tree");
        let not = not.and_then(|(parent, name)| Some((self.inodes.handle(parent)?, name)));
        let path = self.scan(stat.ino, &handle, not)?;
        self.adopt(&path, id, &handle, stat.is_dir())
    }
}

impl Names for Tree {
    fn alias(&self, volume: Volume, id: FileId) -> Option<(FileId, Vec<u8>)> {
        debug_assert_eq!(volume, self.volume);
        Self::alias(self, id)
    }
}

/// The volumes of one cluster, by index.
#[derive(Debug, Clone, Default)]
pub struct Trees(pub Vec<Arc<Tree>>);

impl Trees {
    /// The tree of `volume`.
    pub fn get(&self, volume: Volume) -> Option<&Arc<Tree>> {
        self.0.iter().find(|t| t.volume == volume)
    }
}

impl Names for Trees {
    fn alias(&self, volume: Volume, id: FileId) -> Option<(FileId, Vec<u8>)> {
        self.get(volume)?.alias(id)
    }
}
