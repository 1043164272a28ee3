//! What moves and removes names: LINK, UNLINK, RMDIR, RENAME.

use super::request::Request;
use super::{MirrorFs, Outcome, errno, id};
use crate::fuse::abi;
use crate::ports::Errno;
use crate::proto::{FileId, FsOp};
use crate::sys::file;
use crate::tree::is_hidden;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl MirrorFs {
    pub(super) fn link(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::LinkIn = r.arg()?;
        let name = r.name()?;
        let (old, parent) = (id(a.oldnodeid), r.id());
        Self::refuse_hidden(is_hidden(parent, name))?;
        let ticket = self.admit()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        let fd = self.tree.open_path(old)?;
        let handle = self.tree.handle(old)?;
        // Also a directory, which link(2) refuses anyway.
        if self.tree.inodes.is_local_name(parent, name, false) != old.is_local() {
            return Err(errno(libc::EXDEV));
        }
        file::link_at(fd.as_fd(), dir.as_fd(), name)?;
        let stat = match file::stat(fd.as_fd()) {
            Ok(stat) => stat,
            Err(errno) => {
                // Not replicated, so it must not stay. It changed the directory's times in any case.
                self.spoil("a link could not be looked at and was taken back");
                file::unlink(dir.as_fd(), name)?;
                return Err(errno.into());
            }
        };
        self.tree.inodes.lookup(handle, parent, name, &stat);
        self.tree.inodes.set_kept(old, None);
        let dir_mtime = self.mtime_after(dir.as_fd());
        let op = FsOp::Link { id: old, parent, name: name.to_vec(), dir_mtime };
        let body = self.entry(old, &stat, Self::ttl_of_mutation());
        let reply = self.pending_made(r, &body, old, None);
        self.submit_names(ticket, old.is_local(), [(parent, dir_mtime); 2], &op, reply);
        Ok(())
    }

    /// The object at a name that is about to go, if there is one.
    fn victim(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        match file::open_at(dir, name, libc::O_PATH, 0) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno(libc::ENOENT)) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// (parent, name) no longer names `victim`. Without any name left, its descriptor is kept as long
    /// as the kernel knows it: applications may still use it by descriptor.
    fn name_gone(&self, parent: FileId, name: &[u8], victim: OwnedFd) {
        let Ok(handle) = self.tree.backing.handle_of(victim.as_fd()) else { return };
        let Some(id) = self.tree.inodes.id_of(&handle) else { return };
        self.tree.inodes.drop_alias(id, parent, name);
        if file::stat(victim.as_fd()).is_ok_and(|s| s.nlink == 0) {
            self.tree.inodes.set_kept(id, Some(victim));
        }
    }

    pub(super) fn unlink(&self, r: &mut Request<'_>) -> Outcome {
        let name = r.name()?;
        let parent = r.id();
        if is_hidden(parent, name) {
            return Err(errno(libc::ENOENT));
        }
        let ticket = self.admit()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        let victim = Self::victim(dir.as_fd(), name)?;
        file::unlink(dir.as_fd(), name)?;
        if let Some(victim) = victim {
            self.name_gone(parent, name, victim);
        }
        let dir_mtime = self.mtime_after(dir.as_fd());
        let op = FsOp::Unlink { parent, name: name.to_vec(), dir_mtime };
        let local = self.tree.inodes.is_local_name(parent, name, false);
        self.submit_names(ticket, local, [(parent, dir_mtime); 2], &op, self.pending_empty(r));
        Ok(())
    }

    pub(super) fn rmdir(&self, r: &mut Request<'_>) -> Outcome {
        let name = r.name()?;
        let parent = r.id();
        if is_hidden(parent, name) {
            return Err(errno(libc::ENOENT));
        }
        let ticket = self.admit()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        let victim = Self::victim(dir.as_fd(), name)?;
        file::unlink_dir(dir.as_fd(), name)?;
        if let Some(victim) = victim {
            self.name_gone(parent, name, victim);
        }
        let dir_mtime = self.mtime_after(dir.as_fd());
        let op = FsOp::Rmdir { parent, name: name.to_vec(), dir_mtime };
        let local = self.tree.inodes.is_local_name(parent, name, true);
        self.submit_names(ticket, local, [(parent, dir_mtime); 2], &op, self.pending_empty(r));
        Ok(())
    }

    pub(super) fn rename(&self, r: &mut Request<'_>, with_flags: bool) -> Outcome {
        let (newdir, flags) = if with_flags {
            let a: abi::Rename2In = r.arg()?;
            (a.newdir, a.flags)
        } else {
            let a: abi::RenameIn = r.arg()?;
            (a.newdir, 0)
        };
        let name = r.name()?;
        let to_name = r.name()?;
        let (parent, to_parent) = (r.id(), id(newdir));
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(errno(libc::EINVAL));
        }
        Self::refuse_hidden(is_hidden(parent, name) || is_hidden(to_parent, to_name))?;
        let ticket = self.admit()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        let to_dir = self.tree.open_path(to_parent)?;
        let moved = self.tree.backing.handle_at(dir.as_fd(), name)?;
        let replaced = Self::victim(to_dir.as_fd(), to_name)?;
        let local =
            self.side_of_rename((dir.as_fd(), parent, name), (to_parent, to_name), replaced.as_ref(), flags)?;
        file::rename(dir.as_fd(), name, to_dir.as_fd(), to_name, flags)?;
        self.moved(&moved, replaced, (parent, name), (to_parent, to_name), flags);
        let exchanged = (flags & libc::RENAME_EXCHANGE != 0).then(|| {
            let mtime = |dir: BorrowedFd<'_>, name| match file::open_at(dir, name, libc::O_PATH, 0) {
                Ok(object) => self.mtime_after(object.as_fd()),
                Err(errno) => {
                    tracing::error!(errno = errno.0, "looking at an exchanged object failed");
                    self.spoil("a modification time could not be read");
                    (0, 0)
                }
            };
            [mtime(to_dir.as_fd(), to_name), mtime(dir.as_fd(), name)]
        });
        let (dir_mtime, to_dir_mtime) = (self.mtime_after(dir.as_fd()), self.mtime_after(to_dir.as_fd()));
        let op = FsOp::Rename {
            parent,
            name: name.to_vec(),
            to_parent,
            to_name: to_name.to_vec(),
            flags,
            dir_mtime,
            to_dir_mtime,
            exchanged,
        };
        let dirs = [(parent, dir_mtime), (to_parent, to_dir_mtime)];
        self.submit_names(ticket, local, dirs, &op, self.pending_empty(r));
        Ok(())
    }

    /// Is it a rename of what stays local?
    ///
    /// # Errors
    /// EXDEV: from one side to the other, or of a directory below which something would change sides.
    fn side_of_rename(
        &self,
        (dir, parent, name): (BorrowedFd<'_>, FileId, &[u8]),
        to: (FileId, &[u8]),
        replaced: Option<&OwnedFd>,
        flags: u32,
    ) -> Result<bool, Errno> {
        if self.tree.patterns.is_none() {
            return Ok(false);
        }
        let inodes = &self.tree.inodes;
        let is_dir = file::stat_at(dir, name)?.is_dir();
        let mut may = inodes.may_move((parent, name), to, is_dir);
        if let Some(other) = replaced
            && flags & libc::RENAME_EXCHANGE != 0
        {
            may &= inodes.may_move(to, (parent, name), file::stat(other.as_fd())?.is_dir());
        }
        if may { Ok(inodes.is_local_name(parent, name, is_dir)) } else { Err(Errno(libc::EXDEV)) }
    }

    /// Brings the remembered names up to date after a rename.
    fn moved(
        &self,
        moved: &crate::sys::backing::FileHandle,
        replaced: Option<OwnedFd>,
        from: (FileId, &[u8]),
        to: (FileId, &[u8]),
        flags: u32,
    ) {
        let inodes = &self.tree.inodes;
        let other = replaced.as_ref().and_then(|fd| self.tree.backing.handle_of(fd.as_fd()).ok());
        if other == Some(*moved) {
            // Two names of one file: rename(2) leaves both.
            return;
        }
        if let Some(fd) = replaced {
            if flags & libc::RENAME_EXCHANGE != 0 {
                if let Some(id) = other.and_then(|h| inodes.id_of(&h)) {
                    inodes.set_alias(id, from.0, from.1, false);
                    inodes.drop_alias(id, to.0, to.1);
                }
            } else {
                self.name_gone(to.0, to.1, fd);
            }
        }
        if let Some(id) = inodes.id_of(moved) {
            inodes.set_alias(id, to.0, to.1, false);
            inodes.drop_alias(id, from.0, from.1);
        }
    }
}
