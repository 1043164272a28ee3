//! A replicator that applies every operation to a second directory at once: what the stream says must be
//! enough to rebuild the tree. It is simple on purpose and shares no code with the real standby.

use skc::base::{Epoch, Volume};
use skc::ports::{Admission, Errno, Gate, LocalSync, Names, ParkedRequest, PendingReply, Replicator, Ticket};
use skc::proto::fsop::Time;
use skc::proto::{FileId, FsOp};
use skc::sys::backing::{Backing, FileHandle};
use skc::sys::file::{self, SetTime, flags};
use skc::tree::Tree;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

pub struct Standby {
    gate: RwLock<Gate>,
    tree: Arc<Tree>,
    backing: Backing,
    state: Mutex<State>,
    /// How often the mount said that its disk fails.
    pub disk_failures: AtomicUsize,
}

#[derive(Default)]
struct State {
    bound: HashMap<FileId, FileHandle>,
    /// Objects without a name live as long as somebody holds them.
    unnamed: HashMap<FileId, OwnedFd>,
}

impl Standby {
    pub fn new(tree: &Arc<Tree>, backing: Backing) -> Self {
        let gate = RwLock::new(Gate::Alone(Epoch::default()));
        Self {
            gate,
            tree: Arc::clone(tree),
            backing,
            state: Mutex::default(),
            disk_failures: AtomicUsize::new(0),
        }
    }

    fn fd(&self, s: &mut State, id: FileId) -> OwnedFd {
        assert!(!id.is_local(), "what stays local does not travel");
        if let Some(fd) = s.unnamed.get(&id) {
            return fd.try_clone().expect("dup");
        }
        let handle = self.handle(s, id);
        self.backing.open_path(&handle).unwrap_or_else(|e| panic!("{id:?} by handle: {e:?}"))
    }

    fn handle(&self, s: &mut State, id: FileId) -> FileHandle {
        if id == FileId::ROOT {
            return *self.backing.root_handle();
        }
        if let Some(handle) = s.bound.get(&id) {
            return *handle;
        }
        // As `Bind` would: by a name that is true at this position of the stream.
        let (parent, name) = Names::alias(&*self.tree, Volume(0), id).expect("an unbound id has a name");
        let dir = self.fd(s, parent);
        let handle = self.backing.handle_at(dir.as_fd(), &name).expect("the standby has that name");
        s.bound.insert(id, handle);
        handle
    }

    fn times(fd: &OwnedFd, mtime: Time) {
        file::set_times(fd.as_fd(), SetTime::Omit, SetTime::At(mtime)).expect("mtime");
    }

    fn keep_if_last(&self, s: &mut State, dir: &OwnedFd, name: &[u8]) {
        let Ok(fd) = file::open_at(dir.as_fd(), name, libc_o_path(), 0) else { return };
        let handle = self.backing.handle_of(fd.as_fd()).expect("handle");
        // A forgotten id and its successor may both stand here for a moment.
        for id in s.bound.iter().filter(|(_, h)| **h == handle).map(|(id, _)| *id) {
            s.unnamed.insert(id, fd.try_clone().expect("dup"));
        }
    }

    fn settle(&self, s: &mut State, id: FileId, dir: &OwnedFd, name: &[u8], attr: skc::proto::fsop::Attr) {
        let handle = self.backing.handle_at(dir.as_fd(), name).expect("made");
        s.bound.insert(id, handle);
        s.unnamed.remove(&id);
        let fd = self.backing.open_path(&handle).expect("open");
        file::chown(fd.as_fd(), Some(attr.uid), Some(attr.gid)).expect("chown");
        if attr.mode & 0o170_000 != 0o120_000 {
            file::chmod(fd.as_fd(), attr.mode).expect("chmod");
        }
        Self::times(&fd, attr.mtime);
    }

