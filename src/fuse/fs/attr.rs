//! SETATTR: chmod, chown, truncate, utimens.

use super::handles::OpenFile;
use super::request::Request;
use super::{MirrorFs, Outcome, Stop, errno, is_early};
use crate::fuse::abi::{SetattrIn, fattr};
use crate::ports::Errno;
use crate::proto::FsOp;
use crate::sys::file::{self, SetTime, Stat};
use std::os::fd::{AsFd, BorrowedFd};

/// The mode after suid, and sgid of a group-executable file, were cleared; `None`: nothing to clear.
pub(super) const fn without_privileges(mode: u32) -> Option<u32> {
    let mut kill = mode & libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        kill |= mode & libc::S_ISGID;
    }
    if kill == 0 { None } else { Some(mode & !kill) }
}

/// What of a SETATTR was done.
#[derive(Default)]
struct Done {
    any: bool,
    mode: bool,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: bool,
}

impl MirrorFs {
    fn set_size(&self, a: &SetattrIn, path: BorrowedFd<'_>) -> Result<(), Errno> {
        if a.valid & fattr::FH != 0
            && let Ok(open) = self.files.get(a.fh)
            && open.writable
        {
            self.of_this_era(&open)?;
            return file::set_len(open.fd.as_fd(), a.size);
        }
        file::truncate(path, a.size)
    }

    /// Size first: it is the step that fails (space, limits), and then nothing was changed yet.
    fn apply_attr(&self, a: &SetattrIn, path: BorrowedFd<'_>, done: &mut Done) -> Result<(), Errno> {
        let has = |bit| a.valid & bit != 0;
        if has(fattr::SIZE) {
            self.set_size(a, path).inspect_err(|errno| {
                if !is_early(*errno) {
                    self.spoil("a truncation failed half-way");
                }
            })?;
            done.any = true;
            done.size = Some(a.size);
        }
        if has(fattr::UID) || has(fattr::GID) {
            let (uid, gid) = (has(fattr::UID).then_some(a.uid), has(fattr::GID).then_some(a.gid));
            file::chown(path, uid, gid)?;
            *done = Done { any: true, mode: true, uid, gid, ..std::mem::take(done) };
        }
        if has(fattr::MODE) {
            file::chmod(path, a.mode)?;
            done.any = true;
            done.mode = true;
        } else if has(fattr::KILL_SUIDGID)
            && let Some(mode) = without_privileges(file::stat(path)?.mode)
        {
            file::chmod(path, mode)?;
            done.any = true;
            done.mode = true;
        }
        let time = |set, now, at| match (has(set), has(now)) {
            (_, true) => SetTime::Now,
            (true, false) => SetTime::At(at),
            (false, false) => SetTime::Omit,
        };
        let atime = time(fattr::ATIME, fattr::ATIME_NOW, (a.atime as i64, a.atimensec));
        let mtime = time(fattr::MTIME, fattr::MTIME_NOW, (a.mtime as i64, a.mtimensec));
        if (atime, mtime) != (SetTime::Omit, SetTime::Omit) {
            file::set_times(path, atime, mtime)?;
            done.any = true;
            done.atime = atime != SetTime::Omit;
        }
        Ok(())
    }

    pub(super) fn setattr(&self, r: &mut Request<'_>) -> Outcome {
        let a: SetattrIn = r.arg()?;
        let id = r.id();
        let ticket = self.admit()?;
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(id);
        let path = self.tree.open_path(id)?;
        let mut done = Done::default();
        let result = self.apply_attr(&a, path.as_fd(), &mut done);
        let after = file::stat(path.as_fd());
        if !done.any {
            // Nothing changed (or nothing was asked for): no frame.
            result?;
            let reply = Self::attr_out(&after?, Self::ttl_of_mutation());
            return self.reply(r, &reply);
        }
        let stat = after.unwrap_or_else(|errno| {
            tracing::error!(errno = errno.0, id = id.0, "stat after a change of attributes failed");
            self.spoil("attributes could not be read");
            Stat { mode: a.mode, ..Stat::default() }
        });
        // A symlink has no mode to set.
        let mode = (done.mode && stat.kind() != libc::S_IFLNK).then_some(stat.mode);
        let op = FsOp::SetAttr {
            id,
            mode,
            uid: done.uid,
            gid: done.gid,
            size: done.size,
            atime: done.atime.then_some(stat.atime),
            mtime: stat.mtime,
        };
        let reply = match (result, after) {
            (Ok(()), Ok(_)) => self.pending(r, &Self::attr_out(&stat, Self::ttl_of_mutation())),
            (Err(errno), _) | (Ok(()), Err(errno)) => self.pending_failure(r, errno),
        };
        self.submit(ticket, id, &op, &[], reply);
        Ok(())
    }

    /// Clears suid and sgid after a write that asked for it. The new mode if there was any to clear.
    /// File capabilities were already removed by the backing file system's own write.
    pub(super) fn kill_privileges(&self, open: &OpenFile, stat: &Stat) -> Option<u32> {
        let fd = open.fd.as_fd();
        let mode = without_privileges(stat.mode)?;
        // The kernel's own clearing does not ask whether the file is append-only.
        if let Err(errno) = file::flags::unlocked(fd, || file::chmod(fd, mode)) {
            tracing::error!(errno = errno.0, "clearing suid after a write failed");
            return None;
        }
        // The kernel takes only times and size for changed by a write, and would go on showing the old mode and
        // running the file as its owner. ENOENT: it knows nothing of it.
        let _ = self.device.invalidate_attributes(open.id);
        Some(mode)
    }

    /// For calls in which the kernel does not say whether the caller may keep suid and sgid: root may.
    pub(super) fn kill_for_user(&self, uid: u32, open: &OpenFile, stat: &Stat) -> Option<u32> {
        if uid == 0 { None } else { self.kill_privileges(open, stat) }
    }

    /// Refuses what only the owner of the hidden things may do.
    pub(super) fn refuse_hidden(hidden: bool) -> Result<(), Stop> {
        if hidden { Err(errno(libc::EPERM)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::without_privileges;

    #[test]
    fn sgid_is_cleared_only_with_group_execute() {
        assert_eq!(without_privileges(0o100_755), None);
        assert_eq!(without_privileges(0o104_755), Some(0o100_755));
        assert_eq!(without_privileges(0o102_755), Some(0o100_755));
        assert_eq!(without_privileges(0o102_745), None);
        assert_eq!(without_privileges(0o106_745), Some(0o102_745));
    }
}
