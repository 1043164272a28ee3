//! The open `/dev/fuse`: requests in, replies and notifications out.

use super::abi::{self, InvalEntryOut, InvalInodeOut, OutHeader};
use crate::ports::{Errno, ReplySink};
use crate::proto::FileId;
use crate::sys::errno;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::IntoBytes;

/// One end of a FUSE connection. All threads share the one descriptor: cloned ones would end their
/// requests when closed and so break a hand-over.
#[derive(Debug)]
pub struct Device(File);

/// What a read of the device gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A request of this length.
    Request(usize),
    /// Nothing (a signal, or a request that was taken back): read again.
    Nothing,
    /// The connection is over.
    Ended,
}

impl Device {
    /// Opens a new connection; it lives from the moment it is mounted.
    pub fn open() -> Result<Self, Errno> {
        let file = File::options().read(true).write(true).open("/dev/fuse").map_err(|e| errno::of(&e))?;
        Ok(Self(file))
    }

    /// Takes over an existing connection.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }

    /// The descriptor, for the guard to hold.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for one request.
    pub fn receive(&self, buf: &mut [u8]) -> Received {
        match (&self.0).read(buf) {
            Ok(0) => Received::Ended,
            Ok(len) => Received::Request(len),
            Err(error) => match error.raw_os_error() {
                // ENOENT: the request was interrupted before we read it.
                Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => Received::Nothing,
                Some(libc::ENODEV | libc::ECONNABORTED) => Received::Ended,
                _ => {
                    tracing::error!(%error, "reading /dev/fuse failed, the mount is given up");
                    Received::Ended
                }
            },
        }
    }

    fn write(&self, unique: u64, error: i32, parts: [&[u8]; 2]) -> Result<(), Errno> {
        let len = (size_of::<OutHeader>() + parts[0].len() + parts[1].len()) as u32;
        let header = OutHeader { len, error, unique };
        let slices = [IoSlice::new(header.as_bytes()), IoSlice::new(parts[0]), IoSlice::new(parts[1])];
        // An empty slice at the end is harmless, but the kernel's copy is shorter without it.
        let used = if parts[1].is_empty() { &slices[..2] } else { &slices[..] };
        (&self.0).write_vectored(used).map(drop).map_err(|e| errno::of(&e))
    }

    /// Success with two pieces of body.
    pub fn reply(&self, unique: u64, head: &[u8], rest: &[u8]) {
        if let Err(errno) = self.write(unique, 0, [head, rest]) {
            log_reply(unique, errno);
        }
    }

    /// Failure.
    pub fn error(&self, unique: u64, errno: Errno) {
        if let Err(e) = self.write(unique, -errno.0, [&[], &[]]) {
            log_reply(unique, e);
        }
    }

    /// Drops the kernel's cached attributes and pages of `id`. ENOENT: it had none.
    ///
    /// Waits for dirty mapped pages to be written through this connection: never call it from a
    /// thread that serves requests, nor while requests are parked.
    pub fn invalidate_inode(&self, id: FileId) -> Result<(), Errno> {
        let body = InvalInodeOut { ino: id.0, off: 0, len: 0 };
        self.write(0, abi::notify::INVAL_INODE, [body.as_bytes(), &[]])
    }

    /// Drops the kernel's cached attributes of `id` alone: waits for nothing.
    pub fn invalidate_attributes(&self, id: FileId) -> Result<(), Errno> {
        let body = InvalInodeOut { ino: id.0, off: -1, len: 0 };
        self.write(0, abi::notify::INVAL_INODE, [body.as_bytes(), &[]])
    }

    /// Drops the kernel's cached name. Waits for the directory's running operations: never call it
    /// from a thread that serves requests, nor while requests are parked.
    pub fn invalidate_entry(&self, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        let body = InvalEntryOut { parent: parent.0, namelen: name.len() as u32, flags: 0 };
        let mut with_nul = Vec::with_capacity(name.len() + 1);
        with_nul.extend_from_slice(name);
        with_nul.push(0);
        self.write(0, abi::notify::INVAL_ENTRY, [body.as_bytes(), &with_nul])
    }

    /// Every cached name must be looked up again. Does not wait. Needs protocol 7.44.
    pub fn increment_epoch(&self) -> Result<(), Errno> {
        self.write(0, abi::notify::INC_EPOCH, [&[], &[]])
    }

    /// Asks for the requests that an earlier reader took and never answered.
    pub fn resend(&self) -> Result<(), Errno> {
        self.write(0, abi::notify::RESEND, [&[], &[]])
    }
}

/// ENOENT: the request is gone (the connection was aborted).
fn log_reply(unique: u64, errno: Errno) {
    if errno.0 == libc::ENOENT {
        tracing::debug!(unique, "a reply came too late");
    } else {
        tracing::error!(unique, errno = errno.0, "writing a reply to /dev/fuse failed");
    }
}

impl ReplySink for Device {
    fn send(&self, unique: u64, error: i32, body: &[u8]) {
        if error == 0 {
            self.reply(unique, body, &[]);
        } else {
            self.error(unique, Errno(error));
        }
    }
}
