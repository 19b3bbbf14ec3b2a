//! What the gateway says: whole WebSocket frames, header and JSON in one piece.
//!
//! Server frames are not masked, so the bytes are the same for every receiver: each is built once.
//! Every function appends exactly one frame to `out`.

use std::io::Write as _;

use uuid::Uuid;

use super::decode::ErrorCode;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::Opcode;

/// Appends the header of an unfragmented, unmasked frame.
pub fn header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    out.push(0x80 | opcode as u8);
    match payload_bytes {
        0..=125 => out.push(payload_bytes as u8),
        126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// Appends a frame with this payload.
pub fn frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame.
pub fn close(out: &mut Vec<u8>, reason: CloseReason) {
    let text = reason.text();
    header(out, Opcode::Close, 2 + text.len());
    out.extend_from_slice(&reason.code().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends the answer to a peer's close frame: its own code, or nothing if it gave none.
pub fn close_reply(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => frame(out, Opcode::Close, &code.to_be_bytes()),
        None => frame(out, Opcode::Close, &[]),
    }
}

/// Space for the header that most text frames need: 126 to 65,535 bytes of JSON.
const USUAL_HEADER_BYTES: usize = 4;

/// Appends a text frame whose JSON `write` appends. The length is known only afterwards, so room for the
/// usual header is left and the few other cases move their bytes.
fn text(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; USUAL_HEADER_BYTES]);
    let body = out.len();
    write(out);
    let len = out.len() - body;
    match len {
        0..=125 => {
            out.copy_within(body.., start + 2);
            out.truncate(start + 2 + len);
            out[start] = 0x80 | Opcode::Text as u8;
            out[start + 1] = len as u8;
        }
        126..=0xffff => {
            out[start] = 0x80 | Opcode::Text as u8;
            out[start + 1] = 126;
            out[start + 2..body].copy_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[0; 6]);
            out.copy_within(body..body + len, start + 10);
            out[start] = 0x80 | Opcode::Text as u8;
            out[start + 1] = 127;
            out[start + 2..start + 10].copy_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Appends a JSON string.
fn string(out: &mut Vec<u8>, value: &str) {
    // Plain text, which nearly all of it is, is copied; the rest is serde_json's work. No early exit: the loop is
    // then a few vector instructions.
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

/// Appends `welcome`; `expires_at_ms`: when the connection ends if no new token comes, Unix milliseconds.
pub fn welcome(
    out: &mut Vec<u8>,
    conn: Uuid,
    user: &str,
    gateway: &str,
    heartbeat_ms: u64,
    expires_at_ms: Option<u64>,
) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"welcome","connId":""#);
        uuid(out, conn);
        out.extend_from_slice(br#"","userId":"#);
        string(out, user);
        out.extend_from_slice(br#","gatewayId":"#);
        string(out, gateway);
        out.extend_from_slice(br#","heartbeatMs":"#);
        number(out, heartbeat_ms);
        if let Some(expires_at_ms) = expires_at_ms {
            out.extend_from_slice(br#","expiresAt":"#);
            number(out, expires_at_ms);
        }
        out.push(b'}');
    });
}

/// Appends the answer to `heartbeat`.
pub fn heartbeat(out: &mut Vec<u8>, now_ms: u64) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"heartbeat","ts":"#);
        number(out, now_ms);
        out.push(b'}');
    });
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

/// Appends `message`.
pub fn message(out: &mut Vec<u8>, message: &Message<'_>) {
    text(out, |out| {
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
    });
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

/// Appends `publication`.
pub fn publication(out: &mut Vec<u8>, publication: &Publication<'_>) {
    text(out, |out| {
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
    });
}

/// Appends `subscribed`.
pub fn subscribed(out: &mut Vec<u8>, channel: &str, client_id: Option<&str>) {
    about_channel(out, "subscribed", channel, client_id);
}

/// Appends `unsubscribed`.
pub fn unsubscribed(out: &mut Vec<u8>, channel: &str, client_id: Option<&str>) {
    about_channel(out, "unsubscribed", channel, client_id);
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
    fn as_str(self) -> &'static str {
        match self {
            EndReason::NotPermitted => "notPermitted",
            EndReason::Admin => "admin",
        }
    }
}

/// Appends the `unsubscribed` that nobody asked for.
pub fn subscription_ended(out: &mut Vec<u8>, channel: &str, reason: EndReason) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"unsubscribed","channel":"#);
        string(out, channel);
        out.extend_from_slice(br#","reason":""#);
        out.extend_from_slice(reason.as_str().as_bytes());
        out.extend_from_slice(br#""}"#);
    });
}

fn about_channel(out: &mut Vec<u8>, kind: &str, channel: &str, client_id: Option<&str>) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":""#);
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(br#"","channel":"#);
        string(out, channel);
        optional_id(out, client_id);
        out.push(b'}');
    });
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

