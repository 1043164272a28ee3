//! Is the disk of a cluster's directories well? Judged by thresholds, never by one event that may pass.
//!
//! A thread of its own writes one block of an unnamed file in every directory and makes it durable, now and
//! then: a hung or broken disk shows although nobody uses it, on the standby as on the primary, and while
//! everything that does use it hangs. What the data path sees (EIO of reads and writes, failed syncs) is
//! counted beside it. Sick is: no answer for `replication.diskTimeout`, [`ERRORS`] errors within [`WINDOW`],
//! or one failed sync (what was not written then is lost: no second look makes it good). Well again is: as
//! long as `diskTimeout` without a new sign, then an answer, and a sync of everything.
//!
//! The thread may hang in the kernel; nobody waits for it but by looking at [`Health`].

use super::ClusterUnit;
use crate::base::{Timespan, codes};
use crate::bus::Fact;
use crate::engine::{Input, TreeState};
use crate::ports::Errno;
use crate::replica::sync_trees;
use crate::sys::file;
use crate::tree::Tree;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Errors that make a disk sick. One may be one bad sector of a file nobody reads twice; whoever needs it
/// tries again, and then the other node's copy is the better one.
const ERRORS: usize = 3;
/// They count together within this: a retrying application or three looks of ours at the longest pause.
const WINDOW: Duration = Duration::from_secs(20);
/// Longest pause between two looks: at 50 clusters ten small writes a second on the whole node.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often the judgement is asked for.
const ASK: Duration = Duration::from_millis(500);
/// What is written: one block of every common file system.
const BLOCK: usize = 4096;

/// Why a disk counts as sick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// In words, with figures.
    pub why: String,
    /// How long it has been.
    pub age: Duration,
    /// It has failed, not only been silent.
    failed: bool,
}

impl Trouble {
    /// For the core.
    pub const fn tree(&self) -> TreeState {
        if self.failed { TreeState::DiskError } else { TreeState::DiskHangs }
    }
}

/// The judgement, without a clock or a disk.
#[derive(Debug, Default)]
struct Record {
    /// A look began and has not ended.
    began: Option<Instant>,
    /// The directories are being opened since.
    opening: Option<Instant>,
    errors: VecDeque<Instant>,
    /// First and last sign of the present illness.
    since: Option<Instant>,
    bad_at: Option<Instant>,
    /// It has failed in this illness.
    failed: bool,
    /// What it was, if it was no silence.
    what: String,
}

impl Record {
    fn fails(&mut self, now: Instant, what: String, at_once: bool) {
        self.errors.push_back(now);
        while self.errors.len() > ERRORS {
            self.errors.pop_front();
        }
        let many = self.errors.len() == ERRORS
            && self.errors.front().is_some_and(|first| now.duration_since(*first) <= WINDOW);
        if at_once || many || self.since.is_some() {
            self.since.get_or_insert(now);
            self.bad_at = Some(now);
            self.failed = true;
            self.what = what;
        }
    }

    /// How long the running look has had no answer, if that is too long.
    fn silent(&self, now: Instant, limit: Duration) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.began.or(self.opening)?);
        (silent >= limit).then_some(silent)
    }

    fn ends(&mut self, now: Instant, limit: Duration, result: Result<(), String>) {
        if let Some(silent) = self.silent(now, limit) {
            self.since.get_or_insert(now.checked_sub(silent).unwrap_or(now));
            self.bad_at = Some(now);
            self.what = format!("it answered after {:.1} s", silent.as_secs_f64());
        }
        self.began = None;
        match result {
            Err(what) => self.fails(now, what, false),
            Ok(()) if self.bad_at.is_some_and(|at| now.duration_since(at) >= limit) => {
                (self.since, self.bad_at, self.failed) = (None, None, false);
                self.errors.clear();
            }
            Ok(()) => {}
        }
    }

    fn trouble(&self, now: Instant, limit: Duration) -> Option<Trouble> {
        if let Some(silent) = self.silent(now, limit) {
            let began = now.checked_sub(silent).unwrap_or(now);
            let age = now.duration_since(self.since.unwrap_or(began));
            let why = format!("no answer for {} s (limit {} s)", silent.as_secs(), limit.as_secs_f64());
            return Some(Trouble { why, age, failed: self.failed });
        }
        let age = now.duration_since(self.since?);
        let why = format!("{}; it counts as well after {} s without a sign", self.what, limit.as_secs_f64());
        Some(Trouble { why, age, failed: self.failed })
    }
}

