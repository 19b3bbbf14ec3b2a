//! The open loop: what is due when, whatever became of what was due before.

use std::ops::Range;

/// Something is due `rate` times per second from the begin of the load to its end, and some of it
/// here. Owned by one generator thread.
#[derive(Debug)]
pub(crate) struct Schedule {
    rate: f64,
    /// Of `all` who take turns, those of this thread; not empty.
    own: Range<usize>,
    all: usize,
    begin_ns: u64,
    /// Nothing is due from here on.
    end_ns: u64,
    /// How many were due until now.
    due: u64,
}

impl Schedule {
    /// Of `threads` threads that make `rate` messages per second together, the part of number
    /// `thread`.
    pub(crate) fn new(rate: f64, thread: usize, threads: usize) -> Self {
        Self::among(rate, thread..thread + 1, threads)
    }

    /// Of `all` who make `rate` messages per second together, in turn, those with the numbers
    /// `own`, of whom there are some.
    pub(crate) fn among(rate: f64, own: Range<usize>, all: usize) -> Self {
        Self {
            rate,
            own,
            all,
            begin_ns: 0,
            end_ns: u64::MAX,
            due: 0,
        }
    }

    pub(crate) fn begin(&mut self, now_ns: u64) {
        self.begin_ns = now_ns;
    }

    pub(crate) fn end(&mut self, now_ns: u64) {
        self.end_ns = now_ns;
    }

    /// When the next message is due; `None` after the last.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let count = self.own.len() as u64;
        let (round, place) = (self.due / count, self.due % count);
        let number = round * self.all as u64 + self.own.start as u64 + place;
        let due_ns = self.begin_ns + (number as f64 * 1e9 / self.rate) as u64;
        (due_ns < self.end_ns).then_some(due_ns)
    }

    /// Takes that message off the schedule.
    pub(crate) fn take(&mut self) -> Option<u64> {
        let due_ns = self.next_ns()?;
        self.due += 1;
        Some(due_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_until_the_end() {
        let mut all: Vec<u64> = (0..2)
            .flat_map(|thread| {
                let mut schedule = Schedule::new(1000.0, thread, 2);
                schedule.begin(5_000_000);
                schedule.end(10_000_000);
                std::iter::from_fn(move || schedule.take())
            })
            .collect();
        all.sort_unstable();
        assert_eq!(all, [5_000_000, 6_000_000, 7_000_000, 8_000_000, 9_000_000]);
    }

    #[test]
    fn a_thread_takes_the_turns_of_all_who_are_on_it() {
        let due = |own| {
            let mut schedule = Schedule::among(1000.0, own, 3);
            schedule.end(7_000_000);
            std::iter::from_fn(|| schedule.take())
                .map(|ns| ns / 1_000_000)
                .collect::<Vec<_>>()
        };
        assert_eq!(due(0..1), [0, 3, 6]);
        assert_eq!(due(1..3), [1, 2, 4, 5]);
    }
}
