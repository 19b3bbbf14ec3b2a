//! Counters of the cluster. The control thread alone writes them.

use std::sync::Arc;

use super::counter::Counter;
use super::exposition::Row;
use super::labels::ClusterDrop;
use super::store::BrokerCounters;

/// The counters of the control thread.
#[derive(Debug, Default)]
pub struct ClusterMetrics {
    /// How long the last probe took, nanoseconds.
    pub probe_ns: Counter,
    /// Other gateways with a lease.
    pub gateways: Counter,
    /// Packets sent to one gateway or in one partition.
    pub packets_sent: Counter,
    /// Packets received from peers.
    pub packets_received: Counter,
    /// Messages in the packets sent.
    pub messages_sent: Counter,
    /// Messages in the packets received.
    pub messages_received: Counter,
    /// Publications in the packets sent.
    pub publications_sent: Counter,
    /// Publications in the packets received.
    pub publications_received: Counter,
    /// Partitions of channels with a confirmed subscription.
    pub partitions_heard: Counter,
    /// Users whose change of presence is not written yet.
    pub presence_pending: Counter,
    /// Senders and publishers whose ack is due.
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
    /// Counters of Redis.
    pub broker: Arc<BrokerCounters>,
}

impl ClusterMetrics {
    /// Counts `times` things that were dropped.
    pub fn dropped(&self, what: ClusterDrop, times: u64) {
        self.dropped[what as usize].add(times);
    }
}

/// Of the control thread.
pub(super) const TABLE: &[Row<ClusterMetrics>] = &[
    Row::gauge("shardgate_cluster_gateways", "Other gateways with a lease.", |m| {
        m.gateways.get()
    }),
    Row::counter(
        "shardgate_cluster_packets_sent_total",
        "Packets sent to other gateways.",
        |m| m.packets_sent.get(),
    ),
    Row::counter(
        "shardgate_cluster_packets_received_total",
        "Packets received from other gateways.",
        |m| m.packets_received.get(),
    ),
    Row::counter(
        "shardgate_cluster_messages_sent_total",
        "Messages sent to other gateways.",
        |m| m.messages_sent.get(),
    ),
    Row::counter(
        "shardgate_cluster_messages_received_total",
        "Messages received from other gateways.",
        |m| m.messages_received.get(),
    ),
    Row::counter(
        "shardgate_cluster_publications_sent_total",
        "Publications sent to other gateways.",
        |m| m.publications_sent.get(),
    ),
    Row::counter(
        "shardgate_cluster_publications_received_total",
        "Publications received from other gateways.",
        |m| m.publications_received.get(),
    ),
    Row::gauge(
        "shardgate_cluster_partitions_heard",
        "Partitions of channels that are heard.",
        |m| m.partitions_heard.get(),
    ),
    Row::gauge(
        "shardgate_cluster_presence_pending",
        "Users whose change of presence is not written yet.",
        |m| m.presence_pending.get(),
    ),
    Row::gauge(
        "shardgate_cluster_acks_waiting",
        "Messages to other gateways that are not confirmed yet.",
        |m| m.acks_waiting.get(),
    ),
    Row::gauge(
        "shardgate_cluster_lookups",
        "Users who are being looked up in Redis, or wait for it.",
        |m| m.lookups.get(),
    ),
    Row::counter(
        "shardgate_cluster_rebuilds_total",
        "Times that presence was written again as a whole.",
        |m| m.rebuilds.get(),
    ),
    Row::counter(
        "shardgate_cluster_presence_repaired_total",
        "Users whose presence Redis had lost, written again.",
        |m| m.presence_repaired.get(),
    ),
    Row::counter(
        "shardgate_cluster_sweeps_total",
        "Dead gateways whose presence this one swept.",
        |m| m.sweeps.get(),
    ),
];

/// The samples of the control thread, of the metric that `shard::DROPPED` begins.
pub(super) const DROPPED: Row<ClusterMetrics> =
    Row::counters_by_reason("shardgate_dropped_total", "", &ClusterDrop::LABELS, |m, at| {
        m.dropped[at].get()
    });
