//! The mirror file system: what each FUSE request does to the backing tree.
//!
//! Owner: whichever thread read the request (or runs a parked one). Every mutation follows one
//! pattern: admission -> locks of `tree` in their order -> local operation -> submit -> unlock. A local
//! error is answered at once; nothing changed, so nothing is replicated. What was changed is always
//! submitted, even where a later step of the same request failed.
//! Deliberately absent: locks and flock (kernel-local), ioctls but those of inode flags, poll, bmap, writeback
//! cache.

mod attr;
mod create;
mod data;
mod dirs;
mod handles;
mod ioctl;
mod lookup;
mod names;
mod request;
mod sync;
mod xattr;

use super::abi::{self, op};
use super::device::Device;
use super::era::Era;
use super::init::InitValues;
use crate::ports::{Admission, Errno, Gate, LocalSync, PendingReply, Replicator, ReplySink, Ticket};
use crate::proto::fsop::Time;
use crate::proto::{FileId, FsOp};
use crate::sys::{creds, file};
use crate::tree::Tree;
use handles::{Handles, OpenDir, OpenFile};
use request::Request;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// How long the kernel may keep names and attributes on the writable node. We are the only writer and
/// take everything back at a change of role, so the value only bounds the damage of a defect.
const TTL: Duration = Duration::from_secs(3600);

/// What the kernel may keep of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caching {
    /// Nothing: another node may write.
    None,
    /// What it reads from now on: pages and names from before this node became the writer are still
    /// being taken back.
    Fresh,
    /// Everything.
    Long,
}

impl Caching {
    /// Flags of an OPEN reply. Without any, the kernel drops the pages it has and caches new ones.
    const fn open_flags(self) -> u32 {
        match self {
            Self::None => abi::FOPEN_DIRECT_IO,
            Self::Fresh => 0,
            Self::Long => abi::FOPEN_KEEP_CACHE,
        }
    }
}

/// Why a request was not answered by its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Answer this.
    Errno(Errno),
    /// Frozen: put it aside and run it again from the start.
    Park,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

const fn errno(code: i32) -> Stop {
    Stop::Errno(Errno(code))
}

/// `Ok`: the request was answered or handed over.
type Outcome = Result<(), Stop>;

/// One mounted tree.
pub struct MirrorFs {
    tree: Arc<Tree>,
    replicator: Arc<dyn Replicator>,
    device: Arc<Device>,
    /// The same device, as the replicator sees it.
    sink: Arc<dyn ReplySink>,
    init: InitValues,
    era: Arc<Era>,
    files: Arc<Handles<OpenFile>>,
    dirs: Handles<OpenDir>,
}

/// Reply buffer of one thread; grows to the longest read.
#[derive(Default)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    fn slice(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }
}

impl MirrorFs {
    /// The file system of `tree` behind `device`. While `era` settles the kernel may keep nothing for long.
    pub fn new(
        tree: Arc<Tree>,
        replicator: Arc<dyn Replicator>,
        device: Arc<Device>,
        init: InitValues,
        era: Arc<Era>,
    ) -> Self {
        let sink: Arc<dyn ReplySink> = Arc::clone(&device) as _;
        let (files, dirs) = (Arc::default(), Handles::default());
        Self { tree, replicator, device, sink, init, era, files, dirs }
    }

    /// Serves the request in `buf`. Does not panic: no input is known to, but should one, its caller gets EIO
    /// and the mount goes on.
    pub fn dispatch(self: &Arc<Self>, buf: &[u8], scratch: &mut Scratch) {
        if catch_unwind(AssertUnwindSafe(|| self.serve(buf, scratch))).is_err() {
            let Some(request) = Request::parse(buf) else { return };
            tracing::error!(opcode = request.header.opcode, "serving a request panicked");
            if mutates(request.header.opcode) {
                // Whatever panicked may do so again.
                let _ = catch_unwind(AssertUnwindSafe(|| self.spoil("an operation panicked half-way")));
            }
            self.device.error(request.header.unique, Errno(libc::EIO));
        }
    }

