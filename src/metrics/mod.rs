//! What is counted: names, labels, and one table of counters per shard.
//!
//! Each [`ShardMetrics`] is written by its shard alone (plain load and store, no locked instruction) and may be read
//! by any thread at any time. The names are the contract with Prometheus; `docs/metrics.md` explains them.

mod cluster;

use std::fmt::{Display, Write};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;

use bytes::Bytes;

use crate::wire::json::decode::FrameKind;
use crate::wire::json::encode::AckStatus;
use crate::wire::ws::close::CloseReason;
pub use cluster::{BrokerCounters, ClusterDrop, ClusterMetrics};

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning shard may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Sets the value of a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper edges of the buckets of every histogram, microseconds: from a loop turn without work to a stall that
/// a person notices. Neighbours are 2 or 2.5 apart, or a quantile is drawn at twice what it was.
const BUCKET_EDGES_US: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000,
];

/// Times in buckets, with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKET_EDGES_US.len() + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts `times` events that each took `ns` nanoseconds.
    pub fn record(&self, ns: u64, times: u64) {
        let bucket = BUCKET_EDGES_US.partition_point(|edge| *edge * 1000 < ns);
        self.buckets[bucket].add(times);
        self.sum_ns.add(ns.saturating_mul(times));
    }
}

/// Labels of `shardgate_connections_closed_total`: our codes, those of the RFC that peers send, 1005 for a close frame
/// without a code, 1006 for an end without a close frame.
pub const CLOSE_LABELS: [&str; 22] = [
    "1000", "1001", "1002", "1003", "1005", "1006", "1007", "1009", "1011", "3001", "3005", "3008", "3011", "3012",
    "3013", "3500", "3501", "3502", "3503", "3504", "3507", "other",
];

/// How a connection ended, for its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCause {
    /// We closed it.
    Ours(CloseReason),
    /// The peer closed it, with this code if any.
    Peer(Option<u16>),
    /// It broke, or the peer went without a word.
    Abrupt,
}

impl CloseCause {
    fn label_index(self) -> usize {
        let code = match self {
            CloseCause::Ours(reason) => reason.code(),
            CloseCause::Peer(code) => code.unwrap_or(1005),
            CloseCause::Abrupt => 1006,
        };
        let mut text = [0u8; 4];
        let known =
            write_code(code, &mut text).and_then(|code| CLOSE_LABELS.iter().position(|label| label.as_bytes() == code));
        known.unwrap_or(CLOSE_LABELS.len() - 1)
    }
}

fn write_code(code: u16, text: &mut [u8; 4]) -> Option<&[u8]> {
    if !(1000..=9999).contains(&code) {
        return None;
    }
    let mut rest = code;
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    Some(text)
}

/// Labels of `shardgate_handshakes_refused_total`.
pub const REFUSED_LABELS: [&str; 19] = [
    "method",
    "not_an_upgrade",
    "version",
    "origin",
    "user",
    "credential",
    "credential_timeout",
    "host",
    "draining",
    "connection_limit",
    "admission_rate",
    "head_timeout",
    "head_too_large",
    "malformed",
    "lane_full",
    "address_limit",
    "handshake_limit",
    "tls",
    "plain_text",
];

/// Labels of `shardgate_token_verifications_total`: good, good and known from an identical token before, or why not.
pub const VERIFIED_LABELS: [&str; 12] = [
    "ok",
    "cached",
    "malformed",
    "algorithm",
    "unknown_key",
    "signature",
    "expired",
    "no_expiry",
    "not_yet_valid",
    "issuer",
    "audience",
    "claims",
];

/// Kinds of frames that the gateway sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the frames of the contract")]
pub enum SentKind {
    Welcome,
    Message,
    Ack,
    Presence,
    Heartbeat,
    Error,
    Shutdown,
    Close,
    Ping,
    Pong,
    Echo,
    Broadcast,
    Publication,
    Subscribed,
    Unsubscribed,
}

