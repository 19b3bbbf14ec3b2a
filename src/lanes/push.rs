//! The sending end of lanes: one method per thing that can be said.
//!
//! What is bounded by nothing else is `try_`: a lane that holds enough takes no more of it. Answers always go, as
//! there is at most one per request.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use bytes::Bytes;

use super::items::{AckWanted, ChannelName, Handoff, Item, MessageItem, PublishItem, RouteItem, Span};
use super::{LANE_BYTES_MAX, LANE_ITEMS_MAX, LANE_ITEMS_RESERVED, LaneFull, Lanes};
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::router::locations::Places;
use crate::router::{ChannelHash, Partition, UserHash};

impl Lanes {
    fn check(&self, to: ShardId, items_max: u32) -> Result<(), LaneFull> {
        let pending = &self.pending[to.index()];
        let depth = self.depths.of(self.me, to);
        let items = depth.items.load(Ordering::Relaxed) as usize + pending.items.len();
        if items >= items_max as usize {
            Err(LaneFull)
        } else {
            Ok(())
        }
    }

    /// Messages and publications are held to the bytes: nothing else has many.
    fn check_bytes(&self, to: ShardId) -> Result<(), LaneFull> {
        self.check(to, LANE_ITEMS_MAX)?;
        let bytes = self.depths.of(self.me, to).bytes.load(Ordering::Relaxed);
        if bytes + self.pending[to.index()].weight() >= LANE_BYTES_MAX {
            return Err(LaneFull);
        }
        Ok(())
    }

    /// True if a lane takes more.
    pub fn has_room(&self, to: ShardId) -> bool {
        self.check(to, LANE_ITEMS_MAX).is_ok()
    }

    fn write(&mut self, to: ShardId, bytes: &[u8]) -> Span {
        let buffer = &mut self.pending[to.index()].bytes;
        let start = buffer.len() as u32;
        buffer.extend_from_slice(bytes);
        Span {
            start,
            len: bytes.len() as u32,
        }
    }

    fn write_wanted(&mut self, to: ShardId, wanted: &Wanted<'_>) -> AckWanted {
        AckWanted {
            conn: wanted.conn,
            client_id: self.write(to, wanted.client_id.as_bytes()),
            message_id: wanted.message_id,
        }
    }

    /// Hands a connection over.
    ///
    /// # Errors
    /// The lane is full; the socket comes back with its owner's box.
    pub fn try_hand_over(&mut self, to: ShardId, hand_off: Box<Handoff>) -> Result<(), Box<Handoff>> {
        if self.check(to, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED).is_err() {
            return Err(hand_off);
        }
        self.pending[to.index()].items.push(Item::Handoff(hand_off));
        Ok(())
    }

