//! The stream mutex: everything that has an order.
//!
//! Held for: binding ids, taking a sequence number, encoding, one nonblocking write; and for
//! completing acknowledgements. Never while waiting. Replies to the application are collected in
//! [`Outcome`] and sent after the lock is gone.

mod early;
mod syncs;
mod whole;

pub use early::EarlyWindow;
pub(super) use early::{Answer, Early};
use syncs::{SyncKey, SyncWait};

use crate::base::{Epoch, Volume};
use crate::ports::{Errno, Gate, PendingReply};
use crate::proto::frame::{self, FrameError, Kind};
use crate::proto::stream::{OpFrameRef, Resync};
use crate::proto::{FileId, FsOp};
use crate::replica::event::{Event, EventSink};
use crate::replica::wire::WireWriter;
use crate::tree::Tree;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Deepest chain of directories bound at once: twice what PATH_MAX allows by name.
const DEPTH_MAX: usize = 4096;
/// Ids in one `Forget` frame.
pub(super) const FORGET_MAX: usize = 8192;
/// A pooled buffer larger than this goes back to the allocator.
const BUFFER_KEEP: usize = 64 * 1024;
/// Pooled buffers.
const POOL_MAX: usize = 256;

/// Replies to send once the lock is released.
#[derive(Default)]
pub(super) struct Outcome {
    pub ok: Vec<PendingReply>,
    pub err: Vec<(PendingReply, Errno)>,
    /// At most one: the stream was given up.
    pub event: Option<Event>,
}

impl Outcome {
    /// Answers, without any lock held: the sink of events may take locks of its own.
    pub fn send(self, events: &EventSink) {
        if let Some(event) = self.event {
            events(event);
        }
        for reply in self.ok {
            reply.ok();
        }
        for (reply, errno) in self.err {
            reply.err(errno);
        }
    }
}

/// One frame that is not acknowledged yet.
struct Entry {
    seq: u64,
    bytes: usize,
    /// Kept for replay; resync frames are not.
    frame: Option<Vec<u8>>,
    reply: Option<PendingReply>,
    /// What it counts in the resync window: the bytes the target has to read or write for it.
    resync: usize,
    /// When it entered.
    at: Instant,
    answer: Answer,
}

/// The live connection.
pub(super) struct Conn {
    pub writer: Arc<WireWriter>,
    pub epoch: Epoch,
    /// The target was complete when this connection began: its acknowledgements count.
    pub eligible: bool,
    pub number: u64,
}

/// How an operation entered the stream.
pub(super) enum Submitted {
    /// At this position.
    At(u64),
    /// At this position, and the answer does not wait for the standby (see `early`).
    Early(u64),
    /// Its object has no name and never will: nothing to replicate.
    Skipped,
}

/// Why an operation cannot enter the stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum CoreError {
    #[error("encoding")]
    Frame(#[from] FrameError),
    #[error("an ancestor chain of volume {} is deeper than {DEPTH_MAX}", .0.0)]
    Depth(Volume),
    #[error("object {} of volume {} has links but no name was found (errno {errno})", id.0, volume.0)]
    Unnamed { volume: Volume, id: FileId, errno: i32 },
    #[error("object {} of volume {} is too large to be sent whole", .1.0, .0.0)]
    TooLarge(Volume, FileId),
}

/// What is in flight, readable without the stream mutex.
#[derive(Default)]
pub(super) struct Window {
    pub bytes: AtomicUsize,
    pub ops: AtomicUsize,
}

pub(super) struct Core {
    pub rule: Gate,
    pub conn: Option<Conn>,
    pub conns: u64,
    /// When an acknowledgement last made progress, or the stream last stopped being idle.
    pub progress: Instant,
    /// Position of the UpToDate marker while the target has not answered it.
    pub marker: Option<u64>,
    /// When the last live operation entered.
    pub live_at: Instant,
    pub window: Arc<Window>,
    pub stream: u128,
    pub next: u64,
    pub acked: u64,
    /// Mutations happened that no frame carries: replay is impossible until the next UpToDate.
    pub gap: bool,
    pub bytes: usize,
    pub resync_bytes: usize,
    pub early: Early,
    bound: HashSet<(Volume, FileId)>,
    entries: VecDeque<Entry>,
    syncs: BTreeMap<SyncKey, SyncWait>,
    next_sync: u64,
    /// Acknowledged by a complete standby while frozen: success once the gate settles.
    held: Vec<PendingReply>,
    /// Applied here, with a target that is being resynced: success at UpToDate or by the lone right.
    unproven: Vec<PendingReply>,
    pool: Vec<Vec<u8>>,
}

