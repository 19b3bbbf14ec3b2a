//! Servers with a protocol of their own, for comparisons: how a client connects, subscribes and
//! sends there, and how it recognises a message.
//!
//! Duty: everything that differs from the gateway's contract, which is the default. The scheme of
//! `--url` chooses:
//!
//! | scheme | server | a user's own address | a channel | a message |
//! | --- | --- | --- | --- | --- |
//! | `ws`, `wss` | whoever speaks the contract | | | |
//! | `socketio+ws` | Socket.IO (`compare/servers/socketio.mjs`) | a room that the server puts them in | event `subscribe` with an ack | event `message` or `publish` |
//! | `nats+ws` | NATS | subject, subscribed to before `PING` | subject, confirmed by `PONG` | `PUB` |
//! | `nchan+ws` | Nchan (`compare/servers/nchan.conf`) | channel in the URL, as is the peer's | channel in the URL | the bare frame |
//!
//! None of the three reports what became of a message, so there are no acks. The content is the
//! contract's, inside a JSON object, so loss, order and damage show as with the gateway. Pure.

use crate::conn::{Event, Failure, State};
use crate::kind::Kind;
use crate::message::{Template, channel_name, user_name};
use crate::wire;

const BINARY: u8 = 2;

/// The protocol of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The contract.
    #[default]
    Shardgate,
    /// Engine.IO 4, Socket.IO 5.
    SocketIo,
    /// The text protocol of NATS, in frames of any length.
    Nats,
    /// No protocol: what is published is what arrives.
    Nchan,
}

/// The reaction to a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The scenario knows.
    ForScenario,
    /// The protocol wants this answer.
    Answer(&'static [u8]),
    /// Nothing.
    Ignored,
}

impl Dialect {
    /// The dialect that a URL's scheme stands for.
    pub(crate) fn from_scheme(scheme: &str) -> Option<Self> {
        Some(match scheme {
            "ws" | "wss" => Self::Shardgate,
            "socketio+ws" => Self::SocketIo,
            "nats+ws" => Self::Nats,
            "nchan+ws" => Self::Nchan,
            _ => return None,
        })
    }

    /// The query with which `user` connects, where it is not the contract's. Publishers of a fanout
    /// are numbered from `users` on.
    pub(crate) fn query(self, kind: Kind, prefix: &str, users: usize, user: u32) -> Option<String> {
        let name = user_name(prefix, user);
        match self {
            Self::Shardgate => None,
            Self::SocketIo => Some(format!("EIO=4&transport=websocket&user={name}")),
            Self::Nats => Some(String::new()),
            Self::Nchan if kind == Kind::Fanout => {
                let channel = channel_name(prefix, 0);
                let hears = if (user as usize) < users { &channel } else { &name };
                Some(format!("hears={hears}&tells={channel}"))
            }
            Self::Nchan => Some(format!("hears={name}&tells={}", user_name(prefix, user ^ 1))),
        }
    }

    /// The frame that `user` sends after the handshake, if it is not the contract's.
    pub(crate) fn greeting(self, name: &str) -> Option<String> {
        let connect = r#"CONNECT {"verbose":false,"pedantic":false,"protocol":1,"lang":"rust","version":"1"}"#;
        (self == Self::Nats).then(|| format!("{connect}\r\nSUB {name} 1\r\nPING\r\n"))
    }

    /// Whether a connection is ready as soon as the handshake is done, as nothing is said to
    /// welcome it.
    pub(crate) fn is_silent(self) -> bool {
        self == Self::Nchan
    }

