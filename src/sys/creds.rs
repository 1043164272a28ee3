//! The identity under which one thread makes new objects.
//!
//! The daemon runs as root, but a create must look as if the caller had made it: owner, group,
//! quota, setgid directories. The identity is per thread (raw system calls; the C library's
//! wrappers would change every thread) and is given back when [`Acting`] is dropped.
//! Permission was already checked by the mount's kernel (`default_permissions`) with the caller's
//! full groups, so the thread keeps the capabilities that bypass checks; it gives up CAP_FSETID,
//! which would keep setgid bits the caller may not set.
//!
//! [`obey_limits`] and [`Room`] are about room: with CAP_SYS_RESOURCE, or as root, a user's data would go past a
//! hard quota and into the blocks reserved for root.

use super::errno::check;
use crate::ports::Errno;
use std::cell::Cell;
use std::marker::PhantomData;

/// _LINUX_CAPABILITY_VERSION_3 (linux/capability.h).
const CAP_VERSION: u32 = 0x2008_0522;
/// CAP_FSETID (linux/capability.h).
const CAP_FSETID: u32 = 4;
/// CAP_SYS_RESOURCE (linux/capability.h).
const CAP_SYS_RESOURCE: u32 = 24;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

thread_local! {
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
    static BOUNDED: Cell<bool> = const { Cell::new(false) };
}

/// From here on this thread keeps to quotas and reserved blocks (or not): what it writes is an ordinary
/// user's. It stays so until the next call; a call that changes nothing costs nothing.
pub fn obey_limits(bounded: bool) -> Result<(), Errno> {
    if BOUNDED.get() == bounded {
        return Ok(());
    }
    set_effective(|own| {
        let bit = 1 << CAP_SYS_RESOURCE;
        if bounded { own.effective & !bit } else { own.effective | (own.permitted & bit) }
    })?;
    BOUNDED.set(bounded);
    Ok(())
}

/// While it lives, this thread takes blocks as the user does. Nothing may be opened meanwhile: root's rights
/// to files are gone. Costs two system calls for an ordinary user, none for root.
#[derive(Debug)]
pub struct Room {
    ordinary: bool,
    _thread: PhantomData<*const ()>,
}

impl Room {
    /// As `uid`.
    pub fn of(uid: u32) -> Self {
        let ordinary = uid != 0;
        if ordinary {
            set_fsuid(uid);
        }
        Self { ordinary, _thread: PhantomData }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.ordinary {
            // The kernel gives the file-system capabilities back with it.
            set_fsuid(0);
        }
    }
}

/// Changes the effective capabilities of this thread; those above 31 stay as they are.
fn set_effective(new: impl FnOnce(CapData) -> u32) -> Result<(), Errno> {
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads and writes exactly two CapData.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } as i32)?;
    data[0].effective = new(data[0]);
    // SAFETY: version 3 reads exactly two CapData.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } as i32).map(drop)
}

/// Sets this thread's umask for the objects it makes next; other threads keep theirs.
///
/// The kernel applies it as POSIX says: not where the parent has a default ACL.
pub fn set_umask(mask: u32) -> Result<(), Errno> {
    if !OWN_UMASK.get() {
        // SAFETY: no arguments but a flag; the thread gets its own copy of umask, cwd and root.
        check(unsafe { libc::unshare(libc::CLONE_FS) })?;
        OWN_UMASK.set(true);
    }
    // SAFETY: cannot fail; changes only this thread's mask after the unshare above.
    unsafe { libc::umask(mask & 0o777) };
    Ok(())
}

/// Proof that this thread acts as somebody else; dropping it makes the thread root again.
#[derive(Debug)]
pub struct Acting {
    changed: bool,
    groups: bool,
    // Not Send: it is about this thread.
    _thread: PhantomData<*const ()>,
}

fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: plain number; returns the former id, or keeps it where it may not change.
    (unsafe { libc::syscall(libc::SYS_setfsuid, uid) }) as u32
}

fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: plain number; returns the former id, or keeps it where it may not change.
    (unsafe { libc::syscall(libc::SYS_setfsgid, gid) }) as u32
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the slice is readable for its length; the raw call changes this thread only.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } as i32).map(drop)
}

/// What a change of the user took, without CAP_FSETID; the thread's limits stay what they are. All file-system
/// capabilities are below 32.
fn keep_capabilities() -> Result<(), Errno> {
    let bounded = if BOUNDED.get() { 1 << CAP_SYS_RESOURCE } else { 0 };
    set_effective(|own| own.permitted & !(1 << CAP_FSETID) & !bounded)
}

impl Acting {
    /// Acts as `uid`, `gid` with the supplementary `groups` until dropped.
    pub fn begin(uid: u32, gid: u32, groups: &[u32]) -> Result<Self, Errno> {
        if uid == 0 && gid == 0 {
            return Ok(Self { changed: false, groups: false, _thread: PhantomData });
        }
        // Built first: an error below drops it, which takes back what was done.
        let mut acting = Self { changed: true, groups: false, _thread: PhantomData };
        acting.groups = !groups.is_empty();
        if acting.groups {
            set_groups(groups)?;
        }
        set_fsgid(gid);
        set_fsuid(uid);
        // Both calls report no error; asking again with an invalid id tells what holds.
        if set_fsgid(u32::MAX) != gid || set_fsuid(u32::MAX) != uid {
            return Err(Errno(libc::EPERM));
        }
        if uid != 0 {
            keep_capabilities()?;
        }
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if !self.changed {
            return;
        }
        // Back to 0 the kernel restores the file-system capabilities by itself (all but for a
        // caller with uid 0, who lost none).
        set_fsuid(0);
        set_fsgid(0);
        if self.groups {
            // The daemon itself needs no supplementary group. Failing is harmless: the next
            // `begin` sets them again, and root's file access does not depend on them.
            let _ = set_groups(&[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn objects_are_made_as_the_caller_and_the_thread_is_root_again() {
        if std::fs::metadata("/proc/self").expect("proc").uid() != 0 {
            eprintln!("skipped: not root");
            return;
        }
        let tmp = tempfile::tempdir().expect("temporary directory");
        let dir = tmp.path().join("root-only");
        std::fs::create_dir(&dir).expect("mkdir");
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).expect("chmod");
        let path = dir.join("f");
        let thread = std::thread::spawn(move || {
            set_umask(0o027).expect("umask");
            {
                let _as = Acting::begin(1234, 5678, &[42]).expect("act");
                std::fs::write(&path, b"x").expect("create where only capabilities allow it");
            }
            let m = std::fs::metadata(&path).expect("stat");
            assert_eq!((m.uid(), m.gid(), m.mode() & 0o777), (1234, 5678, 0o640));
            std::fs::write(dir.join("g"), b"x").expect("create");
            let m = std::fs::metadata(dir.join("g")).expect("stat");
            assert_eq!((m.uid(), m.gid()), (0, 0));
            std::os::unix::fs::chown(dir.join("g"), Some(7), Some(7)).expect("capabilities are back");
        });
        thread.join().expect("thread");
    }
}
