//! One object at a time: directories, blocks, metadata, wanted bytes.

use super::{Cursor, Object, Pump, Stop, Want};
use crate::ports::Errno;
use crate::proto::Attr;
use crate::proto::fsop::Xattr;
use crate::proto::stream::{BLOCK, DIGEST, Entry, EntryKind, PART, Resync, SPAN};
use crate::replica::local;
use crate::sys::file::{self, Entries, Stat};
use crate::tree::{Tree, is_hidden};
use std::os::fd::{AsFd, BorrowedFd};

/// Encoded size of an entry besides its bytes (map, three numbers, lengths).
const ENTRY_EXTRA: usize = 48;

/// Runs `$body`, and where an errno says that the object is gone, ends the visit without an error.
macro_rules! gone_is_fine {
    ($object:expr, $what:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(errno) => return Pump::unreadable($object, $what, errno),
        }
    };
}

fn kind_of(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<EntryKind, Errno> {
    Ok(match stat.kind() {
        libc::S_IFREG => EntryKind::File,
        libc::S_IFDIR => EntryKind::Dir,
        libc::S_IFLNK => {
            let link = file::open_at(dir, name, libc::O_PATH, 0)?;
            EntryKind::Symlink(file::read_link(link.as_fd())?)
        }
        libc::S_IFIFO => EntryKind::Fifo,
        libc::S_IFSOCK => EntryKind::Socket,
        libc::S_IFCHR => EntryKind::Char(stat.rdev),
        libc::S_IFBLK => EntryKind::Block(stat.rdev),
        _ => return Err(Errno(libc::EOPNOTSUPP)),
    })
}

fn entry_size(entry: &Entry) -> usize {
    let target = if let EntryKind::Symlink(target) = &entry.kind { target.len() } else { 0 };
    entry.name.len() + target + ENTRY_EXTRA
}

/// Cuts `items` into parts of at most [`PART`] bytes; at least one part, maybe empty.
fn parts<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut out = vec![Vec::new()];
    let mut used = 0;
    for item in items {
        let bytes = size(&item);
        if used + bytes > PART && used > 0 {
            out.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(last) = out.last_mut() {
            last.push(item);
        }
    }
    out
}

impl Pump {
    /// Entries of a directory with pinned ids. Caller holds `ns` and the stripe.
    fn list(&mut self, tree: &Tree, object: Object) -> Result<Vec<(Entry, u64)>, Errno> {
        let fd = tree.open_dir(object.1)?;
        let mut raw = vec![0; 256 << 10];
        let mut out = Vec::new();
        loop {
            let len = file::read_dir(fd.as_fd(), &mut raw, None)?;
            if len == 0 {
                return Ok(out);
            }
            for found in Entries::new(&raw[..len]) {
                let name = found.name;
                if matches!(name, b"." | b"..") || is_hidden(object.1, name) {
                    continue;
                }
                let (handle, stat) = match tree.backing.lookup(fd.as_fd(), name) {
                    Ok(found) => found,
                    // Removed by somebody who bypasses the mount.
                    Err(Errno(libc::ENOENT)) => continue,
                    Err(errno) => return Err(errno),
                };
                if tree.inodes.is_local_name(object.1, name, stat.is_dir()) {
                    continue;
                }
                let kind = kind_of(fd.as_fd(), name, &stat)?;
                let id = tree.inodes.get_or_insert(handle, object.1, name, stat.is_dir());
                self.pins.push((object.0, id));
                out.push((Entry { name: name.to_vec(), id, kind }, stat.size));
            }
        }
    }

    pub(super) fn directory(&mut self, object: Object) -> Result<(), Stop> {
        let Some(tree) = self.inner.tree(object.0).cloned() else { return Ok(()) };
        let _ns = tree.ns_shared();
        let _stripe = tree.stripe(object.1);
        self.seen(object, self.last);
        if gone_is_fine!(object, "attributes", tree.stat(object.1)).nlink == 0 {
            return Ok(());
        }
        let listed = gone_is_fine!(object, "listing", self.list(&tree, object));
        let path = gone_is_fine!(object, "opening", tree.open_path(object.1));
        let stat = gone_is_fine!(object, "attributes", file::stat(path.as_fd()));
        let xattrs = gone_is_fine!(object, "xattrs", local::xattrs_of(path.as_fd()));
        let attr = gone_is_fine!(object, "flags", local::attr_of(path.as_fd(), &stat));
        let mut children = Vec::with_capacity(listed.len());
        let mut entries = Vec::with_capacity(listed.len());
        for (entry, size) in listed {
            children.push((entry.id, entry.kind.clone(), size));
            entries.push(entry);
        }
        let small = xattrs.iter().map(xattr_size).sum::<usize>() <= PART;
        let mut parts = parts(entries, entry_size).into_iter().peekable();
        let mut first = None;
        while let Some(entries) = parts.next() {
            let binds: Vec<Object> = entries.iter().map(|e| (object.0, e.id)).collect();
            let end = parts.peek().is_none().then(|| (attr, if small { xattrs.clone() } else { Vec::new() }));
            let step = Resync::Dir { volume: object.0, id: object.1, entries, end };
            let seq = self.send(&step, &[], &binds, 0)?;
            first.get_or_insert(seq);
        }
        if !small {
            self.meta_parts(object, attr, xattrs)?;
        }
        if let Some(seq) = first {
            self.seen(object, seq);
        }
        self.progress.dirs_done += 1;
        for (id, kind, size) in children {
            let child = (object.0, id);
            let mark = self.marks.entry(child).or_default();
            if mark.seen > 0 || mark.queued {
                continue;
            }
            if kind == EntryKind::File {
                self.progress.files_total += 1;
                self.progress.bytes_total += size;
            }
            self.queue(child, kind == EntryKind::Dir);
        }
        Ok(())
    }

    /// Starts on an object that is not a directory.
    pub(super) fn visit(&mut self, object: Object) -> Result<(), Stop> {
        let Some(tree) = self.inner.tree(object.0).cloned() else { return Ok(()) };
        self.marks.entry(object).or_default().queued = false;
        let stat = gone_is_fine!(object, "attributes", tree.stat(object.1));
        // Unlinked while an application has it open: the target has no name for it any more, and what
        // is in it will never be seen there.
        if stat.nlink == 0 {
            return Ok(());
        }
        if stat.is_file() {
            let flags = libc::O_RDONLY | libc::O_NOATIME;
            let fd = gone_is_fine!(object, "opening", tree.open(object.1, flags));
            return self.compare(Cursor { object, fd, offset: 0, started: false });
        }
        let _ns = tree.ns_shared();
        let _stripe = tree.stripe(object.1);
        self.seen(object, self.last + 1);
        self.meta(&tree, object)
    }

    /// Sends the digests of one span, and at the end of the file its metadata.
    pub(super) fn compare(&mut self, mut cursor: Cursor) -> Result<(), Stop> {
        let object = cursor.object;
        let Some(tree) = self.inner.tree(object.0).cloned() else { return Ok(()) };
        let _ns = tree.ns_shared();
        let _stripe = tree.stripe(object.1);
        let fd = cursor.fd.as_fd();
        let stat = gone_is_fine!(object, "size", file::stat(fd));
        if stat.nlink == 0 {
            return Ok(());
        }
        let size = stat.size;
        let from = cursor.offset;
        let mut sent = None;
        if from < size {
            let data = gone_is_fine!(object, "holes", local::data_ranges(fd, from, size.min(from + SPAN)));
            let next = if data.is_empty() {
                // A long hole is one step.
                match file::seek_data(fd, from) {
                    Ok(at) if at < size => at - at % BLOCK,
                    Ok(_) | Err(Errno(libc::ENXIO)) => size,
                    Err(errno) => return Self::unreadable(object, "holes", errno),
                }
            } else {
                from
            };
            if next > from {
                sent = Some(self.send_hole(object, from, next, size)?);
                cursor.offset = next;
            } else {
                let to = size.min(from + SPAN);
                let step = gone_is_fine!(object, "reading", self.hash(fd, object, &data, from, to));
                sent = Some(self.send(&step, &[], &[], (to - from) as usize)?);
                // Blocks that the end of the file cuts look alike whether allocated or not.
                if let Some(&(start, end)) = local::gaps(&data, from, to).last().filter(|h| h.1 == size) {
                    self.send_hole(object, start, end, size)?;
                }
                cursor.offset = to;
                self.spent += to - from;
            }
            self.progress.bytes_compared += cursor.offset - from;
        }
        if !cursor.started {
            cursor.started = true;
            self.seen(object, sent.unwrap_or(self.last + 1));
        }
        if cursor.offset < size {
            self.cursor = Some(cursor);
            return Ok(());
        }
        self.progress.files_done += 1;
        self.meta(&tree, object)
    }

    /// A hole at the end of the file reaches as far as its last block: a longer file on the target
    /// would keep that block allocated when it is cut.
    fn send_hole(&mut self, object: Object, from: u64, to: u64, size: u64) -> Result<u64, Stop> {
        let to = if to >= size { to.next_multiple_of(BLOCK) } else { to };
        let step = Resync::Hole { volume: object.0, id: object.1, offset: from, length: to - from };
        self.send(&step, &[], &[], 0)
    }

    fn hash(
        &mut self,
        fd: BorrowedFd<'_>,
        object: Object,
        data: &[(u64, u64)],
        from: u64,
        to: u64,
    ) -> Result<Resync, Errno> {
        self.buf.clear();
        self.buf.resize((to - from) as usize, 0);
        for &(start, end) in data {
            let part = &mut self.buf[(start - from) as usize..(end.min(to) - from) as usize];
            local::read_full(fd, part, start)?;
        }
        let holes = local::gaps(data, from, to);
        let digests = digests(&self.buf, from, &holes);
        Ok(Resync::Hash { volume: object.0, id: object.1, offset: from, length: to - from, holes, digests })
    }

    /// Sends one piece of what the target wants; the last piece is followed by the metadata, whose
    /// times the writing changed.
    pub(super) fn serve(&mut self, mut want: Want) -> Result<(), Stop> {
        let object = (want.volume, want.id);
        let Some(tree) = self.inner.tree(object.0).cloned() else { return Ok(()) };
        let Some((offset, length)) = want.ranges.pop_front() else { return Ok(()) };
        let _ns = tree.ns_shared();
        let _stripe = tree.stripe(object.1);
        let fd = gone_is_fine!(object, "opening", tree.open(object.1, libc::O_RDONLY | libc::O_NOATIME));
        let stat = gone_is_fine!(object, "size", file::stat(fd.as_fd()));
        if stat.nlink == 0 {
            return Ok(());
        }
        let size = stat.size;
        let to = offset.saturating_add(length.min(SPAN)).min(size);
        if length > SPAN {
            want.ranges.push_front((offset.saturating_add(SPAN), length - SPAN));
        }
        if offset < to {
            let data = gone_is_fine!(object, "holes", local::data_ranges(fd.as_fd(), offset, to));
            for (start, end) in local::gaps(&data, offset, to) {
                self.send_hole(object, start, end, size)?;
            }
            for (start, end) in data {
                let mut bytes = std::mem::take(&mut self.buf);
                bytes.clear();
                bytes.resize((end - start) as usize, 0);
                let read = local::read_full(fd.as_fd(), &mut bytes, start);
                if let Err(errno) = read {
                    return Self::unreadable(object, "reading", errno);
                }
                let step = Resync::Fill { volume: object.0, id: object.1, offset: start };
                let result = self.send(&step, &bytes, &[], 0);
                self.buf = bytes;
                result?;
                self.progress.bytes_sent += end - start;
                self.spent += end - start;
            }
        }
        if want.ranges.is_empty() {
            return self.meta(&tree, object);
        }
        self.wants.push_front(want);
        Ok(())
    }

    /// Attributes and xattrs. Caller holds `ns` and the stripe.
    fn meta(&mut self, tree: &Tree, object: Object) -> Result<(), Stop> {
        let path = gone_is_fine!(object, "opening", tree.open_path(object.1));
        let stat = gone_is_fine!(object, "attributes", file::stat(path.as_fd()));
        let xattrs = gone_is_fine!(object, "xattrs", local::xattrs_of(path.as_fd()));
        let attr = gone_is_fine!(object, "flags", local::attr_of(path.as_fd(), &stat));
        self.meta_parts(object, attr, xattrs)
    }

    fn meta_parts(&mut self, object: Object, attr: Attr, xattrs: Vec<Xattr>) -> Result<(), Stop> {
        let mut parts = parts(xattrs, xattr_size).into_iter().peekable();
        while let Some(xattrs) = parts.next() {
            let more = parts.peek().is_some();
            self.send(&Resync::Meta { volume: object.0, id: object.1, attr, xattrs, more }, &[], &[], 0)?;
        }
        Ok(())
    }
}

fn xattr_size(xattr: &Xattr) -> usize {
    xattr.0.len() + xattr.1.len() + ENTRY_EXTRA
}

/// BLAKE3 of every block of `bytes`, which start at `from`; zeros for blocks wholly in a hole.
pub fn digests(bytes: &[u8], from: u64, holes: &[(u64, u64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(BLOCK as usize) * DIGEST);
    let mut at = from;
    for block in bytes.chunks(BLOCK as usize) {
        let end = at + block.len() as u64;
        if holes.iter().any(|&(a, b)| a <= at && end <= b) {
            out.extend_from_slice(&[0; DIGEST]);
        } else {
            out.extend_from_slice(blake3::hash(block).as_bytes());
        }
        at = end;
    }
    out
}