    fn serve(self: &Arc<Self>, buf: &[u8], scratch: &mut Scratch) {
        let Some(mut request) = Request::parse(buf) else {
            tracing::error!(len = buf.len(), "the kernel sent a request that is too short");
            return;
        };
        let unique = request.header.unique;
        match self.run(&mut request, scratch) {
            Ok(()) => {}
            Err(Stop::Errno(errno)) => {
                self.tell_of_disk(errno);
                self.device.error(unique, errno);
            }
            Err(Stop::Park) => {
                let parked = Parked { fs: Arc::clone(self), request: buf.to_vec(), unique, run: false };
                self.replicator.park(Box::new(move || parked.run()), buf.len());
            }
        }
    }

    fn run(&self, r: &mut Request<'_>, scratch: &mut Scratch) -> Outcome {
        if mutates(r.header.opcode) {
            // A page that is written back later is nobody's.
            creds::obey_limits(r.header.uid != 0 && r.header.uid != u32::MAX)?;
        }
        match r.header.opcode {
            op::WRITE => self.write(r),
            op::READ => self.read(r, scratch),
            op::GETATTR => self.getattr(r),
            op::STATX => self.statx(r),
            op::LOOKUP => self.lookup(r),
            op::OPEN => self.open(r),
            op::RELEASE => self.release(r),
            op::FORGET => {
                self.forget(r);
                Ok(())
            }
            op::BATCH_FORGET => {
                self.batch_forget(r);
                Ok(())
            }
            op::SETATTR => self.setattr(r),
            op::READLINK => self.readlink(r),
            op::CREATE => self.create(r),
            op::TMPFILE => self.tmpfile(r),
            op::MKNOD => self.mknod(r),
            op::MKDIR => self.mkdir(r),
            op::SYMLINK => self.symlink(r),
            op::LINK => self.link(r),
            op::UNLINK => self.unlink(r),
            op::RMDIR => self.rmdir(r),
            op::RENAME => self.rename(r, false),
            op::RENAME2 => self.rename(r, true),
            op::OPENDIR => self.opendir(r),
            op::READDIR => self.readdir(r, scratch, dirs::Style::Plain),
            op::READDIRPLUS => self.readdir(r, scratch, dirs::Style::Plus),
            op::RELEASEDIR => self.releasedir(r),
            op::FSYNC | op::FSYNCDIR => self.fsync(r),
            op::FALLOCATE => self.fallocate(r),
            op::LSEEK => self.lseek(r),
            op::COPY_FILE_RANGE => self.copy_file_range(r),
            op::SETXATTR => self.setxattr(r),
            op::GETXATTR => self.getxattr(r),
            op::LISTXATTR => self.listxattr(r),
            op::REMOVEXATTR => self.removexattr(r),
            op::STATFS => self.statfs(r),
            op::IOCTL => self.ioctl(r),
            // The kernel waits for no answer.
            op::DESTROY | op::NOTIFY_REPLY => Ok(()),
            // FLUSH: nothing is buffered here, and the kernel stops asking after one ENOSYS.
            // INTERRUPT: likewise; whoever is interrupted waits for the reply that comes anyway.
            // Everything else is not implemented, which has the same answer.
            _ => Err(errno(libc::ENOSYS)),
        }
    }

    /// Hands over a change of `id`: to the standby, or where the object is local straight back to the caller.
    fn submit(&self, ticket: Ticket<'_>, id: FileId, op: &FsOp, bulk: &[u8], reply: PendingReply) {
        if id.is_local() {
            reply.ok();
        } else {
            self.replicator.submit(ticket, self.tree.volume, op, bulk, reply);
        }
    }

    /// Like [`Self::submit`], of what must be durable.
    fn submit_sync(
        &self,
        ticket: Ticket<'_>,
        id: FileId,
        op: &FsOp,
        bulk: &[u8],
        sync: LocalSync,
        reply: PendingReply,
    ) {
        if id.is_local() {
            self.replicator.local_sync(sync, reply);
        } else {
            self.replicator.submit_sync(ticket, self.tree.volume, op, bulk, sync, reply);
        }
    }