impl SentKind {
    /// True for what a client misses if it does not read it. Greetings, signs of life and goodbyes are worth nothing to who has gone.
    pub fn is_missed(self) -> bool {
        match self {
            SentKind::Message
            | SentKind::Ack
            | SentKind::Presence
            | SentKind::Error
            | SentKind::Echo
            | SentKind::Broadcast
            | SentKind::Publication
            | SentKind::Subscribed
            | SentKind::Unsubscribed => true,
            SentKind::Welcome
            | SentKind::Heartbeat
            | SentKind::Shutdown
            | SentKind::Close
            | SentKind::Ping
            | SentKind::Pong => false,
        }
    }

    /// Labels in the order of the discriminants.
    pub const LABELS: [&'static str; 15] = [
        "welcome",
        "message",
        "ack",
        "presence",
        "heartbeat",
        "error",
        "shutdown",
        "close",
        "ping",
        "pong",
        "echo",
        "broadcast",
        "publication",
        "subscribed",
        "unsubscribed",
    ];
}

/// What was dropped, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// A message for a user who is not there; its sender heard `offline`.
    MessageOffline,
    /// A client's frame over its rate limit; it heard `rateLimited`.
    FrameRateLimited,
    /// A message did not fit into a lane; its sender heard `failed`.
    MessageLaneFull,
    /// A presence query did not fit into a lane; its sender heard `unavailable`.
    PresenceLaneFull,
    /// A hand-over did not fit into a lane; the client got 503.
    HandOverLaneFull,
    /// A frame that a slow consumer's outbox had no room for, or that waited in it; the consumer was closed with 3008.
    FrameSlowConsumer,
    /// An answer for a connection that had gone.
    ReplyGone,
    /// A message for other gateways while Redis is away; its sender heard `failed` if nobody here took it.
    MessageRedisAway,
    /// A message for other gateways that was held while its receiver's place was asked for, and too many were.
    MessageHeldFull,
    /// A presence query while Redis is away; its sender heard `unavailable`.
    PresenceRedisAway,
    /// A message of another gateway for a user who is not here any more; its sender heard `offline`.
    MessageMissed,
    /// A publication did not fit into a lane; its publisher heard `failed` if it is on this gateway.
    PublicationLaneFull,
    /// A publication for which too much was on its way to subscribers; its publisher heard `failed` if this is its channel's home.
    PublicationQueueFull,
    /// A publication that went to this gateway's subscribers only, while Redis is away; its publisher heard `failed`.
    PublicationRedisAway,
    /// A subscription for which a lane was full; the client heard `unavailable`.
    SubscriptionLaneFull,
    /// A broadcast for which too many were on their way.
    BroadcastQueueFull,
    /// A presence query whose users could not be looked up, as too many were; its sender heard `unavailable`.
    PresenceLookupsFull,
    /// A frame that waited for a connection when that was lost, or that it may not have read by then.
    FrameConnectionLost,
}

impl DropReason {
    /// `kind` and `reason` in the order of the discriminants.
    pub const LABELS: [(&'static str, &'static str); 18] = [
        ("message", "offline"),
        ("frame", "rate_limited"),
        ("message", "lane_full"),
        ("presence", "lane_full"),
        ("handover", "lane_full"),
        ("frame", "slow_consumer"),
        ("reply", "connection_gone"),
        ("message", "redis_away"),
        ("message", "held_full"),
        ("presence", "redis_away"),
        ("message", "missed"),
        ("publication", "lane_full"),
        ("publication", "queue_full"),
        ("publication", "redis_away"),
        ("subscription", "lane_full"),
        ("broadcast", "queue_full"),
        ("presence", "lookups_full"),
        ("frame", "connectionLost"),
    ];
}

/// Labels of `shardgate_admin_requests_total`: every status that the admin API has.
pub const ADMIN_STATUSES: [u16; 11] = [200, 202, 204, 400, 401, 404, 405, 413, 500, 503, 504];

/// What is counted of plain HTTP, by whoever answers it.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    /// Requests answered.
    pub requests: Counter,
    /// Connections that were closed as the oldest of too many.
    pub crowded: Counter,
    admin: [Counter; ADMIN_STATUSES.len()],
}

