//! Channels: who subscribes, what is published, and how it reaches every subscriber of this shard.
//!
//! Owned by the shard. All publications of a channel pass its home shard, which knows the shards
//! with subscribers, so that those of one connection come in order everywhere:
//!
//! ```text
//! publisher's shard ── Publish ──> home shard ──┬─ Publication ──> shards with subscribers
//!                                               └─ Forward ──> control thread ──> other gateways
//! ```
//!
//! A shard joins a channel at its home with its first subscriber. No client hears `subscribed`
//! before the home has confirmed it: from then on nothing is missed. Fan-out is spread over turns:
//! each does so much and no more.

mod fanout;
mod home;
mod overload;
mod review;
mod tables;

use super::kernel::{Kernel, OVERLOADED};
use crate::engine::SocketKey;
use crate::ids::CHANNEL_BYTES_MAX;
use crate::lanes::OutgoingPublication;
use crate::metrics::DropReason;
use crate::router::channels::{ChannelIndex, ChannelTable as Table};
use crate::router::interests::Interests;
use crate::wire::codec::Codec;
use crate::wire::framing::Encoded;
use crate::wire::message::{AckStatus, ErrorCode, Publication, ServerMessage};
use tables::{FanOut, Joins, Overload, Reviews};

/// The channels of a shard: those with subscribers here, and those whose home it is.
#[derive(Debug, Default)]
pub(super) struct Channels {
    table: Table,
    joins: Joins,
    interests: Interests,
    fan_out: FanOut,
    overload: Overload,
    reviews: Reviews,
}

/// What the channels of a shard hold.
#[derive(Debug)]
pub(super) struct Held {
    /// Channels with subscribers, and those that wait for their homes.
    pub(super) channels: usize,
    /// Interests of shards in channels whose home this is, and those who wait for other gateways.
    pub(super) interests: usize,
    /// Bytes on their way.
    pub(super) bytes: usize,
}

impl Channels {
    /// When there is something to do, milliseconds of the gateway's clock.
    pub(super) fn next_timeout_ms(&self) -> Option<u64> {
        self.overload.look_again_ms()
    }

    /// Writes down how many there are, and how long publications took whose last subscriber has
    /// them now.
    pub(super) fn end_turn(&mut self, kernel: &Kernel, now_ns: u64) {
        let metrics = kernel.metrics();
        for received_ns in self.table.gone_round() {
            metrics.fanout.record(now_ns.saturating_sub(received_ns), 1);
        }
        metrics.channels.set(self.table.len() as u64);
        metrics.subscriptions.set(self.table.subscriptions() as u64);
    }

    /// What they hold, for tests that expect nothing.
    pub(super) fn held(&self) -> Held {
        Held {
            channels: self.table.len() + self.joins.len(),
            interests: self.interests.len() + self.interests.waiting(),
            bytes: self.table.queued_bytes() + self.fan_out.broadcast_bytes(),
        }
    }

    /// Some channels with subscribers here, from this index on, with their numbers of subscribers;
    /// and where to go on.
    pub(super) fn page(&self, from: u32, count: u32) -> (impl Iterator<Item = (&str, usize)>, Option<u32>) {
        self.table.page(from, count)
    }

    /// Asserts that the tables agree with each other and with the connections.
    pub(super) fn check_invariants(&self, kernel: &Kernel) {
        self.table.check_invariants();
        for (slot, conn) in (0..).zip(&kernel.connections) {
            assert!(
                self.table.count(slot) == 0 || conn.user.is_some(),
                "a subscriber who has gone"
            );
        }
    }

    /// True if the names of a connection's channels would be longer together than they may be with
    /// this one.
    fn has_no_room_for_name(&self, kernel: &Kernel, slot: u32, name: &str) -> bool {
        let most = kernel.settings.limits.channel_name_bytes;
        // So few need not be added up.
        let count = self.table.count(slot) + 1;
        count * CHANNEL_BYTES_MAX > most && self.table.name_bytes(slot) + name.len() > most
    }

