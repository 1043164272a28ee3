//! What a link does to frames: delay, loss and rate, as a pure function of time.

use crate::lab::ledger::Random;
use crate::lab::{LabError, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Frames that would wait longer than this for their turn at the given rate are dropped, as a switch with a
/// full buffer does. Half of the smallest sensible heartbeat timeout, so that a full queue alone is no failure.
pub const BACKLOG_MAX: Duration = Duration::from_millis(250);
/// How far a silent link may send ahead of its rate: one unsegmented 64 KiB of TCP at 100 Mbit/s.
const BURST: Duration = Duration::from_millis(5);
/// Longest round trip: beyond a satellite nothing here is meant to work.
const RTT_MAX: Duration = Duration::from_secs(10);
/// Fastest rate that is a limit at all for two user-space hops, in bits a second.
const RATE_MAX: u64 = 100_000_000_000;

/// What `skc lab link` asks for; applied to what each node sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Added to every round trip, in microseconds: half of it to each direction.
    pub rtt_us: u64,
    /// Part of all frames that get lost, per million.
    pub loss_ppm: u32,
    /// Bits a second that a node may send on a network; `None` = unlimited.
    pub rate_bps: Option<u64>,
    /// Decides which frames get lost.
    pub seed: u64,
}

impl Shape {
    /// From milliseconds, percent and megabits a second, each as a person gives it.
    pub fn new(rtt_ms: f64, loss_percent: f64, rate_mbit: Option<f64>, seed: u64) -> Result<Self> {
        let refused = |what: String| Err(LabError::Refused(what));
        let Some(rtt) = Duration::try_from_secs_f64(rtt_ms / 1e3).ok().filter(|rtt| *rtt <= RTT_MAX) else {
            return refused(format!("--rtt {rtt_ms}: 0 to {} milliseconds", RTT_MAX.as_millis()));
        };
        if !(0.0..=100.0).contains(&loss_percent) {
            return refused(format!("--loss {loss_percent}: 0 to 100 percent"));
        }
        let rate_bps = match rate_mbit {
            None => None,
            Some(rate) if rate >= 0.001 && rate * 1e6 <= RATE_MAX as f64 => Some((rate * 1e6) as u64),
            Some(rate) => {
                return refused(format!(
                    "--rate {rate}: 0.001 to {} megabits a second",
                    RATE_MAX / 1_000_000
                ));
            }
        };
        let loss_ppm = (loss_percent * 1e4).round() as u32;
        Ok(Self { rtt_us: rtt.as_micros() as u64, loss_ppm, rate_bps, seed })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtt {} ms, loss {} %", self.rtt_us as f64 / 1e3, f64::from(self.loss_ppm) / 1e4)?;
        match self.rate_bps {
            Some(rate) => write!(f, ", rate {} Mbit/s", rate as f64 / 1e6),
            None => Ok(()),
        }
    }
}

/// One direction of one port. Times are since an arbitrary beginning and never go back.
#[derive(Debug)]
pub struct Shaper {
    delay: Duration,
    loss_ppm: u32,
    rate_bps: Option<u64>,
    random: Random,
    /// When the frames admitted so far have left at the given rate.
    free: Duration,
}

impl Shaper {
    /// What a node sends; `stream` tells the directions of one seed apart.
    pub fn new(shape: &Shape, stream: u64) -> Self {
        Self {
            delay: Duration::from_micros(shape.rtt_us) / 2,
            loss_ppm: shape.loss_ppm,
            rate_bps: shape.rate_bps,
            random: Random(shape.seed ^ stream.rotate_left(32)),
            free: Duration::ZERO,
        }
    }

    /// When a frame of `bytes` that arrived at `now` leaves; `None` = never. Never before an earlier one.
    pub fn admit(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        // Asked for each frame, so that a seed loses the same frames whatever else is set.
        if self.random.below(1_000_000) < u64::from(self.loss_ppm) {
            return None;
        }
        let Some(rate) = self.rate_bps else { return Some(now + self.delay) };
        let begin = self.free.max(now.saturating_sub(BURST));
        if begin > now + BACKLOG_MAX {
            return None;
        }
        let bits = (bytes as u64).saturating_mul(8);
        self.free = begin + Duration::from_nanos(bits.saturating_mul(1_000_000_000) / rate.max(1));
        Some(self.free.max(now) + self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn half_of_the_round_trip_is_added_to_a_direction() {
        let mut shaper = Shaper::new(&Shape::new(20.0, 0.0, None, 1).unwrap(), 0);
        assert_eq!(shaper.admit(5 * MS, 1500), Some(15 * MS));
    }

    #[test]
    fn a_rate_is_kept_after_the_burst_and_a_full_queue_drops() {
        // 8 Mbit/s: 1000 bytes take 1 ms.
        let mut shaper = Shaper::new(&Shape::new(0.0, 0.0, Some(8.0), 1).unwrap(), 0);
        let now = 1000 * MS;
        let leaves: Vec<_> = (0..400).filter_map(|_| shaper.admit(now, 1000)).collect();
        assert_eq!(leaves[0], now, "within the burst");
        assert_eq!(leaves[99], now + 95 * MS, "5 of 100 were the burst");
        assert_eq!(leaves.len() as u128, (BURST + BACKLOG_MAX).as_millis() + 1, "the rest found no room");
        assert!(shaper.admit(now + BACKLOG_MAX, 1000).is_some(), "there is room again");
    }

    #[test]
    fn a_seed_loses_the_same_share_of_frames_each_time() {
        let lost = |seed| {
            let mut shaper = Shaper::new(&Shape::new(0.0, 10.0, None, seed).unwrap(), 3);
            (0..10_000).map(|_| shaper.admit(MS, 64).is_none()).collect::<Vec<_>>()
        };
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
        let share = lost(7).iter().filter(|lost| **lost).count();
        assert!((900..1100).contains(&share), "{share}");
        let mut all = Shaper::new(&Shape::new(0.0, 100.0, None, 1).unwrap(), 0);
        assert_eq!(all.admit(MS, 64), None);
    }

    #[test]
    fn nonsense_is_refused_with_its_bounds() {
        for (rtt, loss, rate) in [
            (-1.0, 0.0, None),
            (f64::NAN, 0.0, None),
            (10_001.0, 0.0, None),
            (0.0, 101.0, None),
            (0.0, 0.0, Some(0.0)),
            (0.0, 0.0, Some(f64::INFINITY)),
        ] {
            assert!(Shape::new(rtt, loss, rate, 1).is_err(), "{rtt} {loss} {rate:?}");
        }
        assert_eq!(
            Shape::new(5.0, 0.5, Some(100.0), 1).unwrap().to_string(),
            "rtt 5 ms, loss 0.5 %, rate 100 Mbit/s"
        );
    }
}
