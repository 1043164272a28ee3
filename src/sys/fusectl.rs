//! A detached fusectl tree: the way to end a FUSE connection without touching its mount.
//!
//! The tree is opened with the fsopen family (Linux 5.2), so no path appears in the machine's mount
//! table and nothing has to be cleaned up: it lives as long as its descriptor. An abort file is
//! opened when the mount is made and kept: it stands for that very connection, also if the kernel
//! gives the number to another one later.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// The control tree of all FUSE connections.
#[derive(Debug)]
pub struct FuseCtl {
    root: OwnedFd,
}

/// The right to end one FUSE connection.
#[derive(Debug)]
pub struct Abort {
    file: File,
}

fn checked(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

impl FuseCtl {
    /// Opens the tree; needs CAP_SYS_ADMIN.
    pub fn open() -> io::Result<Self> {
        // SAFETY: the name is a C string; 1 = FSOPEN_CLOEXEC.
        let context = checked(unsafe { libc::syscall(libc::SYS_fsopen, c"fusectl".as_ptr(), 1) })?;
        // SAFETY: CMD_CREATE takes null key, null value and 0.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                std::ptr::null::<libc::c_char>(),
                std::ptr::null::<libc::c_void>(),
                0,
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: no pointers; 1 = FSMOUNT_CLOEXEC.
        let root = checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
        Ok(Self { root })
    }

    /// The abort handle of connection `number` (the minor device number of its mount).
    pub fn abort_handle(&self, number: u32) -> io::Result<Abort> {
        let path = CString::new(format!("{number}/abort")).map_err(io::Error::other)?;
        // SAFETY: `path` is a C string that lives over the call.
        let raw =
            unsafe { libc::openat(self.root.as_raw_fd(), path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        let fd = checked(libc::c_long::from(raw))?;
        Ok(Abort { file: File::from(fd) })
    }
}

impl Abort {
    /// Ends the connection: every caller of the mount gets an error at once. Idempotent.
    pub fn fire(&self) -> io::Result<()> {
        (&self.file).write_all(b"1")
    }
}
