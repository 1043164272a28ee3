//! Two trees in one process: a file system without a kernel (real operations on the source tree,
//! submitted as the FUSE layer does), a wire, a standby.

use skc::base::{ClusterId, Epoch, Generation, Patterns, Volume};
use skc::ports::{Admission, Errno, Gate, LocalSync, PendingReply, Replicator, ReplySink};
use skc::proto::frame::{self, FrameBuf, Kind};
use skc::proto::fsop::Time;
use skc::proto::stream::{OpFrame, Plan, Reply, Resync, StreamHello, Welcome};
use skc::proto::{Attr, FileId, FsOp};
use skc::replica::{DataConn, Event, EventSink, Primary, Standby, primary, standby};
use skc::sys::backing::Backing;
use skc::sys::file;
use skc::tree::{Descriptors, Tree};
use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub const LONG: Duration = Duration::from_secs(60);
pub const V: Volume = Volume(0);

pub fn cluster() -> ClusterId {
    ClusterId("test".into())
}

/// Polls until `f` says so; panics with `what` past the deadline.
pub fn until(what: &str, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !f() {
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[derive(Default)]
pub struct Replies {
    done: Mutex<HashMap<u64, i32>>,
    wake: Condvar,
}

impl ReplySink for Replies {
    fn send(&self, unique: u64, error: i32, _body: &[u8]) {
        let old = self.done.lock().unwrap().insert(unique, error);
        assert!(old.is_none(), "request {unique} was answered twice");
        self.wake.notify_all();
    }
}

impl Replies {
    pub fn get(&self, unique: u64) -> Option<i32> {
        self.done.lock().unwrap().get(&unique).copied()
    }

    pub fn wait(&self, unique: u64) -> i32 {
        let mut done = self.done.lock().unwrap();
        let end = Instant::now() + LONG;
        loop {
            if let Some(error) = done.get(&unique) {
                return *error;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer to request {unique}");
            done = self.wake.wait_timeout(done, left).unwrap().0;
        }
    }
}

/// Identity of a mutation: wait for it with [`Mirror::wait`].
pub type Unique = u64;
pub type Res = Result<Unique, Errno>;

pub struct Mirror {
    pub tree: Arc<Tree>,
    pub primary: Arc<Primary>,
    pub replies: Arc<Replies>,
    next: AtomicU64,
}

fn attr_of(s: &file::Stat) -> Attr {
    let device = matches!(s.kind(), libc::S_IFCHR | libc::S_IFBLK);
    Attr {
        mode: s.mode,
        uid: s.uid,
        gid: s.gid,
        rdev: if device { s.rdev } else { 0 },
        size: if s.is_file() { s.size } else { 0 },
        atime: s.atime,
        mtime: s.mtime,
        flags: 0,
    }
}

impl Mirror {
    pub fn new(tree: Arc<Tree>, primary: Arc<Primary>) -> Self {
        Self { tree, primary, replies: Arc::default(), next: AtomicU64::new(1) }
    }

    pub fn wait(&self, unique: Unique) -> i32 {
        self.replies.wait(unique)
    }

    fn unique(&self) -> (Unique, PendingReply) {
        let unique = self.next.fetch_add(1, Ordering::Relaxed);
        (unique, PendingReply::new(self.replies.clone(), unique, &[]))
    }

    pub fn id(&self, parent: FileId, name: &[u8]) -> Result<FileId, Errno> {
        let dir = self.tree.open_path(parent)?;
        let (handle, stat) = self.tree.backing.lookup(dir.as_fd(), name)?;
        Ok(self.tree.inodes.lookup(handle, parent, name, &stat))
    }

    pub fn resolve(&self, path: &str) -> Result<FileId, Errno> {
        path.split('/')
            .filter(|p| !p.is_empty())
            .try_fold(FileId::ROOT, |at, name| self.id(at, name.as_bytes()))
    }

    fn parent(&self, path: &str) -> Result<(FileId, Vec<u8>), Errno> {
        match path.rsplit_once('/') {
            Some((dir, name)) => Ok((self.resolve(dir)?, name.as_bytes().to_vec())),
            None => Ok((FileId::ROOT, path.as_bytes().to_vec())),
        }
    }

    /// Admission as the FUSE layer does it: parked requests run again later.
    fn admitted<R>(&self, f: impl FnOnce(skc::ports::Ticket<'_>) -> Result<R, Errno>) -> Result<R, Errno> {
        loop {
            match self.primary.admit() {
                Admission::Go(ticket) => return f(ticket),
                Admission::Refuse(errno) => return Err(errno),
                Admission::Park => {
                    let (tx, rx) = channel();
                    let again = Box::new(move || {
                        let _ = tx.send(());
                    });
                    self.primary.park(again, 0);
                    rx.recv_timeout(LONG).expect("a parked request runs again");
                }
            }
        }
    }

    fn mtime(&self, id: FileId) -> Result<Time, Errno> {
        Ok(self.tree.stat(id)?.mtime)
    }

    fn names(&self, f: impl FnOnce() -> Result<FsOp, Errno>) -> Res {
        self.admitted(|ticket| {
            let _ns = self.tree.ns_exclusive();
            let op = f()?;
            let (unique, reply) = self.unique();
            self.primary.submit(ticket, V, &op, &[], reply);
            Ok(unique)
        })
    }

    fn inode(&self, id: FileId, bulk: &[u8], f: impl FnOnce() -> Result<FsOp, Errno>) -> Res {
        self.admitted(|ticket| {
            let _ns = self.tree.ns_shared();
            let _stripe = self.tree.stripe(id);
            let op = f()?;
            let (unique, reply) = self.unique();
            self.primary.submit(ticket, V, &op, bulk, reply);
            Ok(unique)
        })
    }

    pub fn make(&self, path: &str, mode: u32) -> Res {
        let (parent, name) = self.parent(path)?;
        self.names(|| {
            let dir = self.tree.open_path(parent)?;
            match mode & libc::S_IFMT {
                libc::S_IFDIR => file::make_dir(dir.as_fd(), &name, mode & 0o7777)?,
                _ => file::make_node(dir.as_fd(), &name, mode, 0)?,
            }
            let id = self.id(parent, &name)?;
            let path = self.tree.open_path(id)?;
            let stat = self.tree.stat(id)?;
            let flags = file::flags::travelling_flags(path.as_fd(), &stat)?;
            let attr = Attr { flags, ..attr_of(&stat) };
            let mut xattrs = Vec::new();
            for name in file::list_xattr(path.as_fd())?.split(|b| *b == 0).filter(|n| !n.is_empty()) {
                xattrs.push((name.to_vec(), file::get_xattr(path.as_fd(), name)?.into()));
            }
            let dir_mtime = self.mtime(parent)?;
            Ok(FsOp::Make { parent, name: name.clone(), id, mode_arg: mode, attr, xattrs, dir_mtime })
        })
    }

    pub fn create(&self, path: &str) -> Res {
        self.make(path, libc::S_IFREG | 0o644)
    }

    pub fn mkdir(&self, path: &str) -> Res {
        self.make(path, libc::S_IFDIR | 0o755)
    }

    pub fn symlink(&self, path: &str, target: &str) -> Res {
        let (parent, name) = self.parent(path)?;
        self.names(|| {
            let dir = self.tree.open_path(parent)?;
            file::make_symlink(dir.as_fd(), &name, target.as_bytes())?;
            let id = self.id(parent, &name)?;
            let attr = attr_of(&self.tree.stat(id)?);
            let (target, dir_mtime) = (target.as_bytes().to_vec(), self.mtime(parent)?);
            Ok(FsOp::Symlink { parent, name: name.clone(), id, target, attr, dir_mtime })
        })
    }

    pub fn link(&self, from: &str, to: &str) -> Res {
        let id = self.resolve(from)?;
        self.link_id(id, to)
    }

    pub fn link_id(&self, id: FileId, to: &str) -> Res {
        let (parent, name) = self.parent(to)?;
        self.names(|| {
            let object = self.tree.open_path(id)?;
            let dir = self.tree.open_path(parent)?;
            file::link_at(object.as_fd(), dir.as_fd(), &name)?;
            self.tree.inodes.set_alias(id, parent, &name, false);
            Ok(FsOp::Link { id, parent, name: name.clone(), dir_mtime: self.mtime(parent)? })
        })
    }

    pub fn unlink(&self, path: &str) -> Res {
        let (parent, name) = self.parent(path)?;
        self.names(|| {
            let dir = self.tree.open_path(parent)?;
            file::unlink(dir.as_fd(), &name)?;
            Ok(FsOp::Unlink { parent, name: name.clone(), dir_mtime: self.mtime(parent)? })
        })
    }

    pub fn rmdir(&self, path: &str) -> Res {
        let (parent, name) = self.parent(path)?;
        self.names(|| {
            let dir = self.tree.open_path(parent)?;
            file::unlink_dir(dir.as_fd(), &name)?;
            Ok(FsOp::Rmdir { parent, name: name.clone(), dir_mtime: self.mtime(parent)? })
        })
    }

    pub fn rename(&self, from: &str, to: &str, flags: u32) -> Res {
        let ((parent, name), (to_parent, to_name)) = (self.parent(from)?, self.parent(to)?);
        self.names(|| {
            let (a, b) = (self.tree.open_path(parent)?, self.tree.open_path(to_parent)?);
            file::rename(a.as_fd(), &name, b.as_fd(), &to_name, flags)?;
            let (dir_mtime, to_dir_mtime) = (self.mtime(parent)?, self.mtime(to_parent)?);
            let (name, to_name) = (name.clone(), to_name.clone());
            let exchanged = match flags {
                libc::RENAME_EXCHANGE => {
                    let (there, here) =
                        (file::stat_at(b.as_fd(), &to_name)?, file::stat_at(a.as_fd(), &name)?);
                    Some([there.mtime, here.mtime])
                }
                _ => None,
            };
            Ok(FsOp::Rename { parent, name, to_parent, to_name, flags, dir_mtime, to_dir_mtime, exchanged })
        })
    }

    pub fn write(&self, path: &str, offset: u64, data: &[u8]) -> Res {
        self.write_id(self.resolve(path)?, offset, data)
    }

    pub fn write_id(&self, id: FileId, offset: u64, data: &[u8]) -> Res {
        self.inode(id, data, || {
            let fd = self.tree.open(id, libc::O_RDWR)?;
            assert_eq!(file::pwrite(fd.as_fd(), data, offset)?, data.len());
            Ok(FsOp::Write { id, offset, mtime: file::stat(fd.as_fd())?.mtime, clear: None })
        })
    }

    pub fn truncate(&self, path: &str, size: u64) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, &[], || {
            let fd = self.tree.open(id, libc::O_RDWR)?;
            file::set_len(fd.as_fd(), size)?;
            let (mtime, size) = (self.mtime(id)?, Some(size));
            Ok(FsOp::SetAttr { id, mode: None, uid: None, gid: None, size, atime: None, mtime })
        })
    }

    pub fn chmod_chown(&self, path: &str, mode: u32, uid: u32) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, &[], || {
            let fd = self.tree.open_path(id)?;
            // First what may be refused (symlinks): a failed operation must have changed nothing.
            file::chmod(fd.as_fd(), mode)?;
            file::chown(fd.as_fd(), Some(uid), None)?;
            let (mtime, mode) = (self.mtime(id)?, Some(mode));
            Ok(FsOp::SetAttr { id, mode, uid: Some(uid), gid: None, size: None, atime: None, mtime })
        })
    }

    pub fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, value, || {
            let fd = self.tree.open_path(id)?;
            file::set_xattr(fd.as_fd(), name.as_bytes(), value, 0)?;
            let mode = self.tree.stat(id)?.mode;
            Ok(FsOp::SetXattr { id, name: name.as_bytes().to_vec(), flags: 0, mode })
        })
    }

    pub fn remove_xattr(&self, path: &str, name: &str) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, &[], || {
            let fd = self.tree.open_path(id)?;
            file::remove_xattr(fd.as_fd(), name.as_bytes())?;
            let mode = self.tree.stat(id)?.mode;
            Ok(FsOp::RemoveXattr { id, name: name.as_bytes().to_vec(), mode })
        })
    }

    pub fn set_flags(&self, path: &str, flags: u32) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, &[], || {
            let path = self.tree.open_path(id)?;
            let stat = file::stat(path.as_fd())?;
            file::flags::set_travelling_flags(path.as_fd(), &stat, flags)?;
            Ok(FsOp::SetFlags { id, flags: file::flags::travelling_flags(path.as_fd(), &stat)? })
        })
    }

    /// A write at the end of an append-only file, with the times of both explicit.
    pub fn append(&self, path: &str, data: &[u8]) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, data, || {
            let fd = self.tree.open_append(id)?;
            let offset = file::stat(fd.as_fd())?.size;
            assert_eq!(file::pwrite(fd.as_fd(), data, offset)?, data.len());
            Ok(FsOp::Write { id, offset, mtime: file::stat(fd.as_fd())?.mtime, clear: None })
        })
    }

    pub fn fallocate(&self, path: &str, mode: u32, offset: u64, length: u64) -> Res {
        let id = self.resolve(path)?;
        self.inode(id, &[], || {
            let fd = self.tree.open(id, libc::O_RDWR)?;
            file::fallocate(fd.as_fd(), mode, offset, length)?;
            Ok(FsOp::Fallocate { id, mode, offset, length, mtime: self.mtime(id)?, clear: None })
        })
    }

    pub fn tmpfile(&self) -> Result<FileId, Errno> {
        self.admitted(|ticket| {
            let _ns = self.tree.ns_exclusive();
            let fd = file::open_tmpfile(self.tree.backing.base(), 0o640, false)?;
            let handle = self.tree.backing.handle_of(fd.as_fd())?;
            let attr = attr_of(&file::stat(fd.as_fd())?);
            let id = self.tree.inodes.lookup_unnamed(handle, FileId::ROOT, fd);
            let (unique, reply) = self.unique();
            let op = FsOp::Tmpfile { parent: FileId::ROOT, id, attr, xattrs: Vec::new() };
            self.primary.submit(ticket, V, &op, &[], reply);
            assert_eq!(self.wait(unique), 0);
            Ok(id)
        })
    }

    pub fn fsync(&self, path: &str, local: Result<(), Errno>) -> Res {
        self.fsync_by(path, move || local)
    }

    /// fsync whose local half calls `before` on the pool first.
    pub fn fsync_by(&self, path: &str, before: impl FnOnce() -> Result<(), Errno> + Send + 'static) -> Res {
        let id = self.resolve(path)?;
        self.admitted(|ticket| {
            let _ns = self.tree.ns_shared();
            let _stripe = self.tree.stripe(id);
            let fd = self.tree.open(id, libc::O_RDONLY)?;
            let (unique, reply) = self.unique();
            let sync: LocalSync = Box::new(move || before().and_then(|()| file::sync(fd.as_fd())));
            self.primary.submit_sync(ticket, V, &FsOp::Fsync { id, data_only: false }, &[], sync, reply);
            Ok(unique)
        })
    }
}

