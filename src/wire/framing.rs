//! How the body of a message becomes bytes of a connection's stream.
//!
//! Pure. A message travels between threads, through the logs of channels and between gateways as a
//! body. It is framed when its bytes enter an outbox. Each connection has a [`Framing`]; an
//! [`Encoded`] body that many receivers share is framed once.

use bytes::Bytes;

use super::ws::frame::Opcode;
use super::ws::server_frame::{self, Header};

/// The framing of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// One unfragmented WebSocket text frame per message. A server's frame is not masked, so it is
    /// a header and the body as it is.
    #[default]
    WebSocketText,
}

impl Framing {
    /// The bytes before a body of this length.
    pub fn header(self, body_bytes: usize) -> Header {
        match self {
            Framing::WebSocketText => Header::new(Opcode::Text, body_bytes),
        }
    }
}

/// The body of a message, as its receivers share it.
///
/// The framed form is made with the body, in one buffer: the body is its end. So a share of either
/// costs no copy. A second framing or codec gets a buffer of its own here, made once for each
/// message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    web_socket_text: Bytes,
}

impl Encoded {
    /// Copies a body; one allocation.
    pub fn new(body: &[u8]) -> Self {
        let header = Framing::WebSocketText.header(body.len());
        let mut bytes = Vec::with_capacity(header.as_slice().len() + body.len());
        bytes.extend_from_slice(header.as_slice());
        bytes.extend_from_slice(body);
        Encoded {
            web_socket_text: bytes.into(),
        }
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.web_socket_text[server_frame::header_bytes(&self.web_socket_text)..]
    }

    /// The bytes of a stream with this framing.
    pub fn framed(&self, framing: Framing) -> &Bytes {
        match framing {
            Framing::WebSocketText => &self.web_socket_text,
        }
    }

    /// Bytes of memory that all shares of it hold.
    pub fn bytes(&self) -> usize {
        self.web_socket_text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_body_is_framed_without_a_copy() {
        for len in [0, 1, 125, 126, 65_535, 65_536, 100_000] {
            let body = vec![b'x'; len];
            let encoded = Encoded::new(&body);
            assert_eq!(encoded.body(), &body[..], "{len}");
            let framed = encoded.framed(Framing::WebSocketText);
            let header = Framing::WebSocketText.header(len);
            assert_eq!(&framed[..], [header.as_slice(), &body].concat(), "{len}");
            assert_eq!(encoded.bytes(), framed.len());
            let share = encoded.clone();
            assert_eq!(share.framed(Framing::WebSocketText).as_ptr(), framed.as_ptr());
            assert_eq!(share.body().as_ptr_range().end, framed.as_ptr_range().end);
        }
    }

    /// The framing of a connection takes none of its memory.
    #[test]
    fn a_framing_is_small() {
        assert_eq!(size_of::<Framing>(), 0);
        assert_eq!(size_of::<Encoded>(), size_of::<Bytes>());
    }
}
