//! One mounted volume: what the daemon holds.
//!
//! Order for the caller: [`super::prepare`] (detach the dead, refuse to stack) -> open the
//! [`crate::sys::backing::Backing`] -> [`super::holders`] -> [`Mount::new`]. Dropping a `Mount` stops its threads and leaves the
//! mount to whoever holds the device descriptor; if nobody does, the kernel ends it (ENOTCONN).

use super::abi;
use super::device::{Device, Received};
use super::era::Era;
use super::fs::MirrorFs;
use super::init::{self, HEAD_ROOM, InitError, InitValues, MAX_WRITE};
use super::mountinfo;
use super::session::Session;
use crate::base::codes::{self, Code};
use crate::ports::{Errno, Replicator};
use crate::sys::fusectl::{Abort, FuseCtl};
use crate::sys::mount::{self, Unmount};
use crate::sys::{errno, file};
use crate::tree::Tree;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use zerocopy::IntoBytes;

/// Failures name the step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountError {
    /// `/dev/fuse` is missing or may not be opened.
    #[error("opening /dev/fuse failed with errno {} (is the fuse module loaded?)", .0.0)]
    Device(Errno),
    /// The backing directory does not answer.
    #[error("the backing directory of {path} cannot be read: errno {}", errno.0)]
    Backing {
        /// Where it was to be mounted.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The backing directory is itself on FUSE.
    #[error("{0} is on a FUSE file system; skc does not stack on one")]
    Stacked(PathBuf),
    /// mount(2) refused.
    #[error("mounting over {path} failed with errno {}", errno.0)]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The kernel's FUSE is not sufficient.
    #[error(transparent)]
    Init(#[from] InitError),
    /// No threads.
    #[error("starting the reader threads failed with errno {}", .0.0)]
    Threads(Errno),
    /// Something was mounted below meanwhile.
    #[error("{0} is a mount point, which the mirror would hide")]
    Hides(PathBuf),
    /// The mount is not in mountinfo: something else unmounted it at once.
    #[error("{0} is mounted but not in mountinfo")]
    Vanished(PathBuf),
}

impl MountError {
    /// Its page for `skc explain`.
    pub fn code(&self) -> Code {
        match self {
            Self::Device(_) => codes::FS_NO_FUSE,
            Self::Init(_) => codes::FS_KERNEL,
            Self::Hides(_) => codes::FS_BELOW,
            Self::Backing { .. }
            | Self::Stacked(_)
            | Self::Mount { .. }
            | Self::Threads(_)
            | Self::Vanished(_) => codes::FS_MOUNT,
        }
    }
}

/// Settings that have a sensible default.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Reader threads.
    pub workers: usize,
    /// INIT flags to do without, to test how older kernels behave.
    pub init_mask: u64,
}

impl Default for Options {
    fn default() -> Self {
        // One reader is the fastest for one client and loses 12 % at eight (measured, 2 cores); the
        // second keeps the mount alive while one waits in a full park queue or for a slow disk.
        Self { workers: 2, init_mask: 0 }
    }
}

/// See the module's documentation.
pub struct Mount {
    tree: Arc<Tree>,
    device: Arc<Device>,
    /// Shared with the file system.
    era: Arc<Era>,
    session: Session,
    init: InitValues,
    path: PathBuf,
    connection: u32,
    abort: Option<Abort>,
}

/// Magic number of FUSE (linux/magic.h).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// How long the readers get to finish what they run when a mount ends.
const STOP_LIMIT: Duration = Duration::from_secs(5);

impl Mount {
    /// Mounts `tree` over its own directory, whose path is `path` (used for mountinfo and
    /// unmounting; the mount itself goes to the held descriptor).
    pub fn new(tree: Arc<Tree>, replicator: Arc<dyn Replicator>, path: &Path) -> Result<Self, MountError> {
        Self::with_options(tree, replicator, path, Options::default())
    }

