//! OPENDIR, READDIR, READDIRPLUS, RELEASEDIR.

use super::handles::{Listing, OpenDir};
use super::request::Request;
use super::{MirrorFs, Outcome, Scratch};
use crate::fuse::abi::{self, Dirent, Direntplus, EntryOut, OpenOut, ReadIn};
use crate::fuse::init::MAX_WRITE;
use crate::sys::file::{self, DirEntry, Entries};
use crate::tree::is_hidden;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use zerocopy::IntoBytes;

/// What of the backing directory is read at once: some 800 short names.
const BATCH: usize = 32 << 10;

/// READDIR or READDIRPLUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Names and types.
    Plain,
    /// With attributes; each counts as a lookup.
    Plus,
}

/// Fills one reply.
struct Page<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Page<'_> {
    /// Appends; false if it does not fit.
    fn push(&mut self, head: &[u8], name: &[u8]) -> bool {
        let used = head.len() + name.len();
        let padded = used.next_multiple_of(8);
        let Some(room) = self.buf.get_mut(self.len..self.len + padded) else { return false };
        room[..head.len()].copy_from_slice(head);
        room[head.len()..used].copy_from_slice(name);
        room[used..].fill(0);
        self.len += padded;
        true
    }
}

impl MirrorFs {
    pub(super) fn opendir(&self, r: &mut Request<'_>) -> Outcome {
        let share = self.tree.descriptors.take()?;
        let fd = self.tree.open_dir(r.id())?;
        let listing = Mutex::new(Listing::default());
        let fh = self.dirs.insert(OpenDir { id: r.id(), fd, listing, _share: share });
        self.reply(r, &OpenOut { fh, open_flags: 0, backing_id: 0 })
    }

    pub(super) fn releasedir(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::ReleaseIn = r.arg()?;
        self.dirs.remove(a.fh);
        self.reply_empty(r)
    }

    /// Appends one entry; false if it does not fit.
    fn push_entry(
        &self,
        page: &mut Page<'_>,
        dir: &OpenDir,
        e: &DirEntry<'_>,
        style: Style,
        ttl: Duration,
    ) -> bool {
        let dirent =
            Dirent { ino: e.ino, off: e.next, namelen: e.name.len() as u32, kind: u32::from(e.kind) };
        if style == Style::Plain {
            return page.push(dirent.as_bytes(), e.name);
        }
        // The kernel takes no attributes for the two dots.
        if matches!(e.name, b"." | b"..") {
            let plus = Direntplus { entry: EntryOut::default(), dirent };
            return page.push(plus.as_bytes(), e.name);
        }
        // Room first: an entry that is not sent must not count as a lookup.
        let needed = (size_of::<Direntplus>() + e.name.len()).next_multiple_of(8);
        if page.len + needed > page.buf.len() {
            return false;
        }
        let entry = match self.tree.backing.lookup(dir.fd.as_fd(), e.name) {
            Ok((handle, stat)) => {
                let id = self.tree.inodes.lookup(handle, dir.id, e.name, &stat);
                self.entry(id, &stat, ttl)
            }
            // Gone meanwhile, or unreadable: the name without attributes, the kernel asks again.
            Err(_) => EntryOut::default(),
        };
        page.push(Direntplus { entry, dirent }.as_bytes(), e.name)
    }

    /// Goes on with `listing` until the page is full or the directory ends.
    fn fill(
        &self,
        page: &mut Page<'_>,
        dir: &OpenDir,
        listing: &mut Listing,
        style: Style,
        ttl: Duration,
    ) -> Result<(), crate::ports::Errno> {
        loop {
            let mut entries = Entries::new(&listing.buf[listing.at..]);
            while let Some(e) = entries.next() {
                if !is_hidden(dir.id, e.name) && !self.push_entry(page, dir, &e, style, ttl) {
                    return Ok(());
                }
                listing.at = listing.buf.len() - entries.remaining();
                listing.next = e.next;
            }
            listing.buf.resize(BATCH, 0);
            listing.at = 0;
            let len = file::read_dir(dir.fd.as_fd(), &mut listing.buf, None);
            listing.buf.truncate(*len.as_ref().unwrap_or(&0));
            if len? == 0 {
                return Ok(());
            }
        }
    }

    pub(super) fn readdir(&self, r: &mut Request<'_>, scratch: &mut Scratch, style: Style) -> Outcome {
        let a: ReadIn = r.arg()?;
        let dir = self.dirs.get(a.fh)?;
        let before = self.gate_before();
        let mut listing = dir.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if a.offset == 0 || a.offset != listing.next {
            // Start, rewind or seek: what was read ahead is stale.
            listing.buf.resize(BATCH, 0);
            let len = file::read_dir(dir.fd.as_fd(), &mut listing.buf, Some(a.offset));
            listing.buf.truncate(*len.as_ref().unwrap_or(&0));
            listing.at = 0;
            listing.next = a.offset;
            len?;
        }
        let mut page = Page { buf: scratch.slice(a.size.min(MAX_WRITE) as usize), len: 0 };
        // The entries' times are fixed before the gate is asked again: with_ttl then decides whether
        // the whole page may be kept, by filling it under the gate.
        let filled = self.with_ttl(before, |ttl| self.fill(&mut page, &dir, &mut listing, style, ttl));
        if page.len == 0 {
            filled?;
        }
        self.device.reply(r.header.unique, &page.buf[..page.len], &[]);
        Ok(())
    }
}