    fn apply(&self, op: &FsOp, bulk: &[u8]) {
        let s = &mut *self.state.lock().expect("state");
        match op {
            FsOp::Make { parent, name, id, attr, xattrs, dir_mtime, .. } => {
                let dir = self.fd(s, *parent);
                if attr.mode & 0o170_000 == 0o040_000 {
                    file::make_dir(dir.as_fd(), name, 0o700).expect("mkdir");
                } else {
                    file::make_node(dir.as_fd(), name, attr.mode, attr.rdev).expect("mknod");
                }
                let made = file::open_at(dir.as_fd(), name, libc_o_path(), 0).expect("open");
                for (name, value) in xattrs {
                    file::set_xattr(made.as_fd(), name, value, 0).expect("inherited xattr");
                }
                self.settle(s, *id, &dir, name, *attr);
                Self::times(&dir, *dir_mtime);
            }
            FsOp::Tmpfile { parent, id, attr, xattrs } => {
                let dir = self.fd(s, *parent);
                let fd = file::open_tmpfile(dir.as_fd(), attr.mode & 0o7777, false).expect("tmpfile");
                file::chown(fd.as_fd(), Some(attr.uid), Some(attr.gid)).expect("chown");
                file::chmod(fd.as_fd(), attr.mode).expect("chmod");
                for (name, value) in xattrs {
                    file::set_xattr(fd.as_fd(), name, value, 0).expect("inherited xattr");
                }
                Self::times(&fd, attr.mtime);
                s.bound.insert(*id, self.backing.handle_of(fd.as_fd()).expect("handle"));
                s.unnamed.insert(*id, fd);
            }
            FsOp::Symlink { parent, name, id, target, attr, dir_mtime } => {
                let dir = self.fd(s, *parent);
                file::make_symlink(dir.as_fd(), name, target).expect("symlink");
                self.settle(s, *id, &dir, name, *attr);
                Self::times(&dir, *dir_mtime);
            }
            FsOp::Link { id, parent, name, dir_mtime } => {
                if !s.bound.contains_key(id) {
                    // By a name from before this link: the new one is not here yet.
                    let (up, old) = self.tree.alias_except(*id, Some((*parent, name))).expect("a name");
                    let up = self.fd(s, up);
                    let handle = self.backing.handle_at(up.as_fd(), &old).expect("the old name");
                    s.bound.insert(*id, handle);
                }
                let (fd, dir) = (self.fd(s, *id), self.fd(s, *parent));
                file::link_at(fd.as_fd(), dir.as_fd(), name).expect("link");
                s.unnamed.remove(id);
                Self::times(&dir, *dir_mtime);
            }
            FsOp::Unlink { parent, name, dir_mtime } => {
                let dir = self.fd(s, *parent);
                self.keep_if_last(s, &dir, name);
                file::unlink(dir.as_fd(), name).expect("unlink");
                Self::times(&dir, *dir_mtime);
            }
            FsOp::Rmdir { parent, name, dir_mtime } => {
                let dir = self.fd(s, *parent);
                self.keep_if_last(s, &dir, name);
                file::unlink_dir(dir.as_fd(), name).expect("rmdir");
                Self::times(&dir, *dir_mtime);
            }
            FsOp::Rename { parent, name, to_parent, to_name, flags, dir_mtime, to_dir_mtime, exchanged } => {
                let (dir, to) = (self.fd(s, *parent), self.fd(s, *to_parent));
                if flags & 2 == 0 {
                    self.keep_if_last(s, &to, to_name);
                }
                file::rename(dir.as_fd(), name, to.as_fd(), to_name, *flags).expect("rename");
                assert_eq!(exchanged.is_some(), flags & 2 != 0);
                Self::times(&dir, *dir_mtime);
                Self::times(&to, *to_dir_mtime);
            }
            FsOp::Write { id, offset, mtime, clear } => {
                let fd = file::reopen(self.fd(s, *id).as_fd(), 2).expect("open for writing");
                assert_eq!(file::pwrite(fd.as_fd(), bulk, *offset), Ok(bulk.len()));
                if let Some(mode) = clear {
                    file::chmod(fd.as_fd(), *mode).expect("chmod");
                }
                Self::times(&fd, *mtime);
            }
            FsOp::SetAttr { id, mode, uid, gid, size, atime, mtime } => {
                let fd = self.fd(s, *id);
                if let Some(size) = size {
                    file::truncate(fd.as_fd(), *size).expect("truncate");
                }
                if uid.is_some() || gid.is_some() {
                    file::chown(fd.as_fd(), *uid, *gid).expect("chown");
                }
                if let Some(mode) = mode {
                    file::chmod(fd.as_fd(), *mode).expect("chmod");
                }
                let atime = atime.map_or(SetTime::Omit, SetTime::At);
                file::set_times(fd.as_fd(), atime, SetTime::At(*mtime)).expect("times");
            }
            FsOp::SetXattr { id, name, flags, mode } => {
                let fd = self.fd(s, *id);
                file::set_xattr(fd.as_fd(), name, bulk, *flags).expect("setxattr");
                assert_eq!(file::stat(fd.as_fd()).map(|s| s.mode), Ok(*mode));
            }
            FsOp::RemoveXattr { id, name, mode } => {
                let fd = self.fd(s, *id);
                file::remove_xattr(fd.as_fd(), name).expect("removexattr");
                assert_eq!(file::stat(fd.as_fd()).map(|s| s.mode), Ok(*mode));
            }
            FsOp::Fallocate { id, mode, offset, length, mtime, clear } => {
                let fd = file::reopen(self.fd(s, *id).as_fd(), 2).expect("open for writing");
                file::fallocate(fd.as_fd(), *mode, *offset, *length).expect("fallocate");
                if let Some(mode) = clear {
                    file::chmod(fd.as_fd(), *mode).expect("chmod");
                }
                Self::times(&fd, *mtime);
            }
            FsOp::SetFlags { id, flags } => {
                let fd = file::reopen(self.fd(s, *id).as_fd(), 0).expect("open");
                let own = flags::get_flags(fd.as_fd()).expect("flags");
                flags::set_flags(fd.as_fd(), (own & !flags::TRAVELLING) | flags).expect("set flags");
            }
            FsOp::Touch { parent, dir_mtime, other } => {
                for (id, mtime) in std::iter::once((*parent, *dir_mtime)).chain(*other) {
                    Self::times(&self.fd(s, id), mtime);
                }
            }
            FsOp::Bind { .. } | FsOp::Forget { .. } | FsOp::Fsync { .. } | FsOp::SyncFs => {}
        }
    }
}