    /// A `subscribe` frame of the user on `slot`.
    pub(super) fn subscribe(&mut self, kernel: &mut Kernel, slot: u32, client_id: Option<&str>, channel: &str) {
        if !kernel.may_subscribe(slot, channel) {
            let message = "this user may not subscribe to this channel";
            return kernel.send_error(slot, client_id, ErrorCode::NotPermitted, message);
        }
        let hash = kernel.homes.channel_hash(channel);
        let found = self.table.find(hash, channel);
        if !found.is_some_and(|found| self.table.is_subscribed(slot, found)) {
            if self.table.count(slot) >= kernel.settings.limits.channels_per_connection {
                let message = "too many channels: see limits.channels_per_connection";
                return kernel.send_error(slot, client_id, ErrorCode::LimitExceeded, message);
            }
            if self.has_no_room_for_name(kernel, slot, channel) {
                let message = "the names of the channels are too long together: see limits.channel_name_bytes";
                return kernel.send_error(slot, client_id, ErrorCode::LimitExceeded, message);
            }
            let index = self.table.subscribe(slot, hash, channel);
            if found.is_none() && self.join(kernel, index, (hash, channel)).is_err() {
                self.table.unsubscribe(slot, index);
                kernel.metrics().dropped(DropReason::SubscriptionLaneFull);
                return kernel.send_error(slot, client_id, ErrorCode::Unavailable, OVERLOADED);
            }
        }
        let key = kernel.key(slot);
        let index = self.table.find(hash, channel);
        match index.and_then(|index| self.joins.joining.get_mut(&index)) {
            Some(joining) => joining.waiting.push((key, client_id.map(Into::into))),
            None => self.send_subscribed(kernel, slot, channel, client_id),
        }
    }

    fn send_subscribed(&mut self, kernel: &mut Kernel, slot: u32, channel: &str, client_id: Option<&str>) {
        kernel.send(slot, &ServerMessage::Subscribed { channel, id: client_id });
    }

    /// An `unsubscribe` frame.
    pub(super) fn unsubscribe(&mut self, kernel: &mut Kernel, slot: u32, client_id: Option<&str>, channel: &str) {
        self.take_out(kernel, slot, channel);
        kernel.send(slot, &ServerMessage::Unsubscribed { channel, id: client_id });
    }

    /// Takes a connection out of a channel, after what it was to hear until now. Returns false if
    /// it was not in it.
    pub(super) fn take_out(&mut self, kernel: &mut Kernel, slot: u32, channel: &str) -> bool {
        let found = self.table.find(kernel.homes.channel_hash(channel), channel);
        let Some(index) = found.filter(|index| self.table.is_subscribed(slot, *index)) else {
            return false;
        };
        self.send_owed(kernel, slot, index, channel);
        let gone = self.table.unsubscribe(slot, index);
        self.leave_channel(kernel, index, gone);
        true
    }

    /// Before a subscriber goes: it hears what it was to hear until now.
    fn send_owed(&mut self, kernel: &mut Kernel, slot: u32, index: ChannelIndex, channel: &str) {
        let key = kernel.key(slot);
        if let Some(joining) = self.joins.joining.get_mut(&index) {
            let (owed, waiting) = std::mem::take(&mut joining.waiting)
                .into_iter()
                .partition(|(waiting, _)| *waiting == key);
            joining.waiting = waiting;
            let owed: Vec<(SocketKey, Option<Box<str>>)> = owed;
            for (_, client_id) in owed {
                self.send_subscribed(kernel, slot, channel, client_id.as_deref());
            }
        }
        // A subscriber that leaves is not closed for bytes that it does not want any more.
        let room = kernel
            .settings
            .limits
            .outbox_bytes
            .saturating_sub(kernel.conn(slot).outbox_bytes());
        if let Some((frames, publications)) = self.table.on_its_way(slot, index, room) {
            self.append_publications(kernel, slot, &frames, publications);
        }
    }

    /// A connection has gone: so have its subscriptions.
    pub(super) fn leave_channels(&mut self, kernel: &mut Kernel, slot: u32) {
        while let Some((index, gone)) = self.table.leave_one(slot) {
            self.leave_channel(kernel, index, gone);
        }
    }