    /// Like [`Mount::new`] with other than the default settings.
    pub fn with_options(
        tree: Arc<Tree>,
        replicator: Arc<dyn Replicator>,
        path: &Path,
        options: Options,
    ) -> Result<Self, MountError> {
        let path = path.to_path_buf();
        let backing = |errno| MountError::Backing { path: path.clone(), errno };
        if tree.backing.stat_fs().map_err(backing)?.kind == FUSE_SUPER_MAGIC {
            return Err(MountError::Stacked(path));
        }
        let root = file::stat(tree.backing.base()).map_err(backing)?;
        let flags = mount_flags(file::mount_flags(tree.backing.root()).map_err(backing)?);
        let device = Arc::new(Device::open().map_err(MountError::Device)?);
        mount::mount_fuse(tree.backing.root(), device.fd(), root.mode & libc::S_IFMT, flags)
            .map_err(|errno| MountError::Mount { path: path.clone(), errno })?;
        let undo = |error| {
            if let Err(errno) = mount::unmount(&path, Unmount::Detach) {
                tracing::error!(path = %path.display(), errno = errno.0, "undoing a mount failed");
            }
            error
        };
        let init = greet(&device, options.init_mask).map_err(|e| undo(e.into()))?;
        let mount = Self::run(tree, replicator, device, init, path.clone(), options).map_err(undo)?;
        mount.hides_nothing().map_err(undo)?;
        Ok(mount)
    }

    /// Continues a mount that an earlier process made: `device` and `init` come from its guard.
    /// Requests the earlier process took and never answered are asked for again where the kernel can.
    pub fn resume(
        tree: Arc<Tree>,
        replicator: Arc<dyn Replicator>,
        path: &Path,
        device: OwnedFd,
        init: InitValues,
        options: Options,
    ) -> Result<Self, MountError> {
        let device = Arc::new(Device::from_fd(device));
        let mount = Self::run(tree, replicator, device, init, path.to_path_buf(), options)?;
        if init.has(abi::init::HAS_RESEND)
            && let Err(errno) = mount.device.resend()
        {
            tracing::warn!(errno = errno.0, "asking for unanswered requests failed");
        }
        Ok(mount)
    }

    fn run(
        tree: Arc<Tree>,
        replicator: Arc<dyn Replicator>,
        device: Arc<Device>,
        init: InitValues,
        path: PathBuf,
        options: Options,
    ) -> Result<Self, MountError> {
        let mounts = mountinfo::read().unwrap_or_default();
        let entry = mountinfo::at(&mounts, &path).filter(|m| m.fs_type == mountinfo::FS_TYPE);
        let connection = entry.map(|m| m.dev.1).ok_or_else(|| MountError::Vanished(path.clone()))?;
        let era = Arc::<Era>::default();
        let fs = MirrorFs::new(Arc::clone(&tree), replicator, Arc::clone(&device), init, Arc::clone(&era));
        let fs = Arc::new(fs);
        let session = Session::start(&fs, &device, init, options.workers, &tree.volume.0.to_string())
            .map_err(MountError::Threads)?;
        tracing::info!(path = %path.display(), connection, minor = init.minor, flags = init.flags, "mounted");
        let abort = FuseCtl::open().and_then(|ctl| ctl.abort_handle(connection));
        let abort = abort.inspect_err(|error| tracing::warn!(%error, "no fusectl for this mount")).ok();
        Ok(Self { tree, device, era, session, init, path, connection, abort })
    }

