//! Metrics: names, labels, counters, and the text that Prometheus reads.
//!
//! Each scope is a file with its counters and one table of its metrics: `shard`, `control` (the
//! cluster), `store` (Redis), `admin` (plain HTTP), `process`, `gateway` (the rest). A row of a
//! table is one metric. `labels` has the enums that stand behind its labels. To add a metric, add a
//! field, a row, and a line in `docs/metrics.md`.
//!
//! The thread that a scope belongs to is the only one that writes its counters; any thread may read
//! them.

mod admin;
mod control;
mod counter;
mod exposition;
mod gateway;
mod labels;
mod process;
mod shard;
mod store;

pub use admin::HttpMetrics;
pub use control::ClusterMetrics;
pub use counter::{Counter, Histogram};
pub use exposition::{Exposition, pause};
pub use gateway::{GatewayNumbers, JwksMetrics};
pub use labels::{
    ADMIN_STATUSES, CLOSE_LABELS, CloseCause, ClusterDrop, DropReason, FetchResult, Path, RedisOperation,
    RefusalReason, SentKind, TokenResult,
};
pub use process::ProcessMetrics;
pub use shard::ShardMetrics;
pub use store::BrokerCounters;

use exposition::{Member, Row};

/// Adds every metric of a gateway, table after table.
pub async fn expose(gateway: &(dyn GatewayNumbers + 'static), out: &mut Exposition) {
    let (cluster, shards) = (gateway.cluster(), gateway.shards());
    out.table(gateway::TABLE, gateway).await;
    out.table(control::TABLE, cluster).await;
    out.table(store::TABLE, &*cluster.broker).await;
    out.table(process::TABLE, gateway.process()).await;
    of_shards(shard::TABLE, shards, out).await;
    of_shards(&[shard::DROPPED], shards, out).await;
    out.samples(&control::DROPPED, Member::Control, cluster).await;
    out.samples(&store::DROPPED, Member::Control, &*cluster.broker).await;
    of_shards(shard::TIMES, shards, out).await;
    out.head(&admin::REQUESTS);
    for (shard, metrics) in shards.iter().enumerate() {
        out.samples(&admin::REQUESTS, Member::Shard(shard), &metrics.http).await;
    }
    out.samples(&admin::REQUESTS, Member::Control, gateway.admin()).await;
    out.table(admin::TABLE, gateway.admin()).await;
}

async fn of_shards(rows: &[Row<ShardMetrics>], shards: &[ShardMetrics], out: &mut Exposition) {
    for row in rows {
        out.head(row);
        for (shard, metrics) in shards.iter().enumerate() {
            out.samples(row, Member::Shard(shard), metrics).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_edges_are_inclusive_and_sums_are_seconds() {
        let shards = [ShardMetrics::default()];
        shards[0].loop_turn.record(10_000, 1);
        shards[0].loop_turn.record(10_001, 1);
        shards[0].loop_turn.record(9_000_000_000, 1);
        let mut exposition = Exposition::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(of_shards(shard::TIMES, &shards, &mut exposition));
        let text = exposition.into_text();
        for line in [
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"0.00001\"} 1",
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"0.000025\"} 2",
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"5\"} 2",
            "shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"+Inf\"} 3",
            "shardgate_loop_turn_seconds_sum{shard=\"0\"} 9.000020001",
            "shardgate_loop_turn_seconds_count{shard=\"0\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
