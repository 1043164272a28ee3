//! The apply thread: one frame after the other, acknowledgements in batches.

use super::lenient::describe;
use super::ops::{self, Failed};
use super::pulse::{CLOSED, Pulse};
use super::quarantine::Quarantine;
use super::table::{Sync, Table};
use super::{Shared, lock};
use crate::base::{Epoch, Volume};
use crate::ports::Errno;
use crate::proto::frame::{self, FrameBuf, FrameRef, Kind};
use crate::proto::stream::{Entry, Marker, OpFrame, Reply, Resync};
use crate::proto::{FileId, FsOp, fsop::Xattr};
use crate::replica::event::{Event, StreamEnd};
use crate::replica::primary::conn_describe;
use crate::replica::wire::{WireError, WireReader, WireWriter};
use crate::sys::file;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Frames applied before an acknowledgement is sent although more are waiting.
const ACK_EVERY: u64 = 64;
/// The driver syncs and persists before it releases the marker; a driver that is gone ends us.
const MARKER_WAIT: Duration = Duration::from_secs(600);
/// In a resync a sync may take this many times as long: it waits for everything the resync wrote.
const RESYNC_SYNCS: u32 = 10;
/// The reader wakes this often to look at the syncs.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Why the thread ends.
pub(super) enum End {
    /// `close` was called.
    Closing,
    /// The connection ended or broke.
    Stream(StreamEnd),
    /// The tree cannot follow.
    Apply(Errno, String),
}

impl From<WireError> for End {
    fn from(e: WireError) -> Self {
        match e {
            WireError::Frame(e) => Self::Stream(StreamEnd::Protocol(e.to_string())),
            e => Self::Stream(StreamEnd::Closed(conn_describe(&e))),
        }
    }
}

pub(super) fn protocol(what: impl Into<String>) -> End {
    End::Stream(StreamEnd::Protocol(what.into()))
}

/// A directory that is still being received.
pub(super) type DirParts = (usize, FileId, Vec<Entry>);

pub(super) struct Apply {
    pub shared: Arc<Shared>,
    pub tables: Vec<Table>,
    pub quarantines: Vec<Quarantine>,
    pub writer: Arc<WireWriter>,
    pub pulse: Pulse,
    pub epoch: Epoch,
    /// A resync is under way.
    pub lenient: bool,
    /// Something was asked for since the last `End`.
    pub asked: bool,
    /// Ids the sender forgot during the resync.
    pub forgotten: HashSet<(usize, FileId)>,
    pub dir_parts: Option<DirParts>,
    pub xattr_parts: Option<(usize, FileId, Vec<Xattr>)>,
    pub out: Vec<u8>,
    pub seq: u64,
    pub acked: u64,
    /// What was told of the quarantine: bytes, objects, truncated.
    pub kept: (u64, u64, bool),
}

impl Apply {
    /// Body of the thread. Returns the tables for a later replay.
    pub fn run(mut self, mut wire: WireReader, mut buf: FrameBuf) -> Vec<Table> {
        // New objects must get exactly the modes we give.
        if let Err(errno) = crate::sys::creds::set_umask(0) {
            tracing::warn!(errno = errno.0, "umask of the apply thread");
        }
        let end = loop {
            if let Err(end) = self.frames(&mut buf) {
                break end;
            }
            if let Err(end) = self.flush(true) {
                break end;
            }
            if let Err(end) = self.look_at_syncs() {
                break end;
            }
            match wire.fill(&mut buf) {
                Ok(_) => {}
                Err(e) if e.is_timeout() => {}
                Err(e) => break e.into(),
            }
        };
        self.ended(end);
        wire.close();
        self.tables
    }

    fn ended(&mut self, end: End) {
        self.tell_kept();
        let epoch = self.epoch;
        let closing = self.shared.closing.load(Ordering::Acquire);
        match end {
            End::Closing => {}
            End::Apply(errno, what) => {
                tracing::error!(%epoch, seq = self.seq, errno = errno.0, what, "cannot apply; the tree is no longer a copy");
                // Half of the operation may be done.
                self.shared.set_applied(None);
                self.reply(&Reply::Failed { seq: self.seq, errno: errno.0, what: what.clone() });
                let _ = self.flush(false);
                // Give it a moment on the wire before the connection goes.
                self.writer.flush(Duration::from_millis(500));
                (self.shared.events)(Event::ApplyFailed { epoch, errno: errno.0, what });
            }
            End::Stream(_) if closing => {}
            End::Stream(why) => {
                tracing::info!(%epoch, why = ?why, "stream ended");
                (self.shared.events)(Event::StreamDown { epoch, why });
            }
        }
    }

