//! One client connection's life, without its socket.
//!
//! Duty: bytes of the server in, events out. Pure: the driver owns the socket and carries out the
//! events.
//!
//! ```text
//! Connecting -> Handshaking -> Authenticating -> Ready -> Closing -> Closed
//!      \______________\_______________\____________\_________________/^
//! ```

use std::time::Duration;

use serde::Deserialize;

use crate::wire::{self, Response};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// The kernel is connecting.
    #[default]
    Connecting,
    /// The upgrade request was sent.
    Handshaking,
    /// A WebSocket, and no `welcome` yet.
    Authenticating,
    /// Authenticated.
    Ready,
    /// We sent a close frame.
    Closing,
    /// Over.
    Closed,
}

/// An event from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// The handshake is done: the moment to authenticate in-band.
    Upgraded,
    /// `welcome` came, from the gateway with this id.
    Ready(Option<String>),
    /// A text frame, other than the `welcome`.
    Text(&'a [u8]),
    /// A ping that wants its payload back.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// A close frame with this code.
    Close(u16),
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The kind that the report counts by.
    pub(crate) why: String,
    /// When the server said that another attempt may do better.
    pub(crate) retry_after: Option<Duration>,
    /// The code of a close frame that came before the welcome.
    pub(crate) close_code: Option<u16>,
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, ..Self::default() }
    }
}

impl State {
    /// Takes the first event from `input`: how many bytes it took, and what it was; `None` if more
    /// bytes are needed.
    ///
    /// # Errors
    /// The server refused us or broke the protocol.
    pub(crate) fn handle_input<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>, Failure> {
        if *self == Self::Handshaking {
            return match wire::parse_response(input) {
                Response::Incomplete => Ok(None),
                Response::Upgraded(bytes) => {
                    *self = Self::Authenticating;
                    Ok(Some((bytes, Event::Upgraded)))
                }
                Response::Refused(status, seconds) => Err(Failure {
                    why: format!("http {status}"),
                    retry_after: seconds.map(|seconds| Duration::from_secs(seconds.into())),
                    close_code: None,
                }),
                Response::Invalid(why) => Err(why.into()),
            };
        }
        let Some(frame) = wire::parse_frame(input)? else {
            return Ok(None);
        };
        let event = match frame.opcode {
            wire::TEXT if *self == Self::Authenticating => {
                let envelope = envelope(frame.payload);
                if envelope.kind == "welcome" {
                    *self = Self::Ready;
                    Event::Ready(envelope.gateway_id)
                } else {
                    Event::Text(frame.payload)
                }
            }
            wire::TEXT => Event::Text(frame.payload),
            9 => Event::Ping(frame.payload),
            wire::PONG => Event::Pong,
            wire::CLOSE => Event::Close(wire::close_code(frame.payload)),
            _ => return Err("unexpected kind of frame".into()),
        };
        Ok(Some((frame.bytes, event)))
    }
}

/// The keys that the generator looks at in frames that are rare.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Envelope {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) id: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) status: Option<String>,
    #[serde(rename = "gatewayId")]
    pub(crate) gateway_id: Option<String>,
    #[serde(rename = "reconnectAfterMs")]
    pub(crate) reconnect_after_ms: Option<u64>,
}

/// Reads a frame the slow way; what is no JSON object has an empty kind.
pub(crate) fn envelope(text: &[u8]) -> Envelope {
    serde_json::from_slice(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        [&[0x80 | opcode, payload.len() as u8], payload].concat()
    }

    #[test]
    fn a_life_from_handshake_to_close() {
        let head = b"HTTP/1.1 101 X\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let welcome = frame(1, br#"{"type":"welcome","userId":"a","gatewayId":"g"}"#);
        let mut state = State::Handshaking;
        let input = [&head[..], &welcome].concat();
        assert_eq!(state.handle_input(&input), Ok(Some((head.len(), Event::Upgraded))));
        assert_eq!(
            state.handle_input(&input[head.len()..]),
            Ok(Some((welcome.len(), Event::Ready(Some("g".to_owned())))))
        );
        assert_eq!(state, State::Ready);
        // A second one is a frame like any other: a server answers a refreshed token with it.
        assert!(matches!(state.handle_input(&welcome), Ok(Some((_, Event::Text(_))))));
        assert_eq!(state.handle_input(&frame(9, b"p")), Ok(Some((3, Event::Ping(b"p")))));
        assert_eq!(
            state.handle_input(&frame(8, &3001u16.to_be_bytes())),
            Ok(Some((4, Event::Close(3001))))
        );
        assert_eq!(state.handle_input(&frame(8, b"")), Ok(Some((2, Event::Close(1005)))));
        assert!(state.handle_input(&frame(2, b"x")).is_err());
    }

    #[test]
    fn a_refusal_names_its_status() {
        let mut state = State::Handshaking;
        assert_eq!(
            state.handle_input(b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\n\r\n"),
            Err(Failure {
                why: "http 503".to_owned(),
                retry_after: Some(Duration::from_secs(2)),
                close_code: None
            })
        );
    }

    #[test]
    fn an_error_before_the_welcome_is_not_a_welcome() {
        let mut state = State::Authenticating;
        let error = frame(1, br#"{"type":"error","code":"badRequest"}"#);
        assert!(matches!(state.handle_input(&error), Ok(Some((_, Event::Text(_))))));
        assert_eq!(state, State::Authenticating);
    }
}
