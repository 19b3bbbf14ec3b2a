//! What administrators want: requests on their way to the control thread, and what that asks of this shard.
//!
//! Owned by the shard. Nothing here takes long: who looks for connections is told where to go on, and asks again.

use super::core::{Core, Notice};
use crate::admin::{Answer, ConnectionInfo, Refusal, Request};
use crate::engine::SocketKey;
use crate::lanes::{AckTo, OutgoingMessage, OutgoingPublication, ShardCommand, ShardQuery, ShardReply};
use crate::session::Stage;
use crate::wire::message::{AckStatus, EndReason};
use crate::wire::ws::close::CloseReason;

/// Requests that may wait for the control thread: administrators are few, and it answers in milliseconds.
const REQUESTS_MAX: usize = 64;
/// How long a connection may wait for an answer. The control thread gives up sooner, and says so.
pub(super) const ANSWER_TIMEOUT_MS: u64 = 60_000;
/// Slots that one query may look at: some 100 µs where all are empty.
const SLOTS_PER_QUERY: u32 = 8_192;
/// Channels that one query may look at: some 50 µs where all are listed.
const CHANNELS_PER_QUERY: u32 = 1_024;
/// Connections that one query may list: some 50 KiB of answer, and a few ten microseconds.
const LISTED_PER_QUERY: usize = 256;

/// Administrators' requests of a shard. Each is counted in [`crate::shared::Gate::expect`] until its answer has left.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    /// Not answered by the control thread.
    waiting: usize,
    /// Connections whose answer has not left whole, once for each.
    migrating: Vec<SocketKey>,
}

impl Inquiries {
    pub(super) fn len(&self) -> usize {
        self.waiting + self.migrating.len()
    }
}

impl Core {
    /// Passes a request to the control thread.
    ///
    /// # Errors
    /// The answer, if too many wait or the gateway is ending.
    pub(super) fn pass_on(&mut self, slot: u32, request: Request) -> Result<(), Answer> {
        if self.inquiries.waiting >= REQUESTS_MAX {
            let words = "too many requests are under way on this shard: try again";
            return Err(Answer::refuse(Refusal::Unavailable, words));
        }
        if !self.kernel.shared.gate.expect() {
            return Err(Answer::ending());
        }
        self.inquiries.waiting += 1;
        let notice = Notice::Asked(self.kernel.key(slot), self.kernel.remote_addr(slot), request);
        self.kernel.notify(notice);
        Ok(())
    }

    /// The control thread has answered.
    pub(super) fn handle_answer(&mut self, conn: SocketKey, answer: Answer) {
        self.inquiries.waiting -= 1;
        self.inquiries.migrating.push(conn);
        // Whoever asked may be gone.
        if !self
            .kernel
            .connection(conn)
            .is_some_and(|c| matches!(&c.stage, Stage::Http(http) if http.is_waiting()))
        {
            return;
        }
        let mut ended = false;
        self.drive_http(conn.slot, |http, out| {
            ended = http.has_ended();
            http.answer(answer, out)
        });
        if ended {
            self.end_http(conn.slot);
        }
        self.kernel.rearm(conn);
    }

    /// Forgets the answers that have left, so that a drain does not wait for them any more.
    pub(super) fn settle_answers(&mut self) {
        let mut migrating = std::mem::take(&mut self.inquiries.migrating);
        migrating.retain(|conn| {
            let is_leaving = self.is_leaving(*conn);
            if !is_leaving {
                self.kernel.shared.gate.answered();
            }
            is_leaving
        });
        self.inquiries.migrating = migrating;
    }

    fn is_leaving(&mut self, conn: SocketKey) -> bool {
        let Some(conn) = self.kernel.connection(conn) else {
            return false;
        };
        match &conn.stage {
            // A large answer goes in pieces, and there may be no more than one of them in the outbox.
            Stage::Http(http) => !conn.is_flushed() || http.is_blocked() || http.put_off,
            // Until the peer's end, as closing may destroy what it has not read; it has `CLOSE_TIMEOUT_MS` for that.
            Stage::Lingering { .. } | Stage::Closing { .. } => true,
            _ => false,
        }
    }

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

    /// `ticket`: to be replied to with the number of connections or subscriptions that it concerned.
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

