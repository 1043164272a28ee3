//! Every interface between layers that do I/O, in one file.
//!
//! `fuse` asks a [`Replicator`] before it touches the tree and hands it what it did; `replica`
//! implements it. Decisions (who may write) arrive as [`Gate`] settings from the failover driver.

use crate::base::{ClusterId, Epoch, Volume};
use crate::proto::{FileId, FsOp};
use crate::spec::types::Service;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

/// An error number as the kernel knows it (positive: `ENOSPC` = 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// What the mount allows now. Set by the failover driver only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// SECOND, WAIT, STOP: mutations get EROFS, reads are served uncached.
    ReadOnly,
    /// PRIM with an eligible standby: a reply waits for the standby's acknowledgement in `Epoch`.
    Replicated(Epoch),
    /// ALONE by right (or source of a resync with the alone right): replies do not wait.
    /// While a resync target is connected, operations are streamed as well.
    Alone(Epoch),
    /// Undecided: new mutations park unapplied, applied ones wait; no error is seen.
    Frozen,
    /// Demoted for good in this epoch: parked and new mutations get EIO.
    Shut,
}

/// Proof that a mutation was admitted. The gate cannot change to `ReadOnly` or `Shut` while one is
/// held, so nothing touches the tree after a demotion took effect.
pub struct Ticket<'a> {
    /// Keeps the gate's read lock.
    pub guard: std::sync::RwLockReadGuard<'a, Gate>,
}

/// Answer to "may I mutate now?".
pub enum Admission<'a> {
    /// Execute, then submit with this ticket.
    Go(Ticket<'a>),
    /// Do not execute: give the request to [`Replicator::park`].
    Park,
    /// Answer this error now.
    Refuse(Errno),
}

/// Where a finished request is answered. Implemented by the FUSE device (and by tests).
pub trait ReplySink: Send + Sync {
    /// Writes one reply; `error` 0 means success with `body`. Must not block and not panic.
    fn send(&self, unique: u64, error: i32, body: &[u8]);
}

/// Longest reply body of a mutating request: fuse_entry_out (128) + fuse_open_out (16), rounded up.
pub const REPLY_BODY_MAX: usize = 160;

/// EIO, also where the C library's names are not compiled in.
const EIO: i32 = 5;
/// "Structure needs cleaning": the file system found itself damaged.
const EUCLEAN: i32 = 117;
/// A file system that met errors makes itself read-only.
const EROFS: i32 = 30;

impl Errno {
    /// Does it speak of a disk that fails, rather than of the request?
    pub const fn is_of_disk(self) -> bool {
        matches!(self.0, EIO | EUCLEAN | EROFS)
    }
}

/// A reply that waits for its acknowledgement. No allocation: the body is inline. Dropped without an
/// answer (a panic, a defect) it answers EIO: an application must never wait for nobody.
pub struct PendingReply {
    sink: Arc<dyn ReplySink>,
    unique: u64,
    answered: bool,
    len: u8,
    body: [u8; REPLY_BODY_MAX],
}

impl PendingReply {
    /// A reply to request `unique` whose success body is `body`.
    ///
    /// # Panics
    /// If `body` is longer than [`REPLY_BODY_MAX`]; callers pass fixed ABI structs.
    pub fn new(sink: Arc<dyn ReplySink>, unique: u64, body: &[u8]) -> Self {
        let mut inline = [0; REPLY_BODY_MAX];
        inline[..body.len()].copy_from_slice(body);
        Self { sink, unique, answered: false, len: body.len() as u8, body: inline }
    }

    /// Answers the application: success.
    pub fn ok(mut self) {
        self.answered = true;
        self.sink.send(self.unique, 0, &self.body[..self.len as usize]);
    }

    /// Answers the application: error.
    pub fn err(mut self, errno: Errno) {
        self.answered = true;
        self.sink.send(self.unique, errno.0, &[]);
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if !self.answered {
            tracing::error!(unique = self.unique, "a request was given up unanswered; its caller gets EIO");
            self.sink.send(self.unique, EIO, &[]);
        }
    }
}

/// A request put aside while the gate is `Frozen`; `run` executes it again from the start
/// (it asks for admission itself).
pub type ParkedRequest = Box<dyn FnOnce() + Send>;

/// Local half of an fsync; runs on the replicator's fsync pool.
pub type LocalSync = Box<dyn FnOnce() -> Result<(), Errno> + Send>;

/// Answers "how does one reach this id?", so that the stream can bind it. Implemented by the
/// inode table. Called only while the caller of `submit` holds the namespace lock.
pub trait Names: Send + Sync {
    /// A current (parent, name) of `id`; `None` for the root, for an unlinked or a tmpfile inode.
    fn alias(&self, volume: Volume, id: FileId) -> Option<(FileId, Vec<u8>)>;
}

