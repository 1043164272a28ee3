//! LOOKUP, FORGET, GETATTR, STATX, READLINK, STATFS.

use super::request::Request;
use super::{MirrorFs, Outcome, TTL, errno};
use crate::fuse::abi::{self, Attr, AttrOut, EntryOut, Kstatfs, Statx, StatxOut, SxTime};
use crate::ports::Errno;
use crate::proto::FileId;
use crate::sys::file::{self, Stat, Timestamp};
use crate::tree::is_hidden;
use std::os::fd::AsFd;
use std::time::Duration;

/// The kernel's 32-bit device number (`new_encode_dev`).
pub(super) fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_dev`].
pub(super) fn decode_dev(dev: u32) -> u64 {
    libc::makedev((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0x000f_ff00))
}

pub(super) fn attr(s: &Stat) -> Attr {
    Attr {
        ino: s.ino,
        size: s.size,
        blocks: s.blocks,
        atime: s.atime.0 as u64,
        mtime: s.mtime.0 as u64,
        ctime: s.ctime.0 as u64,
        atimensec: s.atime.1,
        mtimensec: s.mtime.1,
        ctimensec: s.ctime.1,
        mode: s.mode,
        nlink: s.nlink,
        uid: s.uid,
        gid: s.gid,
        rdev: encode_dev(s.rdev),
        blksize: s.blksize,
        flags: 0,
    }
}

impl MirrorFs {
    /// An entry for `id`. Where cached names cannot all be dropped at once (before 7.44), only the one
    /// remembered name of an object can: files with more names are then not cached by name.
    pub(super) fn entry(&self, id: FileId, s: &Stat, ttl: Duration) -> EntryOut {
        let several = !s.is_dir() && s.nlink > 1;
        let name_ttl = if several && !self.init.has_inc_epoch() { Duration::ZERO } else { ttl };
        EntryOut {
            nodeid: id.0,
            generation: 0,
            entry_valid: name_ttl.as_secs(),
            attr_valid: ttl.as_secs(),
            attr: attr(s),
            ..EntryOut::default()
        }
    }

    pub(super) fn attr_out(s: &Stat, ttl: Duration) -> AttrOut {
        AttrOut { attr_valid: ttl.as_secs(), attr_valid_nsec: 0, dummy: 0, attr: attr(s) }
    }

    pub(super) fn lookup(&self, r: &mut Request<'_>) -> Outcome {
        let name = r.name()?;
        let parent = r.id();
        if is_hidden(parent, name) {
            return Err(errno(libc::ENOENT));
        }
        let before = self.gate_before();
        let dir = self.tree.open_path(parent)?;
        match self.tree.backing.lookup(dir.as_fd(), name) {
            Ok((handle, stat)) => {
                let id = self.tree.inodes.lookup(handle, parent, name, &stat);
                self.with_ttl(before, |ttl| self.reply(r, &self.entry(id, &stat, ttl)))
            }
            // A negative entry. Kept only where it can be dropped again: unlike an object it is in no
            // table of ours, so only the epoch reaches it.
            Err(Errno(libc::ENOENT)) if self.init.has_inc_epoch() => self.with_ttl(before, |ttl| {
                self.reply(r, &EntryOut { entry_valid: ttl.as_secs(), ..EntryOut::default() })
            }),
            Err(errno) => Err(errno.into()),
        }
    }

    fn forgotten(&self, gone: &[FileId]) {
        if !gone.is_empty() {
            self.replicator.forget(self.tree.volume, gone);
        }
    }

    /// No reply, whatever happens.
    pub(super) fn forget(&self, r: &mut Request<'_>) {
        if let Ok(abi::ForgetIn { nlookup }) = r.arg() {
            let mut gone = Vec::new();
            self.tree.inodes.forget(r.id(), nlookup, &mut gone);
            self.forgotten(&gone);
        }
    }

    /// No reply, whatever happens.
    pub(super) fn batch_forget(&self, r: &mut Request<'_>) {
        let mut gone = Vec::new();
        if let Ok(abi::BatchForgetIn { count, .. }) = r.arg() {
            for _ in 0..count {
                let Ok(abi::ForgetOne { nodeid, nlookup }) = r.arg() else { break };
                self.tree.inodes.forget(FileId(nodeid), nlookup, &mut gone);
            }
        }
        self.forgotten(&gone);
    }

    fn stat_of(&self, id: FileId, fh: Option<u64>) -> Result<Stat, Errno> {
        // A handle saves opening the object; without one, or with one of a directory, go by id.
        match fh.map(|fh| self.files.get(fh)) {
            Some(Ok(open)) => file::stat(open.fd.as_fd()),
            _ => self.tree.stat(id),
        }
    }

    pub(super) fn getattr(&self, r: &mut Request<'_>) -> Outcome {
        let arg: abi::GetattrIn = r.arg()?;
        let before = self.gate_before();
        let stat = self.stat_of(r.id(), (arg.getattr_flags & abi::GETATTR_FH != 0).then_some(arg.fh))?;
        self.with_ttl(before, |ttl| self.reply(r, &Self::attr_out(&stat, ttl)))
    }

    pub(super) fn statx(&self, r: &mut Request<'_>) -> Outcome {
        let arg: abi::StatxIn = r.arg()?;
        let before = self.gate_before();
        let s = self.stat_of(r.id(), (arg.getattr_flags & abi::GETATTR_FH != 0).then_some(arg.fh))?;
        let time = |t: Timestamp| SxTime { tv_sec: t.0, tv_nsec: t.1, reserved: 0 };
        let mut mask = libc::STATX_BASIC_STATS;
        if s.btime.is_some() {
            mask |= libc::STATX_BTIME;
        }
        let stat = Statx {
            mask,
            blksize: s.blksize,
            attributes: s.attributes,
            nlink: s.nlink,
            uid: s.uid,
            gid: s.gid,
            mode: s.mode as u16,
            ino: s.ino,
            size: s.size,
            blocks: s.blocks,
            attributes_mask: s.attributes_mask,
            atime: time(s.atime),
            btime: time(s.btime.unwrap_or_default()),
            ctime: time(s.ctime),
            mtime: time(s.mtime),
            rdev_major: libc::major(s.rdev),
            rdev_minor: libc::minor(s.rdev),
            dev_major: libc::major(s.dev),
            dev_minor: libc::minor(s.dev),
            ..Statx::default()
        };
        self.with_ttl(before, |ttl| {
            self.reply(r, &StatxOut { attr_valid: ttl.as_secs(), stat, ..StatxOut::default() })
        })
    }

    pub(super) fn readlink(&self, r: &mut Request<'_>) -> Outcome {
        let fd = self.tree.open_path(r.id())?;
        let target = file::read_link(fd.as_fd())?;
        self.device.reply(r.header.unique, &target, &[]);
        Ok(())
    }

    pub(super) fn statfs(&self, r: &mut Request<'_>) -> Outcome {
        let s = self.tree.backing.stat_fs()?;
        self.reply(
            r,
            &Kstatfs {
                blocks: s.blocks,
                bfree: s.bfree,
                bavail: s.bavail,
                files: s.files,
                ffree: s.ffree,
                bsize: s.bsize,
                namelen: s.namelen,
                frsize: s.frsize,
                ..Kstatfs::default()
            },
        )
    }

    /// The time a reply to a mutation may be kept: it is held back until the gate's rule is met, and a
    /// demotion answers it with an error, so it is only ever seen where this node may write.
    pub(super) const fn ttl_of_mutation() -> Duration {
        TTL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernel_s_encoding() {
        for (major, minor) in [(1, 3), (8, 17), (254, 0xf_ffff), (4095, 256)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev, "{major}:{minor}");
        }
    }
}
