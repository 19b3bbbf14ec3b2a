//! The cost of a run to the servers and Redis: the differences between its moments, per message and
//! per connection.
//!
//! Duty: the parts `server` and `redis` of the report. Of several processes `server` is the sum.
//! `processes` has each of them with the same divisor, so that they add up. CPU time is in
//! microseconds or seconds, as the name says.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::args::Options;
use crate::coordinator::{Moment, Moments, Outcome};
use crate::figures::{list, round, shown};
use crate::procfs::Sample;
use crate::redis::Spent;

/// All null without `--pid`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Server {
    cpu_seconds_per_million: Option<f64>,
    rss_bytes_per_connection: Option<f64>,
    /// The same of anonymous memory: the heap without the program's own pages.
    anon_bytes_per_connection: Option<f64>,
    /// The servers' growth between being connected and being subscribed. Null unless the scenario
    /// subscribes.
    rss_bytes_per_subscription: Option<f64>,
    rss_bytes: Option<u64>,
    anon_bytes: Option<u64>,
    connect_cpu_micros_per_connection: Option<f64>,
    /// Of one core, in the measured part.
    cpu_percent: Option<f64>,
    cpu_seconds: Option<f64>,
    /// One per `--pid`, in their order.
    processes: Vec<Process>,
}

/// One process' part of [`Server`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    pid: u32,
    /// Its part of the CPU time per message of the whole run.
    cpu_seconds_per_million: Option<f64>,
    connect_cpu_micros_per_connection: Option<f64>,
    cpu_percent: Option<f64>,
    cpu_seconds: f64,
    rss_bytes: u64,
    anon_bytes: u64,
}

/// The use of some processes.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    connect_ns: u64,
    measured_ns: u64,
    rss_bytes: u64,
    anon_bytes: u64,
    rss_growth: f64,
    anon_growth: f64,
    subscribed_rss_growth: f64,
}

impl Used {
    /// Of one process, found in every moment by `pick`.
    fn of(moments: &Moments, pick: impl Fn(&Moment) -> Sample) -> Self {
        let [base, connected, settled, subscribed, begin, end] = [
            &moments.base,
            &moments.connected,
            &moments.settled,
            &moments.subscribed,
            &moments.measure_begin,
            &moments.measure_end,
        ]
        .map(pick);
        let growth = |after: u64, before: u64| after as f64 - before as f64;
        Self {
            connect_ns: connected.cpu_ns_since(&base),
            measured_ns: end.cpu_ns_since(&begin),
            rss_bytes: settled.rss_bytes,
            anon_bytes: settled.anon_bytes,
            rss_growth: growth(settled.rss_bytes, base.rss_bytes),
            anon_growth: growth(settled.anon_bytes, base.anon_bytes),
            subscribed_rss_growth: growth(subscribed.rss_bytes, settled.rss_bytes),
        }
    }

    fn add(self, other: Self) -> Self {
        Self {
            connect_ns: self.connect_ns + other.connect_ns,
            measured_ns: self.measured_ns + other.measured_ns,
            rss_bytes: self.rss_bytes + other.rss_bytes,
            anon_bytes: self.anon_bytes + other.anon_bytes,
            rss_growth: self.rss_growth + other.rss_growth,
            anon_growth: self.anon_growth + other.anon_growth,
            subscribed_rss_growth: self.subscribed_rss_growth + other.subscribed_rss_growth,
        }
    }
}

/// The divisors of the figures.
#[derive(Clone, Copy)]
struct Shares {
    messages: u64,
    connections: u64,
    subscriptions: u64,
    seconds: f64,
}

impl Shares {
    fn of(outcome: &Outcome) -> Self {
        Self {
            messages: outcome.measured_received,
            connections: outcome.connected,
            subscriptions: outcome.tally.subscriptions,
            seconds: outcome.measured_seconds,
        }
    }

    fn per_message(self, amount: f64) -> Option<f64> {
        (self.messages > 0).then(|| round(amount / self.messages as f64, 4))
    }

    fn per_connection(self, amount: f64, digits: i32) -> Option<f64> {
        (self.connections > 0).then(|| round(amount / self.connections as f64, digits))
    }

    fn per_subscription(self, amount: f64) -> Option<f64> {
        (self.subscriptions > 0).then(|| round(amount / self.subscriptions as f64, 1))
    }

    fn per_second(self, amount: f64, digits: i32) -> Option<f64> {
        (self.seconds > 0.0).then(|| round(amount / self.seconds, digits))
    }
}

impl Server {
    pub(crate) fn new(options: &Options, outcome: &Outcome) -> Self {
        let share = Shares::of(outcome);
        let used = |i: usize| {
            Used::of(&outcome.moments, |moment| {
                moment.servers.get(i).copied().unwrap_or_default()
            })
        };
        let Some(all) = (0..options.output.pids.len()).map(used).reduce(Used::add) else {
            return Self::default();
        };
        let processes = options.output.pids.iter().enumerate().map(|(i, pid)| {
            let used = used(i);
            Process {
                pid: *pid,
                cpu_seconds_per_million: share.per_message(used.measured_ns as f64 / 1e3),
                connect_cpu_micros_per_connection: share.per_connection(used.connect_ns as f64 / 1e3, 1),
                cpu_percent: share.per_second(used.measured_ns as f64 / 1e7, 3),
                cpu_seconds: round(used.measured_ns as f64 / 1e9, 6),
                rss_bytes: used.rss_bytes,
                anon_bytes: used.anon_bytes,
            }
        });
        Self {
            cpu_seconds_per_million: share.per_message(all.measured_ns as f64 / 1e3),
            rss_bytes_per_connection: share.per_connection(all.rss_growth, 1),
            anon_bytes_per_connection: share.per_connection(all.anon_growth, 1),
            rss_bytes_per_subscription: outcome
                .prepared
                .then(|| share.per_subscription(all.subscribed_rss_growth))
                .flatten(),
            rss_bytes: Some(all.rss_bytes),
            anon_bytes: Some(all.anon_bytes),
            connect_cpu_micros_per_connection: share.per_connection(all.connect_ns as f64 / 1e3, 1),
            cpu_percent: share.per_second(all.measured_ns as f64 / 1e7, 3),
            cpu_seconds: Some(round(all.measured_ns as f64 / 1e9, 6)),
            processes: processes.collect(),
        }
    }