    /// Passes a message on. `frame` is the whole frame.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_message(&mut self, to: ShardId, message: &OutgoingMessage<'_>) -> Result<(), LaneFull> {
        self.check_bytes(to)?;
        let user = self.write(to, message.to.as_bytes());
        let frame = self.write(to, message.frame);
        let ack = message.wanted.map(|wanted| self.write_wanted(to, &wanted));
        self.pending[to.index()].items.push(Item::Message(MessageItem {
            hash: message.hash,
            to: user,
            frame,
            ack,
            received_ns: message.received_ns,
        }));
        Ok(())
    }

    fn write_channel(&mut self, to: ShardId, (hash, name): (ChannelHash, &str)) -> ChannelName {
        let name = self.write(to, name.as_bytes());
        ChannelName { hash, name }
    }

    fn share(&mut self, to: ShardId, frame: &Bytes) -> Bytes {
        self.pending[to.index()].shared_bytes += frame.len();
        frame.clone()
    }

    /// Passes a publication on to its channel's home.
    ///
    /// # Errors
    /// The lane is full: the publication has failed.
    pub fn try_publish(&mut self, to: ShardId, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        self.check_bytes(to)?;
        let item = Item::Publish(PublishItem {
            channel: self.write_channel(to, publication.channel),
            frame: self.share(to, publication.frame),
            ack: publication.wanted.map(|wanted| self.write_wanted(to, &wanted)),
            received_ns: publication.received_ns,
        });
        self.push(to, item);
        Ok(())
    }

    /// Gives a publication to the subscribers on a shard.
    ///
    /// # Errors
    /// The lane is full: it is lost for them.
    pub fn try_publication(&mut self, to: ShardId, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        self.try_give(to, publication, |channel, frame, received_ns| Item::Publication {
            channel,
            frame,
            received_ns,
        })
    }

    /// Gives a publication of another gateway to its channel's home.
    ///
    /// # Errors
    /// The lane is full: it is lost for the subscribers here.
    pub fn try_published(&mut self, to: ShardId, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        self.try_give(to, publication, |channel, frame, received_ns| Item::Published {
            channel,
            frame,
            received_ns,
        })
    }

    fn try_give(
        &mut self,
        to: ShardId,
        publication: &OutgoingPublication<'_>,
        item: impl FnOnce(ChannelName, Bytes, u64) -> Item,
    ) -> Result<(), LaneFull> {
        self.check_bytes(to)?;
        let channel = self.write_channel(to, publication.channel);
        let frame = self.share(to, publication.frame);
        self.push(to, item(channel, frame, publication.received_ns));
        Ok(())
    }

    /// Gives a publication to the control thread, for the other gateways.
    ///
    /// # Errors
    /// The lane is full: the other gateways do not get it.
    pub fn try_spread(
        &mut self,
        to: ShardId,
        partition: Partition,
        publication: &OutgoingPublication<'_>,
    ) -> Result<(), LaneFull> {
        self.check_bytes(to)?;
        let wanted = publication.wanted;
        let item = Item::Spread {
            partition,
            channel: self.write(to, publication.channel.1.as_bytes()),
            frame: self.share(to, publication.frame),
            ack: wanted.map(|wanted| (wanted.shard, self.write_wanted(to, &wanted))),
        };
        self.push(to, item);
        Ok(())
    }

    /// Tells a channel's home that this shard has its first subscriber.
    ///
    /// # Errors
    /// The lane is full: not now.
    pub fn try_join(&mut self, to: ShardId, channel: (ChannelHash, &str), ticket: u64) -> Result<(), LaneFull> {
        self.check(to, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let channel = self.write_channel(to, channel);
        self.push(to, Item::Join { channel, ticket });
        Ok(())
    }

    /// Tells a channel's home that this shard's last subscriber has left: at most once per join.
    pub fn leave(&mut self, to: ShardId, channel: (ChannelHash, &str)) {
        let channel = self.write_channel(to, channel);
        self.push(to, Item::Leave { channel });
    }

    /// Tells a channel's home whether too much is on its way to the channel's subscribers here.
    pub fn crowded(&mut self, to: ShardId, channel: (ChannelHash, &str), crowded: bool) {
        let channel = self.write_channel(to, channel);
        self.push(to, Item::Crowded { channel, crowded });
    }

    /// Asks which users are online.
    ///
    /// # Errors
    /// The lane is full: cannot be asked now.
    pub fn try_presence_query<'a>(
        &mut self,
        to: ShardId,
        (ticket, asker): (u32, UserHash),
        users: impl Iterator<Item = (u8, UserHash, &'a str)>,
    ) -> Result<(), LaneFull> {
        self.check(to, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let users = users
            .map(|(place, hash, user)| (place, hash, self.write(to, user.as_bytes())))
            .collect();
        self.pending[to.index()]
            .items
            .push(Item::PresenceQuery { ticket, asker, users });
        Ok(())
    }

    /// Answers a question.
    pub fn presence_answer(&mut self, to: ShardId, ticket: u32, online: u128, known: u128) {
        self.pending[to.index()]
            .items
            .push(Item::PresenceAnswer { ticket, online, known });
    }

    /// Sends a frame to the connection that asked for it; `write` appends the frame.
    pub fn reply(&mut self, to: ShardId, conn: SocketKey, write: impl FnOnce(&mut Vec<u8>)) {
        let batch = &mut self.pending[to.index()];
        let start = batch.bytes.len();
        write(&mut batch.bytes);
        let frame = Span {
            start: start as u32,
            len: (batch.bytes.len() - start) as u32,
        };
        batch.items.push(Item::Reply { to: conn, frame });
    }

    /// Passes a message on to other gateways, by the control thread.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_route(&mut self, control: ShardId, route: &Route<'_>) -> Result<(), LaneFull> {
        self.check_bytes(control)?;
        let item = RouteItem {
            hash: route.hash,
            to: self.write(control, route.to.as_bytes()),
            frame: self.write(control, route.frame),
            places: route.places.clone(),
            ack: route
                .wanted
                .map(|wanted| (wanted.shard, self.write_wanted(control, &wanted))),
        };
        self.pending[control.index()].items.push(Item::Route(item));
        Ok(())
    }

    /// Asks the control thread on which other gateways a user is.
    ///
    /// # Errors
    /// The lane is full: cannot be asked now.
    pub fn try_locate(&mut self, control: ShardId, hash: UserHash, user: &str) -> Result<(), LaneFull> {
        self.check(control, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let user = self.write(control, user.as_bytes());
        self.pending[control.index()].items.push(Item::Locate { hash, user });
        Ok(())
    }

    /// Tells the control thread how many connections a user has here now.
    ///
    /// # Errors
    /// The lane is full: [`Item::PresenceLost`] is owed.
    pub fn try_presence(&mut self, control: ShardId, user: &str, connections: u32) -> Result<(), LaneFull> {
        self.check(control, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let user = self.write(control, user.as_bytes());
        let items = &mut self.pending[control.index()].items;
        items.push(Item::Presence { user, connections });
        Ok(())
    }

    /// Says something that answers a request, or is as rare, and so is never refused.
    pub fn push(&mut self, to: ShardId, item: Item) {
        self.pending[to.index()].items.push(item);
    }

    /// As [`Lanes::push`], for an item that names a user.
    pub fn say_of_user(&mut self, to: ShardId, user: &str, item: impl FnOnce(Span) -> Item) {
        let user = self.write(to, user.as_bytes());
        self.push(to, item(user));
    }

    /// As [`Lanes::push`], for an item that names several users.
    pub fn say_of_users<'a>(
        &mut self,
        to: ShardId,
        users: impl Iterator<Item = (UserHash, &'a str)>,
        item: impl FnOnce(Vec<(UserHash, Span)>) -> Item,
    ) {
        let users = users
            .map(|(hash, user)| (hash, self.write(to, user.as_bytes())))
            .collect();
        self.push(to, item(users));
    }

    /// Says who is here, and how many connections each has.
    pub fn users_reviewed<'a>(
        &mut self,
        control: ShardId,
        (round, page): (u32, Option<Option<u32>>),
        users: impl Iterator<Item = (&'a str, usize)>,
    ) {
        let users = users
            .map(|(user, connections)| (self.write(control, user.as_bytes()), connections as u32))
            .collect();
        self.push(control, Item::UsersReviewed { round, page, users });
    }

    /// Gives a message of another gateway to a shard.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_from_gateway(
        &mut self,
        to: ShardId,
        (hash, user): (UserHash, &str),
        frame: &[u8],
        place: Option<u16>,
        received_ns: u64,
    ) -> Result<(), LaneFull> {
        self.check_bytes(to)?;
        let item = Item::FromGateway {
            hash,
            to: self.write(to, user.as_bytes()),
            frame: self.write(to, frame),
            place,
            received_ns,
        };
        self.push(to, item);
        Ok(())
    }
}

/// A message as [`Lanes::try_message`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: &'a str,
    /// The whole frame.
    pub frame: &'a [u8],
    /// The sender, on this shard, if it wants to hear.
    pub wanted: Option<Wanted<'a>>,
    /// When the gateway took it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}

/// A publication as [`Lanes`] take it.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingPublication<'a> {
    /// The channel: the hash of its name, and its name.
    pub channel: (ChannelHash, &'a str),
    /// The whole frame.
    pub frame: &'a Bytes,
    /// The publisher, if it wants to hear.
    pub wanted: Option<Wanted<'a>>,
    /// When the gateway took it, nanoseconds of its clock.
    pub received_ns: u64,
}

/// Who wants to hear what became of a message.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The shard of the sender.
    pub shard: ShardId,
    /// The sender's connection there.
    pub conn: SocketKey,
    /// The sender's own id.
    pub client_id: &'a str,
    /// The gateway's id.
    pub message_id: Uuid,
}

/// A message for other gateways as [`Lanes::try_route`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: &'a str,
    /// The whole frame.
    pub frame: &'a [u8],
    /// Where to; not empty.
    pub places: &'a Places,
    /// Who wants to hear.
    pub wanted: Option<Wanted<'a>>,
}
