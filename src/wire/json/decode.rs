//! What clients say: one JSON object per text frame.
//!
//! Only the envelope is read. `content` stays the bytes that the client sent: its JSON grammar is
//! checked (serde_json walks over it), it is never built up and never written anew.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::wire::message::ErrorCode;

/// The longest `id` that a client may choose, bytes.
pub const CLIENT_ID_BYTES_MAX: usize = 64;
/// The most users that one `presence` frame may ask for.
pub const PRESENCE_USERS_MAX: usize = 100;

/// A frame that was understood.
#[derive(Debug, PartialEq)]
pub enum ClientFrame<'a> {
    /// Who the client is.
    Auth {
        /// Comes back in nothing but an `error`.
        id: Option<Cow<'a, str>>,
        /// The user, in development mode.
        user: Option<Cow<'a, str>>,
        /// What shows who the user is, otherwise.
        token: Option<Cow<'a, str>>,
    },
    /// A sign of life that wants an answer.
    Heartbeat,
    /// A message to a user.
    Message {
        /// Asks for an `ack`.
        id: Option<Cow<'a, str>>,
        /// The user who shall get it.
        to: Cow<'a, str>,
        /// Any JSON value, as it was sent.
        content: &'a str,
    },
    /// Who of these is online?
    Presence {
        /// Comes back in the answer.
        id: Option<Cow<'a, str>>,
        /// 0 to 100 user ids.
        users: Vec<Cow<'a, str>>,
    },
    /// Wants what is published on a channel.
    Subscribe {
        /// Comes back in the answer.
        id: Option<Cow<'a, str>>,
        /// The channel.
        channel: Cow<'a, str>,
    },
    /// Wants it no more.
    Unsubscribe {
        /// Comes back in the answer.
        id: Option<Cow<'a, str>>,
        /// The channel.
        channel: Cow<'a, str>,
    },
    /// Something for all subscribers of a channel.
    Publish {
        /// Asks for an `ack`.
        id: Option<Cow<'a, str>>,
        /// The channel.
        channel: Cow<'a, str>,
        /// Any JSON value, as it was sent.
        content: &'a str,
    },
}

/// Users that one frame may ask for without costing more than any other.
const USERS_PER_FRAME: usize = 10;

impl ClientFrame<'_> {
    /// What this frame costs besides one, in frames: one for every ten users that it asks for.
    pub fn extra_cost(&self) -> u32 {
        match self {
            ClientFrame::Presence { users, .. } => (users.len() / USERS_PER_FRAME) as u32,
            _ => 0,
        }
    }

    /// The label of this frame in `shardgate_messages_received_total`.
    pub fn kind(&self) -> FrameKind {
        match self {
            ClientFrame::Auth { .. } => FrameKind::Auth,
            ClientFrame::Heartbeat => FrameKind::Heartbeat,
            ClientFrame::Message { .. } => FrameKind::Message,
            ClientFrame::Presence { .. } => FrameKind::Presence,
            ClientFrame::Subscribe { .. } => FrameKind::Subscribe,
            ClientFrame::Unsubscribe { .. } => FrameKind::Unsubscribe,
            ClientFrame::Publish { .. } => FrameKind::Publish,
        }
    }

    /// The client's own id of this frame.
    pub fn id(&self) -> Option<&str> {
        match self {
            ClientFrame::Auth { id, .. }
            | ClientFrame::Message { id, .. }
            | ClientFrame::Presence { id, .. }
            | ClientFrame::Subscribe { id, .. }
            | ClientFrame::Unsubscribe { id, .. }
            | ClientFrame::Publish { id, .. } => id.as_deref(),
            ClientFrame::Heartbeat => None,
        }
    }
}

/// The kinds of frames that clients send, as metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// `auth`
    Auth,
    /// `heartbeat`
    Heartbeat,
    /// `message`
    Message,
    /// `presence`
    Presence,
    /// `subscribe`
    Subscribe,
    /// `unsubscribe`
    Unsubscribe,
    /// `publish`
    Publish,
    /// Understood by nobody.
    Invalid,
}

impl FrameKind {
    /// Every kind with its label, in the order of the discriminants.
    pub const LABELS: [&'static str; 8] = [
        "auth",
        "heartbeat",
        "message",
        "presence",
        "subscribe",
        "unsubscribe",
        "publish",
        "invalid",
    ];
}

/// Why a frame was refused. The `id` is there if it could be read.
#[derive(Debug, PartialEq)]
pub struct Refusal<'a> {
    /// The client's own id of the frame.
    pub id: Option<Cow<'a, str>>,
    /// The code of the `error` frame.
    pub code: ErrorCode,
    /// What is wrong, in words.
    pub message: Cow<'static, str>,
}

/// The keys that some frame has. A key matters only to the types that know it:
/// `{"type":"heartbeat","to":5}` is a heartbeat with an unknown extra key.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Loose<'a>>,
    #[serde(borrow, default)]
    id: Option<Loose<'a>>,
    #[serde(borrow, default)]
    to: Option<Loose<'a>>,
    #[serde(borrow, default)]
    channel: Option<Loose<'a>>,
    /// `Some` also for a JSON `null`, which is a content like any other.
    #[serde(borrow, default, deserialize_with = "raw_even_if_null")]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    users: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "userId")]
    user_id: Option<Loose<'a>>,
    #[serde(borrow, default)]
    token: Option<Loose<'a>>,
}