    /// The descriptor that keeps the mount alive, for the guard.
    pub fn device_fd(&self) -> BorrowedFd<'_> {
        self.device.fd()
    }

    /// What was negotiated, for the guard.
    pub const fn init_values(&self) -> InitValues {
        self.init
    }

    /// Number of the FUSE connection, for [`abort`].
    pub const fn connection(&self) -> u32 {
        self.connection
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mounted tree.
    pub const fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Is it what one finds at its path? False after somebody unmounted it or mounted over it. A mount table
    /// that cannot be read accuses nobody.
    pub fn is_in_place(&self) -> bool {
        let Ok(mounts) = mountinfo::read() else { return true };
        mountinfo::at(&mounts, &self.path).is_some_and(|m| m.dev == (0, self.connection))
    }

    /// `prepare` found nothing below; was it still so when the mount came over it?
    fn hides_nothing(&self) -> Result<(), MountError> {
        let mounts = mountinfo::read().unwrap_or_default();
        let Some(own) = mountinfo::at(&mounts, &self.path) else { return Ok(()) };
        match mountinfo::below(&mounts, &self.path, own.parent).first() {
            Some(first) => Err(MountError::Hides(first.to_path_buf())),
            None => Ok(()),
        }
    }

    /// What is mounted on directories of this mount: seen by applications, and no part of the mirror.
    pub fn mounted_below(&self) -> Vec<PathBuf> {
        let mounts = mountinfo::read().unwrap_or_default();
        let own = mountinfo::at(&mounts, &self.path).filter(|m| m.dev == (0, self.connection));
        let below = own.map(|own| mountinfo::below(&mounts, &self.path, own.id));
        below.unwrap_or_default().into_iter().map(Path::to_path_buf).collect()
    }

    /// Ends the connection of a mount that is not in place any more: who still has something open in it gets
    /// ENOTCONN. Nothing is unmounted, since what lies at the path is not ours.
    pub fn abandon(&self) {
        if let Some(Err(error)) = self.abort.as_ref().map(Abort::fire) {
            tracing::warn!(path = %self.path.display(), %error, "aborting the lost mount failed");
        }
    }

    /// Is it still served? False after somebody unmounted or aborted it.
    pub fn is_alive(&self) -> bool {
        self.session.is_running()
    }

    /// Makes the kernel forget every cached name, attribute and page, and ends the era: descriptors opened
    /// until now write nothing any more. To be called at each change between writable and read-only while the
    /// gate is not Frozen: at a demotion when the gate has changed, at a promotion before it changes (what is
    /// opened for writing between the two would have to be opened again). It waits for dirty mapped pages to
    /// be written or refused, and on kernels before 6.16 for running directory operations.
    ///
    /// Runs on a thread of its own; false: not finished within `limit` (it goes on by itself). From the
    /// call until it is finished the kernel is not allowed to rely on what it had cached before: names
    /// and attributes are asked for each time, and an open drops the file's old pages.
    pub fn invalidate_all(&self, limit: Duration) -> bool {
        let (tx, rx) = mpsc::channel();
        // Before anybody can see the gate that comes next.
        let running = self.era.end();
        let (tree, device) = (Arc::clone(&self.tree), Arc::clone(&self.device));
        let by_name = !self.init.has_inc_epoch();
        let spawned = std::thread::Builder::new().name("fuse-inval".into()).spawn(move || {
            invalidate(&tree, &device, by_name);
            drop(running);
            // Nobody listens after the deadline.
            let _ = tx.send(());
        });
        spawned.is_ok() && rx.recv_timeout(limit).is_ok()
    }

    /// Unmounts: idle, or else by force (users get ENOTCONN) and detached. Then the readers end.
    ///
    /// # Errors
    /// What umount(2) said when even detaching failed; EINVAL: it was not mounted any more.
    pub fn unmount(&self) -> Result<(), Errno> {
        let result = match mount::unmount(&self.path, Unmount::IfIdle) {
            Err(Errno(libc::EBUSY)) => {
                self.abort();
                mount::unmount(&self.path, Unmount::Detach)
            }
            other => other,
        };
        if !self.session.wait_ended(STOP_LIMIT) {
            self.abort();
            self.session.stop(STOP_LIMIT);
        }
        result
    }

    /// Ends the connection now: every waiting and later call on the mount gets ENOTCONN. The dead mount
    /// stays over the directory, so nothing is written underneath it.
    pub fn abort(&self) {
        // The handle stands for this very connection, whatever the number or path means by now.
        if self.abort.as_ref().is_some_and(|handle| handle.fire().is_ok()) {
            return;
        }
        if let Err(errno) = abort(self.connection, &self.path) {
            tracing::warn!(path = %self.path.display(), errno = errno.0, "aborting the mount failed");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.session.stop(STOP_LIMIT);
        let mut gone = Vec::new();
        if !self.path_is_ours() {
            self.tree.inodes.forget_all_lookups(&mut gone);
        }
    }
}

impl Mount {
    /// Is this connection still mounted at the path?
    fn path_is_ours(&self) -> bool {
        let mounts = mountinfo::read().unwrap_or_default();
        mounts.iter().any(|m| m.path == self.path && m.dev == (0, self.connection))
    }
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount")
            .field("path", &self.path)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// Aborts FUSE connection number `connection`, mounted at `path`: through fusectl, or where that is
/// impossible by a forced unmount that is made to fail. The dead mount stays in place.
pub fn abort(connection: u32, path: &Path) -> Result<(), Errno> {
    match FuseCtl::open().and_then(|ctl| ctl.abort_handle(connection)?.fire()) {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::debug!(%error, "no fusectl, aborting by umount(2)");
            abort_by_force(path)
        }
    }
}

/// umount(2) with MNT_FORCE aborts the connection first. An idle mount would then go away and leave the
/// backing directory bare, so it is held busy meanwhile; opening its root with O_PATH sends no request.
fn abort_by_force(path: &Path) -> Result<(), Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let _busy =
        std::fs::File::options().read(true).custom_flags(flags).open(path).map_err(|e| errno::of(&e))?;
    match mount::unmount(path, Unmount::Abort) {
        Err(Errno(libc::EBUSY)) => Ok(()),
        other => other,
    }
}

