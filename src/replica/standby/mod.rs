//! The receiving side of a cluster: applies the stream in order, acknowledges, gets resynced.
//!
//! One apply thread a connection and a small fsync pool. Invariants: a frame is applied only if its
//! epoch is the connection's and its number the next; an acknowledgement follows the system call; when
//! `close` returned true no frame will ever be applied or acknowledged any more. A complete standby
//! applies strictly: the first failure ends the stream and makes the tree unusable
//! ([`Event::ApplyFailed`]); a resync target repairs (see `lenient`). One descriptor of every file
//! system is held for life (`Backing::base`), so writeback errors reach `syncfs`.
//! Deliberately absent: durability of the applied position. After an agent's restart it is unknown and
//! the node is compared in full.

mod apply;
mod blocks;
mod leftover;
mod lenient;
mod ops;
mod pulse;
mod quarantine;
mod resync;
mod syncs;
mod table;

use crate::base::{ClusterId, Epoch};
use crate::ports::Errno;
use crate::proto::frame::{self, FrameBuf, Kind};
use crate::proto::stream::{Plan, Reply, StreamHello, Welcome};
use crate::replica::event::{Event, EventSink};
use crate::replica::local::sync_trees;
use crate::replica::pool::SyncPool;
use crate::replica::wire::{DataConn, WireError, WireReader, WireWriter};
use crate::tree::Tree;
use apply::Apply;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use table::Table;

pub use quarantine::Limits as QuarantineLimits;

/// The apply thread removes directories recursively.
const STACK: usize = 16 << 20;

/// Limits of one cluster's receiving side.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster; a hello for another one is refused.
    pub cluster: ClusterId,
    /// Threads that wait for fsyncs.
    pub sync_threads: usize,
    /// A connection without a hello for this long is given up.
    pub hello_timeout: Duration,
    /// A sync that takes longer is a disk that hangs: the stream ends with ETIMEDOUT. Ten times as long
    /// in a resync. Far beyond a slow disk's worst second, below what the primary waits.
    pub sync_stall: Duration,
    /// What a resync keeps.
    pub quarantine: QuarantineLimits,
}

impl Config {
    /// The defaults for `cluster`.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            sync_threads: 4,
            hello_timeout: Duration::from_secs(10),
            sync_stall: Duration::from_secs(30),
            quarantine: QuarantineLimits::default(),
        }
    }
}