/// See the module.
#[derive(Debug)]
pub struct Health {
    record: Mutex<Record>,
    limit: Mutex<Duration>,
    thread: Mutex<Option<Thread>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    /// Well, and not looked at yet. `limit`: silence that counts as sick.
    pub fn new(limit: Timespan) -> Arc<Self> {
        let limit = Mutex::new(Duration::from_millis(limit.as_millis()));
        Arc::new(Self { record: Mutex::default(), limit, thread: Mutex::default() })
    }

    /// The spec says otherwise.
    pub fn set_limit(&self, limit: Timespan) {
        *lock(&self.limit) = Duration::from_millis(limit.as_millis());
        self.wake();
    }

    fn limit(&self) -> Duration {
        *lock(&self.limit)
    }

    /// A read or write of the data path failed.
    pub fn failed(&self, errno: i32) {
        lock(&self.record).fails(Instant::now(), said(Errno(errno)), false);
    }

    /// A sync failed: what the disk holds is unknown.
    pub fn failed_sync(&self, errno: i32) {
        lock(&self.record).fails(Instant::now(), format!("a sync failed: {}", said(Errno(errno))), true);
    }

    /// Is it sick, and how? Never waits.
    pub fn trouble(&self) -> Option<Trouble> {
        let limit = self.limit();
        lock(&self.record).trouble(Instant::now(), limit)
    }

    /// How long the running look has had no answer.
    pub fn silence(&self) -> Duration {
        lock(&self.record).began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// To be held while the directories are opened: that may hang as well.
    pub fn opening(self: &Arc<Self>) -> Opening {
        lock(&self.record).opening = Some(Instant::now());
        Opening(Arc::clone(self))
    }

    fn pause(&self) -> Duration {
        (self.limit() / 3).min(PAUSE_MAX)
    }

    /// Looks now rather than at the end of the pause.
    pub fn wake(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }

    /// Begins to look at `trees`, for as long as `owner` lives.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn start<T: Send + Sync + 'static>(
        self: &Arc<Self>,
        name: &str,
        trees: Vec<Arc<Tree>>,
        owner: Weak<T>,
    ) -> io::Result<()> {
        let me = Arc::clone(self);
        let mut looks: Vec<_> = trees.iter().map(|tree| Look { tree: tree.clone(), file: None }).collect();
        let thread = std::thread::Builder::new().name(format!("disk-{name}")).spawn(move || {
            while owner.strong_count() > 0 {
                me.look(&mut looks, &trees);
                std::thread::park_timeout(me.pause());
            }
        })?;
        *lock(&self.thread) = Some(thread.thread().clone());
        Ok(())
    }

    fn look(&self, looks: &mut [Look], trees: &[Arc<Tree>]) {
        let ill = {
            let mut record = lock(&self.record);
            record.began = Some(Instant::now());
            record.since.is_some()
        };
        let mut result = looks.iter_mut().try_for_each(Look::run).map_err(said);
        if ill && result.is_ok() {
            result = sync_trees(trees).map_err(|errno| format!("a sync failed: {}", said(errno)));
        }
        let limit = self.limit();
        lock(&self.record).ends(Instant::now(), limit, result);
    }
}

/// See [`Health::opening`].
pub struct Opening(Arc<Health>);

impl Drop for Opening {
    fn drop(&mut self) {
        lock(&self.0.record).opening = None;
    }
}

/// Tells the core and the event log when the disk falls ill and when it is well again. Hangs in nothing.
pub async fn follow(unit: Arc<ClusterUnit>, mut stop: watch::Receiver<bool>) {
    let mut told = None;
    loop {
        tokio::select! {
            biased; // the end first
            () = super::ended(&mut stop) => return,
            () = tokio::time::sleep(ASK) => {}
        }
        let trouble = unit.streams.health.trouble();
        let state = trouble.as_ref().map(Trouble::tree);
        if state == std::mem::replace(&mut told, state) {
            continue;
        }
        let message = if let Some(Trouble { why, .. }) = trouble {
            tracing::error!(cluster = %unit.id, why, error_code = codes::FS_SICK.id, "the disk is sick");
            unit.core.input(Input::LocalTree(state.unwrap_or_default()));
            format!("the disk is sick: {why}")
        } else {
            tracing::warn!(cluster = %unit.id, "the disk is well again");
            unit.relook.notify_one();
            "the disk is well again".to_owned()
        };
        let fact = Fact::Error { code: codes::FS_SICK.id.to_owned(), object: "disk".to_owned(), message };
        unit.shared.bus.publish(Some(&unit.id.0), fact);
    }
}

