//! Live operations while the target is being made equal: what does not fit is made to fit or asked for.
//!
//! The source's word is true at this position of the stream: an object that stands in the way is
//! displaced, a missing one is asked for again (`Redo`). Only errors of the machine itself (space,
//! I/O, limits) end the stream.

use super::apply::Apply;
use super::ops::{self, Failed, RENAME_EXCHANGE, at};
use super::pulse::Pulse;
use super::table::Table;
use crate::ports::Errno;
use crate::proto::{FileId, FsOp};
use crate::sys::backing::FileHandle;
use crate::sys::file::{self, Entries, Stat, flags};
use std::os::fd::{AsFd, BorrowedFd};

/// Deepest directory that is removed or walked (each level holds one descriptor).
const DEPTH_MAX: usize = 1024;

/// Errors of the machine or the file system, not of a tree that differs.
fn is_fatal(errno: Errno) -> bool {
    matches!(
        errno.0,
        libc::ENOSPC
            | libc::EDQUOT
            | libc::EIO
            | libc::EROFS
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::EFBIG
            | libc::E2BIG
            | libc::ENAMETOOLONG
            | libc::EMLINK
    )
}

/// Errors that say that the file system will not do it, or that the object is of another type here: a
/// symbolic link refuses a user xattr with EPERM and a mode with EOPNOTSUPP.
const fn is_refusal(errno: Errno) -> bool {
    matches!(errno.0, libc::EOPNOTSUPP | libc::EACCES | libc::EPERM)
}

/// An object that an operation puts into a directory.
struct Moved {
    to: FileId,
    handle: Option<FileHandle>,
    /// The name that the operation found it by is a name of it on the source, too.
    certain: bool,
}

impl Apply {
    /// Applies `op` in a resync.
    pub(super) fn apply_leniently(&mut self, v: usize, op: &FsOp, bulk: &[u8]) -> Result<(), Failed> {
        if let FsOp::Forget { ids } = op {
            // What is known of an object's place is needed until the end; ids are never reused.
            self.forgotten.extend(ids.iter().map(|id| (v, *id)));
            return Ok(());
        }
        if let FsOp::Bind { id, parent, name } = op {
            return self.bind_live(v, *id, *parent, name);
        }
        self.keep_overwritten(v, op, bulk.len() as u64)?;
        let moved = self.moved_objects(v, op);
        if self.keep_victim(v, op, &moved)
            && let FsOp::Unlink { parent, dir_mtime, .. } = op
        {
            // Its name is gone from here: that is all the operation does.
            match self.tables[v].path(*parent) {
                Ok(dir) => ops::set_mtime(dir.as_fd(), *dir_mtime)?,
                Err(_) => self.redo(v, &[*parent], false),
            }
            return Ok(());
        }
        let mut result = self.tables[v].apply(op, bulk);
        if matches!(result, Err((Errno(libc::EPERM), _))) && self.unlock_around(v, op)? {
            result = self.tables[v].apply(op, bulk);
        }
        let Err(failed) = result else {
            self.after(v, op, &moved);
            return Ok(());
        };
        if self.is_final(v, op, failed.0) {
            return Err(failed);
        }
        match op {
            FsOp::Bind { .. } | FsOp::Forget { .. } | FsOp::Fsync { .. } | FsOp::SyncFs => {}
            FsOp::Make { parent, name, .. } | FsOp::Symlink { parent, name, .. } => {
                if self.again(v, op, bulk, *parent, name, &[*parent])? {
                    self.after(v, op, &moved);
                }
            }
            FsOp::Link { id, parent, name, .. } => {
                self.again(v, op, bulk, *parent, name, &[*parent, *id])?;
                self.after(v, op, &moved);
            }
            FsOp::Tmpfile { id, attr, xattrs, .. } => {
                let op = FsOp::Tmpfile { parent: FileId::ROOT, id: *id, attr: *attr, xattrs: xattrs.clone() };
                self.tables[v].apply(&op, bulk)?;
            }
            FsOp::Unlink { parent, name, .. } | FsOp::Rmdir { parent, name, .. } => {
                // Gone is what it should be; anything else in its place must go too.
                self.displace_at(v, *parent, name)?;
                self.redo(v, &[*parent], false);
            }
            FsOp::Rename { parent, to_parent, to_name, flags, .. } => {
                if *flags & RENAME_EXCHANGE == 0 {
                    self.displace_at(v, *to_parent, to_name)?;
                    match self.tables[v].apply(op, bulk) {
                        Ok(()) => {
                            self.after(v, op, &moved);
                            return Ok(());
                        }
                        Err(failed) if self.is_final(v, op, failed.0) => return Err(failed),
                        Err(_) => {}
                    }
                }
                self.redo(v, &[*parent, *to_parent], false);
            }
            FsOp::Touch { parent, other, .. } => {
                self.redo(v, &[*parent], false);
                self.redo(v, other.map(|(id, _)| id).as_slice(), false);
            }
            FsOp::SetXattr { id, name, mode, .. } => {
                let plain = FsOp::SetXattr { id: *id, name: name.clone(), flags: 0, mode: *mode };
                match self.tables[v].apply(&plain, bulk) {
                    Ok(()) => {}
                    Err(failed) if self.is_final(v, op, failed.0) => return Err(failed),
                    Err(_) => self.redo_inode(v, *id),
                }
            }
            FsOp::RemoveXattr { .. } if failed.0 == Errno(libc::ENODATA) => {}
            FsOp::Write { id, .. }
            | FsOp::SetAttr { id, .. }
            | FsOp::RemoveXattr { id, .. }
            | FsOp::SetFlags { id, .. }
            | FsOp::Fallocate { id, .. } => self.redo_inode(v, *id),
        }
        Ok(())
    }

