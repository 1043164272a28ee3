//! The target's side of the ordered resync: make it so, answer what is missing.

use super::apply::{Apply, End, protocol};
use super::lenient::{is_dir, names_in};
use super::ops::{self, Failed, at};
use super::pulse::Pulse;
use super::table::Table;
use crate::ports::Errno;
use crate::proto::fsop::Xattr;
use crate::proto::stream::{BLOCK, DIGEST, Entry, EntryKind, Reply, Resync, SPAN};
use crate::proto::{Attr, FileId};
use crate::replica::local;
use crate::replica::pump::digests;
use crate::sys::file::{self, Stat, flags};
use crate::tree::is_hidden;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (linux/falloc.h).
const PUNCH: u32 = 3;
/// Entries of one directory: what a source with this much memory could list at all.
const ENTRIES_MAX: usize = 32 << 20;
/// Collected bytes of one object's xattrs.
const XATTRS_MAX: usize = 64 << 20;

fn mode_of(kind: &EntryKind) -> (u32, u64) {
    match kind {
        EntryKind::File => (libc::S_IFREG, 0),
        EntryKind::Dir => (libc::S_IFDIR, 0),
        EntryKind::Symlink(_) => (libc::S_IFLNK, 0),
        EntryKind::Fifo => (libc::S_IFIFO, 0),
        EntryKind::Socket => (libc::S_IFSOCK, 0),
        EntryKind::Char(rdev) => (libc::S_IFCHR, *rdev),
        EntryKind::Block(rdev) => (libc::S_IFBLK, *rdev),
    }
}

/// Could this object (O_PATH) be the entry's without being replaced?
fn same_kind(path: BorrowedFd<'_>, kind: &EntryKind, own: &Stat) -> bool {
    let (mode, rdev) = mode_of(kind);
    if own.kind() != mode {
        return false;
    }
    match kind {
        EntryKind::Symlink(target) => file::read_link(path).is_ok_and(|own| own == *target),
        EntryKind::Char(_) | EntryKind::Block(_) => own.rdev == rdev,
        _ => true,
    }
}

/// The id is not (or not as this type) here.
const fn is_lost(errno: Errno) -> bool {
    matches!(errno.0, libc::ESTALE | libc::ENOENT | libc::EISDIR | libc::ENOTDIR | libc::EINVAL)
}

impl Apply {
    /// The outer error is the peer's, the inner one this machine's.
    pub(super) fn resync_step(&mut self, step: Resync, bulk: &[u8]) -> Result<Result<(), Failed>, End> {
        if !matches!(step, Resync::Dir { .. }) && self.dir_parts.is_some() {
            return Err(protocol("a directory was not finished"));
        }
        Ok(match step {
            Resync::Dir { volume, id, entries, end } => {
                let v = self.table_index(volume)?;
                let mut parts = self.dir_parts.take().unwrap_or((v, id, Vec::new()));
                if (parts.0, parts.1) != (v, id) || parts.2.len() + entries.len() > ENTRIES_MAX {
                    return Err(protocol("parts of two directories are mixed, or too many entries"));
                }
                parts.2.extend(entries);
                if let Some((attr, xattrs)) = end {
                    self.directory(v, id, &parts.2, &attr, &xattrs)
                } else {
                    self.dir_parts = Some(parts);
                    Ok(())
                }
            }
            Resync::Hash { volume, id, offset, length, holes, digests } => {
                let blocks = length.div_ceil(BLOCK) as usize;
                if length > SPAN || offset.checked_add(length).is_none() || digests.len() != blocks * DIGEST {
                    return Err(protocol(format!(
                        "hash of {length} bytes with {} digest bytes",
                        digests.len()
                    )));
                }
                let v = self.table_index(volume)?;
                let result = self.compare(v, id, offset, length, &holes, &digests);
                self.or_lost(v, id, result)
            }
            Resync::Fill { volume, id, offset } => {
                let v = self.table_index(volume)?;
                let result = self.fill(v, id, offset, bulk);
                self.or_lost(v, id, result)
            }
            Resync::Hole { volume, id, offset, length } => {
                let v = self.table_index(volume)?;
                let result = self.hole(v, id, offset, length);
                self.or_lost(v, id, result)
            }
            Resync::Meta { volume, id, attr, xattrs, more } => {
                let v = self.table_index(volume)?;
                let mut parts = self.xattr_parts.take().unwrap_or((v, id, Vec::new()));
                parts.2.extend(xattrs);
                let bytes: usize = parts.2.iter().map(|(n, x)| n.len() + x.len()).sum();
                if (parts.0, parts.1) != (v, id) || bytes > XATTRS_MAX {
                    return Err(protocol("xattrs of two objects are mixed, or too many"));
                }
                if more {
                    self.xattr_parts = Some(parts);
                    return Ok(Ok(()));
                }
                let result = self.meta(v, id, &attr, &parts.2);
                self.or_lost(v, id, result)
            }
            Resync::End => {
                self.end()?;
                Ok(())
            }
        })
    }

