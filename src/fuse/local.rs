//! A replicator without a peer: for `skc passthrough`, benchmarks and file-system test suites.
//!
//! Admits everything and answers at once; fsyncs run on a small pool so that they hold no reader.

use crate::base::{Epoch, Volume};
use crate::ports::{Admission, Gate, LocalSync, ParkedRequest, PendingReply, Replicator, Ticket};
use crate::proto::{FileId, FsOp};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Threads that sync: enough for the disk's queue on a small machine.
const SYNCERS: usize = 4;
/// Syncs waiting for one of them; past it the reader waits, which is back-pressure.
const QUEUE: usize = 256;

type Job = (LocalSync, PendingReply);

/// See the module's documentation.
#[derive(Debug)]
pub struct Local {
    gate: RwLock<Gate>,
    jobs: SyncSender<Job>,
}

fn run((sync, reply): Job) {
    match sync() {
        Ok(()) => reply.ok(),
        Err(errno) => reply.err(errno),
    }
}

fn syncer(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => run(job),
            Err(_) => return,
        }
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new(Gate::Alone(Epoch::default()))
    }
}

impl Local {
    /// With this gate; [`Gate::Alone`] is the useful one, the others serve tests.
    pub fn new(gate: Gate) -> Self {
        let (jobs, queue) = sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..SYNCERS {
            let queue = Arc::clone(&queue);
            let spawned = std::thread::Builder::new().name(format!("sync-{n}")).spawn(move || syncer(&queue));
            if let Err(error) = spawned {
                tracing::error!(%error, "a sync thread could not be started");
            }
        }
        Self { gate: RwLock::new(gate), jobs }
    }

    /// Changes the gate. Waits for mutations that were admitted.
    pub fn set_gate(&self, gate: Gate) {
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = gate;
    }

    fn enqueue(&self, job: Job) {
        // Err: no syncer lives; then it is done here.
        if let Err(returned) = self.jobs.send(job) {
            run(returned.0);
        }
    }
}

impl Replicator for Local {
    fn admit(&self) -> Admission<'_> {
        let guard = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match *guard {
            Gate::Replicated(_) | Gate::Alone(_) => Admission::Go(Ticket { guard }),
            // There is nobody to wait for.
            Gate::ReadOnly | Gate::Frozen => Admission::Refuse(crate::ports::Errno(libc::EROFS)),
            Gate::Shut => Admission::Refuse(crate::ports::Errno(libc::EIO)),
        }
    }

    fn park(&self, request: ParkedRequest, _weight: usize) {
        request();
    }

    fn submit(&self, _ticket: Ticket<'_>, _volume: Volume, _op: &FsOp, _bulk: &[u8], reply: PendingReply) {
        reply.ok();
    }

    fn submit_sync(
        &self,
        _ticket: Ticket<'_>,
        _volume: Volume,
        _op: &FsOp,
        _bulk: &[u8],
        local: LocalSync,
        reply: PendingReply,
    ) {
        self.enqueue((local, reply));
    }

    fn local_sync(&self, local: LocalSync, reply: PendingReply) {
        self.enqueue((local, reply));
    }

    fn spoil(&self, _volume: Volume, why: &str) {
        tracing::error!(why, "a standby would no longer be equal");
    }

    fn forget(&self, _volume: Volume, _ids: &[FileId]) {}
}
