//! The protocol that a connection speaks: how messages become bodies, and back.

use super::json::decode::{self, ClientFrame, Refusal};
use super::json::encode;
use super::message::ServerMessage;

/// The codec of a connection.
///
/// Bodies that many receivers share, and those on their way between threads and gateways, are made
/// once, in [`Codec::Json`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// One JSON object per message.
    #[default]
    Json,
}

impl Codec {
    /// Appends the body of a message.
    pub fn encode(self, out: &mut Vec<u8>, message: &ServerMessage<'_>) {
        match self {
            Codec::Json => encode::encode(out, message),
        }
    }

    /// Reads what a client says.
    ///
    /// # Errors
    /// What is wrong with it, as the client is told.
    pub fn decode(self, text: &str) -> Result<ClientFrame<'_>, Refusal<'_>> {
        match self {
            Codec::Json => decode::parse(text),
        }
    }
}
