//! Mail about direct messages: on their way to a shard or to other gateways, and what became of
//! them.

use uuid::Uuid;

use super::{LANE_ITEMS_MAX, LANE_ITEMS_RESERVED, LaneFull, Lanes, Span};
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::router::UserHash;
use crate::router::locations::PeerSet;
use crate::wire::message::AckStatus;

/// Mail for a shard about direct messages.
#[derive(Debug)]
pub enum MessageToShard {
    /// From another shard: a message for a user who lives on the receiving shard.
    Message(MessageItem),
    /// From the control thread: a message of another gateway for a user who, it thinks, is here.
    FromGateway {
        /// The receiver's hash.
        hash: UserHash,
        /// The receiver's id.
        to: Span,
        /// Its body.
        body: Span,
        /// Its index in the packet, if its sender wants to hear what became of it.
        index: Option<u16>,
        /// When this gateway got it, nanoseconds of the gateway's clock.
        received_ns: u64,
    },
    /// From the control thread: the shard has all its messages of a packet, and says which it
    /// missed.
    PacketEnd {
        /// Names the packet.
        packet: u32,
    },
    /// From the control thread: the answer to [`MessageToControl::Locate`].
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
}

/// Mail for a shard whose connection sent a message or a publication, from another shard or from
/// the control thread.
#[derive(Debug)]
pub struct AckToShard {
    /// The connection, and its ids.
    pub ack_to: AckToSpan,
    /// What became of it.
    pub status: AckStatus,
}

/// Mail for the control thread about direct messages.
#[derive(Debug)]
pub enum MessageToControl {
    /// A message for a user on other gateways.
    Route(RouteItem),
    /// On which other gateways is this user?
    Locate {
        /// The user's hash.
        hash: UserHash,
        /// The user.
        user: Span,
    },
    /// The shard's part of a packet is through.
    PacketDone {
        /// Names the packet.
        packet: u32,
        /// Indexes in the packet of messages that nobody here took.
        missed: Vec<u16>,
    },
}

/// On which other gateways a user is, as far as that could be learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// There; true until [`MessageToShard::Forget`].
    Known(PeerSet),
    /// There a moment ago, but perhaps not any more: not to be kept.
    Fleeting(PeerSet),
    /// The cluster could not be asked.
    Unknown,
}

/// A message on its way to another shard.
#[derive(Debug, Clone, Copy)]
pub struct MessageItem {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: Span,
    /// Its body, as every device gets it.
    pub body: Span,
    /// The sender, if it gave an `id`.
    pub ack_to: Option<AckToSpan>,
    /// When the gateway took it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}

/// A message on its way to other gateways.
#[derive(Debug, Clone)]
pub struct RouteItem {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: Span,
    /// Its body.
    pub body: Span,
    /// Where to; not empty.
    pub peers: PeerSet,
    /// The sender, if it gave an `id`, and its shard.
    pub ack_to: Option<(ShardId, AckToSpan)>,
}

/// The receiver of an ack: a sender that gave its message or publication an `id`. As a batch
/// carries it; the shard is said by what it lies in. [`AckTo`] is the same with its text at hand.
#[derive(Debug, Clone, Copy)]
pub struct AckToSpan {
    /// The sender's connection.
    pub conn: SocketKey,
    /// The sender's own id.
    pub client_id: Span,
    /// The gateway's id.
    pub message_id: Uuid,
}

/// A message as [`Lanes::try_message`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: &'a str,
    /// Its body.
    pub body: &'a [u8],
    /// The sender, on this shard, if it gave an `id`.
    pub ack_to: Option<AckTo<'a>>,
    /// When the gateway took it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}

/// The receiver of an ack: a sender that gave its message or publication an `id`.
#[derive(Debug, Clone, Copy)]
pub struct AckTo<'a> {
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
    /// Its body.
    pub body: &'a [u8],
    /// Where to; not empty.
    pub peers: &'a PeerSet,
    /// The sender, if it gave an `id`.
    pub ack_to: Option<AckTo<'a>>,
}

/// A message of another gateway as [`Lanes::try_from_gateway`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: &'a str,
    /// Its body.
    pub body: &'a [u8],
    /// Its index in the packet, if its sender wants to hear what became of it.
    pub index: Option<u16>,
    /// When this gateway got it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}

impl Lanes {
    /// Passes a message on.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_message(&mut self, to: ShardId, message: &OutgoingMessage<'_>) -> Result<(), LaneFull> {
        let lane = self.shard(to);
        lane.check_bytes()?;
        let item = MessageItem {
            hash: message.hash,
            to: lane.write(message.to.as_bytes()),
            body: lane.write(message.body),
            ack_to: message.ack_to.map(|ack_to| lane.write_ack_to(&ack_to)),
            received_ns: message.received_ns,
        };
        lane.push(MessageToShard::Message(item));
        Ok(())
    }

    /// Gives a message of another gateway to a shard.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_from_gateway(&mut self, to: ShardId, message: &Incoming<'_>) -> Result<(), LaneFull> {
        let lane = self.shard(to);
        lane.check_bytes()?;
        let item = MessageToShard::FromGateway {
            hash: message.hash,
            to: lane.write(message.to.as_bytes()),
            body: lane.write(message.body),
            index: message.index,
            received_ns: message.received_ns,
        };
        lane.push(item);
        Ok(())
    }

    /// Says what became of a message or a publication.
    pub fn ack(&mut self, ack_to: &AckTo<'_>, status: AckStatus) {
        let lane = self.shard(ack_to.shard);
        let ack_to = lane.write_ack_to(ack_to);
        lane.push(AckToShard { ack_to, status });
    }

    /// Says where a user is.
    pub fn located(&mut self, to: ShardId, (hash, user): (UserHash, &str), location: Location) {
        let lane = self.shard(to);
        let user = lane.write(user.as_bytes());
        lane.push(MessageToShard::Located { hash, user, location });
    }

    /// Says that a user may have moved.
    pub fn forget(&mut self, to: ShardId, (hash, user): (UserHash, &str)) {
        let lane = self.shard(to);
        let user = lane.write(user.as_bytes());
        lane.push(MessageToShard::Forget { hash, user });
    }

    /// Passes a message on to other gateways, by the control thread.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_route(&mut self, route: &Route<'_>) -> Result<(), LaneFull> {
        let lane = self.control()?;
        lane.check_bytes()?;
        let item = RouteItem {
            hash: route.hash,
            to: lane.write(route.to.as_bytes()),
            body: lane.write(route.body),
            peers: route.peers.clone(),
            ack_to: route.ack_to.map(|ack_to| (ack_to.shard, lane.write_ack_to(&ack_to))),
        };
        lane.push(MessageToControl::Route(item));
        Ok(())
    }

    /// Asks the control thread on which other gateways a user is.
    ///
    /// # Errors
    /// The lane is full: cannot be asked now.
    pub fn try_locate(&mut self, hash: UserHash, user: &str) -> Result<(), LaneFull> {
        let lane = self.control()?;
        lane.check(LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let user = lane.write(user.as_bytes());
        lane.push(MessageToControl::Locate { hash, user });
        Ok(())
    }
}
