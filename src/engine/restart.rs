//! Restart limit: at most `max` restarts or fail-overs caused by checkers within a window.
//!
//! Past the limit the caller stops the cluster loudly: a service that dies again and again must
//! not bounce between the nodes for ever.

use crate::base::{Millis, Mono};
use crate::spec::limits;

/// More than this is never remembered: the highest limit that a spec may ask for.
pub const MAX_REMEMBERED: usize = limits::RESTARTS_MAX as usize;

/// Answer of the limiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allowance {
    /// Go ahead; it was counted.
    Restart,
    /// The limit is reached: stop.
    Stop,
}

/// Counts restarts within a sliding window. Volatile: an agent restart forgives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Limiter {
    times: Vec<Mono>,
}

impl Limiter {
    /// Asks for one more restart.
    pub fn ask(&mut self, now: Mono, max: u32, window: Millis) -> Allowance {
        self.times.retain(|at| now - *at < window);
        if self.times.len() >= (max as usize).min(MAX_REMEMBERED) {
            return Allowance::Stop;
        }
        self.times.push(now);
        Allowance::Restart
    }

    /// Forgets everything (operator start).
    pub fn clear(&mut self) {
        self.times.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_limit_of_a_spec_is_kept_to_the_last_restart() {
        let mut limiter = Limiter::default();
        let max = u32::from(limits::RESTARTS_MAX);
        for at in 0..max {
            assert_eq!(limiter.ask(Mono(u64::from(at)), max, 1_000), Allowance::Restart, "{at}");
        }
        assert_eq!(limiter.ask(Mono(999), max, 1_000), Allowance::Stop);
        assert_eq!(limiter.ask(Mono(1_000), max, 1_000), Allowance::Restart);
    }

    #[test]
    fn limit_holds_within_the_window_and_slides() {
        let mut limiter = Limiter::default();
        for at in 0..3 {
            assert_eq!(limiter.ask(Mono(at), 3, 100), Allowance::Restart);
        }
        assert_eq!(limiter.ask(Mono(99), 3, 100), Allowance::Stop);
        assert_eq!(limiter.ask(Mono(100), 3, 100), Allowance::Restart);
        assert_eq!(limiter.ask(Mono(100), 3, 100), Allowance::Stop);
        assert_eq!(limiter.ask(Mono(0), 0, 100), Allowance::Stop);
        limiter.clear();
        assert_eq!(limiter.ask(Mono(100), 1, 100), Allowance::Restart);
    }
}
