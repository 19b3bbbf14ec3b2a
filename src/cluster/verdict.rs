//! What senders hear of messages and publications that went to other gateways.

use uuid::Uuid;

use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::AckTo;
use crate::wire::message::AckStatus;

/// More waits for this gateway than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMuchWaits;

/// What a sender hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The sender's shard.
    pub shard: ShardId,
    /// The sender's connection there.
    pub conn: SocketKey,
    /// The sender's own id.
    pub client_id: Box<str>,
    /// The gateway's id.
    pub message_id: Uuid,
    /// What became of the message.
    pub status: AckStatus,
}

impl Verdict {
    /// What somebody who wants to hear will hear.
    pub fn new(ack_to: AckTo<'_>, status: AckStatus) -> Self {
        Verdict {
            shard: ack_to.shard,
            conn: ack_to.conn,
            client_id: ack_to.client_id.into(),
            message_id: ack_to.message_id,
            status,
        }
    }

    /// The same, but it could not be done.
    #[must_use]
    pub fn failed(self) -> Self {
        Verdict {
            status: AckStatus::Failed,
            ..self
        }
    }
}
