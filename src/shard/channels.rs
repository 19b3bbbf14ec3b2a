//! Channels: who subscribes, what is published, and how it reaches every subscriber of this shard.
//!
//! Owned by the shard. All publications of a channel pass its home shard, which knows the shards with subscribers, so
//! that those of one connection come in order everywhere:
//!
//! ```text
//! publisher's shard ── Publish ──> home shard ──┬─ Publication ──> shards with subscribers
//!                                               └─ Forward ──> control thread ──> other gateways
//! ```
//!
//! A shard joins a channel at its home with its first subscriber, and nobody hears `subscribed` before the home has
//! confirmed it: from then on nothing is missed. Fan-out is spread over turns: each does so much and no more.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::core::Core;
use crate::engine::SocketKey;
use crate::ids::{CHANNEL_BYTES_MAX, ShardId};
use crate::lanes::{
    AckTo, Batch, ChannelToControl, ChannelToShard, LaneFull, OutgoingPublication, PublicationItem, PublishItem,
    ShardReply, ToShard,
};
use crate::metrics::{DropReason, SentKind};
use crate::router::channels::ChannelIndex;
use crate::router::interests::{Change, Join};
use crate::router::{ChannelHash, Partition};
use crate::session::Stage;
use crate::wire::json::decode::ErrorCode;
use crate::wire::json::encode::{self, AckStatus};

/// Outboxes that one turn may fill with publications and broadcasts: at 4 to 5 µs each, nearly all the kernel's, this is
/// how long a client waits that says something meanwhile. A turn in which somebody did fills few, each one after it some
/// more: so whoever talks waits for a tenth of a millisecond, the first one after a silence for half of one, and where
/// nobody talks a delivery costs a twelfth less (4.0 µs with 128 in a turn, 4.1 with 64, 4.3 with 32).
const FANOUT_LEAST: u32 = 8;
const FANOUT_STEP: u32 = 4;
const FANOUT_MOST: u32 = 128;
/// Bytes that go into outboxes that way in one turn, as many as a turn takes from sockets.
const FANOUT_BYTES_PER_TURN: usize = 512 * 1024;
/// Frames that go to one subscriber together. One send then fills a socket buffer well.
const VISIT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of broadcasts that may be on their way.
const BROADCAST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A channel that waits for its home's confirmation. Its subscribers are in the table; what is published comes later.
#[derive(Debug)]
struct Joining {
    ticket: u64,
    /// Who is to hear `subscribed` then.
    waiting: Vec<(SocketKey, Option<Box<str>>)>,
}

/// Channels that wait for their homes.
#[derive(Debug, Default)]
pub(super) struct Joins {
    joining: BTreeMap<ChannelIndex, Joining>,
    tickets: BTreeMap<u64, ChannelIndex>,
    last_ticket: u64,
}

impl Joins {
    pub(super) fn len(&self) -> usize {
        self.joining.len()
    }

    fn begin(&mut self, channel: ChannelIndex) -> u64 {
        self.last_ticket += 1;
        let joining = Joining {
            ticket: self.last_ticket,
            waiting: Vec::new(),
        };
        self.tickets.insert(self.last_ticket, channel);
        self.joining.insert(channel, joining);
        self.last_ticket
    }

    fn is_joining(&self, channel: ChannelIndex) -> bool {
        !self.joining.is_empty() && self.joining.contains_key(&channel)
    }

    /// Takes out what is confirmed, or given up.
    fn end(&mut self, channel: ChannelIndex) -> Option<Joining> {
        let joining = self.joining.remove(&channel)?;
        self.tickets.remove(&joining.ticket);
        Some(joining)
    }
}

/// A frame on its way to every connection.
#[derive(Debug)]
struct Broadcast {
    frame: Bytes,
    /// The next slot to look at.
    next: u32,
    /// Connections that took it.
    taken: u64,
    /// Who wants to know how many.
    ticket: Option<u32>,
}

/// What goes on from turn to turn.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    /// Broadcasts on their way, the first one first.
    broadcasts: VecDeque<Broadcast>,
    broadcast_bytes: usize,
    /// Outboxes that the last turn might fill.
    outboxes: u32,
    pub(super) overload: super::overload::Overload,
}