/// Takes the mount at `path` out of the namespace, dead or alive.
pub fn detach(path: &Path) -> Result<(), Errno> {
    mount::unmount(path, Unmount::Detach)
}

/// The backing mount's restrictions hold for the mirror too.
fn mount_flags(backing: u64) -> u64 {
    let pairs = [
        (libc::ST_NOSUID, libc::MS_NOSUID),
        (libc::ST_NODEV, libc::MS_NODEV),
        (libc::ST_NOEXEC, libc::MS_NOEXEC),
    ];
    pairs.iter().filter(|(st, _)| backing & st != 0).fold(libc::MS_NOATIME, |all, (_, ms)| all | ms)
}

/// Answers the kernel's INIT.
fn greet(device: &Device, mask: u64) -> Result<InitValues, InitError> {
    let mut buf = vec![0; MAX_WRITE as usize + HEAD_ROOM];
    // mount(2) queued the INIT before it returned, so this does not wait.
    loop {
        match device.receive(&mut buf) {
            Received::Nothing => {}
            Received::Ended => return Err(InitError::NotInit),
            Received::Request(len) => {
                let (header, reply, values) = init::negotiate(&buf[..len], mask).inspect_err(|error| {
                    // Best effort: the mount is undone right after.
                    if let Some(unique) = buf.get(8..16).and_then(|b| b.try_into().ok()) {
                        device.error(u64::from_ne_bytes(unique), error.errno());
                    }
                })?;
                device.reply(header.unique, reply.as_bytes(), &[]);
                return Ok(values);
            }
        }
    }
}

fn invalidate(tree: &Tree, device: &Device, by_name: bool) {
    if !by_name && let Err(errno) = device.increment_epoch() {
        tracing::warn!(errno = errno.0, "dropping cached names failed");
    }
    for known in tree.inodes.known() {
        // ENOENT: not cached. Anything else ends with the connection and is seen elsewhere.
        let _ = device.invalidate_inode(known.id);
        for (parent, name) in known.aliases.iter().filter(|_| by_name) {
            let _ = device.invalidate_entry(*parent, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restrictions_of_the_backing_mount_are_kept() {
        assert_eq!(mount_flags(0), libc::MS_NOATIME);
        let flags = mount_flags(libc::ST_NOSUID | libc::ST_NODEV | libc::ST_RDONLY);
        assert_eq!(flags, libc::MS_NOATIME | libc::MS_NOSUID | libc::MS_NODEV);
    }
}
