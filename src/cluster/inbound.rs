//! What comes from other gateways: packets whose messages are with the shards, and what to say of them.
//!
//! Pure; owned by the control thread. A packet that comes behind a later one of the same gateway is refused as a whole:
//! so nothing is delivered twice or out of order, whatever happens on the way (two connections while a slot of a Redis
//! Cluster moves), and its senders hear `failed`.

use std::collections::BTreeMap;

use super::packet::Confirm;
use crate::router::locations::Berth;

/// Packets that the shards have not finished: more than their lanes can hold.
const OPEN_PACKETS_MAX: usize = 65_536;

#[derive(Debug)]
struct Open {
    from: Berth,
    /// Shards that have not answered.
    parts: u16,
    confirm: Confirm,
}

/// Packets under way in this gateway.
#[derive(Debug, Default)]
pub struct Inbound {
    open: Vec<Option<Open>>,
    free: Vec<u32>,
    last: BTreeMap<Berth, u32>,
}

impl Inbound {
    /// True if a packet is the latest of its gateway so far; it is remembered as that.
    pub fn is_next(&mut self, from: Berth, sequence: u32) -> bool {
        let last = self.last.entry(from).or_insert(sequence.wrapping_sub(1));
        // Half of the circle is ahead, half is behind.
        let ahead = sequence.wrapping_sub(*last);
        let next = (1..1 << 31).contains(&ahead);
        if next {
            *last = sequence;
        }
        next
    }

    /// We are heard on another channel from now on: the others begin to count anew there, and what is still said on the
    /// old one is not heard.
    pub fn begin_channel(&mut self) {
        self.last.clear();
    }

    /// A gateway is gone.
    pub fn gone(&mut self, from: Berth) {
        self.last.remove(&from);
    }

    /// A packet whose messages go to `parts` shards, at least one. Its name for them; `None` if too many are open.
    pub fn open(&mut self, from: Berth, parts: u16, confirm: Confirm) -> Option<u32> {
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
    pub fn handle_done(&mut self, packet: u32, missed: &[u16]) -> Option<(Berth, Confirm)> {
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
        let (a, b) = (Berth(1), Berth(2));
        assert!(inbound.is_next(a, 5) && inbound.is_next(a, 6) && !inbound.is_next(a, 6) && !inbound.is_next(a, 4));
        assert!(inbound.is_next(a, 9) && inbound.is_next(b, 1));
        inbound.gone(a);
        assert!(inbound.is_next(a, u32::MAX) && inbound.is_next(a, 1) && !inbound.is_next(a, u32::MAX));
        assert!(!inbound.is_next(b, 1));
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
        let packet = inbound.open(Berth(1), 2, confirm).unwrap();
        assert_eq!(inbound.handle_done(packet, &[1]), None);
        let (berth, confirm) = inbound.handle_done(packet, &[0, 2]).unwrap();
        assert_eq!((berth, confirm.sequence), (Berth(1), 3));
        assert_eq!((confirm.missed, confirm.failed), (vec![1, 0, 2], vec![9]));
        assert_eq!(inbound.handle_done(packet, &[]), None);
        assert!(inbound.is_empty());
    }
}
