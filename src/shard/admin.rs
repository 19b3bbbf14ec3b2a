//! What the control thread asks of a shard for administrators.
//!
//! Owned by the shard. Nothing here takes long: who looks for connections is told where to go on,
//! and asks again.

use super::core::Core;
use crate::admin::ConnectionInfo;
use crate::engine::SocketKey;
use crate::lanes::{AckTo, OutgoingMessage, OutgoingPublication, ShardCommand, ShardQuery, ShardReply};
use crate::wire::message::{AckStatus, EndReason};
use crate::wire::ws::close::CloseReason;

/// Slots that one query may look at: some 100 µs where all are empty.
const SLOTS_PER_QUERY: u32 = 8_192;
/// Channels that one query may look at: some 50 µs where all are listed.
const CHANNELS_PER_QUERY: u32 = 1_024;
/// Connections that one query may list: some 50 KiB of answer, and a few ten microseconds.
const LISTED_PER_QUERY: usize = 256;

impl Core {
    /// Answers a query of the control thread.
    pub(super) fn handle_query(&mut self, ticket: u32, query: ShardQuery) {
        match query {
            ShardQuery::List {
                user: None,
                from,
                limit,
            } => {
                let reply = self.list(from, limit.min(LISTED_PER_QUERY), |_| true);
                self.kernel.reply(ticket, reply);
            }
            ShardQuery::List {
                user: Some(user),
                from,
                limit,
            } => {
                let mut slots = self.kernel.devices(&user);
                slots.retain(|slot| *slot >= from);
                slots.sort_unstable();
                let limit = limit.min(LISTED_PER_QUERY);
                let connections = slots.iter().take(limit).filter_map(|slot| self.describe(*slot));
                let reply = ShardReply::Page {
                    connections: connections.collect(),
                    next: slots.get(limit).copied(),
                };
                self.kernel.reply(ticket, reply);
            }
            ShardQuery::Find { id, from, close } => {
                let reply = self.list(from, 1, |conn| conn.id == id);
                if let (Some(reason), ShardReply::Page { connections, .. }) = (close, &reply) {
                    for found in connections {
                        self.close_by_order(found.key.slot, reason);
                    }
                }
                self.kernel.reply(ticket, reply);
            }
            ShardQuery::Count { user } => {
                let devices = self.kernel.devices(&user).len();
                self.kernel.reply(ticket, ShardReply::Count(devices as u64));
            }
            ShardQuery::Channels { prefix, after, from } => {
                let (page, next) = self.channels.page(from, CHANNELS_PER_QUERY);
                let wanted = page.filter(|(name, _)| name.starts_with(&*prefix) && **name > *after);
                let channels = wanted.map(|(name, subscribers)| (name.into(), subscribers as u64));
                let channels = channels.collect();
                self.kernel.reply(ticket, ShardReply::Channels { channels, next });
            }
            ShardQuery::Command(command) => self.carry_out_command(command, Some(ticket)),
            ShardQuery::Message {
                to,
                body,
                message_id,
                received_ns,
            } => {
                let ack_to = self.ack_to_system(ticket, message_id);
                let message = OutgoingMessage {
                    hash: self.kernel.homes.hash(&to),
                    to: &to,
                    body: &body,
                    ack_to: Some(ack_to),
                    received_ns,
                };
                let status = self.messages.dispatch(&mut self.kernel, &message);
                if status == Some(AckStatus::Delivered) {
                    self.kernel.turn.from_lanes.push(received_ns);
                }
                if let Some(status) = status {
                    self.kernel.answer(&ack_to, status);
                }
            }
            ShardQuery::Publish {
                channel,
                message,
                message_id,
                received_ns,
            } => {
                let ack_to = self.ack_to_system(ticket, message_id);
                let publication = OutgoingPublication {
                    channel: (self.kernel.homes.channel_hash(&channel), &channel),
                    message: &message,
                    ack_to: Some(ack_to),
                    received_ns,
                };
                let partition = self.kernel.homes.partition(&channel);
                if let Some(status) = self.channels.distribute(&mut self.kernel, partition, &publication) {
                    self.kernel.answer(&ack_to, status);
                }
            }
        }
    }

    /// Carries out what all shards shall do, or this one.
    pub(super) fn handle_command(&mut self, command: ShardCommand) {
        self.carry_out_command(command, None);
    }

    /// `ticket`: to be replied to with the number of connections or subscriptions that it
    /// concerned.
    fn carry_out_command(&mut self, command: ShardCommand, ticket: Option<u32>) {
        let count = match command {
            // It goes on from turn to turn, and replies then.
            ShardCommand::Broadcast(message) => {
                return self.channels.queue_broadcast(&mut self.kernel, message, ticket);
            }
            ShardCommand::CloseUser { user, reason } => self.close_user(&user, reason),
            ShardCommand::EndSubscription { user, channel } => self.end_subscriptions(&user, &channel),
        };
        if let Some(ticket) = ticket {
            self.kernel.reply(ticket, ShardReply::Count(count));
        }
    }

    /// Closes all connections of a user who lives here. Returns how many there were.
    fn close_user(&mut self, user: &str, reason: CloseReason) -> u64 {
        let slots = self.kernel.devices(user);
        for slot in &slots {
            self.close_by_order(*slot, reason);
        }
        slots.len() as u64
    }

    /// Ends the subscriptions to a channel of a user who lives here, as an administrator wished.
    /// Returns how many there were.
    fn end_subscriptions(&mut self, user: &str, channel: &str) -> u64 {
        let slots = self.kernel.devices(user);
        let ended = slots.into_iter().filter(|slot| {
            self.channels
                .end_subscription(&mut self.kernel, *slot, channel, EndReason::Admin)
        });
        ended.count() as u64
    }

    fn close_by_order(&mut self, slot: u32, reason: CloseReason) {
        self.channels.settle_broadcasts(&mut self.kernel, slot);
        self.kernel.begin_close(slot, reason);
    }

    fn ack_to_system(&self, ticket: u32, message_id: uuid::Uuid) -> AckTo<'static> {
        AckTo {
            shard: self.kernel.me,
            conn: SocketKey::of_system(ticket),
            client_id: "",
            message_id,
        }
    }

    /// Connections of users that `is_wanted`, from this slot on.
    fn list(&self, from: u32, limit: usize, is_wanted: impl Fn(&super::Connection) -> bool) -> ShardReply {
        let slots = self.kernel.connections.len() as u32;
        let until = slots.min(from.saturating_add(SLOTS_PER_QUERY));
        let mut connections = Vec::new();
        let mut next = from;
        while next < until && connections.len() < limit {
            if is_wanted(&self.kernel.connections[next as usize]) {
                connections.extend(self.describe(next));
            }
            next += 1;
        }
        ShardReply::Page {
            connections,
            next: (next < slots).then_some(next),
        }
    }

    /// A connection as administrators see it, if it has a user.
    fn describe(&self, slot: u32) -> Option<ConnectionInfo> {
        let conn = &self.kernel.connections[slot as usize];
        let silent_ms = self.kernel.now.mono_ms().saturating_sub(conn.last_seen_ms);
        Some(ConnectionInfo {
            key: self.kernel.key(slot),
            conn_id: conn.id,
            user_id: self.kernel.users.name(conn.user?).into(),
            shard: self.kernel.me.0,
            remote_addr: self.kernel.remote_addr(slot),
            connected_at: conn.connected_at_ms,
            last_seen: self.kernel.now.wall_ms.saturating_sub(silent_ms),
            messages_in: conn.messages_in,
            messages_out: conn.messages_out,
            outbox_bytes: conn.outbox_bytes(),
        })
    }
}
