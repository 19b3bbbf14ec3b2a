//! The result, for people and for programs.
//!
//! Duty: [`Outcome`] to the JSON that `--json` writes and to a summary. The first keys of the JSON are a contract with
//! whoever compares runs; the others may grow.

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::{Auth, Options};
use crate::coordinator::Outcome;
use crate::cost::{Redis, Server, list, round, shown};
use crate::scenario::Kind;

/// A thread that is busy for more than this share of the time may have been the limit.
const SATURATED_FROM: f64 = 0.95;

/// Everything that a run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    scenario: &'static str,
    sent: u64,
    received: u64,
    lost: u64,
    duplicates: u64,
    reordered: u64,
    /// Received per second of the measured part.
    messages_per_second: f64,
    latency_micros: Quantiles,
    connections: Connections,
    server: Server,
    /// What users on different gateways said to each other.
    cross_gateway: CrossGateway,
    /// Null without `--redis`.
    redis: Option<Redis>,
    #[serde(flatten)]
    fanout: Option<Fanout>,

    version: &'static str,
    config: Config,
    corrupted: u64,
    misrouted: u64,
    unsent: u64,
    drained: bool,
    longest_silence_micros: f64,
    measured: Measured,
    per_second: Vec<u64>,
    acks: Acks,
    closes: BTreeMap<u16, u64>,
    broken: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    error_samples: Vec<String>,
    other_frames: BTreeMap<String, u64>,
    pings: u64,
    generator: Generator,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    max: Option<f64>,
}

