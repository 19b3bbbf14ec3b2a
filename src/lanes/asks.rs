//! What the control thread asks of one shard for an administrator, and what the shard replies.
//!
//! Plain data. Each [`Ask`] has a ticket and gets one [`Reply`]. None keeps a shard for long: a walk through its connections
//! is many asks.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::admin::ConnectionInfo;
use crate::wire::json::encode::AckStatus;
use crate::wire::ws::close::CloseReason;

/// What a shard shall do or tell.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Some connections of users, from this slot on. [`Reply::Page`].
    List {
        /// Of this one, who lives on the shard, only.
        user: Option<Arc<str>>,
        /// The first slot to look at.
        from: u32,
        /// At most so many.
        limit: usize,
    },
    /// The connection with this id, looked for from this slot on. [`Reply::Page`] of one, or none.
    Find {
        /// The id.
        id: Uuid,
        /// The first slot to look at.
        from: u32,
        /// It shall be closed.
        close: Option<CloseReason>,
    },
    /// How many connections a user has on the shard, who lives there. [`Reply::Count`].
    Count {
        /// The user.
        user: Arc<str>,
    },
    /// Closes all connections of a user who lives on the shard. [`Reply::Count`].
    CloseUser {
        /// The user.
        user: Arc<str>,
        /// Why.
        reason: CloseReason,
    },
    /// Ends the subscriptions of a user who lives on the shard to a channel. [`Reply::Count`]
    EndSubscription {
        /// The user.
        user: Arc<str>,
        /// The channel.
        channel: Arc<str>,
    },
    /// Some channels with subscribers on the shard, from this place on. [`Reply::Channels`]
    Channels {
        /// What their names begin with.
        prefix: Arc<str>,
        /// What their names come after, in byte order.
        after: Arc<str>,
        /// The first place to look at.
        from: u32,
    },
    /// A frame for every connection. [`Reply::Count`] of those that took it, once all have been offered it.
    Broadcast(Bytes),
    /// A message for a user who lives on the shard. [`Reply::Status`], once it is known.
    Message {
        /// The receiver.
        to: Arc<str>,
        /// The whole frame.
        frame: Bytes,
        /// The gateway's id of it.
        message_id: Uuid,
        /// When the gateway took it, nanoseconds of its clock.
        received_ns: u64,
    },
    /// A publication on a channel whose home is the shard. [`Reply::Status`], once it is known.
    Publish {
        /// The channel.
        channel: Arc<str>,
        /// The whole frame.
        frame: Bytes,
        /// The gateway's id of it.
        message_id: Uuid,
        /// When the gateway took it, nanoseconds of its clock.
        received_ns: u64,
    },
}

/// What a shard says to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Connections that were found.
    Page {
        /// As many as one ask may find.
        connections: Vec<ConnectionInfo>,
        /// The next slot to look at; `None`: there are no more.
        next: Option<u32>,
    },
    /// Channels that were found, with the number of subscribers on the shard.
    Channels {
        /// As many as one ask may find.
        channels: Vec<(Box<str>, u64)>,
        /// The next place to look at; `None`: there are no more.
        next: Option<u32>,
    },
    /// So many.
    Count(u64),
    /// What became of it.
    Status(AckStatus),
}
