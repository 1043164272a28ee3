//! What a resync removes or overwrites on the target is kept here (I5).
//!
//! `.skc/quarantine/<utc-seconds>/objects/<n>-<name>`: removed objects, moved; `blocks/<n>`: sparse
//! files with the bytes that were overwritten, at their offsets; `index.jsonl`: one line an item with
//! the path it had. Each block of a file is kept once: as it was before the resync touched it.
//! Bounded by size and by free space; past a bound nothing more is kept: `truncated`, an event
//! ([`crate::replica::Event::Kept`]) and the file `incomplete` say so, and why. Failure to keep (no space,
//! I/O) truncates as well. The resync itself goes on: the source's data is what counts from now on.

use super::blocks::Blocks;
use super::ops::Failed;
use super::pulse::Pulse;
use crate::base::codes;
use crate::ports::Errno;
use crate::proto::FileId;
use crate::proto::stream::{BLOCK, SPAN};
use crate::replica::{kept, local};
use crate::sys::errno;
use crate::sys::file::{self, Stat};
use crate::tree::{HIDDEN_DIR, Tree};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Limits of one resync's quarantine.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of overwritten blocks.
    pub bytes: u64,
    /// Moved objects.
    pub objects: u64,
    /// Free space, in hundredths of the file system, below which nothing more is kept.
    pub free_percent: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 << 30, objects: 1_000_000, free_percent: 10 }
    }
}

/// What of one file needs no keeping any more.
#[derive(Default)]
struct Saved {
    /// Blocks that are the source's or kept. Many ranges only where live writes came first, and each of
    /// those counts in the limits.
    settled: Blocks,
    /// Made by the stream: nothing in it was ever only ours.
    born: bool,
    number: Option<u64>,
}

struct Dirs {
    own: OwnedFd,
    objects: OwnedFd,
    blocks: OwnedFd,
    index: OwnedFd,
    index_at: u64,
}

/// See the module. One a volume and resync.
pub(super) struct Quarantine {
    tree: Arc<Tree>,
    limits: Limits,
    name: String,
    dirs: Option<Dirs>,
    files: HashMap<FileId, Saved>,
    /// The block file written last.
    open: Option<(u64, OwnedFd)>,
    next: u64,
    checked_at: u64,
    checked_objects: u64,
    pub kept_bytes: u64,
    pub kept_objects: u64,
    /// Why nothing more is kept.
    pub truncated: Option<String>,
    buf: Vec<u8>,
}

fn open_or_make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    match file::make_dir(dir, name, 0o700) {
        Ok(()) | Err(Errno(libc::EEXIST)) => {}
        Err(errno) => return Err(errno),
    }
    file::open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

impl Quarantine {
    pub fn new(tree: Arc<Tree>, limits: Limits, utc_seconds: u64) -> Self {
        Self {
            tree,
            limits,
            name: utc_seconds.to_string(),
            dirs: None,
            files: HashMap::new(),
            open: None,
            next: 0,
            checked_at: 0,
            checked_objects: 0,
            kept_bytes: 0,
            kept_objects: 0,
            truncated: None,
            buf: Vec::new(),
        }
    }

    /// Makes `.skc` before the root's directory step sets the root's mtime for good.
    pub fn prepare(&mut self) {
        if let Err(errno) = open_or_make_dir(self.tree.backing.base(), HIDDEN_DIR) {
            self.give_up("creating it", errno);
        }
    }

    fn make_dirs(&self) -> Result<Dirs, Errno> {
        let root = self.tree.backing.base();
        let hidden = open_or_make_dir(root, HIDDEN_DIR)?;
        let all = open_or_make_dir(hidden.as_fd(), kept::DIRECTORY)?;
        let own = open_or_make_dir(all.as_fd(), self.name.as_bytes())?;
        let flags = libc::O_RDWR | libc::O_CREAT;
        let index = file::open_at(own.as_fd(), b"index.jsonl", flags, 0o600)?;
        Ok(Dirs {
            own: own.try_clone().map_err(|e| errno::of(&e))?,
            objects: open_or_make_dir(own.as_fd(), b"objects")?,
            blocks: open_or_make_dir(own.as_fd(), b"blocks")?,
            index_at: file::stat(index.as_fd())?.size,
            index,
        })
    }