fn raw_even_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A string, borrowed where it has no escapes, or anything else, which is read over.
enum Loose<'a> {
    Text(Cow<'a, str>),
    Other,
}

impl<'a> Loose<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Loose::Text(text) => Some(text),
            Loose::Other => None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Loose::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Loose::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Loose::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Loose::Other)
    }
}

/// Reads one text frame.
///
/// # Errors
/// A [`Refusal`] that becomes an `error` frame.
pub fn parse(text: &str) -> Result<ClientFrame<'_>, Refusal<'_>> {
    let refuse = |id, code, message: &'static str| Refusal {
        id,
        code,
        message: Cow::Borrowed(message),
    };
    let bad = |id, message| refuse(id, ErrorCode::BadRequest, message);
    // serde would take an array for a struct.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(bad(None, "a frame is one JSON object"));
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| Refusal {
        id: None,
        code: ErrorCode::BadRequest,
        message: Cow::Owned(format!("not a valid frame: {error}")),
    })?;
    let id = match envelope.id {
        None => None,
        Some(value) => match value.text() {
            Some(id) if id.len() <= CLIENT_ID_BYTES_MAX => Some(id),
            _ => return Err(bad(None, "id must be a string of at most 64 bytes")),
        },
    };
    let Some(kind) = envelope.kind else {
        return Err(bad(id, "type is missing"));
    };
    let Some(kind) = kind.text() else {
        return Err(bad(id, "type must be a string"));
    };
    match &*kind {
        "message" => {
            let Some(to) = envelope.to.and_then(Loose::text) else {
                return Err(bad(id, "to must be a user id"));
            };
            if !crate::ids::is_valid_user_id(&to) {
                return Err(bad(id, "to must be 1 to 128 bytes of UTF-8 without control characters"));
            }
            let Some(content) = envelope.content else {
                return Err(bad(id, "content is missing"));
            };
            Ok(ClientFrame::Message {
                id,
                to,
                content: content.get(),
            })
        }
        "heartbeat" => Ok(ClientFrame::Heartbeat),
        "publish" | "subscribe" | "unsubscribe" => {
            let channel = envelope.channel.and_then(Loose::text);
            let Some(channel) = channel.filter(|channel| crate::ids::is_valid_channel(channel)) else {
                let message = "channel must be 1 to 255 bytes of UTF-8 without control characters";
                return Err(bad(id, message));
            };
            match (&*kind, envelope.content) {
                ("subscribe", _) => Ok(ClientFrame::Subscribe { id, channel }),
                ("unsubscribe", _) => Ok(ClientFrame::Unsubscribe { id, channel }),
                (_, None) => Err(bad(id, "content is missing")),
                (_, Some(content)) => Ok(ClientFrame::Publish {
                    id,
                    channel,
                    content: content.get(),
                }),
            }
        }
        "presence" => {
            let users = envelope
                .users
                .and_then(|raw| serde_json::from_str::<Vec<Text<'_>>>(raw.get()).ok());
            let Some(users) = users else {
                return Err(bad(id, "users must be a list of user ids"));
            };
            if users.len() > PRESENCE_USERS_MAX {
                return Err(refuse(
                    id,
                    ErrorCode::LimitExceeded,
                    "at most 100 users may be asked for at once",
                ));
            }
            if !users.iter().all(|Text(user)| crate::ids::is_valid_user_id(user)) {
                return Err(bad(id, "users must be valid user ids"));
            }
            Ok(ClientFrame::Presence {
                id,
                users: users.into_iter().map(|Text(user)| user).collect(),
            })
        }
        "auth" => {
            let user = envelope.user_id.and_then(Loose::text);
            let token = envelope.token.and_then(Loose::text);
            Ok(ClientFrame::Auth { id, user, token })
        }
        _ => Err(refuse(id, ErrorCode::UnknownType, "unknown type")),
    }
}