    /// [`State::handle_input`] for all dialects.
    ///
    /// # Errors
    /// The server refused us or broke the protocol.
    pub(crate) fn handle_input<'a>(
        self,
        state: &mut State,
        input: &'a [u8],
    ) -> Result<Option<(usize, Event<'a>)>, Failure> {
        if self == Self::Shardgate || *state == State::Handshaking {
            return state.handle_input(input);
        }
        match wire::parse_frame(input)? {
            Some(frame) if matches!(frame.opcode, wire::TEXT | BINARY) => {
                let welcome = match self {
                    Self::SocketIo => frame.payload.starts_with(b"40"),
                    Self::Nats => frame.payload.starts_with(b"PONG\r\n"),
                    Self::Shardgate | Self::Nchan => false,
                };
                if welcome && *state == State::Authenticating {
                    *state = State::Ready;
                    return Ok(Some((frame.bytes, Event::Ready(None))));
                }
                Ok(Some((frame.bytes, Event::Text(frame.payload))))
            }
            Some(_) => state.handle_input(input),
            None => Ok(None),
        }
    }

    /// The first message of a frame, and the rest: NATS puts as many into a frame as it has.
    pub(crate) fn first(self, frame: &[u8]) -> (&[u8], &[u8]) {
        if self != Self::Nats {
            return (frame, b"");
        }
        let Some(line_bytes) = frame.windows(2).position(|end| end == b"\r\n").map(|at| at + 2) else {
            return (frame, b"");
        };
        let line = &frame[..line_bytes - 2];
        let payload_bytes = line.strip_prefix(b"MSG ").and_then(|line| {
            let digits = line.rsplit(|byte| *byte == b' ').next()?;
            std::str::from_utf8(digits).ok()?.parse::<usize>().ok()
        });
        let bytes = payload_bytes.map_or(line_bytes, |payload| {
            line_bytes.saturating_add(payload).saturating_add(2)
        });
        // One that is cut off is given as it is: the scenario counts it as damaged.
        frame.split_at_checked(bytes).unwrap_or((frame, b""))
    }

    /// The reaction to a message.
    pub(crate) fn hear(self, text: &[u8]) -> Heard {
        match self {
            Self::SocketIo if text == b"2" => Heard::Answer(b"3"),
            Self::SocketIo if text.starts_with(b"0{") => Heard::Answer(b"40"),
            Self::Nats if text == b"PING\r\n" => Heard::Answer(b"PONG\r\n"),
            Self::Nats if text.starts_with(b"INFO ") => Heard::Ignored,
            _ => Heard::ForScenario,
        }
    }

    /// How a message to a user begins.
    pub(crate) fn message_prefix(self) -> &'static [u8] {
        match self {
            Self::Shardgate => br#"{"type":"message""#,
            Self::SocketIo => br#"42["message""#,
            Self::Nats => b"MSG ",
            Self::Nchan => br#"{"to":"#,
        }
    }

    /// How a publication begins.
    pub(crate) fn publication_prefix(self) -> &'static [u8] {
        match self {
            Self::Shardgate => br#"{"type":"publication""#,
            Self::SocketIo => br#"42["publication""#,
            Self::Nats => b"MSG ",
            Self::Nchan => br#"{"channel":"#,
        }
    }

    /// The frames to users, with an id each if `with_id`.
    pub(crate) fn message(self, prefix: &str, payload_bytes: usize, with_id: bool) -> Template {
        let name = user_name(prefix, 0);
        self.template(&name, payload_bytes, ["message", "to"])
            .unwrap_or_else(|| Template::message(prefix, payload_bytes, with_id))
    }

    /// The frames to channels, with an id each if `with_id`.
    pub(crate) fn publish(self, prefix: &str, payload_bytes: usize, with_id: bool) -> Template {
        let name = channel_name(prefix, 0);
        self.template(&name, payload_bytes, ["publish", "channel"])
            .unwrap_or_else(|| Template::publish(prefix, payload_bytes, with_id))
    }

    /// A frame to `name`; `None` for the contract's. The name's last digits are the first to come
    /// after `before`.
    fn template(self, name: &str, bytes: usize, [event, key]: [&str; 2]) -> Option<Template> {
        let (before, after, tail) = match self {
            Self::Shardgate => return None,
            Self::SocketIo => (
                format!(r#"42["{event}",{{"{key}":"{name}"#),
                r#"","content":""#.to_owned(),
                r#""}]"#,
            ),
            Self::Nats => {
                let (open, close) = (r#"{"content":""#, r#""}"#);
                let payload_bytes = open.len() + bytes + close.len();
                (format!("PUB {name}"), format!(" {payload_bytes}\r\n{open}"), "\"}\r\n")
            }
            Self::Nchan => (format!(r#"{{"{key}":"{name}"#), r#"","content":""#.to_owned(), r#""}"#),
        };
        Some(Template::around([&before, &after, tail], bytes))
    }

    /// The frame that subscribes to `channel`; `None` where connecting did it.
    pub(crate) fn subscribe(self, channel: &str, number: usize) -> Option<String> {
        match self {
            Self::Shardgate => {
                let channel = crate::message::quoted(channel);
                Some(format!(r#"{{"type":"subscribe","channel":{channel},"id":"{number}"}}"#))
            }
            Self::SocketIo => Some(format!(r#"42{number}["subscribe","{channel}"]"#)),
            Self::Nats => Some(format!("SUB {channel} {}\r\nPING\r\n", number + 2)),
            Self::Nchan => None,
        }
    }

    /// Whether this confirms a subscription. The contract's frames are read elsewhere, as they may
    /// say no.
    pub(crate) fn is_subscribed(self, text: &[u8]) -> bool {
        match self {
            Self::Shardgate | Self::Nchan => false,
            Self::SocketIo => text.starts_with(b"43"),
            Self::Nats => text == b"PONG\r\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        [&[0x80 | opcode, payload.len() as u8], payload].concat()
    }

    #[test]
    fn a_frame_of_nats_is_as_many_messages_as_it_has() {
        let text = b"INFO {}\r\nMSG a 1 5\r\nx\r\ny \r\nPING\r\nMSG a 1 2\r\n{}\r\nMSG a 1 9\r\ncut";
        let (mut rest, mut heard) = (&text[..], vec![]);
        while !rest.is_empty() {
            let (first, others) = Dialect::Nats.first(rest);
            heard.push((std::str::from_utf8(first).unwrap(), Dialect::Nats.hear(first)));
            rest = others;
        }
        assert_eq!(
            heard,
            [
                ("INFO {}\r\n", Heard::Ignored),
                ("MSG a 1 5\r\nx\r\ny \r\n", Heard::ForScenario),
                ("PING\r\n", Heard::Answer(b"PONG\r\n")),
                ("MSG a 1 2\r\n{}\r\n", Heard::ForScenario),
                ("MSG a 1 9\r\ncut", Heard::ForScenario),
            ]
        );
        assert_eq!(Dialect::Shardgate.first(text), (&text[..], &b""[..]));
    }

    #[test]
    fn everybody_is_ready_when_their_server_says_so() {
        for (dialect, hello, opcode, welcome) in [
            (
                Dialect::SocketIo,
                &br#"0{"sid":"x"}"#[..],
                wire::TEXT,
                &br#"40{"sid":"y"}"#[..],
            ),
            (Dialect::Nats, b"INFO {}\r\n", BINARY, b"PONG\r\nINFO {}\r\n"),
        ] {
            let mut state = State::Authenticating;
            let hear = |state: &mut State, payload: &[u8]| {
                let input = frame(opcode, payload);
                matches!(dialect.handle_input(state, &input), Ok(Some((n, Event::Ready(None)))) if n == input.len())
            };
            assert!(!hear(&mut state, hello));
            assert_eq!(state, State::Authenticating);
            assert!(hear(&mut state, welcome));
            assert_eq!(state, State::Ready);
            assert!(!hear(&mut state, welcome), "only once");
            let close = frame(wire::CLOSE, &1001u16.to_be_bytes());
            assert_eq!(
                dialect.handle_input(&mut state, &close),
                Ok(Some((4, Event::Close(1001))))
            );
        }
        assert!(
            Dialect::Shardgate
                .handle_input(&mut State::Ready, &frame(BINARY, b"x"))
                .is_err()
        );
    }
}