    /// Hands over a change of names in `dirs` (the second may be the first). Of one that is `local` the standby is
    /// told only the times of the directories, if those are mirrored.
    fn submit_names(
        &self,
        ticket: Ticket<'_>,
        local: bool,
        dirs: [(FileId, Time); 2],
        op: &FsOp,
        reply: PendingReply,
    ) {
        let mut touched = dirs.into_iter().filter(|(id, _)| !id.is_local());
        match touched.next() {
            _ if !local => self.replicator.submit(ticket, self.tree.volume, op, &[], reply),
            None => reply.ok(),
            Some((parent, dir_mtime)) => {
                let other = touched.next().filter(|(id, _)| *id != parent);
                let op = FsOp::Touch { parent, dir_mtime, other };
                self.replicator.submit(ticket, self.tree.volume, &op, &[], reply);
            }
        }
    }

    /// Something was changed here, or may have been, that the standby is not told.
    fn spoil(&self, why: &str) {
        self.replicator.spoil(self.tree.volume, why);
    }

    /// mtime of an object that was just changed successfully. Failing here means a sick file system.
    fn mtime_after(&self, fd: BorrowedFd<'_>) -> Time {
        match file::stat(fd) {
            Ok(stat) => stat.mtime,
            Err(errno) => {
                tracing::error!(errno = errno.0, "stat after a change failed");
                self.spoil("a modification time could not be read");
                (0, 0)
            }
        }
    }

    /// May a mutation run now?
    fn admit(&self) -> Result<Ticket<'_>, Stop> {
        match self.replicator.admit() {
            Admission::Go(ticket) => Ok(ticket),
            Admission::Park => Err(Stop::Park),
            Admission::Refuse(errno) => Err(Stop::Errno(errno)),
        }
    }

    /// The gate if this node may write, to decide what the kernel may cache.
    fn writable(&self) -> Option<(Gate, Ticket<'_>)> {
        match self.replicator.admit() {
            Admission::Go(ticket) => Some((*ticket.guard, ticket)),
            Admission::Park | Admission::Refuse(_) => None,
        }
    }

    /// Notes the gate before something is read from the tree.
    fn gate_before(&self) -> Option<Gate> {
        self.writable().map(|(gate, _)| gate)
    }

    /// Runs `answer` with the time the kernel may keep what was read since `before`: the usual one if
    /// this node was writable then and is now, in the same epoch, else none. The gate cannot change
    /// while `answer` runs, so an invalidation after a change comes after this reply.
    fn with_ttl<T>(&self, before: Option<Gate>, answer: impl FnOnce(Duration) -> T) -> T {
        self.with_caching(before, |caching| {
            answer(if caching == Caching::Long { TTL } else { Duration::ZERO })
        })
    }

    /// Like [`Self::with_ttl`], for what has more than two ways.
    fn with_caching<T>(&self, before: Option<Gate>, answer: impl FnOnce(Caching) -> T) -> T {
        match (before, self.writable()) {
            (Some(before), Some((now, _ticket))) if before == now => answer(self.own_caching()),
            _ => answer(Caching::None),
        }
    }

    /// What the kernel may keep where this node is known to be the writer.
    fn own_caching(&self) -> Caching {
        if self.era.is_settling() { Caching::Fresh } else { Caching::Long }
    }

    /// May data be changed through `open`? To be asked with a ticket in hand.
    ///
    /// # Errors
    /// ESTALE: it was opened before the last change of role.
    fn of_this_era(&self, open: &OpenFile) -> Result<(), Errno> {
        if open.era == self.era.number() { Ok(()) } else { Err(Errno(libc::ESTALE)) }
    }

    /// Like [`Self::of_this_era`], for dirty pages. The kernel writes them through whichever mapped descriptor
    /// comes first: until the old pages are gone, one of this era may carry those of an older one.
    fn pages_of_this_era(&self, open: &OpenFile) -> Result<(), Errno> {
        self.of_this_era(open)?;
        let older = |other: &OpenFile| other.id == open.id && other.writable && other.era != open.era;
        if self.era.is_settling() && self.files.any(older) {
            return Err(Errno(libc::ESTALE));
        }
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)] // handlers end with it
    fn reply<T: IntoBytes + Immutable>(&self, r: &Request<'_>, body: &T) -> Outcome {
        self.device.reply(r.header.unique, body.as_bytes(), &[]);
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)] // handlers end with it
    fn reply_empty(&self, r: &Request<'_>) -> Outcome {
        self.device.reply(r.header.unique, &[], &[]);
        Ok(())
    }

    fn pending<T: IntoBytes + Immutable>(&self, r: &Request<'_>, body: &T) -> PendingReply {
        PendingReply::new(Arc::clone(&self.sink), r.header.unique, body.as_bytes())
    }

    fn pending_empty(&self, r: &Request<'_>) -> PendingReply {
        PendingReply::new(Arc::clone(&self.sink), r.header.unique, &[])
    }

    /// A reply that makes `id`, and `fh` if it was opened, known to the kernel: unless it is an error.
    fn pending_made<T: IntoBytes + Immutable>(
        &self,
        r: &Request<'_>,
        body: &T,
        id: FileId,
        fh: Option<u64>,
    ) -> PendingReply {
        let (tree, files) = (Arc::clone(&self.tree), Arc::clone(&self.files));
        let sink = Arc::new(Unmade { sink: Arc::clone(&self.sink), tree, files, id, fh });
        PendingReply::new(sink, r.header.unique, body.as_bytes())
    }

    /// A failed request may say that the disk fails.
    fn tell_of_disk(&self, errno: Errno) {
        if errno.is_of_disk() {
            self.replicator.disk_failed(errno);
        }
    }

    /// A reply for a request that changed something and failed all the same: the change is replicated,
    /// and once it is, the caller is told `errno`.
    fn pending_failure(&self, r: &Request<'_>, errno: Errno) -> PendingReply {
        let sink = Arc::new(FailAnyway { sink: Arc::clone(&self.sink), errno });
        PendingReply::new(sink, r.header.unique, &[])
    }
}

