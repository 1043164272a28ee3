//! Is this still the directory it was?
//!
//! A data volume that was not mounted at boot leaves an empty directory at the same path; a restored
//! copy has the same content and another history. Both must be noticed before anything is served or
//! sent. The identity is a random token in an xattr of the root (`trusted.skc.token`; a file in
//! `.skc/` where the file system has no trusted xattrs) and the root's file handle.
//! Not compared: the file-system id, which some file systems derive from a device number that changes
//! with the boot; it is kept for display.

use super::HIDDEN_DIR;
use crate::base::Patterns;
use crate::ports::Errno;
use crate::sys::backing::{Backing, FileHandle};
use crate::sys::file::{self, DirEntry, Entries};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// What is remembered (durably, outside the directory) about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Random, 32 hexadecimal digits.
    pub token: String,
    /// The root's file handle.
    pub root: FileHandle,
    /// File-system id when the identity was taken; for display.
    pub fs_id: u64,
}

/// Result of [`check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one.
    Ok {
        /// It holds nothing (but a fresh file system's `lost+found`).
        empty: bool,
    },
    /// Nothing here and no token: most likely a volume that is not mounted.
    EmptyWhereNotEmpty,
    /// Content, but no token: somebody else's directory, or a copy without xattrs.
    Missing,
    /// Another token, or our token in another root: a different or a restored directory.
    Replaced,
}

/// Failures name the step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The xattr or its stand-in file could not be read.
    #[error("reading {what} of the directory failed with errno {}", errno.0)]
    Read {
        /// Which datum.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The xattr or its stand-in file could not be written.
    #[error("writing {what} of the directory failed with errno {}", errno.0)]
    Write {
        /// Which datum.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The directory could not be listed.
    #[error("listing the directory failed with errno {}", .0.0)]
    List(Errno),
    /// No random bytes from the kernel.
    #[error("the kernel gave no random bytes")]
    Random,
}

const TOKEN: &str = "token";
const STAMP: &str = "stamp";

/// Longest stored value: a token is 32 bytes, a stamp is of the same order.
const VALUE_MAX: usize = 4096;

fn xattr(what: &str) -> Vec<u8> {
    [super::HIDDEN_XATTR, what.as_bytes()].concat()
}

fn hidden_dir(backing: &Backing) -> Result<OwnedFd, Errno> {
    file::open_at(backing.base(), HIDDEN_DIR, libc::O_PATH | libc::O_DIRECTORY, 0)
}

fn read_file(backing: &Backing, what: &str) -> Result<Vec<u8>, Errno> {
    let dir = hidden_dir(backing)?;
    let fd = file::open_at(dir.as_fd(), what.as_bytes(), libc::O_RDONLY, 0)?;
    let mut buf = vec![0; VALUE_MAX];
    let len = file::pread(fd.as_fd(), &mut buf, 0)?;
    buf.truncate(len);
    Ok(buf)
}

/// Written beside and renamed, so that a power cut leaves the old or the new value.
fn write_file(backing: &Backing, what: &str, value: &[u8]) -> Result<(), Errno> {
    match file::make_dir(backing.base(), HIDDEN_DIR, 0o700) {
        Ok(()) | Err(Errno(libc::EEXIST)) => {}
        Err(other) => return Err(other),
    }
    let dir = file::open_dir(hidden_dir(backing)?.as_fd())?;
    let new = format!("{what}.new");
    match file::unlink(dir.as_fd(), new.as_bytes()) {
        Ok(()) | Err(Errno(libc::ENOENT)) => {}
        Err(other) => return Err(other),
    }
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    let fd = file::open_at(dir.as_fd(), new.as_bytes(), flags, 0o600)?;
    if file::pwrite(fd.as_fd(), value, 0)? != value.len() {
        return Err(Errno(libc::ENOSPC));
    }
    file::sync(fd.as_fd())?;
    file::rename(dir.as_fd(), new.as_bytes(), dir.as_fd(), what.as_bytes(), 0)?;
    file::sync(dir.as_fd())
}

fn read(backing: &Backing, what: &'static str) -> Result<Option<Vec<u8>>, IdentityError> {
    match file::get_xattr(backing.base(), &xattr(what)) {
        Ok(value) => return Ok(Some(value)),
        Err(Errno(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM)) => {}
        Err(errno) => return Err(IdentityError::Read { what, errno }),
    }
    match read_file(backing, what) {
        Ok(value) => Ok(Some(value)),
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(errno) => Err(IdentityError::Read { what, errno }),
    }
}

fn write(backing: &Backing, what: &'static str, value: &[u8]) -> Result<(), IdentityError> {
    let wrote = match file::set_xattr(backing.base(), &xattr(what), value, 0) {
        Err(Errno(libc::EOPNOTSUPP | libc::EPERM)) => write_file(backing, what, value),
        Ok(()) => file::sync(backing.base()),
        Err(errno) => Err(errno),
    };
    wrote.map_err(|errno| IdentityError::Write { what, errno })
}

/// Holds the directory nothing an operator would miss, and nothing that is mirrored?
pub fn is_empty(backing: &Backing, patterns: Option<&Patterns>) -> Result<bool, IdentityError> {
    let dir = file::open_dir(backing.base()).map_err(IdentityError::List)?;
    let mut buf = [0; 4096];
    loop {
        let len = file::read_dir(dir.as_fd(), &mut buf, None).map_err(IdentityError::List)?;
        if len == 0 {
            return Ok(true);
        }
        let ignored: [&[u8]; 4] = [b".", b"..", b"lost+found", HIDDEN_DIR];
        let is_dir = |kind| matches!(kind, libc::DT_DIR | libc::DT_UNKNOWN);
        let local =
            |e: &DirEntry<'_>| patterns.is_some_and(|p| p.child(p.root(), e.name, is_dir(e.kind)).is_none());
        if Entries::new(&buf[..len]).any(|e| !ignored.contains(&e.name) && !local(&e)) {
            return Ok(false);
        }
    }
}

fn new_token() -> Result<String, IdentityError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| IdentityError::Random)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// The directory's identity; makes its token if it has none. The caller has decided that this
/// directory is to be mirrored.
pub fn establish(backing: &Backing) -> Result<Identity, IdentityError> {
    let token = if let Some(token) = read(backing, TOKEN)? {
        String::from_utf8_lossy(&token).into_owned()
    } else {
        let token = new_token()?;
        write(backing, TOKEN, token.as_bytes())?;
        token
    };
    let fs_id = backing.stat_fs().map_or(0, |s| s.id);
    Ok(Identity { token, root: *backing.root_handle(), fs_id })
}

