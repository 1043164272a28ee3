//! The figures of a resync for status: what is known on this side of it, and how old that is.

use crate::api::types::ResyncStatus;
use crate::replica::Progress;
use std::time::{Duration, Instant};

/// A resync, running or the last one.
#[derive(Default)]
pub struct Run {
    active: bool,
    /// This node feeds the other.
    source: bool,
    since: Option<Instant>,
    /// How long it took, once it is over.
    took: Option<Duration>,
    /// Source: the figures, and when they were told.
    progress: Progress,
    at: Option<Instant>,
}

impl Run {
    /// Begins anew, as the source or as the target.
    pub fn begin(&mut self, source: bool) {
        *self = Self { active: true, source, since: Some(Instant::now()), ..Self::default() };
    }

    /// Source: how far it is.
    pub fn note(&mut self, progress: Progress) {
        (self.progress, self.at) = (progress, Some(Instant::now()));
    }

    /// It is over, one way or the other.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.active) {
            self.took = self.since.map(|at| at.elapsed());
        }
    }

    /// For status. `filled`: what arrived here, if this node is the target.
    pub fn status(&self, filled: u64) -> ResyncStatus {
        let Some(since) = self.since else { return ResyncStatus::default() };
        let took = self.took.unwrap_or_else(|| since.elapsed());
        if !self.source {
            // The source knows what there is to do; here only what came is known.
            return ResyncStatus {
                active: self.active,
                side: "target".to_owned(),
                bytes: filled,
                seconds: took.as_secs_f64(),
                bytes_per_second: (filled as f64 / took.as_secs_f64().max(1e-3)) as u64,
                age_ms: Some(0),
                ..ResyncStatus::default()
            };
        }
        let p = &self.progress;
        // While directories are still walked the totals grow.
        let known = p.eta_ms.is_some() || !self.active;
        ResyncStatus {
            active: self.active,
            side: "source".to_owned(),
            files: p.files_done,
            total_files: known.then_some(p.files_total),
            compared_bytes: p.bytes_compared,
            total_bytes: known.then_some(p.bytes_total),
            bytes: p.bytes_sent,
            bytes_per_second: p.rate,
            seconds: p.elapsed_ms as f64 / 1e3,
            eta_s: p.eta_ms.filter(|_| self.active).map(|ms| ms / 1000),
            age_ms: self.at.map(|at| at.elapsed().as_millis() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_shown_when_all_is_known_and_the_last_run_stays() {
        let mut run = Run::default();
        assert_eq!(run.status(7).side, "", "there was none");
        run.begin(true);
        let walking =
            Progress { files_total: 9, files_done: 3, rate: 5, elapsed_ms: 1500, ..Progress::default() };
        run.note(walking);
        let status = run.status(7);
        assert_eq!((status.active, status.side.as_str(), status.bytes_per_second), (true, "source", 5));
        assert_eq!((status.files, status.total_files, status.eta_s), (3, None, None));
        run.note(Progress { eta_ms: Some(4000), ..walking });
        assert_eq!((run.status(7).total_files, run.status(7).eta_s), (Some(9), Some(4)));
        run.end();
        let status = run.status(7);
        assert_eq!((status.active, status.total_files, status.eta_s), (false, Some(9), None));
        assert!(status.age_ms.is_some() && (status.seconds - 1.5).abs() < 1e-9);
        run.begin(false);
        let status = run.status(7);
        assert_eq!((status.active, status.side.as_str(), status.bytes, status.files), (true, "target", 7, 0));
    }
}
