//! What threads say to each other: a [`Batch`] of [`Item`]s, whose bytes lie in one buffer.
//!
//! Plain data; a batch belongs to whoever holds it.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::Wanted;
use crate::auth::Grant;
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::router::locations::Places;
use crate::router::{ChannelHash, Partition, UserHash};
use crate::session::rate::RateLimiter;
use crate::tls::Tls;
use crate::wire::json::encode::AckStatus;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head::Upgrade;

/// A piece of a batch's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// Everything that one thread says to another in one turn.
#[derive(Debug)]
pub struct Batch {
    /// Who says it.
    pub from: ShardId,
    /// In the order in which it was said.
    pub items: Vec<Item>,
    pub(super) bytes: Vec<u8>,
    /// Bytes of frames that items share with others.
    pub(super) shared_bytes: usize,
}

impl Batch {
    pub(super) fn new(from: ShardId) -> Self {
        Batch {
            from,
            items: Vec::new(),
            bytes: Vec::new(),
            shared_bytes: 0,
        }
    }

    /// What it takes of its lane, bytes.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.shared_bytes
    }

    /// The bytes of a span of this batch.
    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// Who wants to hear, on this shard.
    pub fn wanted(&self, shard: ShardId, ack: &AckWanted) -> Wanted<'_> {
        Wanted {
            shard,
            conn: ack.conn,
            client_id: self.text(ack.client_id),
            message_id: ack.message_id,
        }
    }

    /// The text of a span of this batch.
    pub fn text(&self, span: Span) -> &str {
        let text = std::str::from_utf8(self.bytes(span));
        debug_assert!(text.is_ok(), "spans of text are made of str");
        text.unwrap_or_default()
    }
}

/// One thing said between threads. The control thread is one of them where there is a cluster.
#[derive(Debug)]
pub enum Item {
    /// A connection whose user lives on the receiving shard.
    Handoff(Box<Handoff>),
    /// A message for a user who lives on the receiving shard.
    Message(MessageItem),
    /// A frame for a connection of the receiving shard: the answer to something that it asked.
    Reply {
        /// The connection that asked.
        to: SocketKey,
        /// A whole frame.
        frame: Span,
    },
    /// Which of these users are online?
    PresenceQuery {
        /// Names the question on the asking shard.
        ticket: u32,
        /// The hash of the asking user: users take turns.
        asker: UserHash,
        /// Their places in the question, and their ids.
        users: Vec<(u8, UserHash, Span)>,
    },
    /// The answer, where bit `n` is for the user at place `n`.
    PresenceAnswer {
        /// As asked.
        ticket: u32,
        /// Places of users who are online.
        online: u128,
        /// Places of users of whom nobody else needs to be asked.
        known: u128,
    },
    /// The other answer: the cluster cannot be asked.
    PresenceUnknown {
        /// As asked.
        ticket: u32,
        /// It could, but too much is asked already.
        overloaded: bool,
    },

    /// To a channel's home: a publication.
    Publish(PublishItem),
    /// To a channel's home: this shard has its first subscriber.
    Join {
        /// The channel.
        channel: ChannelName,
        /// Comes back with [`Item::Joined`].
        ticket: u64,
    },
    /// To a channel's home: this shard's last subscriber has left.
    Leave {
        /// The channel.
        channel: ChannelName,
    },
    /// From a channel's home: what is published from now on will come.
    Joined {
        /// As asked.
        ticket: u64,
    },
    /// To a channel's home: this shard has too much on its way to the channel's subscribers, or has not any more.
    Crowded {
        /// The channel.
        channel: ChannelName,
        /// From now on.
        crowded: bool,
    },
    /// From a channel's home: a publication for the subscribers on this shard.
    Publication {
        /// The channel.
        channel: ChannelName,
        /// The whole frame.
        frame: Bytes,
        /// When this gateway got it, nanoseconds of its clock.
        received_ns: u64,
    },

