//! When discovery looks again for the master. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How often discovery looks again: one connection each time, to a sentinel or to the server.
const WATCH_INTERVAL: Duration = Duration::from_secs(3);
/// The same at most, where each answer differs from the one before.
const WATCH_INTERVAL_MAX: Duration = Duration::from_secs(300);

/// The watch over discovery. Owned by the driver.
#[derive(Debug)]
pub(super) struct Watch {
    next: Instant,
    is_under_way: bool,
    interval: Duration,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Watch {
        Watch {
            next: now + WATCH_INTERVAL,
            is_under_way: false,
            interval: WATCH_INTERVAL,
        }
    }

    /// When discovery is due; `None` while it is under way.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.is_under_way).then_some(self.next)
    }

    /// It is due; there may be nothing to look for.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.next = now + self.interval;
    }

    /// Discovery is under way.
    pub(super) fn asked(&mut self) {
        self.is_under_way = true;
    }

    /// Discovery has answered: with another master, with the same one, or not at all.
    pub(super) fn answered(&mut self, is_another: Option<bool>, now: Instant) {
        self.is_under_way = false;
        match is_another {
            Some(true) => self.interval = (self.interval * 2).min(WATCH_INTERVAL_MAX),
            Some(false) => self.interval = WATCH_INTERVAL,
            None => {}
        }
        self.next = now + self.interval;
    }
}
