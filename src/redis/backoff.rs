//! How long to wait before the next attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// A connection that lasted this long was no failed attempt.
const GOOD: Duration = Duration::from_millis(250);

/// Doubles from 50 ms to at most 1 s. Each delay is up to half shorter, by chance, so that gateways
/// which lost the same server do not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST }
    }
}

impl Backoff {
    pub(super) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        delay.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// The attempt succeeded, and the connection lasted that long.
    pub(super) fn connected_for(&mut self, time: Duration) {
        if time >= GOOD {
            *self = Backoff::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_second_and_begin_anew_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let mut longest = FIRST;
        for _ in 0..10 {
            let delay = backoff.next_delay();
            assert!(delay <= longest && delay >= longest / 2, "{delay:?} of {longest:?}");
            longest = (longest * 2).min(LONGEST);
        }
        backoff.connected_for(Duration::from_millis(10));
        assert!(backoff.next_delay() >= LONGEST / 2);
        backoff.connected_for(GOOD);
        assert!(backoff.next_delay() <= FIRST);
    }
}