    /// To the control thread: what is published in this partition is wanted, or not any more.
    PartitionWanted {
        /// The partition.
        partition: Partition,
        /// From now on.
        wanted: bool,
    },
    /// To the control thread: a publication for the other gateways.
    Spread {
        /// Its partition.
        partition: Partition,
        /// The channel.
        channel: Span,
        /// The whole frame.
        frame: Bytes,
        /// Who wants to hear what became of it, and on which shard they are.
        ack: Option<(ShardId, AckWanted)>,
    },
    /// From the control thread: a partition is heard from now on, or not any more.
    PartitionHeard {
        /// The partition.
        partition: Partition,
        /// From now on.
        heard: bool,
    },
    /// From the control thread to a channel's home: a publication of another gateway.
    Published {
        /// The channel.
        channel: ChannelName,
        /// The whole frame.
        frame: Bytes,
        /// When this gateway got it, nanoseconds of its clock.
        received_ns: u64,
    },

    /// To the control thread: a message for a user on other gateways.
    Route(RouteItem),
    /// To the control thread: on which other gateways is this user?
    Locate {
        /// The user's hash.
        hash: UserHash,
        /// The user.
        user: Span,
    },
    /// To the control thread: a user has this many connections on this gateway now, perhaps none.
    Presence {
        /// The user.
        user: Span,
        /// Connections.
        connections: u32,
    },
    /// To the control thread: changes of presence did not fit into the lane; all users must be listed again.
    PresenceLost,
    /// To the control thread: as many users as were asked for have been told; go on here, if there are more.
    UsersListed {
        /// As asked.
        round: u32,
        /// Where to go on.
        next: Option<u32>,
    },
    /// To the control thread: users who are here, and how many connections they have, as [`Item::ReviewPage`] or
    /// [`Item::ReviewUsers`] asked for.
    UsersReviewed {
        /// As asked.
        round: u32,
        /// It was a page; where to go on, if there are more.
        page: Option<Option<u32>>,
        /// The users.
        users: Vec<(Span, u32)>,
    },
    /// To the control thread: this shard's part of a packet is through.
    PacketDone {
        /// Names the packet.
        packet: u32,
        /// Places in the packet of messages that nobody here took.
        missed: Vec<u16>,
    },

    /// From the control thread: the answer to [`Item::Locate`].
    Located {
        /// The user's hash.
        hash: UserHash,
        /// The user.
        user: Span,
        /// Where the user is.
        location: Location,
    },
    /// From the control thread: a user may have moved.
    Forget {
        /// The user's hash.
        hash: UserHash,
        /// The user.
        user: Span,
    },
    /// From the control thread: any user may have moved.
    ForgetAll,
    /// From the control thread: a message of another gateway for a user who, they think, is here.
    FromGateway {
        /// The receiver's hash.
        hash: UserHash,
        /// The receiver's id.
        to: Span,
        /// The whole frame.
        frame: Span,
        /// Its place in the packet, if its sender wants to hear.
        place: Option<u16>,
        /// When this gateway got it, nanoseconds of the gateway's clock.
        received_ns: u64,
    },
    /// From the control thread: that was all of a packet for this shard; say what was missed.
    PacketEnd {
        /// Names the packet.
        packet: u32,
    },
    /// From the control thread: what became of a message.
    Ack {
        /// The connection that sent it.
        conn: SocketKey,
        /// The sender's own id.
        client_id: Span,
        /// The gateway's id.
        message_id: Uuid,
        /// What became of it.
        status: AckStatus,
    },
    /// From the control thread: tell some users, from this place on, by [`Item::Presence`], then [`Item::UsersListed`].
    ListUsers {
        /// Comes back with the answer.
        round: u32,
        /// 0, or as the last answer said.
        from: u32,
        /// How many places to look at.
        count: u32,
    },
    /// From the control thread: say who is at these places, by [`Item::UsersReviewed`].
    ReviewPage {
        /// Comes back with the answer.
        round: u32,
        /// 0, or as the last answer said.
        from: u32,
        /// How many places to look at.
        count: u32,
    },
    /// From the control thread: say who of these is here, by [`Item::UsersReviewed`].
    ReviewUsers {
        /// Comes back with the answer.
        round: u32,
        /// The users.
        users: Vec<(UserHash, Span)>,
    },
    /// From the control thread: these users are written down as being here; tell those who are not.
    CheckUsers {
        /// The users.
        users: Vec<(UserHash, Span)>,
    },
}

