//! What administrators want: requests on their way to the control thread, and what that asks of this shard.
//!
//! Owned by the shard. Nothing here takes long: who looks for connections is told where to go on, and asks again.

use super::core::{Core, Notice};
use crate::admin::{Answer, ConnectionInfo, Refusal, Request};
use crate::engine::SocketKey;
use crate::lanes::{Ask, OutgoingPublication, Reply, Wanted};
use crate::protocol::close::CloseReason;
use crate::protocol::encode::AckStatus;
use crate::session::Stage;

/// Requests that may wait for the control thread: administrators are few, and it answers in milliseconds.
const REQUESTS_MAX: usize = 64;
/// How long a connection may wait for an answer. The control thread gives up sooner, and says so.
pub(super) const ANSWER_TIMEOUT_MS: u64 = 60_000;
/// Slots that one ask may look at: some 100 µs where all are empty.
const SLOTS_PER_ASK: u32 = 8_192;
/// Connections that one ask may list: some 50 KiB of answer, and a few ten microseconds.
const LISTED_PER_ASK: usize = 256;

impl Core {
    /// Passes a request to the control thread.
    ///
    /// # Errors
    /// The answer, if too many wait.
    pub(super) fn pass_on(&mut self, slot: u32, request: Request) -> Result<(), Answer> {
        if self.requests >= REQUESTS_MAX {
            let words = "too many requests are under way on this shard: try again";
            return Err(Answer::refuse(Refusal::Unavailable, words));
        }
        self.requests += 1;
        let notice = Notice::Asked(self.key(slot), self.remote_addr(slot), request);
        self.notices.push_back(notice);
        Ok(())
    }

    /// The control thread has answered.
    pub(super) fn handle_answer(&mut self, conn: SocketKey, answer: Answer) {
        self.requests -= 1;
        // Whoever asked may be gone.
        if !self
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
        self.rearm(conn);
    }

    /// Does or tells what the control thread asks for.
    pub(super) fn handle_ask(&mut self, ticket: u32, ask: Ask) {
        match ask {
            Ask::List {
                user: None,
                from,
                limit,
            } => {
                let reply = self.list(from, limit.min(LISTED_PER_ASK), |_| true);
                self.reply(ticket, reply);
            }
            Ask::List {
                user: Some(user),
                from,
                limit,
            } => {
                let mut slots = self.devices(&user);
                slots.retain(|slot| *slot >= from);
                slots.sort_unstable();
                let limit = limit.min(LISTED_PER_ASK);
                let connections = slots.iter().take(limit).filter_map(|slot| self.describe(*slot));
                let reply = Reply::Page {
                    connections: connections.collect(),
                    next: slots.get(limit).copied(),
                };
                self.reply(ticket, reply);
            }
            Ask::Find { id, from, close } => {
                let reply = self.list(from, 1, |conn| conn.id == id);
                if let (Some(reason), Reply::Page { connections, .. }) = (close, &reply) {
                    for found in connections {
                        self.close_by_order(found.key.slot, reason);
                    }
                }
                self.reply(ticket, reply);
            }
            Ask::Count { user } => {
                let devices = self.devices(&user).len();
                self.reply(ticket, Reply::Count(devices as u64));
            }
            Ask::CloseUser { user, reason } => {
                let closed = self.close_user(&user, reason);
                self.reply(ticket, Reply::Count(closed));
            }
            Ask::Broadcast(frame) => self.queue_broadcast(frame, Some(ticket)),
            Ask::Message {
                to,
                frame,
                message_id,
                received_ns,
            } => {
                let wanted = self.wanted_by_system(ticket, message_id);
                let status = self.dispatch(self.homes.hash(&to), &to, &frame, Some(wanted));
                if status == Some(AckStatus::Delivered) {
                    self.turn.from_lanes.push(received_ns);
                }
                if let Some(status) = status {
                    self.answer(&wanted, status);
                }
            }
            Ask::Publish {
                channel,
                frame,
                message_id,
                received_ns,
            } => {
                let wanted = self.wanted_by_system(ticket, message_id);
                let publication = OutgoingPublication {
                    channel: (self.homes.channel_hash(&channel), &channel),
                    frame: &frame,
                    wanted: Some(wanted),
                    received_ns,
                };
                if let Some(status) = self.distribute(self.homes.partition(&channel), &publication) {
                    self.answer(&wanted, status);
                }
            }
        }
    }

    /// Says what came of an ask.
    pub(super) fn reply(&mut self, ticket: u32, reply: Reply) {
        self.notices.push_back(Notice::Replied(ticket, reply));
    }

    /// Closes all connections of a user who lives here. Returns how many there were.
    pub(super) fn close_user(&mut self, user: &str, reason: CloseReason) -> u64 {
        let slots = self.devices(user);
        for slot in &slots {
            self.close_by_order(*slot, reason);
        }
        slots.len() as u64
    }

    fn close_by_order(&mut self, slot: u32, reason: CloseReason) {
        self.settle_broadcasts(slot);
        self.begin_close(slot, reason);
    }

    fn wanted_by_system(&self, ticket: u32, message_id: uuid::Uuid) -> Wanted<'static> {
        Wanted {
            shard: self.me,
            conn: SocketKey::of_system(ticket),
            client_id: "",
            message_id,
        }
    }

    fn devices(&self, user: &str) -> Vec<u32> {
        let found = self.users.find(self.homes.hash(user), user);
        found.map_or(Vec::new(), |user| self.users.devices(user).to_vec())
    }

    /// Connections of users that `is_wanted`, from this slot on.
    fn list(&self, from: u32, limit: usize, is_wanted: impl Fn(&super::Connection) -> bool) -> Reply {
        let slots = self.connections.len() as u32;
        let until = slots.min(from.saturating_add(SLOTS_PER_ASK));
        let mut connections = Vec::new();
        let mut next = from;
        while next < until && connections.len() < limit {
            if is_wanted(&self.connections[next as usize]) {
                connections.extend(self.describe(next));
            }
            next += 1;
        }
        Reply::Page {
            connections,
            next: (next < slots).then_some(next),
        }
    }

    /// A connection as administrators see it, if it has a user.
    fn describe(&self, slot: u32) -> Option<ConnectionInfo> {
        let conn = &self.connections[slot as usize];
        let silent_ms = self.now.mono_ms().saturating_sub(conn.last_seen_ms);
        Some(ConnectionInfo {
            key: self.key(slot),
            conn_id: conn.id,
            user_id: self.users.name(conn.user?).into(),
            shard: self.me.0,
            remote_addr: self.remote_addr(slot),
            connected_at: conn.connected_at_ms,
            last_seen: self.now.wall_ms.saturating_sub(silent_ms),
            messages_in: conn.messages_in,
            messages_out: conn.messages_out,
            outbox_bytes: conn.outbox_bytes(),
        })
    }
}
