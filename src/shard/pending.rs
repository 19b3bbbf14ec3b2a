//! Sockets that hold no place: TLS and request heads that are half-way in, plain HTTP, WebSocket connections whose user is not
//! known yet, refusals on their way out, and ended connections whose peers have not answered.
//!
//! Owned by the shard. `limits.connections` does not count them, and none of them shows who it is, so they have a limit of
//! their own, and over it the oldest is closed: who behaves is done within a few round trips and so is among the youngest,
//! however many others say nothing. Refusing the newest instead would let the silent keep everybody out.

use super::core::{Command, Core};
use super::strangers::LISTEN_US;
use crate::metrics::{CloseCause, RefusalReason};
use crate::session::{Stage, Tally};
use crate::settings::HANDSHAKES_PER_SHARD;

/// How many go when descriptors run out; accepting is tried again a moment later.
const GIVEN_UP_AT_ONCE: usize = 64;

impl Core {
    /// How many this shard may have: its share of `limits.handshakes`, and one in any case.
    fn pending_max(&self) -> usize {
        let shards = usize::from(self.kernel.homes.shards());
        self.kernel
            .settings
            .limits
            .handshakes
            .map_or(HANDSHAKES_PER_SHARD, |all| {
                let share = all / shards + usize::from(self.kernel.me.index() < all % shards);
                share.max(1)
            })
    }

    /// Closes the oldest while there are too many. Once a turn for those that ended, at once for who is accepted.
    pub(super) fn trim_pending(&mut self) {
        let most = self.pending_max();
        while self.kernel.pending.len() > most && self.close_oldest() {}
    }

    /// There are no descriptors left: who has said nothing for longest makes room, or the silent would keep everybody out.
    pub fn handle_out_of_descriptors(&mut self) {
        let mut left = GIVEN_UP_AT_ONCE.min(self.kernel.pending.len());
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
            let Some((key, ended)) = self.kernel.pending.pop_oldest() else {
                break None;
            };
            let Some(conn) = self.kernel.connection(key) else {
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
            self.kernel.pending.push(key, tally);
        }
        let Some(slot) = oldest else {
            return false;
        };
        self.kernel.count_refused(slot, RefusalReason::HandshakeLimit);
        // Who has no answer to a request yet loses nothing by a reset, and may be one of very many who would leave a
        // half-closed connection to the kernel each.
        let asked = !matches!(self.kernel.conn(slot).stage, Stage::Head(_));
        self.end(slot, CloseCause::Abrupt);
        if asked {
            self.kernel.abandon(slot, false);
        } else {
            self.kernel.close_by(slot, Command::Reset);
        }
        true
    }

    /// Listens to as many as one turn may.
    pub(super) fn arm_pending(&mut self) {
        while self.strangers.may_go_on()
            && let Some(key) = self.kernel.pending.to_arm.pop_front()
        {
            let Some(conn) = self.kernel.connection(key) else {
                // Gone meanwhile.
                continue;
            };
            if conn.wants_once() {
                self.strangers.spend(LISTEN_US);
                self.kernel.command(Command::ReceiveOnce(key));
            } else {
                conn.armed = false;
                self.kernel.rearm(key);
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
        let alice = core.kernel.homes.hash("alice");
        assert!(core.messages.deliver(&mut core.kernel, (alice, "alice"), b"a message"));
        testing::carry_out(&mut core);
        for key in devices {
            core.kernel.begin_close(key.slot, CloseReason::Administrator);
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