    /// An object that is not here is asked for, unless it lost its name by the stream itself (then the
    /// step is about a file that only open descriptors of the source hold); other errors are ours.
    fn or_lost(&mut self, v: usize, id: FileId, result: Result<(), Failed>) -> Result<(), Failed> {
        match result {
            Err((errno, _)) if is_lost(errno) && self.tables[v].node(id).is_some_and(|n| n.unlinked) => {
                Ok(())
            }
            Err((errno, _)) if is_lost(errno) => {
                self.redo(v, &[id], true);
                Ok(())
            }
            other => other,
        }
    }

    fn directory(
        &mut self,
        v: usize,
        id: FileId,
        entries: &[Entry],
        attr: &Attr,
        xattrs: &[Xattr],
    ) -> Result<(), Failed> {
        let dir = match self.open_dir(v, id) {
            Ok(dir) => dir,
            Err(errno) if is_lost(errno) => {
                self.redo(v, &[id], true);
                return Ok(());
            }
            Err(errno) => return Err((errno, "open directory")),
        };
        // Its flags come with its attributes, at the end.
        flags::unlock(dir.as_fd()).map_err(at("unlock"))?;
        let wanted: HashSet<&[u8]> = entries.iter().map(|e| &e.name[..]).collect();
        let tree = Arc::clone(&self.tables[v].tree);
        let local = tree.local_names(dir.as_fd()).map_err(at("find the directory's place"))?;
        for (name, kind) in names_in(dir.as_fd(), &mut self.pulse)? {
            self.pulse.beat()?;
            let wanted = wanted.contains(&name[..]) || is_hidden(id, &name);
            if !wanted && (local.is_nothing() || !local.has(&name, is_dir(dir.as_fd(), &name, kind))) {
                self.displace(v, dir.as_fd(), &name)?;
            }
        }
        let mut fresh = Vec::new();
        for entry in entries {
            if is_hidden(id, &entry.name) {
                continue;
            }
            self.pulse.beat()?;
            if self.place(v, dir.as_fd(), entry)? {
                fresh.push(entry.id);
            }
        }
        ops::set_attr(dir.as_fd(), attr, xattrs)?;
        if let Some(node) = self.tables[v].node_mut(id) {
            node.exact = true;
        }
        if !fresh.is_empty() {
            self.redo(v, &fresh, false);
        }
        Ok(())
    }

    fn open_dir(&self, v: usize, id: FileId) -> Result<std::os::fd::OwnedFd, Errno> {
        let path = self.tables[v].path(id)?;
        file::open_dir(path.as_fd())
    }

    /// Makes `entry` the object its id means. True: its content here is not known to be the source's.
    fn place(&mut self, v: usize, dir: BorrowedFd<'_>, entry: &Entry) -> Result<bool, Failed> {
        let table = &mut self.tables[v];
        // By descriptor, so that handle and attributes belong together.
        let own = match file::open_at(dir, &entry.name, libc::O_PATH, 0) {
            Ok(fd) => {
                let handle = table.tree.backing.handle_of(fd.as_fd()).map_err(at("handle"))?;
                let stat = file::stat(fd.as_fd()).map_err(at("stat"))?;
                Some((handle, same_kind(fd.as_fd(), &entry.kind, &stat)))
            }
            Err(Errno(libc::ENOENT)) => None,
            Err(errno) => return Err((errno, "look up")),
        };
        let node = table.node(entry.id).copied();
        if let (Some((handle, true)), Some(node)) = (&own, node)
            && node.handle == *handle
            && !node.gone
        {
            let was = node.placed;
            if let Some(node) = table.node_mut(entry.id) {
                node.placed = true;
                node.unlinked = false;
            }
            return Ok(!was);
        }
        // Known as another object of the same type: this name is one more link to it.
        if let Some(node) = node
            && entry.kind != EntryKind::Dir
            && let Ok(path) = table.path(entry.id)
            && file::stat(path.as_fd()).is_ok_and(|s| s.nlink > 0 && same_kind(path.as_fd(), &entry.kind, &s))
        {
            self.displace(v, dir, &entry.name)?;
            let unlocked = flags::unlock(path.as_fd()).map_err(at("unlock"))?.is_some();
            match file::link_at(path.as_fd(), dir, &entry.name) {
                Ok(()) => {
                    if let Some(node) = self.tables[v].node_mut(entry.id) {
                        node.placed = true;
                        node.unlinked = false;
                    }
                    return Ok(!node.placed || unlocked);
                }
                Err(errno @ Errno(libc::ENOENT | libc::ESTALE)) => {
                    tracing::debug!(id = entry.id.0, errno = errno.0, "the linked object is gone");
                }
                Err(errno) => return Err((errno, "link")),
            }
        }
        self.tables[v].unbind(entry.id);
        if let Some((handle, true)) = own
            && self.owner(v, &handle).is_none()
            && self.tables[v].tree.backing.handle_at(dir, &entry.name).is_ok_and(|h| h == handle)
        {
            return Ok(!self.adopt(v, entry.id, handle, true));
        }
        self.displace(v, dir, &entry.name)?;
        self.create(v, dir, entry)?;
        Ok(true)
    }