    fn frames(&mut self, buf: &mut FrameBuf) -> Result<(), End> {
        loop {
            if self.shared.closing.load(Ordering::Acquire) || self.shared.failed.load(Ordering::Acquire) {
                return Err(End::Closing);
            }
            let Some(frame) = buf.next_frame().map_err(WireError::from)? else { return Ok(()) };
            self.frame(&frame)?;
            if self.seq - self.acked >= ACK_EVERY {
                self.flush(true)?;
            }
        }
    }

    fn frame(&mut self, frame: &FrameRef<'_>) -> Result<(), End> {
        let prefix = frame.prefix;
        if prefix.epoch != self.epoch {
            return Err(protocol(format!("frame of epoch {} in a stream of {}", prefix.epoch, self.epoch)));
        }
        if prefix.kind == Kind::Ping {
            return Ok(());
        }
        if self.seq.checked_add(1) != Some(prefix.seq) {
            return Err(protocol(format!("frame {} after {}", prefix.seq, self.seq)));
        }
        // Errors below carry the position of the frame that failed.
        self.seq = prefix.seq;
        let bad = |e: frame::FrameError| protocol(e.to_string());
        match prefix.kind {
            Kind::Op => self.op(frame.message().map_err(bad)?, frame.bulk)?,
            Kind::Resync if self.lenient => self.resync(frame.message().map_err(bad)?, frame.bulk)?,
            Kind::Marker => self.marker(frame.message().map_err(bad)?)?,
            kind => return Err(protocol(format!("unexpected {kind:?}"))),
        }
        if !self.shared.failed.load(Ordering::Acquire) {
            self.shared.set_applied(Some(self.seq));
        }
        Ok(())
    }

    pub(super) fn table_index(&self, volume: Volume) -> Result<usize, End> {
        let v = usize::from(volume.0);
        if v < self.tables.len() {
            Ok(v)
        } else {
            Err(protocol(format!("volume {v} of {}", self.tables.len())))
        }
    }

    fn op(&mut self, OpFrame { volume, sync, op }: OpFrame, bulk: &[u8]) -> Result<(), End> {
        let v = self.table_index(volume)?;
        let result = if self.lenient {
            self.apply_leniently(v, &op, bulk)
        } else {
            match self.apply_exactly(v, &op, bulk) {
                // An unlinked file that only the primary's applications still hold: nothing of it
                // is left here, and nothing of it can ever be seen again.
                Err((Errno(libc::ESTALE), _)) if self.was_unlinked(v, &op) => Ok(()),
                other => other,
            }
        };
        result.map_err(|failed| self.failure(failed, |step| describe(&op, step)))?;
        if sync {
            self.sync(v, &op);
        }
        Ok(())
    }

    /// Why the stream ends with a step that failed.
    fn failure(&self, (errno, step): Failed, describe: impl FnOnce(&str) -> String) -> End {
        if errno == CLOSED {
            // Given up half-way: nowhere in particular.
            self.shared.set_applied(None);
            return End::Closing;
        }
        End::Apply(errno, describe(step))
    }

    /// Ends the stream if the disk answers no more. In a resync a sync may have all of it to write.
    fn look_at_syncs(&self) -> Result<(), End> {
        let factor = if self.lenient { RESYNC_SYNCS } else { 1 };
        match self.shared.syncs.oldest() {
            Some(age) if age > self.shared.cfg.sync_stall * factor => {
                Err(End::Apply(Errno(libc::ETIMEDOUT), "fsync".into()))
            }
            _ => Ok(()),
        }
    }

    fn was_unlinked(&self, v: usize, op: &FsOp) -> bool {
        ops::inode_of(op).and_then(|id| self.tables[v].node(id)).is_some_and(|n| n.unlinked)
    }

    /// fsync on the pool; answered by a `SyncAck` of its own.
    fn sync(&mut self, v: usize, op: &FsOp) {
        let seq = self.seq;
        let data_only = matches!(op, FsOp::Fsync { data_only: true, .. });
        let sync = match op {
            FsOp::SyncFs => Some(Ok(self.tables[v].for_sync_of_all())),
            op => ops::inode_of(op).map(|id| self.tables[v].for_sync(id)),
        };
        let (shared, writer, epoch) = (Arc::clone(&self.shared), Arc::clone(&self.writer), self.epoch);
        let id = shared.syncs.begin();
        self.shared.pool.run(Box::new(move || {
            let result = match sync {
                Some(Ok(Sync::Object(fd))) if data_only => file::data_sync(fd.as_fd()),
                Some(Ok(Sync::Object(fd))) => file::sync(fd.as_fd()),
                Some(Ok(Sync::Volume(volume))) => volume.run(),
                // Gone here too, or a FIFO or device node: no data to make durable.
                Some(Err(Errno(libc::ESTALE | libc::EINVAL))) | None => Ok(()),
                Some(Err(errno)) => Err(errno),
            };
            shared.sync_done(id, &writer, epoch, seq, result);
        }));
    }