    /// Would it fail again once the target is equal? A refusal counts only for an object that is known to
    /// be the source's.
    fn is_final(&self, v: usize, op: &FsOp, errno: Errno) -> bool {
        let object = match op {
            FsOp::Link { id, .. } => Some(*id),
            FsOp::Make { parent, .. }
            | FsOp::Tmpfile { parent, .. }
            | FsOp::Symlink { parent, .. }
            | FsOp::Unlink { parent, .. }
            | FsOp::Rmdir { parent, .. }
            | FsOp::Touch { parent, .. }
            | FsOp::Rename { parent, .. } => Some(*parent),
            _ => ops::inode_of(op),
        };
        let placed = object.and_then(|id| self.tables[v].node(id)).is_some_and(|n| n.placed);
        is_fatal(errno) || (placed && is_refusal(errno))
    }

    /// Takes away what only this side locks: the directories of `op` and what stands at its names, immutable or
    /// append-only here. They are asked for again. True: there was something.
    fn unlock_around(&mut self, v: usize, op: &FsOp) -> Result<bool, Failed> {
        let places: Vec<(FileId, &[u8])> = match op {
            FsOp::Make { parent, name, .. }
            | FsOp::Symlink { parent, name, .. }
            | FsOp::Unlink { parent, name, .. }
            | FsOp::Rmdir { parent, name, .. }
            | FsOp::Link { parent, name, .. } => vec![(*parent, name)],
            FsOp::Rename { parent, name, to_parent, to_name, .. } => {
                vec![(*parent, name), (*to_parent, to_name)]
            }
            _ => return Ok(false),
        };
        let table = &self.tables[v];
        let mut again = Vec::new();
        let mut any = false;
        for (parent, name) in places {
            let Ok(dir) = table.path(parent) else { continue };
            if flags::unlock(dir.as_fd()).map_err(at("unlock"))?.is_some() {
                (any, again) = (true, [again, vec![parent]].concat());
            }
            any |= unlock_at(dir.as_fd(), name)?;
        }
        if let FsOp::Link { id, .. } = op
            && let Ok(path) = table.path(*id)
            && flags::unlock(path.as_fd()).map_err(at("unlock"))?.is_some()
        {
            (any, again) = (true, [again, vec![*id]].concat());
        }
        if let FsOp::Rename { parent, to_parent, .. } = op
            && any
        {
            // Where the moved object is met again, with its flags.
            again.extend([*parent, *to_parent]);
        }
        self.redo(v, &again, false);
        Ok(any)
    }

    /// The id by which the source knows this object, unless it forgot it meanwhile.
    pub(super) fn owner(&self, v: usize, handle: &FileHandle) -> Option<FileId> {
        self.tables[v].id_of(handle).filter(|id| !self.forgotten.contains(&(v, *id)))
    }

