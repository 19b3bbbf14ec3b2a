//! Does what is said on our own channel reach us? A ping on a command connection proves nothing
//! about pub/sub.
//!
//! Pure; owned by the control thread. One probe is under way at a time. One that does not come back
//! is lost, and stays so until one does: a new subscription alone proves nothing either.

use crate::shared::Now;

/// Time between two probes.
const EVERY_MS: u64 = 1_000;
/// A probe that is not back after this time is lost, and the store's connections are made anew.
const LOST_NS: u64 = 2_000_000_000;

/// The probe. Owned by the control thread.
#[derive(Debug, Default)]
pub struct Probe {
    nonce: u64,
    /// When the one under way was sent.
    sent_ns: Option<u64>,
    due_ms: u64,
    lost: bool,
}

impl Probe {
    /// The nonce of a probe that is to be sent now.
    pub fn poll(&mut self, now: Now) -> Option<u64> {
        if self.sent_ns.is_some() || now.mono_ms() < self.due_ms {
            return None;
        }
        self.nonce += 1;
        self.sent_ns = Some(now.mono_ns);
        self.due_ms = now.mono_ms() + EVERY_MS;
        Some(self.nonce)
    }

    /// A probe came back. Returns how long the one under way took, nanoseconds.
    pub fn handle_back(&mut self, nonce: u64, now: Now) -> Option<u64> {
        let sent_ns = self.sent_ns.filter(|_| nonce == self.nonce)?;
        self.sent_ns = None;
        self.lost = false;
        Some(now.mono_ns.saturating_sub(sent_ns))
    }

    /// True once if the probe under way is lost now.
    pub fn handle_timeout(&mut self, now: Now) -> bool {
        let late = self.under_way_ns(now).is_some_and(|ns| ns >= LOST_NS);
        if late {
            self.give_up(now);
        }
        late
    }

    /// The probe under way will not come back. The next one comes in its time: sooner, it would
    /// only repeat a remedy that had none yet.
    pub fn give_up(&mut self, now: Now) {
        self.lost = true;
        self.sent_ns = None;
        self.due_ms = now.mono_ms() + EVERY_MS;
    }

    /// How long the probe under way has been so, nanoseconds.
    pub fn under_way_ns(&self, now: Now) -> Option<u64> {
        self.sent_ns.map(|sent_ns| now.mono_ns.saturating_sub(sent_ns))
    }

    /// The channel is heard anew: what was under way is not waited for, the next one is due.
    pub fn restart(&mut self) {
        self.sent_ns = None;
        self.due_ms = 0;
    }

    /// True from a lost probe until one is back.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// When the next one is to be sent, or the one under way is lost.
    pub fn poll_timeout(&self) -> u64 {
        self.sent_ns
            .map_or(self.due_ms, |ns| (ns + LOST_NS).div_ceil(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now {
            mono_ns: ms * 1_000_000,
            wall_ms: 0,
        }
    }

    #[test]
    fn a_probe_that_is_lost_stays_lost_until_one_is_back() {
        let mut probe = Probe::default();
        let first = probe.poll(at(0)).unwrap();
        assert_eq!(probe.handle_back(first, at(3)), Some(3_000_000));
        assert_eq!((probe.poll(at(999)), probe.poll_timeout()), (None, 1_000));
        let second = probe.poll(at(1_000)).unwrap();
        assert_eq!(probe.poll(at(2_500)), None, "one at a time");
        assert_eq!(probe.poll_timeout(), 3_000);
        assert!(!probe.handle_timeout(at(2_999)) && probe.handle_timeout(at(3_000)));
        assert!(probe.is_lost() && !probe.handle_timeout(at(3_000)));
        // The next one is not hurried, unless the channel is heard anew, which proves nothing.
        assert_eq!((probe.poll(at(3_001)), probe.poll_timeout()), (None, 4_000));
        probe.restart();
        let third = probe.poll(at(3_001)).unwrap();
        assert_eq!(probe.handle_back(second, at(3_002)), None, "an old one");
        assert!(probe.is_lost());
        assert!(probe.handle_back(third, at(3_003)).is_some() && !probe.is_lost());
    }
}