/// A pair of trees with both ends, not connected yet.
pub struct Pair {
    pub a: tempfile::TempDir,
    pub b: tempfile::TempDir,
    pub mirror: Mirror,
    pub standby: Arc<Standby>,
    pub events: Receiver<(char, Event)>,
    pub epoch: Epoch,
}

fn sink(who: char, tx: &std::sync::mpsc::Sender<(char, Event)>) -> EventSink {
    let tx = Mutex::new(tx.clone());
    Arc::new(move |event| {
        let _ = tx.lock().unwrap().send((who, event));
    })
}

pub fn tree_at(path: &Path) -> Arc<Tree> {
    patterned_tree_at(path, &[])
}

fn patterned_tree_at(path: &Path, exclude: &[&str]) -> Arc<Tree> {
    let patterns = Patterns::new(exclude, &[]).expect("patterns");
    Arc::new(Tree::with(V, Backing::open(path).expect("open backing"), patterns, Descriptors::of_process()))
}

impl Pair {
    pub fn new() -> Self {
        Self::with(tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), |_| {}, |_| {})
    }

    pub fn with(
        a: tempfile::TempDir,
        b: tempfile::TempDir,
        source: impl FnOnce(&mut primary::Config),
        target: impl FnOnce(&mut standby::Config),
    ) -> Self {
        Self::patterned(a, b, &[], source, target)
    }

    /// With patterns that leave something to each side.
    pub fn patterned(
        a: tempfile::TempDir,
        b: tempfile::TempDir,
        exclude: &[&str],
        source: impl FnOnce(&mut primary::Config),
        target: impl FnOnce(&mut standby::Config),
    ) -> Self {
        let (tx, events) = channel();
        let (mut src, mut dst) = (primary::Config::new(cluster()), standby::Config::new(cluster()));
        source(&mut src);
        target(&mut dst);
        let tree = patterned_tree_at(a.path(), exclude);
        let primary = Primary::new(src, vec![tree.clone()], sink('a', &tx)).unwrap();
        let standby = Standby::new(dst, vec![patterned_tree_at(b.path(), exclude)], sink('b', &tx)).unwrap();
        let mirror = Mirror::new(tree, Arc::new(primary));
        Self { a, b, mirror, standby: Arc::new(standby), events, epoch: Epoch { g: 1, s: 0 } }
    }

    pub fn gate(&self, gate: Gate) {
        self.mirror.primary.set_gate(gate, LONG).expect("gate");
    }

    /// A new session; both ends connected.
    pub fn connect(&mut self, plan: Plan) {
        self.try_connect(plan, false).expect("connect");
    }

    pub fn try_connect(&mut self, plan: Plan, tls: bool) -> Result<(), String> {
        self.epoch.s += 1;
        let (a, b) = if tls { tls_pair() } else { plain_pair() };
        let (standby, epoch) = (self.standby.clone(), self.epoch);
        let accepting = std::thread::spawn(move || standby.accept(b, epoch, plan));
        let opened = self.mirror.primary.connect(a, epoch, plan);
        let accepted = accepting.join().unwrap();
        opened.map_err(|e| e.to_string())?;
        accepted.map_err(|e| e.to_string())
    }

    /// Waits for an event for which `f` gives a value; others are dropped, failures panic.
    pub fn event<T>(&self, what: &str, f: impl Fn(char, &Event) -> Option<T>) -> T {
        let end = Instant::now() + LONG;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (who, event) = self.events.recv_timeout(left).unwrap_or_else(|_| panic!("no event: {what}"));
            if let Some(value) = f(who, &event) {
                return value;
            }
            if matches!(
                event,
                Event::ApplyFailed { .. } | Event::SyncFailed { .. } | Event::StreamDown { .. }
            ) {
                panic!("while waiting for {what}: {who} {event:?}");
            }
        }
    }

    /// From the connected resync to a complete standby, as the driver does it.
    pub fn finish_resync(&self) -> skc::replica::Progress {
        let progress = self.event("ResyncDone", |_, e| match e {
            Event::ResyncDone { progress, .. } => Some(*progress),
            _ => None,
        });
        self.mirror.primary.mark_up_to_date(self.epoch, 1, Generation(7)).expect("marker");
        self.event("MarkerReached", |_, e| matches!(e, Event::MarkerReached { .. }).then_some(()));
        self.standby.sync().expect("syncfs");
        self.standby.release_marker(self.epoch);
        self.event("UpToDateAcked", |_, e| matches!(e, Event::UpToDateAcked { .. }).then_some(()));
        progress
    }

    /// Seeds the target and ends as a replicating pair.
    pub fn ready(&mut self) -> skc::replica::Progress {
        self.gate(Gate::Alone(self.epoch));
        self.connect(Plan::Resync { quarantine: false });
        let progress = self.finish_resync();
        self.gate(Gate::Replicated(self.epoch));
        progress
    }

    pub fn assert_equal(&self) {
        crate::compare::assert_equal(self.a.path(), self.b.path());
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

pub fn plain_pair() -> (DataConn, DataConn) {
    let (a, b) = sockets();
    (DataConn::plain(a), DataConn::plain(b))
}

pub fn tls_pair() -> (DataConn, DataConn) {
    let (mut a, mut b) = sockets();
    let cert = rcgen::generate_simple_self_signed(["skc.test".to_string()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(cert.signing_key.serialize_der()).unwrap();
    let chain = vec![cert.cert.der().clone()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let other = std::thread::spawn(move || {
        let mut tls = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut b).unwrap();
        }
        DataConn::tls(b, tls, Vec::new())
    });
    let name = rustls::pki_types::ServerName::try_from("skc.test").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut a).unwrap();
    }
    (DataConn::tls(a, tls, Vec::new()), other.join().unwrap())
}

