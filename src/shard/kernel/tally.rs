//! By which limit each socket is counted, and the order in which those without a permit came.
//!
//! Invariant *tally*: each socket of the shard is counted by exactly one limit, which
//! `Connection::tally` names. So a shard's sockets are at most its permits of `limits.connections`
//! and its share of `limits.handshakes`, whatever peers do, and those that ended in this turn. They
//! go with the next, when their close frames have left.

use std::collections::VecDeque;

use crate::engine::SocketKey;
use crate::session::Tally;

/// Keys that are out of date may be as many as the others and these.
pub(super) const STALE_MAX: usize = 64;

/// Sockets of a shard that `limits.handshakes` counts.
#[derive(Debug, Default)]
pub(in crate::shard) struct Pending {
    /// In the order in which they came; among them some that have a permit by now, or have gone.
    pub(super) came: Line,
    /// In the order in which they ended; among them some that have gone. A line of its own, or one
    /// that ended just now would pass for as old as its accept.
    pub(super) ended: Line,
    /// Numbers both lines, so that the oldest of both is known.
    pub(super) next: u64,
    pub(super) count: usize,
    /// Sockets whose next receive is due.
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
