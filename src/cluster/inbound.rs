//! What comes from other gateways: packets whose messages are with the shards, and what to say of
//! them.
//!
//! Pure; owned by the control thread. A packet that comes behind a later one of the same gateway is
//! refused as a whole: so nothing is delivered twice or out of order, whatever happens on the way
//! (two connections while a slot of a Redis Cluster moves), and its senders hear `failed`.
//!
//! That is also what keeps anybody from saying again what was heard: a sender's numbers are
//! remembered beyond its end, for the last `RETIRED_MAX` gateways that are gone. Orders to all have
//! numbers where packets are sealed, and are refused likewise.

use std::collections::{BTreeMap, BTreeSet};

use super::packet::Confirm;
use super::store::Incarnation;
use crate::router::locations::PeerId;

/// Packets that the shards have not finished: more than their lanes can hold.
const OPEN_PACKETS_MAX: usize = 65_536;

/// Gateways that are gone whose numbers are remembered.
const RETIRED_MAX: usize = 1_024;

#[derive(Debug)]
struct Open {
    from: PeerId,
    /// Shards that have not answered.
    parts: u16,
    confirm: Confirm,
}

/// Packets under way in this gateway.
#[derive(Debug, Default)]
pub struct Inbound {
    open: Vec<Option<Open>>,
    free: Vec<u32>,
    /// The last number of each gateway to us, and to all.
    last: BTreeMap<Incarnation, u32>,
    last_to_all: BTreeMap<Incarnation, u32>,
    /// Gateways that are gone, the oldest first.
    retired: BTreeSet<Incarnation>,
}

/// True if a number is ahead of all that came; it is remembered as the last.
fn is_ahead(last: &mut BTreeMap<Incarnation, u32>, from: Incarnation, sequence: u32) -> bool {
    let last = last.entry(from).or_insert(sequence.wrapping_sub(1));
    // Half of the circle is ahead, half is behind.
    let ahead = sequence.wrapping_sub(*last);
    let next = (1..1 << 31).contains(&ahead);
    if next {
        *last = sequence;
    }
    next
}

impl Inbound {
    /// True if a packet is the latest of its gateway so far; it is remembered as that.
    pub fn is_next(&mut self, from: Incarnation, sequence: u32) -> bool {
        is_ahead(&mut self.last, from, sequence)
    }

    /// The same for a packet to all gateways.
    pub fn is_next_to_all(&mut self, from: Incarnation, sequence: u32) -> bool {
        is_ahead(&mut self.last_to_all, from, sequence)
    }

    /// Gateways whose last number to all is remembered.
    #[cfg(test)]
    pub fn senders_to_all(&self) -> usize {
        self.last_to_all.len()
    }

    /// We are heard on another channel from now on: the others begin to count anew there, and what
    /// is still said on the old one is not heard.
    pub fn begin_channel(&mut self) {
        self.last.clear();
    }

    /// A gateway is gone. Should it come back, its numbers go on.
    pub fn gone(&mut self, from: Incarnation) {
        self.retired.insert(from);
        if self.retired.len() > RETIRED_MAX
            && let Some(oldest) = self.retired.pop_first()
        {
            self.last.remove(&oldest);
            self.last_to_all.remove(&oldest);
        }
    }

    /// A packet whose messages go to `parts` shards, at least one. Its name for them; `None` if too
    /// many are open.
    pub fn open(&mut self, from: PeerId, parts: u16, confirm: Confirm) -> Option<u32> {
        let open = Some(Open { from, parts, confirm });
        match self.free.pop() {
            Some(packet) => {
                self.open[packet as usize] = open;
                Some(packet)
            }
            None if self.open.len() < OPEN_PACKETS_MAX => {
                self.open.push(open);
                Some((self.open.len() - 1) as u32)
            }
            None => None,
        }
    }

    /// A shard is through with its part. With the last one: who is to hear, and what.
    pub fn handle_done(&mut self, packet: u32, missed: &[u16]) -> Option<(PeerId, Confirm)> {
        let slot = self.open.get_mut(packet as usize)?;
        let open = slot.as_mut()?;
        open.confirm.missed.extend_from_slice(missed);
        open.parts -= 1;
        if open.parts > 0 {
            return None;
        }
        let open = slot.take()?;
        self.free.push(packet);
        Some((open.from, open.confirm))
    }

    /// Packets that are open.
    pub fn len(&self) -> usize {
        self.open.len() - self.free.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_or_twice_is_refused() {
        let mut inbound = Inbound::default();
        let (a, b) = (Incarnation(1), Incarnation(2));
        assert!(inbound.is_next(a, 5) && inbound.is_next(a, 6) && !inbound.is_next(a, 6) && !inbound.is_next(a, 4));
        assert!(inbound.is_next(a, 9) && inbound.is_next(b, 1));
        // Over the end of the circle, and to us and to all apart.
        let c = Incarnation(3);
        assert!(inbound.is_next(c, u32::MAX) && inbound.is_next(c, 1) && !inbound.is_next(c, u32::MAX));
        assert!(inbound.is_next_to_all(b, 1) && !inbound.is_next_to_all(b, 1));
        // What one who is gone has said is not said again.
        inbound.gone(a);
        assert!(!inbound.is_next(a, 9) && inbound.is_next(a, 10));
        assert!(!inbound.is_next(b, 1));
        for n in 0..2 * RETIRED_MAX as u64 {
            inbound.is_next(Incarnation(100 + n), 1);
            inbound.gone(Incarnation(100 + n));
        }
        assert!(inbound.last.len() <= RETIRED_MAX + 3);
        inbound.begin_channel();
        assert!(inbound.is_next(b, 1));
    }

    #[test]
    fn the_last_part_confirms() {
        let mut inbound = Inbound::default();
        let confirm = Confirm {
            sequence: 3,
            failed: vec![9],
            ..Confirm::default()
        };
        let packet = inbound.open(PeerId(1), 2, confirm).unwrap();
        assert_eq!(inbound.handle_done(packet, &[1]), None);
        let (peer, confirm) = inbound.handle_done(packet, &[0, 2]).unwrap();
        assert_eq!((peer, confirm.sequence), (PeerId(1), 3));
        assert_eq!((confirm.missed, confirm.failed), (vec![1, 0, 2], vec![9]));
        assert_eq!(inbound.handle_done(packet, &[]), None);
        assert!(inbound.is_empty());
    }
}