    fn give_up(&mut self, what: &str, errno: Errno) {
        if self.truncated.is_some() {
            return;
        }
        let error = std::io::Error::from_raw_os_error(errno.0);
        let why = format!("{what}: {error}");
        tracing::warn!(
            name = self.name,
            why,
            error_code = codes::EVENT_0102.id,
            "quarantine keeps nothing more; what this resync replaces from here on is lost"
        );
        if let Some(dirs) = &self.dirs {
            let flags = libc::O_WRONLY | libc::O_CREAT;
            let written = file::open_at(dirs.own.as_fd(), kept::INCOMPLETE, flags, 0o600)
                .and_then(|fd| local::write_full(fd.as_fd(), why.as_bytes(), 0));
            if let Err(errno) = written {
                // The event has told it; only a status after a restart will not know.
                tracing::warn!(name = self.name, errno = errno.0, "the quarantine's mark is not written");
            }
        }
        self.truncated = Some(why);
    }

    /// May something more be kept? Makes the directories at the first time.
    fn ready(&mut self) -> bool {
        if self.truncated.is_some() {
            return false;
        }
        if self.dirs.is_none() {
            match self.make_dirs() {
                Ok(dirs) => self.dirs = Some(dirs),
                Err(errno) => self.give_up("creating it", errno),
            }
        }
        if self.kept_bytes >= self.limits.bytes || self.kept_objects >= self.limits.objects {
            self.give_up("its size limit is reached", Errno(libc::EDQUOT));
        }
        // An object that is moved takes no space, but it would have freed some.
        if self.kept_bytes >= self.checked_at || self.kept_objects >= self.checked_objects {
            self.checked_at = self.kept_bytes + (16 << 20);
            self.checked_objects = self.kept_objects + 64;
            let low = self
                .tree
                .backing
                .stat_fs()
                .is_ok_and(|s| s.bavail * 100 < s.blocks * self.limits.free_percent);
            if low {
                self.give_up("little space is left", Errno(libc::ENOSPC));
            }
        }
        self.truncated.is_none()
    }

    fn note(&mut self, line: &serde_json::Value) {
        let Some(dirs) = &mut self.dirs else { return };
        let text = format!("{line}\n");
        match local::write_full(dirs.index.as_fd(), text.as_bytes(), dirs.index_at) {
            Ok(()) => dirs.index_at += text.len() as u64,
            Err(errno) => self.give_up("writing the index", errno),
        }
    }

    /// Path below the root, for the index. Bytes that are no UTF-8 are escaped.
    fn path_of(&self, fd: BorrowedFd<'_>) -> String {
        match self.tree.backing.path_hint(fd) {
            Some(parts) => {
                let parts: Vec<_> = parts.iter().map(|p| p.escape_ascii().to_string()).collect();
                parts.join("/")
            }
            None => String::new(),
        }
    }

