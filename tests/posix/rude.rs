//! A replicator that refuses what was done already, forgets what it was given, or panics: nothing may hang and
//! nothing may stay behind.

use super::support::{Mounted, eventually, isolated};
use skc::base::Volume;
use skc::fuse::Local;
use skc::ports::{Admission, Errno, LocalSync, ParkedRequest, PendingReply, Replicator, Ticket};
use skc::proto::{FileId, FsOp};
use skc::sys::file;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Manner {
    Kind,
    /// Every operation that was done is answered EIO, as a demotion does it.
    Refuse,
    /// No operation is answered.
    Forget,
    /// Every operation that was done panics.
    Panic,
    /// Every request is put aside and then given up.
    GiveUp,
    /// The next request is put aside; run again, it panics.
    PanicLater,
}

struct Rude {
    inner: Local,
    manner: AtomicU8,
    spoiled: AtomicUsize,
    parked: Mutex<Option<JoinHandle<()>>>,
}

impl Rude {
    fn mount() -> (Mounted, Arc<Self>) {
        let me = Arc::new(Self {
            inner: Local::default(),
            manner: AtomicU8::new(0),
            spoiled: AtomicUsize::new(0),
            parked: Mutex::default(),
        });
        (Mounted::new(Arc::clone(&me) as _), me)
    }

    fn behave(&self, manner: Manner) {
        self.manner.store(manner as u8, Ordering::Release);
    }

    fn is(&self, manner: Manner) -> bool {
        self.manner.load(Ordering::Acquire) == manner as u8
    }
}

impl Replicator for Rude {
    fn admit(&self) -> Admission<'_> {
        if self.is(Manner::GiveUp) || self.is(Manner::PanicLater) {
            return Admission::Park;
        }
        self.inner.admit()
    }

    fn park(&self, request: ParkedRequest, _weight: usize) {
        if self.is(Manner::PanicLater) {
            self.behave(Manner::Panic);
            *self.parked.lock().expect("parked") = Some(std::thread::spawn(request));
        }
    }

    fn submit(&self, ticket: Ticket<'_>, volume: Volume, op: &FsOp, bulk: &[u8], reply: PendingReply) {
        if self.is(Manner::Refuse) {
            drop(ticket);
            return reply.err(Errno(libc::EIO));
        }
        if self.is(Manner::Forget) {
            return;
        }
        assert!(!self.is(Manner::Panic), "as the test wants it");
        self.inner.submit(ticket, volume, op, bulk, reply);
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
        self.inner.submit_sync(ticket, volume, op, bulk, local, reply);
    }

    fn local_sync(&self, local: LocalSync, reply: PendingReply) {
        self.inner.local_sync(local, reply);
    }

    fn spoil(&self, _: Volume, _: &str) {
        self.spoiled.fetch_add(1, Ordering::AcqRel);
    }

    fn forget(&self, volume: Volume, ids: &[FileId]) {
        self.inner.forget(volume, ids);
    }
}

/// Descriptors of this process that lead to something called `name`.
fn open_descriptors(name: &str) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").expect("fds").flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter(|target| target.to_string_lossy().contains(name)).count()
}

fn eio(result: std::io::Result<()>) {
    assert_eq!(result.expect_err("refused").raw_os_error(), Some(libc::EIO));
}

#[test]
fn whoever_is_forgotten_gets_eio_and_the_mount_goes_on() {
    isolated(|| {
        let (m, rude) = Rude::mount();
        let spoiled = || rude.spoiled.load(Ordering::Acquire);
        rude.behave(Manner::Forget);
        eio(std::fs::create_dir(m.path("forgotten")));
        rude.behave(Manner::GiveUp);
        eio(std::fs::create_dir(m.path("given-up")));
        assert_eq!(spoiled(), 0, "nothing was left half done");
        rude.behave(Manner::Panic);
        eio(std::fs::create_dir(m.path("panics")));
        eventually("done here and not there: spoiled", || spoiled() == 1);
        rude.behave(Manner::PanicLater);
        eio(std::fs::create_dir(m.path("panics-later")));
        eventually("spoiled again", || spoiled() == 2);
        let parked = rude.parked.lock().expect("parked").take().expect("put aside");
        parked.join().expect("the thread that runs parked requests goes on");
        rude.behave(Manner::Kind);
        std::fs::create_dir(m.path("kind")).expect("mkdir");
    });
}

#[test]
fn an_object_whose_making_was_refused_leaves_no_handle_and_no_count() {
    isolated(|| {
        let (m, rude) = Rude::mount();
        std::fs::write(m.path("there"), b"").expect("write");
        let known = m.tree.inodes.len();
        rude.behave(Manner::Refuse);
        eio(std::fs::File::create_new(m.path("refused-create")).map(drop));
        eio(std::fs::create_dir(m.path("refused-directory")));
        eio(std::os::unix::fs::symlink("x", m.path("refused-link")));
        eio(std::fs::hard_link(m.path("there"), m.path("refused-name")));
        let top = std::fs::File::open(&m.dir).expect("open");
        assert_eq!(file::open_tmpfile(top.as_fd(), 0o600, false).map(drop), Err(Errno(libc::EIO)));
        rude.behave(Manner::Kind);
        assert_eq!(open_descriptors("refused-create"), 0);
        assert_eq!(open_descriptors(&format!("{} (deleted)", "refused")), 0);
        assert_eq!(m.tree.inodes.len(), known);
    });
}