    /// Ends the subscriptions to a channel of a user who lives here, as an administrator wished. Returns how many there were.
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

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, Happens};
    use super::*;
    use crate::admin::Refusal;
    use crate::shard::core::Command;
    use crate::shard::wheel::TICK_MS;

    const TOKEN: &str = "a-token-for-tests-of-32-bytes-00";
    const CONN: SocketKey = SocketKey { slot: 0, generation: 1 };

    /// A shard on whose only connection an administrator has asked something, and the control thread has heard of it.
    fn asked(fields: &str) -> Bench {
        let mut bench = Bench::new(|config| config.admin.token = Some(TOKEN.to_owned().into()));
        let head = format!(
            "GET /admin/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n{fields}\r\n"
        );
        bench.turn([Happens::Accepted(CONN), Happens::Received(CONN, head.into_bytes())]);
        let Some(Notice::Asked(CONN, None, request)) = bench.shard.core.poll_notice() else {
            panic!("nobody asked");
        };
        assert_eq!(&*request.path, "/admin/connections");
        bench
    }

    fn answer(bench: &mut Bench) {
        bench
            .shard
            .core
            .handle_answer(CONN, Answer::refuse(Refusal::Timeout, "later"));
    }

    /// Closes the gate if it may.
    fn is_idle(bench: &Bench) -> bool {
        bench.shard.core.kernel.shared.gate.try_close()
    }

    #[test]
    fn an_answer_is_due_until_it_has_left() {
        let mut bench = asked("");
        assert!(!is_idle(&bench));
        answer(&mut bench);
        bench.turn([]);
        assert!(!is_idle(&bench), "still in flight");
        let (key, payload) = bench.engine.sends.remove(0);
        assert!(payload.as_slice().starts_with(b"HTTP/1.1 504"));
        bench.turn([Happens::Sent(key, payload)]);
        assert!(is_idle(&bench));
    }

    /// Closing its socket at once might destroy what it has not read.
    #[test]
    fn a_last_answer_is_due_until_its_reader_has_gone() {
        let mut bench = asked("Connection: close\r\n");
        answer(&mut bench);
        bench.turn([]);
        let (key, payload) = bench.engine.sends.remove(0);
        let commands = bench.turn([Happens::Sent(key, payload)]);
        assert!(matches!(commands[..], [Command::Finish(CONN), ..]), "{commands:?}");
        assert!(!is_idle(&bench));
        let commands = bench.turn([Happens::Ended(CONN, false)]);
        assert!(matches!(commands[..], [Command::Close(CONN)]), "{commands:?}");
        assert!(is_idle(&bench));
    }

    #[test]
    fn who_has_gone_is_owed_nothing() {
        let mut bench = asked("");
        bench.turn([Happens::Ended(CONN, true)]);
        bench.turn([Happens::Closed(CONN)]);
        // What was asked for is carried out all the same.
        assert!(!is_idle(&bench));
        answer(&mut bench);
        bench.turn([]);
        assert_eq!(bench.shard.core.residue(), Default::default());
        assert!(is_idle(&bench));
    }

    /// The control thread gives up sooner and says so; should it say nothing at all, nobody waits for ever.
    #[test]
    fn without_an_answer_a_connection_ends() {
        let mut bench = asked("");
        let commands = loop {
            // The wheel wants to be looked at now and then without anything being due.
            bench.now_ms = bench.shard.next_due_ms().unwrap();
            let commands = bench.turn([]);
            if !commands.is_empty() {
                break commands;
            }
        };
        assert!(matches!(commands[..], [Command::Close(CONN)]), "{commands:?}");
        assert!(
            (ANSWER_TIMEOUT_MS..ANSWER_TIMEOUT_MS + 2 * TICK_MS).contains(&bench.now_ms),
            "{}",
            bench.now_ms
        );
        // An answer that comes too late finds nobody.
        answer(&mut bench);
        bench.turn([Happens::Closed(CONN)]);
        assert!(bench.engine.sends.is_empty());
        assert_eq!(bench.shard.core.residue(), Default::default());
        assert!(is_idle(&bench));
    }

    #[test]
    fn a_closed_gate_refuses_at_once() {
        let mut bench = asked("");
        assert_eq!(bench.shard.core.kernel.shared.gate.close(), 1);
        let request = Request {
            method: "GET".into(),
            path: "/admin/connections".into(),
            query: "".into(),
            body: Default::default(),
        };
        assert_eq!(bench.shard.core.pass_on(0, request), Err(Answer::ending()));
        assert!(bench.shard.core.poll_notice().is_none());
    }
}
