//! OPEN, RELEASE, READ, WRITE, FALLOCATE, LSEEK, COPY_FILE_RANGE.

use super::handles::OpenFile;
use super::request::Request;
use super::{MirrorFs, Outcome, Scratch, errno, is_early};
use crate::fuse::abi::{self, LseekOut, OpenOut, ReadIn, WriteIn, WriteOut};
use crate::fuse::init::MAX_WRITE;
use crate::ports::{Admission, Errno, LocalSync, Ticket};
use crate::proto::FsOp;
use crate::sys::creds::Room;
use crate::sys::file::{self, Stat};
use std::os::fd::AsFd;
use std::sync::Arc;

impl MirrorFs {
    pub(super) fn open(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::OpenIn = r.arg()?;
        let writable = a.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        // Before the gate is asked: what is opened across a change of role belongs to the time before.
        let era = self.era.number();
        if writable && let Admission::Refuse(errno) = self.replicator.admit() {
            return Err(errno.into());
        }
        // Write-only descriptors are opened readable too: copies are read back for the standby.
        let flags = if writable { libc::O_RDWR } else { libc::O_RDONLY };
        let before = self.gate_before();
        let share = self.tree.descriptors.take()?;
        let (fd, append) = match self.tree.open(r.id(), flags | libc::O_NOATIME) {
            // Perhaps it is append-only; then an appending descriptor may be had, if the caller wants one.
            Err(Errno(libc::EPERM)) if writable && a.flags & libc::O_APPEND as u32 != 0 => {
                (self.tree.open_append(r.id())?, true)
            }
            other => (other?, false),
        };
        let fh = self.files.insert(OpenFile { id: r.id(), fd, writable, append, era, _share: share });
        self.with_caching(before, |caching| {
            // Where somebody else may write the backing file, nothing may come from the page cache.
            self.reply(r, &OpenOut { fh, open_flags: caching.open_flags(), backing_id: 0 })
        })
    }

    pub(super) fn release(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::ReleaseIn = r.arg()?;
        self.files.remove(a.fh);
        self.reply_empty(r)
    }

    pub(super) fn read(&self, r: &mut Request<'_>, scratch: &mut Scratch) -> Outcome {
        let a: ReadIn = r.arg()?;
        let open = self.files.get(a.fh)?;
        let buf = scratch.slice(a.size.min(MAX_WRITE) as usize);
        let len = file::pread(open.fd.as_fd(), buf, a.offset)?;
        self.device.reply(r.header.unique, &buf[..len], &[]);
        Ok(())
    }

    pub(super) fn write(&self, r: &mut Request<'_>) -> Outcome {
        let a: WriteIn = r.arg()?;
        let data = r.bytes(a.size as usize)?;
        let open = self.files.get(a.fh)?;
        let ticket = self.admit()?;
        if a.write_flags & abi::WRITE_CACHE == 0 {
            self.of_this_era(&open)?;
        } else {
            self.pages_of_this_era(&open)?;
        }
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(open.id);
        // Through an appending descriptor it would land at the end, whatever the offset.
        if open.append && file::stat(open.fd.as_fd())?.size != a.offset {
            return Err(errno(libc::EPERM));
        }
        let written = {
            // Whose page this was nobody knows any more; it has to go somewhere.
            let cached = a.write_flags & abi::WRITE_CACHE != 0;
            let _room = Self::room(if cached { 0 } else { r.header.uid }, &open)?;
            file::pwrite(open.fd.as_fd(), data, a.offset)
        };
        let len = match written {
            Ok(len) => len,
            Err(errno) => return self.failed(r, ticket, &open, None, errno),
        };
        let stat = self.stat_after(&open);
        let kill = a.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let clear = if kill { self.kill_privileges(&open, &stat) } else { None };
        let op = FsOp::Write { id: open.id, offset: a.offset, mtime: stat.mtime, clear };
        let body = WriteOut { size: len as u32, padding: 0 };
        let reply = self.pending(r, &body);
        let bulk = &data[..len];
        // RWF_DSYNC and RWF_SYNC arrive here as the open flags do.
        if a.flags & libc::O_DSYNC as u32 != 0 {
            let all = a.flags & libc::O_SYNC as u32 == libc::O_SYNC as u32;
            let local = Self::sync_later(Arc::clone(&open), !all);
            self.submit_sync(ticket, open.id, &op, bulk, local, reply);
        } else {
            self.submit(ticket, open.id, &op, bulk, reply);
        }
        Ok(())
    }

    /// Blocks are taken as `uid` takes them. Not in a file with suid or sgid: the file system would clear them by
    /// itself for an ordinary user, also where the write then fails, and the standby would not hear of it.
    fn room(uid: u32, open: &OpenFile) -> Result<Room, Errno> {
        let privileged = |stat: Stat| stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        let as_root = uid == 0 || privileged(file::stat(open.fd.as_fd())?);
        Ok(Room::of(if as_root { 0 } else { uid }))
    }

    /// A change of data that failed. A file system sets the time before it looks for room, so what is left of
    /// it, also a new `size`, is told to the standby; then the caller is told `errno`.
    fn failed(
        &self,
        r: &Request<'_>,
        ticket: Ticket,
        open: &OpenFile,
        size: Option<u64>,
        errno: Errno,
    ) -> Outcome {
        if is_early(errno) {
            return Err(errno.into());
        }
        let mtime = self.stat_after(open).mtime;
        let op = FsOp::SetAttr { id: open.id, mode: None, uid: None, gid: None, size, atime: None, mtime };
        // Before the caller hears of it.
        self.tell_of_disk(errno);
        self.submit(ticket, open.id, &op, &[], self.pending_failure(r, errno));
        Ok(())
    }