/// Appends `ack`.
pub fn ack(out: &mut Vec<u8>, client_id: &str, message_id: Uuid, status: AckStatus) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"ack","id":"#);
        string(out, client_id);
        out.extend_from_slice(br#","messageId":""#);
        uuid(out, message_id);
        out.extend_from_slice(br#"","status":""#);
        out.extend_from_slice(status.as_str().as_bytes());
        out.extend_from_slice(br#""}"#);
    });
}

/// Appends `broadcast`.
pub fn broadcast(out: &mut Vec<u8>, id: Uuid, content: &str, ts_ms: u64) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"broadcast","id":""#);
        uuid(out, id);
        out.extend_from_slice(br#"","content":"#);
        out.extend_from_slice(content.as_bytes());
        out.extend_from_slice(br#","ts":"#);
        number(out, ts_ms);
        out.push(b'}');
    });
}

/// Appends the answer to `presence`.
pub fn presence<'a>(out: &mut Vec<u8>, client_id: Option<&str>, users: impl Iterator<Item = (&'a str, bool)>) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"presence""#);
        optional_id(out, client_id);
        out.extend_from_slice(br#","users":{"#);
        for (place, (user, online)) in users.enumerate() {
            if place > 0 {
                out.push(b',');
            }
            string(out, user);
            out.extend_from_slice(if online { b":true" } else { b":false" });
        }
        out.extend_from_slice(b"}}");
    });
}

