//! Every timer of one cluster, derived from `heartbeat.timeout` (T) and `heartbeat.interval` (i).
//!
//! # The arithmetic of an outage (level L2)
//! The primary P loses power at time 0; the standby last heard it at most `i` before.
//!
//! | step | formula | T = 2 s, i = 200 ms | T = 500 ms, i = 100 ms |
//! |---|---|---|---|
//! | loss declared by the standby | T | 2.00 s | 0.50 s |
//! | clean probe window ended: promotion | + W | 2.25 s | 0.65 s |
//! | last lease P may have renewed ran out | i + lease | 2.20 s | 1.10 s |
//! | VIP added, services started | max of both | **2.25 s** | **1.10 s** |
//!
//! W = T/8 within 150..500 ms; lease = max(1 s, T rounded up to seconds). The syncfs runs from the loss of the session on, beside
//! the window. Targets: at most 3 s with T = 2 s, at most 1.5 s with T = 500 ms.
//!
//! The standby S loses power: P freezes, declares the loss after T and **holds** its first lone
//! acknowledgement for T + W more (L1 and L2): 2 T + W = 4.25 s or 1.15 s without answered writes. The hold
//! covers what the two nodes may see differently: every word P sends counts at S only if it says "I heard you at most T/2
//! ago", so S's last word lies at most T/2 after P's; S begins to probe T after it and must have a clean window ended within
//! `decide` = 3/2 T + W of it, else it is Behind. P acknowledges alone at the earliest 2 T + W after
//! *its* last word, which is no earlier than S's bound: 2 T + W - T/2 = 3/2 T + W. This assumes that the two
//! clocks run at about the same *rate*; nothing compares their readings.
//!
//! # What fires when
//! - `freeze`: a writer without a session that was not allowed to go on alone answers EIO and waits.
//! - `yield_after`: a writer that hears its standby but gets no session asks it to give up its claim.
//! - `shake`: a handshake step that does not come closes the link; it is dialled again.

use crate::base::{Millis, Timespan};
use crate::engine::config::Config;
use crate::spec::{defaults, limits};

/// Bounds of T: those of the spec, so that every spec that validates gives exactly its own timers.
pub const TIMEOUT_MIN: Millis = limits::HEARTBEAT_TIMEOUT_MIN.as_millis();
/// See [`TIMEOUT_MIN`].
pub const TIMEOUT_MAX: Millis = limits::HEARTBEAT_TIMEOUT_MAX.as_millis();
/// Shortest i; the longest is T / [`limits::BEATS_PER_TIMEOUT`].
pub const INTERVAL_MIN: Millis = limits::HEARTBEAT_INTERVAL_MIN.as_millis();
/// Floor of the freeze deadline: long enough for a switch to reboot its port, short enough for
/// writeback not to stall the machine.
pub const FREEZE_MIN: Millis = 10_000;
/// syncfs of a machine's worth of dirty pages on a slow disk; past it a handshake step starts over.
pub const SYNC_MAX: Millis = 120_000;
/// Longest drain of a hand-over where calls are answered early: the default window over a link of 5 Mbit/s. A
/// standby that acknowledges nothing is given up sooner (`replica::primary::Config::ack_stall`).
pub const DRAIN_EARLY: Millis = 30_000;
/// Services of a node whose disk is sick get at most this long to stop before the role is given away all the
/// same: what hangs in the disk cannot stop, and what fails there has no better end to come to.
pub const SICK_STOP: Millis = 5_000;
/// First and longest pause before an ejected standby asks to be admitted again.
pub const READMIT: (Millis, Millis) = (2_000, 60_000);

/// Derived timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timers {
    /// T.
    pub timeout: Millis,
    /// i.
    pub interval: Millis,
    /// W: one probe window.
    pub window: Millis,
    /// VIP lifetime; renewed every third of it.
    pub lease: Millis,
    /// A heartbeat that says "heard you longer ago than this" does not count as heard.
    pub one_way: Millis,
    /// First lone acknowledgement this long after the loss was declared.
    pub hold: Millis,
    /// A standby decides within this of the primary's last word.
    pub decide: Millis,
    /// Frozen for at most this long.
    pub freeze: Millis,
    /// Ask the standby to yield after this long without a session.
    pub yield_after: Millis,
    /// Deadline of one handshake step.
    pub shake: Millis,
    /// A tick later than this is a stall of our own.
    pub slack: Millis,
    /// After a stall: time for queued words of the peer to be read before it is called lost.
    pub grace: Millis,
    /// Waiting for acknowledgements of what is in flight before a hand-over.
    pub drain: Millis,
    /// Cold start: time for the peer to show up before going on by record.
    pub cold: Millis,
}

/// A set of timers that cannot work, with the arithmetic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// Timeout out of bounds.
    #[error("heartbeat.timeout {timeout} ms is outside {TIMEOUT_MIN}..{TIMEOUT_MAX} ms")]
    Timeout {
        /// Given.
        timeout: Millis,
    },
    /// Too few heartbeats within the timeout.
    #[error(
        "heartbeat.interval {interval} ms must be at least {INTERVAL_MIN} ms and at most timeout / {} = {} ms: one-way loss is judged at timeout / 2 and must not fire on one lost datagram",
        limits::BEATS_PER_TIMEOUT,
        timeout / limits::BEATS_PER_TIMEOUT
    )]
    Interval {
        /// Given.
        interval: Millis,
        /// Given.
        timeout: Millis,
    },
}