/// Why a stream was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The connection failed.
    #[error("accepting the stream")]
    Wire(#[from] WireError),
    /// The hello does not fit what both sides agreed on.
    #[error("the stream was refused: {0}")]
    Refused(String),
    /// The apply thread of the last connection still hangs in a system call.
    #[error("the last apply thread has not ended")]
    Busy,
    /// The apply thread could not be started.
    #[error("starting the apply thread")]
    Thread(#[source] std::io::Error),
}

#[derive(Default)]
struct Position {
    stream: u128,
    applied: Option<u64>,
}

pub(in crate::replica) struct Shared {
    cfg: Config,
    events: EventSink,
    trees: Vec<Arc<Tree>>,
    pool: SyncPool,
    syncs: syncs::Syncs,
    position: Mutex<Position>,
    closing: AtomicBool,
    /// Bytes that the resync of this connection filled in.
    filled: AtomicU64,
    /// A sync failed: apply nothing more.
    failed: AtomicBool,
    /// Held while a sync is answered.
    answers: Mutex<()>,
    released: Mutex<Option<Epoch>>,
    wake: Condvar,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn set_applied(&self, applied: Option<u64>) {
        let mut position = lock(&self.position);
        // The failure has said, or is about to say, that nothing is known.
        if applied.is_none() || !self.failed.load(Ordering::Acquire) {
            position.applied = applied;
        }
    }

    /// A sync of the pool ended. A failure makes the tree unusable: it is never retried, because a
    /// second try would succeed without the lost pages.
    fn sync_done(
        &self,
        id: syncs::SyncId,
        writer: &WireWriter,
        epoch: Epoch,
        seq: u64,
        result: Result<(), Errno>,
    ) {
        self.syncs.end(id);
        let errno = result.err().map_or(0, |e| e.0);
        if errno != 0 {
            // Before anybody can open the next stream. It may be a late answer to an older one.
            self.trees.iter().for_each(|tree| tree.distrust_cache());
        }
        let mut out = Vec::new();
        let reply = Reply::SyncAck { seq, errno };
        let encoded = frame::encode_into(&mut out, Kind::Reply, 0, epoch, &reply, &[]).is_ok();
        {
            // One after the other: behind the first failure nobody says that something is durable.
            let _order = lock(&self.answers);
            if errno != 0 {
                self.failed.store(true, Ordering::Release);
            } else if self.failed.load(Ordering::Acquire) {
                return;
            }
            if encoded {
                // A closed connection is reported by the apply thread.
                let _ = writer.send(&out);
            }
        }
        if errno != 0 {
            tracing::error!(%epoch, seq, errno, "sync failed; what is on disk is unknown");
            self.set_applied(None);
            (self.events)(Event::SyncFailed { epoch, errno });
            writer.flush(Duration::from_millis(500));
            writer.close();
        }
    }
}

struct Running {
    writer: Arc<WireWriter>,
    thread: JoinHandle<Vec<Table>>,
}

/// See the module's documentation.
pub struct Standby {
    shared: Arc<Shared>,
    trees: Vec<Arc<Tree>>,
    running: Mutex<Option<Running>>,
    /// Bindings of the last stream, for a replay.
    tables: Mutex<Option<Vec<Table>>>,
    turn: AtomicU64,
}

impl Standby {
    /// The receiving side over `trees` (index = volume).
    pub fn new(cfg: Config, trees: Vec<Arc<Tree>>, events: EventSink) -> std::io::Result<Self> {
        let pool = SyncPool::new(&format!("sbsync-{}", cfg.cluster), cfg.sync_threads)?;
        let shared = Arc::new(Shared {
            cfg,
            events,
            trees: trees.clone(),
            pool,
            syncs: syncs::Syncs::default(),
            position: Mutex::default(),
            closing: AtomicBool::new(false),
            filled: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            answers: Mutex::default(),
            released: Mutex::new(None),
            wake: Condvar::new(),
        });
        Ok(Self {
            shared,
            trees,
            running: Mutex::new(None),
            turn: AtomicU64::new(0),
            tables: Mutex::new(None),
        })
    }

    /// Last applied position, if known, and if what the disk holds of it is.
    pub fn applied(&self) -> Option<u64> {
        if self.trees.iter().any(|tree| tree.is_cache_distrusted()) {
            return None;
        }
        lock(&self.shared.position).applied
    }

    /// Bytes that the resync of the last connection brought.
    pub fn filled(&self) -> u64 {
        self.shared.filled.load(Ordering::Relaxed)
    }

    /// This node was the writer up to here and its standby had everything: it goes on from this position.
    pub fn adopt_position(&self, applied: Option<u64>) {
        *lock(&self.shared.position) = Position { stream: 0, applied };
    }

    /// Waits for the hello, answers it, starts to apply. Blocks up to `hello_timeout`; closes an older
    /// stream first. `plan` is what both cores agreed on.
    pub fn accept(&self, conn: DataConn, epoch: Epoch, plan: Plan) -> Result<(), AcceptError> {
        self.accept_in(self.turn(), conn, epoch, plan)
    }

    /// Counts the closes: a stream whose opening began in an earlier turn is not opened any more.
    pub fn turn(&self) -> u64 {
        self.turn.load(Ordering::Acquire)
    }

    /// Like [`Self::accept`], unless [`Self::close`] was called since `turn` was read: whoever closed
    /// relies on nothing being applied afterwards.
    pub fn accept_in(&self, turn: u64, conn: DataConn, epoch: Epoch, plan: Plan) -> Result<(), AcceptError> {
        if !self.end(Duration::from_secs(5)) {
            return Err(AcceptError::Busy);
        }
        let (mut wire, writer) = conn.split(&format!("dst-{}", self.shared.cfg.cluster))?;
        let writer = Arc::new(writer);
        let mut buf = FrameBuf::new();
        let hello = self.hello(&mut wire, &mut buf, epoch)?;
        let answer = self.judge(&hello, plan);
        let welcome = match &answer {
            Ok(applied) => Welcome::Accepted { applied: *applied },
            Err(reason) => Welcome::Refused { reason: reason.clone() },
        };
        let mut out = Vec::new();
        frame::encode_into(&mut out, Kind::Welcome, 0, epoch, &welcome, &[]).map_err(WireError::from)?;
        let applied = match answer {
            Ok(applied) => applied,
            Err(reason) => {
                let _ = writer.send(&out);
                writer.flush(Duration::from_secs(1));
                return Err(AcceptError::Refused(reason));
            }
        };
        let lenient = matches!(plan, Plan::Resync { .. });
        let quarantines =
            if plan == (Plan::Resync { quarantine: true }) { self.quarantines() } else { Vec::new() };
        wire.set_timeout(Some(apply::TICK))?;
        let mut running = lock(&self.running);
        if self.turn() != turn || running.is_some() {
            return Err(AcceptError::Refused("closed meanwhile".into()));
        }
        writer.send(&out)?;
        // From here on only the thread may fail to start: the bindings are not lost with a connection.
        let kept = lock(&self.tables).take();
        let same = lock(&self.shared.position).stream == hello.stream;
        let tables = match kept {
            Some(tables) if same => tables,
            _ => self.trees.iter().map(|t| Table::new(Arc::clone(t))).collect(),
        };
        *lock(&self.shared.position) = Position { stream: hello.stream, applied: Some(applied) };
        *lock(&self.shared.released) = None;
        self.shared.closing.store(false, Ordering::Release);
        self.shared.failed.store(false, Ordering::Release);
        self.shared.filled.store(0, Ordering::Relaxed);
        self.shared.syncs.clear();
        let apply = Apply {
            shared: Arc::clone(&self.shared),
            tables,
            quarantines,
            writer: Arc::clone(&writer),
            pulse: pulse::Pulse::new(Arc::clone(&self.shared), Arc::clone(&writer), epoch),
            epoch,
            lenient,
            asked: false,
            forgotten: HashSet::new(),
            dir_parts: None,
            xattr_parts: None,
            out: Vec::new(),
            seq: applied,
            acked: applied,
            kept: (0, 0, false),
        };
        let thread = std::thread::Builder::new()
            .name(format!("apply-{}", self.shared.cfg.cluster))
            .stack_size(STACK)
            .spawn(move || apply.run(wire, buf))
            .map_err(|error| {
                self.shared.set_applied(None);
                AcceptError::Thread(error)
            })?;
        *running = Some(Running { writer, thread });
        Ok(())
    }

    fn quarantines(&self) -> Vec<quarantine::Quarantine> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let limits = self.shared.cfg.quarantine;
        let make = |tree: &Arc<Tree>| {
            let mut q = quarantine::Quarantine::new(Arc::clone(tree), limits, now);
            q.prepare();
            q
        };
        self.trees.iter().map(make).collect()
    }

    fn hello(
        &self,
        wire: &mut WireReader,
        buf: &mut FrameBuf,
        epoch: Epoch,
    ) -> Result<StreamHello, AcceptError> {
        let end = Instant::now() + self.shared.cfg.hello_timeout;
        loop {
            if let Some(frame) = buf.next_frame().map_err(WireError::from)? {
                if frame.prefix.kind != Kind::Hello || frame.prefix.epoch != epoch {
                    let (kind, got) = (frame.prefix.kind, frame.prefix.epoch);
                    return Err(AcceptError::Refused(format!("{kind:?} of epoch {got}, expected {epoch}")));
                }
                return Ok(frame.message().map_err(WireError::from)?);
            }
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            wire.set_timeout(Some(left))?;
            wire.fill(buf)?;
        }
    }

    /// The position to go on from, or why not.
    fn judge(&self, hello: &StreamHello, plan: Plan) -> Result<u64, String> {
        if hello.cluster != self.shared.cfg.cluster {
            return Err(format!("cluster {} expected", self.shared.cfg.cluster));
        }
        if usize::from(hello.volumes) != self.trees.len() {
            return Err(format!("{} volumes here, {} there", self.trees.len(), hello.volumes));
        }
        if hello.plan != plan {
            return Err(format!("plan {plan:?} expected"));
        }
        let before = hello.from.checked_sub(1).ok_or("positions start at 1")?;
        if matches!(plan, Plan::Resync { .. }) {
            return Ok(before);
        }
        if self.trees.iter().any(|tree| tree.is_cache_distrusted()) {
            return Err("a sync failed here since the last compare".into());
        }
        let position = lock(&self.shared.position);
        let Some(applied) = position.applied else { return Err("the applied position is unknown".into()) };
        // Another stream has other names for everything: only without a single missing frame.
        let fits = if position.stream == hello.stream { applied >= before } else { applied == before };
        if fits {
            Ok(applied)
        } else {
            Err(format!("applied up to {applied}, the stream starts at {}", hello.from))
        }
    }

    /// Goes on behind the UpToDate marker of `epoch`: the driver has synced and persisted.
    pub fn release_marker(&self, epoch: Epoch) {
        *lock(&self.shared.released) = Some(epoch);
        self.shared.wake.notify_all();
    }

    /// syncfs of every volume, through the descriptors held for life.
    pub fn sync(&self) -> Result<(), Errno> {
        sync_trees(&self.trees)
    }

    /// Ends the stream. True: no frame of it will ever be applied or acknowledged; what was received
    /// and not applied is dropped. False: the running operation did not end `within`; ask again.
    pub fn close(&self, within: Duration) -> bool {
        {
            let _running = lock(&self.running);
            self.turn.fetch_add(1, Ordering::AcqRel);
        }
        self.end(within)
    }

    /// After a [`Self::close`] that returned false because the disk hangs: what the tree holds once the running
    /// operation has ended is not known any more, and a full compare is needed. It still keeps everything that
    /// would follow out.
    pub fn give_up(&self) {
        self.shared.failed.store(true, Ordering::Release);
        self.shared.set_applied(None);
    }

    fn end(&self, within: Duration) -> bool {
        let mut running = lock(&self.running);
        let Some(current) = running.take() else { return true };
        {
            // Under the lock that the marker's wait uses, so that it cannot miss it.
            let _released = lock(&self.shared.released);
            self.shared.closing.store(true, Ordering::Release);
            self.shared.wake.notify_all();
        }
        current.writer.close();
        let end = Instant::now() + within;
        while !current.thread.is_finished() {
            if Instant::now() >= end {
                *running = Some(current);
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if let Ok(tables) = current.thread.join() {
            *lock(&self.tables) = Some(tables);
        } else {
            tracing::error!("the apply thread panicked");
            self.shared.set_applied(None);
        }
        true
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.close(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests;