    /// From here on `id` is this object, for which no id that the source knows stands. True: its place
    /// was confirmed before, under an id that the source forgot.
    pub(super) fn adopt(&mut self, v: usize, id: FileId, handle: FileHandle, placed: bool) -> bool {
        let old = self.tables[v].id_of(&handle);
        let was = old.and_then(|old| self.tables[v].node(old)).is_some_and(|n| n.placed && !n.unlinked);
        if let (Some(old), Some(q)) = (old, self.quarantine(v)) {
            q.renamed(old, id);
        }
        self.tables[v].bind(id, handle, placed);
        was
    }

    fn is_exact(&self, v: usize, dir: FileId) -> bool {
        self.tables[v].node(dir).is_some_and(|n| n.exact)
    }

    /// What the name means here, if it can be what the source means by it: two ids are two objects there,
    /// so a hard link that only this side has must not lend one object's content to the other. (In an exact
    /// directory it is the same object: that its former id was forgotten has yet to be said.)
    fn bind_live(&mut self, v: usize, id: FileId, parent: FileId, name: &[u8]) -> Result<(), Failed> {
        let table = &self.tables[v];
        let found = table.path(parent).and_then(|dir| table.tree.backing.handle_at(dir.as_fd(), name));
        match found {
            Ok(handle)
                if self.is_exact(v, parent) || self.owner(v, &handle).is_none_or(|owner| owner == id) =>
            {
                self.adopt(v, id, handle, false);
            }
            Err(errno) if is_fatal(errno) => return Err((errno, "bind")),
            Ok(_) | Err(_) => {
                self.tables[v].unbind(id);
                self.redo(v, &[id, parent], true);
            }
        }
        Ok(())
    }

    fn redo_inode(&mut self, v: usize, id: FileId) {
        let unlinked = self.tables[v].node(id).is_some_and(|n| n.unlinked);
        if !unlinked {
            self.redo(v, &[id], true);
        }
    }

    /// Makes room at (parent, name) and tries once more; else asks for `ids`. True: it is done.
    fn again(
        &mut self,
        v: usize,
        op: &FsOp,
        bulk: &[u8],
        parent: FileId,
        name: &[u8],
        ids: &[FileId],
    ) -> Result<bool, Failed> {
        self.displace_at(v, parent, name)?;
        match self.tables[v].apply(op, bulk) {
            Ok(()) => Ok(true),
            Err(failed) if self.is_final(v, op, failed.0) => Err(failed),
            Err(_) => {
                self.redo(v, ids, true);
                Ok(false)
            }
        }
    }

    /// The objects that a rename or link will put somewhere, before it does.
    fn moved_objects(&self, v: usize, op: &FsOp) -> Vec<Moved> {
        let table = &self.tables[v];
        let look = |dir: FileId, name: &[u8], to: FileId| {
            let path = table.path(dir).ok();
            let found = path.and_then(|path| table.tree.backing.lookup(path.as_fd(), name).ok());
            // One of several names may be one that only this side has, and so may the one that is left.
            let only_name = |(handle, stat): &(FileHandle, Stat)| {
                let node = table.id_of(handle).and_then(|id| table.node(id));
                stat.is_dir() || (stat.nlink == 1 && !node.is_some_and(|n| n.unlinked))
            };
            Moved {
                to,
                certain: self.is_exact(v, dir) || found.as_ref().is_some_and(only_name),
                handle: found.map(|(handle, _)| handle),
            }
        };
        match op {
            FsOp::Rename { parent, name, to_parent, to_name, flags, .. } => {
                let (moved, other) = (look(*parent, name, *to_parent), look(*to_parent, to_name, *parent));
                let same = moved.handle.is_some() && moved.handle == other.handle;
                // Two names of one object here: rename(2) does nothing, and both stay.
                if flags & RENAME_EXCHANGE != 0 || same { vec![moved, other] } else { vec![moved] }
            }
            // Found by its id, not by a name.
            FsOp::Link { id, parent, .. } => {
                vec![Moved { to: *parent, handle: table.node(*id).map(|n| n.handle), certain: true }]
            }
            _ => Vec::new(),
        }
    }