    /// Moves an object away; `false`: not kept, the caller removes it.
    pub fn keep_object(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> bool {
        if !self.ready() {
            return false;
        }
        let number = self.next;
        self.next += 1;
        // A number makes it unique; a long name is cut.
        let mut kept = format!("{number}-").into_bytes();
        kept.extend(name.iter().take(200));
        let parent = self.path_of(dir);
        let Some(dirs) = &self.dirs else { return false };
        if let Err(errno) = file::rename(dir, name, dirs.objects.as_fd(), &kept, 0) {
            self.give_up("moving an object", errno);
            return false;
        }
        self.kept_objects += 1;
        let was = format!("{parent}/{}", name.escape_ascii());
        self.note(
            &serde_json::json!({"object": number, "kept": kept.escape_ascii().to_string(), "path": was}),
        );
        true
    }

    /// This block is as the source has it: nothing of it has to be kept.
    pub fn settle(&mut self, id: FileId, offset: u64) {
        let block = offset / BLOCK;
        self.files.entry(id).or_default().settled.add(block, block + 1);
    }

    /// The object was made by the stream: nothing of it has to be kept.
    pub fn born(&mut self, id: FileId) {
        self.files.insert(id, Saved { born: true, ..Saved::default() });
    }

    /// The source knows the object by another id now: what was kept of it stays kept.
    pub fn renamed(&mut self, old: FileId, id: FileId) {
        if old != id
            && let Some(saved) = self.files.remove(&old)
        {
            self.files.insert(id, saved);
        }
    }

    /// Would something be lost with this file that only this side has? Not what the stream made, nor a
    /// file whose blocks are all the source's or kept already.
    pub fn is_own(&self, id: Option<FileId>, stat: &Stat, placed: bool) -> bool {
        let Some(saved) = id.and_then(|id| self.files.get(&id)) else {
            return stat.is_file() || !placed;
        };
        let all_settled = stat.size > 0 && saved.settled.contains(0, stat.size.div_ceil(BLOCK));
        !(saved.born || all_settled)
    }

    /// Keeps what [offset, offset + length) of `fd` holds now, whole blocks, each once. Holes are jumped.
    ///
    /// # Errors
    /// Only the pulse's: what cannot be kept is no reason to stop.
    pub fn keep_range(
        &mut self,
        id: FileId,
        fd: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        pulse: &mut Pulse,
    ) -> Result<(), Failed> {
        if length == 0 || !self.ready() {
            return Ok(());
        }
        let Ok(stat) = file::stat(fd) else { return Ok(()) };
        let end = offset.saturating_add(length).min(stat.size);
        let saved = self.files.entry(id).or_default();
        if offset >= end || saved.born {
            return Ok(());
        }
        let last = end.div_ceil(BLOCK);
        while let Some((from, to)) = self.files.entry(id).or_default().settled.gap(offset / BLOCK, last) {
            pulse.beat()?;
            if !self.ready() {
                return Ok(());
            }
            let kept = self.keep_blocks(id, fd, from, to, stat.size);
            match kept {
                // Settled also if it was not kept: it is about to be overwritten.
                Ok(until) => self.files.entry(id).or_default().settled.add(from, until),
                Err(errno) => {
                    self.give_up("keeping a block", errno);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Keeps the first data in the blocks [from, to), at most a span of it. Up to which block nothing is
    /// left to keep.
    fn keep_blocks(
        &mut self,
        id: FileId,
        fd: BorrowedFd<'_>,
        from: u64,
        to: u64,
        size: u64,
    ) -> Result<u64, Errno> {
        let start = match file::seek_data(fd, from * BLOCK) {
            Ok(start) => start / BLOCK,
            Err(Errno(libc::ENXIO)) => return Ok(to),
            Err(Errno(libc::EINVAL | libc::EOPNOTSUPP)) => from,
            Err(errno) => return Err(errno),
        };
        if start >= to {
            return Ok(to);
        }
        let until = to.min(start + SPAN / BLOCK);
        for (start, end) in local::data_ranges(fd, start * BLOCK, size.min(until * BLOCK))? {
            self.keep_bytes(id, fd, start, end)?;
        }
        Ok(until)
    }

    fn keep_bytes(&mut self, id: FileId, fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
        self.buf.resize((end - start) as usize, 0);
        local::read_full(fd, &mut self.buf, start)?;
        let known = self.files.get(&id).and_then(|s| s.number);
        let number = known.unwrap_or(self.next);
        if known.is_none() {
            self.next += 1;
            self.files.entry(id).or_default().number = Some(number);
            let path = self.path_of(fd);
            self.note(&serde_json::json!({"blocks": number, "path": path}));
        }
        if self.open.as_ref().is_none_or(|(n, _)| *n != number) {
            let dirs = self.dirs.as_ref().ok_or(Errno(libc::EIO))?;
            let flags = libc::O_RDWR | libc::O_CREAT;
            let out = file::open_at(dirs.blocks.as_fd(), number.to_string().as_bytes(), flags, 0o600)?;
            self.open = Some((number, out));
        }
        let Some((_, out)) = &self.open else { return Err(Errno(libc::EIO)) };
        local::write_full(out.as_fd(), &self.buf, start)?;
        self.kept_bytes += end - start;
        Ok(())
    }
}