    fn marker(&mut self, Marker::UpToDate { g, cur }: Marker) -> Result<(), End> {
        if !self.lenient {
            return Err(protocol("marker outside a resync"));
        }
        if self.asked {
            // The source thought it was done before it saw our last request.
            return Err(End::Apply(Errno(libc::EAGAIN), "marker before the last request was served".into()));
        }
        let seq = self.seq;
        // Everything before it is acknowledged, the marker itself is not.
        self.seq = seq - 1;
        self.flush(true)?;
        self.seq = seq;
        self.report(true);
        self.shared.set_applied(Some(seq));
        (self.shared.events)(Event::MarkerReached { epoch: self.epoch, g, cur });
        let end = Instant::now() + MARKER_WAIT;
        let mut released = lock(&self.shared.released);
        while *released != Some(self.epoch) {
            if self.shared.closing.load(Ordering::Acquire) {
                return Err(End::Closing);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(End::Stream(StreamEnd::Stalled));
            }
            released =
                self.shared.wake.wait_timeout(released, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(released);
        self.lenient = false;
        self.shared.syncs.restart();
        // Compared with the disk, and the driver has synced before it released us.
        for table in &mut self.tables {
            table.tree.trust_cache();
            table.settled();
        }
        self.quarantines.clear();
        for (v, id) in std::mem::take(&mut self.forgotten) {
            self.tables[v].unbind(id);
        }
        self.reply(&Reply::UpToDate { seq });
        self.flush(true)
    }

    /// Queues a reply; it leaves with the next flush.
    pub(super) fn reply(&mut self, reply: &Reply) {
        if let Err(error) = frame::encode_into(&mut self.out, Kind::Reply, 0, self.epoch, reply, &[]) {
            tracing::error!(%error, "reply lost");
        }
    }

    /// Asks the source for objects.
    pub(super) fn redo(&mut self, v: usize, ids: &[FileId], lost: bool) {
        const IDS: usize = 16 * 1024;
        self.asked = true;
        for id in ids {
            if let Some(node) = self.tables[v].node_mut(*id) {
                node.exact = false;
            }
        }
        let volume = self.tables[v].volume();
        for ids in ids.chunks(IDS) {
            self.reply(&Reply::Redo { seq: self.seq, volume, ids: ids.to_vec(), lost });
        }
    }

    pub(super) fn flush(&mut self, ack: bool) -> Result<(), End> {
        self.report(false);
        if ack && self.seq > self.acked {
            self.reply(&Reply::Ack { applied: self.seq });
            self.acked = self.seq;
        }
        if !self.out.is_empty() {
            self.writer.send(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    pub(super) fn report(&mut self, now: bool) {
        if self.quarantines.is_empty() || !(now || self.pulse.is_due()) {
            return;
        }
        let kept = self.kept_now();
        if now || kept.2 && !self.kept.2 {
            self.tell_kept();
        }
        self.pulse.kept = kept;
        self.reply(&self.pulse.progress());
    }

    fn kept_now(&self) -> (u64, u64, bool) {
        let bytes = self.quarantines.iter().map(|q| q.kept_bytes).sum();
        let objects = self.quarantines.iter().map(|q| q.kept_objects).sum();
        (bytes, objects, self.quarantines.iter().any(|q| q.truncated.is_some()))
    }

    /// Nothing kept and nothing new are no news.
    fn tell_kept(&mut self) {
        let kept = self.kept_now();
        if kept != self.kept {
            self.kept = kept;
            let truncated = self.quarantines.iter().find_map(|q| q.truncated.clone());
            let (epoch, (bytes, objects, _)) = (self.epoch, kept);
            (self.shared.events)(Event::Kept { epoch, bytes, objects, truncated });
        }
    }

    pub(super) fn quarantine(&mut self, v: usize) -> Option<&mut Quarantine> {
        self.quarantines.get_mut(v)
    }

    fn resync(&mut self, step: Resync, bulk: &[u8]) -> Result<(), End> {
        let name = match &step {
            Resync::Dir { .. } => "directory",
            Resync::Hash { .. } => "compare",
            Resync::Fill { .. } => "fill",
            Resync::Hole { .. } => "hole",
            Resync::Meta { .. } => "attributes",
            Resync::End => "end",
        };
        if let Resync::Fill { .. } = &step {
            self.shared.filled.fetch_add(bulk.len() as u64, Ordering::Relaxed);
        }
        let result: Result<Result<(), Failed>, End> = self.resync_step(step, bulk);
        result?.map_err(|failed| self.failure(failed, |step| format!("resync {name}: {step}")))
    }
}
