//! Sockets that hold no permit of `limits.connections`, and which of them goes when there are too
//! many.
//!
//! Owned by the shard's thread. Pending are TLS handshakes and request heads that are half-way in,
//! plain HTTP, WebSocket connections whose user is not known yet, refusals on their way out, and
//! ended connections whose peers have not answered.
//!
//! `limits.connections` does not count them, and none of them shows its user. So they have a limit
//! of their own, and over it the oldest is closed. A well-behaved client is done within a few round
//! trips, and so it is among the youngest, however many others say nothing. With the newest refused
//! instead, the silent would keep everybody out.

use super::Admission;
use super::budget::LISTEN_US;
use crate::metrics::RefusalReason;
use crate::session::{Stage, Tally};
use crate::settings::HANDSHAKES_PER_SHARD;
use crate::shard::kernel::{Command, Kernel};

/// How many are given up when descriptors run out; accepting is tried again a moment later.
const GIVEN_UP_AT_ONCE: usize = 64;

/// The oldest pending socket, which shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) struct Oldest {
    /// Its slot.
    pub(in crate::shard) slot: u32,
    /// False if it has not got an answer to a request yet. Its client loses nothing by a reset; and
    /// it may be one of very many, each of which would leave a half-closed connection to the
    /// kernel.
    pub(in crate::shard) was_answered: bool,
}

/// How many this shard may have: its share of `limits.handshakes`, and one in any case.
fn pending_max(kernel: &Kernel) -> usize {
    let shards = usize::from(kernel.homes.shards());
    kernel.settings.limits.handshakes.map_or(HANDSHAKES_PER_SHARD, |all| {
        let share = all / shards + usize::from(kernel.me.index() < all % shards);
        share.max(1)
    })
}

impl Admission {
    /// How many pending sockets are over the limit.
    pub(in crate::shard) fn pending_over(&self, kernel: &Kernel) -> usize {
        kernel.pending.len().saturating_sub(pending_max(kernel))
    }

    /// How many pending sockets shall make room when there are no descriptors left. The longest
    /// silent go, or they would keep everybody out.
    pub(in crate::shard) fn pending_without_descriptors(&self, kernel: &Kernel) -> usize {
        GIVEN_UP_AT_ONCE.min(kernel.pending.len())
    }

    /// Counts the oldest pending socket as refused; the core ends it. Spared are an administrator's
    /// request that is being carried out, which gets its answer first, and a connection whose last
    /// words leave at the end of this turn. Without its close frame a client would come back that
    /// shall not.
    pub(in crate::shard) fn give_up_oldest(&mut self, kernel: &mut Kernel) -> Option<Oldest> {
        let mut spared = Vec::new();
        let oldest = loop {
            let Some((key, ended)) = kernel.pending.pop_oldest() else {
                break None;
            };
            let Some(conn) = kernel.connection(key) else {
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
            kernel.pending.push(key, tally);
        }
        let slot = oldest?;
        kernel.count_refused(slot, RefusalReason::HandshakeLimit);
        let was_answered = !matches!(kernel.conn(slot).stage, Stage::Head(_));
        Some(Oldest { slot, was_answered })
    }

    /// Listens to the next pending socket, if this turn may listen to one more. False if none is
    /// left that it may.
    pub(in crate::shard) fn listen_to_next(&mut self, kernel: &mut Kernel) -> bool {
        if !self.budget.may_go_on() {
            return false;
        }
        let Some(key) = kernel.pending.to_arm.pop_front() else {
            return false;
        };
        // It may have gone meanwhile.
        if let Some(conn) = kernel.connection(key) {
            if conn.wants_once() {
                self.budget.spend(LISTEN_US);
                kernel.command(Command::ReceiveOnce(key));
            } else {
                conn.armed = false;
                kernel.rearm(key);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::tests as testing;
    use crate::wire::ws::close::CloseReason;

    /// Each client that is closed hears why, however many are closed at once. What a client may not
    /// have read is counted, also where its socket goes before its time.
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
        core.serve_pre_auth();
        let (told, commands) = testing::carry_out(&mut core);
        assert_eq!(told, devices, "{commands:?}");
        testing::at(&mut core, 1);
        core.serve_pre_auth();
        let (_, commands) = testing::carry_out(&mut core);
        assert!(
            matches!(commands[..], [Command::Abandon(oldest)] if oldest == devices[0]),
            "{commands:?}"
        );
        core.check_invariants();
    }
}
