//! The source's side of the ordered resync (design 0001): one thread a connection.
//!
//! Every step reads an object under the locks under which live operations change it, and enters the
//! stream before the locks are released: it is exact at its position. Directories first, breadth
//! first, then everything else; what the target asks for (bytes that differ, objects it lacks)
//! goes before new work. Bounded in flight; never waits while it holds a lock.
//! Done = nothing left, everything acknowledged (so nothing more can be asked), the target's disk
//! synced once. Afterwards it stays for late requests until the connection ends.
//! Failure: an object of the source that cannot be read ends the stream with the reason.

mod inbox;
mod object;

pub(super) use object::digests;

pub use inbox::Inbox;

use crate::base::{Epoch, Volume};
use crate::ports::Errno;
use crate::proto::FileId;
use crate::proto::stream::Resync;
use crate::replica::event::{Event, Progress, StreamEnd};
use crate::replica::primary::{Inner, StepError};
use inbox::Want;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An object sent again this often means that the two sides do not understand each other.
const ATTEMPTS_MAX: u32 = 64;
/// Between two progress events.
const REPORT: Duration = Duration::from_millis(500);

type Object = (Volume, FileId);

/// What is known about an object of the source.
#[derive(Default)]
struct Mark {
    /// Position of the first frame of its last visit; 0 = never visited.
    seen: u64,
    queued: bool,
    dir: bool,
    pinned: bool,
    attempts: u32,
}

/// The regular file being compared.
struct Cursor {
    object: Object,
    fd: OwnedFd,
    offset: u64,
    started: bool,
}

/// See the module.
pub struct Pump {
    inner: Arc<Inner>,
    inbox: Arc<Inbox>,
    epoch: Epoch,
    number: u64,
    dirs: VecDeque<Object>,
    objects: VecDeque<Object>,
    wants: VecDeque<Want>,
    cursor: Option<Cursor>,
    marks: HashMap<Object, Mark>,
    /// Something was asked for by an id that means nothing any more: all directories are listed again.
    relist: bool,
    /// Held in the inode table until the end, so that ids stay what they are.
    pins: Vec<Object>,
    last: u64,
    progress: Progress,
    started: Instant,
    reported: Instant,
    spent: u64,
    pace: Pace,
    buf: Vec<u8>,
}

/// The bandwidth limit as it stands: what was spent before it was set owes nothing to it.
struct Pace {
    limit: Option<u64>,
    since: Instant,
    spent: u64,
}

impl Pace {
    /// How long to wait before more may be spent.
    fn ahead(&mut self, limit: Option<u64>, spent: u64, now: Instant) -> Duration {
        if limit != self.limit {
            *self = Self { limit, since: now, spent };
        }
        let Some(limit) = limit else { return Duration::ZERO };
        let due = Duration::from_secs_f64((spent - self.spent) as f64 / limit.max(1) as f64);
        due.saturating_sub(now.saturating_duration_since(self.since))
    }
}

/// Why the pump ends.
enum Stop {
    /// The connection is gone.
    Closed,
    /// An object cannot be read or sent.
    Failed(String),
}

impl From<StepError> for Stop {
    fn from(e: StepError) -> Self {
        match e {
            StepError::Closed => Self::Closed,
            StepError::Encode(what) => Self::Failed(what),
        }
    }
}

impl Pump {
    /// A pump for connection `number`.
    pub(super) fn new(inner: Arc<Inner>, inbox: Arc<Inbox>, epoch: Epoch, number: u64) -> Self {
        let now = Instant::now();
        Self {
            dirs: inner.volumes().map(|v| (v, FileId::ROOT)).collect(),
            inner,
            inbox,
            epoch,
            number,
            objects: VecDeque::new(),
            wants: VecDeque::new(),
            cursor: None,
            marks: HashMap::new(),
            relist: false,
            pins: Vec::new(),
            last: 0,
            progress: Progress::default(),
            started: now,
            reported: now,
            spent: 0,
            pace: Pace { limit: None, since: now, spent: 0 },
            buf: Vec::new(),
        }
    }

    /// Body of the resync thread.
    pub(super) fn run(mut self) {
        let end = self.work();
        self.unpin();
        if let Err(Stop::Failed(what)) = end
            && self.inner.drop_conn(self.number)
        {
            tracing::error!(epoch = %self.epoch, what, "resync stopped");
            (self.inner.sink())(Event::StreamDown { epoch: self.epoch, why: StreamEnd::Closed(what) });
        }
    }