/// A channel, as one batch names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelName {
    /// The hash of its name.
    pub hash: ChannelHash,
    /// Its name.
    pub name: Span,
}

/// A publication on its way to its channel's home.
#[derive(Debug)]
pub struct PublishItem {
    /// The channel.
    pub channel: ChannelName,
    /// The whole frame as every subscriber gets it.
    pub frame: Bytes,
    /// Who wants to hear what became of it.
    pub ack: Option<AckWanted>,
    /// When the gateway took it, nanoseconds of its clock.
    pub received_ns: u64,
}

/// On which other gateways a user is, as far as that could be learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// There; true until [`Item::Forget`].
    Known(Places),
    /// There a moment ago, but perhaps not any more: not to be kept.
    Fleeting(Places),
    /// The cluster could not be asked.
    Unknown,
}

/// What concerns all shards, or any, and is rare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// A frame for every connection.
    Broadcast(Bytes),
    /// Close all connections of a user.
    CloseUser {
        /// The user.
        user: Arc<str>,
        /// Why.
        reason: CloseReason,
    },
    /// End the subscriptions of a user to a channel, as an administrator wished.
    EndSubscription {
        /// The user.
        user: Arc<str>,
        /// The channel.
        channel: Arc<str>,
    },
}

/// A message on its way to other gateways.
#[derive(Debug, Clone)]
pub struct RouteItem {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: Span,
    /// The whole frame.
    pub frame: Span,
    /// Where to; not empty.
    pub places: Places,
    /// Who wants to hear what became of it, and on which shard they are.
    pub ack: Option<(ShardId, AckWanted)>,
}

/// A message on its way to another shard.
#[derive(Debug, Clone, Copy)]
pub struct MessageItem {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: Span,
    /// The whole frame as every device gets it.
    pub frame: Span,
    /// Who wants to hear what became of it.
    pub ack: Option<AckWanted>,
    /// When the gateway took it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}

/// A sender that gave its message an `id`.
#[derive(Debug, Clone, Copy)]
pub struct AckWanted {
    /// The sender's connection, on the shard that the batch came from.
    pub conn: SocketKey,
    /// The sender's own id.
    pub client_id: Span,
    /// The gateway's id.
    pub message_id: Uuid,
}

/// A socket on its way to the shard of its user.
#[derive(Debug)]
pub struct Handoff {
    /// The socket; nothing is armed for it and nothing in flight. Taken when the engine takes it.
    pub socket: Option<OwnedFd>,
    /// The user.
    pub user: String,
    /// The user's hash.
    pub hash: UserHash,
    /// What the user's token permits; `None` in development mode.
    pub grant: Option<Arc<Grant>>,
    /// The handshake that still wants its `101`; `None` if it was sent and the user came with `auth`.
    pub upgrade: Option<Upgrade>,
    /// What arrived behind the request head or the `auth` frame.
    pub rest: Vec<u8>,
    /// Where the connection comes from, if that is known.
    pub remote: Option<SocketAddr>,
    /// Its TLS, with what has arrived of the next record.
    pub tls: Option<Box<Tls>>,
    /// When it was accepted, Unix milliseconds.
    pub connected_at_ms: u64,
    /// Frames that the connection sent before.
    pub messages_in: u32,
    /// How fast it did.
    pub rate: RateLimiter,
}