/// Appends `error`.
pub fn error(out: &mut Vec<u8>, client_id: Option<&str>, code: ErrorCode, message: &str) {
    text(out, |out| {
        out.extend_from_slice(br#"{"type":"error""#);
        optional_id(out, client_id);
        out.extend_from_slice(br#","code":""#);
        out.extend_from_slice(code.as_str().as_bytes());
        out.extend_from_slice(br#"","message":"#);
        string(out, message);
        out.push(b'}');
    });
}

/// Appends `shutdown`.
pub fn shutdown(out: &mut Vec<u8>, reconnect_after_ms: u64) {
    text(out, |out| {
        let written = write!(
            out,
            r#"{{"type":"shutdown","content":"the gateway is shutting down, please reconnect","reconnectAfterMs":{reconnect_after_ms}}}"#
        );
        debug_assert!(written.is_ok(), "writing to a Vec does not fail");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one frame apart with the library that our clients would use.
    fn open(bytes: &[u8]) -> String {
        use async_tungstenite::tungstenite::protocol::frame::FrameHeader;
        let mut cursor = std::io::Cursor::new(bytes);
        let (header, len) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        assert!(header.is_final && header.mask.is_none());
        let payload = &bytes[cursor.position() as usize..];
        assert_eq!(payload.len() as u64, len);
        String::from_utf8(payload.to_vec()).unwrap()
    }

    #[test]
    fn every_size_of_header() {
        for size in [0, 1, 20, 70, 100, 125, 126, 1000, 65_000, 65_535, 65_536, 100_000] {
            let content = format!("\"{}\"", "x".repeat(size));
            let mut out = b"before".to_vec();
            let m = Message {
                id: Uuid::nil(),
                from: "a",
                to: "b",
                content: &content,
                ts_ms: 5,
            };
            message(&mut out, &m);
            let json: serde_json::Value = serde_json::from_str(&open(&out[6..])).unwrap();
            assert_eq!(json["content"].as_str().unwrap().len(), size);
            let mut out = Vec::new();
            error(&mut out, None, ErrorCode::BadRequest, &"y".repeat(size));
            let json: serde_json::Value = serde_json::from_str(&open(&out)).unwrap();
            assert_eq!(json["message"].as_str().unwrap().len(), size);
        }
    }

    #[test]
    fn the_frames_of_the_contract() {
        let id = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
        let mut out = Vec::new();
        welcome(&mut out, id, "al\"ice", "gw-1", 25_000, Some(1_700_000_000_500));
        assert!(open(&out).ends_with(r#","heartbeatMs":25000,"expiresAt":1700000000500}"#));
        out.clear();
        welcome(&mut out, id, "al\"ice", "gw-1", 25_000, None);
        assert_eq!(
            open(&out),
            r#"{"type":"welcome","connId":"01920000-0000-7000-8000-000000000001","userId":"al\"ice","gatewayId":"gw-1","heartbeatMs":25000}"#
        );
        out.clear();
        ack(&mut out, "c1", id, AckStatus::Offline);
        assert_eq!(
            open(&out),
            r#"{"type":"ack","id":"c1","messageId":"01920000-0000-7000-8000-000000000001","status":"offline"}"#
        );
        out.clear();
        presence(&mut out, Some("c2"), [("bob", true), ("ä\n", false)].into_iter());
        assert_eq!(
            open(&out),
            r#"{"type":"presence","id":"c2","users":{"bob":true,"ä\n":false}}"#
        );
        out.clear();
        presence(&mut out, None, std::iter::empty());
        assert_eq!(open(&out), r#"{"type":"presence","users":{}}"#);
        out.clear();
        subscribed(&mut out, "room\"1", Some("c3"));
        assert_eq!(open(&out), r#"{"type":"subscribed","channel":"room\"1","id":"c3"}"#);
        out.clear();
        unsubscribed(&mut out, "room1", None);
        assert_eq!(open(&out), r#"{"type":"unsubscribed","channel":"room1"}"#);
        out.clear();
        subscription_ended(&mut out, "a\"b", EndReason::Admin);
        assert_eq!(
            open(&out),
            r#"{"type":"unsubscribed","channel":"a\"b","reason":"admin"}"#
        );
        out.clear();
        subscription_ended(&mut out, "a", EndReason::NotPermitted);
        assert!(open(&out).ends_with(r#""channel":"a","reason":"notPermitted"}"#));
        out.clear();
        let words = Publication {
            id,
            from: "",
            channel: "room1",
            content: "[1, 2]",
            ts_ms: 9,
        };
        publication(&mut out, &words);
        assert_eq!(
            open(&out),
            r#"{"type":"publication","channel":"room1","id":"01920000-0000-7000-8000-000000000001","from":"","content":[1, 2],"ts":9}"#
        );
        out.clear();
        heartbeat(&mut out, 17);
        assert_eq!(open(&out), r#"{"type":"heartbeat","ts":17}"#);
        out.clear();
        shutdown(&mut out, 1234);
        let json: serde_json::Value = serde_json::from_str(&open(&out)).unwrap();
        assert_eq!(json["reconnectAfterMs"], 1234);
    }

    #[test]
    fn close_frames() {
        let mut out = Vec::new();
        close(&mut out, CloseReason::SlowConsumer);
        assert_eq!(&out[..4], &[0x88, 15, 0x0b, 0xc0]);
        assert_eq!(&out[4..], b"slow consumer");
        out.clear();
        close_reply(&mut out, None);
        assert_eq!(out, [0x88, 0]);
    }
}