    /// An object whose place was never confirmed may not be what the source means: where it went must
    /// be looked at again, because the place it came from will not show it any more.
    fn after(&mut self, v: usize, op: &FsOp, moved: &[Moved]) {
        if let FsOp::Make { id, .. } | FsOp::Symlink { id, .. } | FsOp::Tmpfile { id, .. } = op
            && let Some(q) = self.quarantine(v)
        {
            q.born(*id);
        }
        if let FsOp::Make { id, attr, .. } = op
            && attr.mode & libc::S_IFMT == libc::S_IFDIR
            && let Some(node) = self.tables[v].node_mut(*id)
        {
            node.exact = true;
        }
        for Moved { to, handle, certain } in moved {
            let table = &self.tables[v];
            let node = handle.and_then(|h| table.id_of(&h)).and_then(|id| table.node(id));
            if !(*certain && node.is_some_and(|n| n.placed)) {
                self.redo(v, &[*to], false);
            }
        }
    }

    /// Moves to quarantine the file that `op` is about to destroy, if only this side has it. A file with
    /// more names only loses one. True: it was moved.
    fn keep_victim(&mut self, v: usize, op: &FsOp, moved: &[Moved]) -> bool {
        let (parent, name) = match op {
            FsOp::Unlink { parent, name, .. } => (parent, name),
            FsOp::Rename { to_parent, to_name, flags, .. } if flags & RENAME_EXCHANGE == 0 => {
                (to_parent, to_name)
            }
            _ => return false,
        };
        let Self { tables, quarantines, .. } = self;
        let (Some(q), Some(table)) = (quarantines.get_mut(v), tables.get_mut(v)) else { return false };
        let Ok(dir) = table.path(*parent) else { return false };
        let Ok((handle, stat)) = table.tree.backing.lookup(dir.as_fd(), name) else { return false };
        // What is not locked can be moved away; the directory is asked for again anyway if it was.
        if flags::is_locked(&stat) {
            let _ = unlock_at(dir.as_fd(), name);
        }
        if stat.is_dir() || stat.nlink > 1 || moved.iter().any(|m| m.handle == Some(handle)) {
            return false;
        }
        let id = table.id_of(&handle);
        let placed = id.and_then(|id| table.node(id)).is_some_and(|n| n.placed);
        if !q.is_own(id, &stat, placed) || !q.keep_object(dir.as_fd(), name) {
            return false;
        }
        // Its users on the source may go on writing to it: not into what is kept.
        id.inspect(|id| table.moved_away(*id));
        true
    }

    /// Keeps the bytes that a live operation is about to destroy, if they were never the source's.
    fn keep_overwritten(&mut self, v: usize, op: &FsOp, len: u64) -> Result<(), Failed> {
        let (id, from, length) = match op {
            FsOp::Write { id, offset, .. } => (*id, *offset, len),
            FsOp::SetAttr { id, size: Some(size), .. } => (*id, *size, u64::MAX),
            FsOp::Fallocate { id, mode, offset, length, .. } if *mode & !1 != 0 => {
                // Everything but plain allocation; collapse and insert move the rest of the file.
                (*id, *offset, if mode & 0x28 != 0 { u64::MAX } else { *length })
            }
            _ => return Ok(()),
        };
        let Self { tables, quarantines, pulse, .. } = self;
        match (quarantines.get_mut(v), tables[v].data(id)) {
            (Some(q), Ok(fd)) => q.keep_range(id, fd.as_fd(), from, length, pulse),
            _ => Ok(()),
        }
    }

    /// Removes what stands at (parent, name), if anything does.
    pub(super) fn displace_at(&mut self, v: usize, parent: FileId, name: &[u8]) -> Result<(), Failed> {
        match self.tables[v].path(parent) {
            Ok(dir) => {
                if flags::unlock(dir.as_fd()).map_err(at("unlock"))?.is_some() {
                    self.redo(v, &[parent], false);
                }
                self.displace(v, dir.as_fd(), name)
            }
            // An unknown parent has nothing in it.
            Err(_) => Ok(()),
        }
    }

