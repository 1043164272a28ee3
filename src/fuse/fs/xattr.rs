//! SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.

use super::request::Request;
use super::{MirrorFs, Outcome, errno};
use crate::fuse::abi::{self, GetxattrOut, SetxattrExt, SetxattrIn, init};
use crate::ports::Errno;
use crate::proto::FsOp;
use crate::sys::file;
use crate::tree::is_hidden_xattr;
use std::os::fd::{AsFd, BorrowedFd};

/// The mode after a change of xattrs (an ACL changes it).
fn mode_after(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    file::stat(fd).map(|s| s.mode)
}

impl MirrorFs {
    pub(super) fn setxattr(&self, r: &mut Request<'_>) -> Outcome {
        let a: SetxattrIn = r.arg()?;
        let extended = self.init.has(init::SETXATTR_EXT);
        let ext: SetxattrExt = if extended { r.arg()? } else { SetxattrExt::default() };
        let name = r.name()?;
        let value = r.bytes(a.size as usize)?;
        let id = r.id();
        Self::refuse_hidden(is_hidden_xattr(name))?;
        let ticket = self.admit()?;
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(id);
        let fd = self.tree.open_path(id)?;
        let before = mode_after(fd.as_fd())?;
        file::set_xattr(fd.as_fd(), name, value, a.flags)?;
        let mut mode = mode_after(fd.as_fd()).unwrap_or(before);
        if ext.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0 && mode & libc::S_ISGID != 0 {
            match file::chmod(fd.as_fd(), mode & !libc::S_ISGID) {
                Ok(()) => mode &= !libc::S_ISGID,
                Err(errno) => tracing::error!(errno = errno.0, "clearing sgid after an ACL failed"),
            }
        }
        let op = FsOp::SetXattr { id, name: name.to_vec(), flags: a.flags, mode };
        self.submit(ticket, id, &op, value, self.pending_empty(r));
        Ok(())
    }

    pub(super) fn removexattr(&self, r: &mut Request<'_>) -> Outcome {
        let name = r.name()?;
        let id = r.id();
        if is_hidden_xattr(name) {
            return Err(errno(libc::ENODATA));
        }
        let ticket = self.admit()?;
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(id);
        let fd = self.tree.open_path(id)?;
        let before = mode_after(fd.as_fd())?;
        file::remove_xattr(fd.as_fd(), name)?;
        let mode = mode_after(fd.as_fd()).unwrap_or(before);
        let op = FsOp::RemoveXattr { id, name: name.to_vec(), mode };
        self.submit(ticket, id, &op, &[], self.pending_empty(r));
        Ok(())
    }

    /// Size 0 asks for the length.
    fn reply_value(&self, r: &Request<'_>, size: u32, value: &[u8]) -> Outcome {
        if size == 0 {
            return self.reply(r, &GetxattrOut { size: value.len() as u32, padding: 0 });
        }
        if value.len() > size as usize {
            return Err(errno(libc::ERANGE));
        }
        self.device.reply(r.header.unique, value, &[]);
        Ok(())
    }

    pub(super) fn getxattr(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::GetxattrIn = r.arg()?;
        let name = r.name()?;
        if is_hidden_xattr(name) {
            return Err(errno(libc::ENODATA));
        }
        let fd = self.tree.open_path(r.id())?;
        let value = file::get_xattr(fd.as_fd(), name)?;
        self.reply_value(r, a.size, &value)
    }

    pub(super) fn listxattr(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::GetxattrIn = r.arg()?;
        let fd = self.tree.open_path(r.id())?;
        let all = file::list_xattr(fd.as_fd())?;
        // The backing file system hides trusted.* from unprivileged callers; the daemon is not one,
        // so it does the hiding for its callers.
        let root = r.header.uid == 0;
        let shown = |n: &&[u8]| !n.is_empty() && !is_hidden_xattr(n) && (root || !n.starts_with(b"trusted."));
        let mut list = Vec::with_capacity(all.len());
        for name in all.split(|b| *b == 0).filter(shown) {
            list.extend_from_slice(name);
            list.push(0);
        }
        self.reply_value(r, a.size, &list)
    }
}
