//! The sending side of a cluster: gate, ordered stream, replies that wait for acknowledgements.
//!
//! Threads: the file system's workers call [`Replicator`]; one ack reader a connection; one helper
//! (parked requests, stall watch); the fsync pool; during a resync the pump. Lock order: gate ->
//! tree's `ns` -> tree's stripe -> `core::Core` -> inode table, wire.
//!
//! Invariants: a frame enters the stream while the caller still holds the locks under which the
//! operation was applied, so stream order = order of effect; no reply under `Replicated` is sent
//! before a complete standby acknowledged the frame in this epoch (in directories of the modes `commit`
//! and `async`: or the frame fits the window, see `core::early`); under `Frozen` nothing is answered;
//! after `set_gate(Shut | ReadOnly)` returned nothing touches the tree any more.
//! Failure: a broken connection keeps the unacknowledged frames for replay and is reported; what the
//! stream cannot express (an object without a findable name) ends it and bars replay.

mod conn;
mod core;
mod park;
mod whole;

use self::core::{Answer, Core, Early, Outcome, Submitted, Window};
use crate::base::{ClusterId, Epoch, Generation, Volume};
use crate::ports::{Admission, Errno, Gate, LocalSync, ParkedRequest, PendingReply, Replicator, Ticket};
use crate::proto::frame::Kind;
use crate::proto::stream::{Marker, Plan};
use crate::proto::{FileId, FsOp};
use crate::replica::event::{Event, EventSink, StreamEnd};
use crate::replica::pool::SyncPool;
use crate::spec::Consistency;
use crate::tree::Tree;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use self::core::EarlyWindow;
pub use conn::ConnectError;
pub(crate) use conn::describe as conn_describe;
pub use whole::{SyncError, Synced};

/// Limits of one cluster's sending side.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster, for the stream's hello and thread names.
    pub cluster: ClusterId,
    /// Unacknowledged bytes past which new mutations park. Also the memory kept for replay.
    pub window_bytes: usize,
    /// Unacknowledged frames past which new mutations park.
    pub window_ops: usize,
    /// Acknowledgements without progress for this long end the stream ([`StreamEnd::Stalled`]).
    pub ack_stall: Duration,
    /// An fsync that a complete standby has not answered for this long ends the stream too: its page
    /// cache may take writes while its disk hangs. Longer than the standby's own limit.
    pub sync_stall: Duration,
    /// Parked requests past which the caller of `park` is blocked.
    pub parked_max: usize,
    /// Bytes of parked requests past which the caller of `park` is blocked: writes carry their data.
    pub parked_bytes: usize,
    /// Blocked for this long (the driver's freeze deadline is far shorter): mutations get EIO.
    pub freeze_limit: Duration,
    /// Threads that wait for local fsyncs.
    pub sync_threads: usize,
    /// Resync frames in flight while the application writes, and while it does not.
    pub resync_busy: usize,
    /// See [`Config::resync_busy`].
    pub resync_idle: usize,
    /// Resync bytes (compared or sent) a second; `None` = no limit. See [`Primary::set_bandwidth`].
    pub bandwidth: Option<u64>,
    /// A connection that does not answer the hello for this long is given up.
    pub hello_timeout: Duration,
}

impl Config {
    /// The defaults for `cluster`.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            window_bytes: 64 << 20,
            window_ops: 8192,
            ack_stall: Duration::from_secs(10),
            sync_stall: Duration::from_secs(60),
            parked_max: 4096,
            parked_bytes: 128 << 20,
            freeze_limit: Duration::from_secs(120),
            sync_threads: 4,
            resync_busy: 1 << 20,
            resync_idle: 8 << 20,
            bandwidth: None,
            hello_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a gate could not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// An admitted operation did not end (a disk that hangs). Nothing new is admitted meanwhile.
    #[error("an operation still runs; new ones are held back")]
    Busy,
}

/// How far the standby is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Frames in flight.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes of those that were answered already: what the death of this machine would lose now.
    pub answered: usize,
    /// Age of the oldest one.
    pub oldest: Option<Duration>,
}

