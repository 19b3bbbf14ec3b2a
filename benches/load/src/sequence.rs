//! The fate of a stream of numbered messages, seen from its receiver.
//!
//! Duty: tell a loss, a duplicate and a re-ordering apart. Pure. Holds one number while nothing
//! goes wrong; ranges of missing numbers only when something did.

use std::ops::Range;

/// How one arrival relates to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    InOrder,
    /// Later numbers were here before it.
    Reordered,
    Duplicate,
}

/// The receiver's end of one stream numbered 0, 1, 2…
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// All numbers below were seen or are in `missing`.
    next: u32,
    missing: Vec<Range<u32>>,
}

impl Sequence {
    /// Takes note of the arrival of `number`.
    pub(crate) fn arrive(&mut self, number: u32) -> Arrival {
        if number == self.next {
            self.next += 1;
            return Arrival::InOrder;
        }
        if number > self.next {
            self.missing.push(self.next..number);
            self.next = number.saturating_add(1);
            return Arrival::InOrder;
        }
        let Some(i) = self.missing.iter().position(|range| range.contains(&number)) else {
            return Arrival::Duplicate;
        };
        let range = self.missing.swap_remove(i);
        self.missing.extend(
            [range.start..number, number + 1..range.end]
                .into_iter()
                .filter(|r| !r.is_empty()),
        );
        Arrival::Reordered
    }

    /// The numbers below `sent` that never arrived.
    pub(crate) fn missing(&self, sent: u32) -> impl Iterator<Item = u32> {
        let below = self.missing.iter().cloned().flatten();
        below.filter(move |n| *n < sent).chain(self.next..sent)
    }

    /// How many of the first `sent` numbers never arrived.
    pub(crate) fn lost(&self, sent: u32) -> u64 {
        let missing: u64 = self
            .missing
            .iter()
            .map(|range| u64::from(range.end - range.start))
            .sum();
        missing + u64::from(sent.saturating_sub(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Arrival::{Duplicate, InOrder, Reordered};

    fn play(numbers: &[u32]) -> (Vec<Arrival>, Sequence) {
        let mut sequence = Sequence::default();
        (numbers.iter().map(|n| sequence.arrive(*n)).collect(), sequence)
    }

    #[test]
    fn each_fault_has_its_name() {
        let (seen, sequence) = play(&[0, 1, 2]);
        assert_eq!((seen, sequence.lost(3)), (vec![InOrder; 3], 0));
        let (seen, sequence) = play(&[0, 2, 3]);
        assert_eq!((seen, sequence.lost(5)), (vec![InOrder; 3], 2));
        let (seen, sequence) = play(&[0, 2, 1, 1]);
        assert_eq!(
            (seen, sequence.lost(3)),
            (vec![InOrder, InOrder, Reordered, Duplicate], 0)
        );
        let (seen, sequence) = play(&[5, 2, 2, 0]);
        assert_eq!(
            (seen, sequence.lost(6)),
            (vec![InOrder, Reordered, Duplicate, Reordered], 3)
        );
        assert_eq!(Sequence::default().lost(7), 7);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_set(numbers in proptest::collection::vec(0u32..40, 0..120)) {
            let (seen, sequence) = play(&numbers);
            let distinct: std::collections::HashSet<u32> = numbers.iter().copied().collect();
            let duplicates = seen.iter().filter(|a| **a == Duplicate).count();
            proptest::prop_assert_eq!(duplicates, numbers.len() - distinct.len());
            proptest::prop_assert_eq!(sequence.lost(40), 40 - distinct.len() as u64);
            let mut missing: Vec<u32> = sequence.missing(30).collect();
            missing.sort_unstable();
            proptest::prop_assert_eq!(missing, (0..30).filter(|n| !distinct.contains(n)).collect::<Vec<_>>());
        }
    }
}
