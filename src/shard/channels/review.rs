//! Subscriptions that end because their right has.
//!
//! Owned by the shard. `publish`, `message` and `presence` ask each time. A subscription is
//! permitted once and then lasts, so it is looked at again when its connection shows a new token,
//! or when the configuration changes for everybody:
//!
//! ```text
//! new token ─────> review of one connection ──┐
//! new settings ──> one after the other ───────┴─> a few subscriptions per turn ──> `unsubscribed`, `notPermitted`
//! ```
//!
//! Invariant *looked at*: after a change of rights, each subscription that was there before is
//! looked at once or more. A connection keeps its subscriptions in a list; the review goes from its
//! end to its beginning, and whatever moves in between moves towards the beginning, or was
//! permitted by the new rights.

use super::Channels;
use crate::shard::kernel::Kernel;
use crate::wire::message::{EndReason, ServerMessage};

/// Subscriptions that one turn looks at: 10 µs with a few patterns of usual length.
const REVIEWS_PER_TURN: usize = 64;
/// Connections without subscriptions that one turn passes over meanwhile.
const SLOTS_PER_TURN: usize = 4_096;

impl Channels {
    /// Ends a subscription that the client did not end, and tells it. Returns false if there was
    /// none.
    pub(in crate::shard) fn end_subscription(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        channel: &str,
        reason: EndReason,
    ) -> bool {
        if !self.take_out(kernel, slot, channel) {
            return false;
        }
        kernel.send(slot, &ServerMessage::SubscriptionEnded { channel, reason });
        true
    }

    /// The rights of this connection have changed.
    pub(in crate::shard) fn review(&mut self, slot: u32) {
        let subscriptions = self.table.count(slot);
        if subscriptions > 0 {
            self.reviews.left.insert(slot, subscriptions);
        }
    }

    /// The rights of all connections may have changed.
    pub(in crate::shard) fn review_all(&mut self) {
        self.reviews.next_slot = Some(0);
    }

    /// Looks at as many subscriptions as one turn may.
    pub(in crate::shard) fn go_on_reviewing(&mut self, kernel: &mut Kernel) {
        if !self.reviews.is_busy() {
            return;
        }
        let mut passed = 0;
        for _ in 0..REVIEWS_PER_TURN {
            while self.reviews.left.is_empty() {
                let Some(slot) = self.reviews.next_slot.filter(|_| passed < SLOTS_PER_TURN) else {
                    return;
                };
                passed += 1;
                let is_there = (slot as usize) < kernel.connections.len();
                self.reviews.next_slot = is_there.then_some(slot + 1);
                if is_there {
                    self.review(slot);
                }
            }
            self.review_next(kernel);
        }
    }

    /// Looks at the next subscription of the first connection that has some left.
    fn review_next(&mut self, kernel: &mut Kernel) {
        let Some((slot, left)) = self.reviews.left.pop_first() else {
            return;
        };
        let place = left - 1;
        if place > 0 {
            self.reviews.left.insert(slot, place);
        }
        // It may have fewer by now.
        let Some(channel) = self.table.nth(slot, place) else {
            return;
        };
        let name = self.table.name(channel);
        if !kernel.may_subscribe(slot, name) {
            let name = name.to_owned();
            self.end_subscription(kernel, slot, &name, EndReason::NotPermitted);
        }
    }
}
