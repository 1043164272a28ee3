//! What makes an object: CREATE, TMPFILE, MKNOD, MKDIR, SYMLINK.
//!
//! The local call runs under the caller's identity and umask, so owner, group, setgid inheritance,
//! default ACLs and quota come out as on the bare directory; the standby is sent the result.

use super::handles::OpenFile;
use super::lookup::decode_dev;
use super::request::Request;
use super::{MirrorFs, Outcome, errno};
use crate::fuse::abi::{self, CreateIn, CreateOut, OpenOut};
use crate::ports::Errno;
use crate::proto::fsop::{Attr, Xattr};
use crate::proto::{FileId, FsOp};
use crate::sys::backing::FileHandle;
use crate::sys::creds::{self, Acting};
use crate::sys::file::{self, Stat};
use crate::tree::{Share, is_hidden};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The attributes that travel.
fn wire_attr(s: &Stat, flags: u32) -> Attr {
    Attr {
        mode: s.mode,
        uid: s.uid,
        gid: s.gid,
        rdev: s.rdev,
        size: if s.is_file() { s.size } else { 0 },
        atime: s.atime,
        mtime: s.mtime,
        flags,
    }
}

/// The ACLs a new object inherited. Other xattrs (security labels) are each node's own policy.
fn inherited(list: Result<Vec<u8>, Errno>, get: impl Fn(&[u8]) -> Result<Vec<u8>, Errno>) -> Vec<Xattr> {
    let Ok(list) = list else { return Vec::new() };
    let names = list.split(|b| *b == 0).filter(|n| n.starts_with(b"system.posix_acl_"));
    names.filter_map(|n| Some((n.to_vec(), get(n).ok()?.into()))).collect()
}

/// Why the standby is not equal any more: at least the directory's times differ.
const TAKEN_BACK: &str = "a new object could not be looked at and was taken back";

/// What was just made.
struct New {
    fd: OwnedFd,
    handle: FileHandle,
    stat: Stat,
    /// Inherited from the directory.
    flags: u32,
}

impl MirrorFs {
    /// Looks at what was just made. On failure the caller takes it back: an object that is not
    /// replicated must not stay.
    fn inspect(&self, fd: OwnedFd) -> Result<New, Errno> {
        let handle = self.tree.backing.handle_of(fd.as_fd())?;
        let stat = file::stat(fd.as_fd())?;
        let flags = file::flags::travelling_flags(fd.as_fd(), &stat)?;
        Ok(New { fd, handle, stat, flags })
    }

    fn open_out(&self, id: FileId, fd: OwnedFd, share: Share) -> OpenOut {
        let era = self.era.number();
        let fh = self.files.insert(OpenFile { id, fd, writable: true, append: false, era, _share: share });
        OpenOut { fh, open_flags: self.own_caching().open_flags(), backing_id: 0 }
    }

    pub(super) fn create(&self, r: &mut Request<'_>) -> Outcome {
        let a: CreateIn = r.arg()?;
        let name = r.name()?;
        let parent = r.id();
        Self::refuse_hidden(is_hidden(parent, name))?;
        let ticket = self.admit()?;
        let share = self.tree.descriptors.take()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        creds::set_umask(a.umask)?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        let made = {
            let _as = Acting::begin(r.header.uid, r.header.gid, &r.groups())?;
            file::open_at(dir.as_fd(), name, flags, a.mode & 0o7777)
        };
        let fd = match made {
            // The name is there although the kernel believed it was not. ESTALE makes it look anew and then open
            // what it finds, with the caller's rights.
            Err(Errno(libc::EEXIST)) if a.flags & libc::O_EXCL as u32 == 0 => {
                return Err(errno(libc::ESTALE));
            }
            other => other?,
        };
        let new = match self.inspect(fd) {
            Ok(new) => new,
            Err(errno) => {
                self.spoil(TAKEN_BACK);
                file::unlink(dir.as_fd(), name)?;
                return Err(errno.into());
            }
        };
        let id = self.tree.inodes.lookup(new.handle, parent, name, &new.stat);
        let list = file::fd_list_xattr(new.fd.as_fd());
        let dir_mtime = self.mtime_after(dir.as_fd());
        let op = FsOp::Make {
            parent,
            name: name.to_vec(),
            id,
            mode_arg: a.mode,
            attr: wire_attr(&new.stat, new.flags),
            xattrs: inherited(list, |n| file::fd_get_xattr(new.fd.as_fd(), n)),
            dir_mtime,
        };
        let open = self.open_out(id, new.fd, share);
        let body = CreateOut { entry: self.entry(id, &new.stat, Self::ttl_of_mutation()), open };
        let reply = self.pending_made(r, &body, id, Some(open.fh));
        self.submit_names(ticket, id.is_local(), [(parent, dir_mtime); 2], &op, reply);
        Ok(())
    }

