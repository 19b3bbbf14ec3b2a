//! Counters of Redis. The control thread writes them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::exposition::Row;
use super::labels::RedisOperation;

/// Counted since the start. Several tasks of the control thread write; none is exact to the
/// instant.
#[derive(Debug, Default)]
pub struct BrokerCounters {
    /// Commands that were sent, those of connections' upkeep too.
    pub commands_total: AtomicU64,
    /// Operations that were sent, by [`RedisOperation`]; one that was sent again counts again.
    pub operations: [AtomicU64; RedisOperation::LABELS.len()],
    /// Connections that were lost and had to be made again.
    pub reconnects: AtomicU64,
    /// Servers that throw presence away when their memory is full; as it is now.
    pub evicting: AtomicU64,
    /// Packets that were received and dropped, as too much was queued.
    pub packets_dropped: AtomicU64,
    /// Bytes of payload that were published.
    pub bytes_out: AtomicU64,
    /// Bytes of payload that were received and not dropped.
    pub bytes_in: AtomicU64,
}

impl BrokerCounters {
    /// Counts an operation that is sent.
    pub fn sent(&self, operation: RedisOperation) {
        self.operations[operation as usize].fetch_add(1, Relaxed);
    }
}

/// Of Redis.
pub(super) const TABLE: &[Row<BrokerCounters>] = &[
    Row::counter("shardgate_redis_commands_total", "Commands sent to Redis.", |m| {
        m.commands_total.load(Relaxed)
    }),
    Row::counter(
        "shardgate_redis_reconnects_total",
        "Connections to Redis that were lost and made again.",
        |m| m.reconnects.load(Relaxed),
    ),
    Row::counter(
        "shardgate_redis_bytes_published_total",
        "Bytes of packets published.",
        |m| m.bytes_out.load(Relaxed),
    ),
    Row::counter("shardgate_redis_bytes_heard_total", "Bytes of packets heard.", |m| {
        m.bytes_in.load(Relaxed)
    }),
    Row::gauge(
        "shardgate_redis_evicts_presence",
        "Servers whose maxmemory-policy throws presence away when their memory is full.",
        |m| m.evicting.load(Relaxed),
    ),
    Row::counters(
        "shardgate_redis_operations_total",
        "What was asked of Redis, by kind.",
        "kind",
        &RedisOperation::LABELS,
        |m, at| m.operations[at].load(Relaxed),
    ),
];

/// Packets that were received and dropped: a sample of the metric that `shard::DROPPED` begins.
pub(super) const DROPPED: Row<BrokerCounters> =
    Row::counters_by_reason("shardgate_dropped_total", "", &[("packet", "backlog_full")], |m, _| {
        m.packets_dropped.load(Relaxed)
    });