    fn unpin(&mut self) {
        let mut by_volume: HashMap<Volume, Vec<FileId>> = HashMap::new();
        for (volume, id) in self.pins.drain(..) {
            if let Some(tree) = self.inner.tree(volume) {
                // A batch's locks are short: the table's lock is a leaf.
                tree.inodes.unpin(id, by_volume.entry(volume).or_default());
            }
        }
        for (volume, gone) in by_volume {
            self.inner.forget_ids(volume, &gone);
        }
        self.marks = HashMap::new();
    }

    fn work(&mut self) -> Result<(), Stop> {
        let mut end: Option<u64> = None;
        let mut done = false;
        loop {
            if self.inbox.read(|s| s.closed || s.finished) {
                return Err(Stop::Closed);
            }
            let busy = self.take_requests()?;
            if busy {
                end = None;
            }
            if !done {
                self.report();
            }
            if self.has_work() {
                if self.room() {
                    self.step()?;
                }
                continue;
            }
            if std::mem::take(&mut self.relist) {
                self.list_again();
                continue;
            }
            let last = self.last;
            if self.inbox.read(|s| s.acked < last) {
                self.inbox.wait(REPORT, |s| s.acked >= last || !s.redo.is_empty() || !s.want.is_empty());
                continue;
            }
            // A request may have come with the last acknowledgement.
            if self.inbox.read(|s| !s.redo.is_empty() || !s.want.is_empty()) {
                continue;
            }
            match end {
                None => {
                    end = Some(self.send(&Resync::End, &[], &[], 0)?);
                    done = false;
                }
                // The target sends what it asked for before this answer: with nothing here there is
                // nothing on the way either.
                Some(seq)
                    if !done
                        && self.inbox.read(|s| s.synced >= seq && s.redo.is_empty() && s.want.is_empty()) =>
                {
                    done = true;
                    self.figures();
                    let (epoch, progress) = (self.epoch, self.progress);
                    tracing::info!(%epoch, bytes_sent = progress.bytes_sent, files = progress.files_done, "resync done");
                    // Ids stay pinned until the marker is behind us: a late request must still mean
                    // the same object.
                    (self.inner.sink())(Event::ResyncDone { epoch, progress });
                }
                Some(_) => {
                    self.inbox.wait(REPORT, |s| {
                        !s.redo.is_empty()
                            || !s.want.is_empty()
                            || (!done && end.is_some_and(|e| s.synced >= e))
                    });
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.wants.is_empty() || !self.dirs.is_empty() || self.cursor.is_some() || !self.objects.is_empty()
    }

    fn step(&mut self) -> Result<(), Stop> {
        if let Some(want) = self.wants.pop_front() {
            return self.serve(want);
        }
        if let Some(dir) = self.dirs.pop_front() {
            return self.directory(dir);
        }
        if let Some(cursor) = self.cursor.take() {
            return self.compare(cursor);
        }
        match self.objects.pop_front() {
            Some(object) => self.visit(object),
            None => Ok(()),
        }
    }

    /// Takes in what the target asked; true if there was anything.
    fn take_requests(&mut self) -> Result<bool, Stop> {
        let (redo, want) = self.inbox.drain();
        let any = !redo.is_empty() || !want.is_empty();
        self.wants.extend(want);
        for redo in redo {
            for id in redo.ids {
                self.redo((redo.volume, id), redo.seq, redo.lost)?;
            }
        }
        Ok(any)
    }

    fn redo(&mut self, object: Object, seq: u64, lost: bool) -> Result<(), Stop> {
        let (volume, id) = object;
        let Some(tree) = self.inner.tree(volume).cloned() else { return Ok(()) };
        if !self.pin(object) {
            // The kernel forgot it on the way, and what is still there has, or will get, another id. It
            // was never pinned, so it is found as something new.
            self.relist = true;
            return Ok(());
        }
        let stat = match tree.stat(id) {
            Ok(stat) => stat,
            // Gone meanwhile: the unlink is in the stream too. Anything else is no answer to the target.
            Err(errno) => return Self::unreadable(object, "attributes", errno),
        };
        if stat.nlink == 0 {
            return Ok(());
        }
        let mark = self.marks.entry(object).or_default();
        if mark.queued || mark.seen > seq {
            return Ok(());
        }
        mark.attempts += 1;
        if mark.attempts > ATTEMPTS_MAX {
            return Err(Stop::Failed(format!(
                "object {} of volume {} was asked for {ATTEMPTS_MAX} times",
                id.0, volume.0
            )));
        }
        self.queue(object, stat.is_dir());
        if lost {
            let parent = {
                let _ns = tree.ns_shared();
                tree.alias(id)
            };
            if let Some((parent, _)) = parent
                && self.pin((volume, parent))
            {
                let mark = self.marks.entry((volume, parent)).or_default();
                if !mark.queued && mark.seen <= seq {
                    self.queue((volume, parent), true);
                }
            }
        }
        Ok(())
    }

    /// Keeps an id what it is until the end, if it is still known. Once an object is enough.
    fn pin(&mut self, object: Object) -> bool {
        let Some(tree) = self.inner.tree(object.0) else { return false };
        if self.marks.get(&object).is_some_and(|mark| mark.pinned) {
            return true;
        }
        let known = tree.inodes.pin(object.1);
        if known {
            self.pins.push(object);
            self.marks.entry(object).or_default().pinned = true;
        }
        known
    }

    fn queue(&mut self, object: Object, dir: bool) {
        let mark = self.marks.entry(object).or_default();
        if mark.queued {
            return;
        }
        mark.queued = true;
        mark.dir = dir;
        if dir {
            self.dirs.push_back(object);
        } else {
            self.objects.push_back(object);
        }
    }

    /// Queues every directory that is known.
    fn list_again(&mut self) {
        let known = self.marks.iter().filter(|(_, mark)| mark.dir).map(|(object, _)| *object);
        let roots = self.inner.volumes().map(|v| (v, FileId::ROOT));
        let all: Vec<Object> = roots.chain(known).collect();
        tracing::debug!(directories = all.len(), "an object lost its id: listing everything again");
        for object in all {
            self.queue(object, true);
        }
    }

    /// Remembers that a visit began at `seq`.
    fn seen(&mut self, object: Object, seq: u64) {
        let mark = self.marks.entry(object).or_default();
        mark.queued = false;
        mark.seen = seq;
    }

    fn send(&mut self, step: &Resync, bulk: &[u8], binds: &[Object], weight: usize) -> Result<u64, Stop> {
        let seq = self.inner.resync_step(self.number, step, bulk, binds, weight)?;
        self.last = seq;
        Ok(seq)
    }

    /// Waits a little for window and bandwidth; true if another step may enter. Holds no lock.
    fn room(&mut self) -> bool {
        let end = Instant::now() + REPORT;
        while !self.inner.resync_room() {
            if Instant::now() >= end {
                return false;
            }
            let acked = self.inbox.read(|s| s.acked);
            self.inbox.wait(Duration::from_millis(5), |s| s.acked != acked);
        }
        let ahead = self.pace.ahead(self.inner.bandwidth(), self.spent, Instant::now());
        if !ahead.is_zero() {
            self.inbox.wait(ahead.min(REPORT), |_| false);
        }
        ahead.is_zero()
    }

    fn figures(&mut self) {
        let p = &mut self.progress;
        p.elapsed_ms = self.started.elapsed().as_millis() as u64;
        p.rate = p.bytes_compared.saturating_mul(1000) / p.elapsed_ms.max(1);
        let left = p.bytes_total.saturating_sub(p.bytes_compared);
        p.eta_ms = (self.dirs.is_empty() && p.rate > 0).then(|| left.saturating_mul(1000) / p.rate);
        (p.kept_bytes, p.kept_objects, p.kept_truncated) = self.inbox.read(|s| s.kept);
    }

    fn report(&mut self) {
        if self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.figures();
            (self.inner.sink())(Event::ResyncProgress { epoch: self.epoch, progress: self.progress });
        }
    }

    /// An errno of the source: what is gone is no failure.
    fn unreadable(object: Object, what: &str, errno: Errno) -> Result<(), Stop> {
        match errno {
            Errno(libc::ESTALE | libc::ENOENT) => Ok(()),
            Errno(n) => Err(Stop::Failed(format!(
                "{what} of object {} of volume {}: {}",
                object.1.0,
                object.0.0,
                std::io::Error::from_raw_os_error(n)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_limit_counts_from_the_moment_it_is_set() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut pace = Pace { limit: None, since: start, spent: 0 };
        assert_eq!(pace.ahead(None, 1 << 30, at(1)), Duration::ZERO);
        assert_eq!(pace.ahead(Some(1000), 1 << 30, at(1)), Duration::ZERO, "the past is free");
        assert_eq!(pace.ahead(Some(1000), (1 << 30) + 5000, at(2)), Duration::from_secs(4));
        assert_eq!(pace.ahead(Some(1000), (1 << 30) + 5000, at(6)), Duration::ZERO);
        assert_eq!(pace.ahead(None, (1 << 30) + 9000, at(6)), Duration::ZERO, "lifted at once");
    }
}
