//! Any text as a client's frame: what is understood agrees with a slow reading of the same JSON,
//! what is refused is refused for a reason, and content leaves as it came.

#![no_main]

use std::fmt;

use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use shardgate::ids::is_valid_user_id;
use shardgate::wire::message::{ErrorCode, Message, ServerMessage};
use shardgate::wire::codec::Codec;
use shardgate::wire::json::decode::{self, CLIENT_ID_BYTES_MAX, ClientFrame, PRESENCE_USERS_MAX};

/// An object as it stands: all keys, in order, twice if they are there twice.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Collect).map(Entries)
    }
}

const KNOWN: [&str; 8] = ["type", "id", "to", "content", "users", "userId", "token", "channel"];

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

fuzz_target!(|input: &[u8]| {
    let Ok(input) = std::str::from_utf8(input) else {
        return;
    };
    let entries = serde_json::from_str::<Entries>(input).ok().map(|entries| entries.0);
    let one = |key: &str| {
        let entries = entries.as_ref()?;
        let mut found = entries.iter().filter(|(name, _)| name == key);
        let raw = found.next()?.1;
        found.next().is_none().then_some(raw)
    };
    match decode::parse(input) {
        Ok(frame) => {
            assert!(
                serde_json::from_str::<IgnoredAny>(input).is_ok(),
                "not JSON, and understood"
            );
            let kind = one("type").and_then(text).expect("a type");
            assert!(frame.id().is_none_or(|id| id.len() <= CLIENT_ID_BYTES_MAX));
            if !matches!(frame, ClientFrame::Heartbeat) {
                let id = one("id")
                    .filter(|raw| raw.get() != "null")
                    .map(|raw| text(raw).expect("an id"));
                assert_eq!(frame.id(), id.as_deref());
            }
            match frame {
                ClientFrame::Heartbeat => assert_eq!(kind, "heartbeat"),
                ClientFrame::Auth { user, token, .. } => {
                    assert_eq!(kind, "auth");
                    assert_eq!(user.as_deref(), one("userId").and_then(text).as_deref());
                    assert_eq!(token.as_deref(), one("token").and_then(text).as_deref());
                }
                ClientFrame::Presence { users, .. } => {
                    assert_eq!(kind, "presence");
                    let expected: Vec<String> =
                        serde_json::from_str(one("users").expect("users").get()).expect("strings");
                    assert_eq!(users, expected);
                    assert!(users.len() <= PRESENCE_USERS_MAX && users.iter().all(|user| is_valid_user_id(user)));
                }
                ClientFrame::Message { to, content, .. } => {
                    assert_eq!(kind, "message");
                    assert_eq!(Some(&*to), one("to").and_then(text).as_deref());
                    assert!(is_valid_user_id(&to));
                    assert_eq!(content, one("content").expect("a content").get());
                    passes_through(&to, content);
                }
                ClientFrame::Subscribe { ref channel, .. } | ClientFrame::Unsubscribe { ref channel, .. } => {
                    assert!(matches!(&*kind, "subscribe" | "unsubscribe"));
                    assert_eq!(Some(&**channel), one("channel").and_then(text).as_deref());
                }
                ClientFrame::Publish { channel, content, .. } => {
                    assert_eq!(kind, "publish");
                    assert_eq!(Some(&*channel), one("channel").and_then(text).as_deref());
                    assert_eq!(content, one("content").expect("a content").get());
                }
            }
        }
        Err(refusal) => {
            assert!(refusal.id.is_none_or(|id| id.len() <= CLIENT_ID_BYTES_MAX));
            // A frame that a slow reading understands must not be refused as no JSON.
            let twice = |key: &&str| entries.iter().flatten().filter(|(name, _)| name == *key).count() > 1;
            if refusal.code == ErrorCode::BadRequest
                && refusal.message.starts_with("not a valid frame")
                && serde_json::from_str::<Value>(input).is_ok()
            {
                assert!(KNOWN.iter().any(twice), "{}", refusal.message);
            }
        }
    }
});

/// The content is in the outgoing body byte for byte, and the body is JSON.
fn passes_through(to: &str, content: &str) {
    let mut body = Vec::new();
    let message = Message {
        id: Default::default(),
        from: to,
        to,
        content,
        ts_ms: 1,
    };
    Codec::Json.encode(&mut body, &ServerMessage::Message(message));
    let json = std::str::from_utf8(&body).expect("UTF-8");
    let entries = serde_json::from_str::<Entries>(json).expect("an object").0;
    assert_eq!(entries[4].0, "content");
    assert_eq!(entries[4].1.get(), content);
    assert_eq!(text(entries[3].1).as_deref(), Some(to));
}