impl Core {
    pub fn new(stream: u128, early: Early) -> Self {
        Self {
            rule: Gate::ReadOnly,
            conn: None,
            conns: 0,
            progress: Instant::now(),
            marker: None,
            live_at: Instant::now(),
            window: Arc::default(),
            stream,
            next: 1,
            acked: 0,
            gap: false,
            bytes: 0,
            resync_bytes: 0,
            early,
            bound: HashSet::new(),
            entries: VecDeque::new(),
            syncs: BTreeMap::new(),
            next_sync: 0,
            held: Vec::new(),
            unproven: Vec::new(),
            pool: Vec::new(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.entries.len()
    }

    /// Nothing submitted waits for an acknowledgement.
    pub fn drained(&self) -> bool {
        self.entries.is_empty() && self.syncs.is_empty()
    }

    /// First position from which every frame is retained; `None`: replay is impossible.
    pub fn replay_from(&self) -> Option<u64> {
        if self.gap {
            return None;
        }
        let lost = self.entries.iter().rev().find(|e| e.frame.is_none()).map(|e| e.seq + 1);
        Some(lost.unwrap_or_else(|| self.entries.front().map_or(self.next, |e| e.seq)))
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.pool.pop().unwrap_or_default()
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_KEEP && self.pool.len() < POOL_MAX {
            buffer.clear();
            self.pool.push(buffer);
        }
    }

    fn epoch(&self) -> Epoch {
        self.conn.as_ref().map_or(Epoch::default(), |c| c.epoch)
    }

    /// Sends an encoded frame and remembers it.
    fn push(&mut self, frame: Vec<u8>, reply: Option<PendingReply>) -> u64 {
        self.push_live(frame, reply, Answer::Acknowledged)
    }

    /// A frame of the application, kept for replay.
    fn push_live(&mut self, frame: Vec<u8>, reply: Option<PendingReply>, answer: Answer) -> u64 {
        let at = Instant::now();
        self.live_at = at;
        let bytes = frame.len();
        let frame = self.send(frame, true, at);
        self.early.entered(answer, bytes);
        self.enter(Entry { seq: self.next, bytes, frame, reply, resync: 0, at, answer })
    }

    /// A frame of the resync.
    fn push_step(&mut self, frame: Vec<u8>, resync: usize) -> u64 {
        let at = Instant::now();
        let bytes = frame.len();
        let frame = self.send(frame, false, at);
        let answer = Answer::Acknowledged;
        self.enter(Entry { seq: self.next, bytes, frame, reply: None, resync, at, answer })
    }

    /// Writes what is about to enter; gives the frame back if it is to be kept.
    fn send(&mut self, frame: Vec<u8>, keep: bool, at: Instant) -> Option<Vec<u8>> {
        let seq = self.next;
        if let Some(conn) = &self.conn
            && let Err(error) = conn.writer.send(&frame)
        {
            // The ack reader sees the closed socket and reports; the frame stays for replay.
            tracing::debug!(seq, %error, "frame not sent");
            conn.writer.close();
        }
        if self.entries.is_empty() {
            self.progress = at;
        }
        if keep {
            return Some(frame);
        }
        self.recycle(frame);
        None
    }

    fn enter(&mut self, entry: Entry) -> u64 {
        let seq = entry.seq;
        self.next += 1;
        self.bytes += entry.bytes;
        self.resync_bytes += entry.resync;
        self.entries.push_back(entry);
        self.publish();
        seq
    }

    fn publish(&self) {
        self.window.bytes.store(self.bytes, Ordering::Relaxed);
        self.window.ops.store(self.entries.len(), Ordering::Relaxed);
    }

    fn encode_op(
        &mut self,
        volume: Volume,
        sync: bool,
        op: &FsOp,
        bulk: &[u8],
    ) -> Result<Vec<u8>, FrameError> {
        let mut buffer = self.buffer();
        let (seq, epoch) = (self.next, self.epoch());
        let message = OpFrameRef { volume, sync, op };
        match frame::encode_into(&mut buffer, Kind::Op, seq, epoch, &message, bulk) {
            Ok(()) => Ok(buffer),
            Err(e) => {
                self.recycle(buffer);
                Err(e)
            }
        }
    }

    /// Binds `id` and what leads to it. `false`: it has no name and never will.
    fn bind(&mut self, tree: &Tree, id: FileId, not: Option<(FileId, &[u8])>) -> Result<bool, CoreError> {
        let volume = tree.volume;
        let mut chain = Vec::new();
        let mut at = id;
        while at != FileId::ROOT && !self.bound.contains(&(volume, at)) {
            if chain.len() >= DEPTH_MAX {
                return Err(CoreError::Depth(volume));
            }
            // Its directories are where they are; one of btrfs has a single link.
            let not = not.filter(|_| at == id);
            let Some((parent, name)) = tree.alias_except(at, not) else {
                return no_name(tree, at, not.is_some()).map(|()| false);
            };
            chain.push(FsOp::Bind { id: at, parent, name });
            at = parent;
        }
        for op in chain.into_iter().rev() {
            let frame = self.encode_op(volume, false, &op, &[])?;
            self.push(frame, None);
            if let FsOp::Bind { id, .. } = op {
                self.bound.insert((volume, id));
            }
        }
        Ok(true)
    }

    /// Enters one live operation; takes `reply` if it waits for the acknowledgement or for room.
    pub fn submit(
        &mut self,
        tree: &Tree,
        sync: bool,
        op: &FsOp,
        bulk: &[u8],
        answer: Answer,
        reply: &mut Option<PendingReply>,
    ) -> Result<Submitted, CoreError> {
        let volume = tree.volume;
        for id in op_uses(op).into_iter().flatten() {
            // A link's new name is not yet there at this position of the stream.
            let not = match op {
                FsOp::Link { id: linked, parent, name, .. } if id == *linked => Some((*parent, &name[..])),
                _ => None,
            };
            if self.bind(tree, id, not)? {
                continue;
            }
            if let FsOp::Link { parent, name, dir_mtime, .. } = op
                && not.is_some()
            {
                return self.send_whole(tree, id, *parent, name, *dir_mtime, reply);
            }
            return Ok(Submitted::Skipped);
        }
        let frame = self.encode_op(volume, sync, op, bulk)?;
        if let Some(id) = op_makes(op) {
            self.bound.insert((volume, id));
        }
        match answer {
            Answer::Given => {}
            Answer::Room if self.has_room_for(frame.len()) => {}
            _ => return Ok(Submitted::At(self.push_live(frame, reply.take(), answer))),
        }
        Ok(Submitted::Early(self.push_live(frame, None, Answer::Given)))
    }

    /// The kernel forgot ids: tells the target about those it knows.
    pub fn forget(&mut self, volume: Volume, ids: &[FileId]) -> Result<(), CoreError> {
        let known: Vec<_> = ids.iter().copied().filter(|id| self.bound.remove(&(volume, *id))).collect();
        // Not while frozen: a hand-over has drained the stream and compares positions. The target then
        // keeps a few names that mean nothing; ids are never reused.
        let streaming = match self.rule {
            Gate::Replicated(_) => true,
            Gate::Alone(_) => self.conn.is_some(),
            Gate::Frozen | Gate::ReadOnly | Gate::Shut => false,
        };
        if !streaming {
            return Ok(());
        }
        for ids in known.chunks(FORGET_MAX) {
            let frame = self.encode_op(volume, false, &FsOp::Forget { ids: ids.to_vec() }, &[])?;
            self.push(frame, None);
        }
        Ok(())
    }

    /// Enters one resync step; `None` if there is no connection.
    pub fn resync(
        &mut self,
        step: &Resync,
        bulk: &[u8],
        binds: &[(Volume, FileId)],
        weight: usize,
    ) -> Result<Option<u64>, CoreError> {
        if self.conn.is_none() {
            return Ok(None);
        }
        let mut buffer = self.buffer();
        frame::encode_into(&mut buffer, Kind::Resync, self.next, self.epoch(), step, bulk)?;
        self.bound.extend(binds.iter().copied());
        let weight = weight.max(buffer.len());
        Ok(Some(self.push_step(buffer, weight)))
    }

    /// Enters a message that is neither operation nor resync step (the marker).
    pub fn control<T: serde::Serialize>(&mut self, kind: Kind, message: &T) -> Result<u64, CoreError> {
        let mut buffer = self.buffer();
        frame::encode_into(&mut buffer, kind, self.next, self.epoch(), message, &[])?;
        Ok(self.push_step(buffer, 0))
    }

    /// Everything up to `applied` is in the target's kernel. `Err`: it claims the future.
    pub fn on_ack(&mut self, applied: u64, out: &mut Outcome) -> Result<(), String> {
        if applied >= self.next {
            return Err(format!("acknowledged {applied}, sent up to {}", self.next - 1));
        }
        if applied > self.acked {
            self.acked = applied;
            self.progress = Instant::now();
        }
        let (eligible, live) = match (&self.conn, self.rule) {
            (Some(conn), Gate::Replicated(epoch)) => (conn.eligible, conn.epoch == epoch),
            (Some(conn), _) => (conn.eligible, false),
            (None, _) => (false, false),
        };
        while self.entries.front().is_some_and(|e| e.seq <= applied) {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= entry.bytes;
            self.resync_bytes -= entry.resync;
            self.early.left(entry.answer, entry.bytes);
            if let Some(reply) = entry.reply {
                match (eligible, live, self.rule) {
                    (true, true, _) | (_, _, Gate::Alone(_)) => out.ok.push(reply),
                    (true, false, _) => self.held.push(reply),
                    (false, ..) => self.unproven.push(reply),
                }
            }
            if let Some(frame) = entry.frame {
                self.recycle(frame);
            }
        }
        self.publish();
        self.answer_early(out);
        Ok(())
    }

    /// Keeps a reply whose operation no frame carries until the gate settles.
    pub fn keep_unproven(&mut self, reply: PendingReply, out: &mut Outcome) {
        match self.rule {
            Gate::Alone(_) => out.ok.push(reply),
            Gate::Replicated(_) | Gate::Frozen => self.unproven.push(reply),
            Gate::ReadOnly | Gate::Shut => out.err.push((reply, Errno(libc::EIO))),
        }
    }

    /// Last position, if the target is known to hold everything up to it.
    pub fn position(&self) -> Option<u64> {
        (!self.gap && self.entries.is_empty()).then(|| self.next - 1)
    }

    /// The gate changed (the caller holds its write lock).
    pub fn set_rule(&mut self, gate: Gate, out: &mut Outcome) {
        self.rule = gate;
        match gate {
            Gate::Frozen => {}
            Gate::Replicated(epoch) => {
                out.ok.append(&mut self.held);
                // This gate is set once the target is complete. With a gap it is not, whoever says so:
                // something is in this tree only.
                if !self.gap {
                    out.ok.append(&mut self.unproven);
                    if let Some(conn) = self.conn.as_mut().filter(|c| c.epoch == epoch) {
                        conn.eligible = true;
                    }
                }
                self.settle_syncs(out);
                self.answer_early(out);
            }
            Gate::Alone(_) => {
                out.ok.append(&mut self.held);
                out.ok.append(&mut self.unproven);
                out.ok.extend(self.entries.iter_mut().filter_map(|e| e.reply.take()));
                self.settle_syncs(out);
                if self.conn.is_none() {
                    self.drop_frames();
                }
            }
            Gate::ReadOnly | Gate::Shut => {
                let eio = Errno(libc::EIO);
                if gate == Gate::ReadOnly {
                    out.ok.append(&mut self.held);
                }
                out.err.extend(self.held.drain(..).map(|r| (r, eio)));
                out.err.extend(self.unproven.drain(..).map(|r| (r, eio)));
                out.err.extend(self.entries.iter_mut().filter_map(|e| e.reply.take()).map(|r| (r, eio)));
                let syncs = std::mem::take(&mut self.syncs);
                out.err.extend(syncs.into_values().map(|w| (w.reply, eio)));
                // Answered with an error but in the tree: never to be replayed as if nothing happened.
                self.drop_frames();
            }
        }
    }

    /// Gives up replay: what was not acknowledged is in the tree only.
    fn drop_frames(&mut self) {
        if !self.entries.is_empty() {
            self.gap = true;
        }
        self.entries.clear();
        self.bytes = 0;
        self.resync_bytes = 0;
        self.early.clear();
        self.publish();
    }

    /// The connection is gone.
    pub fn disconnect(&mut self) {
        self.conn = None;
        self.marker = None;
        self.early.syncs.clear();
        if matches!(self.rule, Gate::Alone(_)) {
            self.drop_frames();
        }
    }

    /// A new numbering for a target that will be compared in full.
    pub fn begin_resync(&mut self, stream: u128) {
        let replies: Vec<_> = self.entries.iter_mut().filter_map(|e| e.reply.take()).collect();
        self.unproven.extend(replies);
        // Syncs in flight: the target's durability comes with UpToDate (it syncs before it says so).
        for wait in self.syncs.values_mut() {
            wait.remote = true;
        }
        self.drop_frames();
        self.stream = stream;
        self.bound.clear();
        self.gap = true;
        self.acked = self.next - 1;
    }

    /// A numbering that goes on behind `applied`, with fresh names (the roles were exchanged).
    pub fn begin_fresh(&mut self, stream: u128, applied: u64) {
        self.drop_frames();
        self.stream = stream;
        self.bound.clear();
        self.next = applied + 1;
        self.acked = applied;
        self.gap = false;
    }

    /// Sends again what the target has not applied. The connection is already set.
    pub fn replay(&mut self, applied: u64, out: &mut Outcome) -> Result<(), CoreError> {
        // What it applied counts as acknowledged; held until the gate opens.
        if self.on_ack(applied, out).is_err() {
            return Ok(());
        }
        let Some(conn) = &self.conn else { return Ok(()) };
        let (epoch, writer) = (conn.epoch, Arc::clone(&conn.writer));
        for wait in self.syncs.values_mut() {
            wait.since = Instant::now();
        }
        for entry in &mut self.entries {
            if let Some(frame) = &mut entry.frame {
                frame::restamp(frame, entry.seq, epoch);
                if writer.send(frame).is_err() {
                    return Ok(());
                }
            }
        }
        // A sync whose frame was applied but whose answer was lost is asked again.
        // The local half may still be on the pool: the wait stays the same one.
        let lost = |w: &SyncWait| w.remote_seq <= applied && !w.remote;
        let again: Vec<_> =
            self.syncs.iter().filter(|(_, w)| lost(w)).map(|(key, w)| (*key, w.volume, w.id)).collect();
        for (key, volume, id) in again {
            let op = id.map_or(FsOp::SyncFs, |id| FsOp::Fsync { id, data_only: false });
            let frame = self.encode_op(volume, true, &op, &[])?;
            let seq = self.push(frame, None);
            if let Some(wait) = self.syncs.get_mut(&key) {
                wait.remote_seq = seq;
            }
        }
        Ok(())
    }
}

/// `Ok`: the object really has no name (`linked`: but the one it just got).
fn no_name(tree: &Tree, id: FileId, linked: bool) -> Result<(), CoreError> {
    match tree.stat(id) {
        Ok(stat) if stat.nlink <= u32::from(linked) => Ok(()),
        Ok(stat) if stat.is_dir() && stat.nlink == 0 => Ok(()),
        Err(Errno(libc::ESTALE | libc::ENOENT)) => Ok(()),
        Ok(_) => Err(CoreError::Unnamed { volume: tree.volume, id, errno: 0 }),
        Err(errno) => Err(CoreError::Unnamed { volume: tree.volume, id, errno: errno.0 }),
    }
}

/// Ids that must be bound before the operation.
fn op_uses(op: &FsOp) -> [Option<FileId>; 2] {
    match op {
        FsOp::Bind { parent, .. }
        | FsOp::Make { parent, .. }
        | FsOp::Tmpfile { parent, .. }
        | FsOp::Symlink { parent, .. }
        | FsOp::Unlink { parent, .. }
        | FsOp::Rmdir { parent, .. } => [Some(*parent), None],
        FsOp::Link { id, parent, .. } => [Some(*parent), Some(*id)],
        FsOp::Rename { parent, to_parent, .. } => [Some(*parent), Some(*to_parent)],
        FsOp::Touch { parent, other, .. } => [Some(*parent), other.map(|(id, _)| id)],
        FsOp::Write { id, .. }
        | FsOp::SetAttr { id, .. }
        | FsOp::SetXattr { id, .. }
        | FsOp::RemoveXattr { id, .. }
        | FsOp::Fallocate { id, .. }
        | FsOp::SetFlags { id, .. }
        | FsOp::Fsync { id, .. } => [Some(*id), None],
        FsOp::Forget { .. } | FsOp::SyncFs => [None, None],
    }
}

/// The object an fsync or synchronous write is about; `None`: all of the volume.
pub(super) fn subject(op: &FsOp) -> Option<FileId> {
    op_uses(op).into_iter().flatten().next()
}

/// The id an operation binds by itself.
fn op_makes(op: &FsOp) -> Option<FileId> {
    match op {
        FsOp::Bind { id, .. }
        | FsOp::Make { id, .. }
        | FsOp::Tmpfile { id, .. }
        | FsOp::Symlink { id, .. } => Some(*id),
        _ => None,
    }
}