    /// Appends lines for people; none without `--pid`.
    pub(crate) fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        let Some(rss) = self.rss_bytes else {
            return Ok(());
        };
        writeln!(
            out,
            "server       {} us CPU per message, {} us per connect, {} % of a core; {} bytes per connection, rss {} KiB",
            shown(self.cpu_seconds_per_million),
            shown(self.connect_cpu_micros_per_connection),
            shown(self.cpu_percent),
            shown(self.rss_bytes_per_connection),
            rss / 1024
        )?;
        if let Some(bytes) = self.rss_bytes_per_subscription {
            writeln!(out, "             {bytes:.1} bytes per subscription")?;
        }
        if self.processes.len() > 1 {
            for process in &self.processes {
                writeln!(
                    out,
                    "  pid {:<6} {} us CPU per message, {} us per connect, {} % of a core; rss {} KiB",
                    process.pid,
                    shown(process.cpu_seconds_per_million),
                    shown(process.connect_cpu_micros_per_connection),
                    shown(process.cpu_percent),
                    process.rss_bytes / 1024
                )?;
            }
        }
        Ok(())
    }
}

/// The work of Redis, without our own questions. Figures are null when it was restarted or stopped
/// answering.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Redis {
    address: String,
    /// Why there are no figures.
    failure: Option<String>,
    /// In the measured part, by name.
    commands: Option<BTreeMap<String, u64>>,
    commands_total: Option<u64>,
    commands_per_message: Option<f64>,
    commands_per_second: Option<f64>,
    cpu_seconds: Option<f64>,
    cpu_micros_per_message: Option<f64>,
    /// Of one core, in the measured part.
    cpu_percent: Option<f64>,
    /// While users connected, and half a second longer.
    connect: RedisConnect,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct RedisConnect {
    commands: Option<BTreeMap<String, u64>>,
    commands_per_connection: Option<f64>,
    cpu_micros_per_connection: Option<f64>,
}

impl Redis {
    pub(crate) fn new(options: &Options, outcome: &Outcome) -> Option<Self> {
        let server = options.output.redis.as_ref()?;
        let (moments, share) = (&outcome.moments, Shares::of(outcome));
        let between = |from: &Moment, to: &Moment| to.redis.as_ref()?.since(from.redis.as_ref()?);
        // Without anybody connected nothing was measured, and that is no failure.
        let measured = if share.seconds > 0.0 {
            between(&moments.measure_begin, &moments.measure_end)
        } else {
            Some(Spent::default())
        };
        let connect = between(&moments.base, &moments.settled);
        let restarted = || "it was restarted, or its counters reset, during the run".to_owned();
        let failure = outcome
            .redis_failure
            .clone()
            .or_else(|| (measured.is_none() || connect.is_none()).then(restarted));
        let mut redis = Self {
            address: server.host.clone(),
            failure,
            ..Self::default()
        };
        if let Some(spent) = measured {
            let total = spent.total();
            redis.commands_total = Some(total);
            redis.commands_per_message = share.per_message(total as f64);
            redis.commands_per_second = share.per_second(total as f64, 2);
            redis.cpu_seconds = Some(round(spent.cpu_ns as f64 / 1e9, 6));
            redis.cpu_micros_per_message = share.per_message(spent.cpu_ns as f64 / 1e3);
            redis.cpu_percent = share.per_second(spent.cpu_ns as f64 / 1e7, 3);
            redis.commands = Some(spent.calls);
        }
        if let Some(spent) = connect {
            redis.connect = RedisConnect {
                commands_per_connection: share.per_connection(spent.total() as f64, 4),
                cpu_micros_per_connection: share.per_connection(spent.cpu_ns as f64 / 1e3, 2),
                commands: Some(spent.calls),
            };
        }
        Some(redis)
    }

    /// Appends lines for people.
    pub(crate) fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        if let Some(failure) = &self.failure {
            writeln!(out, "redis        no figures: {failure}")?;
        }
        if let Some(commands) = &self.commands {
            writeln!(
                out,
                "redis        {} commands per message, {} per second; {} us CPU per message, {} % of a core ({})",
                shown(self.commands_per_message),
                shown(self.commands_per_second),
                shown(self.cpu_micros_per_message),
                shown(self.cpu_percent),
                list(commands)
            )?;
        }
        if let Some(commands) = &self.connect.commands {
            writeln!(
                out,
                "  connecting {} commands per connection, {} us CPU ({})",
                shown(self.connect.commands_per_connection),
                shown(self.connect.cpu_micros_per_connection),
                list(commands)
            )?;
        }
        Ok(())
    }
}