impl HttpMetrics {
    /// Counts an answer of the admin API; `status` is one of [`ADMIN_STATUSES`].
    pub fn administered(&self, status: u16) {
        let index = ADMIN_STATUSES.iter().position(|known| *known == status);
        debug_assert!(index.is_some(), "unknown status {status}");
        if let Some(index) = index {
            self.admin[index].inc();
        }
    }
}

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Sender and receiver live on one shard.
    Local,
    /// Over a lane.
    Shard,
    /// From another gateway; counted where it is delivered, from its receipt there.
    Gateway,
}

impl Path {
    const LABELS: [&'static str; 3] = ["local", "shard", "gateway"];
}

/// The counters of one shard, written by it alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardMetrics {
    /// WebSocket connections, from `101` to their end.
    pub connections: Counter,
    /// Sockets of any kind.
    pub sockets: Counter,
    /// Users with a connection.
    pub users: Counter,
    /// WebSocket connections since the start.
    pub accepted: Counter,
    closed: [Counter; CLOSE_LABELS.len()],
    refused: [Counter; REFUSED_LABELS.len()],
    verified: [Counter; VERIFIED_LABELS.len()],
    received: [Counter; FrameKind::LABELS.len()],
    sent: [Counter; SentKind::LABELS.len()],
    /// Bytes received from sockets.
    pub bytes_received: Counter,
    /// Bytes handed to sockets.
    pub bytes_sent: Counter,
    acks: [Counter; AckStatus::LABELS.len()],
    dropped: [Counter; DropReason::LABELS.len()],
    /// Time of a turn's work, waiting not counted.
    pub loop_turn: Histogram,
    delivery: [Histogram; Path::LABELS.len()],
    /// Channels with a subscriber here.
    pub channels: Counter,
    /// Subscriptions.
    pub subscriptions: Counter,
    /// Publications of clients that were let in.
    pub publications: Counter,
    /// Publications queued to subscribers.
    pub deliveries: Counter,
    /// From a publication's receipt to the outbox of its last subscriber here.
    pub fanout: Histogram,
    /// Plain HTTP.
    pub http: HttpMetrics,
    /// System calls of the engine.
    pub syscalls: Counter,
    /// Times that the receive buffers ran out.
    pub buffers_exhausted: Counter,
    /// Sends that the kernel took in parts.
    pub short_sends: Counter,
    /// Times that accepting paused for lack of descriptors.
    pub accept_paused: Counter,
    /// When the last turn began, milliseconds of the gateway's clock.
    pub last_turn_ms: Counter,
}

impl ShardMetrics {
    /// Counts the end of a connection.
    pub fn closed(&self, ending: CloseCause) {
        self.closed[ending.label_index()].inc();
    }

    /// Counts a refused handshake; `label` is one of [`REFUSED_LABELS`].
    pub fn refused(&self, label: &str) {
        let index = REFUSED_LABELS.iter().position(|known| *known == label);
        debug_assert!(index.is_some(), "unknown label {label}");
        if let Some(index) = index {
            self.refused[index].inc();
        }
    }

    /// Counts a token that was looked at; `label` is one of [`VERIFIED_LABELS`].
    pub fn verified(&self, label: &str) {
        let index = VERIFIED_LABELS.iter().position(|known| *known == label);
        debug_assert!(index.is_some(), "unknown label {label}");
        if let Some(index) = index {
            self.verified[index].inc();
        }
    }

    /// Counts a frame from a client.
    pub fn received(&self, kind: FrameKind) {
        self.received[kind as usize].inc();
    }

    /// Counts a frame to a client.
    pub fn sent(&self, kind: SentKind) {
        self.sent_many(kind, 1);
    }

    /// Counts frames to a client.
    pub fn sent_many(&self, kind: SentKind, times: u64) {
        self.sent[kind as usize].add(times);
    }

    /// Counts an ack.
    pub fn acked(&self, status: AckStatus) {
        self.acks[status as usize].inc();
    }

    /// Counts something that was dropped.
    pub fn dropped(&self, what: DropReason) {
        self.dropped_many(what, 1);
    }

