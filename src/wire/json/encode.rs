//! What the gateway says, as JSON: bodies without any framing.

use std::io::Write as _;

use uuid::Uuid;

use crate::wire::message::{Broadcast, Message, Publication, ServerMessage, Welcome};

/// Appends the body of a message.
pub fn encode(out: &mut Vec<u8>, message: &ServerMessage<'_>) {
    match *message {
        ServerMessage::Welcome(ref welcome) => encode_welcome(out, welcome),
        ServerMessage::Heartbeat { ts_ms } => {
            out.extend_from_slice(br#"{"type":"heartbeat","ts":"#);
            number(out, ts_ms);
            out.push(b'}');
        }
        ServerMessage::Message(ref message) => encode_message(out, message),
        ServerMessage::Publication(ref publication) => encode_publication(out, publication),
        ServerMessage::Subscribed { channel, id } => about_channel(out, "subscribed", channel, id),
        ServerMessage::Unsubscribed { channel, id } => about_channel(out, "unsubscribed", channel, id),
        ServerMessage::SubscriptionEnded { channel, reason } => {
            out.extend_from_slice(br#"{"type":"unsubscribed","channel":"#);
            string(out, channel);
            out.extend_from_slice(br#","reason":""#);
            out.extend_from_slice(reason.as_str().as_bytes());
            out.extend_from_slice(br#""}"#);
        }
        ServerMessage::Ack { id, message_id, status } => {
            out.extend_from_slice(br#"{"type":"ack","id":"#);
            string(out, id);
            out.extend_from_slice(br#","messageId":""#);
            uuid(out, message_id);
            out.extend_from_slice(br#"","status":""#);
            out.extend_from_slice(status.as_str().as_bytes());
            out.extend_from_slice(br#""}"#);
        }
        ServerMessage::Broadcast(ref broadcast) => encode_broadcast(out, broadcast),
        ServerMessage::Presence { id, users, online } => encode_presence(out, id, users, online),
        ServerMessage::Error { id, code, message } => {
            out.extend_from_slice(br#"{"type":"error""#);
            optional_id(out, id);
            out.extend_from_slice(br#","code":""#);
            out.extend_from_slice(code.as_str().as_bytes());
            out.extend_from_slice(br#"","message":"#);
            string(out, message);
            out.push(b'}');
        }
        ServerMessage::Shutdown { reconnect_after_ms } => {
            let written = write!(
                out,
                r#"{{"type":"shutdown","content":"the gateway is shutting down, please reconnect","reconnectAfterMs":{reconnect_after_ms}}}"#
            );
            debug_assert!(written.is_ok(), "writing to a Vec does not fail");
        }
    }
}

/// True if these bytes are the body of a message of this `type`, as far as a client's stream
/// depends on it: one JSON object in valid UTF-8. The grammar of what is inside is not checked
/// again. For bodies of other gateways, which come over Redis, where others may write too.
pub fn is_body_of(kind: &str, body: &[u8]) -> bool {
    let inside = body
        .strip_prefix(br#"{"type":""#)
        .and_then(|rest| rest.strip_prefix(kind.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"\""));
    inside.is_some_and(|inside| inside.ends_with(b"}")) && std::str::from_utf8(body).is_ok()
}

/// Appends a JSON string.
fn string(out: &mut Vec<u8>, value: &str) {
    // Plain text, which nearly all of it is, is copied; the rest is serde_json's work. No early
    // exit: the loop is then a few vector instructions.
    let special = value
        .bytes()
        .fold(false, |special, b| special | (b < 0x20) | (b == b'"') | (b == b'\\'));
    if !special {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else if serde_json::to_writer(&mut *out, value).is_err() {
        unreachable!("writing a str to a Vec does not fail");
    }
}

fn uuid(out: &mut Vec<u8>, id: Uuid) {
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    out.extend_from_slice(id.hyphenated().encode_lower(&mut buffer).as_bytes());
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends `,"id":"…"` if there is an id.
fn optional_id(out: &mut Vec<u8>, id: Option<&str>) {
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        string(out, id);
    }
}

fn encode_welcome(out: &mut Vec<u8>, welcome: &Welcome<'_>) {
    out.extend_from_slice(br#"{"type":"welcome","connId":""#);
    uuid(out, welcome.conn);
    out.extend_from_slice(br#"","userId":"#);
    string(out, welcome.user);
    out.extend_from_slice(br#","gatewayId":"#);
    string(out, welcome.gateway);
    out.extend_from_slice(br#","heartbeatMs":"#);
    number(out, welcome.heartbeat_ms);
    if let Some(expires_at_ms) = welcome.expires_at_ms {
        out.extend_from_slice(br#","expiresAt":"#);
        number(out, expires_at_ms);
    }
    out.push(b'}');
}

fn encode_message(out: &mut Vec<u8>, message: &Message<'_>) {
    out.extend_from_slice(br#"{"type":"message","id":""#);
    uuid(out, message.id);
    out.extend_from_slice(br#"","from":"#);
    string(out, message.from);
    out.extend_from_slice(br#","to":"#);
    string(out, message.to);
    out.extend_from_slice(br#","content":"#);
    out.extend_from_slice(message.content.as_bytes());
    out.extend_from_slice(br#","ts":"#);
    number(out, message.ts_ms);
    out.push(b'}');
}

fn encode_publication(out: &mut Vec<u8>, publication: &Publication<'_>) {
    out.extend_from_slice(br#"{"type":"publication","channel":"#);
    string(out, publication.channel);
    out.extend_from_slice(br#","id":""#);
    uuid(out, publication.id);
    out.extend_from_slice(br#"","from":"#);
    string(out, publication.from);
    out.extend_from_slice(br#","content":"#);
    out.extend_from_slice(publication.content.as_bytes());
    out.extend_from_slice(br#","ts":"#);
    number(out, publication.ts_ms);
    out.push(b'}');
}

fn encode_broadcast(out: &mut Vec<u8>, broadcast: &Broadcast<'_>) {
    out.extend_from_slice(br#"{"type":"broadcast","id":""#);
    uuid(out, broadcast.id);
    out.extend_from_slice(br#"","content":"#);
    out.extend_from_slice(broadcast.content.as_bytes());
    out.extend_from_slice(br#","ts":"#);
    number(out, broadcast.ts_ms);
    out.push(b'}');
}

fn encode_presence(out: &mut Vec<u8>, id: Option<&str>, users: &[Box<str>], online: u128) {
    out.extend_from_slice(br#"{"type":"presence""#);
    optional_id(out, id);
    out.extend_from_slice(br#","users":{"#);
    for (index, user) in users.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        string(out, user);
        let is_online = online >> index & 1 == 1;
        out.extend_from_slice(if is_online { b":true" } else { b":false" });
    }
    out.extend_from_slice(b"}}");
}

fn about_channel(out: &mut Vec<u8>, kind: &str, channel: &str, id: Option<&str>) {
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(br#"","channel":"#);
    string(out, channel);
    optional_id(out, id);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{AckStatus, EndReason, ErrorCode};

    fn body(message: ServerMessage<'_>) -> String {
        let mut out = b"before".to_vec();
        encode(&mut out, &message);
        String::from_utf8(out.split_off(6)).unwrap()
    }

    fn message(content: &str) -> String {
        body(ServerMessage::Message(Message {
            id: Uuid::nil(),
            from: "alice",
            to: "bob",
            content,
            ts_ms: 7,
        }))
    }

    #[test]
    fn the_messages_of_the_contract() {
        let id = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
        let welcome = |expires_at_ms| {
            body(ServerMessage::Welcome(Welcome {
                conn: id,
                user: "al\"ice",
                gateway: "gw-1",
                heartbeat_ms: 25_000,
                expires_at_ms,
            }))
        };
        assert!(welcome(Some(1_700_000_000_500)).ends_with(r#","heartbeatMs":25000,"expiresAt":1700000000500}"#));
        assert_eq!(
            welcome(None),
            r#"{"type":"welcome","connId":"01920000-0000-7000-8000-000000000001","userId":"al\"ice","gatewayId":"gw-1","heartbeatMs":25000}"#
        );
        let ack = ServerMessage::Ack {
            id: "c1",
            message_id: id,
            status: AckStatus::Offline,
        };
        assert_eq!(
            body(ack),
            r#"{"type":"ack","id":"c1","messageId":"01920000-0000-7000-8000-000000000001","status":"offline"}"#
        );
        let users = ["bob".into(), "ä\n".into()];
        let presence = |id, users, online| body(ServerMessage::Presence { id, users, online });
        assert_eq!(
            presence(Some("c2"), &users[..], 1),
            r#"{"type":"presence","id":"c2","users":{"bob":true,"ä\n":false}}"#
        );
        assert_eq!(presence(None, &[], 0), r#"{"type":"presence","users":{}}"#);
        let (channel, c3) = ("room\"1", Some("c3"));
        assert_eq!(
            body(ServerMessage::Subscribed { channel, id: c3 }),
            r#"{"type":"subscribed","channel":"room\"1","id":"c3"}"#
        );
        let channel = "room1";
        assert_eq!(
            body(ServerMessage::Unsubscribed { channel, id: None }),
            r#"{"type":"unsubscribed","channel":"room1"}"#
        );
        let ended = |channel, reason| body(ServerMessage::SubscriptionEnded { channel, reason });
        assert_eq!(
            ended("a\"b", EndReason::Admin),
            r#"{"type":"unsubscribed","channel":"a\"b","reason":"admin"}"#
        );
        assert!(ended("a", EndReason::NotPermitted).ends_with(r#""channel":"a","reason":"notPermitted"}"#));
        let publication = ServerMessage::Publication(Publication {
            id,
            from: "",
            channel: "room1",
            content: "[1, 2]",
            ts_ms: 9,
        });
        assert_eq!(
            body(publication),
            r#"{"type":"publication","channel":"room1","id":"01920000-0000-7000-8000-000000000001","from":"","content":[1, 2],"ts":9}"#
        );
        let broadcast = ServerMessage::Broadcast(Broadcast {
            id,
            content: "{}",
            ts_ms: 9,
        });
        assert_eq!(
            body(broadcast),
            r#"{"type":"broadcast","id":"01920000-0000-7000-8000-000000000001","content":{},"ts":9}"#
        );
        assert_eq!(
            body(ServerMessage::Heartbeat { ts_ms: 17 }),
            r#"{"type":"heartbeat","ts":17}"#
        );
        let error = ServerMessage::Error {
            id: Some("c4"),
            code: ErrorCode::BadRequest,
            message: "no \"to\"",
        };
        assert_eq!(
            body(error),
            r#"{"type":"error","id":"c4","code":"badRequest","message":"no \"to\""}"#
        );
        let shutdown = body(ServerMessage::Shutdown {
            reconnect_after_ms: 1234,
        });
        let json: serde_json::Value = serde_json::from_str(&shutdown).unwrap();
        assert_eq!(json["reconnectAfterMs"], 1234);
    }

    #[test]
    fn bodies_of_gateways_pass_and_others_do_not() {
        for len in [0, 1, 30, 65_536] {
            let body = message(&format!("\"{}\"", "é".repeat(len)));
            assert!(is_body_of("message", body.as_bytes()), "{len}");
            assert!(!is_body_of("broadcast", body.as_bytes()), "{len}");
        }
        let good = message("1").into_bytes();
        for cut in 0..good.len() {
            assert!(!is_body_of("message", &good[..cut]), "{cut}");
        }
        let mut invalid = good.clone();
        let end = invalid.len() - 2;
        invalid[end] = 0xff;
        assert!(!is_body_of("message", &invalid));
    }
}