    pub(super) fn tmpfile(&self, r: &mut Request<'_>) -> Outcome {
        let a: CreateIn = r.arg()?;
        let parent = r.id();
        let ticket = self.admit()?;
        let share = self.tree.descriptors.take()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        creds::set_umask(a.umask)?;
        let exclusive = a.flags & libc::O_EXCL as u32 != 0;
        let fd = {
            let _as = Acting::begin(r.header.uid, r.header.gid, &r.groups())?;
            file::open_tmpfile(dir.as_fd(), a.mode & 0o7777, exclusive)?
        };
        let new = self.inspect(fd)?;
        // Keeps the file alive for a later link even if the application closes its descriptor.
        let kept = self.tree.backing.open_path(&new.handle)?;
        let id = self.tree.inodes.lookup_unnamed(new.handle, parent, kept);
        let list = file::fd_list_xattr(new.fd.as_fd());
        let xattrs = inherited(list, |n| file::fd_get_xattr(new.fd.as_fd(), n));
        let op = FsOp::Tmpfile { parent, id, attr: wire_attr(&new.stat, new.flags), xattrs };
        let open = self.open_out(id, new.fd, share);
        let body = CreateOut { entry: self.entry(id, &new.stat, Self::ttl_of_mutation()), open };
        let reply = self.pending_made(r, &body, id, Some(open.fh));
        self.submit(ticket, id, &op, &[], reply);
        Ok(())
    }

    pub(super) fn mknod(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::MknodIn = r.arg()?;
        self.make(r, a.mode, a.umask, |dir, name| file::make_node(dir, name, a.mode, decode_dev(a.rdev)))
    }

    pub(super) fn mkdir(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::MkdirIn = r.arg()?;
        let mode = libc::S_IFDIR | (a.mode & 0o7777);
        self.make(r, mode, a.umask, |dir, name| file::make_dir(dir, name, a.mode & 0o7777))
    }

    fn make(
        &self,
        r: &mut Request<'_>,
        mode_arg: u32,
        umask: u32,
        make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Outcome {
        let name = r.name()?;
        let parent = r.id();
        Self::refuse_hidden(is_hidden(parent, name))?;
        let ticket = self.admit()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        creds::set_umask(umask)?;
        {
            let _as = Acting::begin(r.header.uid, r.header.gid, &r.groups())?;
            make(dir.as_fd(), name)?;
        }
        let new = self.made(dir.as_fd(), name, mode_arg)?;
        let id = self.tree.inodes.lookup(new.handle, parent, name, &new.stat);
        let list = file::list_xattr(new.fd.as_fd());
        let dir_mtime = self.mtime_after(dir.as_fd());
        let op = FsOp::Make {
            parent,
            name: name.to_vec(),
            id,
            mode_arg,
            attr: wire_attr(&new.stat, new.flags),
            xattrs: inherited(list, |n| file::get_xattr(new.fd.as_fd(), n)),
            dir_mtime,
        };
        let body = self.entry(id, &new.stat, Self::ttl_of_mutation());
        let reply = self.pending_made(r, &body, id, None);
        self.submit_names(ticket, id.is_local(), [(parent, dir_mtime); 2], &op, reply);
        Ok(())
    }

    /// Opens and looks at what was just made as `name`; takes it back if that fails.
    fn made(&self, dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<New, Errno> {
        let opened = file::open_at(dir, name, libc::O_PATH, 0).and_then(|fd| self.inspect(fd));
        opened.inspect_err(|_| {
            self.spoil(TAKEN_BACK);
            let undone = if mode & libc::S_IFMT == libc::S_IFDIR {
                file::unlink_dir(dir, name)
            } else {
                file::unlink(dir, name)
            };
            if let Err(errno) = undone {
                tracing::error!(errno = errno.0, "an object that cannot be replicated could not be removed");
            }
        })
    }

    pub(super) fn symlink(&self, r: &mut Request<'_>) -> Outcome {
        let name = r.name()?;
        let target = r.name()?;
        let parent = r.id();
        Self::refuse_hidden(is_hidden(parent, name))?;
        let ticket = self.admit()?;
        let _ns = self.tree.ns_exclusive();
        let dir = self.tree.open_path(parent)?;
        {
            let _as = Acting::begin(r.header.uid, r.header.gid, &r.groups())?;
            file::make_symlink(dir.as_fd(), name, target)?;
        }
        let new = self.made(dir.as_fd(), name, libc::S_IFLNK)?;
        let id = self.tree.inodes.lookup(new.handle, parent, name, &new.stat);
        let dir_mtime = self.mtime_after(dir.as_fd());
        let op = FsOp::Symlink {
            parent,
            name: name.to_vec(),
            id,
            target: target.to_vec(),
            attr: wire_attr(&new.stat, new.flags),
            dir_mtime,
        };
        let body = self.entry(id, &new.stat, Self::ttl_of_mutation());
        let reply = self.pending_made(r, &body, id, None);
        self.submit_names(ticket, id.is_local(), [(parent, dir_mtime); 2], &op, reply);
        Ok(())
    }
}
