//! Numbers of the gateway as a whole. [`GatewayNumbers`] lists where they are read.

use super::admin::HttpMetrics;
use super::control::ClusterMetrics;
use super::counter::Counter;
use super::exposition::Row;
use super::labels::FetchResult;
use super::process::ProcessMetrics;
use super::shard::ShardMetrics;

/// Where the numbers of a gateway are read.
pub trait GatewayNumbers {
    /// The name of the socket engine.
    fn engine(&self) -> &str;
    /// The gateway's id.
    fn id(&self) -> &str;
    /// Milliseconds since the start.
    fn uptime_ms(&self) -> u64;
    /// True from the beginning of a drain.
    fn is_draining(&self) -> bool;
    /// Whether Redis answers; `None` without Redis.
    fn redis_answers(&self) -> Option<bool>;
    /// Shards, and milliseconds since the last turn of each began.
    fn turn_ages_ms(&self) -> Box<dyn Iterator<Item = (usize, u64)> + '_>;
    /// All lanes: the names of their ends, and how many items are under way.
    fn lanes(&self) -> Box<dyn Iterator<Item = (String, String, u32)> + '_>;
    /// The fetching of keys.
    fn jwks(&self) -> &JwksMetrics;
    /// The counters of each shard.
    fn shards(&self) -> &[ShardMetrics];
    /// The counters of the control thread.
    fn cluster(&self) -> &ClusterMetrics;
    /// What the kernel says about the process.
    fn process(&self) -> &ProcessMetrics;
    /// The counters of `admin.listen`.
    fn admin(&self) -> &HttpMetrics;
}

/// How the fetching of keys goes; written by the control thread.
#[derive(Debug, Default)]
pub struct JwksMetrics {
    /// When keys were last fetched, milliseconds of the gateway's clock.
    pub fetched_ms: Counter,
    fetches: [Counter; FetchResult::LABELS.len()],
}

impl JwksMetrics {
    /// Counts an attempt to fetch them.
    pub fn fetched(&self, result: FetchResult) {
        self.fetches[result as usize].inc();
    }

    fn were_fetched(&self) -> bool {
        self.fetches[FetchResult::Ok as usize].get() > 0
    }
}

/// Of the gateway.
pub(super) const TABLE: &[Row<dyn GatewayNumbers>] = &[
    Row::info("shardgate_info", "What runs; always 1.", |gateway| {
        format!(
            "version=\"{}\",engine=\"{}\",gateway=\"{}\"",
            env!("CARGO_PKG_VERSION"),
            gateway.engine(),
            escape(gateway.id())
        )
    }),
    Row::gauge("shardgate_draining", "1 from the beginning of a drain.", |gateway| {
        gateway.is_draining().into()
    }),
    Row::counter(
        "shardgate_log_lines_dropped_total",
        "Lines of the log that nobody read in time, or that could not be written.",
        |gateway| gateway.process().log_lines_dropped.get(),
    ),
    Row::seconds("shardgate_uptime_seconds", "Seconds since the start.", |gateway| {
        Some(gateway.uptime_ms() as f64 / 1000.0)
    }),
    Row::each(
        "shardgate_last_turn_age_seconds",
        "Since the last turn of a shard began; over 5: it is stuck.",
        |gateway| {
            let ages = gateway.turn_ages_ms();
            Box::new(ages.map(|(shard, ms)| (format!("shard=\"{shard}\""), ms as f64 / 1000.0)))
        },
    ),
    Row::each(
        "shardgate_lane_depth",
        "Items under way from one shard to another.",
        |gateway| {
            let lanes = gateway.lanes();
            Box::new(lanes.map(|(from, to, depth)| (format!("from=\"{from}\",to=\"{to}\""), depth.into())))
        },
    ),
    // Absent without Redis: 0 would mean that Redis is down, and an alert would fire.
    Row::optional_gauge(
        "shardgate_redis_up",
        "1 while Redis answers; absent without Redis.",
        |gateway| gateway.redis_answers().map(u64::from),
    ),
    Row::seconds(
        "shardgate_pubsub_probe_seconds",
        "Round trip of the last pub/sub probe; absent without Redis.",
        |gateway| {
            let answers = gateway.redis_answers();
            answers.map(|_| gateway.cluster().probe_ns.get() as f64 / 1e9)
        },
    ),
    Row::seconds(
        "shardgate_jwks_age_seconds",
        "Since keys were last fetched from auth.jwks_url; absent without it.",
        |gateway| {
            let jwks = gateway.jwks();
            let age_ms = gateway.uptime_ms().saturating_sub(jwks.fetched_ms.get());
            jwks.were_fetched().then_some(age_ms as f64 / 1000.0)
        },
    ),
    Row::counters(
        "shardgate_jwks_fetches_total",
        "Times that keys were fetched from auth.jwks_url, by result.",
        "result",
        &FetchResult::LABELS,
        |gateway, at| gateway.jwks().fetches[at].get(),
    ),
];

/// Label values escape backslash, quote and line feed; a gateway id has no control characters.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"")
}
