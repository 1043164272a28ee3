//! What is known of one path: replay window, ages, round trip, loss. Time is passed in.

use super::datagram::{Datagram, Kind};
use crate::base::{Millis, Mono};
use crate::link::Life;
use std::time::Duration;

/// A path is dead when its newest heartbeat is older than 2.75 intervals: two lost in a row and the
/// jitter of a busy machine are tolerated, and a control connection that moves has done so well
/// within a second at the default interval (550 ms + a redial).
pub(crate) fn dead_after(interval: Millis) -> Millis {
    interval.saturating_mul(11) / 4
}

/// State of one path, behind a mutex: the receiver thread writes, everybody reads.
#[derive(Debug, Default)]
pub(crate) struct PathState {
    window: Option<(Life, u64)>,
    /// Bit n: heartbeat `sequence - n` arrived.
    arrived: u64,
    /// How many bits of `arrived` mean anything.
    span: u32,
    heard: Option<Mono>,
    heard_clock: u64,
    peer_sent: u64,
    peer_interval: Millis,
    heard_me: Option<(Mono, Millis)>,
    rtt: Option<Duration>,
    pub(crate) received: u64,
    pub(crate) dropped: u64,
    pub(crate) error: Option<String>,
    pub(crate) newest: Option<Newest>,
    pub(crate) tombstone: Option<(u128, Vec<u8>)>,
}

/// The newest heartbeat not yet handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newest {
    pub body: Vec<u8>,
    pub life: Life,
    pub heard_me_ms_ago: Option<u64>,
    pub rtt: Option<Duration>,
}

impl PathState {
    /// Takes an authentic heartbeat unless it is a replay. `clock`: our clock of `sent` fields, ns.
    pub(crate) fn accept(&mut self, datagram: Datagram, me: &Life, now: Mono, clock: u64) -> bool {
        debug_assert_eq!(datagram.kind, Kind::Heartbeat);
        let fresh = match &self.window {
            None => true,
            Some((life, sequence)) => {
                datagram.life.start > life.start
                    || (datagram.life.incarnation == life.incarnation && datagram.sequence > *sequence)
            }
        };
        if !fresh {
            self.dropped += 1;
            return false;
        }
        match &self.window {
            Some((life, sequence)) if life.incarnation == datagram.life.incarnation => {
                let step = datagram.sequence - sequence;
                self.arrived =
                    u32::try_from(step).ok().and_then(|s| self.arrived.checked_shl(s)).unwrap_or(0) | 1;
                self.span = self.span.saturating_add(u32::try_from(step).unwrap_or(64)).min(64);
            }
            _ => (self.arrived, self.span) = (1, 1),
        }
        self.window = Some((datagram.life, datagram.sequence));
        self.received += 1;
        self.heard = Some(now);
        self.heard_clock = clock;
        self.peer_sent = datagram.sent;
        self.peer_interval = Millis::from(datagram.interval);
        let echo = datagram.echo.filter(|echo| echo.incarnation == me.incarnation);
        if let Some(echo) = echo {
            self.heard_me = Some((now, echo.held / 1000));
            let held = echo.held.saturating_mul(1000);
            self.rtt = clock.checked_sub(echo.sent).map(|ns| Duration::from_nanos(ns.saturating_sub(held)));
        }
        self.newest = Some(Newest {
            body: datagram.body,
            life: datagram.life,
            heard_me_ms_ago: echo.map(|echo| echo.held / 1000),
            rtt: if echo.is_some() { self.rtt } else { None },
        });
        true
    }

    /// The peer proved over TLS that this is its present life: heartbeats of it count from now on,
    /// also when its start counter went back (restored state directory).
    pub(crate) fn adopt(&mut self, life: Life) {
        if self.window.is_none_or(|(known, _)| known.incarnation != life.incarnation) {
            self.window = Some((life, 0));
            (self.arrived, self.span) = (0, 0);
        }
    }

    /// What to echo: the peer's life, its clock, and when (our clock) it was heard.
    pub(crate) fn to_echo(&self) -> Option<(u128, u64, u64)> {
        self.heard?;
        self.window.map(|(life, _)| (life.incarnation, self.peer_sent, self.heard_clock))
    }

    /// The peer's life as far as this path knows.
    pub(crate) fn peer(&self) -> Option<Life> {
        self.window.map(|(life, _)| life)
    }

    /// Age of the newest heartbeat.
    pub(crate) fn heard_ago(&self, now: Mono) -> Option<Millis> {
        self.heard.map(|at| now - at)
    }