/// A request put aside. Dropped without having been run it answers EIO.
struct Parked {
    fs: Arc<MirrorFs>,
    request: Vec<u8>,
    unique: u64,
    run: bool,
}

impl Parked {
    fn run(mut self) {
        self.run = true;
        self.fs.dispatch(&self.request, &mut Scratch::default());
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if !self.run {
            tracing::error!(unique = self.unique, "a request put aside was given up; its caller gets EIO");
            self.fs.device.error(self.unique, Errno(libc::EIO));
        }
    }
}

/// Takes back what the kernel will not know of because it is told an error: it sends no FORGET and no RELEASE.
/// The replicator is not told of a forgotten id: it may be the one who answers, under its locks, and it loses
/// no more than the memory of a number that never comes again.
struct Unmade {
    sink: Arc<dyn ReplySink>,
    tree: Arc<Tree>,
    files: Arc<Handles<OpenFile>>,
    id: FileId,
    fh: Option<u64>,
}

impl ReplySink for Unmade {
    fn send(&self, unique: u64, error: i32, body: &[u8]) {
        if error != 0 {
            if let Some(fh) = self.fh {
                self.files.remove(fh);
            }
            self.tree.inodes.forget(self.id, 1, &mut Vec::new());
        }
        self.sink.send(unique, error, body);
    }
}

struct FailAnyway {
    sink: Arc<dyn ReplySink>,
    errno: Errno,
}

impl ReplySink for FailAnyway {
    fn send(&self, unique: u64, error: i32, _body: &[u8]) {
        self.sink.send(unique, if error == 0 { self.errno.0 } else { error }, &[]);
    }
}

