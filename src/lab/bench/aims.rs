//! What the mirror is to reach, beside what it reached.
//!
//! The figures were measured on a machine whose TCP ping-pong of 4 KiB between two namespaces takes 25 us;
//! what a write costs beyond that is one round trip, so its limit moves with the network of this machine.

use super::work::Work;
use super::{Report, Target};
use serde::Serialize;
use std::fmt::Write as _;

/// Median of a strict 4 KiB write, where a ping-pong takes [`PING_PONG_US`].
const WRITE_4K_US: f64 = 110.0;
/// The network that this limit is for.
const PING_PONG_US: f64 = 25.0;
/// Part of the bare directory's rate that hot reads keep.
const HOT_READ: f64 = 0.85;
/// MB/s (10^6 bytes) of strict sequential writes of 1 MiB.
const WRITE_1M_RATE: f64 = 400.0;

/// One aim.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Aim {
    /// Of what.
    pub what: &'static str,
    /// The limit, in words.
    pub aim: String,
    /// The figure, in words.
    pub measured: String,
    /// Reached?
    pub met: bool,
}

/// The aims of which this run has the figures.
pub fn of(report: &Report) -> Vec<Aim> {
    let figure =
        |work: Work, target: Target| report.figures.iter().find(|f| f.work == work && f.target == target);
    let mut aims = Vec::new();
    if let Some(write) = figure(Work::Write4k, Target::Mirror) {
        let limit = WRITE_4K_US * report.ping_pong_us.0 / PING_PONG_US;
        aims.push(Aim {
            what: "strict 4k write, p50",
            aim: format!("<= {limit:.0} us ({WRITE_4K_US} us where a ping-pong takes {PING_PONG_US} us)"),
            measured: format!("{:.1} us", write.p50_us),
            met: write.p50_us <= limit,
        });
    }
    if let (Some(bare), Some(mirror)) =
        (figure(Work::Read4k, Target::Bare), figure(Work::Read4k, Target::Mirror))
    {
        let part = bare.p50_us / mirror.p50_us.max(1e-9);
        aims.push(Aim {
            what: "4k hot read, part of bare",
            aim: format!(">= {:.0} %", HOT_READ * 100.0),
            measured: format!("{:.0} %", part * 100.0),
            met: part >= HOT_READ,
        });
    }
    if let Some(rate) = figure(Work::Write1m, Target::Mirror).and_then(|f| f.megabytes_per_second) {
        aims.push(Aim {
            what: "strict 1 MiB write",
            aim: format!(">= {WRITE_1M_RATE:.0} MB/s"),
            measured: format!("{rate:.0} MB/s"),
            met: rate >= WRITE_1M_RATE,
        });
    }
    aims
}

/// For people, one a line.
pub fn lines(aims: &[Aim]) -> String {
    let mut out = String::new();
    for aim in aims {
        let verdict = if aim.met { "met" } else { "not met" };
        let _ = writeln!(out, "{:<26} {:>12}  aim {:<48} {verdict}", aim.what, aim.measured, aim.aim);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Figure;
    use super::*;

    fn report(ping_pong: f64, write: f64, reads: (f64, f64), rate: f64) -> Report {
        let figure = |work, target, p50_us, megabytes_per_second| Figure {
            work,
            target,
            p50_us,
            p99_us: p50_us,
            megabytes_per_second,
            operations: 1,
        };
        let figures = vec![
            figure(Work::Write4k, Target::Mirror, write, None),
            figure(Work::Read4k, Target::Bare, reads.0, None),
            figure(Work::Read4k, Target::Mirror, reads.1, None),
            figure(Work::Write1m, Target::Mirror, 1.0, Some(rate)),
        ];
        Report { ping_pong_us: (ping_pong, ping_pong), figures, aims: Vec::new() }
    }

    #[test]
    fn aims_are_met_at_their_limit_and_not_beyond() {
        let met = |report: &Report| of(report).iter().map(|aim| aim.met).collect::<Vec<_>>();
        assert_eq!(met(&report(25.0, 110.0, (0.85, 1.0), 400.0)), [true; 3]);
        assert_eq!(met(&report(25.0, 110.1, (0.84, 1.0), 399.9)), [false; 3]);
        assert_eq!(met(&report(50.0, 220.0, (1.0, 1.0), 400.0)), [true; 3], "the network counts");
        let bare = Report { ping_pong_us: (25.0, 25.0), figures: Vec::new(), aims: Vec::new() };
        assert!(of(&bare).is_empty());
        assert!(lines(&of(&report(25.0, 111.0, (1.0, 1.0), 500.0))).contains("not met"));
    }
}
