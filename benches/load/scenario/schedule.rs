//! The open loop: what is due when, whatever became of what was due before.

/// Something is due every `period_ns` from the begin of the load to its end. Owned by one generator thread.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Nanoseconds from one due message of this thread to the next.
    period_ns: f64,
    /// This thread's first message is due so much of a period after the load begins.
    offset: f64,
    begin_ns: u64,
    /// Nothing is due from here on.
    end_ns: u64,
    /// How many were due until now.
    due: u64,
}

impl Schedule {
    /// Of `threads` threads that make `rate` messages per second together, the part of number `thread`.
    pub(crate) fn new(rate: f64, thread: usize, threads: usize) -> Self {
        Self {
            period_ns: 1e9 * threads as f64 / rate,
            offset: thread as f64 / threads as f64,
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
        let due_ns = self.begin_ns + ((self.due as f64 + self.offset) * self.period_ns) as u64;
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
}
