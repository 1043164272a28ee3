//! What is asked of the kernel at INIT, and what must not be missing.

use super::abi::{self, InHeader, InitIn, InitOut, init};
use crate::ports::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

/// Longest WRITE and READ: 256 pages of 4 KiB, the kernel's default `max_pages_limit`.
pub const MAX_WRITE: u32 = 1 << 20;

/// Room for headers and arguments before the data of a WRITE.
pub const HEAD_ROOM: usize = 4096;

/// Requests the kernel may have in flight in the background (readahead, writeback of mapped pages,
/// asynchronous direct I/O). Their replies wait for the peer, so more than the default of 12.
const MAX_BACKGROUND: u16 = 256;

/// Asked for where the kernel offers it.
const WANTED: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::EXPLICIT_INVAL_DATA
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::CREATE_SUPP_GROUP
    | init::DIRECT_IO_ALLOW_MMAP
    | init::HAS_RESEND;

/// Without these the mount is refused. HANDLE_KILLPRIV_V2: suid bits would survive writes, and every
/// write would cost a GETXATTR. POSIX_ACL: the ACL mask would be taken for the group's rights.
/// DONT_MASK: default ACLs would be inherited wrongly.
const MANDATORY: [(u64, &str); 3] = [
    (init::HANDLE_KILLPRIV_V2, "HANDLE_KILLPRIV_V2"),
    (init::POSIX_ACL, "POSIX_ACL"),
    (init::DONT_MASK, "DONT_MASK"),
];

/// What was negotiated. Sent by the kernel once in the life of a mount: whoever takes the device over
/// needs these values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitValues {
    /// Protocol minor version spoken.
    pub minor: u32,
    /// Negotiated flags.
    pub flags: u64,
    /// Longest WRITE.
    pub max_write: u32,
}

impl InitValues {
    /// Was this flag negotiated?
    pub const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Can every cached name be dropped by one notification? Else names are cached more carefully.
    pub const fn has_inc_epoch(&self) -> bool {
        self.minor >= abi::MINOR_INC_EPOCH
    }
}

/// Why a kernel is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The first request was not INIT, or too short.
    #[error("the kernel's first message is no INIT")]
    NotInit,
    /// Too old or not 7.x.
    #[error("the kernel speaks FUSE {0}.{1}; at least 7.{min} is needed (Linux 5.12)", min = abi::MINOR_MIN)]
    Version(u32, u32),
    /// A mandatory feature is missing.
    #[error("the kernel's FUSE lacks {0}")]
    Lacks(&'static str),
}

impl InitError {
    /// What the kernel is answered.
    pub const fn errno(&self) -> Errno {
        Errno(libc::EPROTO)
    }
}

/// Decides the answer to the INIT request in `buf`; flags in `mask` are treated as not offered.
pub fn negotiate(buf: &[u8], mask: u64) -> Result<(InHeader, InitOut, InitValues), InitError> {
    let (header, args) = InHeader::read_from_prefix(buf).map_err(|_| InitError::NotInit)?;
    if header.opcode != abi::op::INIT {
        return Err(InitError::NotInit);
    }
    // A kernel before 7.36 sends 16 bytes: the rest reads as zero.
    let mut full = [0u8; size_of::<InitIn>()];
    let len = args.len().min(full.len());
    if len < 16 {
        return Err(InitError::NotInit);
    }
    full[..len].copy_from_slice(&args[..len]);
    let asked = InitIn::read_from_bytes(&full).map_err(|_| InitError::NotInit)?;
    if asked.major != abi::MAJOR || asked.minor < abi::MINOR_MIN {
        return Err(InitError::Version(asked.major, asked.minor));
    }
    let mut offered = u64::from(asked.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(asked.flags2) << 32;
    }
    let flags = offered & WANTED & !mask;
    for (flag, name) in MANDATORY {
        if flags & flag == 0 {
            return Err(InitError::Lacks(name));
        }
    }
    // Without MAX_PAGES requests are limited to 32 pages.
    let max_write = if flags & init::MAX_PAGES == 0 { 128 << 10 } else { MAX_WRITE };
    let minor = asked.minor.min(abi::MINOR);
    let reply = InitOut {
        major: abi::MAJOR,
        minor,
        max_readahead: asked.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write,
        time_gran: 1,
        max_pages: (max_write >> 12) as u16,
        ..InitOut::default()
    };
    Ok((header, reply, InitValues { minor, flags, max_write }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn request(major: u32, minor: u32, flags: u64) -> Vec<u8> {
        let header = InHeader { opcode: abi::op::INIT, unique: 2, ..InHeader::default() };
        let args = InitIn {
            major,
            minor,
            max_readahead: 131_072,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..InitIn::default()
        };
        [header.as_bytes(), args.as_bytes()].concat()
    }

    #[test]
    fn what_is_not_wanted_is_never_asked_for() {
        let (_, reply, values) = negotiate(&request(7, 45, u64::MAX), 0).expect("accepted");
        assert_eq!(values.flags, WANTED);
        assert_eq!((u64::from(reply.flags2) << 32) | u64::from(reply.flags), WANTED);
        let writeback = 1 << 16;
        assert_eq!(values.flags & writeback, 0);
        assert_eq!((reply.max_write, reply.max_pages), (1 << 20, 256));
    }

    #[test]
    fn a_newer_kernel_is_answered_with_our_version_and_an_older_one_with_its_own() {
        assert_eq!(negotiate(&request(7, 99, u64::MAX), 0).map(|r| r.1.minor), Ok(abi::MINOR));
        assert_eq!(negotiate(&request(7, 34, u64::MAX), 0).map(|r| r.1.minor), Ok(34));
    }

    #[test]
    fn kernels_that_would_break_a_promise_are_refused() {
        let lacks = |flag| negotiate(&request(7, 45, u64::MAX), flag).err();
        assert_eq!(lacks(init::POSIX_ACL), Some(InitError::Lacks("POSIX_ACL")));
        assert_eq!(lacks(init::HANDLE_KILLPRIV_V2), Some(InitError::Lacks("HANDLE_KILLPRIV_V2")));
        assert_eq!(lacks(init::MAX_PAGES), None);
        assert_eq!(negotiate(&request(7, 30, u64::MAX), 0).err(), Some(InitError::Version(7, 30)));
        assert_eq!(negotiate(&request(8, 1, u64::MAX), 0).err(), Some(InitError::Version(8, 1)));
        assert_eq!(negotiate(&[0; 10], 0).err(), Some(InitError::NotInit));
        assert_eq!(negotiate(&[0; 100], 0).err(), Some(InitError::NotInit));
    }

    #[test]
    fn a_short_init_of_an_old_kernel_is_understood() {
        let buf = request(7, 34, u64::MAX);
        let values = negotiate(&buf[..40 + 16], 0).map(|r| r.2).expect("accepted");
        assert_eq!(values.flags >> 32, 0);
    }
}