/// A string that borrows where it can, also inside a list.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(text: &str) -> ErrorCode {
        parse(text).unwrap_err().code
    }

    #[test]
    fn a_message_in_any_order_of_keys() {
        let expected = ClientFrame::Message {
            id: Some("c1".into()),
            to: "bob".into(),
            content: r#"{"a":[1, 2.0e+3 ]}"#,
        };
        assert_eq!(
            parse(r#"{"type":"message","to":"bob","content":{"a":[1, 2.0e+3 ]},"id":"c1"}"#).unwrap(),
            expected
        );
        assert_eq!(
            parse(r#" {"x":null,"id":"c1","content":{"a":[1, 2.0e+3 ]},"to":"bob","type":"message"} "#).unwrap(),
            expected
        );
    }

    #[test]
    fn frames_of_channels() {
        let channel = Cow::Borrowed("room1");
        assert_eq!(
            parse(r#"{"type":"subscribe","channel":"room1","id":"c3","content":1}"#).unwrap(),
            ClientFrame::Subscribe {
                id: Some("c3".into()),
                channel: channel.clone()
            }
        );
        assert_eq!(
            parse(r#"{"type":"unsubscribe","channel":"room1"}"#).unwrap(),
            ClientFrame::Unsubscribe {
                id: None,
                channel: channel.clone()
            }
        );
        assert_eq!(
            parse(r#"{"content": null ,"channel":"room1","type":"publish"}"#).unwrap(),
            ClientFrame::Publish {
                id: None,
                channel,
                content: "null"
            }
        );
        let longest = "ä".repeat(127) + "x";
        assert!(parse(&format!(r#"{{"type":"subscribe","channel":"{longest}"}}"#)).is_ok());
        for channel in [
            r#""""#,
            "7",
            "null",
            r#""a\u0000""#,
            r#""a\u007f""#,
            &format!(r#""{longest}x""#),
        ] {
            for kind in ["subscribe", "unsubscribe", "publish"] {
                let text = format!(r#"{{"type":"{kind}","channel":{channel},"content":1,"id":"c"}}"#);
                let refusal = parse(&text).unwrap_err();
                assert_eq!(
                    (refusal.code, refusal.id.as_deref()),
                    (ErrorCode::BadRequest, Some("c")),
                    "{text}"
                );
            }
        }
        assert_eq!(code(r#"{"type":"publish","channel":"a"}"#), ErrorCode::BadRequest);
    }

    #[test]
    fn null_is_a_content_but_not_an_id() {
        let frame = parse(r#"{"type":"message","to":"b","content":null,"id":null}"#).unwrap();
        assert_eq!(
            frame,
            ClientFrame::Message {
                id: None,
                to: "b".into(),
                content: "null"
            }
        );
    }

    #[test]
    fn escapes_are_read_in_the_envelope_and_left_in_the_content() {
        let frame = parse(r#"{"type":"mess\u0061ge","to":"b\u00e4","content":"\u0041\ud800"}"#).unwrap();
        assert_eq!(
            frame,
            ClientFrame::Message {
                id: None,
                to: "bä".into(),
                content: r#""\u0041\ud800""#
            }
        );
    }

    #[test]
    fn keys_of_other_types_do_not_matter() {
        for to in [
            "5",
            "-5",
            "5.5",
            "true",
            "null",
            "[1,[2]]",
            r#"{"a":{"b":[]}}"#,
            r#""x""#,
        ] {
            let text = format!(r#"{{"to":{to},"type":"heartbeat","users":{{}},"userId":{to}}}"#);
            assert_eq!(parse(&text).unwrap(), ClientFrame::Heartbeat, "{text}");
        }
    }

    #[test]
    fn deep_content_passes() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let text = format!(r#"{{"type":"message","to":"b","content":{deep}}}"#);
        assert!(matches!(parse(&text).unwrap(), ClientFrame::Message { content, .. } if content == deep));
    }

    #[test]
    fn refusals() {
        for text in [
            "",
            "5",
            "[]",
            r#"["message"]"#,
            "{",
            "{}",
            r#"{"type":5}"#,
            r#"{"type":"message"}"#,
            r#"{"type":"message","to":"b"}"#,
            r#"{"type":"message","to":"","content":1}"#,
            r#"{"type":"message","to":["b"],"content":1}"#,
            r#"{"type":"message","to":"a\nb","content":1}"#,
            r#"{"type":"message","to":"\ud800","content":1}"#,
            r#"{"type":"message","to":"b","content":tru}"#,
            r#"{"type":"message","to":"b","content":01}"#,
            r#"{"type":"heartbeat","type":"heartbeat"}"#,
            r#"{"type":"heartbeat","id":7}"#,
            r#"{"type":"heartbeat"} x"#,
            r#"{"type":"presence","users":"bob"}"#,
            r#"{"type":"presence","users":[1]}"#,
            r#"{"type":"presence","users":[""]}"#,
        ] {
            assert_eq!(code(text), ErrorCode::BadRequest, "{text}");
        }
        assert_eq!(code(r#"{"type":"nonsense"}"#), ErrorCode::UnknownType);
        let long = "x".repeat(65);
        assert_eq!(
            code(&format!(r#"{{"type":"heartbeat","id":"{long}"}}"#)),
            ErrorCode::BadRequest
        );
        let users = vec!["\"u\""; 101].join(",");
        let refusal = format!(r#"{{"type":"presence","users":[{users}],"id":"p"}}"#);
        let refusal = parse(&refusal).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.id.as_deref()),
            (ErrorCode::LimitExceeded, Some("p"))
        );
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn content_passes_byte_for_byte(to in "[a-z😀]{1,20}", text in ".{0,80}", number: i64) {
            let content = serde_json::json!({"t": text, "n": [number, null]}).to_string();
            let frame = format!(r#"{{"type":"message","to":"{to}","content":{content}}}"#);
            prop_assert_eq!(
                parse(&frame).unwrap(),
                ClientFrame::Message { id: None, to: to.into(), content: &content }
            );
        }
    }
}