fn said(errno: Errno) -> String {
    std::io::Error::from_raw_os_error(errno.0).to_string()
}

/// What is written to in one directory.
struct Look {
    tree: Arc<Tree>,
    file: Option<OwnedFd>,
}

impl Look {
    fn run(&mut self) -> Result<(), Errno> {
        match self.write() {
            // Full, or a file system that has no unnamed files: that is no illness, and syncs still tell.
            Err(Errno(libc::ENOSPC | libc::EDQUOT | libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                self.file = None;
                Ok(())
            }
            other => other,
        }
    }

    fn write(&mut self) -> Result<(), Errno> {
        let file = match self.file.take() {
            Some(file) => file,
            None => file::open_tmpfile(self.tree.backing.base(), 0o600, true)?,
        };
        file::pwrite(file.as_fd(), &[0x5a; BLOCK], 0)?;
        file::data_sync(file.as_fd())?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    fn at(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn silence_up_to_the_limit_is_a_slow_disk_and_past_it_a_sick_one() {
        let (mut record, t) = (Record { began: Some(Instant::now()), ..Record::default() }, Instant::now());
        assert_eq!(record.trouble(at(t, 14), LIMIT), None);
        assert_eq!(record.trouble(at(t, 20), LIMIT).unwrap().tree(), TreeState::DiskHangs);
        let trouble = record.trouble(at(t, 40), LIMIT).unwrap();
        assert!(
            trouble.why.contains("no answer for 4") || trouble.why.contains("no answer for 39"),
            "{trouble:?}"
        );
        assert!(trouble.age >= Duration::from_secs(39));
        record.ends(at(t, 41), LIMIT, Ok(()));
        assert!(record.trouble(at(t, 41), LIMIT).unwrap().why.contains("answered after"));
        record.began = Some(at(t, 46));
        record.ends(at(t, 46), LIMIT, Ok(()));
        assert!(record.trouble(at(t, 46), LIMIT).is_some(), "not yet well");
        record.began = Some(at(t, 57));
        record.ends(at(t, 57), LIMIT, Ok(()));
        assert_eq!(record.trouble(at(t, 57), LIMIT), None);
    }

    #[test]
    fn errors_make_a_disk_sick_when_they_come_together() {
        let (mut record, t) = (Record::default(), Instant::now());
        for secs in [0, 30, 60, 90, 100] {
            record.fails(at(t, secs), "EIO".into(), false);
            assert_eq!(record.trouble(at(t, secs), LIMIT), None, "after {secs} s");
        }
        record.fails(at(t, 101), "EIO".into(), false);
        assert!(record.trouble(at(t, 102), LIMIT).unwrap().why.contains("EIO"));
        record.ends(at(t, 110), LIMIT, Ok(()));
        assert!(record.trouble(at(t, 110), LIMIT).is_some());
        record.fails(at(t, 111), "EIO".into(), false);
        record.ends(at(t, 125), LIMIT, Ok(()));
        assert!(record.trouble(at(t, 125), LIMIT).is_some(), "a new sign begins the quiet time anew");
        record.ends(at(t, 126), LIMIT, Ok(()));
        assert_eq!(record.trouble(at(t, 126), LIMIT), None);
    }

    #[test]
    fn one_failed_sync_is_enough() {
        let (mut record, t) = (Record::default(), Instant::now());
        record.fails(t, "a sync failed".into(), true);
        assert_eq!(record.trouble(t, LIMIT).unwrap().tree(), TreeState::DiskError);
        record.ends(at(t, 15), LIMIT, Err("EIO".into()));
        assert!(record.trouble(at(t, 16), LIMIT).is_some());
    }
}
