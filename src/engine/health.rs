//! Rise and fall: when do single looks at something add up to a verdict?
//!
//! Pure: the caller runs the looks and leaves out those that prove nothing (its own stall, a frozen
//! mount). A verdict changes only after `fall` failures, or `rise` successes, in a row.

use serde::{Deserialize, Serialize};

/// The verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Not looked at often enough yet.
    #[default]
    Unknown,
    /// Good.
    Up,
    /// Bad.
    Down,
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Look {
    /// It was good.
    Good,
    /// It was bad.
    Bad,
}

/// Counts looks into a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RiseFall {
    rise: u16,
    fall: u16,
    health: Health,
    /// Looks in a row that contradict the verdict, all alike.
    against: u16,
    last: Option<Look>,
}

impl RiseFall {
    /// Zero counts as one.
    pub const fn new(rise: u16, fall: u16) -> Self {
        let rise = if rise == 0 { 1 } else { rise };
        let fall = if fall == 0 { 1 } else { fall };
        Self { rise, fall, health: Health::Unknown, against: 0, last: None }
    }

    /// The verdict now.
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Takes one look in; the new verdict if it changed.
    pub fn look(&mut self, look: Look) -> Option<Health> {
        let (verdict, needed) = match look {
            Look::Good => (Health::Up, self.rise),
            Look::Bad => (Health::Down, self.fall),
        };
        if self.health == verdict {
            self.against = 0;
            self.last = Some(look);
            return None;
        }
        self.against = if self.last == Some(look) { self.against.saturating_add(1) } else { 1 };
        self.last = Some(look);
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.health = verdict;
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Look::{Bad, Good};

    fn verdicts(rise: u16, fall: u16, looks: &[Look]) -> Vec<Option<Health>> {
        let mut machine = RiseFall::new(rise, fall);
        looks.iter().map(|look| machine.look(*look)).collect()
    }

    #[test]
    fn three_failures_in_a_row_are_needed_to_fall() {
        let up = Some(Health::Up);
        let down = Some(Health::Down);
        assert_eq!(verdicts(1, 3, &[Good, Bad, Bad, Good, Bad, Bad]), [up, None, None, None, None, None]);
        assert_eq!(verdicts(1, 3, &[Good, Bad, Bad, Bad, Bad]), [up, None, None, down, None]);
    }

    #[test]
    fn rise_counts_from_the_first_success_after_a_failure() {
        let down = Some(Health::Down);
        assert_eq!(verdicts(2, 1, &[Bad, Good, Bad, Good]), [down, None, None, None]);
        assert_eq!(verdicts(2, 1, &[Bad, Good, Good]), [down, None, Some(Health::Up)]);
    }

    #[test]
    fn mixed_looks_never_make_a_first_verdict() {
        assert!(verdicts(2, 2, &[Good, Bad, Good, Bad, Good]).iter().all(Option::is_none));
    }

    #[test]
    fn zero_thresholds_count_as_one() {
        assert_eq!(verdicts(0, 0, &[Bad, Good]), [Some(Health::Down), Some(Health::Up)]);
    }

    proptest::proptest! {
        #[test]
        fn a_verdict_is_always_backed_by_that_many_equal_looks(
            rise in 1_u16..5, fall in 1_u16..5, looks in proptest::collection::vec(proptest::bool::ANY, 0..60)
        ) {
            let mut machine = RiseFall::new(rise, fall);
            for (i, good) in looks.iter().enumerate() {
                let verdict = machine.look(if *good { Good } else { Bad });
                if let Some(health) = verdict {
                    let needed = usize::from(if health == Health::Up { rise } else { fall });
                    let run = looks[..=i].iter().rev().take_while(|l| *l == good).count();
                    proptest::prop_assert!(run >= needed);
                    proptest::prop_assert_eq!(health == Health::Up, *good);
                }
            }
        }
    }
}
