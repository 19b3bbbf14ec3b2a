//! What the gateway says to a client: values, before a codec and a framing make bytes of them.
//!
//! Pure. A new kind of message begins here, and does not compile before each codec and the metrics
//! know it.

use uuid::Uuid;

/// One message to a client.
#[derive(Debug, Clone, Copy)]
pub enum ServerMessage<'a> {
    /// The connection is open.
    Welcome(Welcome<'a>),
    /// The answer to `heartbeat`.
    Heartbeat {
        /// Unix milliseconds.
        ts_ms: u64,
    },
    /// A direct message.
    Message(Message<'a>),
    /// A publication.
    Publication(Publication<'a>),
    /// The client subscribes from now on.
    Subscribed {
        /// The channel.
        channel: &'a str,
        /// The client's own id of its request.
        id: Option<&'a str>,
    },
    /// The client does not subscribe any more, as it wished.
    Unsubscribed {
        /// The channel.
        channel: &'a str,
        /// The client's own id of its request.
        id: Option<&'a str>,
    },
    /// The client does not subscribe any more, though it did not wish that.
    SubscriptionEnded {
        /// The channel.
        channel: &'a str,
        /// Why.
        reason: EndReason,
    },
    /// What became of a message or a publication.
    Ack {
        /// The client's own id of it.
        id: &'a str,
        /// The gateway's id of it.
        message_id: Uuid,
        /// What became of it.
        status: AckStatus,
    },
    /// A message for every connection.
    Broadcast(Broadcast<'a>),
    /// The answer to `presence`.
    Presence {
        /// The client's own id of its question.
        id: Option<&'a str>,
        /// The users that it asked for.
        users: &'a [Box<str>],
        /// Bit `n` is for the user at index `n`.
        online: u128,
    },
    /// A request was refused.
    Error {
        /// The client's own id of its request, as far as it could be read.
        id: Option<&'a str>,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: &'a str,
    },
    /// The gateway drains.
    Shutdown {
        /// When the client shall come back, milliseconds.
        reconnect_after_ms: u64,
    },
}

/// The first message on an open connection.
#[derive(Debug, Clone, Copy)]
pub struct Welcome<'a> {
    /// The connection's id.
    pub conn: Uuid,
    /// The user.
    pub user: &'a str,
    /// The gateway's id.
    pub gateway: &'a str,
    /// The interval of heartbeats, milliseconds.
    pub heartbeat_ms: u64,
    /// When the connection ends if no new token comes, Unix milliseconds.
    pub expires_at_ms: Option<u64>,
}

/// A message on its way to a user.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Made by the gateway.
    pub id: Uuid,
    /// The sender.
    pub from: &'a str,
    /// The receiver.
    pub to: &'a str,
    /// JSON as the client sent it.
    pub content: &'a str,
    /// When the gateway took it, Unix milliseconds.
    pub ts_ms: u64,
}

/// A publication on its way to the subscribers of a channel.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// Made by the gateway.
    pub id: Uuid,
    /// The publisher; empty for the system.
    pub from: &'a str,
    /// The channel.
    pub channel: &'a str,
    /// JSON as the client sent it.
    pub content: &'a str,
    /// When the gateway took it, Unix milliseconds.
    pub ts_ms: u64,
}

/// A message for every connection.
#[derive(Debug, Clone, Copy)]
pub struct Broadcast<'a> {
    /// Made by the gateway.
    pub id: Uuid,
    /// JSON.
    pub content: &'a str,
    /// When the gateway took it, Unix milliseconds.
    pub ts_ms: u64,
}

/// Why a subscription ended that the client did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The user may not subscribe to the channel any more.
    NotPermitted,
    /// An administrator said so.
    Admin,
}

impl EndReason {
    /// The reason on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::NotPermitted => "notPermitted",
            EndReason::Admin => "admin",
        }
    }
}

/// What became of a message or publication, as its sender hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckStatus {
    /// Queued to at least one live connection on this gateway.
    Delivered,
    /// Not delivered here, but to at least one live connection on another gateway.
    Routed,
    /// Nobody is there to take it.
    Offline,
    /// Could not be passed on; try again.
    Failed,
    /// A publication: on its way to all who subscribed.
    Published,
}

impl AckStatus {
    /// Labels in the order of the discriminants.
    pub const LABELS: [&'static str; 5] = ["delivered", "routed", "offline", "failed", "published"];

    /// The status on the wire.
    pub fn as_str(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// The codes of `error` frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The frame is malformed.
    BadRequest,
    /// The frame needs an authenticated connection.
    Unauthorized,
    /// The user may not do that.
    NotPermitted,
    /// Too many frames.
    RateLimited,
    /// Too many of something else.
    LimitExceeded,
    /// Nobody knows this `type`.
    UnknownType,
    /// Cannot be asked now.
    Unavailable,
}

impl ErrorCode {
    /// The code on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "badRequest",
            ErrorCode::Unauthorized => "unauthorized",
            ErrorCode::NotPermitted => "notPermitted",
            ErrorCode::RateLimited => "rateLimited",
            ErrorCode::LimitExceeded => "limitExceeded",
            ErrorCode::UnknownType => "unknownType",
            ErrorCode::Unavailable => "unavailable",
        }
    }
}
