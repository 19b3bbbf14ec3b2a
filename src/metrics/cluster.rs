//! What the control thread counts of the cluster. It alone writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Counter, Exposition};

/// What the broker counts since the start; all rise, none is exact to the instant.
#[derive(Debug, Default)]
pub struct BrokerCounters {
    /// Commands that were sent, those of connections' upkeep too.
    pub commands_total: AtomicU64,
    /// Operations that were sent, by kind, in the order of [`BrokerCounters::LABELS`]; one that was sent again counts again.
    pub operations: [AtomicU64; BrokerCounters::LABELS.len()],
    /// Connections that were lost and had to be made again.
    pub reconnects: AtomicU64,
    /// Servers that throw presence away when their memory is full; as it is now.
    pub evicting: AtomicU64,
    /// Packets that were heard and dropped, as too much waited.
    pub packets_dropped: AtomicU64,
    /// Bytes of payload that were published.
    pub bytes_out: AtomicU64,
    /// Bytes of payload that were heard and not dropped.
    pub bytes_in: AtomicU64,
}

impl BrokerCounters {
    /// What [`BrokerCounters::operations`] counts.
    pub const LABELS: [&'static str; 16] = [
        "set_presence",
        "clear_presence",
        "locate",
        "index_add",
        "index_remove",
        "index_scan",
        "publish",
        "lease_take",
        "lease_write",
        "lease_read",
        "lease_drop",
        "register",
        "unregister",
        "read_directory",
        "claim",
        "keep_presence",
    ];
}

/// What the control thread dropped, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterDrop {
    /// Too much waits for a gateway; the sender heard `failed`.
    MessageGatewayFull,
    /// A message for a gateway where nobody listens; the sender heard `failed` or `offline`.
    MessageGatewayGone,
    /// A message that was to go to Redis when Redis went; the sender heard `failed`.
    MessageRedisAway,
    /// A message of another gateway did not fit into the lane of its shard; the sender heard `failed`.
    MessageLaneFull,
    /// A packet that was not confirmed in time; its senders heard `failed`.
    PacketUnconfirmed,
    /// A packet that came behind a later one; its senders heard `failed`.
    PacketLate,
    /// A packet that made no sense.
    PacketMalformed,
    /// A packet of another version of the framing.
    PacketVersion,
    /// A packet for which there was no room.
    PacketInboxFull,
    /// A broadcast or an order to close a user's connections, which did not reach the other gateways.
    OrderRedisAway,
    /// The same, when fewer gateways heard it than there are: one was subscribing anew, or has just died.
    OrderUnheard,
    /// A publication that was to go to Redis when Redis went; its publisher heard `failed`.
    PublicationRedisAway,
    /// A publication for which too much waited for Redis; its publisher heard `failed`.
    PublicationRedisSlow,
    /// A publication whose packet Redis did not take; its publisher heard `failed`.
    PublicationFailed,
    /// A publication of another gateway that did not fit into the lane of its shard.
    PublicationLaneFull,
    /// A packet of another gateway in a partition that we hear, which did not come.
    PacketGap,
    /// A partition that was not heard in time; its subscribers were told that they are subscribed.
    SubscriptionUnheard,
    /// A packet without a tag, while there is a `cluster.key`.
    PacketUnsealed,
    /// A packet with a tag, while there is no `cluster.key`.
    PacketNoKey,
    /// A packet with a tag of another key.
    PacketWrongTag,
    /// A packet of a gateway that is in no directory, of which there are too many.
    PacketUnknownGateway,
    /// A message of another gateway that is no frame; its sender heard `failed`.
    MessageBadFrame,
    /// A publication of another gateway that is no frame.
    PublicationBadFrame,
    /// A broadcast of another gateway that is no frame.
    OrderBadFrame,
}

impl ClusterDrop {
    /// `kind` and `reason` in the order of the discriminants.
    pub const LABELS: [(&'static str, &'static str); 24] = [
        ("message", "gateway_full"),
        ("message", "gateway_gone"),
        ("message", "redis_away"),
        ("message", "lane_full"),
        ("packet", "unconfirmed"),
        ("packet", "late"),
        ("packet", "malformed"),
        ("packet", "version"),
        ("packet", "inbox_full"),
        ("order", "redis_away"),
        ("order", "unheard"),
        ("publication", "redis_away"),
        ("publication", "redis_slow"),
        ("publication", "failed"),
        ("publication", "lane_full"),
        ("packet", "gap"),
        ("subscription", "unheard"),
        ("packet", "unsealed"),
        ("packet", "no_key"),
        ("packet", "wrong_tag"),
        ("packet", "unknown_gateway"),
        ("message", "bad_frame"),
        ("publication", "bad_frame"),
        ("order", "bad_frame"),
    ];
}