/// Why the UpToDate marker could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// No connection of that epoch.
    #[error("no stream of this epoch")]
    NoStream,
    /// The frame could not be made.
    #[error("the marker could not be encoded")]
    Encode,
}

pub(crate) struct Inner {
    cfg: Config,
    trees: Vec<Arc<Tree>>,
    events: EventSink,
    gate: RwLock<Gate>,
    /// A gate change waits for tickets: admit nothing.
    changing: AtomicBool,
    /// Frozen beyond every deadline, or read-only by force: refuse.
    overrun: AtomicBool,
    /// The gate was changed over an operation that hangs: written under the core's lock.
    forced: AtomicBool,
    /// A connection is attached.
    streaming: AtomicBool,
    /// Mutations happened outside the stream (see `Core::gap`).
    lone: AtomicBool,
    core: Mutex<Core>,
    window: Arc<Window>,
    /// Woken by acknowledgements.
    acked: Condvar,
    parked: Mutex<park::Parked>,
    parked_wake: Condvar,
    /// Counts disconnects asked for from outside.
    turn: AtomicU64,
    parked_len: AtomicUsize,
    /// Resync bytes a second; 0 = no limit.
    bandwidth: AtomicU64,
    pool: SyncPool,
    threads: Mutex<conn::Threads>,
}