    /// Counts several of the kind.
    pub fn dropped_many(&self, what: DropReason, times: u64) {
        self.dropped[what as usize].add(times);
    }

    /// Counts `times` messages that took `ns` from receipt to their sends.
    pub fn delivered(&self, path: Path, ns: u64, times: u64) {
        self.delivery[path as usize].record(ns, times);
    }

    /// Messages and publications from clients, for `/stats`.
    pub fn messages_in(&self) -> u64 {
        self.received[FrameKind::Message as usize].get() + self.received[FrameKind::Publish as usize].get()
    }

    /// Messages and publications to clients, for `/stats`.
    pub fn messages_out(&self) -> u64 {
        self.sent[SentKind::Message as usize].get() + self.sent[SentKind::Publication as usize].get()
    }
}

/// A slice of a text, bytes: what an ordinary core renders in some 40 microseconds, which is what a turn may give to it.
const SLICE_BYTES: usize = 8 * 1024;

/// Lets others have their turn, once.
pub async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Builds the Prometheus text format, version 0.0.4, in slices. Whoever polls what is `async` here decides when the next
/// slice is rendered; nothing in it waits for anything else.
#[derive(Debug, Default)]
pub struct Exposition {
    pieces: Vec<Bytes>,
    text: String,
}

impl Exposition {
    /// The text so far, in pieces.
    pub fn into_pieces(mut self) -> Vec<Bytes> {
        if !self.text.is_empty() {
            self.pieces.push(self.text.into());
        }
        self.pieces
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        let pieces = self.into_pieces();
        pieces.iter().map(|piece| String::from_utf8_lossy(piece)).collect()
    }

    /// Pauses if there is a slice more than when it last paused. To be called after each thing of a few hundred bytes.
    pub async fn pause_after_slice(&mut self) {
        if self.text.len() >= SLICE_BYTES {
            let next = String::with_capacity(SLICE_BYTES + SLICE_BYTES / 4);
            self.pieces.push(std::mem::replace(&mut self.text, next).into());
            pause().await;
        }
    }

    /// Adds text that is no metric.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Begins a metric.
    pub fn begin(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// Adds one sample; `labels` is the inside of the braces.
    pub fn sample(&mut self, name: &str, labels: impl Display, value: impl Display) {
        self.line(format_args!("{name}{{{labels}}} {value}"));
    }

    /// Adds a whole metric without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.line(format_args!("{name} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let written = writeln!(self.text, "{line}");
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut count = 0;
        for (edge, bucket) in BUCKET_EDGES_US.iter().zip(&histogram.buckets) {
            count += bucket.get();
            let edge = *edge as f64 / 1e6;
            self.line(format_args!("{name}_bucket{{{labels},le=\"{edge}\"}} {count}"));
        }
        count += histogram.buckets[BUCKET_EDGES_US.len()].get();
        self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
        let sum = histogram.sum_ns.get() as f64 / 1e9;
        self.line(format_args!("{name}_sum{{{labels}}} {sum}"));
        self.line(format_args!("{name}_count{{{labels}}} {count}"));
    }

