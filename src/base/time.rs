//! Time as plain numbers: the pure part never reads a clock, callers pass it in.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// A span in milliseconds.
pub type Millis = u64;

/// A reading of CLOCK_BOOTTIME in milliseconds (counts suspend). Only differences mean anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mono(pub u64);

impl Add<Millis> for Mono {
    type Output = Self;
    fn add(self, ms: Millis) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl Sub for Mono {
    type Output = Millis;
    /// Saturates at zero: a reading from "before" is no time ago.
    fn sub(self, earlier: Self) -> Millis {
        self.0.saturating_sub(earlier.0)
    }
}
