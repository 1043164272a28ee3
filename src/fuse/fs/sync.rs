//! FSYNC and FSYNCDIR.

use super::request::Request;
use super::{MirrorFs, Outcome};
use crate::fuse::abi::{self, op};
use crate::ports::{Admission, Errno, LocalSync};
use crate::proto::FsOp;
use crate::sys::file;
use std::os::fd::AsFd;

impl MirrorFs {
    pub(super) fn fsync(&self, r: &mut Request<'_>) -> Outcome {
        let a: abi::FsyncIn = r.arg()?;
        let data_only = a.fsync_flags & abi::FSYNC_FDATASYNC != 0;
        let local: LocalSync = if r.header.opcode == op::FSYNCDIR {
            let open = self.dirs.get(a.fh)?;
            Box::new(move || file::sync(open.fd.as_fd()))
        } else {
            Self::sync_later(self.files.get(a.fh)?, data_only)
        };
        if r.id().is_local() {
            self.replicator.local_sync(local, self.pending_empty(r));
            return Ok(());
        }
        let ticket = match self.replicator.admit() {
            Admission::Go(ticket) => ticket,
            // The promise of an fsync is about both nodes: while undecided it waits like a write.
            Admission::Park => return Err(super::Stop::Park),
            // A standby has nothing of its own to promise.
            Admission::Refuse(Errno(libc::EROFS)) => {
                self.replicator.local_sync(local, self.pending_empty(r));
                return Ok(());
            }
            Admission::Refuse(errno) => return Err(errno.into()),
        };
        let _ns = self.tree.ns_shared();
        let _stripe = self.tree.stripe(r.id());
        let op = FsOp::Fsync { id: r.id(), data_only };
        self.replicator.submit_sync(ticket, self.tree.volume, &op, &[], local, self.pending_empty(r));
        Ok(())
    }
}
