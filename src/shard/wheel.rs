//! One deadline per connection: a timing wheel whose cost is O(expired).
//!
//! Pure; owned by one shard. Activity on a connection does not touch the wheel: its owner looks at the connection
//! when the deadline fires and sets the next one. Deadlines past the horizon are looked at once per turn of the wheel.
//!
//! Invariant: a slot is in the list of bucket `due % BUCKETS` while it has a deadline, and nowhere else.

/// One step of the wheel. Heartbeats, handshakes and drains are counted in seconds; a step late is early enough.
pub const TICK_MS: u64 = 32;
/// Buckets; with the tick a horizon of 32 s, past the heartbeat interval of 25 s.
const BUCKETS: usize = 1024;
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    /// The slot before this one, or `NONE` for the head of a bucket.
    prev: u32,
    /// Tick of the deadline; 0: none.
    due: u32,
}

const UNLINKED: Link = Link {
    next: NONE,
    prev: NONE,
    due: 0,
};

/// The deadlines of one shard's connections, 12 bytes each.
#[derive(Debug)]
pub struct Wheel {
    heads: Box<[u32; BUCKETS]>,
    links: Vec<Link>,
    /// The last tick that was handled.
    tick: u32,
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

    /// Sets the one deadline of `slot`, in milliseconds of the shard's clock; replaces an earlier one.
    pub fn set(&mut self, slot: u32, due_ms: u64) {
        self.cancel(slot);
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, UNLINKED);
        }
        // Rounded up: never early. At least the next tick, or it would wait for a whole turn of the wheel.
        let due = u32::try_from(due_ms.div_ceil(TICK_MS))
            .unwrap_or(u32::MAX)
            .max(self.tick + 1);
        self.links[index].due = due;
        self.link(slot);
        self.armed += 1;
    }

    /// Takes the deadline of `slot` away, if it has one.
    pub fn cancel(&mut self, slot: u32) {
        if self.links.get(slot as usize).is_some_and(|link| link.due != 0) {
            self.unlink(slot);
            self.armed -= 1;
        }
    }

    /// Appends the slots whose deadline is not after `now_ms` to `expired` and takes their deadlines away.
    pub fn expire(&mut self, now_ms: u64, expired: &mut Vec<u32>) {
        let now = u32::try_from(now_ms / TICK_MS).unwrap_or(u32::MAX);
        if now <= self.tick {
            return;
        }
        // After a long pause every bucket is looked at once, not once per tick.
        let first = (self.tick + 1).max(now.saturating_sub(BUCKETS as u32 - 1));
        self.tick = now;
        if self.armed == 0 {
            return;
        }
        for tick in first..=now {
            let mut slot = self.heads[tick as usize % BUCKETS];
            while slot != NONE {
                let link = self.links[slot as usize];
                if link.due <= now {
                    self.unlink(slot);
                    self.armed -= 1;
                    expired.push(slot);
                }
                slot = link.next;
            }
        }
    }

    /// The earliest time, in milliseconds of the shard's clock, at which something may be due; `None` if nothing is.
    pub fn next_due_ms(&self) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let ahead = (1..=BUCKETS as u32).find(|ahead| self.heads[(self.tick + ahead) as usize % BUCKETS] != NONE)?;
        Some(u64::from(self.tick + ahead) * TICK_MS)
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
