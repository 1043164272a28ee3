//! A file that had no name when the stream began, at the position where it gets one.

use super::{Core, CoreError, Submitted};
use crate::ports::{Errno, PendingReply};
use crate::proto::fsop::Time;
use crate::proto::stream::SPAN;
use crate::proto::{FileId, FsOp};
use crate::replica::local;
use crate::sys::file;
use crate::tree::Tree;
use std::os::fd::AsFd;

/// Largest O_TMPFILE from before the stream that is sent whole when it gets its name (its frames
/// are kept for replay until acknowledged).
const WHOLE_MAX: u64 = 64 << 20;

impl Core {
    /// A file without a name from before this stream got its first one: it is made without a name there,
    /// too, and gets it when its content is complete, so that every prefix of the stream shows the name
    /// with all of it or not at all. The caller holds the namespace lock exclusively, so it does not change.
    pub(super) fn send_whole(
        &mut self,
        tree: &Tree,
        id: FileId,
        parent: FileId,
        name: &[u8],
        dir_mtime: Time,
        reply: &mut Option<PendingReply>,
    ) -> Result<Submitted, CoreError> {
        let volume = tree.volume;
        let failed = |errno: Errno| CoreError::Unnamed { volume, id, errno: errno.0 };
        let path = tree.open_path(id).map_err(failed)?;
        let stat = file::stat(path.as_fd()).map_err(failed)?;
        let attr = local::attr_of(path.as_fd(), &stat).map_err(failed)?;
        if attr.size > WHOLE_MAX {
            return Err(CoreError::TooLarge(volume, id));
        }
        let xattrs = local::xattrs_of(path.as_fd()).map_err(failed)?;
        let fd = tree.open(id, libc::O_RDONLY).map_err(failed)?;
        let mut frames = vec![(FsOp::Tmpfile { parent, id, attr, xattrs: Vec::new() }, Vec::new())];
        for (start, end) in local::data_ranges(fd.as_fd(), 0, attr.size).map_err(failed)? {
            let mut at = start;
            while at < end {
                let mut bulk = vec![0; (end - at).min(SPAN) as usize];
                local::read_full(fd.as_fd(), &mut bulk, at).map_err(failed)?;
                let len = bulk.len() as u64;
                frames.push((FsOp::Write { id, offset: at, mtime: attr.mtime, clear: None }, bulk));
                at += len;
            }
        }
        let size = Some(attr.size);
        let (mode, uid, gid) = (Some(attr.mode & 0o7777), None, None);
        frames.push((FsOp::SetAttr { id, mode, uid, gid, size, atime: None, mtime: attr.mtime }, Vec::new()));
        // Behind the content: writing removes capabilities.
        for (name, value) in xattrs {
            frames.push((FsOp::SetXattr { id, name, flags: 0, mode: attr.mode }, value.into_vec()));
        }
        frames.push((FsOp::Link { id, parent, name: name.to_vec(), dir_mtime }, Vec::new()));
        self.bound.insert((volume, id));
        let last = frames.len() - 1;
        for (n, (op, bulk)) in frames.into_iter().enumerate() {
            let frame = self.encode_op(volume, false, &op, &bulk)?;
            let reply = if n == last { reply.take() } else { None };
            self.push(frame, reply);
        }
        Ok(Submitted::At(self.next - 1))
    }
}
