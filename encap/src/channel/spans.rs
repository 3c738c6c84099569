//! A set of numbers, kept as ranges that neither overlap nor touch.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of offsets or ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spans {
    /// Start to end, which is not in the range.
    ranges: BTreeMap<u64, u64>,
}

impl Spans {
    pub(crate) const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// Number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, end)| *end > number)
    }

    /// The range of the smallest numbers.
    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.ranges.first_key_value().map(|(start, end)| *start..*end)
    }

    /// The end of the range that begins at 0; 0 without one.
    pub(crate) fn prefix(&self) -> u64 {
        self.ranges.get(&0).copied().unwrap_or(0)
    }

    /// Whether any range overlaps this one or touches it: to insert it makes no further range.
    pub(crate) fn joins(&self, range: &Range<u64>) -> bool {
        self.ranges.range(..=range.end).next_back().is_some_and(|(_, end)| *end >= range.start)
    }

    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((at, to)) = self.ranges.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if to < start {
                break;
            }
            self.ranges.remove(&at);
            start = start.min(at);
            end = end.max(to);
        }
        self.ranges.insert(start, end);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((at, to)) = self.ranges.range(..range.end).next_back().map(|(a, b)| (*a, *b))
        {
            if to <= range.start {
                break;
            }
            self.ranges.remove(&at);
            if to > range.end {
                self.ranges.insert(range.end, to);
            }
            if at < range.start {
                self.ranges.insert(at, range.start);
            }
        }
    }

    /// What of `range` is not in the set, in ascending order.
    pub(crate) fn missing(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.ranges.range(..=range.start).next_back().map(|(_, end)| *end);
        let mut at = range.start.max(before.unwrap_or(0));
        let end = range.end;
        // Empty where the range is: BTreeMap refuses a start behind the end.
        let mut inside = self.ranges.range(at..end.max(at));
        std::iter::from_fn(move || {
            while at < end {
                let gap = match inside.next() {
                    Some((from, to)) => std::mem::replace(&mut at, *to)..*from,
                    None => std::mem::replace(&mut at, end)..end,
                };
                if !gap.is_empty() {
                    return Some(gap);
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(steps in proptest::collection::vec((0u64..60, 0u64..20, 0u8..4), 0..60)) {
            let (mut spans, mut model) = (Spans::new(), BTreeSet::new());
            for (start, len, what) in steps {
                let range = start..start + len;
                let absent: Vec<_> = range.clone().filter(|n| !model.contains(n)).collect();
                let missing: Vec<_> = spans.missing(range.clone()).collect();
                prop_assert!(missing.iter().all(|gap| !gap.is_empty()));
                prop_assert!(missing.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(missing.into_iter().flatten().collect::<Vec<_>>(), absent);
                let (joins, before) = (spans.joins(&range), spans.len());
                if what == 0 {
                    spans.remove(range.clone());
                    model.retain(|n| !range.contains(n));
                } else {
                    spans.insert(range.clone());
                    model.extend(range.clone());
                    prop_assert!(range.is_empty() || joins == (spans.len() <= before));
                }
                let all: Vec<_> = spans.ranges.iter().map(|(from, to)| *from..*to).collect();
                prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(spans.first(), all.first().cloned());
                prop_assert!(all.into_iter().flatten().eq(model.iter().copied()));
                prop_assert!((0..90).all(|n| spans.contains(n) == model.contains(&n)));
                let prefix = (0..90).take_while(|n| model.contains(n)).count() as u64;
                prop_assert_eq!(spans.prefix(), prefix);
                prop_assert_eq!(spans.is_empty(), model.is_empty());
            }
        }
    }
}