const fn libc_o_path() -> i32 {
    0o10_000_000
}

impl Replicator for Standby {
    fn disk_failed(&self, _errno: Errno) {
        self.disk_failures.fetch_add(1, Ordering::SeqCst);
    }

    fn admit(&self) -> Admission<'_> {
        Admission::Go(Ticket { guard: self.gate.read().expect("gate") })
    }

    fn park(&self, request: ParkedRequest, _weight: usize) {
        request();
    }

    fn submit(&self, ticket: Ticket<'_>, _: Volume, op: &FsOp, bulk: &[u8], reply: PendingReply) {
        self.apply(op, bulk);
        drop(ticket);
        reply.ok();
    }

    fn submit_sync(
        &self,
        ticket: Ticket<'_>,
        volume: Volume,
        op: &FsOp,
        bulk: &[u8],
        local: LocalSync,
        reply: PendingReply,
    ) {
        local().expect("sync");
        self.submit(ticket, volume, op, bulk, reply);
    }

    fn local_sync(&self, local: LocalSync, reply: PendingReply) {
        local().expect("sync");
        reply.ok();
    }

    fn spoil(&self, _: Volume, why: &str) {
        panic!("{why}");
    }

    fn forget(&self, _: Volume, ids: &[FileId]) {
        let mut s = self.state.lock().expect("state");
        for id in ids {
            s.bound.remove(id);
            s.unnamed.remove(id);
        }
    }
}