    fn create(&mut self, v: usize, dir: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failed> {
        let table: &mut Table = &mut self.tables[v];
        if let EntryKind::Symlink(target) = &entry.kind {
            file::make_symlink(dir, &entry.name, target).map_err(at("symlink"))?;
        } else {
            let (kind, rdev) = mode_of(&entry.kind);
            let attr = Attr { mode: kind | 0o600, rdev, ..Attr::default() };
            let fd = ops::make(dir, &entry.name, &attr).map_err(at("create"))?;
            if let Some(fd) = fd {
                let handle = table.tree.backing.handle_of(fd.as_fd()).map_err(at("handle"))?;
                table.bind(entry.id, handle, true);
                table.remember(entry.id, &Arc::new(fd));
            }
        }
        let handle = table.tree.backing.handle_at(dir, &entry.name).map_err(at("handle"))?;
        table.bind(entry.id, handle, true);
        if let Some(q) = self.quarantine(v) {
            q.born(entry.id);
        }
        Ok(())
    }

    fn compare(
        &mut self,
        v: usize,
        id: FileId,
        offset: u64,
        length: u64,
        holes: &[(u64, u64)],
        theirs: &[u8],
    ) -> Result<(), Failed> {
        let fd = self.tables[v].data(id).map_err(at("open"))?;
        let fd = fd.as_fd();
        let end = offset + length;
        if self.tables[v].tree.is_cache_distrusted() {
            file::drop_cache(fd, offset, length.next_multiple_of(BLOCK)).map_err(at("drop the cache"))?;
        }
        let own = file::stat(fd).map_err(at("stat"))?;
        Self::unlock_file(fd, &own)?;
        let size = own.size;
        let data = local::data_ranges(fd, offset, end.min(size)).map_err(at("holes"))?;
        let mut bytes = vec![0; length as usize];
        for &(start, stop) in &data {
            let part = &mut bytes[(start - offset) as usize..(stop - offset) as usize];
            local::read_full(fd, part, start).map_err(at("read"))?;
        }
        let own_holes = local::gaps(&data, offset, end);
        // Digests of what reads here, holes of theirs as they would be sent.
        let ours = digests(&bytes, offset, holes);
        let mut want: Vec<(u64, u64)> = Vec::new();
        for (n, (our, their)) in ours.chunks(DIGEST).zip(theirs.chunks(DIGEST)).enumerate() {
            let from = offset + n as u64 * BLOCK;
            // The peer's offsets may be any.
            let to = from.saturating_add(BLOCK).min(end);
            let hole = *their == [0; DIGEST];
            if hole {
                self.punch(v, id, fd, from, to, &data, size)?;
                continue;
            }
            let short = to > size;
            let their_data = local::gaps(holes, from, to);
            // Data of theirs where we have a hole: equal bytes, but the allocation differs.
            let unallocated = their_data.iter().any(|&(a, b)| own_holes.iter().any(|&(c, d)| a < d && c < b));
            if our != their || short || unallocated {
                match want.last_mut() {
                    Some(last) if last.0 + last.1 == from => last.1 += to - from,
                    _ => want.push((from, to - from)),
                }
                continue;
            }
            for &(a, b) in holes {
                let (a, b) = (a.max(from), b.min(to));
                if a < b {
                    self.punch(v, id, fd, a, b, &data, size)?;
                }
            }
            // A last block of theirs says nothing about bytes of ours behind it.
            if let Some(q) = self.quarantines.get_mut(v).filter(|_| to - from == BLOCK || to >= size) {
                q.settle(id, from);
            }
        }
        if !want.is_empty() {
            self.asked = true;
            let volume = self.tables[v].volume();
            self.reply(&Reply::Want { volume, id, ranges: want });
        }
        Ok(())
    }

    /// Makes [from, to) a hole as far as it is within the file and holds data.
    #[allow(clippy::too_many_arguments)] // one call, three callers, all of it is at hand there
    fn punch(
        &mut self,
        v: usize,
        id: FileId,
        fd: BorrowedFd<'_>,
        from: u64,
        to: u64,
        data: &[(u64, u64)],
        size: u64,
    ) -> Result<(), Failed> {
        for &(a, b) in data {
            let (a, b) = (a.max(from), b.min(to));
            if a >= b {
                continue;
            }
            if let Some(q) = self.quarantines.get_mut(v) {
                q.keep_range(id, fd, a, b - a, &mut self.pulse)?;
            }
            // A last block that is only partly covered would stay allocated.
            let past = if b >= size { to.min(b.next_multiple_of(BLOCK)) } else { b };
            match file::fallocate(fd, PUNCH, a, past - a) {
                Ok(()) => {}
                Err(Errno(libc::EOPNOTSUPP)) => zero(fd, a, b, &mut self.pulse)?,
                Err(errno) => return Err((errno, "punch")),
            }
        }
        Ok(())
    }

    fn hole(&mut self, v: usize, id: FileId, offset: u64, length: u64) -> Result<(), Failed> {
        let fd = self.tables[v].data(id).map_err(at("open"))?;
        let own = file::stat(fd.as_fd()).map_err(at("stat"))?;
        Self::unlock_file(fd.as_fd(), &own)?;
        let size = own.size;
        let end = offset.saturating_add(length);
        let data = local::data_ranges(fd.as_fd(), offset, end.min(size)).map_err(at("holes"))?;
        self.punch(v, id, fd.as_fd(), offset, end, &data, size)
    }

    fn fill(&mut self, v: usize, id: FileId, offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        let fd = self.tables[v].data(id).map_err(at("open"))?;
        if let Some(q) = self.quarantines.get_mut(v) {
            q.keep_range(id, fd.as_fd(), offset, bytes.len() as u64, &mut self.pulse)?;
        }
        Self::unlock_file(fd.as_fd(), &file::stat(fd.as_fd()).map_err(at("stat"))?)?;
        local::write_full(fd.as_fd(), bytes, offset).map_err(at("write"))
    }

    /// The file's flags come with its attributes, when its bytes are done.
    fn unlock_file(fd: BorrowedFd<'_>, own: &Stat) -> Result<(), Failed> {
        if flags::is_locked(own) {
            flags::unlock(fd).map_err(at("unlock"))?;
        }
        Ok(())
    }

    fn meta(&mut self, v: usize, id: FileId, attr: &Attr, xattrs: &[Xattr]) -> Result<(), Failed> {
        let path = self.tables[v].path(id).map_err(at("open"))?;
        let own = file::stat(path.as_fd()).map_err(at("stat"))?;
        if own.kind() != attr.mode & libc::S_IFMT {
            return Err((Errno(libc::ESTALE), "another type"));
        }
        if own.is_file() && own.size != attr.size {
            let fd = self.tables[v].data(id).map_err(at("open"))?;
            if let Some(q) = self.quarantines.get_mut(v).filter(|_| attr.size < own.size) {
                q.keep_range(id, fd.as_fd(), attr.size, own.size - attr.size, &mut self.pulse)?;
            }
            Self::unlock_file(fd.as_fd(), &own)?;
            file::set_len(fd.as_fd(), attr.size).map_err(at("truncate"))?;
        }
        ops::set_attr(path.as_fd(), attr, xattrs)
    }

    /// The source has nothing more: make what we have durable, so that the sync at the marker is short.
    fn end(&mut self) -> Result<(), End> {
        self.report(true);
        // What was asked since the source looked must not be overtaken by the sync's answer, which
        // would tell the source that nothing is missing.
        self.flush(true)?;
        self.asked = false;
        let trees: Vec<_> = self.tables.iter().map(|t| Arc::clone(&t.tree)).collect();
        let (shared, writer) = (Arc::clone(&self.shared), Arc::clone(&self.writer));
        let (epoch, seq) = (self.epoch, self.seq);
        let id = shared.syncs.begin();
        self.shared.pool.run(Box::new(move || {
            let result = local::sync_trees(&trees);
            shared.sync_done(id, &writer, epoch, seq, result);
        }));
        Ok(())
    }
}

fn zero(fd: BorrowedFd<'_>, from: u64, to: u64, pulse: &mut Pulse) -> Result<(), Failed> {
    let zeros = vec![0; (to - from).min(BLOCK) as usize];
    let mut at_offset = from;
    while at_offset < to {
        pulse.beat()?;
        let n = (to - at_offset).min(zeros.len() as u64);
        local::write_full(fd, &zeros[..n as usize], at_offset).map_err(at("write zeros"))?;
        at_offset += n;
    }
    Ok(())
}
