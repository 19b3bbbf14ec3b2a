//! Frames that clients send and receive about channels.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use serde_json::{Value, json};

use super::client::text_bytes;
use super::{Client, Gateway};

pub fn subscribe_text(channel: &str) -> String {
    json!({"type": "subscribe", "channel": channel, "id": "s"}).to_string()
}

pub fn unsubscribe_text(channel: &str) -> String {
    json!({"type": "unsubscribe", "channel": channel, "id": "u"}).to_string()
}

/// `content` is JSON as it is sent. A frame without an id gets no answer.
pub fn publish_text(channel: &str, content: &str, id: Option<&str>) -> String {
    let channel = Value::from(channel);
    match id {
        Some(id) => format!(
            r#"{{"type":"publish","channel":{channel},"content":{content},"id":{}}}"#,
            Value::from(id)
        ),
        None => format!(r#"{{"type":"publish","channel":{channel},"content":{content}}}"#),
    }
}

/// The masked frames of these texts, one after the other.
pub fn frames<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Vec<u8> {
    texts.into_iter().flat_map(|text| text_bytes(text.as_ref())).collect()
}

impl Client {
    /// Subscribes; `subscribed` must be the next frame.
    #[track_caller]
    pub fn subscribe(&mut self, channel: &str) {
        self.send_text(&subscribe_text(channel));
        self.expect_answer("subscribed", channel, "s");
    }

    /// Unsubscribes; `unsubscribed` must be the next frame.
    #[track_caller]
    pub fn unsubscribe(&mut self, channel: &str) {
        self.send_text(&unsubscribe_text(channel));
        self.expect_answer("unsubscribed", channel, "u");
    }

    #[track_caller]
    pub fn expect_answer(&mut self, kind: &str, channel: &str, id: &str) {
        assert_eq!(self.recv_json(), json!({"type": kind, "channel": channel, "id": id}));
    }

    /// Publishes and expects the ack, with this status, as the next frame; the id of the
    /// publication.
    #[track_caller]
    pub fn publish_expecting(&mut self, channel: &str, content: &str, status: &str) -> String {
        self.send_text(&publish_text(channel, content, Some("p")));
        let ack = self.recv_json();
        assert_eq!((&ack["type"], &ack["id"]), (&json!("ack"), &json!("p")), "{ack}");
        assert_eq!(ack["status"], status, "{ack}");
        ack["messageId"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn publish(&mut self, channel: &str, content: &str) -> String {
        self.publish_expecting(channel, content, "published")
    }

    /// Subscribes to a channel with a publisher of rising numbers, whose last one is in `sent`.
    /// Takes so many and unsubscribes. The publications between the two answers have no gap and
    /// begin where they should. Publications on their way during the unsubscribe may come or not.
    #[track_caller]
    pub fn come_and_go(&mut self, channel: &str, sent: &AtomicU64, publications: usize) {
        self.subscribe(channel);
        let sent_before = sent.load(SeqCst);
        let mut seen = Vec::new();
        for _ in 0..publications {
            seen.push(self.recv_publication(channel)["content"].as_u64().unwrap());
        }
        self.send_text(&unsubscribe_text(channel));
        loop {
            let frame = self.recv_json();
            if frame["type"] == "unsubscribed" {
                break;
            }
            assert_eq!(frame["type"], "publication", "{frame}");
            seen.push(frame["content"].as_u64().unwrap());
        }
        for pair in seen.windows(2) {
            assert_eq!(pair[0] + 1, pair[1], "no gap, nothing twice: {seen:?}");
        }
        assert!(
            seen.first().is_none_or(|first| *first <= sent_before + 1),
            "sent after `subscribed`: from {}; saw {seen:?}",
            sent_before + 1
        );
    }

    /// The next frame must be a publication on this channel.
    #[track_caller]
    pub fn recv_publication(&mut self, channel: &str) -> Value {
        let frame = self.recv_json();
        assert_eq!(
            (&frame["type"], &frame["channel"]),
            (&json!("publication"), &json!(channel)),
            "{frame}"
        );
        frame
    }
}

impl Gateway {
    /// Connects many users at once, over all shards, each subscribed to this channel.
    #[track_caller]
    pub fn subscribers(&self, count: usize, channel: &str) -> Vec<Client> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let some = (count - all.len()).min(200);
            let mut coming: VecDeque<Client> = (0..some)
                .map(|n| {
                    let mut client = self.tcp();
                    client.send_upgrade(&format!("/ws?user=subscriber{}", all.len() + n), "");
                    client
                })
                .collect();
            for client in &mut coming {
                assert_eq!(client.read_head().status, 101);
                assert_eq!(client.recv_json()["type"], "welcome");
                client.send_text(&subscribe_text(channel));
            }
            for client in &mut coming {
                client.expect_answer("subscribed", channel, "s");
            }
            all.extend(coming);
        }
        all
    }
}
