//! File handles: a durable name of an inode, without a descriptor.

use crate::ports::Errno;
use crate::sys::errno::{Name, check, retry};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Longest handle kept: ext4 8, tmpfs 12, XFS and bcachefs 24, btrfs 20-40 bytes. A file system with
/// longer ones (NFS, some stacked ones) is refused with EOVERFLOW; it could not be mirrored anyway.
const BYTES_MAX: usize = 56;

/// A deleted object whose inode number is just being given to a new one is not ESTALE on ext4 but ENOMEM:
/// the kernel's inode cache has nothing to return for an inode under creation (measured on 6.18: one in
/// nine opens while another thread creates and unlinks). That is over when the creation is, so ENOMEM is
/// asked again this often before it is believed, [`CREATION_PAUSE`] apart.
const CREATION_TRIES: u32 = 100;
/// Far more than a creation takes; all tries together are far less than any deadline.
const CREATION_PAUSE: Duration = Duration::from_millis(1);

/// What name_to_handle_at(2) returned. Equal handles are the same inode of the same generation, so
/// a reused inode number is a different handle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileHandle {
    kind: i32,
    len: u8,
    // 56 = 32 + 24: serde implements arrays up to 32.
    head: [u8; 32],
    tail: [u8; BYTES_MAX - 32],
}

impl FileHandle {
    fn new(kind: i32, bytes: &[u8]) -> Result<Self, Errno> {
        if bytes.len() > BYTES_MAX {
            return Err(Errno(libc::EOVERFLOW));
        }
        let mut all = [0; BYTES_MAX];
        all[..bytes.len()].copy_from_slice(bytes);
        let (mut head, mut tail) = ([0; 32], [0; BYTES_MAX - 32]);
        head.copy_from_slice(&all[..32]);
        tail.copy_from_slice(&all[32..]);
        Ok(Self { kind, len: bytes.len() as u8, head, tail })
    }
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.kind)?;
        self.head.iter().chain(&self.tail).take(usize::from(self.len)).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// struct file_handle with room for the bytes.
#[repr(C)]
struct Raw {
    handle_bytes: u32,
    handle_type: i32,
    bytes: [u8; BYTES_MAX],
}

fn query(dir: BorrowedFd<'_>, name: *const libc::c_char, flags: i32) -> Result<FileHandle, Errno> {
    let mut raw = Raw { handle_bytes: BYTES_MAX as u32, handle_type: 0, bytes: [0; BYTES_MAX] };
    let mut mount_id = 0;
    // SAFETY: `dir` is open, `name` is NUL-terminated, `raw` is laid out as struct file_handle with
    // `handle_bytes` bytes of room behind it.
    check(unsafe {
        libc::name_to_handle_at(dir.as_raw_fd(), name, (&raw mut raw).cast(), &raw mut mount_id, flags)
    })?;
    let bytes = raw.bytes.get(..raw.handle_bytes as usize).ok_or(Errno(libc::EOVERFLOW))?;
    FileHandle::new(raw.handle_type, bytes)
}

pub(super) fn of_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<FileHandle, Errno> {
    let name = Name::new(name)?;
    query(dir, name.as_ptr(), 0)
}

pub(super) fn of_fd(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    query(fd, c"".as_ptr(), libc::AT_EMPTY_PATH)
}

/// `flags` are passed on as they are.
pub(super) fn open(mount: BorrowedFd<'_>, handle: &FileHandle, flags: i32) -> Result<OwnedFd, Errno> {
    let mut raw =
        Raw { handle_bytes: u32::from(handle.len), handle_type: handle.kind, bytes: [0; BYTES_MAX] };
    raw.bytes[..32].copy_from_slice(&handle.head);
    raw.bytes[32..].copy_from_slice(&handle.tail);
    let mut tries = 0;
    let fd = loop {
        let opened = retry(|| {
            // SAFETY: `mount` is open, `raw` is laid out as struct file_handle with its bytes behind it.
            check(unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast(), flags) })
        });
        match opened {
            Err(Errno(libc::ENOMEM)) if tries < CREATION_TRIES => {
                tries += 1;
                std::thread::park_timeout(CREATION_PAUSE);
            }
            done => break done?,
        }
    };
    // SAFETY: the kernel returned this descriptor to us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
