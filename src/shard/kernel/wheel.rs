//! One deadline per connection: a timing wheel whose cost is O(expired).
//!
//! Pure; owned by one shard. Activity on a connection does not touch the wheel: its owner looks at
//! the connection when the deadline fires and sets the next one. Deadlines past the horizon are
//! looked at once per turn of the wheel.
//!
//! The wheel counts ticks in 64 bits and a slot keeps the low 32 of them, which are compared by
//! their distance to now. So a gateway may run for ever, and a slot takes 12 bytes. A deadline more
//! than `AHEAD_MAX` ticks away fires after that time; its owner looks, and sets it again.
//!
//! Invariant: a slot is in the list of bucket `due % BUCKETS` while it has a deadline, and nowhere
//! else.

/// One step of the wheel. Heartbeats, handshakes and drains are counted in seconds; a step late is
/// early enough.
pub const TICK_MS: u64 = 32;
/// Buckets; with the tick a horizon of 32 s, past the heartbeat interval of 25 s.
const BUCKETS: usize = 1024;
const NONE: u32 = u32::MAX;
/// In `prev`: the slot has no deadline.
const FREE: u32 = u32::MAX - 1;
/// The farthest deadline, ticks from now: 2.1 years, half of what 32 bits tell apart.
const AHEAD_MAX: u64 = (u32::MAX / 2) as u64;

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    /// The slot before this one, `NONE` for the head of a bucket, or [`FREE`].
    prev: u32,
    /// The low bits of the deadline's tick.
    due: u32,
}

const UNLINKED: Link = Link {
    next: NONE,
    prev: FREE,
    due: 0,
};

/// The deadlines of one shard's connections, 12 bytes each.
#[derive(Debug)]
pub struct Wheel {
    heads: Box<[u32; BUCKETS]>,
    links: Vec<Link>,
    /// The last tick that was handled.
    tick: u64,
    armed: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Wheel {
            heads: Box::new([NONE; BUCKETS]),
            links: Vec::new(),
            tick: 0,
            armed: 0,
        }
    }
}

