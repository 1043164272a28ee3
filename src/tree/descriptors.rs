//! How the descriptors of this process are shared out.
//!
//! Every file an application has open on a mount is one descriptor here, and applications open as many as
//! they like. Past the share for them OPEN and CREATE answer ENFILE: what lives from descriptors that nobody
//! counts (connections, replication, the requests themselves) must never meet EMFILE, because a standby that
//! cannot open a file cannot apply, and a primary without a socket has no standby.
//!
//! Counted for all mounts of the process together: open files and directories, and descriptors kept for
//! objects without a name. A standby keeps data descriptors from the reserve, each volume its part.

use crate::ports::Errno;
use crate::sys::resources;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Least reserve: some twenty connections and pipes a cluster, two descriptors a running request, the
/// resync's and the syncs' files, for a handful of clusters.
const RESERVE_MIN: usize = 256;
/// Most data descriptors a volume of a standby keeps open: the hot files of a database.
const DATA_MAX: usize = 512;
/// Most objects without a name (O_TMPFILE) a volume of a standby keeps.
const UNNAMED_MAX: usize = 4096;
/// With fewer a standby would open and close a file for every operation.
const EACH_MIN: usize = 16;

/// The count; one a process, others are for tests.
#[derive(Debug)]
pub struct Descriptors {
    limit: usize,
    taken: AtomicUsize,
    volumes: AtomicUsize,
}

/// One descriptor's worth, given back when dropped.
#[derive(Debug)]
pub struct Share(Arc<Descriptors>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One volume that replication needs descriptors for.
#[derive(Debug)]
pub(super) struct Counted(Arc<Descriptors>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.volumes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Descriptors {
    /// The process's own, with the limit it had at the first call: raise it before.
    pub fn of_process() -> Arc<Self> {
        static OWN: OnceLock<Arc<Descriptors>> = OnceLock::new();
        Arc::clone(OWN.get_or_init(|| Arc::new(Self::with_limit(resources::descriptors()))))
    }

    /// As if the process could have `limit` descriptors.
    pub const fn with_limit(limit: usize) -> Self {
        Self { limit, taken: AtomicUsize::new(0), volumes: AtomicUsize::new(0) }
    }

    /// Not for applications: a quarter, at least [`RESERVE_MIN`], at most half.
    const fn reserve(&self) -> usize {
        let quarter = self.limit / 4;
        let wanted = if quarter > RESERVE_MIN { quarter } else { RESERVE_MIN };
        let half = self.limit / 2;
        if wanted < half { wanted } else { half }
    }

    /// Most descriptors applications may cause.
    pub const fn for_applications(&self) -> usize {
        self.limit - self.reserve()
    }

    /// Room for one descriptor of an application; to be asked for before anything is opened.
    ///
    /// # Errors
    /// ENFILE: there is none.
    pub fn take(self: &Arc<Self>) -> Result<Share, Errno> {
        let most = self.for_applications();
        let more = |n| (n < most).then_some(n + 1);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Share(Arc::clone(self))),
            Err(taken) => {
                // Once for each time that it fills up would need a memory of its own; who looks at the
                // application's error looks here.
                tracing::debug!(taken, limit = self.limit, "no descriptor left for another open file");
                Err(Errno(libc::ENFILE))
            }
        }
    }

    /// Counts a descriptor that cannot be refused: what it keeps would be lost.
    pub fn take_anyway(self: &Arc<Self>) -> Share {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Share(Arc::clone(self))
    }

    pub(super) fn count_volume(self: &Arc<Self>) -> Counted {
        self.volumes.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    /// A quarter of the reserve, divided among the volumes.
    fn each(&self, most: usize) -> usize {
        let volumes = self.volumes.load(Ordering::Relaxed).max(1);
        (self.reserve() / 4 / volumes).clamp(EACH_MIN, most)
    }

    /// Data descriptors that one volume of a standby may keep open.
    pub fn standby_data(&self) -> usize {
        self.each(DATA_MAX)
    }

    /// Objects without a name that one volume of a standby may keep.
    pub fn standby_unnamed(&self) -> usize {
        self.each(UNNAMED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_remains_whatever_the_limit() {
        for (limit, applications) in
            [(0, 0), (100, 50), (512, 256), (1024, 768), (4096, 3072), (20_000, 15_000)]
        {
            let all = Arc::new(Descriptors::with_limit(limit));
            assert_eq!(all.for_applications(), applications, "limit {limit}");
            let mut held: Vec<_> = (0..applications).map(|_| all.take().expect("room")).collect();
            assert_eq!(all.take().err(), Some(Errno(libc::ENFILE)), "limit {limit}");
            if held.pop().is_some() {
                held.push(all.take().expect("room again"));
            }
            held.push(all.take_anyway());
            assert_eq!(all.take().err(), Some(Errno(libc::ENFILE)), "limit {limit}");
        }
    }

    #[test]
    fn a_standby_s_volumes_share_the_reserve() {
        let shares = |limit, volumes| {
            let all = Arc::new(Descriptors::with_limit(limit));
            let counted: Vec<_> = (0..volumes).map(|_| all.count_volume()).collect();
            let result = (all.standby_data(), all.standby_unnamed());
            drop(counted);
            assert_eq!(all.volumes.load(Ordering::Relaxed), 0);
            result
        };
        assert_eq!(shares(1024, 1), (64, 64));
        assert_eq!(shares(1024, 50), (16, 16));
        assert_eq!(shares(20_000, 2), (512, 625));
        assert_eq!(shares(1 << 20, 1), (512, 4096));
        assert_eq!(shares(1 << 20, 100), (512, 655));
    }
}
