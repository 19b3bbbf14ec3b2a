//! Sockets that hold no place: TLS and request heads that are half-way in, plain HTTP, WebSocket connections whose user is not
//! known yet, refusals on their way out, and ended connections whose peers have not answered.
//!
//! Owned by the shard. `limits.connections` does not count them, and none of them shows who it is, so they have a limit of
//! their own, and over it the oldest is closed: who behaves is done within a few round trips and so is among the youngest,
//! however many others say nothing. Refusing the newest instead would let the silent keep everybody out.
//!
//! Invariant *tally*: each socket of the shard is counted by exactly one limit, which `Connection::tally` names. So a shard's
//! sockets are at most its places and its share of `limits.handshakes`, whatever peers do, and those that ended in this turn: they
//! go with the next, when their close frames have left.

use std::collections::VecDeque;

use super::core::{Command, Core};
use super::strangers::LISTEN_US;
use crate::engine::SocketKey;
use crate::metrics::{CloseCause, RefusalReason};
use crate::session::{Stage, Tally};
use crate::settings::HANDSHAKES_PER_SHARD;

/// Keys that are out of date may be as many as the others and these.
const STALE_MAX: usize = 64;
/// How many go when descriptors run out; accepting is tried again a moment later.
const GIVEN_UP_AT_ONCE: usize = 64;

/// A shard's.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// In the order in which they came; among them some that have a place by now, or have gone.
    came: Line,
    /// In the order in which they ended; among them some that have gone. A line of its own, or one that ended just now would
    /// pass for as old as its accept.
    ended: Line,
    /// Numbers both lines, so that the oldest of both is known.
    next: u64,
    count: usize,
    /// Those whose next receive is due.
    pub(super) to_arm: VecDeque<SocketKey>,
}

type Line = VecDeque<(u64, SocketKey)>;

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// It is the youngest.
    fn push(&mut self, key: SocketKey, tally: Tally) {
        let number = self.next;
        self.next += 1;
        let line = match tally {
            Tally::Ended => &mut self.ended,
            _ => &mut self.came,
        };
        line.push_back((number, key));
    }

    /// The one that is next by age in either line, taken out.
    fn pop_oldest(&mut self) -> Option<(SocketKey, bool)> {
        let numbers = [&self.came, &self.ended].map(|line| line.front().map_or(u64::MAX, |(number, _)| *number));
        let ended = numbers[1] < numbers[0];
        let line = if ended { &mut self.ended } else { &mut self.came };
        line.pop_front().map(|(_, key)| (key, ended))
    }
}

impl Core {
    /// From now on the socket is counted like this: the only function that writes a tally. Places of the gateway are taken and
    /// given back by who calls it, as a connection on its way between shards keeps one.
    pub(super) fn count_as(&mut self, slot: u32, tally: Tally) {
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
            (Tally::Nobody, Tally::Pending) | (Tally::Place | Tally::Stranger, Tally::Ended)
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

    /// How many this shard may have: its share of `limits.handshakes`, and one in any case.
    fn pending_max(&self) -> usize {
        let shards = usize::from(self.homes.shards());
        self.settings.limits.handshakes.map_or(HANDSHAKES_PER_SHARD, |all| {
            let share = all / shards + usize::from(self.me.index() < all % shards);
            share.max(1)
        })
    }

    /// Closes the oldest while there are too many. Once a turn for those that ended, at once for who is accepted.
    pub(super) fn trim_pending(&mut self) {
        let most = self.pending_max();
        while self.pending.count > most && self.close_oldest() {}
    }

    /// There are no descriptors left: who has said nothing for longest makes room, or the silent would keep everybody out.
    pub fn handle_out_of_descriptors(&mut self) {
        let mut left = GIVEN_UP_AT_ONCE.min(self.pending.count);
        while left > 0 && self.close_oldest() {
            left -= 1;
        }
    }

    /// Closes the oldest, if there is one. Spared are an administrator's request that is being carried out, which gets its
    /// answer first, and a connection whose last words leave at the end of this turn: without its close frame a client that
    /// shall not come back would.
    fn close_oldest(&mut self) -> bool {
        let mut spared = Vec::new();
        let oldest = loop {
            let Some((key, ended)) = self.pending.pop_oldest() else {
                break None;
            };
            let Some(conn) = self.connection(key) else {
                continue;
            };
            if !conn.tally.is_pending() || (conn.tally == Tally::Ended) != ended {
                continue;
            }
            if ended && conn.dirty || matches!(&conn.stage, Stage::Http(http) if http.is_waiting()) {
                spared.push((key, conn.tally));
                continue;
            }
            break Some(key.slot);
        };
        for (key, tally) in spared {
            self.pending.push(key, tally);
        }
        let Some(slot) = oldest else {
            return false;
        };
        self.count_refused(slot, RefusalReason::HandshakeLimit);
        // Who has no answer to a request yet loses nothing by a reset, and may be one of very many who would leave a
        // half-closed connection to the kernel each.
        let asked = !matches!(self.conn(slot).stage, Stage::Head(_));
        self.end(slot, CloseCause::Abrupt);
        if asked {
            self.abandon(slot, false);
        } else {
            self.close_by(slot, Command::Reset);
        }
        true
    }

    /// Listens to as many as one turn may.
    pub(super) fn arm_pending(&mut self) {
        while self.strangers.may_go_on()
            && let Some(key) = self.pending.to_arm.pop_front()
        {
            let Some(conn) = self.connection(key) else {
                // Gone meanwhile.
                continue;
            };
            if conn.wants_once() {
                self.strangers.spend(LISTEN_US);
                self.command(Command::ReceiveOnce(key));
            } else {
                conn.armed = false;
                self.rearm(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests as testing;
    use super::*;
    use crate::wire::ws::close::CloseReason;

    /// Whoever is closed hears why, however many are closed at once; and what one may not have read is counted, also where its
    /// socket goes before its time.
    #[test]
    fn ended_connections_go_when_their_last_words_have_left() {
        let mut core = testing::core(|config| config.limits.handshakes = Some(1));
        let devices = [0, 1].map(|slot| testing::connect(&mut core, slot, "?user=alice"));
        let alice = core.homes.hash("alice");
        assert!(core.deliver(alice, "alice", b"a message"));
        testing::carry_out(&mut core);
        for key in devices {
            core.begin_close(key.slot, CloseReason::Administrator);
            core.settle();
        }
        core.serve_strangers();
        let (told, commands) = testing::carry_out(&mut core);
        assert_eq!(told, devices, "{commands:?}");
        testing::at(&mut core, 1);
        core.serve_strangers();
        let (_, commands) = testing::carry_out(&mut core);
        assert!(
            matches!(commands[..], [Command::Abandon(oldest)] if oldest == devices[0]),
            "{commands:?}"
        );
        core.check_invariants();
    }
}
