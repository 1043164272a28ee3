//! IOCTL: inode flags (chattr, lsattr, xfs_io's chattr). Every other number is ENOTTY, as for a file system
//! that does not know it.
//!
//! The kernel has checked by then that the caller owns the object, and CAP_LINUX_IMMUTABLE for immutable and
//! append-only. It sends GET before every SET. What may be changed is what travels to the standby.

use super::request::Request;
use super::{MirrorFs, Outcome, errno};
use crate::fuse::abi::{self, IoctlIn, IoctlOut};
use crate::ports::Errno;
use crate::proto::{FileId, FsOp};
use crate::sys::file::flags::{self, Fsx, TRAVELLING};
use std::os::fd::{AsFd, BorrowedFd};
use zerocopy::IntoBytes;

/// Where struct fsxattr keeps `fsx_xflags`.
const XFLAGS: std::ops::Range<usize> = 0..4;
/// The xflags with a counterpart in [`TRAVELLING`]: immutable, append, sync, noatime, nodump (FS_XFLAG_*).
const XFLAGS_TRAVELLING: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x80;
/// The two that lock the object.
const XFLAGS_LOCKS: u32 = 0x8 | 0x10;

fn xflags(fsx: &Fsx) -> u32 {
    fsx.get(XFLAGS).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Told, not set: preallocated, has xattrs (FS_XFLAG_*).
const XFLAGS_TOLD: u32 = 0x2 | 0x8000_0000;

/// Is the only difference one of the xflags that travel?
fn only_flags(old: &Fsx, new: &Fsx) -> bool {
    let mut same = *new;
    same[XFLAGS].copy_from_slice(&old[XFLAGS]);
    // The number of extents is told, not set.
    same[8..12].copy_from_slice(&old[8..12]);
    same == *old && (xflags(old) ^ xflags(new)) & !(XFLAGS_TRAVELLING | XFLAGS_TOLD) == 0
}

impl MirrorFs {
    /// Runs `run` with a descriptor of the open file or directory.
    fn with_open<T>(
        &self,
        a: &IoctlIn,
        run: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if a.flags & abi::IOCTL_DIR == 0 {
            run(self.files.get(a.fh)?.fd.as_fd())
        } else {
            run(self.dirs.get(a.fh)?.fd.as_fd())
        }
    }

    fn reply_ioctl(&self, r: &Request<'_>, a: &IoctlIn, data: &[u8]) -> Outcome {
        let Some(data) = data.get(..data.len().min(a.out_size as usize)) else {
            return Err(errno(libc::EINVAL));
        };
        self.device.reply(r.header.unique, IoctlOut::default().as_bytes(), data);
        Ok(())
    }

    pub(super) fn ioctl(&self, r: &mut Request<'_>) -> Outcome {
        let a: IoctlIn = r.arg()?;
        match a.cmd {
            flags::FS_IOC_GETFLAGS => {
                let flags = self.with_open(&a, flags::get_flags)?;
                self.reply_ioctl(r, &a, &flags.to_ne_bytes())
            }
            flags::FS_IOC_FSGETXATTR => {
                let fsx = self.with_open(&a, flags::get_fsx)?;
                self.reply_ioctl(r, &a, &fsx)
            }
            flags::FS_IOC_SETFLAGS => {
                let wanted: u32 = r.arg()?;
                self.change_flags(r, &a, |fd| {
                    let changed = flags::get_flags(fd)? ^ wanted;
                    let locks = changed & (flags::IMMUTABLE | flags::APPEND);
                    Self::may_change(r.id(), changed & !TRAVELLING == 0, locks != 0)?;
                    flags::set_flags(fd, wanted)
                })
            }
            flags::FS_IOC_FSSETXATTR => {
                let wanted: Fsx = r.arg()?;
                self.change_flags(r, &a, |fd| {
                    let old = flags::get_fsx(fd)?;
                    let locks = (xflags(&old) ^ xflags(&wanted)) & XFLAGS_LOCKS;
                    Self::may_change(r.id(), only_flags(&old, &wanted), locks != 0)?;
                    flags::set_fsx(fd, &wanted)
                })
            }
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    /// EOPNOTSUPP, as from a file system that lacks the flag: what the standby would not have too, and locks on
    /// the root, where the mirror keeps its own things.
    fn may_change(id: FileId, travels: bool, locks: bool) -> Result<(), Errno> {
        if travels && !(locks && id == FileId::ROOT) { Ok(()) } else { Err(Errno(libc::EOPNOTSUPP)) }
    }

    fn change_flags(
        &self,
        r: &Request<'_>,
        a: &IoctlIn,
        change: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Outcome {
        let id = r.id();
        let ticket = self.admit()?;
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(id);
        let flags = self.with_open(a, |fd| {
            change(fd)?;
            // As they are: a file system may do less than it was asked for.
            flags::get_flags(fd).inspect_err(|errno| {
                tracing::error!(errno = errno.0, id = id.0, "inode flags could not be read back");
                self.spoil("inode flags could not be read back");
            })
        })?;
        // The time of change is another now, and to the kernel an ioctl changes nothing. ENOENT: it has nothing of it.
        let _ = self.device.invalidate_attributes(id);
        let op = FsOp::SetFlags { id, flags: flags & TRAVELLING };
        // Both numbers only take something: no data in the answer.
        let reply = self.pending(r, &IoctlOut::default());
        self.submit(ticket, id, &op, &[], reply);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_or_an_extent_size_is_more_than_a_flag() {
        let old: Fsx = [0; 28];
        let with = |at: usize, value: u8| {
            let mut fsx = old;
            fsx[at] = value;
            fsx
        };
        let (xflags, nextents) = (0, 8);
        assert!(only_flags(&old, &with(xflags, 0x8 | 0x80)) && only_flags(&old, &with(nextents, 5)));
        let (realtime, extsize, projid, cowextsize) = (0, 4, 12, 16);
        for fsx in [with(realtime, 1), with(extsize, 1), with(projid, 1), with(cowextsize, 1)] {
            assert!(!only_flags(&old, &fsx), "{fsx:?}");
        }
    }
}
