//! A set of block numbers as disjoint ranges: large holes cost as much as one block.

use std::collections::BTreeMap;

/// See the module. Start -> end (exclusive); ranges that touch are one.
#[derive(Default)]
pub(super) struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    /// Are all of [from, to) in it?
    pub fn contains(&self, from: u64, to: u64) -> bool {
        from >= to || self.0.range(..=from).next_back().is_some_and(|(_, end)| *end >= to)
    }

    /// Adds [from, to).
    pub fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut start, mut stop) = (from, to);
        while let Some((&s, &e)) = self.0.range(..=stop).next_back()
            && e >= start
        {
            self.0.remove(&s);
            (start, stop) = (start.min(s), stop.max(e));
        }
        self.0.insert(start, stop);
    }

    /// The first range of [from, to) that is not in it.
    pub fn gap(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        let before = self.0.range(..=from).next_back().map_or(from, |(_, end)| *end);
        let start = from.max(before);
        let stop = self.0.range(start..).next().map_or(to, |(next, _)| to.min(*next));
        (start < to).then_some((start, stop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(ranges in proptest::collection::vec((0_u64..60, 0_u64..20), 0..30)) {
            let (mut blocks, mut model) = (Blocks::default(), BTreeSet::new());
            for (from, len) in ranges {
                blocks.add(from, from + len);
                model.extend(from..from + len);
            }
            for from in 0..85 {
                prop_assert!(blocks.contains(from, from));
                for to in from..90 {
                    let free: Vec<u64> = (from..to).filter(|b| !model.contains(b)).collect();
                    prop_assert_eq!(blocks.contains(from, to), free.is_empty());
                    let first = free.first().map(|&first| {
                        let run = free.iter().zip(first..).take_while(|(free, n)| *free == n).count();
                        (first, first + run as u64)
                    });
                    prop_assert_eq!(blocks.gap(from, to), first);
                }
            }
        }
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let mut blocks = Blocks::default();
        blocks.add(0, 2);
        blocks.add(4, u64::MAX);
        blocks.add(2, 4);
        assert_eq!(blocks.0.len(), 1);
        assert!(blocks.contains(0, u64::MAX));
    }
}