/// What only `fanout` has; its messages are deliveries.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fanout {
    publications: u64,
    /// Until the last subscriber had it.
    last_subscriber_micros: Quantiles,
    /// Confirmed ones.
    subscriptions: u64,
    subscription_failures: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connections {
    attempted: u64,
    ready: u64,
    failed: u64,
    per_second: f64,
    /// Ready ones that ended although nobody asked them to.
    dropped: u64,
    failures: BTreeMap<String, u64>,
    /// From the begin of the connect to `welcome`.
    ready_micros: Quantiles,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CrossGateway {
    /// Gateways that said `welcome`, by their ids.
    gateways: usize,
    /// Ready connections of each.
    connections: BTreeMap<String, u64>,
    /// Messages that crossed; `received` counts the others too.
    received: u64,
    /// Of those; the same as `latencyMicros` when all crossed.
    latency_micros: Quantiles,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    seconds: f64,
    received: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Acks {
    by_status: BTreeMap<String, u64>,
    missing: u64,
    unexpected: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Generator {
    cpu_seconds: f64,
    cpu_micros_per_message: Option<f64>,
    /// Of those, outside of the kernel; counted in ticks of 10 ms.
    user_micros_per_message: Option<f64>,
    /// Of its core, the busiest thread.
    busiest_percent: f64,
    saturated: bool,
    /// Open loop: how late messages were sent.
    lag_micros: Quantiles,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// All targets, with commas between them; user i is on number i modulo their number.
    url: String,
    users: usize,
    publishers: usize,
    channels: Option<usize>,
    channels_per_user: Option<usize>,
    rate: Option<f64>,
    in_flight: Option<u32>,
    payload_bytes: usize,
    ack: bool,
    duration_seconds: f64,
    warmup_seconds: f64,
    auth: &'static str,
    /// The algorithm of the users' tokens, if they have some.
    token: Option<&'static str>,
    connect_rate: Option<f64>,
    connecting_max: usize,
    warmup_connections: usize,
    sources: usize,
    threads: usize,
    cpus: Vec<usize>,
    spin: bool,
}

impl Config {
    fn new(options: &Options) -> Self {
        let is_fanout = options.kind == Kind::Fanout;
        Self {
            url: options.targets.urls(),
            users: options.users,
            publishers: options.publishers,
            channels: is_fanout.then_some(options.channels),
            channels_per_user: is_fanout.then_some(options.per_user),
            rate: options.rate,
            in_flight: options.rate.is_none().then_some(options.in_flight),
            payload_bytes: options.payload_bytes,
            ack: options.ack,
            duration_seconds: options.duration.as_secs_f64(),
            warmup_seconds: options.warmup.as_secs_f64(),
            auth: match options.auth {
                Auth::Query => "query",
                Auth::Message => "message",
            },
            token: options.tokens.as_ref().map(|tokens| tokens.algorithm.name()),
            connect_rate: options.connect_rate,
            connecting_max: options.connecting_max,
            warmup_connections: options.warmup_connections,
            sources: options.sources,
            threads: options.threads,
            cpus: options.cpus.clone(),
            spin: options.spin,
        }
    }
}

impl Quantiles {
    fn new(histogram: &Histogram<u64>) -> Self {
        let micros = |ns: u64| (!histogram.is_empty()).then(|| round(ns as f64 / 1e3, 1));
        let at = |quantile| micros(histogram.value_at_quantile(quantile));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(histogram.max()),
        }
    }
}

impl Report {
    /// Puts the report together.
    pub(crate) fn new(options: &Options, outcome: Outcome) -> Self {
        let server = Server::new(options, &outcome);
        let redis = Redis::new(options, &outcome);
        let Outcome {
            tally,
            moments,
            measured_received: received,
            measured_seconds: seconds,
            ..
        } = outcome;
        let per_message = |ns: u64| (received > 0).then(|| round(ns as f64 / 1e3 / received as f64, 3));
        // Phases that a run without load only passes through last for no time, which any work exceeds.
        let busiest = if seconds > 0.0 { tally.busiest } else { 0.0 };
        let user_ns = moments.measure_end.generator.user_ns - moments.measure_begin.generator.user_ns;
        Self {
            scenario: options.kind.name(),
            ok: tally.is_clean() && outcome.drained,
            messages_per_second: round(received as f64 / seconds.max(1e-9), 1),
            latency_micros: Quantiles::new(&tally.latency()),
            connections: Connections {
                attempted: tally.attempted,
                ready: tally.ready,
                failed: tally.failed(),
                per_second: round(outcome.connected as f64 / outcome.connect_seconds.max(1e-9), 1),
                dropped: tally.dropped(),
                ready_micros: Quantiles::new(&tally.connect),
                failures: tally.failures,
            },
            server,
            cross_gateway: CrossGateway {
                gateways: tally.gateways.len(),
                connections: tally.gateways,
                received: tally.crossed,
                latency_micros: Quantiles::new(&tally.crossed_latency),
            },
            redis,
            fanout: (options.kind == Kind::Fanout).then(|| Fanout {
                publications: tally.publications,
                last_subscriber_micros: Quantiles::new(&tally.last_subscriber),
                subscriptions: tally.subscriptions,
                subscription_failures: tally.subscription_failures,
            }),
            version: env!("CARGO_PKG_VERSION"),
            config: Config::new(options),
            drained: outcome.drained,
            longest_silence_micros: round(tally.silence_ns as f64 / 1e3, 1),
            measured: Measured {
                seconds: round(seconds, 3),
                received,
            },
            per_second: outcome.per_second,
            acks: Acks {
                by_status: tally.acks,
                missing: tally.acks_missing,
                unexpected: tally.acks_unexpected,
            },
            generator: Generator {
                cpu_seconds: round(tally.cpu_ns as f64 / 1e9, 6),
                cpu_micros_per_message: per_message(tally.cpu_ns),
                user_micros_per_message: per_message(user_ns),
                busiest_percent: round(busiest * 100.0, 1),
                saturated: busiest > SATURATED_FROM,
                lag_micros: Quantiles::new(&tally.lag),
            },
            sent: tally.sent,
            received: tally.received,
            lost: tally.lost,
            duplicates: tally.duplicates,
            reordered: tally.reordered,
            corrupted: tally.corrupted,
            misrouted: tally.misrouted,
            unsent: tally.unsent,
            closes: tally.closes,
            broken: tally.breaks,
            errors: tally.errors,
            error_samples: tally.error_samples,
            other_frames: tally.others,
            pings: tally.pings,
        }
    }

    /// Whether everything went as it should.
    pub(crate) fn is_ok(&self) -> bool {
        self.ok
    }

    /// The report as JSON with a final newline.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).map_or_else(|error| format!("{{\"error\":\"{error}\"}}"), |json| json + "\n")
    }

    /// The report in a dozen lines.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        self.write_summary(&mut text).expect("a String takes everything");
        text
    }

    fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        let (config, connections) = (&self.config, &self.connections);
        let how = match (self.scenario, config.rate) {
            ("idle", _) => String::new(),
            (_, Some(rate)) => format!(", open loop at {rate}/s, {} bytes", config.payload_bytes),
            (_, None) => format!(
                ", closed loop with {} in flight, {} bytes",
                config.in_flight.unwrap_or(1),
                config.payload_bytes
            ),
        };
        writeln!(
            out,
            "{}: {} users{how}, {:.1} s",
            self.scenario, config.users, self.measured.seconds
        )?;
        writeln!(
            out,
            "connections  {} ready of {}, {:.0}/s, {} failed, {} dropped; ready after {}",
            connections.ready,
            connections.attempted,
            connections.per_second,
            connections.failed,
            connections.dropped,
            connections.ready_micros
        )?;
        if let Some(fanout) = &self.fanout {
            fanout.write_summary(config, out)?;
        }
        if self.sent > 0 {
            writeln!(
                out,
                "messages     sent {}, received {}, {:.0}/s; lost {}, duplicates {}, reordered {}, damaged {}, misrouted {}, unsent {}",
                self.sent,
                self.received,
                self.messages_per_second,
                self.lost,
                self.duplicates,
                self.reordered,
                self.corrupted,
                self.misrouted,
                self.unsent
            )?;
            writeln!(
                out,
                "latency      {}; longest silence {:.1}",
                self.latency_micros, self.longest_silence_micros
            )?;
        }
        if config.ack {
            let acks = &self.acks;
            writeln!(
                out,
                "acks         {}, missing {}, unexpected {}",
                list(&acks.by_status),
                acks.missing,
                acks.unexpected
            )?;
        }
        self.write_cross_gateway(out)?;
        self.server.write_summary(out)?;
        if let Some(redis) = &self.redis {
            redis.write_summary(out)?;
        }
        writeln!(
            out,
            "generator    {} us CPU per message ({} user), busiest thread {:.0} % of its core{}",
            shown(self.generator.cpu_micros_per_message),
            shown(self.generator.user_micros_per_message),
            self.generator.busiest_percent,
            if self.generator.saturated {
                ": SATURATED, the server may be faster than shown"
            } else {
                ""
            }
        )?;
        if config.rate.is_some() {
            writeln!(out, "send lag     {}", self.generator.lag_micros)?;
        }
        for (what, entries) in [
            ("failures", list(&connections.failures)),
            ("closes", list(&self.closes)),
            ("broken", list(&self.broken)),
            ("errors", list(&self.errors)),
            ("other", list(&self.other_frames)),
        ] {
            if !entries.is_empty() {
                writeln!(out, "{what:<12} {entries}")?;
            }
        }
        for sample in &self.error_samples {
            writeln!(out, "             {sample}")?;
        }
        if !self.drained {
            writeln!(
                out,
                "NOT DRAINED: something was still under way when the drain timed out"
            )?;
        }
        writeln!(out, "{}", if self.ok { "ok" } else { "FAILED" })
    }

    fn write_cross_gateway(&self, out: &mut String) -> std::fmt::Result {
        let cross = &self.cross_gateway;
        let targets = self.config.url.split(',').count();
        if targets == 1 && cross.gateways < 2 {
            return Ok(());
        }
        writeln!(
            out,
            "gateways     {} at {targets} addresses ({})",
            cross.gateways,
            list(&cross.connections)
        )?;
        if self.received > 0 {
            let latency = if cross.received == self.received {
                ", all of them, latency as above".to_owned()
            } else {
                format!(" of {}, latency {}", self.received, cross.latency_micros)
            };
            writeln!(out, "crossed      {} messages{latency}", cross.received)?;
        }
        Ok(())
    }
}

impl Fanout {
    fn write_summary(&self, config: &Config, out: &mut String) -> std::fmt::Result {
        let (channels, each) = (config.channels.unwrap_or(1), config.channels_per_user.unwrap_or(1));
        writeln!(
            out,
            "subscribed   {} confirmed: {channels} channels, {each} for each user",
            self.subscriptions
        )?;
        if !self.subscription_failures.is_empty() {
            let failures = list(&self.subscription_failures);
            writeln!(out, "NOT SUBSCRIBED, so there was no load: {failures}")?;
        }
        if self.publications > 0 {
            writeln!(
                out,
                "published    {} by {} publishers; at the last subscriber after {}; below are deliveries",
                self.publications, config.publishers, self.last_subscriber_micros
            )?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.p50, self.p90, self.p99, self.p999, self.max) {
            (Some(p50), Some(p90), Some(p99), Some(p999), Some(max)) => {
                write!(f, "p50 {p50} p90 {p90} p99 {p99} p99.9 {p999} max {max} us")
            }
            _ => f.write_str("nothing measured"),
        }
    }
}
