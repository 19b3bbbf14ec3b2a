//! Sockets that are no connections: TLS and request heads that are half-way in, plain HTTP, refusals on their way out, and
//! connections that we closed and whose peers have not answered.
//!
//! Owned by the shard. `limits.connections` does not count them, and none of them shows who it is, so they have a limit of
//! their own, and over it the oldest is closed: who behaves is done within a few round trips and so is among the youngest,
//! however many others say nothing. Refusing the newest instead would let the silent keep everybody out.

use std::collections::VecDeque;

use super::core::{Command, Core};
use super::strangers::LISTEN_US;
use crate::engine::SocketKey;
use crate::session::Stage;

/// How many a shard has where nothing is configured: 10,000 connects per second that take 400 ms each.
const SHARE: usize = 4096;
/// The label of those that are closed.
const HANDSHAKE_LIMIT: &str = "handshake_limit";
/// Keys that are out of date may be as many as the others and these.
const STALE_MAX: usize = 64;
/// How many go when descriptors run out; accepting is tried again a moment later.
const GIVEN_UP_AT_ONCE: usize = 64;

/// A shard's.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// In the order in which they came; among them some that are connections by now, or have gone.
    order: VecDeque<SocketKey>,
    count: usize,
    /// Those whose next receive is due.
    pub(super) to_arm: VecDeque<SocketKey>,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

impl Core {
    /// This socket is nobody's, yet or any more. If there are too many of these, the oldest goes.
    pub(super) fn begin_pending(&mut self, slot: u32) {
        let key = self.key(slot);
        self.conn(slot).pending = true;
        self.pending.count += 1;
        self.pending.order.push_back(key);
        let configured = self.settings.limits.handshakes;
        let share = configured.map_or(SHARE, |all| all.div_ceil(self.homes.shards().into()));
        while self.pending.count > share && self.close_oldest_but(Some(key)) {}
        if self.pending.order.len() > 2 * self.pending.count + STALE_MAX {
            let connections = &self.connections;
            self.pending.order.retain(|key| {
                let conn = &connections[key.slot as usize];
                conn.pending && conn.generation == key.generation
            });
        }
    }

    /// There are no descriptors left: who has said nothing for longest makes room, or the silent would keep everybody out.
    pub fn handle_out_of_descriptors(&mut self) {
        let mut left = GIVEN_UP_AT_ONCE.min(self.pending.count);
        while left > 0 && self.close_oldest_but(None) {
            left -= 1;
        }
    }

    /// Closes the oldest, if there is one. An administrator's request that is being carried out gets its answer, and `but` is
    /// only now what it is, even if it was so earlier as well.
    fn close_oldest_but(&mut self, but: Option<SocketKey>) -> bool {
        while let Some(oldest) = self.pending.order.pop_front() {
            let may_go = self.connection(oldest).is_some_and(|conn| {
                let awaited = matches!(&conn.stage, Stage::Http(http) if http.is_waiting());
                conn.pending && !awaited
            });
            if may_go && but != Some(oldest) {
                self.metrics().refused(HANDSHAKE_LIMIT);
                // Who has no answer to a request yet loses nothing by a reset, and may be one of very many who would leave a
                // half-closed connection to the kernel each.
                let asked = !matches!(self.conn(oldest.slot).stage, Stage::Head(_));
                self.close_by(oldest.slot, if asked { Command::Close } else { Command::Reset });
                return true;
            }
        }
        false
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

    /// It is a connection now, or closed.
    pub(super) fn end_pending(&mut self, slot: u32) {
        if std::mem::take(&mut self.conn(slot).pending) {
            self.pending.count -= 1;
        }
    }
}