/// Does a request of this kind change the tree?
const fn mutates(opcode: u32) -> bool {
    matches!(
        opcode,
        op::WRITE
            | op::SETATTR
            | op::CREATE
            | op::TMPFILE
            | op::MKNOD
            | op::MKDIR
            | op::SYMLINK
            | op::LINK
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::IOCTL
    )
}

/// Errors that a file system gives before it touches anything. After any other the object may be changed.
const fn is_early(errno: Errno) -> bool {
    matches!(
        errno.0,
        libc::EACCES
            | libc::EBADF
            | libc::EFBIG
            | libc::EINVAL
            | libc::EISDIR
            | libc::ENODEV
            | libc::ENOSYS
            | libc::EOPNOTSUPP
            | libc::EOVERFLOW
            | libc::EPERM
            | libc::ESPIPE
            | libc::ESTALE
            | libc::ETXTBSY
    )
}

/// The id behind a node number of the kernel.
const fn id(nodeid: u64) -> FileId {
    FileId(nodeid)
}

/// The root's number is fixed by the kernel and by `proto` alike.
const _: () = assert!(abi::ROOT_ID == FileId::ROOT.0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Epoch, Volume};
    use crate::fuse::local::Local;
    use crate::sys::backing::Backing;

    #[test]
    fn nothing_old_is_kept_while_an_invalidation_runs() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Arc::new(Tree::new(Volume(0), Backing::open(dir.path()).unwrap()));
        let local = Arc::new(Local::new(Gate::Alone(Epoch::default())));
        let device = Arc::new(Device::open().unwrap());
        let init = InitValues { minor: 0, flags: 0, max_write: 0 };
        let era = Arc::<Era>::default();
        let fs = MirrorFs::new(tree, Arc::clone(&local) as _, device, init, Arc::clone(&era));
        let answers = || {
            let before = fs.gate_before();
            (fs.with_ttl(before, |ttl| ttl), fs.with_caching(before, Caching::open_flags))
        };
        assert_eq!(answers(), (TTL, abi::FOPEN_KEEP_CACHE));
        let settling = era.end();
        assert_eq!(answers(), (Duration::ZERO, 0));
        local.set_gate(Gate::ReadOnly);
        assert_eq!(answers(), (Duration::ZERO, abi::FOPEN_DIRECT_IO));
        drop(settling);
        assert_eq!(answers(), (Duration::ZERO, abi::FOPEN_DIRECT_IO));
    }

    #[test]
    fn while_an_era_settles_pages_that_may_be_older_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Arc::new(Tree::new(Volume(0), Backing::open(dir.path()).unwrap()));
        let device = Arc::new(Device::open().unwrap());
        let init = InitValues { minor: 0, flags: 0, max_write: 0 };
        let era = Arc::<Era>::default();
        let fs = MirrorFs::new(tree, Arc::new(Local::default()), device, init, Arc::clone(&era));
        let open = |id| {
            let fd = fs.tree.backing.base().try_clone_to_owned().unwrap();
            let (era, share) = (fs.era.number(), fs.tree.descriptors.take().unwrap());
            fs.files.insert(OpenFile {
                id: FileId(id),
                fd,
                writable: true,
                append: false,
                era,
                _share: share,
            })
        };
        let may = |fh| {
            let open = fs.files.get(fh).unwrap();
            (fs.of_this_era(&open).is_ok(), fs.pages_of_this_era(&open).is_ok())
        };
        let old = open(7);
        assert_eq!(may(old), (true, true));
        let settling = era.end();
        let (new, other) = (open(7), open(8));
        assert_eq!([may(old), may(new), may(other)], [(false, false), (true, false), (true, true)]);
        drop(settling);
        assert_eq!([may(old), may(new)], [(false, false), (true, true)]);
        let _settling = era.end();
        let newest = open(7);
        fs.files.remove(old);
        assert_eq!(may(newest), (true, false));
        fs.files.remove(new);
        assert_eq!(may(newest), (true, true), "nobody is left who could have changed old pages");
    }
}