/// Gives the directory a new token: after `adopt`, its history starts anew.
pub fn renew(backing: &Backing) -> Result<Identity, IdentityError> {
    write(backing, TOKEN, new_token()?.as_bytes())?;
    establish(backing)
}

/// Compares the directory with what is remembered. `Missing` and `EmptyWhereNotEmpty` need no content to
/// have been there: a directory that was taken into the mirror has a token even while it is empty.
pub fn check(
    backing: &Backing,
    patterns: Option<&Patterns>,
    expected: &Identity,
) -> Result<Verdict, IdentityError> {
    let token = read(backing, TOKEN)?;
    let empty = is_empty(backing, patterns)?;
    Ok(match token {
        None if empty => Verdict::EmptyWhereNotEmpty,
        None => Verdict::Missing,
        Some(t) if t != expected.token.as_bytes() => Verdict::Replaced,
        Some(_) if *backing.root_handle() != expected.root => Verdict::Replaced,
        Some(_) => Verdict::Ok { empty },
    })
}

/// The lineage stamp of the directory, as [`set_stamp`] left it.
pub fn stamp(backing: &Backing) -> Result<Option<Vec<u8>>, IdentityError> {
    read(backing, STAMP)
}

/// Writes the lineage stamp, durably.
pub fn set_stamp(backing: &Backing, value: &[u8]) -> Result<(), IdentityError> {
    write(backing, STAMP, value)
}
