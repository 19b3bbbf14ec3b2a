//! How publications and broadcasts reach the connections of this shard, a share of them per turn.

use bytes::Bytes;

use super::Channels;
use super::tables::{Broadcast, Budget};
use crate::lanes::ShardReply;
use crate::metrics::{DropReason, SentKind};
use crate::session::Stage;
use crate::shard::kernel::Kernel;
use crate::wire::framing::Encoded;

/// Outboxes that one turn may fill with publications and broadcasts: at 4 to 5 µs each, nearly all
/// the kernel's, this is how long a client waits that says something meanwhile. A turn in which
/// somebody did fills few, each one after it some more: so whoever talks waits for a tenth of a
/// millisecond, the first one after a silence for half of one, and where nobody talks a delivery
/// costs a twelfth less (4.0 µs with 128 in a turn, 4.1 with 64, 4.3 with 32).
const FANOUT_LEAST: u32 = 8;
const FANOUT_STEP: u32 = 4;
const FANOUT_MOST: u32 = 128;
/// Bytes that go into outboxes that way in one turn, as many as a turn takes from sockets.
const FANOUT_BYTES_PER_TURN: usize = 512 * 1024;
/// Frames that go to one subscriber together. One send then fills a socket buffer well.
const VISIT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of broadcasts that may be on their way.
const BROADCAST_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Channels {
    /// Puts a message on its way to every connection. `ticket`: to be replied to with their number.
    pub(in crate::shard) fn queue_broadcast(&mut self, kernel: &mut Kernel, message: Encoded, ticket: Option<u32>) {
        if self.fan_out.broadcast_bytes > 0 && self.fan_out.broadcast_bytes + message.bytes() > BROADCAST_BYTES_MAX {
            kernel.metrics().dropped(DropReason::BroadcastQueueFull);
            if let Some(ticket) = ticket {
                kernel.reply(ticket, ShardReply::Count(0));
            }
            return;
        }
        self.fan_out.broadcast_bytes += message.bytes();
        let broadcast = Broadcast {
            message,
            next: 0,
            taken: 0,
            ticket,
        };
        self.fan_out.broadcasts.push_back(broadcast);
    }

    /// Goes on with what is on its way to many, as far as one turn may.
    pub(in crate::shard) fn fan_out(&mut self, kernel: &mut Kernel) {
        self.go_on_reviewing(kernel);
        self.fan_out.outboxes = if std::mem::take(&mut kernel.turn.interactive) {
            FANOUT_LEAST
        } else {
            (self.fan_out.outboxes + FANOUT_STEP).min(FANOUT_MOST)
        };
        let mut budget = Budget {
            outboxes: self.fan_out.outboxes,
            bytes: FANOUT_BYTES_PER_TURN,
        };
        // Half of a turn is for publications, if there are any.
        let share = if self.table.is_busy() { 2 } else { 1 };
        let mut of_broadcasts = Budget {
            outboxes: budget.outboxes / share,
            bytes: budget.bytes / share as usize,
        };
        self.go_on_broadcasting(kernel, &mut of_broadcasts);
        budget.outboxes -= budget.outboxes / share - of_broadcasts.outboxes;
        // Several frames together must not make a slow consumer of one who takes one at a time.
        let visit_bytes_max = VISIT_BYTES_MAX.min(kernel.settings.limits.outbox_bytes / 4);
        self.release_held(kernel);
        // Each channel once: its subscribers send what they have before there is more for them.
        for _ in 0..self.table.busy() {
            if budget.is_spent() {
                break;
            }
            let Some(channel) = self.table.next_busy(visit_bytes_max) else {
                break;
            };
            let mut held = false;
            while !budget.is_spent()
                && let Some((slot, frames, publications)) = self.table.next_visit(channel)
            {
                held = self.must_wait(kernel, channel, slot, frames.len());
                if held || self.is_about_to_send(kernel, slot, frames.len()) {
                    self.table.put_back(channel, slot, publications);
                    break;
                }
                budget.spend(frames.len());
                self.append_publications(kernel, slot, &frames, publications);
            }
            if held {
                self.table.hold(channel);
            } else {
                self.table.pause(channel);
            }
        }
        self.tell_no_longer_crowded(kernel);
    }

    /// True if [`Core::fan_out`] has more to do.
    pub(in crate::shard) fn has_fan_out(&self) -> bool {
        self.table.is_busy() || !self.fan_out.broadcasts.is_empty() || self.reviews.is_busy()
    }

    /// True if this much would fill more than half of an outbox that the kernel takes from at the
    /// end of this turn. Who keeps up is no slow consumer, however much is published in a turn; the
    /// other half is for what cannot wait.
    fn is_about_to_send(&mut self, kernel: &mut Kernel, slot: u32, bytes: usize) -> bool {
        let half = kernel.settings.limits.outbox_bytes / 2;
        let conn = kernel.conn(slot);
        let is_stuck = conn.outbox.as_ref().is_some_and(|outbox| outbox.in_flight());
        !is_stuck && conn.has_no_room(bytes, half)
    }

    pub(in crate::shard) fn append_publications(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        frames: &Bytes,
        publications: u32,
    ) {
        if kernel.append_shared_frames(slot, frames, publications, SentKind::Publication) {
            kernel.metrics().deliveries.add(publications.into());
        }
    }

    /// Before an administrator closes a connection: what was broadcast before that wish comes
    /// before the close.
    pub(in crate::shard) fn settle_broadcasts(&mut self, kernel: &mut Kernel, slot: u32) {
        let mut broadcasts = std::mem::take(&mut self.fan_out.broadcasts);
        for broadcast in broadcasts.iter_mut().filter(|broadcast| broadcast.next <= slot) {
            // A slow consumer is closed by the first that it has no room for.
            if matches!(kernel.conn(slot).stage, Stage::Open) {
                let taken = kernel.append_shared(slot, &broadcast.message, SentKind::Broadcast);
                broadcast.taken += u64::from(taken);
            }
        }
        self.fan_out.broadcasts = broadcasts;
    }

    fn go_on_broadcasting(&mut self, kernel: &mut Kernel, budget: &mut Budget) {
        while !budget.is_spent()
            && let Some(mut broadcast) = self.fan_out.broadcasts.pop_front()
        {
            while !budget.is_spent() && (broadcast.next as usize) < kernel.connections.len() {
                let slot = broadcast.next;
                broadcast.next += 1;
                if matches!(kernel.conn(slot).stage, Stage::Open) {
                    budget.spend(broadcast.message.bytes());
                    let taken = kernel.append_shared(slot, &broadcast.message, SentKind::Broadcast);
                    broadcast.taken += u64::from(taken);
                }
            }
            if (broadcast.next as usize) < kernel.connections.len() {
                self.fan_out.broadcasts.push_front(broadcast);
            } else {
                self.fan_out.broadcast_bytes -= broadcast.message.bytes();
                if let Some(ticket) = broadcast.ticket {
                    kernel.reply(ticket, ShardReply::Count(broadcast.taken));
                }
            }
        }
    }
}