    /// Adds everything that the shards count.
    pub async fn shards(&mut self, shards: &[ShardMetrics], cluster: &ClusterMetrics) {
        type Simple = (&'static str, &'static str, &'static str, fn(&ShardMetrics) -> &Counter);
        let simple: [Simple; 15] = [
            (
                "shardgate_connections",
                "gauge",
                "WebSocket connections now, also of users not known yet.",
                |m| &m.connections,
            ),
            (
                "shardgate_sockets",
                "gauge",
                "Sockets of any kind now, HTTP and handshakes included.",
                |m| &m.sockets,
            ),
            (
                "shardgate_users",
                "gauge",
                "Users with at least one connection now.",
                |m| &m.users,
            ),
            ("shardgate_channels", "gauge", "Channels with a subscriber now.", |m| {
                &m.channels
            }),
            ("shardgate_subscriptions", "gauge", "Subscriptions now.", |m| {
                &m.subscriptions
            }),
            (
                "shardgate_publications_total",
                "counter",
                "Publications of clients that were let in.",
                |m| &m.publications,
            ),
            (
                "shardgate_deliveries_total",
                "counter",
                "Publications queued to subscribers.",
                |m| &m.deliveries,
            ),
            (
                "shardgate_connections_accepted_total",
                "counter",
                "WebSocket connections that were opened.",
                |m| &m.accepted,
            ),
            (
                "shardgate_bytes_received_total",
                "counter",
                "Bytes received from sockets.",
                |m| &m.bytes_received,
            ),
            (
                "shardgate_bytes_sent_total",
                "counter",
                "Bytes handed to sockets.",
                |m| &m.bytes_sent,
            ),
            (
                "shardgate_http_requests_total",
                "counter",
                "Plain HTTP requests answered.",
                |m| &m.http.requests,
            ),
            (
                "shardgate_engine_syscalls_total",
                "counter",
                "System calls of the socket engine.",
                |m| &m.syscalls,
            ),
            (
                "shardgate_engine_buffers_exhausted_total",
                "counter",
                "Times that receive buffers ran out.",
                |m| &m.buffers_exhausted,
            ),
            (
                "shardgate_engine_short_sends_total",
                "counter",
                "Sends that the kernel took in parts.",
                |m| &m.short_sends,
            ),
            (
                "shardgate_accept_paused_total",
                "counter",
                "Times that accepting paused (no descriptors).",
                |m| &m.accept_paused,
            ),
        ];
        for (name, kind, help, of) in simple {
            self.begin(name, kind, help);
            for (shard, metrics) in shards.iter().enumerate() {
                self.pause_after_slice().await;
                self.sample(name, format_args!("shard=\"{shard}\""), of(metrics).get());
            }
        }
        self.labelled(
            shards,
            "shardgate_connections_closed_total",
            "Connections that ended, by close code.",
            "code",
            &CLOSE_LABELS,
            |m| &m.closed,
        )
        .await;
        self.labelled(
            shards,
            "shardgate_handshakes_refused_total",
            "Handshakes that were refused.",
            "reason",
            &REFUSED_LABELS,
            |m| &m.refused,
        )
        .await;
        self.labelled(
            shards,
            "shardgate_token_verifications_total",
            "Tokens that were looked at, by result.",
            "result",
            &VERIFIED_LABELS,
            |m| &m.verified,
        )
        .await;
        self.labelled(
            shards,
            "shardgate_messages_received_total",
            "Frames from clients, by type.",
            "type",
            &FrameKind::LABELS,
            |m| &m.received,
        )
        .await;
        self.labelled(
            shards,
            "shardgate_messages_sent_total",
            "Frames to clients, by type.",
            "type",
            &SentKind::LABELS,
            |m| &m.sent,
        )
        .await;
        self.labelled(
            shards,
            "shardgate_acks_total",
            "What became of messages and publications whose sender asked.",
            "status",
            &AckStatus::LABELS,
            |m| &m.acks,
        )
        .await;
        let name = "shardgate_dropped_total";
        self.begin(name, "counter", "What was refused or lost, by kind and reason.");
        for (shard, metrics) in shards.iter().enumerate() {
            self.pause_after_slice().await;
            for ((kind, reason), counter) in DropReason::LABELS.iter().zip(&metrics.dropped) {
                let labels = format_args!("shard=\"{shard}\",kind=\"{kind}\",reason=\"{reason}\"");
                self.sample(name, labels, counter.get());
            }
        }
        self.cluster_dropped(name, cluster);
        self.begin(
            "shardgate_loop_turn_seconds",
            "histogram",
            "Time of one turn of a shard, waiting not counted.",
        );
        for (shard, metrics) in shards.iter().enumerate() {
            self.pause_after_slice().await;
            self.histogram(
                "shardgate_loop_turn_seconds",
                &format!("shard=\"{shard}\""),
                &metrics.loop_turn,
            );
        }
        self.begin(
            "shardgate_fanout_seconds",
            "histogram",
            "From receipt of a publication to the outbox of its last subscriber on the shard.",
        );
        for (shard, metrics) in shards.iter().enumerate() {
            self.pause_after_slice().await;
            self.histogram(
                "shardgate_fanout_seconds",
                &format!("shard=\"{shard}\""),
                &metrics.fanout,
            );
        }
        self.begin(
            "shardgate_delivery_seconds",
            "histogram",
            "From receipt of a message to its sends, by path.",
        );
        for (shard, metrics) in shards.iter().enumerate() {
            self.pause_after_slice().await;
            for (path, histogram) in Path::LABELS.iter().zip(&metrics.delivery) {
                let labels = format!("shard=\"{shard}\",path=\"{path}\"");
                self.histogram("shardgate_delivery_seconds", &labels, histogram);
            }
        }
    }

    /// Adds what the admin API answered: on the public port, by shard, and on its own.
    pub async fn administration(&mut self, shards: &[ShardMetrics], own: &HttpMetrics) {
        let name = "shardgate_admin_requests_total";
        self.begin(
            name,
            "counter",
            "Requests to the admin API and its page, by status; control answers those on admin.listen.",
        );
        let shards = shards.iter().enumerate();
        let doors = shards.map(|(shard, metrics)| (shard.to_string(), &metrics.http));
        for (shard, metrics) in doors.chain([("control".to_owned(), own)]) {
            self.pause_after_slice().await;
            for (status, counter) in ADMIN_STATUSES.iter().zip(&metrics.admin) {
                let labels = format_args!("shard=\"{shard}\",status=\"{status}\"");
                self.sample(name, labels, counter.get());
            }
        }
    }

    /// Connections of `admin.listen` that made room.
    pub fn crowd(&mut self, own: &HttpMetrics) {
        self.single(
            "shardgate_admin_crowded_total",
            "counter",
            "Connections of admin.listen that were closed, as the longest silent of too many.",
            own.crowded.get(),
        );
    }

    async fn labelled(
        &mut self,
        shards: &[ShardMetrics],
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
        of: fn(&ShardMetrics) -> &[Counter],
    ) {
        self.begin(name, "counter", help);
        for (shard, metrics) in shards.iter().enumerate() {
            self.pause_after_slice().await;
            for (value, counter) in values.iter().zip(of(metrics)) {
                self.sample(
                    name,
                    format_args!("shard=\"{shard}\",{label}=\"{value}\""),
                    counter.get(),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_ours_has_its_own_label() {
        let other = CLOSE_LABELS.len() - 1;
        for reason in CloseReason::ALL {
            assert_ne!(CloseCause::Ours(reason).label_index(), other, "{reason:?}");
        }
        assert_eq!(CLOSE_LABELS[CloseCause::Peer(None).label_index()], "1005");
        assert_eq!(CLOSE_LABELS[CloseCause::Peer(Some(4999)).label_index()], "other");
        assert_eq!(CLOSE_LABELS[CloseCause::Abrupt.label_index()], "1006");
    }

    /// Whoever looks at a quantile looks at a bucket: it must not be much wider than what it stands for.
    #[test]
    fn buckets_resolve_what_people_look_at() {
        for pair in BUCKET_EDGES_US.windows(2) {
            let factor = pair[1] as f64 / pair[0] as f64;
            assert!((2.0..=2.5).contains(&factor), "{pair:?}");
        }
        assert!(BUCKET_EDGES_US[0] <= 500 && BUCKET_EDGES_US.last() == Some(&5_000_000));
    }

    #[test]
    fn histogram_edges_are_inclusive_and_sums_are_seconds() {
        let shards = [ShardMetrics::default()];
        shards[0].loop_turn.record(10_000, 1);
        shards[0].loop_turn.record(10_001, 1);
        shards[0].loop_turn.record(9_000_000_000, 1);
        let mut exposition = Exposition::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(exposition.shards(&shards, &ClusterMetrics::default()));
        let text = exposition.into_text();
        for line in [
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"0.00001\"} 1",
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"0.000025\"} 2",
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"5\"} 2",
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"+Inf\"} 3",
            "shardgate_loop_turn_seconds_count{shard=\"0\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