impl FanOut {
    /// When channels that are held are to be looked at again.
    pub(super) fn look_again_ms(&self) -> Option<u64> {
        self.overload.look_again_ms()
    }

    /// Bytes of broadcasts on their way.
    pub(super) fn broadcast_bytes(&self) -> usize {
        self.broadcast_bytes
    }
}

/// What one turn may still do.
struct Budget {
    outboxes: u32,
    bytes: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.outboxes == 0 || self.bytes == 0
    }

    fn spend(&mut self, bytes: usize) {
        self.outboxes = self.outboxes.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Core {
    /// True if the names of a connection's channels would be longer together than they may be with this one.
    fn has_no_room_for_name(&self, slot: u32, name: &str) -> bool {
        let most = self.kernel.settings.limits.channel_name_bytes;
        // So few need not be added up.
        let count = self.channels.count(slot) + 1;
        count * CHANNEL_BYTES_MAX > most && self.channels.name_bytes(slot) + name.len() > most
    }

    /// A `subscribe` frame of the user on `slot`.
    pub(super) fn subscribe(&mut self, slot: u32, client_id: Option<&str>, channel: &str) {
        if !self.kernel.may_subscribe(slot, channel) {
            let message = "this user may not subscribe to this channel";
            return self
                .kernel
                .send_error(slot, client_id, ErrorCode::NotPermitted, message);
        }
        let hash = self.kernel.homes.channel_hash(channel);
        let found = self.channels.find(hash, channel);
        if !found.is_some_and(|found| self.channels.is_subscribed(slot, found)) {
            if self.channels.count(slot) >= self.kernel.settings.limits.channels_per_connection {
                let message = "too many channels: see limits.channels_per_connection";
                return self
                    .kernel
                    .send_error(slot, client_id, ErrorCode::LimitExceeded, message);
            }
            if self.has_no_room_for_name(slot, channel) {
                let message = "the names of the channels are too long together: see limits.channel_name_bytes";
                return self
                    .kernel
                    .send_error(slot, client_id, ErrorCode::LimitExceeded, message);
            }
            let index = self.channels.subscribe(slot, hash, channel);
            if found.is_none() && self.join(index, (hash, channel)).is_err() {
                self.channels.unsubscribe(slot, index);
                self.kernel.metrics().dropped(DropReason::SubscriptionLaneFull);
                return self
                    .kernel
                    .send_error(slot, client_id, ErrorCode::Unavailable, super::deliver::OVERLOADED);
            }
        }
        let key = self.kernel.key(slot);
        let index = self.channels.find(hash, channel);
        match index.and_then(|index| self.joins.joining.get_mut(&index)) {
            Some(joining) => joining.waiting.push((key, client_id.map(Into::into))),
            None => self.send_subscribed(slot, channel, client_id),
        }
    }

    fn send_subscribed(&mut self, slot: u32, channel: &str, client_id: Option<&str>) {
        self.kernel.send(slot, SentKind::Subscribed, |_, out| {
            encode::subscribed(out, channel, client_id);
        });
    }

    /// The first subscriber of a channel here: its home shall know.
    fn join(&mut self, index: ChannelIndex, channel: (ChannelHash, &str)) -> Result<(), LaneFull> {
        let partition = self.kernel.homes.partition(channel.1);
        let home = self.kernel.homes.partition_home(partition);
        let ticket = self.joins.begin(index);
        if home != self.kernel.me {
            let asked = self.kernel.lanes.try_join(home, channel, ticket);
            if asked.is_err() {
                self.joins.end(index);
            }
            return asked;
        }
        let join = Join { shard: home, ticket };
        if self.handle_join(partition, channel, join) {
            self.joins.end(index);
        }
        Ok(())
    }

    /// A shard has its first subscriber of a channel whose home is here. Returns true if nothing will be missed from now
    /// on; else that is told later.
    fn handle_join(&mut self, partition: Partition, channel: (ChannelHash, &str), join: Join) -> bool {
        let elsewhere = join.shard != self.kernel.me;
        let change = self.interests.join(partition, channel, join.shard, elsewhere);
        self.tell_wanted(partition, change);
        // With Redis away, what is published here is all there is.
        if self.kernel.peers.is_none() || !self.kernel.shared.cluster.is_up() || self.interests.is_subscribed(partition)
        {
            return true;
        }
        self.interests.wait(partition, join);
        false
    }

    fn tell_wanted(&mut self, partition: Partition, change: Change) {
        if let Change::Wanted(wanted) = change
            && self.kernel.peers.is_some()
        {
            self.kernel
                .lanes
                .push_control(ChannelToControl::PartitionWanted { partition, wanted });
        }
    }

    /// The gateway is subscribed to a partition, or nobody shall wait for that any longer.
    pub(super) fn handle_partition_subscribed(&mut self, partition: Partition) {
        for join in self.interests.subscribed(partition) {
            if join.shard == self.kernel.me {
                self.handle_joined(join.ticket);
            } else {
                self.kernel
                    .lanes
                    .push(join.shard, ChannelToShard::Joined { ticket: join.ticket });
            }
        }
    }

    /// What is published on a channel comes from now on.
    pub(super) fn handle_joined(&mut self, ticket: u64) {
        let Some(joining) = self
            .joins
            .tickets
            .get(&ticket)
            .copied()
            .and_then(|c| self.joins.end(c).map(|j| (c, j)))
        else {
            // They all left before.
            return;
        };
        let (channel, joining) = joining;
        let name = self.channels.name(channel).to_owned();
        for (key, client_id) in joining.waiting {
            if self.kernel.is_open(key) {
                self.send_subscribed(key.slot, &name, client_id.as_deref());
            }
        }
    }

    /// An `unsubscribe` frame.
    pub(super) fn unsubscribe(&mut self, slot: u32, client_id: Option<&str>, channel: &str) {
        self.take_out(slot, channel);
        self.kernel.send(slot, SentKind::Unsubscribed, |_, out| {
            encode::unsubscribed(out, channel, client_id);
        });
    }

    /// Takes a connection out of a channel, after what it was to hear until now. Returns false if it was not in it.
    pub(super) fn take_out(&mut self, slot: u32, channel: &str) -> bool {
        let found = self.channels.find(self.kernel.homes.channel_hash(channel), channel);
        let Some(index) = found.filter(|index| self.channels.is_subscribed(slot, *index)) else {
            return false;
        };
        self.send_owed(slot, index, channel);
        let gone = self.channels.unsubscribe(slot, index);
        self.leave_channel(index, gone);
        true
    }

    /// Before a subscriber goes: it hears what it was to hear until now.
    fn send_owed(&mut self, slot: u32, index: ChannelIndex, channel: &str) {
        let key = self.kernel.key(slot);
        if let Some(joining) = self.joins.joining.get_mut(&index) {
            let (owed, waiting) = std::mem::take(&mut joining.waiting)
                .into_iter()
                .partition(|(waiting, _)| *waiting == key);
            joining.waiting = waiting;
            let owed: Vec<(SocketKey, Option<Box<str>>)> = owed;
            for (_, client_id) in owed {
                self.send_subscribed(slot, channel, client_id.as_deref());
            }
        }
        // Whoever goes is not closed for what it does not want any more.
        let room = self
            .kernel
            .settings
            .limits
            .outbox_bytes
            .saturating_sub(self.kernel.conn(slot).outbox_bytes());
        if let Some((frames, publications)) = self.channels.on_its_way(slot, index, room) {
            self.append_publications(slot, &frames, publications);
        }
    }

    /// A connection has gone: so have its subscriptions.
    pub(super) fn leave_channels(&mut self, slot: u32) {
        while let Some((index, gone)) = self.channels.leave_one(slot) {
            self.leave_channel(index, gone);
        }
    }

    /// A channel that has no subscriber here any more, if its name is given: its home shall know.
    fn leave_channel(&mut self, index: ChannelIndex, gone: Option<Box<str>>) {
        let Some(name) = gone else {
            return;
        };
        self.joins.end(index);
        self.fan_out.overload.forget(index);
        let (hash, partition) = (
            self.kernel.homes.channel_hash(&name),
            self.kernel.homes.partition(&name),
        );
        let home = self.kernel.homes.partition_home(partition);
        if home == self.kernel.me {
            self.handle_leave(partition, (hash, &name), home);
        } else {
            self.kernel.lanes.leave(home, (hash, &name));
        }
    }

    fn handle_leave(&mut self, partition: Partition, channel: (ChannelHash, &str), shard: ShardId) {
        let change = self.interests.leave(partition, channel, shard, shard != self.kernel.me);
        self.tell_wanted(partition, change);
    }

    /// A `publish` frame of the user on `slot`.
    pub(super) fn publish(&mut self, slot: u32, client_id: Option<&str>, channel: &str, content: &str) {
        let Some(user) = self.kernel.conn(slot).user else {
            return;
        };
        if !self.kernel.may_publish(slot, channel) {
            let message = "this user may not publish to this channel";
            return self
                .kernel
                .send_error(slot, client_id, ErrorCode::NotPermitted, message);
        }
        self.kernel.metrics().publications.inc();
        let id = self.kernel.ids.next(self.kernel.now.wall_ms);
        let mut frame = std::mem::take(&mut self.kernel.scratch);
        frame.clear();
        let publication = encode::Publication {
            id,
            from: self.kernel.users.name(user),
            channel,
            content,
            ts_ms: self.kernel.now.wall_ms,
        };
        encode::publication(&mut frame, &publication);
        let bytes = Bytes::copy_from_slice(&frame);
        self.kernel.scratch = frame;
        let ack_to = client_id.map(|client_id| AckTo {
            shard: self.kernel.me,
            conn: self.kernel.key(slot),
            client_id,
            message_id: id,
        });
        let publication = OutgoingPublication {
            channel: (self.kernel.homes.channel_hash(channel), channel),
            frame: &bytes,
            ack_to,
            received_ns: self.kernel.now.mono_ns,
        };
        let partition = self.kernel.homes.partition(channel);
        let home = self.kernel.homes.partition_home(partition);
        let status = if home == self.kernel.me {
            self.distribute(partition, &publication)
        } else if self.kernel.lanes.try_publish(home, &publication).is_ok() {
            None
        } else {
            self.kernel.metrics().dropped(DropReason::PublicationLaneFull);
            Some(AckStatus::Failed)
        };
        if let (Some(status), Some(ack_to)) = (status, &ack_to) {
            self.kernel.answer(ack_to, status);
        }
    }

    /// A publication of this gateway, at its channel's home: to the subscribers here and on other shards, and to the other
    /// gateways. Returns what became of it; `None` if that is not known yet, and the publisher will be told.
    pub(super) fn distribute(
        &mut self,
        partition: Partition,
        publication: &OutgoingPublication<'_>,
    ) -> Option<AckStatus> {
        // Before anybody has it: whoever hears `failed` may say it again.
        if self.is_overloaded(publication.channel, publication.frame.len()) {
            self.kernel.metrics().dropped(DropReason::PublicationQueueFull);
            return Some(AckStatus::Failed);
        }
        let here = self.distribute_here(publication);
        if self.kernel.peers.is_none() {
            return Some(if here { AckStatus::Published } else { AckStatus::Failed });
        }
        if !self.kernel.shared.cluster.is_up() {
            self.kernel.metrics().dropped(DropReason::PublicationRedisAway);
            return Some(AckStatus::Failed);
        }
        // Whoever has `failed` already waits for nothing.
        let ack_to = publication.ack_to.filter(|_| here);
        let outgoing = OutgoingPublication { ack_to, ..*publication };
        if self.kernel.lanes.try_forward(partition, &outgoing).is_err() {
            self.kernel.metrics().dropped(DropReason::PublicationLaneFull);
            return Some(AckStatus::Failed);
        }
        if here { None } else { Some(AckStatus::Failed) }
    }

    /// To all shards of this gateway that have subscribers. Returns false if one of them could not take it.
    fn distribute_here(&mut self, publication: &OutgoingPublication<'_>) -> bool {
        let OutgoingPublication {
            channel: (hash, name),
            frame,
            received_ns,
            ..
        } = *publication;
        let mut taken = self.queue_publication((hash, name), frame.clone(), received_ns);
        for &shard in self.interests.shards(hash, name) {
            if self.kernel.lanes.try_publication(shard, publication).is_err() {
                self.kernel.metrics().dropped(DropReason::PublicationLaneFull);
                taken = false;
            }
        }
        taken
    }

    /// Puts a frame on its way to the subscribers of this shard. Returns false if too much is on its way already.
    pub(super) fn queue_publication(
        &mut self,
        (hash, name): (ChannelHash, &str),
        frame: Bytes,
        received_ns: u64,
    ) -> bool {
        let found = self.channels.find(hash, name);
        let Some(channel) = found.filter(|channel| !self.joins.is_joining(*channel)) else {
            return true;
        };
        let queued = self.channels.publish(channel, frame, received_ns);
        if queued.is_err() {
            self.kernel.metrics().dropped(DropReason::PublicationQueueFull);
        }
        self.note_crowded(channel, (hash, name));
        queued.is_ok()
    }

    /// A shard has its first subscriber of a channel whose home is here.
    pub(super) fn handle_join_item(&mut self, from: ShardId, channel: (ChannelHash, &str), ticket: u64) {
        let join = Join { shard: from, ticket };
        if self.handle_join(self.kernel.homes.partition(channel.1), channel, join) {
            self.kernel.lanes.push(from, ChannelToShard::Joined { ticket });
        }
    }

    /// A shard has no subscriber any more of a channel whose home is here.
    pub(super) fn handle_leave_item(&mut self, from: ShardId, channel: (ChannelHash, &str)) {
        self.handle_leave(self.kernel.homes.partition(channel.1), channel, from);
    }

    /// A publication of another gateway on a channel whose home is here.
    pub(super) fn handle_published_item(&mut self, batch: &Batch<ToShard>, item: &PublicationItem) {
        self.distribute_here(&OutgoingPublication {
            channel: item.channel.read(batch),
            frame: &item.frame,
            ack_to: None,
            received_ns: item.received_ns,
        });
    }

    /// A publication of another shard on a channel whose home is here.
    pub(super) fn handle_publish_item(&mut self, batch: &Batch<ToShard>, publish: &PublishItem) {
        let (hash, name) = publish.channel.read(batch);
        let ack_to = publish.ack_to.as_ref().map(|ack_to| batch.ack_to(batch.from, ack_to));
        let publication = OutgoingPublication {
            channel: (hash, name),
            frame: &publish.frame,
            ack_to,
            received_ns: publish.received_ns,
        };
        let status = self.distribute(self.kernel.homes.partition(name), &publication);
        if let (Some(status), Some(ack_to)) = (status, &ack_to) {
            self.kernel.answer(ack_to, status);
        }
    }

    /// Puts a frame on its way to every connection. `ticket`: to be replied to with their number.
    pub(super) fn queue_broadcast(&mut self, frame: Bytes, ticket: Option<u32>) {
        if self.fan_out.broadcast_bytes > 0 && self.fan_out.broadcast_bytes + frame.len() > BROADCAST_BYTES_MAX {
            self.kernel.metrics().dropped(DropReason::BroadcastQueueFull);
            if let Some(ticket) = ticket {
                self.kernel.reply(ticket, ShardReply::Count(0));
            }
            return;
        }
        self.fan_out.broadcast_bytes += frame.len();
        let broadcast = Broadcast {
            frame,
            next: 0,
            taken: 0,
            ticket,
        };
        self.fan_out.broadcasts.push_back(broadcast);
    }

    /// Goes on with what is on its way to many, as far as one turn may.
    pub fn fan_out(&mut self) {
        self.go_on_reviewing();
        self.fan_out.outboxes = if std::mem::take(&mut self.kernel.turn.interactive) {
            FANOUT_LEAST
        } else {
            (self.fan_out.outboxes + FANOUT_STEP).min(FANOUT_MOST)
        };
        let mut budget = Budget {
            outboxes: self.fan_out.outboxes,
            bytes: FANOUT_BYTES_PER_TURN,
        };
        // Half of a turn is for publications, if there are any.
        let share = if self.channels.is_busy() { 2 } else { 1 };
        let mut of_broadcasts = Budget {
            outboxes: budget.outboxes / share,
            bytes: budget.bytes / share as usize,
        };
        self.go_on_broadcasting(&mut of_broadcasts);
        budget.outboxes -= budget.outboxes / share - of_broadcasts.outboxes;
        // Several frames together must not make a slow consumer of one who takes one at a time.
        let visit_bytes_max = VISIT_BYTES_MAX.min(self.kernel.settings.limits.outbox_bytes / 4);
        self.release_held();
        // Each channel once: its subscribers send what they have before there is more for them.
        for _ in 0..self.channels.busy() {
            if budget.is_spent() {
                break;
            }
            let Some(channel) = self.channels.next_busy(visit_bytes_max) else {
                break;
            };
            let mut held = false;
            while !budget.is_spent()
                && let Some((slot, frames, publications)) = self.channels.next_visit(channel)
            {
                held = self.must_wait(channel, slot, frames.len());
                if held || self.is_about_to_send(slot, frames.len()) {
                    self.channels.put_back(channel, slot, publications);
                    break;
                }
                budget.spend(frames.len());
                self.append_publications(slot, &frames, publications);
            }
            if held {
                self.channels.hold(channel);
            } else {
                self.channels.pause(channel);
            }
        }
        self.tell_no_longer_crowded();
        self.settle();
    }

    /// True if [`Core::fan_out`] has more to do.
    pub(super) fn has_fan_out(&self) -> bool {
        self.channels.is_busy() || !self.fan_out.broadcasts.is_empty() || self.reviews.is_busy()
    }

    /// True if this much would fill more than half of an outbox that the kernel takes from at the end of this turn. Who
    /// keeps up is no slow consumer, however much is published in a turn; the other half is for what cannot wait.
    fn is_about_to_send(&mut self, slot: u32, bytes: usize) -> bool {
        let half = self.kernel.settings.limits.outbox_bytes / 2;
        let conn = self.kernel.conn(slot);
        let is_stuck = conn.outbox.as_ref().is_some_and(|outbox| outbox.in_flight());
        !is_stuck && conn.has_no_room(bytes, half)
    }

    fn append_publications(&mut self, slot: u32, frames: &Bytes, publications: u32) {
        if self
            .kernel
            .append_shared_frames(slot, frames, publications, SentKind::Publication)
        {
            self.kernel.metrics().deliveries.add(publications.into());
        }
    }

    /// Before an administrator closes a connection: what was broadcast before that wish comes before the close.
    pub(super) fn settle_broadcasts(&mut self, slot: u32) {
        let mut broadcasts = std::mem::take(&mut self.fan_out.broadcasts);
        for broadcast in broadcasts.iter_mut().filter(|broadcast| broadcast.next <= slot) {
            // A slow consumer is closed by the first that it has no room for.
            if matches!(self.kernel.conn(slot).stage, Stage::Open) {
                let taken = self.kernel.append_shared(slot, &broadcast.frame, SentKind::Broadcast);
                broadcast.taken += u64::from(taken);
            }
        }
        self.fan_out.broadcasts = broadcasts;
    }

    fn go_on_broadcasting(&mut self, budget: &mut Budget) {
        while !budget.is_spent()
            && let Some(mut broadcast) = self.fan_out.broadcasts.pop_front()
        {
            while !budget.is_spent() && (broadcast.next as usize) < self.kernel.connections.len() {
                let slot = broadcast.next;
                broadcast.next += 1;
                if matches!(self.kernel.conn(slot).stage, Stage::Open) {
                    budget.spend(broadcast.frame.len());
                    let taken = self.kernel.append_shared(slot, &broadcast.frame, SentKind::Broadcast);
                    broadcast.taken += u64::from(taken);
                }
            }
            if (broadcast.next as usize) < self.kernel.connections.len() {
                self.fan_out.broadcasts.push_front(broadcast);
            } else {
                self.fan_out.broadcast_bytes -= broadcast.frame.len();
                if let Some(ticket) = broadcast.ticket {
                    self.kernel.reply(ticket, ShardReply::Count(broadcast.taken));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::engine::{Payload, Waker};
    use crate::lanes::{self, Lanes};
    use crate::router::HomeMap;
    use crate::settings::Settings;
    use crate::shared::{Now, Shared};
    use crate::wire::ws::close::CloseReason;

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
        let lanes = Lanes::new(ShardId(0), lanes::mailboxes(inboxes.senders, wakers, None), depths);
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
        core.serve_strangers();
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

    /// Two answers are owed to one who leaves before the channel's home has said anything, and there is no room for the first.
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
                core.joins
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
            encode::close(&mut close, CloseReason::SlowConsumer);
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