    /// A `publish` frame of the user on `slot`.
    pub(super) fn publish(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        client_id: Option<&str>,
        channel: &str,
        content: &str,
    ) {
        let Some(user) = kernel.conn(slot).user else {
            return;
        };
        if !kernel.may_publish(slot, channel) {
            let message = "this user may not publish to this channel";
            return kernel.send_error(slot, client_id, ErrorCode::NotPermitted, message);
        }
        kernel.metrics().publications.inc();
        let id = kernel.ids.next(kernel.now.wall_ms);
        let mut body = std::mem::take(&mut kernel.scratch);
        body.clear();
        let publication = Publication {
            id,
            from: kernel.users.name(user),
            channel,
            content,
            ts_ms: kernel.now.wall_ms,
        };
        Codec::Json.encode(&mut body, &ServerMessage::Publication(publication));
        let message = Encoded::new(&body);
        kernel.scratch = body;
        let ack_to = kernel.ack_to(slot, client_id, id);
        let publication = OutgoingPublication {
            channel: (kernel.homes.channel_hash(channel), channel),
            message: &message,
            ack_to,
            received_ns: kernel.now.mono_ns,
        };
        let partition = kernel.homes.partition(channel);
        let home = kernel.homes.partition_home(partition);
        let status = if home == kernel.me {
            self.distribute(kernel, partition, &publication)
        } else if kernel.lanes.try_publish(home, &publication).is_ok() {
            None
        } else {
            kernel.metrics().dropped(DropReason::PublicationLaneFull);
            Some(AckStatus::Failed)
        };
        kernel.answer_if_known(ack_to.as_ref(), status);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::engine::{Payload, Waker};
    use crate::ids::ShardId;
    use crate::lanes;
    use crate::lanes::mailbox::mailboxes;
    use crate::router::HomeMap;
    use crate::session::Stage;
    use crate::settings::Settings;
    use crate::shard::core::Core;
    use crate::shared::{Now, Shared};
    use crate::wire::ws::close::CloseReason;
    use crate::wire::ws::server_frame;

    const CONN: SocketKey = SocketKey { slot: 0, generation: 1 };

    fn settings(outbox_bytes: usize) -> Arc<Settings> {
        let mut config = Config::default();
        config.limits.outbox_bytes = outbox_bytes;
        Arc::new(Settings::new(&config, 100).unwrap())
    }

    fn homes() -> HomeMap {
        HomeMap::new(2, [7; 16])
    }

    /// The first shard of two, with a user of its own whose `welcome` is in flight.
    fn welcomed() -> (Core, Payload) {
        let inboxes = lanes::inboxes(2);
        let depths = inboxes.depths;
        let shared = Arc::new(Shared::new(
            "gw".into(),
            true,
            "model",
            vec![None; 2],
            Arc::clone(&depths),
        ));
        let wakers = vec![Waker::inert().unwrap(), Waker::inert().unwrap()];
        let lanes = mailboxes(inboxes.senders, wakers, None).lanes(ShardId(0), &depths);
        let mut core = Core::new(shared, settings(1 << 20), homes(), lanes, 1);
        core.begin_turn(Now { mono_ns: 0, wall_ms: 0 });
        let names = (0..).map(|number| format!("user{number}"));
        let user = names
            .into_iter()
            .find(|name| homes().home(homes().hash(name)) == ShardId(0));
        core.handle_accepted(CONN, None);
        let head = format!(
            "GET /ws?user={} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            user.unwrap()
        );
        core.handle_received(CONN, &mut head.into_bytes());
        core.serve_pre_auth();
        assert_eq!(core.poll_dirty(), Some(CONN));
        let welcome = core.poll_payload(CONN).unwrap();
        assert!(matches!(core.kernel.conn(0).stage, Stage::Open));
        (core, welcome)
    }

    /// The frame of a client.
    fn frame(text: &str) -> Vec<u8> {
        let len = u8::try_from(text.len()).unwrap();
        let header: &[u8] = match len {
            0..126 => &[0x81, 0x80 | len, 0, 0, 0, 0],
            _ => &[0x81, 0x80 | 126, 0, len, 0, 0, 0, 0],
        };
        [header, text.as_bytes()].concat()
    }

    /// Two answers are owed to one who leaves before the channel's home has said anything, and
    /// there is no room for the first.
    #[test]
    fn who_is_too_slow_for_subscribed_hears_nothing_behind_its_close_frame() {
        let names = (0..).map(|number| format!("room{number}"));
        let elsewhere = |name: &String| homes().partition_home(homes().partition(name)) == ShardId(1);
        let channel = names.into_iter().find(elsewhere).unwrap();
        let long = "x".repeat(60);
        // For nothing at all, and for the close frame and the second answer but not for the first.
        for room in [0, 90] {
            let (mut core, welcome) = welcomed();
            core.kernel.settings = settings(welcome.as_slice().len() + room);
            for id in [&*long, "2"] {
                let text = format!(r#"{{"type":"subscribe","channel":"{channel}","id":"{id}"}}"#);
                core.handle_received(CONN, &mut frame(&text));
            }
            assert_eq!(
                core.channels
                    .joins
                    .joining
                    .values()
                    .map(|joining| joining.waiting.len())
                    .sum::<usize>(),
                2
            );
            assert!(matches!(core.kernel.conn(0).stage, Stage::Open), "it waits");
            let text = format!(r#"{{"type":"unsubscribe","channel":"{channel}","id":"3"}}"#);
            core.handle_received(CONN, &mut frame(&text));
            core.handle_sent(CONN, welcome);
            let mut close = Vec::new();
            server_frame::close(&mut close, CloseReason::SlowConsumer);
            let last = core.poll_payload(CONN).expect("its close frame");
            assert_eq!(
                String::from_utf8_lossy(last.as_slice()),
                String::from_utf8_lossy(&close)
            );
            core.handle_sent(CONN, last);
            assert!(core.poll_payload(CONN).is_none(), "nothing behind it");
            core.check_invariants();
        }
    }
}
