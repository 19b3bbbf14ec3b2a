//! One direction of a pair whose ends come and go.
//!
//! Duty: decide of every message whether it arrived, was lost, or was away. A message is away if
//! its receiver was absent, or if the server refused it with an honest answer. It is also away if
//! it was under way when one of the two connections ended. sent = received + lost + away. Order is
//! promised to the messages of one connection. Pure.

use std::collections::VecDeque;

use crate::sequence::{Arrival, Sequence};

/// The record of a message whose end is open.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    arrived: bool,
    /// The receiver was connected when it left. If not, an earlier connection of the receiver may
    /// have taken it, whose end the server had not noticed. That is no loss.
    present: bool,
    /// The server said that somebody took it.
    taken: bool,
    /// The server said that nobody did.
    refused: bool,
}

/// The fate of messages that did not arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) lost: u64,
    pub(crate) away: u64,
}

impl std::ops::AddAssign for Missing {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.away += other.away;
    }
}

/// The messages from one user to another, numbered 0, 1, 2...
#[derive(Debug, Default)]
pub(crate) struct Stream {
    seen: Sequence,
    /// The number of the first message of the sender's present connection.
    in_order_from: u32,
    /// The number of the oldest message whose end is open.
    first: u32,
    open: VecDeque<Fate>,
    /// Of those, how many should still arrive.
    waiting: u32,
    /// Numbers below `first` that were lost for certain; hardly ever any.
    lost: Vec<u32>,
    away: u64,
}

impl Stream {
    /// How many were sent.
    pub(crate) fn sent(&self) -> u32 {
        self.first + self.open.len() as u32
    }

    /// How many should still arrive.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// One leaves, to a receiver who is there or not; its number.
    pub(crate) fn send(&mut self, present: bool) -> u32 {
        self.open.push_back(Fate {
            present,
            ..Fate::default()
        });
        self.waiting += u32::from(present);
        self.sent() - 1
    }

    /// One arrived; `None` if it was never sent.
    pub(crate) fn arrive(&mut self, number: u32) -> Option<Arrival> {
        if number >= self.sent() {
            return None;
        }
        let arrival = match self.seen.arrive(number) {
            Arrival::Duplicate => return Some(Arrival::Duplicate),
            // The message before it is of another connection.
            Arrival::Reordered if number < self.in_order_from => Arrival::InOrder,
            arrival => arrival,
        };
        match number.checked_sub(self.first) {
            Some(place) => {
                let fate = &mut self.open[place as usize];
                fate.arrived = true;
                self.waiting -= u32::from(fate.present && !fate.refused);
                self.close_front();
            }
            // It had been given up.
            None => match self.lost.iter().position(|lost| *lost == number) {
                Some(i) => drop(self.lost.swap_remove(i)),
                None => self.away -= 1,
            },
        }
        Some(arrival)
    }

    /// The server said whether somebody took it.
    pub(crate) fn answer(&mut self, number: u32, taken: bool) {
        let Some(place) = number.checked_sub(self.first) else {
            return;
        };
        let Some(fate) = self.open.get_mut(place as usize) else {
            return;
        };
        self.waiting -= u32::from(fate.present && !fate.arrived && !fate.refused && !taken);
        fate.taken |= taken;
        fate.refused |= !taken;
        self.close_front();
    }

    /// The sender's connection ended: messages on the next one may overtake those on this one.
    pub(crate) fn interrupt_sender(&mut self) {
        self.interrupt();
        self.in_order_from = self.sent();
    }

    /// The receiver's connection ended.
    pub(crate) fn interrupt_receiver(&mut self) {
        self.interrupt();
    }

    /// The connection of one of the two ended. A message ahead of one that did arrive had its
    /// chance. It is lost if the receiver was there and the server acked that it was taken.
    fn interrupt(&mut self) {
        let last = self.open.iter().rposition(|fate| fate.arrived).unwrap_or(0);
        for (place, fate) in self.open.iter().enumerate().filter(|(_, fate)| !fate.arrived) {
            if fate.present && fate.taken && place < last {
                self.lost.push(self.first + place as u32);
            } else {
                self.away += 1;
            }
        }
        self.first = self.sent();
        self.open.clear();
        self.waiting = 0;
    }

    /// Nothing comes any more.
    pub(crate) fn finish(&self) -> Missing {
        let mut missing = Missing {
            lost: self.lost.len() as u64,
            away: self.away,
        };
        for fate in self.open.iter().filter(|fate| !fate.arrived) {
            if fate.present && !fate.refused {
                missing.lost += 1;
            } else {
                missing.away += 1;
            }
        }
        missing
    }

