//! Outgoing bytes, which outboxes hold and engines send.
//!
//! Pure; owned by whoever holds it.

use bytes::Bytes;

/// Bytes on their way out. The engine keeps them alive until the kernel is done with them.
#[derive(Debug)]
pub enum Payload {
    /// Bytes of this socket alone; given back through [`crate::engine::Event::Sent`] so that the
    /// buffer can be used again.
    Own(Vec<u8>),
    /// Bytes that many sockets share.
    Shared(Bytes),
}

impl Payload {
    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Own(bytes) => bytes,
            Payload::Shared(bytes) => bytes,
        }
    }
}
