//! When a client comes back.
//!
//! Duty: the return of a good client library after the end of a connection. It waits a random time
//! of up to `backoff`, twice that after each refusal, and never more than `backoff_max`. It adds
//! that to a `Retry-After`, and keeps to `reconnectAfterMs`, which differs per client already. An
//! attempt that takes too long is given up. Pure: times, and the random numbers' seed, are
//! arguments. Owned by one generator thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::args::Options;

/// Whether a client comes back after this close code. From 3500 on the server declares that
/// pointless, and from 4500 on applications do.
pub(crate) fn comes_back(code: u16) -> bool {
    !matches!(code, 3500..=3999 | 4500..=4999)
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Todo {
    /// Close the connection: the server said that it goes.
    Leave,
    /// Begin an attempt.
    Begin,
    /// Give up the attempt that was begun.
    GiveUp,
}

/// How long clients wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) attempt: Duration,
}

impl Patience {
    pub(crate) fn of(options: &Options) -> Self {
        Self {
            backoff: options.storm.backoff,
            backoff_max: options.storm.backoff_max,
            attempt: options.connect.connect_timeout,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Client {
    attempts: u32,
    /// When the server that goes wants it back.
    told_ns: Option<u64>,
    /// Only the timer that was set last counts.
    timer: u32,
}

/// All clients of a thread that may have to come back.
#[derive(Debug)]
pub(crate) struct Returns {
    patience: Patience,
    random: fastrand::Rng,
    clients: Vec<Client>,
    timers: BinaryHeap<Reverse<(u64, usize, u32, Todo)>>,
}

impl Returns {
    pub(crate) fn new(patience: Patience, seed: u64, clients: usize) -> Self {
        Self {
            patience,
            random: fastrand::Rng::with_seed(seed),
            clients: vec![Client::default(); clients],
            timers: BinaryHeap::new(),
        }
    }

    /// The server said that it goes, and when to come back.
    pub(crate) fn shutdown(&mut self, client: usize, after: Duration, now_ns: u64) {
        let at_ns = now_ns + after.as_nanos() as u64;
        self.clients[client].told_ns = Some(at_ns);
        self.set(client, at_ns, Todo::Leave);
    }

    /// The connection ended, at its first life or at a later one.
    pub(crate) fn lost(&mut self, client: usize, now_ns: u64) {
        self.clients[client].attempts = 0;
        let at_ns = match self.clients[client].told_ns.take() {
            Some(told_ns) => told_ns.max(now_ns),
            None => now_ns + self.jitter_ns(client),
        };
        self.set(client, at_ns, Todo::Begin);
    }

    /// It comes back at `at_ns`, whatever happens until then.
    pub(crate) fn come_at(&mut self, client: usize, at_ns: u64) {
        self.clients[client].attempts = 0;
        self.set(client, at_ns, Todo::Begin);
    }

    /// An attempt begins; the number of it.
    pub(crate) fn attempt(&mut self, client: usize, now_ns: u64) -> u32 {
        self.clients[client].attempts += 1;
        self.set(client, now_ns + self.patience.attempt.as_nanos() as u64, Todo::GiveUp);
        self.clients[client].attempts
    }

    /// An attempt failed, and the server may have said when to come again.
    pub(crate) fn refused(&mut self, client: usize, retry_after: Option<Duration>, now_ns: u64) {
        let least_ns = retry_after.unwrap_or_default().as_nanos() as u64;
        let at_ns = now_ns + least_ns + self.jitter_ns(client);
        self.set(client, at_ns, Todo::Begin);
    }

    /// It is back; after how many attempts.
    pub(crate) fn ready(&mut self, client: usize) -> u32 {
        self.forget(client);
        std::mem::take(&mut self.clients[client].attempts)
    }

    /// It does not come back.
    pub(crate) fn forget(&mut self, client: usize) {
        self.clients[client].timer += 1;
    }

    /// When something is to be done.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.timers.peek().map(|Reverse((at_ns, ..))| *at_ns)
    }

    /// The steps due by now, one at a time.
    pub(crate) fn poll(&mut self, now_ns: u64) -> Option<(usize, Todo)> {
        while self.next_ns().is_some_and(|at_ns| at_ns <= now_ns) {
            let Reverse((_, client, timer, todo)) = self.timers.pop()?;
            if timer == self.clients[client].timer {
                return Some((client, todo));
            }
        }
        None
    }

    fn set(&mut self, client: usize, at_ns: u64, todo: Todo) {
        self.clients[client].timer += 1;
        self.timers
            .push(Reverse((at_ns, client, self.clients[client].timer, todo)));
    }

    fn jitter_ns(&mut self, client: usize) -> u64 {
        let doubled = 1u32 << self.clients[client].attempts.min(16);
        let most = self
            .patience
            .backoff
            .saturating_mul(doubled)
            .min(self.patience.backoff_max);
        self.random.u64(0..=most.as_nanos() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn returns(clients: usize) -> Returns {
        let patience = Patience {
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(4),
            attempt: Duration::from_secs(20),
        };
        Returns::new(patience, 7, clients)
    }

    #[test]
    fn codes_say_who_comes_back() {
        assert!(
            [1000, 1006, 1012, 3001, 3008, 3499, 4000]
                .iter()
                .all(|code| comes_back(*code))
        );
        assert!([3500, 3503, 3507, 3999, 4500].iter().all(|code| !comes_back(*code)));
    }

    #[test]
    fn a_crowd_spreads_itself_and_refusals_spread_it_more() {
        let mut returns = returns(1000);
        (0..1000).for_each(|client| returns.lost(client, 0));
        let mut due = vec![];
        while let Some((client, todo)) = returns.poll(S) {
            assert_eq!(todo, Todo::Begin);
            due.push(client);
        }
        assert_eq!(due.len(), 1000, "all within the first half second");
        for (refusals, most) in [(1, S), (2, 2 * S), (3, 4 * S), (4, 4 * S), (20, 4 * S)] {
            let mut last = 0;
            for client in 0..1000 {
                while returns.attempt(client, 0) < refusals {}
                returns.refused(client, None, 0);
            }
            while let Some(next) = returns.next_ns() {
                // Timers that were set anew stay where they were and do nothing.
                if returns.poll(next).is_some() {
                    last = next;
                }
            }
            assert!(
                last <= most && last > most * 9 / 10,
                "{last} of {most} after {refusals}"
            );
        }
    }

    #[test]
    fn what_the_server_says_is_kept_to() {
        let mut returns = returns(1);
        returns.attempt(0, 0);
        returns.refused(0, Some(Duration::from_secs(5)), 0);
        let next = returns.next_ns().unwrap();
        // A timer that no longer counts is the earlier one.
        assert!(returns.poll(4 * S).is_none() && next <= 6 * S);
        assert_eq!(returns.poll(20 * S), Some((0, Todo::Begin)));
        assert_eq!(returns.attempt(0, 20 * S), 2);
        assert_eq!(returns.ready(0), 2);

        returns.shutdown(0, Duration::from_secs(3), 30 * S);
        assert_eq!(returns.poll(33 * S - 1), None);
        assert_eq!(returns.poll(33 * S), Some((0, Todo::Leave)));
        returns.shutdown(0, Duration::from_secs(3), 40 * S);
        // Closed before: it comes at its time all the same.
        returns.lost(0, 41 * S);
        assert_eq!(returns.poll(43 * S - 1), None);
        assert_eq!(returns.poll(43 * S), Some((0, Todo::Begin)));
    }

    #[test]
    fn an_attempt_that_takes_too_long_is_given_up() {
        let mut returns = returns(1);
        returns.attempt(0, 0);
        assert_eq!(returns.poll(20 * S - 1), None);
        assert_eq!(returns.poll(20 * S), Some((0, Todo::GiveUp)));
        returns.attempt(0, 20 * S);
        returns.ready(0);
        assert_eq!(returns.poll(u64::MAX), None, "it is back");
    }
}