impl Wheel {
    /// Number of slots with a deadline.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// True when no slot has a deadline.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Sets the one deadline of `slot`, in milliseconds of the shard's clock; replaces an earlier
    /// one.
    pub fn set(&mut self, slot: u32, due_ms: u64) {
        self.cancel(slot);
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, UNLINKED);
        }
        // Rounded up: never early. At least the next tick, or it would wait for a whole turn of the
        // wheel.
        let due = due_ms.div_ceil(TICK_MS).clamp(self.tick + 1, self.tick + AHEAD_MAX);
        self.links[index].due = due as u32;
        self.link(slot);
        self.armed += 1;
    }

    /// Takes the deadline of `slot` away, if it has one.
    pub fn cancel(&mut self, slot: u32) {
        if self.links.get(slot as usize).is_some_and(|link| link.prev != FREE) {
            self.unlink(slot);
            self.armed -= 1;
        }
    }

    /// Appends the slots whose deadline is not after `now_ms` to `expired` and takes their
    /// deadlines away.
    pub fn expire(&mut self, now_ms: u64, expired: &mut Vec<u32>) {
        let now = now_ms / TICK_MS;
        if now <= self.tick {
            return;
        }
        // After a long pause every bucket is looked at once, not once per tick.
        let first = (self.tick + 1).max(now.saturating_sub(BUCKETS as u64 - 1));
        self.tick = now;
        if self.armed == 0 {
            return;
        }
        for tick in first..=now {
            let mut slot = self.heads[tick as usize % BUCKETS];
            while slot != NONE {
                let link = self.links[slot as usize];
                // What is due lies at most half a round of 32 bits behind: whoever sleeps longer
                // finds it ahead, and fires it when it comes round. No machine sleeps for two
                // years.
                if (now as u32).wrapping_sub(link.due) <= u32::MAX / 2 {
                    self.unlink(slot);
                    self.armed -= 1;
                    expired.push(slot);
                }
                slot = link.next;
            }
        }
    }

    /// The earliest time, in milliseconds of the shard's clock, at which something may be due;
    /// `None` if nothing is.
    pub fn next_due_ms(&self) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let ahead = (1..=BUCKETS as u64).find(|ahead| self.heads[(self.tick + ahead) as usize % BUCKETS] != NONE)?;
        Some((self.tick + ahead) * TICK_MS)
    }

    fn link(&mut self, slot: u32) {
        let bucket = self.links[slot as usize].due as usize % BUCKETS;
        let next = std::mem::replace(&mut self.heads[bucket], slot);
        let link = &mut self.links[slot as usize];
        link.next = next;
        link.prev = NONE;
        if next != NONE {
            self.links[next as usize].prev = slot;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Link { next, prev, due } = std::mem::replace(&mut self.links[slot as usize], UNLINKED);
        if prev == NONE {
            self.heads[due as usize % BUCKETS] = next;
        } else {
            self.links[prev as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
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
        fn agrees_with_a_model(
            steps in prop::collection::vec((0u8..4, 0u32..20, 1u64..90_000), 1..200)
        ) {
            let mut wheel = Wheel::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0u64;
            for (what, slot, amount) in steps {
                match what {
                    0 | 1 => { wheel.set(slot, now + amount); model.insert(slot, now + amount); }
                    2 => { wheel.cancel(slot); model.remove(&slot); }
                    _ => {
                        now += amount;
                        if let Some(due) = wheel.next_due_ms() {
                            // Never later than the earliest deadline rounded up.
                            let earliest = model.values().min().unwrap();
                            prop_assert!(due <= earliest.next_multiple_of(TICK_MS).max(now / TICK_MS * TICK_MS + TICK_MS));
                        } else {
                            prop_assert!(model.is_empty());
                        }
                        let mut expired = Vec::new();
                        wheel.expire(now, &mut expired);
                        for slot in expired {
                            let due = model.remove(&slot);
                            prop_assert!(due.is_some_and(|due| due <= now), "early or not set");
                        }
                        // What is left is due later, to within a tick.
                        prop_assert!(model.values().all(|due| *due + TICK_MS > now));
                    }
                }
            }
        }
    }

    /// A gateway that runs for years: no deadline is lost and none comes early where the low bits
    /// wrap.
    #[test]
    fn deadlines_hold_for_ever() {
        const YEAR_MS: u64 = 366 * 86_400_000;
        let mut expired = Vec::new();
        let wrap_ms = (u64::from(u32::MAX) + 1) * TICK_MS;
        for start_ms in [
            wrap_ms - 60_000,
            wrap_ms - TICK_MS,
            wrap_ms,
            wrap_ms + 40,
            3 * wrap_ms - 5,
            100 * YEAR_MS,
        ] {
            let mut wheel = Wheel::default();
            wheel.expire(start_ms, &mut expired);
            for (slot, ahead_ms) in [(0, 1), (1, 25_000), (2, 120_000), (3, 400 * 86_400_000)] {
                wheel.set(slot, start_ms + ahead_ms);
                let due = wheel.next_due_ms();
                assert!(
                    due.is_some_and(|due| due > start_ms && due <= (start_ms + ahead_ms).next_multiple_of(TICK_MS)),
                    "{due:?}"
                );
                wheel.expire(start_ms + ahead_ms - 1, &mut expired);
                assert!(expired.is_empty(), "early, {ahead_ms} ms behind {start_ms}");
                wheel.expire(start_ms + ahead_ms + TICK_MS, &mut expired);
                assert_eq!(expired, [slot], "late, {ahead_ms} ms behind {start_ms}");
                expired.clear();
            }
        }
        // One that is farther away than the low bits tell apart fires, so that its owner sets it
        // again.
        let now_ms = 101 * YEAR_MS;
        let mut wheel = Wheel::default();
        wheel.expire(now_ms, &mut expired);
        wheel.set(7, now_ms + 50 * YEAR_MS);
        wheel.expire(now_ms + YEAR_MS, &mut expired);
        assert!(expired.is_empty());
        wheel.expire(now_ms + 3 * YEAR_MS, &mut expired);
        assert_eq!(expired, [7]);
        assert_eq!(size_of::<Link>(), 12);
    }

    #[test]
    fn a_long_pause_expires_everything_once() {
        let mut wheel = Wheel::default();
        for slot in 0..5000 {
            wheel.set(slot, u64::from(slot) * 40);
        }
        let mut expired = Vec::new();
        wheel.expire(10_000_000, &mut expired);
        assert_eq!(expired.len(), 5000);
        wheel.expire(20_000_000, &mut expired);
        assert_eq!(expired.len(), 5000);
        assert_eq!(wheel.next_due_ms(), None);
    }
}