    /// Age of the newest heartbeat of ours that the peer is known to have received.
    pub(crate) fn heard_me_ago(&self, now: Mono) -> Option<Millis> {
        self.heard_me.map(|(at, held)| (now - at).saturating_add(held))
    }

    /// The longer of both sides' intervals, the peer's capped at ten times ours: while a new spec is
    /// on its way the nodes may differ.
    pub(crate) fn pace(&self, interval: Millis) -> Millis {
        interval.max(self.peer_interval.min(interval.saturating_mul(10)))
    }

    /// Heartbeats arrive.
    pub(crate) fn alive(&self, interval: Millis, now: Mono) -> bool {
        self.heard_ago(now).is_some_and(|age| age < dead_after(self.pace(interval)))
    }

    /// Heartbeats arrived just now, not only within the tolerance: a path to move to.
    pub(crate) fn lively(&self, interval: Millis, now: Mono) -> bool {
        self.heard_ago(now).is_some_and(|age| age < self.pace(interval).saturating_mul(3) / 2)
    }

    /// The peer hears us, too.
    pub(crate) fn both_ways(&self, interval: Millis, now: Mono) -> bool {
        self.alive(interval, now)
            && self.heard_me_ago(now).is_some_and(|age| age < dead_after(self.pace(interval)))
    }

    /// Round trip of the newest echoed heartbeat.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Share of the last 64 heartbeats that is missing.
    pub(crate) fn loss(&self) -> f32 {
        if self.span == 0 { 1.0 } else { 1.0 - self.arrived.count_ones() as f32 / self.span as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::datagram::tests::heartbeat;
    use super::*;

    const ME: Life = Life { boot: 0, incarnation: u128::MAX, start: 1 };

    #[test]
    fn replayed_and_older_heartbeats_are_dropped() {
        let mut path = PathState::default();
        assert!(path.accept(heartbeat(5), &ME, Mono(0), 0));
        assert!(!path.accept(heartbeat(5), &ME, Mono(1), 0));
        assert!(!path.accept(heartbeat(4), &ME, Mono(1), 0));
        assert!(path.accept(heartbeat(6), &ME, Mono(1), 0));
        let mut later = heartbeat(1);
        later.life = Life { boot: 1, incarnation: 8, start: 4 };
        assert!(path.accept(later.clone(), &ME, Mono(2), 0));
        assert!(!path.accept(heartbeat(7), &ME, Mono(3), 0), "the former life is over");
        assert_eq!(path.dropped, 3);
        // A restored state directory: a lower start is believed only after TLS proved it.
        let mut restored = heartbeat(1);
        restored.life = Life { boot: 1, incarnation: 9, start: 2 };
        assert!(!path.accept(restored.clone(), &ME, Mono(4), 0));
        path.adopt(restored.life);
        assert!(path.accept(restored, &ME, Mono(4), 0));
    }

    #[test]
    fn loss_counts_the_gaps() {
        let mut path = PathState::default();
        for sequence in [1, 2, 4] {
            assert!(path.accept(heartbeat(sequence), &ME, Mono(0), 0));
        }
        assert!((path.loss() - 0.25).abs() < 1e-6);
        assert!(path.accept(heartbeat(1000), &ME, Mono(0), 0));
        assert!((path.loss() - 63.0 / 64.0).abs() < 1e-6);
        assert!(path.accept(heartbeat(u64::MAX), &ME, Mono(0), 0));
    }

    #[test]
    fn ages_say_who_heard_whom() {
        let mut path = PathState::default();
        let mut one = heartbeat(1);
        one.echo = None;
        assert!(path.accept(one, &ME, Mono(1000), 0));
        assert!(path.alive(200, Mono(1549)) && !path.alive(200, Mono(1550)));
        assert!(path.lively(200, Mono(1299)) && !path.lively(200, Mono(1300)));
        assert!(!path.both_ways(200, Mono(1000)), "the peer never said that it hears us");
        let mut two = heartbeat(2);
        two.echo = Some(super::super::datagram::Echo { incarnation: u128::MAX, sent: 1_000, held: 100_000 });
        assert!(path.accept(two, &ME, Mono(1200), 101_000_000));
        assert_eq!(path.heard_me_ago(Mono(1250)), Some(150));
        assert_eq!(path.rtt(), Some(Duration::from_micros(999)));
        assert!(path.both_ways(200, Mono(1300)));
    }
}
