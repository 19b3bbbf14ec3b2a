//! Direct messages: from a user id to outboxes here, to another shard, or to other gateways.
//!
//! Owned by the shard. All messages to one user pass the user's home shard, so that they come in
//! order everywhere.

mod elsewhere;
mod parked;

use super::kernel::Kernel;
use crate::lanes::{Batch, LaneFull, MessageItem, OutgoingMessage, ToShard};
use crate::metrics::{DropReason, SentKind};
use crate::router::UserHash;
use crate::wire::codec::Codec;
use crate::wire::framing::Encoded;
use crate::wire::message::{AckStatus, ErrorCode, Message, ServerMessage};
use parked::Parked;

/// Bodies up to this size are copied into every device's outbox; larger ones are shared.
const SHARE_BYTES_MIN: usize = 1024;

/// Messages of a shard that are on their way to other gateways or from them.
#[derive(Debug, Default)]
pub(super) struct Messages {
    parked: Parked,
    /// Indexes, in the packet that is being handled, of messages that no connection took.
    missed: Vec<u16>,
}

impl Messages {
    /// Users whose location is being asked for.
    pub(super) fn asked(&self) -> usize {
        self.parked.asked()
    }

    /// Queues a `message` frame for every connection of a user who lives here. Returns true if one
    /// took it.
    pub(super) fn deliver(&mut self, kernel: &mut Kernel, (hash, to): (UserHash, &str), body: &[u8]) -> bool {
        let Some(user) = kernel.users.find(hash, to) else {
            return false;
        };
        let mut taken = false;
        if let &[slot] = kernel.users.devices(user) {
            taken = kernel.append(slot, body, SentKind::Message);
        } else {
            let mut slots = std::mem::take(&mut kernel.scratch_slots);
            slots.clear();
            slots.extend_from_slice(kernel.users.devices(user));
            let shared = (body.len() >= SHARE_BYTES_MIN).then(|| Encoded::new(body));
            for &slot in &slots {
                taken |= match &shared {
                    Some(message) => kernel.append_shared(slot, message, SentKind::Message),
                    None => kernel.append(slot, body, SentKind::Message),
                };
            }
            kernel.scratch_slots = slots;
        }
        taken
    }

    /// A message for a user of this shard: to the connections here, and to those on other gateways.
    /// Returns what became of it; `None` if that is not known yet, and the sender will be told.
    pub(super) fn dispatch(&mut self, kernel: &mut Kernel, message: &OutgoingMessage<'_>) -> Option<AckStatus> {
        let here = self.deliver(kernel, (message.hash, message.to), message.body);
        let status = if kernel.peers.is_some() {
            self.send_elsewhere(kernel, message, here)
        } else if here {
            Some(AckStatus::Delivered)
        } else {
            Some(AckStatus::Offline)
        };
        if status == Some(AckStatus::Offline) {
            kernel.metrics().dropped(DropReason::MessageOffline);
        }
        status
    }

    /// A `message` frame of the user on `slot`.
    pub(super) fn route_message(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        client_id: Option<&str>,
        to: &str,
        content: &str,
    ) {
        let Some(sender) = kernel.conn(slot).user else {
            return;
        };
        if !kernel.may_write_to(slot, to) {
            let message = "this user may not write to that one";
            return kernel.send_error(slot, client_id, ErrorCode::NotPermitted, message);
        }
        let message_id = kernel.ids.next(kernel.now.wall_ms);
        let mut body = std::mem::take(&mut kernel.scratch);
        body.clear();
        let message = Message {
            id: message_id,
            from: kernel.users.name(sender),
            to,
            content,
            ts_ms: kernel.now.wall_ms,
        };
        Codec::Json.encode(&mut body, &ServerMessage::Message(message));
        let hash = kernel.homes.hash(to);
        let home = kernel.homes.home(hash);
        let ack_to = kernel.ack_to(slot, client_id, message_id);
        let outgoing = OutgoingMessage {
            hash,
            to,
            body: &body,
            ack_to,
            received_ns: kernel.now.mono_ns,
        };
        let status = if home == kernel.me {
            let status = self.dispatch(kernel, &outgoing);
            kernel.turn.local += u64::from(status == Some(AckStatus::Delivered));
            status
        } else {
            match kernel.lanes.try_message(home, &outgoing) {
                Ok(()) => None,
                Err(LaneFull) => {
                    kernel.metrics().dropped(DropReason::MessageLaneFull);
                    Some(AckStatus::Failed)
                }
            }
        };
        kernel.scratch = body;
        kernel.answer_if_known(ack_to.as_ref(), status);
    }

    /// A message for a user of this shard from another one.
    pub(super) fn handle_message_item(&mut self, kernel: &mut Kernel, batch: &Batch<ToShard>, message: &MessageItem) {
        let ack_to = message.ack_to.as_ref().map(|ack_to| batch.ack_to(batch.from, ack_to));
        let incoming = OutgoingMessage {
            hash: message.hash,
            to: batch.text(message.to),
            body: batch.bytes(message.body),
            ack_to,
            received_ns: message.received_ns,
        };
        let status = self.dispatch(kernel, &incoming);
        if status == Some(AckStatus::Delivered) {
            kernel.turn.from_lanes.push(message.received_ns);
        }
        kernel.answer_if_known(ack_to.as_ref(), status);
    }
}