/// A target made of frames: applies nothing and answers only what the test tells it to.
pub struct FakeTarget {
    reader: skc::replica::wire::WireReader,
    writer: skc::replica::wire::WireWriter,
    buf: FrameBuf,
    epoch: Epoch,
}

/// One received frame.
#[derive(Debug)]
pub enum Got {
    Op(u64, FsOp),
    Resync(u64, Resync),
    Marker(u64),
}

impl FakeTarget {
    /// Opens a stream from `pair`'s primary; `applied` of the hello's first position is claimed.
    pub fn connect(pair: &mut Pair, plan: Plan, applied: impl FnOnce(u64) -> u64 + Send + 'static) -> Self {
        Self::try_connect(pair, plan, applied).unwrap()
    }

    pub fn try_connect(
        pair: &mut Pair,
        plan: Plan,
        applied: impl FnOnce(u64) -> u64 + Send + 'static,
    ) -> Result<Self, primary::ConnectError> {
        pair.epoch.s += 1;
        let epoch = pair.epoch;
        let (a, b) = plain_pair();
        let target = std::thread::spawn(move || {
            let (reader, writer) = b.split("fake").unwrap();
            let mut target = Self { reader, writer, buf: FrameBuf::new(), epoch };
            let from = loop {
                if let Some(frame) = target.buf.next_frame().unwrap() {
                    break frame.message::<StreamHello>().unwrap().from;
                }
                target.reader.fill(&mut target.buf).unwrap();
            };
            target.send(Kind::Welcome, &Welcome::Accepted { applied: applied(from) });
            target
        });
        let opened = pair.mirror.primary.connect(a, epoch, plan);
        let target = target.join().unwrap();
        opened.map(|()| target)
    }

    fn send<T: serde::Serialize>(&self, kind: Kind, message: &T) {
        let mut out = Vec::new();
        frame::encode_into(&mut out, kind, 0, self.epoch, message, &[]).unwrap();
        self.writer.send(&out).unwrap();
    }

    pub fn reply(&self, reply: &Reply) {
        self.send(Kind::Reply, reply);
    }

    /// The next frame; pings are skipped.
    pub fn next(&mut self) -> Got {
        self.reader.set_timeout(Some(LONG)).unwrap();
        loop {
            while let Some(frame) = self.buf.next_frame().unwrap() {
                let seq = frame.prefix.seq;
                match frame.prefix.kind {
                    Kind::Op => return Got::Op(seq, frame.message::<OpFrame>().unwrap().op),
                    Kind::Resync => return Got::Resync(seq, frame.message().unwrap()),
                    Kind::Marker => return Got::Marker(seq),
                    _ => {}
                }
            }
            self.reader.fill(&mut self.buf).expect("a frame");
        }
    }
}