/// The replication layer as the mirror file system sees it. One per cluster, shared by its volumes.
///
/// Calling order for one mutation: `admit` -> (namespace lock, inode lock) -> local operation ->
/// `submit`/`submit_sync` -> unlock. The sequence number is taken inside `submit`.
pub trait Replicator: Send + Sync {
    /// May a mutation run now? Cheap: one read lock.
    fn admit(&self) -> Admission<'_>;

    /// Keeps `request`, which holds about `weight` bytes, until the gate leaves `Frozen`. Bounded by
    /// number and bytes; past a bound it blocks the caller until the freeze deadline settles the gate.
    fn park(&self, request: ParkedRequest, weight: usize);

    /// The operation was applied locally; replicate it and answer when the rule of the gate allows.
    fn submit(&self, ticket: Ticket<'_>, volume: Volume, op: &FsOp, bulk: &[u8], reply: PendingReply);

    /// Like `submit` for operations that must also be durable (fsync, O_SYNC write): the local
    /// half runs on a pool in parallel with the standby's, the reply waits for both.
    fn submit_sync(
        &self,
        ticket: Ticket<'_>,
        volume: Volume,
        op: &FsOp,
        bulk: &[u8],
        local: LocalSync,
        reply: PendingReply,
    );

    /// fsync while no mutation is allowed (standby, frozen reads): local only.
    fn local_sync(&self, local: LocalSync, reply: PendingReply);

    /// The tree of `volume` was changed, or may have been, in a way that no operation describes: the standby
    /// is no longer equal and only a compare makes it so. To be called while the ticket of the failed
    /// operation is held, where there still is one.
    fn spoil(&self, volume: Volume, why: &str);

    /// A request failed with an error of the disk or of its file system.
    fn disk_failed(&self, _errno: Errno) {}

    /// The kernel forgot these ids.
    fn forget(&self, volume: Volume, ids: &[FileId]);
}

/// A refusal or failure behind a port, ready for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// Page of `skc explain`.
    pub code: &'static str,
    /// What happened.
    pub message: String,
}

/// An answer that takes a while. Dropping it does not undo what was asked.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PortError>> + Send + 'a>>;

/// How far a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServicePhase {
    /// Nothing of it runs.
    Stopped,
    /// On its way up.
    Starting,
    /// Up.
    Running,
    /// On its way down.
    Stopping,
    /// Down, not by our wish; the reason.
    Failed(String),
}

/// One service as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSeen {
    /// Its name within the cluster.
    pub name: String,
    /// How far it is.
    pub phase: ServicePhase,
    /// It was started from this very definition.
    pub current: bool,
}

/// Runs services. Every call ends within the service's own timeouts plus a few seconds, and is idempotent.
pub trait ServiceManager: Send + Sync + 'static {
    /// Every service of `cluster` that it knows, also those not in `wanted`; `current` compares with `wanted`.
    fn list<'a>(&'a self, cluster: &'a ClusterId, wanted: &'a [Service]) -> Answer<'a, Vec<ServiceSeen>>;
    /// Brings it up; done when it runs.
    fn start<'a>(&'a self, cluster: &'a ClusterId, service: &'a Service) -> Answer<'a, ()>;
    /// Brings it down; done when nothing of it is left.
    fn stop<'a>(&'a self, cluster: &'a ClusterId, name: &'a str) -> Answer<'a, ()>;
}

/// A virtual address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VipPlace {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Index of the interface.
    pub ifindex: u32,
}

/// Removes virtual addresses when this process can no longer: the guard.
pub trait VipTrustee: Send + Sync + 'static {
    /// From now on these addresses of `cluster`, and no others of it. To be called **before** one is added.
    fn entrust<'a>(&'a self, cluster: &'a ClusterId, places: &'a [VipPlace]) -> Answer<'a, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, i32, Vec<u8>)>>);

    impl ReplySink for Sent {
        fn send(&self, unique: u64, error: i32, body: &[u8]) {
            self.0.lock().unwrap().push((unique, error, body.to_vec()));
        }
    }

    #[test]
    fn every_reply_is_sent_once_also_when_it_is_forgotten() {
        let sent = Arc::new(Sent::default());
        let reply = |unique| PendingReply::new(sent.clone(), unique, b"body");
        reply(1).ok();
        reply(2).err(Errno(28));
        drop(reply(3));
        let sent = sent.0.lock().unwrap();
        assert_eq!(*sent, [(1, 0, b"body".to_vec()), (2, 28, vec![]), (3, EIO, vec![])]);
    }
}