    /// Moves `name` into quarantine or removes it with everything below; ids in it mean nothing any more.
    pub(super) fn displace(&mut self, v: usize, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failed> {
        let (handle, stat) = match self.tables[v].tree.backing.lookup(dir, name) {
            Ok(found) => found,
            Err(Errno(libc::ENOENT | libc::ENOTDIR | libc::ESTALE)) => return Ok(()),
            Err(errno) => return Err((errno, "look up the displaced")),
        };
        if flags::is_locked(&stat) {
            unlock_at(dir, name)?;
        }
        // Another name still holds the content; it is kept block by block if that one changes.
        if !stat.is_dir() && stat.nlink > 1 {
            return file::unlink(dir, name).map_err(at("unlink the displaced"));
        }
        if let Some(id) = self.tables[v].id_of(&handle) {
            self.tables[v].unbind(id);
        }
        if stat.is_dir() && (self.tables[v].len() > 1 || self.quarantines.get_mut(v).is_some()) {
            let inner = file::open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
                .map_err(at("open the displaced"))?;
            unbind_below(&mut self.tables[v], inner.as_fd(), 0, &mut self.pulse)?;
        }
        if self.quarantines.get_mut(v).is_some_and(|q| q.keep_object(dir, name)) {
            return Ok(());
        }
        remove(dir, name, stat.is_dir(), 0, &mut self.pulse)
    }
}

pub(super) fn names_in(dir: BorrowedFd<'_>, pulse: &mut Pulse) -> Result<Vec<(Vec<u8>, u8)>, Failed> {
    let mut raw = vec![0; 64 << 10];
    let mut out = Vec::new();
    loop {
        pulse.beat()?;
        let len = file::read_dir(dir, &mut raw, None).map_err(at("list the displaced"))?;
        if len == 0 {
            return Ok(out);
        }
        let real = Entries::new(&raw[..len]).filter(|e| !matches!(e.name, b"." | b".."));
        out.extend(real.map(|e| (e.name.to_vec(), e.kind)));
    }
}

pub(super) fn is_dir(dir: BorrowedFd<'_>, name: &[u8], kind: u8) -> bool {
    kind == libc::DT_DIR || (kind == libc::DT_UNKNOWN && file::stat_at(dir, name).is_ok_and(|s| s.is_dir()))
}

fn too_deep(depth: usize) -> Result<(), Failed> {
    if depth > DEPTH_MAX { Err((Errno(libc::ELOOP), "a displaced directory is too deep")) } else { Ok(()) }
}

fn unbind_below(
    table: &mut Table,
    dir: BorrowedFd<'_>,
    depth: usize,
    pulse: &mut Pulse,
) -> Result<(), Failed> {
    too_deep(depth)?;
    for (name, kind) in names_in(dir, pulse)? {
        pulse.beat()?;
        let Ok(handle) = table.tree.backing.handle_at(dir, &name) else { continue };
        if file::stat_at(dir, &name).is_ok_and(|s| !s.is_dir() && s.nlink > 1) {
            // A file with another name stays what it is there, and has none in quarantine, where writes to it
            // would be seen and its count of links be felt. In a directory that is locked the name stays.
            let _ = file::unlink(dir, &name);
            continue;
        }
        if let Some(id) = table.id_of(&handle) {
            table.unbind(id);
        }
        if is_dir(dir, &name, kind) {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let inner = file::open_at(dir, &name, flags, 0).map_err(at("open the displaced"))?;
            unbind_below(table, inner.as_fd(), depth + 1, pulse)?;
        }
    }
    Ok(())
}

/// Takes immutable and append-only from what stands there. True: it was.
fn unlock_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Failed> {
    let found = match file::open_at(dir, name, libc::O_PATH, 0) {
        Ok(fd) => fd,
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => return Ok(false),
        Err(errno) => return Err((errno, "open the locked")),
    };
    Ok(flags::unlock(found.as_fd()).map_err(at("unlock"))?.is_some())
}

/// rm -r.
pub(super) fn remove(
    dir: BorrowedFd<'_>,
    name: &[u8],
    directory: bool,
    depth: usize,
    pulse: &mut Pulse,
) -> Result<(), Failed> {
    too_deep(depth)?;
    pulse.beat()?;
    if !directory {
        return match file::unlink(dir, name) {
            Err(Errno(libc::EPERM)) if unlock_at(dir, name)? => file::unlink(dir, name),
            other => other,
        }
        .map_err(at("unlink the displaced"));
    }
    unlock_at(dir, name)?;
    {
        let inner = file::open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
            .map_err(at("open the displaced"))?;
        for (name, kind) in names_in(inner.as_fd(), pulse)? {
            let directory = is_dir(inner.as_fd(), &name, kind);
            remove(inner.as_fd(), &name, directory, depth + 1, pulse)?;
        }
    }
    file::unlink_dir(dir, name).map_err(at("rmdir the displaced"))
}

/// The name of the failed operation and step.
pub(super) fn describe(op: &FsOp, step: &str) -> String {
    let inode = ops::inode_of(op).map(|id| format!(" of object {}", id.0)).unwrap_or_default();
    format!("{}{inode}: {step}", ops::name_of(op))
}