impl Timers {
    /// Derives the set.
    pub fn derive(config: &Config) -> Result<Self, Impossible> {
        let (timeout, interval) = (config.heartbeat_timeout, config.heartbeat_interval);
        if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout) {
            return Err(Impossible::Timeout { timeout });
        }
        if !(INTERVAL_MIN..=timeout / limits::BEATS_PER_TIMEOUT).contains(&interval) {
            return Err(Impossible::Interval { interval, timeout });
        }
        Ok(Self::from(timeout, interval).draining(config))
    }

    /// The nearest possible set, for a core that was given an unchecked configuration.
    pub(crate) fn nearest(config: &Config) -> Self {
        let timeout = config.heartbeat_timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        let most = timeout / limits::BEATS_PER_TIMEOUT;
        Self::from(timeout, config.heartbeat_interval.clamp(INTERVAL_MIN, most)).draining(config)
    }

    /// Where calls are answered early a whole window may be in flight.
    fn draining(self, config: &Config) -> Self {
        let drain = if config.answers_early { self.drain.max(DRAIN_EARLY) } else { self.drain };
        Self { drain, ..self }
    }

    /// What two nodes count with whose specs may differ: the larger of each. `peer`: its T and i.
    pub(crate) fn common(config: &Config, peer: Option<(Millis, Millis)>) -> Self {
        let (timeout, interval) = peer.unwrap_or_default();
        Self::nearest(&Config {
            heartbeat_timeout: config.heartbeat_timeout.max(timeout),
            heartbeat_interval: config.heartbeat_interval.max(interval),
            ..config.clone()
        })
    }

    fn from(timeout: Millis, interval: Millis) -> Self {
        let window = (timeout / 8).clamp(150, 500);
        Self {
            timeout,
            interval,
            window,
            lease: defaults::vip_lease(Timespan::from_millis(timeout)).as_millis(),
            one_way: timeout / 2,
            hold: timeout + window,
            decide: timeout + timeout / 2 + window,
            freeze: (5 * timeout).max(FREEZE_MIN),
            yield_after: timeout,
            shake: (2 * timeout).max(5_000),
            slack: (timeout / 16).max(20),
            grace: timeout / 8,
            drain: timeout,
            cold: timeout,
        }
    }

    /// Longest time after the primary's death until its standby serves (application start apart).
    pub fn outage(&self) -> Millis {
        (self.timeout + self.window).max(self.interval + self.lease)
    }

    /// Longest overlap of the VIP on two nodes when the primary hangs: the kernel drops an expired
    /// address within about 200 ms (measured on veth: gone 1.0-1.2 s after a renewal of 1 s).
    pub fn vip_overlap(&self) -> Millis {
        200
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(timeout: Millis, interval: Millis) -> Config {
        Config { heartbeat_timeout: timeout, heartbeat_interval: interval, ..Config::default() }
    }

    #[test]
    fn outage_meets_the_targets() {
        assert!(Timers::derive(&config(2_000, 200)).unwrap().outage() <= 3_000);
        assert!(Timers::derive(&config(500, 100)).unwrap().outage() <= 1_500);
    }

    #[test]
    fn first_lone_acknowledgement_comes_after_the_standby_decided() {
        for t in TIMEOUT_MIN..=TIMEOUT_MAX {
            let timers = Timers::nearest(&config(t, t / 10));
            // P's word is at most one_way older than S's.
            assert!(timers.timeout + timers.hold >= timers.one_way + timers.decide, "{t}");
            // A stall of a quarter of the timeout still leaves a full window.
            assert!(
                timers.timeout + timers.timeout / 4 + timers.grace + timers.window <= timers.decide,
                "{t}"
            );
            assert!(timers.freeze > timers.timeout + timers.hold + timers.window, "{t}");
            assert!(timers.interval <= timers.one_way / 2, "{t}");
        }
    }

    #[test]
    fn nodes_with_different_specs_count_with_the_same_timers() {
        for (a, b) in [((500, 100), (2_000, 200)), ((2_000, 500), (600, 20)), ((300, 75), (30_000, 20))] {
            let (at_a, at_b) = (config(a.0, a.1), config(b.0, b.1));
            let common = Timers::common(&at_a, Some(b));
            assert_eq!(common, Timers::common(&at_b, Some(a)));
            assert_eq!((common.timeout, common.interval), (a.0.max(b.0), a.1.max(b.1)));
        }
        assert_eq!(Timers::common(&config(500, 100), None), Timers::nearest(&config(500, 100)));
    }

    #[test]
    fn impossible_sets_are_refused() {
        assert_eq!(Timers::derive(&config(299, 50)), Err(Impossible::Timeout { timeout: 299 }));
        assert_eq!(Timers::derive(&config(30_001, 50)), Err(Impossible::Timeout { timeout: 30_001 }));
        assert!(Timers::derive(&config(300, 75)).is_ok());
        assert!(Timers::derive(&config(300, 20)).is_ok());
        assert!(matches!(Timers::derive(&config(2_000, 501)), Err(Impossible::Interval { .. })));
        assert!(matches!(Timers::derive(&config(2_000, 19)), Err(Impossible::Interval { .. })));
    }
}
