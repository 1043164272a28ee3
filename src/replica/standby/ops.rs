//! One live operation on the backing tree, exactly as the primary did it.

use super::table::Table;
use crate::ports::Errno;
use crate::proto::fsop::{Time, Xattr};
use crate::proto::{Attr, FileId, FsOp};
use crate::replica::local;
use crate::sys::file::{self, SetTime, flags};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// RENAME_EXCHANGE (linux/fs.h).
pub(super) const RENAME_EXCHANGE: u32 = 2;
/// xattrs whose change may change the mode.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Why an operation was not applied: (errno, step).
pub(super) type Failed = (Errno, &'static str);

pub(super) fn at(step: &'static str) -> impl Fn(Errno) -> Failed {
    move |errno| (errno, step)
}

pub(super) fn set_mtime(fd: BorrowedFd<'_>, mtime: Time) -> Result<(), Failed> {
    let set = || file::set_times(fd, SetTime::Omit, SetTime::At(mtime));
    // An append-only directory takes new names, but no times.
    flags::unlocked(fd, set).map_err(at("set times"))
}

/// An attribute of a namespace that only one type of file system has (`btrfs.compression`): a file system that
/// refuses it stays without it.
fn is_foreign(name: &[u8]) -> bool {
    let common: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
    !common.iter().any(|prefix| name.starts_with(prefix))
}

/// Makes the xattrs exactly so.
pub(super) fn set_xattrs(path: BorrowedFd<'_>, wanted: &[Xattr]) -> Result<(), Failed> {
    for name in local::xattr_names(path).map_err(at("list xattrs"))? {
        if wanted.iter().any(|(n, _)| *n == name) {
            continue;
        }
        match file::remove_xattr(path, &name) {
            Ok(()) | Err(Errno(libc::ENODATA)) => {}
            // A label that this machine's security module insists on.
            Err(Errno(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP)) if name.starts_with(b"security.") => {}
            Err(Errno(libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP)) if is_foreign(&name) => {}
            Err(errno) => return Err((errno, "remove xattr")),
        }
    }
    for (name, value) in wanted {
        if file::get_xattr(path, name).is_ok_and(|own| own == **value) {
            continue;
        }
        match file::set_xattr(path, name, value, 0) {
            Err(Errno(libc::EOPNOTSUPP)) if is_foreign(name) => {}
            other => other.map_err(at("set xattr"))?,
        }
    }
    Ok(())
}

/// Owner, xattrs, mode, times and flags, in the order in which none undoes or forbids another.
pub(super) fn set_attr(path: BorrowedFd<'_>, attr: &Attr, xattrs: &[Xattr]) -> Result<(), Failed> {
    let own = file::stat(path).map_err(at("stat"))?;
    if flags::is_locked(&own) {
        flags::unlock(path).map_err(at("unlock"))?;
    }
    if (own.uid, own.gid) != (attr.uid, attr.gid) {
        file::chown(path, Some(attr.uid), Some(attr.gid)).map_err(at("chown"))?;
    }
    set_xattrs(path, xattrs)?;
    if own.kind() != libc::S_IFLNK {
        // chown and ACLs may have changed it: always.
        file::chmod(path, attr.mode).map_err(at("chmod"))?;
    }
    set_mtime(path, attr.mtime)?;
    flags::set_travelling_flags(path, &own, attr.flags).map_err(at("set flags"))
}

/// Makes an empty object of the type in `attr.mode`, with nobody else's access until it is complete.
pub(super) fn make(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attr: &Attr,
) -> Result<Option<std::os::fd::OwnedFd>, Errno> {
    match attr.mode & libc::S_IFMT {
        libc::S_IFREG => {
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOATIME;
            file::open_at(dir, name, flags, 0o600).map(Some)
        }
        libc::S_IFDIR => file::make_dir(dir, name, 0o700).map(|()| None),
        kind => file::make_node(dir, name, kind | 0o600, attr.rdev).map(|()| None),
    }
}

impl Table {
    /// The object a name lost, if its id is known.
    fn before_unlink(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Option<FileId> {
        let handle = self.tree.backing.handle_at(dir, name).ok()?;
        self.id_of(&handle)
    }

    fn dir(&self, id: FileId) -> Result<super::table::Path, Failed> {
        self.path(id).map_err(at("open parent"))
    }

    /// Applies `op`. In a resync the caller repairs what fails.
    pub(super) fn apply(&mut self, op: &FsOp, bulk: &[u8]) -> Result<(), Failed> {
        match op {
            FsOp::Bind { id, parent, name } => {
                let dir = self.dir(*parent)?;
                let handle = self.tree.backing.handle_at(dir.as_fd(), name).map_err(at("bind"))?;
                self.bind(*id, handle, false);
                Ok(())
            }
            FsOp::Forget { ids } => {
                for id in ids {
                    self.unbind(*id);
                }
                Ok(())
            }
            FsOp::Make { parent, name, id, mode_arg: _, attr, xattrs, dir_mtime } => {
                let dir = self.dir(*parent)?;
                let fd = make(dir.as_fd(), name, attr).map_err(at("create"))?;
                let path = match &fd {
                    Some(_) => None,
                    None => Some(file::open_at(dir.as_fd(), name, libc::O_PATH, 0).map_err(at("open new"))?),
                };
                let any =
                    fd.as_ref().or(path.as_ref()).map(AsFd::as_fd).ok_or((Errno(libc::EIO), "open new"))?;
                set_attr(any, attr, xattrs)?;
                let handle = self.tree.backing.handle_of(any).map_err(at("handle"))?;
                self.bind(*id, handle, true);
                if let Some(fd) = fd {
                    self.remember(*id, &Arc::new(fd));
                }
                set_mtime(dir.as_fd(), *dir_mtime)
            }
            FsOp::Tmpfile { parent, id, attr, xattrs } => {
                let dir = self.dir(*parent)?;
                let fd = file::open_tmpfile(dir.as_fd(), 0o600, false).map_err(at("tmpfile"))?;
                set_attr(fd.as_fd(), attr, xattrs)?;
                let handle = self.tree.backing.handle_of(fd.as_fd()).map_err(at("handle"))?;
                self.bind(*id, handle, true);
                self.keep_unnamed(*id, fd);
                Ok(())
            }
            FsOp::Symlink { parent, name, id, target, attr, dir_mtime } => {
                let dir = self.dir(*parent)?;
                file::make_symlink(dir.as_fd(), name, target).map_err(at("symlink"))?;
                let path = file::open_at(dir.as_fd(), name, libc::O_PATH, 0).map_err(at("open new"))?;
                if file::stat(path.as_fd()).is_ok_and(|s| (s.uid, s.gid) != (attr.uid, attr.gid)) {
                    file::chown(path.as_fd(), Some(attr.uid), Some(attr.gid)).map_err(at("chown"))?;
                }
                set_mtime(path.as_fd(), attr.mtime)?;
                let handle = self.tree.backing.handle_of(path.as_fd()).map_err(at("handle"))?;
                self.bind(*id, handle, true);
                set_mtime(dir.as_fd(), *dir_mtime)
            }
            FsOp::Link { id, parent, name, dir_mtime } => {
                let object = self.path(*id).map_err(at("open object"))?;
                let dir = self.dir(*parent)?;
                file::link_at(object.as_fd(), dir.as_fd(), name).map_err(at("link"))?;
                self.named(*id);
                set_mtime(dir.as_fd(), *dir_mtime)
            }
            FsOp::Unlink { parent, name, dir_mtime } => {
                let dir = self.dir(*parent)?;
                let lost = self.before_unlink(dir.as_fd(), name);
                file::unlink(dir.as_fd(), name).map_err(at("unlink"))?;
                lost.inspect(|id| self.name_lost(*id));
                set_mtime(dir.as_fd(), *dir_mtime)
            }
            FsOp::Rmdir { parent, name, dir_mtime } => {
                let dir = self.dir(*parent)?;
                let lost = self.before_unlink(dir.as_fd(), name);
                file::unlink_dir(dir.as_fd(), name).map_err(at("rmdir"))?;
                lost.inspect(|id| self.name_lost(*id));
                set_mtime(dir.as_fd(), *dir_mtime)
            }
            FsOp::Rename { parent, name, to_parent, to_name, flags, dir_mtime, to_dir_mtime, exchanged } => {
                let (from, to) = (self.dir(*parent)?, self.dir(*to_parent)?);
                let moved = self.before_unlink(from.as_fd(), name);
                let lost = self.before_unlink(to.as_fd(), to_name);
                file::rename(from.as_fd(), name, to.as_fd(), to_name, *flags).map_err(at("rename"))?;
                // Two names of one object: rename(2) does nothing.
                if *flags & RENAME_EXCHANGE == 0 && lost != moved {
                    lost.inspect(|id| self.name_lost(*id));
                }
                if let Some([there, here]) = exchanged {
                    for (dir, name, mtime) in [(&to, to_name, there), (&from, name, here)] {
                        let object = file::open_at(dir.as_fd(), name, libc::O_PATH, 0);
                        set_mtime(object.map_err(at("open exchanged"))?.as_fd(), *mtime)?;
                    }
                }
                set_mtime(from.as_fd(), *dir_mtime)?;
                set_mtime(to.as_fd(), *to_dir_mtime)
            }
            FsOp::Touch { parent, dir_mtime, other } => {
                for (id, mtime) in std::iter::once((*parent, *dir_mtime)).chain(*other) {
                    set_mtime(self.dir(id)?.as_fd(), mtime)?;
                }
                Ok(())
            }
            FsOp::Write { .. }
            | FsOp::SetAttr { .. }
            | FsOp::SetXattr { .. }
            | FsOp::RemoveXattr { .. }
            | FsOp::Fallocate { .. }
            | FsOp::SetFlags { .. }
            | FsOp::Fsync { .. }
            | FsOp::SyncFs => self.apply_locked(op, bulk),
        }
    }

    /// Applies an operation on one inode. What the primary could do and this file system refuses because the
    /// object is immutable or append-only (times after an append; writes through a descriptor from before) is
    /// done without the flag. Each of them can be repeated.
    fn apply_locked(&mut self, op: &FsOp, bulk: &[u8]) -> Result<(), Failed> {
        let failed = match self.apply_inode(op, bulk) {
            Err(failed @ (Errno(libc::EPERM), _)) => failed,
            other => return other,
        };
        let Some(path) = inode_of(op).and_then(|id| self.path(id).ok()) else { return Err(failed) };
        let Some(locks) = flags::unlock(path.as_fd()).map_err(at("unlock"))? else { return Err(failed) };
        let result = self.apply_inode(op, bulk);
        flags::relock(path.as_fd(), locks).map_err(at("lock again"))?;
        result
    }

    fn apply_inode(&mut self, op: &FsOp, bulk: &[u8]) -> Result<(), Failed> {
        match op {
            FsOp::Write { id, offset, mtime, clear } => {
                let fd = self.data(*id).map_err(at("open"))?;
                local::write_full(fd.as_fd(), bulk, *offset).map_err(at("write"))?;
                if let Some(mode) = clear {
                    file::chmod(fd.as_fd(), *mode).map_err(at("chmod"))?;
                }
                set_mtime(fd.as_fd(), *mtime)
            }
            FsOp::SetAttr { id, mode, uid, gid, size, atime, mtime } => {
                if let Some(size) = size {
                    let fd = self.data(*id).map_err(at("open"))?;
                    file::set_len(fd.as_fd(), *size).map_err(at("truncate"))?;
                }
                let path = self.path(*id).map_err(at("open"))?;
                if uid.is_some() || gid.is_some() {
                    file::chown(path.as_fd(), *uid, *gid).map_err(at("chown"))?;
                }
                if let Some(mode) = mode {
                    file::chmod(path.as_fd(), *mode).map_err(at("chmod"))?;
                }
                let atime = atime.map_or(SetTime::Omit, SetTime::At);
                file::set_times(path.as_fd(), atime, SetTime::At(*mtime)).map_err(at("set times"))
            }
            FsOp::SetXattr { id, name, flags, mode } => {
                let path = self.path(*id).map_err(at("open"))?;
                match file::set_xattr(path.as_fd(), name, bulk, *flags) {
                    Err(Errno(libc::EOPNOTSUPP)) if is_foreign(name) => return Ok(()),
                    other => other.map_err(at("set xattr"))?,
                }
                same_mode(path.as_fd(), name, *mode)
            }
            FsOp::RemoveXattr { id, name, mode } => {
                let path = self.path(*id).map_err(at("open"))?;
                match file::remove_xattr(path.as_fd(), name) {
                    Err(Errno(libc::EOPNOTSUPP | libc::ENODATA)) if is_foreign(name) => return Ok(()),
                    other => other.map_err(at("remove xattr"))?,
                }
                same_mode(path.as_fd(), name, *mode)
            }
            FsOp::Fallocate { id, mode, offset, length, mtime, clear } => {
                let fd = self.data(*id).map_err(at("open"))?;
                file::fallocate(fd.as_fd(), *mode, *offset, *length).map_err(at("fallocate"))?;
                if let Some(mode) = clear {
                    file::chmod(fd.as_fd(), *mode).map_err(at("chmod"))?;
                }
                set_mtime(fd.as_fd(), *mtime)
            }
            FsOp::SetFlags { id, flags: wanted } => {
                let path = self.path(*id).map_err(at("open"))?;
                let stat = file::stat(path.as_fd()).map_err(at("stat"))?;
                flags::set_travelling_flags(path.as_fd(), &stat, *wanted).map_err(at("set flags"))
            }
            // The caller starts it on the pool.
            _ => Ok(()),
        }
    }
}

fn same_mode(path: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Failed> {
    if !name.starts_with(ACL_PREFIX) {
        return Ok(());
    }
    let own = file::stat(path).map_err(at("stat"))?.mode;
    if own & 0o7777 != mode & 0o7777 {
        file::chmod(path, mode).map_err(at("chmod"))?;
    }
    Ok(())
}

/// The inode an operation is about, where it has only one.
pub(super) fn inode_of(op: &FsOp) -> Option<FileId> {
    match op {
        FsOp::Write { id, .. }
        | FsOp::SetAttr { id, .. }
        | FsOp::SetXattr { id, .. }
        | FsOp::RemoveXattr { id, .. }
        | FsOp::Fallocate { id, .. }
        | FsOp::SetFlags { id, .. }
        | FsOp::Fsync { id, .. } => Some(*id),
        _ => None,
    }
}

/// Name of the operation, for messages.
pub(super) fn name_of(op: &FsOp) -> &'static str {
    match op {
        FsOp::Bind { .. } => "bind",
        FsOp::Forget { .. } => "forget",
        FsOp::Make { .. } => "make",
        FsOp::Tmpfile { .. } => "tmpfile",
        FsOp::Symlink { .. } => "symlink",
        FsOp::Link { .. } => "link",
        FsOp::Unlink { .. } => "unlink",
        FsOp::Rmdir { .. } => "rmdir",
        FsOp::Rename { .. } => "rename",
        FsOp::Write { .. } => "write",
        FsOp::SetAttr { .. } => "setattr",
        FsOp::SetXattr { .. } => "setxattr",
        FsOp::RemoveXattr { .. } => "removexattr",
        FsOp::Fallocate { .. } => "fallocate",
        FsOp::SetFlags { .. } => "setflags",
        FsOp::Fsync { .. } => "fsync",
        FsOp::SyncFs => "sync",
        FsOp::Touch { .. } => "touch",
    }
}
