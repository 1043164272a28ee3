//! Restart limit: at most `max` restarts or fail-overs caused by checkers within a window.
//!
//! Past the limit the caller stops the cluster loudly: a service that dies again and again must
//! not bounce between the nodes for ever.

use crate::base::{Millis, Mono};

/// More than this is never remembered; a higher configured limit acts as this one.
pub const MAX_REMEMBERED: usize = 100;

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