/// See the module's documentation.
pub struct Primary {
    inner: Arc<Inner>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Primary {
    /// The sending side over `trees` (index = volume). The gate starts `ReadOnly`.
    pub fn new(cfg: Config, trees: Vec<Arc<Tree>>, events: EventSink) -> std::io::Result<Self> {
        // Half: what waits beyond the window must not fill the other one, past which callers park.
        let core = Core::new(conn::random_id(), Early::new(cfg.window_ops / 2));
        let pool = SyncPool::new(&format!("fsync-{}", cfg.cluster), cfg.sync_threads)?;
        let inner = Arc::new(Inner {
            gate: RwLock::new(Gate::ReadOnly),
            changing: AtomicBool::new(false),
            overrun: AtomicBool::new(false),
            forced: AtomicBool::new(false),
            streaming: AtomicBool::new(false),
            lone: AtomicBool::new(false),
            window: Arc::clone(&core.window),
            core: Mutex::new(core),
            acked: Condvar::new(),
            parked: Mutex::default(),
            parked_wake: Condvar::new(),
            turn: AtomicU64::new(0),
            parked_len: AtomicUsize::new(0),
            bandwidth: AtomicU64::new(cfg.bandwidth.unwrap_or(0)),
            pool,
            threads: Mutex::default(),
            cfg,
            trees,
            events,
        });
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name(format!("park-{}", inner.cfg.cluster))
            .spawn(move || park::run(&weak))?;
        Ok(Self { inner })
    }

    /// The gate as it is now.
    pub fn gate(&self) -> Gate {
        *self.inner.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the gate. Waits at most `within` for operations that run under the old one.
    ///
    /// What waits for acknowledgements: `Frozen` keeps it, `Replicated` answers what a complete
    /// standby has acknowledged, `Alone` answers everything with success (the caller has the right),
    /// `Shut` answers EIO, `ReadOnly` success where acknowledged and EIO else.
    ///
    /// # Errors
    /// [`GateError::Busy`]: the old gate is still in force, but nothing new is admitted; call again.
    pub fn set_gate(&self, gate: Gate, within: Duration) -> Result<(), GateError> {
        let inner = &self.inner;
        inner.changing.store(true, Ordering::Release);
        let end = Instant::now() + within;
        let mut out = Outcome::default();
        loop {
            if let Ok(mut now) = inner.gate.try_write() {
                *now = gate;
                lock(&inner.core).set_rule(gate, &mut out);
                inner.overrun.store(false, Ordering::Release);
                inner.forced.store(false, Ordering::Release);
                inner.changing.store(false, Ordering::Release);
                break;
            }
            if Instant::now() >= end {
                return Err(GateError::Busy);
            }
            // Tickets are held for microseconds; a queue on the lock would stop admissions for longer.
            std::thread::park_timeout(Duration::from_micros(100));
        }
        out.send(&inner.events);
        inner.acked.notify_all();
        inner.parked_wake.notify_all();
        Ok(())
    }

    /// What [`Self::set_gate`] does, over an operation that did not end in time because the disk hangs: it is
    /// void, and answers EIO when it ends, whatever it did to the tree, which therefore is no copy any more.
    /// Only for gates under which nothing is written. Until `set_gate` succeeds nothing is admitted.
    pub fn force_gate(&self, gate: Gate) {
        let inner = &self.inner;
        let mut out = Outcome::default();
        inner.changing.store(true, Ordering::Release);
        {
            let mut core = lock(&inner.core);
            inner.forced.store(true, Ordering::Release);
            inner.lone.store(true, Ordering::Release);
            core.gap = true;
            core.set_rule(gate, &mut out);
        }
        inner.overrun.store(matches!(gate, Gate::ReadOnly | Gate::Shut), Ordering::Release);
        out.send(&inner.events);
        inner.acked.notify_all();
        inner.parked_wake.notify_all();
    }

    /// Is the gate one that was set by force?
    pub fn is_forced(&self) -> bool {
        self.inner.forced.load(Ordering::Acquire)
    }

    /// Waits until nothing submitted waits for an acknowledgement; `false` if that took longer.
    pub fn drain(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        let mut core = lock(&self.inner.core);
        loop {
            if core.drained() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            core = self.inner.acked.wait_timeout(core, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts the UpToDate marker into the stream of `epoch`; answered by [`Event::UpToDateAcked`].
    /// From here on frames are retained for replay.
    pub fn mark_up_to_date(&self, epoch: Epoch, g: u64, cur: Generation) -> Result<u64, MarkerError> {
        let mut core = lock(&self.inner.core);
        if core.conn.as_ref().is_none_or(|c| c.epoch != epoch) {
            return Err(MarkerError::NoStream);
        }
        // Under the stream mutex: an operation behind the marker is in the stream.
        core.gap = false;
        self.inner.lone.store(false, Ordering::Release);
        let seq =
            core.control(Kind::Marker, &Marker::UpToDate { g, cur }).map_err(|_| MarkerError::Encode)?;
        core.marker = Some(seq);
        Ok(seq)
    }

    /// First position of the frames kept for replay; `None`: replay is impossible.
    pub fn replay_from(&self) -> Option<u64> {
        if self.inner.lone.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.inner.core).replay_from()
    }

    /// The last position, if everything up to it is known to be on the other side too.
    pub fn position(&self) -> Option<u64> {
        if self.inner.lone.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.inner.core).position()
    }

    /// Goes on numbering behind `applied`: this node was the standby up to there.
    pub fn adopt_position(&self, applied: u64) {
        self.inner.lone.store(false, Ordering::Release);
        lock(&self.inner.core).begin_fresh(conn::random_id(), applied);
    }

    /// How calls are answered from now on, by volume; what is not named is strict. Each call that enters the
    /// stream after this returns follows the new rule: a strict one waits for everything before it. Of the
    /// window's bytes at most half of [`Config::window_bytes`] count.
    pub fn set_consistency(&self, modes: Vec<Consistency>, window: EarlyWindow) {
        let mut out = Outcome::default();
        {
            let mut core = lock(&self.inner.core);
            let bytes = window.bytes.min(self.inner.cfg.window_bytes / 2);
            core.early.window = EarlyWindow { bytes, ..window };
            core.early.modes = modes;
            core.answer_early(&mut out);
        }
        out.send(&self.inner.events);
    }

    /// What the standby has not acknowledged.
    pub fn lag(&self) -> Lag {
        let core = lock(&self.inner.core);
        let frames = core.in_flight();
        Lag { frames, bytes: core.bytes, answered: core.early.answered, oldest: core.oldest() }
    }

    /// Unacknowledged (bytes, frames).
    pub fn in_flight(&self) -> (usize, usize) {
        let w = &self.inner.window;
        (w.bytes.load(Ordering::Relaxed), w.ops.load(Ordering::Relaxed))
    }

    /// Requests put aside, because the gate is frozen or the window full.
    pub fn parked(&self) -> usize {
        self.inner.parked_len.load(Ordering::Acquire)
    }

    /// Resync bytes (compared or sent) a second from now on, also of a resync under way; `None` = no limit.
    pub fn set_bandwidth(&self, limit: Option<u64>) {
        self.inner.bandwidth.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Opens the stream: sends the hello, waits for the welcome, replays or starts the resync.
    /// Blocks up to `hello_timeout`; closes an older stream first.
    pub fn connect(
        &self,
        conn: crate::replica::wire::DataConn,
        epoch: Epoch,
        plan: Plan,
    ) -> Result<(), ConnectError> {
        self.connect_in(self.turn(), conn, epoch, plan)
    }

    /// Counts the disconnects: a stream whose opening began in an earlier turn is not opened any more.
    pub fn turn(&self) -> u64 {
        self.inner.turn.load(Ordering::Acquire)
    }

    /// Like [`Self::connect`], unless [`Self::disconnect`] was called since `turn` was read.
    pub fn connect_in(
        &self,
        turn: u64,
        conn: crate::replica::wire::DataConn,
        epoch: Epoch,
        plan: Plan,
    ) -> Result<(), ConnectError> {
        Inner::connect(&self.inner, turn, conn, epoch, plan)
    }

    /// Ends the stream and its threads; what is not acknowledged stays for replay. `false`: a thread
    /// did not end in time (it can no longer send).
    pub fn disconnect(&self, within: Duration) -> bool {
        {
            let _core = lock(&self.inner.core);
            self.inner.turn.fetch_add(1, Ordering::AcqRel);
        }
        self.inner.disconnect(within)
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.inner.disconnect(Duration::from_secs(2));
        // Whatever still waits is not acknowledged: EIO.
        if self.set_gate(Gate::Shut, Duration::from_secs(1)).is_err() {
            // The old gate is still in force. What is parked asks for admission once more when the
            // helper ends, and must be refused then, not parked again for ever.
            self.inner.overrun.store(true, Ordering::Release);
        }
        lock(&self.inner.parked).closed = true;
        self.inner.parked_wake.notify_all();
    }
}

impl Inner {
    fn has_room(&self) -> bool {
        let w = &self.window;
        w.bytes.load(Ordering::Relaxed) < self.cfg.window_bytes
            && w.ops.load(Ordering::Relaxed) < self.cfg.window_ops
    }

    /// After an error that the stream cannot express: no replay, no stream.
    fn broken(&self, core: &mut Core, error: &dyn std::fmt::Display, out: &mut Outcome) {
        tracing::error!(error = %error, "operation cannot enter the stream; a full compare is needed");
        core.gap = true;
        if let Some(conn) = &core.conn {
            conn.writer.close();
            let (number, epoch) = (conn.number, conn.epoch);
            core.disconnect();
            self.streaming.store(false, Ordering::Release);
            tracing::debug!(number, "stream dropped");
            out.event = Some(Event::StreamDown { epoch, why: StreamEnd::Unnamed(error.to_string()) });
        }
    }

    /// Streams an operation whose reply waits for nobody, if there is a target.
    fn submit_alone(&self, tree: &Tree, op: &FsOp, bulk: &[u8]) {
        if !self.streaming.load(Ordering::Acquire) {
            self.lone.store(true, Ordering::Release);
            return;
        }
        let mut out = Outcome::default();
        let mut core = lock(&self.core);
        if core.conn.is_none() {
            core.gap = true;
        } else if let Err(error) = core.submit(tree, false, op, bulk, Answer::Acknowledged, &mut None) {
            self.broken(&mut core, &error, &mut out);
        }
        drop(core);
        out.send(&self.events);
    }

    /// Runs `local` on the pool, then `done`.
    fn on_pool(
        self: &Arc<Self>,
        local: LocalSync,
        done: impl FnOnce(&Self, Result<(), Errno>) + Send + 'static,
    ) {
        let me = Arc::clone(self);
        self.pool.run(Box::new(move || {
            let result = local();
            if let Err(errno) = result {
                me.trees.iter().for_each(|tree| tree.distrust_cache());
                (me.events)(Event::LocalDiskError { errno: errno.0 });
            }
            done(&me, result);
        }));
    }

    pub(crate) fn tree(&self, volume: Volume) -> Option<&Arc<Tree>> {
        self.trees.get(usize::from(volume.0))
    }
}

fn answer(reply: PendingReply, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.err(errno),
    }
}

impl Replicator for Primary {
    fn admit(&self) -> Admission<'_> {
        let inner = &*self.inner;
        if inner.overrun.load(Ordering::Acquire) {
            return Admission::Refuse(Errno(libc::EIO));
        }
        if inner.changing.load(Ordering::Acquire) {
            return Admission::Park;
        }
        let guard = inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        match *guard {
            Gate::ReadOnly => Admission::Refuse(Errno(libc::EROFS)),
            Gate::Shut => Admission::Refuse(Errno(libc::EIO)),
            Gate::Frozen => Admission::Park,
            Gate::Replicated(_) | Gate::Alone(_) if !inner.has_room() && !park::is_helper() => {
                Admission::Park
            }
            Gate::Replicated(_) | Gate::Alone(_) => Admission::Go(Ticket { guard }),
        }
    }

    fn park(&self, request: ParkedRequest, weight: usize) {
        self.inner.park(request, weight);
    }

    fn submit(&self, ticket: Ticket<'_>, volume: Volume, op: &FsOp, bulk: &[u8], reply: PendingReply) {
        let inner = &*self.inner;
        let gate = *ticket.guard;
        let Some(tree) = inner.tree(volume) else { return reply.err(Errno(libc::EIO)) };
        match gate {
            Gate::Alone(_) if inner.forced.load(Ordering::Acquire) => reply.err(Errno(libc::EIO)),
            Gate::Alone(_) => {
                inner.submit_alone(tree, op, bulk);
                reply.ok();
            }
            Gate::Replicated(_) => {
                let mut waiting = Some(reply);
                let mut out = Outcome::default();
                {
                    let mut core = lock(&inner.core);
                    let answer = core.early.answer(volume);
                    if inner.forced.load(Ordering::Acquire) {
                        out.err.extend(waiting.take().map(|reply| (reply, Errno(libc::EIO))));
                    } else if let Err(error) = core.submit(tree, false, op, bulk, answer, &mut waiting) {
                        inner.broken(&mut core, &error, &mut out);
                        if let Some(reply) = waiting.take() {
                            core.keep_unproven(reply, &mut out);
                        }
                    }
                }
                out.send(&inner.events);
                // Still here: there is nothing to wait for.
                if let Some(reply) = waiting {
                    reply.ok();
                }
            }
            // Impossible with a ticket; never acknowledge by accident.
            Gate::ReadOnly | Gate::Frozen | Gate::Shut => reply.err(Errno(libc::EIO)),
        }
        drop(ticket);
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
        let inner = &self.inner;
        let gate = *ticket.guard;
        let Some(tree) = inner.tree(volume) else { return reply.err(Errno(libc::EIO)) };
        match gate {
            Gate::Alone(_) if inner.forced.load(Ordering::Acquire) => reply.err(Errno(libc::EIO)),
            Gate::Alone(_) => {
                if !matches!(op, FsOp::Fsync { .. } | FsOp::SyncFs) {
                    inner.submit_alone(tree, op, bulk);
                }
                inner.on_pool(local, |_, result| answer(reply, result));
            }
            Gate::Replicated(_) => {
                let mut core = lock(&inner.core);
                if inner.forced.load(Ordering::Acquire) {
                    drop(core);
                    return reply.err(Errno(libc::EIO));
                }
                match core.submit_sync(tree, op, bulk) {
                    Ok(at @ (Submitted::At(_) | Submitted::Early(_))) => {
                        let key = core.expect_sync(&at, volume, core::subject(op), reply);
                        drop(core);
                        inner.on_pool(local, move |me, result| {
                            let mut out = Outcome::default();
                            lock(&me.core).sync_local(key, result, &mut out);
                            out.send(&me.events);
                            me.acked.notify_all();
                        });
                    }
                    Ok(Submitted::Skipped) => {
                        drop(core);
                        inner.on_pool(local, |_, result| answer(reply, result));
                    }
                    Err(error) => {
                        let mut out = Outcome::default();
                        inner.broken(&mut core, &error, &mut out);
                        drop(core);
                        out.send(&inner.events);
                        inner.on_pool(local, move |me, result| {
                            let mut out = Outcome::default();
                            match result {
                                Ok(()) => lock(&me.core).keep_unproven(reply, &mut out),
                                Err(errno) => out.err.push((reply, errno)),
                            }
                            out.send(&me.events);
                        });
                    }
                }
            }
            Gate::ReadOnly | Gate::Frozen | Gate::Shut => reply.err(Errno(libc::EIO)),
        }
        drop(ticket);
    }

    fn local_sync(&self, local: LocalSync, reply: PendingReply) {
        self.inner.on_pool(local, |_, result| answer(reply, result));
    }

    fn spoil(&self, volume: Volume, why: &str) {
        let mut out = Outcome::default();
        let error = format!("volume {}: {why}", volume.0);
        self.inner.broken(&mut lock(&self.inner.core), &error, &mut out);
        out.send(&self.inner.events);
        self.inner.parked_wake.notify_all();
    }

    fn disk_failed(&self, errno: Errno) {
        let inner = &self.inner;
        // What this side refuses by itself is no word of the disk.
        let refusing = inner.overrun.load(Ordering::Acquire) || inner.changing.load(Ordering::Acquire);
        let own = match inner.gate.try_read().as_deref() {
            Ok(Gate::ReadOnly) => errno.0 == libc::EROFS,
            Ok(Gate::Replicated(_) | Gate::Alone(_)) => false,
            Ok(Gate::Frozen | Gate::Shut) | Err(_) => true,
        };
        if !own && !refusing {
            (inner.events)(Event::LocalFailed { errno: errno.0 });
        }
    }

    fn forget(&self, volume: Volume, ids: &[FileId]) {
        let mut core = lock(&self.inner.core);
        if let Err(error) = core.forget(volume, ids) {
            tracing::warn!(error = %error, "forget not sent");
        }
    }
}

/// Why a resync step did not enter the stream.
#[derive(Debug)]
pub(crate) enum StepError {
    /// The connection is gone.
    Closed,
    /// It cannot be encoded.
    Encode(String),
}

/// What the resync pump needs.
impl Inner {
    pub(crate) fn volumes(&self) -> impl Iterator<Item = Volume> + use<> {
        (0..self.trees.len() as u16).map(Volume)
    }

    pub(crate) fn sink(&self) -> &EventSink {
        &self.events
    }

    pub(crate) fn bandwidth(&self) -> Option<u64> {
        Some(self.bandwidth.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    pub(crate) fn forget_ids(&self, volume: Volume, ids: &[FileId]) {
        let mut core = lock(&self.core);
        if let Err(error) = core.forget(volume, ids) {
            tracing::warn!(error = %error, "forget not sent");
        }
    }

    /// May another resync step enter? Few bytes in flight while the application writes, because an
    /// acknowledgement waits behind them.
    pub(crate) fn resync_room(&self) -> bool {
        let core = lock(&self.core);
        let busy = core.live_at.elapsed() < Duration::from_millis(100);
        let limit = if busy { self.cfg.resync_busy } else { self.cfg.resync_idle };
        core.resync_bytes < limit
    }

    /// Enters one resync step into connection `number`.
    pub(crate) fn resync_step(
        &self,
        number: u64,
        step: &crate::proto::stream::Resync,
        bulk: &[u8],
        binds: &[(Volume, FileId)],
        weight: usize,
    ) -> Result<u64, StepError> {
        let mut core = lock(&self.core);
        if core.conn.as_ref().is_none_or(|c| c.number != number) {
            return Err(StepError::Closed);
        }
        match core.resync(step, bulk, binds, weight) {
            Ok(Some(seq)) => Ok(seq),
            Ok(None) => Err(StepError::Closed),
            Err(error) => Err(StepError::Encode(error.to_string())),
        }
    }
}