    fn close_front(&mut self) {
        while let Some(fate) = self.open.front().filter(|fate| fate.arrived || fate.refused) {
            self.away += u64::from(!fate.arrived);
            self.open.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(lost: u64, away: u64) -> Missing {
        Missing { lost, away }
    }

    fn with_sent(present: &[bool]) -> Stream {
        let mut stream = Stream::default();
        for (number, present) in present.iter().enumerate() {
            assert_eq!(stream.send(*present), number as u32);
        }
        stream
    }

    #[test]
    fn who_is_there_must_get_it() {
        let mut stream = with_sent(&[true; 4]);
        assert_eq!(stream.arrive(0), Some(Arrival::InOrder));
        assert_eq!(stream.arrive(3), Some(Arrival::InOrder));
        assert_eq!(stream.arrive(2), Some(Arrival::Reordered));
        assert_eq!(stream.arrive(2), Some(Arrival::Duplicate));
        assert_eq!(stream.arrive(4), None, "never sent");
        assert_eq!((stream.waiting(), stream.finish()), (1, missing(1, 0)));
    }

    #[test]
    fn who_is_away_need_not_get_it() {
        let mut stream = with_sent(&[false, false, true]);
        stream.answer(0, false);
        assert_eq!(stream.arrive(2), Some(Arrival::InOrder));
        assert_eq!((stream.waiting(), stream.finish()), (0, missing(0, 2)));
        // It came after all, although the server did not know.
        assert_eq!(stream.arrive(0), Some(Arrival::Reordered));
        assert_eq!(stream.finish(), missing(0, 1));
    }

    #[test]
    fn an_end_excuses_what_was_under_way_and_nothing_before() {
        let mut stream = with_sent(&[true; 5]);
        (0..4).for_each(|number| stream.answer(number, true));
        stream.arrive(0);
        // 1 was jumped over, 3 and 4 were under way.
        stream.arrive(2);
        stream.interrupt_receiver();
        assert_eq!((stream.waiting(), stream.finish()), (0, missing(1, 2)));
        assert_eq!(stream.send(true), 5);
        assert_eq!(stream.arrive(5), Some(Arrival::InOrder));
        // Late is not lost.
        assert_eq!(stream.arrive(1), Some(Arrival::Reordered));
        assert_eq!(stream.arrive(3), Some(Arrival::Reordered));
        assert_eq!(stream.finish(), missing(0, 1));
    }

    /// The receiver's network is gone, and the server does not know yet: the connection of before
    /// takes what comes.
    #[test]
    fn what_a_dead_connection_took_is_not_lost() {
        let mut stream = with_sent(&[false, false]);
        stream.answer(0, true);
        // The receiver is back, and gets what is sent from now on.
        assert_eq!(stream.send(true), 2);
        stream.answer(2, true);
        assert_eq!(stream.arrive(2), Some(Arrival::InOrder));
        stream.interrupt_receiver();
        assert_eq!(stream.finish(), missing(0, 2));
    }

    #[test]
    fn order_is_that_of_one_connection() {
        let mut stream = with_sent(&[true, true]);
        stream.interrupt_sender();
        assert_eq!(stream.send(true), 2);
        assert_eq!(stream.arrive(2), Some(Arrival::InOrder));
        assert_eq!(stream.arrive(1), Some(Arrival::InOrder), "of the connection before");
        stream.interrupt_receiver();
        assert_eq!(stream.send(true), 3);
        assert_eq!(stream.send(true), 4);
        assert_eq!(stream.arrive(4), Some(Arrival::InOrder));
        assert_eq!(stream.arrive(3), Some(Arrival::Reordered), "of the same connection");
        assert_eq!(stream.finish(), missing(0, 1));
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_counted_twice(steps in proptest::collection::vec((0u8..7, 0u32..12), 0..80)) {
            let (mut stream, mut received) = (Stream::default(), 0u64);
            for (what, number) in steps {
                match what {
                    0 | 1 => drop(stream.send(what == 0)),
                    2 => received += u64::from(matches!(stream.arrive(number), Some(Arrival::InOrder | Arrival::Reordered))),
                    3 | 4 => stream.answer(number, what == 3),
                    5 => stream.interrupt_sender(),
                    _ => stream.interrupt_receiver(),
                }
                let missing = stream.finish();
                proptest::prop_assert_eq!(u64::from(stream.sent()), received + missing.lost + missing.away);
                proptest::prop_assert!(u64::from(stream.waiting()) <= missing.lost);
            }
        }
    }
}
