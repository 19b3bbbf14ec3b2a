//! What a shard counts. It alone writes (plain load and store, no locked instruction); any thread
//! may read at any time.

use super::admin::HttpMetrics;
use super::counter::{Counter, Histogram};
use super::exposition::Row;
use super::labels::{CLOSE_LABELS, CloseCause, DropReason, Path, RefusalReason, SentKind, TokenResult};
use crate::wire::json::decode::FrameKind;
use crate::wire::message::AckStatus;

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
    refused: [Counter; RefusalReason::LABELS.len()],
    verified: [Counter; TokenResult::LABELS.len()],
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

    /// Counts a refused handshake.
    pub fn refused(&self, reason: RefusalReason) {
        self.refused[reason as usize].inc();
    }

    /// Counts a token that was looked at.
    pub fn verified(&self, result: TokenResult) {
        self.verified[result as usize].inc();
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

/// Of each shard.
pub(super) const TABLE: &[Row<ShardMetrics>] = &[
    Row::gauge(
        "shardgate_connections",
        "WebSocket connections now, also of users not known yet.",
        |m| m.connections.get(),
    ),
    Row::gauge(
        "shardgate_sockets",
        "Sockets of any kind now, HTTP and handshakes included.",
        |m| m.sockets.get(),
    ),
    Row::gauge("shardgate_users", "Users with at least one connection now.", |m| {
        m.users.get()
    }),
    Row::gauge("shardgate_channels", "Channels with a subscriber now.", |m| {
        m.channels.get()
    }),
    Row::gauge("shardgate_subscriptions", "Subscriptions now.", |m| {
        m.subscriptions.get()
    }),
    Row::counter(
        "shardgate_publications_total",
        "Publications of clients that were let in.",
        |m| m.publications.get(),
    ),
    Row::counter(
        "shardgate_deliveries_total",
        "Publications queued to subscribers.",
        |m| m.deliveries.get(),
    ),
    Row::counter(
        "shardgate_connections_accepted_total",
        "WebSocket connections that were opened.",
        |m| m.accepted.get(),
    ),
    Row::counter("shardgate_bytes_received_total", "Bytes received from sockets.", |m| {
        m.bytes_received.get()
    }),
    Row::counter("shardgate_bytes_sent_total", "Bytes handed to sockets.", |m| {
        m.bytes_sent.get()
    }),
    Row::counter("shardgate_http_requests_total", "Plain HTTP requests answered.", |m| {
        m.http.requests.get()
    }),
    Row::counter(
        "shardgate_engine_syscalls_total",
        "System calls of the socket engine.",
        |m| m.syscalls.get(),
    ),
    Row::counter(
        "shardgate_engine_buffers_exhausted_total",
        "Times that receive buffers ran out.",
        |m| m.buffers_exhausted.get(),
    ),
    Row::counter(
        "shardgate_engine_short_sends_total",
        "Sends that the kernel took in parts.",
        |m| m.short_sends.get(),
    ),
    Row::counter(
        "shardgate_accept_paused_total",
        "Times that accepting paused (no descriptors).",
        |m| m.accept_paused.get(),
    ),
    Row::counters(
        "shardgate_connections_closed_total",
        "Connections that ended, by close code.",
        "code",
        &CLOSE_LABELS,
        |m, at| m.closed[at].get(),
    ),
    Row::counters(
        "shardgate_handshakes_refused_total",
        "Handshakes that were refused.",
        "reason",
        &RefusalReason::LABELS,
        |m, at| m.refused[at].get(),
    ),
    Row::counters(
        "shardgate_token_verifications_total",
        "Tokens that were looked at, by result.",
        "result",
        &TokenResult::LABELS,
        |m, at| m.verified[at].get(),
    ),
    Row::counters(
        "shardgate_messages_received_total",
        "Frames from clients, by type.",
        "type",
        &FrameKind::LABELS,
        |m, at| m.received[at].get(),
    ),
    Row::counters(
        "shardgate_messages_sent_total",
        "Frames to clients, by type.",
        "type",
        &SentKind::LABELS,
        |m, at| m.sent[at].get(),
    ),
    Row::counters(
        "shardgate_acks_total",
        "What became of messages and publications whose sender asked.",
        "status",
        &AckStatus::LABELS,
        |m, at| m.acks[at].get(),
    ),
];

/// Of each shard; the control thread has samples of the same name.
pub(super) const DROPPED: Row<ShardMetrics> = Row::counters_by_reason(
    "shardgate_dropped_total",
    "What was refused or lost, by kind and reason.",
    &DropReason::LABELS,
    |m, at| m.dropped[at].get(),
);

/// Of each shard.
pub(super) const TIMES: &[Row<ShardMetrics>] = &[
    Row::histogram(
        "shardgate_loop_turn_seconds",
        "Time of one turn of a shard, waiting not counted.",
        |m| &m.loop_turn,
    ),
    Row::histogram(
        "shardgate_fanout_seconds",
        "From receipt of a publication to the outbox of its last subscriber on the shard.",
        |m| &m.fanout,
    ),
    Row::histograms(
        "shardgate_delivery_seconds",
        "From receipt of a message to its sends, by path.",
        "path",
        &Path::LABELS,
        |m, at| &m.delivery[at],
    ),
];