/// The counters of the control thread.
#[derive(Debug, Default)]
pub struct ClusterMetrics {
    /// How long the last probe took, nanoseconds.
    pub probe_ns: Counter,
    /// Other gateways with a lease.
    pub gateways: Counter,
    /// Packets sent to one gateway or in one partition.
    pub packets_sent: Counter,
    /// Packets received from other gateways.
    pub packets_received: Counter,
    /// Messages in the packets sent.
    pub messages_sent: Counter,
    /// Messages in the packets received.
    pub messages_received: Counter,
    /// Publications in the packets sent.
    pub publications_sent: Counter,
    /// Publications in the packets received.
    pub publications_received: Counter,
    /// Partitions of channels that are heard.
    pub partitions_heard: Counter,
    /// Users whose change of presence is not written yet.
    pub presence_pending: Counter,
    /// Senders and publishers who have not heard yet.
    pub acks_waiting: Counter,
    /// Users who are being looked up, for messages or questions.
    pub lookups: Counter,
    /// Times that presence was written again as a whole.
    pub rebuilds: Counter,
    /// Users whose presence the store had lost, and who were written again.
    pub presence_repaired: Counter,
    /// Dead gateways whose presence was swept by this one.
    pub sweeps: Counter,
    dropped: [Counter; ClusterDrop::LABELS.len()],
    /// What the broker counts.
    pub broker: Arc<BrokerCounters>,
}

impl ClusterMetrics {
    /// Counts `times` things that were dropped.
    pub fn dropped(&self, what: ClusterDrop, times: u64) {
        self.dropped[what as usize].add(times);
    }
}

impl Exposition {
    /// The samples of `shardgate_dropped_total` that are the control thread's.
    pub(super) fn cluster_dropped(&mut self, name: &str, cluster: &ClusterMetrics) {
        for ((kind, reason), counter) in ClusterDrop::LABELS.iter().zip(&cluster.dropped) {
            let labels = format_args!("shard=\"control\",kind=\"{kind}\",reason=\"{reason}\"");
            self.sample(name, labels, counter.get());
        }
        let labels = "shard=\"control\",kind=\"packet\",reason=\"backlog_full\"";
        self.sample(name, labels, cluster.broker.packets_dropped.load(Relaxed));
    }

    /// Adds everything that the control thread counts.
    pub fn cluster(&mut self, cluster: &ClusterMetrics) {
        type Simple<'a> = (&'static str, &'static str, &'static str, &'a Counter);
        let simple: [Simple<'_>; 14] = [
            (
                "shardgate_cluster_gateways",
                "gauge",
                "Other gateways with a lease.",
                &cluster.gateways,
            ),
            (
                "shardgate_cluster_packets_sent_total",
                "counter",
                "Packets sent to other gateways.",
                &cluster.packets_sent,
            ),
            (
                "shardgate_cluster_packets_received_total",
                "counter",
                "Packets received from other gateways.",
                &cluster.packets_received,
            ),
            (
                "shardgate_cluster_messages_sent_total",
                "counter",
                "Messages sent to other gateways.",
                &cluster.messages_sent,
            ),
            (
                "shardgate_cluster_messages_received_total",
                "counter",
                "Messages received from other gateways.",
                &cluster.messages_received,
            ),
            (
                "shardgate_cluster_publications_sent_total",
                "counter",
                "Publications sent to other gateways.",
                &cluster.publications_sent,
            ),
            (
                "shardgate_cluster_publications_received_total",
                "counter",
                "Publications received from other gateways.",
                &cluster.publications_received,
            ),
            (
                "shardgate_cluster_partitions_heard",
                "gauge",
                "Partitions of channels that are heard.",
                &cluster.partitions_heard,
            ),
            (
                "shardgate_cluster_presence_pending",
                "gauge",
                "Users whose change of presence is not written yet.",
                &cluster.presence_pending,
            ),
            (
                "shardgate_cluster_acks_waiting",
                "gauge",
                "Messages to other gateways that are not confirmed yet.",
                &cluster.acks_waiting,
            ),
            (
                "shardgate_cluster_lookups",
                "gauge",
                "Users who are being looked up in Redis, or wait for it.",
                &cluster.lookups,
            ),
            (
                "shardgate_cluster_rebuilds_total",
                "counter",
                "Times that presence was written again as a whole.",
                &cluster.rebuilds,
            ),
            (
                "shardgate_cluster_presence_repaired_total",
                "counter",
                "Users whose presence Redis had lost, written again.",
                &cluster.presence_repaired,
            ),
            (
                "shardgate_cluster_sweeps_total",
                "counter",
                "Dead gateways whose presence this one swept.",
                &cluster.sweeps,
            ),
        ];
        for (name, kind, help, counter) in simple {
            self.single(name, kind, help, counter.get());
        }
        let broker = &cluster.broker;
        let simple = [
            (
                "shardgate_redis_commands_total",
                "Commands sent to Redis.",
                &broker.commands_total,
            ),
            (
                "shardgate_redis_reconnects_total",
                "Connections to Redis that were lost and made again.",
                &broker.reconnects,
            ),
            (
                "shardgate_redis_bytes_published_total",
                "Bytes of packets published.",
                &broker.bytes_out,
            ),
            (
                "shardgate_redis_bytes_heard_total",
                "Bytes of packets heard.",
                &broker.bytes_in,
            ),
        ];
        for (name, help, counter) in simple {
            self.single(name, "counter", help, counter.load(Relaxed));
        }
        self.single(
            "shardgate_redis_evicts_presence",
            "gauge",
            "Servers whose maxmemory-policy throws presence away when their memory is full.",
            broker.evicting.load(Relaxed),
        );
        let name = "shardgate_redis_operations_total";
        self.begin(name, "counter", "What was asked of Redis, by kind.");
        for (kind, counter) in BrokerCounters::LABELS.iter().zip(&broker.operations) {
            self.sample(name, format_args!("kind=\"{kind}\""), counter.load(Relaxed));
        }
    }
}
