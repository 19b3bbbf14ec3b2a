//! By which limit each socket is counted, and the order in which those without a permit came.
//!
//! Invariant *tally*: each socket of the shard is counted by exactly one limit, which `Connection::tally` names. So a shard's
//! sockets are at most its permits of `limits.connections` and its share of `limits.handshakes`, whatever peers do, and those
//! that ended in this turn. They go with the next, when their close frames have left.

use std::collections::VecDeque;

use super::Kernel;
use crate::engine::SocketKey;
use crate::session::Tally;

/// Keys that are out of date may be as many as the others and these.
const STALE_MAX: usize = 64;

/// Sockets of a shard that `limits.handshakes` counts.
#[derive(Debug, Default)]
pub(in crate::shard) struct Pending {
    /// In the order in which they came; among them some that have a permit by now, or have gone.
    came: Line,
    /// In the order in which they ended; among them some that have gone. A line of its own, or one that ended just now would
    /// pass for as old as its accept.
    ended: Line,
    /// Numbers both lines, so that the oldest of both is known.
    next: u64,
    count: usize,
    /// Those whose next receive is due.
    pub(in crate::shard) to_arm: VecDeque<SocketKey>,
}

type Line = VecDeque<(u64, SocketKey)>;

impl Pending {
    pub(in crate::shard) fn len(&self) -> usize {
        self.count
    }

    /// It is the youngest.
    pub(in crate::shard) fn push(&mut self, key: SocketKey, tally: Tally) {
        let number = self.next;
        self.next += 1;
        let line = match tally {
            Tally::Ended => &mut self.ended,
            _ => &mut self.came,
        };
        line.push_back((number, key));
    }

    /// The one that is next by age in either line, taken out.
    pub(in crate::shard) fn pop_oldest(&mut self) -> Option<(SocketKey, bool)> {
        let numbers = [&self.came, &self.ended].map(|line| line.front().map_or(u64::MAX, |(number, _)| *number));
        let ended = numbers[1] < numbers[0];
        let line = if ended { &mut self.ended } else { &mut self.came };
        line.pop_front().map(|(_, key)| (key, ended))
    }
}

impl Kernel {
    /// From now on the socket is counted like this: the only function that writes a tally. The caller takes and gives
    /// back permits of the gateway, as a connection on its way between shards keeps its permit.
    pub(in crate::shard) fn count_as(&mut self, slot: u32, tally: Tally) {
        let key = self.key(slot);
        let before = std::mem::replace(&mut self.conn(slot).tally, tally);
        if !before.is_connection() && tally.is_connection() {
            self.conn(slot).id = self.ids.next(self.now.wall_ms);
        }
        let connections = &self.metrics().connections;
        let others = connections.get() - u64::from(before.is_connection());
        connections.set(others + u64::from(tally.is_connection()));
        self.pending.count -= usize::from(before.is_pending());
        self.pending.count += usize::from(tally.is_pending());
        let enters = matches!(
            (before, tally),
            (Tally::Nobody, Tally::Pending) | (Tally::Permit | Tally::PreAuth, Tally::Ended)
        );
        if enters {
            self.pending.push(key, tally);
            self.forget_stale();
        }
    }

    /// Keys of sockets that are counted otherwise by now cost memory: they are dropped before they are many.
    fn forget_stale(&mut self) {
        if self.pending.came.len() + self.pending.ended.len() <= 2 * self.pending.count + STALE_MAX {
            return;
        }
        let connections = &self.connections;
        let is_in = |key: SocketKey, ended: bool| {
            let conn = &connections[key.slot as usize];
            conn.generation == key.generation && conn.tally.is_pending() && (conn.tally == Tally::Ended) == ended
        };
        self.pending.came.retain(|(_, key)| is_in(*key, false));
        self.pending.ended.retain(|(_, key)| is_in(*key, true));
    }
}
