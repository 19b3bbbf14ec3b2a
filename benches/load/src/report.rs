//! The result, for people and for programs.
//!
//! Duty: [`Outcome`] to the JSON that `--json` writes and to a summary. The first keys of the JSON
//! are a contract with tools that compare runs; the others may grow.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::args::{Auth, Options};
use crate::coordinator::Outcome;
use crate::cost::{Redis, Server};
use crate::figures::{Quantiles, list, round, shown};
use crate::kind::Kind;
use crate::own::Generator;
use crate::series::Row;
use crate::spread::Spread;
use crate::tally::Comebacks;
use crate::turmoil::{Mixed, Storm};
use crate::verdict;

/// Where the curve of latencies has its points: dense where a tail is.
const CURVE: [f64; 18] = [
    0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.9975, 0.999, 0.9995, 0.9999, 0.99995, 0.99999,
    0.999999, 1.0,
];

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
    /// The messages between users on different gateways.
    cross_gateway: CrossGateway,
    /// Null without `--redis`.
    redis: Option<Redis>,
    #[serde(flatten)]
    fanout: Option<Fanout>,
    /// Null but for `storm`.
    storm: Option<Storm>,
    /// Null but for `mixed`.
    mixed: Option<Mixed>,

    version: &'static str,
    config: Config,
    /// Not received, and not expected: somebody was away. sent = received + lost + away.
    away: u64,
    corrupted: u64,
    misrouted: u64,
    unsent: u64,
    drained: bool,
    /// Without any message while some were under way; null in `storm` and `mixed`, where silences
    /// are honest.
    longest_silence_micros: Option<f64>,
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
    /// The measured part: how long it took, at ever higher shares of the messages.
    latency_curve: Vec<Point>,
    /// Second by second, from the first connection on.
    series: Vec<Row>,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Point {
    quantile: f64,
    micros: f64,
}

/// The part of `fanout`; its messages are deliveries.
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
    /// The users that came again after their first connection ended.
    comebacks: Comebacks,
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
    processes: usize,
    cpus: Vec<usize>,
    spin: bool,
    seed: u64,
    /// The cause that cut the clients of `storm` off.
    cut: Option<String>,
    pairs: usize,
    calm_seconds: f64,
    backoff_seconds: f64,
    backoff_max_seconds: f64,
    /// The file of `mixed`; null for the one that is built in.
    scenario_file: Option<String>,
}

impl Config {
    fn new(options: &Options) -> Self {
        let is_fanout = options.kind == Kind::Fanout;
        Self {
            url: options.targets.urls(),
            users: options.load.users,
            publishers: options.publishers,
            channels: is_fanout.then_some(options.channels),
            channels_per_user: is_fanout.then_some(options.per_user),
            rate: options.rate,
            in_flight: (options.rate.is_none() && options.kind != Kind::Idle).then_some(options.in_flight()),
            payload_bytes: options.load.payload_bytes,
            ack: options.load.ack,
            duration_seconds: options.duration().as_secs_f64(),
            warmup_seconds: options.load.warmup.as_secs_f64(),
            auth: match options.connect.auth {
                Auth::Query => "query",
                Auth::Message => "message",
            },
            token: options.tokens.as_ref().map(|tokens| tokens.algorithm.name()),
            connect_rate: options.connect.connect_rate,
            connecting_max: options.connect.connecting_max,
            warmup_connections: options.connect.warmup_connections,
            sources: options.connect.sources,
            threads: options.generator.threads,
            processes: options.generator.processes,
            cpus: options.cpus().to_vec(),
            spin: options.generator.spin,
            seed: options.seed(),
            cut: (options.kind == Kind::Storm).then(|| format!("{:?}", options.cut()).to_lowercase()),
            pairs: options.pairs(),
            calm_seconds: options.calm().as_secs_f64(),
            backoff_seconds: options.storm.backoff.as_secs_f64(),
            backoff_max_seconds: options.storm.backoff_max.as_secs_f64(),
            scenario_file: options.scenario_file(),
        }
    }
}

/// Points of the curve, as far as there are messages enough to tell them apart.
fn curve(spread: &Spread) -> Vec<Point> {
    let tells = |quantile: &f64| *quantile == 1.0 || (1.0 - quantile) * spread.len() as f64 >= 1.0;
    CURVE
        .into_iter()
        .filter(tells)
        .filter(|_| !spread.is_empty())
        .map(|quantile| Point {
            quantile,
            micros: round(spread.quantile_ns(quantile) as f64 / 1e3, 1),
        })
        .collect()
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
        let latency = tally.latency();
        let storm = (options.kind == Kind::Storm).then(|| Storm::new(options, &tally));
        let user_ns = moments
            .measure_end
            .generator_user_ns
            .saturating_sub(moments.measure_begin.generator_user_ns);
        Self {
            scenario: options.kind.name(),
            ok: tally.is_clean() && outcome.drained && storm.as_ref().is_none_or(Storm::is_ok),
            messages_per_second: round(received as f64 / seconds.max(1e-9), 1),
            latency_micros: Quantiles::new(&latency),
            latency_curve: curve(&latency),
            generator: Generator::new(options, &tally, user_ns, received, seconds),
            storm,
            series: outcome.series,
            connections: Connections {
                attempted: tally.attempted,
                ready: tally.ready,
                failed: tally.failed(),
                per_second: round(outcome.connected as f64 / outcome.connect_seconds.max(1e-9), 1),
                dropped: tally.dropped(),
                ready_micros: Quantiles::new(&tally.connect),
                failures: tally.failures,
                comebacks: tally.comebacks,
            },
            mixed: (options.kind == Kind::Mixed).then(|| Mixed::new(tally.mixed)),
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
            longest_silence_micros: matches!(options.kind, Kind::Direct | Kind::Fanout)
                .then(|| round(tally.silence_ns as f64 / 1e3, 1)),
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
            sent: tally.sent,
            received: tally.received,
            lost: tally.lost,
            away: tally.away,
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

    /// The run's parameters.
    pub(crate) fn name(&self) -> &'static str {
        self.scenario
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
            ("mixed", Some(rate)) => format!(", {rate} actions/s, {} bytes", config.payload_bytes),
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
                "messages     sent {}, received {}, {:.0}/s; lost {}, away {}, duplicates {}, reordered {}, damaged {}, misrouted {}, unsent {}",
                self.sent,
                self.received,
                self.messages_per_second,
                self.lost,
                self.away,
                self.duplicates,
                self.reordered,
                self.corrupted,
                self.misrouted,
                self.unsent
            )?;
            writeln!(
                out,
                "latency      {}; longest silence {} us",
                self.latency_micros,
                shown(self.longest_silence_micros)
            )?;
        }
        if let Some(storm) = &self.storm {
            storm.write_summary(&connections.comebacks, out)?;
        }
        if let Some(mixed) = &self.mixed {
            mixed.write_summary(&connections.comebacks, out)?;
        }
        if !self.acks.by_status.is_empty() || config.ack {
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
        self.generator.write_summary(out)?;
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
        let reasons = serde_json::to_value(self).map_or_else(|_| vec![], |report| verdict::reasons(&report));
        if !reasons.is_empty() {
            writeln!(out, "because      {}", reasons.join(", "))?;
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
