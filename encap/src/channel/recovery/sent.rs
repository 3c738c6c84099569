//! Values by packet number, ascending: what was sent on a path and not yet heard of.
//!
//! A deque. What is taken out of its middle leaves an empty slot, and each of these knows a place
//! further on where a value may be. So an ACK that reports the same hundred thousand packets as
//! the one before costs a few steps, not a hundred thousand.
//!
//! Next: [`super::Recovery`].

use std::collections::VecDeque;

use super::ranges::PacketRange;

#[derive(Debug, Clone)]
struct Slot<P> {
    number: u64,
    /// All slots between this one and that position are empty. Counts only if this one is.
    next: u64,
    value: Option<P>,
}

/// Values by packet number. A value's position is how many were put in before it.
#[derive(Debug, Clone)]
pub(super) struct Numbered<P> {
    /// The first slot is never empty.
    slots: VecDeque<Slot<P>>,
    /// Position of the first slot.
    base: u64,
    /// Slots that are not empty.
    len: usize,
}

impl<P> Default for Numbered<P> {
    fn default() -> Self {
        Self { slots: VecDeque::new(), base: 0, len: 0 }
    }
}

impl<P> Numbered<P> {
    /// How many values there are.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// How many values there is memory in use for, the empty slots among them included.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    /// Puts a value behind all others: its number must be above theirs.
    pub(super) fn push(&mut self, number: u64, value: P) {
        debug_assert!(self.slots.back().is_none_or(|last| last.number < number));
        let next = self.end() + 1;
        self.slots.push_back(Slot { number, next, value: Some(value) });
        self.len += 1;
    }

    /// The first value and its number.
    pub(super) fn first(&self) -> Option<(u64, &P)> {
        let slot = self.slots.front()?;
        slot.value.as_ref().map(|value| (slot.number, value))
    }

    /// Takes the first value out: position, number, value.
    pub(super) fn pop_first(&mut self) -> Option<(u64, u64, P)> {
        let position = self.base;
        let slot = self.slots.front_mut()?;
        let (number, value) = (slot.number, slot.value.take()?);
        self.len -= 1;
        self.trim();
        Some((position, number, value))
    }

    /// All values with their numbers, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &P)> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref().map(|value| (slot.number, value)))
    }

    /// Takes out the values with numbers in the range, ascending.
    pub(super) fn take(&mut self, range: PacketRange, mut each: impl FnMut(u64, P)) {
        let mut at = self.position_of(range.first);
        loop {
            at = self.occupied_from(at);
            let after = at + 1;
            let Some(slot) = self.slot_mut(at) else { break };
            if slot.number > range.last {
                break;
            }
            slot.next = after;
            if let Some(value) = slot.value.take() {
                let number = slot.number;
                self.len -= 1;
                each(number, value);
            }
        }
        self.trim();
    }

    /// One above the position of the last slot.
    fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// The position of the first slot whose number is not below this one.
    fn position_of(&self, number: u64) -> u64 {
        let Some(first) = self.slots.front().map(|slot| slot.number) else { return self.base };
        // Nearly always every number has its slot.
        let guess = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        if self.slots.get(guess).is_some_and(|slot| slot.number == number) {
            return self.base + guess as u64;
        }
        self.base + self.slots.partition_point(|slot| slot.number < number) as u64
    }

    /// The position of the first value at this position or behind; [`Self::end`] or more if there
    /// is none. All slots that it passes learn of it.
    fn occupied_from(&mut self, at: u64) -> u64 {
        let mut found = at;
        while let Some(slot) = self.slot_mut(found).filter(|slot| slot.value.is_none()) {
            found = slot.next;
        }
        let mut passed = at;
        while let Some(slot) = self.slot_mut(passed).filter(|slot| slot.value.is_none()) {
            passed = slot.next;
            slot.next = found;
        }
        found
    }

    fn slot_mut(&mut self, position: u64) -> Option<&mut Slot<P>> {
        let index = usize::try_from(position.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(index)
    }

    fn trim(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.value.is_none()) {
            self.slots.pop_front();
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn equals_a_map(
            steps in prop::collection::vec((0_u8..4, 0_u64..400, 0_u64..300), 1..300),
        ) {
            let (mut numbered, mut model) = (Numbered::default(), BTreeMap::new());
            let (mut number, mut pushed) = (0, 0);
            for (what, a, b) in steps {
                match what {
                    0 | 1 => for _ in 0..a % 40 {
                        number += if b % 7 == 0 { 1 + b % 5 } else { 1 };
                        numbered.push(number, pushed);
                        model.insert(number, pushed);
                        pushed += 1;
                    },
                    2 => {
                        let range = PacketRange { first: a, last: a + b };
                        let mut taken = Vec::new();
                        numbered.take(range, |number, value| taken.push((number, value)));
                        let wanted: Vec<_> = model.range(a..=a + b).map(|(n, v)| (*n, *v)).collect();
                        wanted.iter().for_each(|(number, _)| _ = model.remove(number));
                        prop_assert_eq!(taken, wanted);
                    }
                    _ => {
                        let first = numbered.pop_first();
                        // A position is how many were put in before.
                        let wanted = model.pop_first().map(|(number, value)| (value, number, value));
                        prop_assert_eq!(first, wanted);
                    }
                }
                prop_assert_eq!(numbered.len(), model.len());
                let first = numbered.first().map(|(number, value)| (number, *value));
                prop_assert_eq!(first, model.iter().next().map(|(number, value)| (*number, *value)));
                prop_assert!(numbered.iter().map(|(number, value)| (number, *value))
                    .eq(model.iter().map(|(number, value)| (*number, *value))));
                prop_assert!(numbered.len() > 0 || numbered.span() == 0);
            }
        }
    }

    /// A receiver that reports the same long range again and again behind one packet that is
    /// missing. Walking over all of it each time would be 10^10 steps.
    #[test]
    fn empty_slots_are_not_walked_over_again() {
        let mut numbered = Numbered::default();
        (0..100_000).for_each(|number| numbered.push(number, ()));
        let mut taken = 0;
        for last in 1..100_000 {
            numbered.take(PacketRange { first: 1, last }, |_, ()| taken += 1);
        }
        assert_eq!((taken, numbered.len(), numbered.span()), (99_999, 1, 100_000));
        numbered.pop_first();
        assert_eq!(numbered.span(), 0);
        numbered.take(PacketRange { first: 0, last: u64::MAX }, |_, ()| taken += 1);
        assert_eq!(taken, 99_999);
    }
}
