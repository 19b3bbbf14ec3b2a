//! Mail about administrators' requests: queries to shards, their replies, and commands to all
//! shards.
//!
//! Plain data. Each [`ShardQuery`] has a ticket and gets one [`ShardReply`]. None keeps a shard for
//! long: a walk through its connections is many queries.

use core::net::SocketAddr;
use std::sync::Arc;

use uuid::Uuid;

use crate::admin::{AdminReply, ConnectionInfo, Request};
use crate::engine::SocketKey;
use crate::wire::framing::Encoded;
use crate::wire::message::AckStatus;
use crate::wire::ws::close::CloseReason;

/// Mail for a shard about administrators' requests.
#[derive(Debug)]
pub enum AdminToShard {
    /// A query, to be replied to with this ticket.
    Query(u32, Box<ShardQuery>),
    /// The answer to an administrator's request that came over this connection.
    Answer(SocketKey, Box<AdminReply>),
}

/// Mail for the control thread about administrators' requests.
#[derive(Debug)]
pub enum AdminToControl {
    /// An administrator asks: to be answered with [`AdminToShard::Answer`].
    Request(Box<AdminRequest>),
    /// The reply to [`AdminToShard::Query`] of this ticket.
    Reply(u32, ShardReply),
}

/// A request of an administrator over a connection of a shard.
#[derive(Debug)]
pub struct AdminRequest {
    /// The connection.
    pub conn: SocketKey,
    /// Where the connection comes from, if that is known.
    pub from: Option<SocketAddr>,
    /// What is asked.
    pub request: Request,
}

/// What every shard of every gateway does, or the one that is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardCommand {
    /// Send a message to every connection.
    Broadcast(Encoded),
    /// Close all connections of a user.
    CloseUser {
        /// The user.
        user: Arc<str>,
        /// Why.
        reason: CloseReason,
    },
    /// End the subscriptions of a user to a channel.
    EndSubscription {
        /// The user.
        user: Arc<str>,
        /// The channel.
        channel: Arc<str>,
    },
}

/// What a shard is asked on behalf of an administrator.
#[derive(Debug, Clone)]
pub enum ShardQuery {
    /// Some connections of users, from this slot on. [`ShardReply::Page`].
    List {
        /// Of this one, who lives on the shard, only.
        user: Option<Arc<str>>,
        /// The first slot to look at.
        from: u32,
        /// At most so many.
        limit: usize,
    },
    /// The connection with this id, looked for from this slot on. [`ShardReply::Page`] of one, or
    /// none.
    Find {
        /// The id.
        id: Uuid,
        /// The first slot to look at.
        from: u32,
        /// It shall be closed.
        close: Option<CloseReason>,
    },
    /// How many connections a user has on the shard, who lives there. [`ShardReply::Count`].
    Count {
        /// The user.
        user: Arc<str>,
    },
    /// Some channels with subscribers on the shard, from this slot on. [`ShardReply::Channels`]
    Channels {
        /// What their names begin with.
        prefix: Arc<str>,
        /// What their names come after, in byte order.
        after: Arc<str>,
        /// The first slot to look at.
        from: u32,
    },
    /// Carry out a command. [`ShardReply::Count`] of the connections that took a broadcast, once
    /// all have been offered it; else of what was closed or ended.
    Command(ShardCommand),
    /// A message for a user who lives on the shard. [`ShardReply::Status`], once it is known.
    Message {
        /// The receiver.
        to: Arc<str>,
        /// Its body.
        body: Box<[u8]>,
        /// The gateway's id of it.
        message_id: Uuid,
        /// When the gateway took it, nanoseconds of its clock.
        received_ns: u64,
    },
    /// A publication on a channel whose home is the shard. [`ShardReply::Status`], once it is
    /// known.
    Publish {
        /// The channel.
        channel: Arc<str>,
        /// Its body.
        message: Encoded,
        /// The gateway's id of it.
        message_id: Uuid,
        /// When the gateway took it, nanoseconds of its clock.
        received_ns: u64,
    },
}

/// What a shard says to a [`ShardQuery`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardReply {
    /// Connections that were found.
    Page {
        /// As many as one query may find.
        connections: Vec<ConnectionInfo>,
        /// The next slot to look at; `None`: there are no more.
        next: Option<u32>,
    },
    /// Channels that were found, with the number of subscribers on the shard.
    Channels {
        /// As many as one query may find.
        channels: Vec<(Box<str>, u64)>,
        /// The next slot to look at; `None`: there are no more.
        next: Option<u32>,
    },
    /// So many.
    Count(u64),
    /// What became of it.
    Status(AckStatus),
}