    /// The attributes after a change of data.
    fn stat_after(&self, open: &OpenFile) -> Stat {
        file::stat(open.fd.as_fd()).unwrap_or_else(|errno| {
            tracing::error!(errno = errno.0, id = open.id.0, "stat after a write failed");
            self.spoil("attributes could not be read");
            Stat::default()
        })
    }

    pub(super) fn sync_later(open: Arc<OpenFile>, data_only: bool) -> LocalSync {
        Box::new(
            move || {
                if data_only { file::data_sync(open.fd.as_fd()) } else { file::sync(open.fd.as_fd()) }
            },
        )
    }

    pub(super) fn fallocate(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::FallocateIn = r.arg()?;
        let open = self.files.get(a.fh)?;
        let ticket = self.admit()?;
        self.of_this_era(&open)?;
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(open.id);
        let size_before = file::stat(open.fd.as_fd())?.size;
        let allocated = {
            let _room = Self::room(r.header.uid, &open)?;
            file::fallocate(open.fd.as_fd(), a.mode, a.offset, a.length)
        };
        if let Err(errno) = allocated {
            if may_have_zeroed(a.mode, errno) {
                self.spoil("zeroing a range failed half-way");
            }
            // Out of space half-way, some file systems leave the file longer: the standby's must be too.
            let size = self.stat_after(&open).size;
            return self.failed(r, ticket, &open, (size != size_before).then_some(size), errno);
        }
        let stat = self.stat_after(&open);
        let op = FsOp::Fallocate {
            id: open.id,
            mode: a.mode,
            offset: a.offset,
            length: a.length,
            mtime: stat.mtime,
            clear: self.kill_for_user(r.header.uid, &open, &stat),
        };
        self.submit(ticket, open.id, &op, &[], self.pending_empty(r));
        Ok(())
    }

    pub(super) fn lseek(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::LseekIn = r.arg()?;
        let open = self.files.get(a.fh)?;
        let offset = match a.whence as i32 {
            libc::SEEK_DATA => file::seek_data(open.fd.as_fd(), a.offset)?,
            libc::SEEK_HOLE => file::seek_hole(open.fd.as_fd(), a.offset)?,
            _ => return Err(errno(libc::EINVAL)),
        };
        self.reply(r, &LseekOut { offset })
    }

    /// Copies at most one piece: the caller continues after a short copy, as copy_file_range(2) says.
    /// The standby gets the bytes that stand in the destination now, so it needs no equal source.
    pub(super) fn copy_file_range(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::CopyFileRangeIn = r.arg()?;
        let from = self.files.get(a.fh_in)?;
        let to = self.files.get(a.fh_out)?;
        if a.flags != 0 {
            return Err(errno(libc::EINVAL));
        }
        let ticket = self.admit()?;
        self.of_this_era(&to)?;
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(to.id);
        let len = a.len.min(u64::from(MAX_WRITE)) as usize;
        let copied = {
            let _room = Self::room(r.header.uid, &to)?;
            file::copy_range(from.fd.as_fd(), a.off_in, to.fd.as_fd(), a.off_out, len)
        };
        let copied = match copied {
            Ok(copied) => copied,
            Err(errno) => return self.failed(r, ticket, &to, None, errno),
        };
        let body = WriteOut { size: copied as u32, padding: 0 };
        if copied == 0 {
            return self.reply(r, &body);
        }
        let mut bulk = vec![0; copied];
        let (reply, len) = match read_exactly(&to, &mut bulk, a.off_out) {
            Ok(()) => (self.pending(r, &body), copied),
            Err(errno) => {
                // There is nothing to send: the disk wrote these bytes and cannot read them.
                tracing::error!(errno = errno.0, id = to.id.0, copied, "reading back a copy failed");
                self.spoil("a copy could not be read back");
                return Err(errno.into());
            }
        };
        let stat = self.stat_after(&to);
        let clear = self.kill_for_user(r.header.uid, &to, &stat);
        let op = FsOp::Write { id: to.id, offset: a.off_out, mtime: stat.mtime, clear };
        self.submit(ticket, to.id, &op, &bulk[..len], reply);
        Ok(())
    }
}

/// After this error of fallocate(2), may bytes have changed? Mere allocation changes none.
const fn may_have_zeroed(mode: u32, errno: Errno) -> bool {
    mode & !(libc::FALLOC_FL_KEEP_SIZE as u32) != 0 && !is_early(errno)
}

fn read_exactly(file: &OpenFile, mut buf: &mut [u8], mut offset: u64) -> Result<(), Errno> {
    while !buf.is_empty() {
        let len = file::pread(file.fd.as_fd(), buf, offset)?;
        if len == 0 {
            return Err(Errno(libc::EIO));
        }
        buf = &mut buf[len..];
        offset += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_for_what_the_file_system_lacks_spoils_nothing_but_a_sick_disk_does() {
        let (keep, punch, zero) =
            (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        let spoils = |mode: i32, errno| may_have_zeroed(mode as u32, Errno(errno));
        assert!(!spoils(punch | keep, libc::EOPNOTSUPP));
        assert!(!spoils(zero, libc::EINVAL));
        assert!(!spoils(0, libc::ENOSPC));
        assert!(!spoils(keep, libc::EIO));
        assert!(spoils(punch | keep, libc::EIO));
        assert!(spoils(zero, libc::ENOSPC));
        assert!(spoils(zero | keep, libc::ENOMEM));
    }
}
