//! The run second by second.
//!
//! Duty: one [`Row`] for each second. It is made of the counters of two ticks, a glance at the
//! servers, and the latencies that threads hand in a little later. Owned by the coordinator.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::board::{Phase, Totals};
use crate::figures::round;
use crate::procfs;
use crate::spread::Spread;

/// One second. Counts are those of this second, but for `ready`, `away`, `failed` and `dropped`,
/// which are states.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// When it ended, from the begin of the run.
    pub(crate) seconds: f64,
    pub(crate) phase: Phase,
    pub(crate) ready: u64,
    pub(crate) away: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) sent_per_second: f64,
    pub(crate) received_per_second: f64,
    /// Null when nothing arrived.
    pub(crate) p50_micros: Option<f64>,
    pub(crate) p99_micros: Option<f64>,
    pub(crate) max_micros: Option<f64>,
    /// Of one core, all `--pid` together; null without, or while one of them is gone.
    pub(crate) server_cpu_percent: Option<f64>,
    pub(crate) server_rss_bytes: Option<u64>,
    /// Of one core, all processes of the generator together.
    pub(crate) generator_cpu_percent: Option<f64>,
}

/// Rows, and what the next one is compared with.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) rows: Vec<Row>,
    /// By the number of their row; the last one or two are still growing.
    latencies: BTreeMap<usize, Spread>,
    pids: Vec<String>,
    generator: Vec<String>,
    last: Last,
}

#[derive(Debug, Default)]
struct Last {
    at_ns: u64,
    sent: u64,
    received: u64,
    server_ns: Option<u64>,
    generator_ns: Option<u64>,
}

/// Of all these processes together; `None` if one is gone, or there are none.
fn sum(pids: &[String], look: fn(&str) -> Option<u64>) -> Option<u64> {
    let all: Option<Vec<u64>> = pids.iter().map(|pid| look(pid)).collect();
    all.filter(|all| !all.is_empty()).map(|all| all.iter().sum())
}

impl Series {
    /// Of servers with these ids, and these other processes of the generator.
    pub(crate) fn new(pids: &[u32], children: &[u32]) -> Self {
        let names = |pids: &[u32]| pids.iter().map(u32::to_string).collect::<Vec<_>>();
        Self {
            rows: vec![],
            latencies: BTreeMap::new(),
            pids: names(pids),
            generator: [vec!["self".to_owned()], names(children)].concat(),
            last: Last::default(),
        }
    }

    /// A second is over.
    pub(crate) fn tick(&mut self, now_ns: u64, phase: Phase, totals: &Totals) {
        let seconds = (now_ns.saturating_sub(self.last.at_ns).max(1)) as f64 / 1e9;
        let (server_ns, generator_ns) = (sum(&self.pids, procfs::cpu_ns), sum(&self.generator, procfs::cpu_ns));
        let percent = |now: Option<u64>, before: Option<u64>| {
            // A process that was started anew has used less.
            let used = now?.checked_sub(before?)?;
            Some(round(used as f64 / 1e7 / seconds, 1))
        };
        let per_second = |now: u64, before: u64| round(now.saturating_sub(before) as f64 / seconds, 1);
        self.rows.push(Row {
            seconds: round(now_ns as f64 / 1e9, 3),
            phase,
            ready: totals.ready.saturating_sub(totals.dropped + totals.away),
            away: totals.away,
            failed: totals.failed,
            dropped: totals.dropped,
            sent_per_second: per_second(totals.sent, self.last.sent),
            received_per_second: per_second(totals.received, self.last.received),
            p50_micros: None,
            p99_micros: None,
            max_micros: None,
            server_cpu_percent: percent(server_ns, self.last.server_ns),
            server_rss_bytes: sum(&self.pids, procfs::rough_rss_bytes),
            generator_cpu_percent: percent(generator_ns, self.last.generator_ns),
        });
        self.last = Last {
            at_ns: now_ns,
            sent: totals.sent,
            received: totals.received,
            server_ns,
            generator_ns,
        };
        // Threads hand in within a second what belongs to a row.
        while let Some(entry) = self
            .latencies
            .first_entry()
            .filter(|entry| *entry.key() + 2 < self.rows.len())
        {
            let (row, latency) = entry.remove_entry();
            self.fill(row, &latency);
        }
    }

    /// Latencies of one thread in the second of row number `row`.
    pub(crate) fn add_latency(&mut self, row: usize, latency: &Spread) {
        self.latencies.entry(row).or_default().add(latency);
    }

    fn fill(&mut self, row: usize, latency: &Spread) {
        let micros = |ns: u64| Some(round(ns as f64 / 1e3, 1));
        if let Some(row) = self.rows.get_mut(row) {
            row.p50_micros = micros(latency.quantile_ns(0.5));
            row.p99_micros = micros(latency.quantile_ns(0.99));
            row.max_micros = micros(latency.max_ns());
        }
    }

    /// The newest second of which latencies are known: median and p99.
    pub(crate) fn newest_latency(&self) -> Option<(f64, f64)> {
        let latency = self.latencies.values().next_back()?;
        let micros = |quantile| latency.quantile_ns(quantile) as f64 / 1e3;
        Some((micros(0.5), micros(0.99)))
    }

    /// All rows, complete.
    pub(crate) fn finish(mut self) -> Vec<Row> {
        for (row, latency) in std::mem::take(&mut self.latencies) {
            self.fill(row, &latency);
        }
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_what_happened_between_ticks() {
        let mut series = Series::new(&[std::process::id()], &[]);
        let totals = |ready, sent| Totals {
            ready,
            sent,
            received: sent / 2,
            away: 1,
            ..Totals::default()
        };
        series.tick(1_000_000_000, Phase::Connect, &totals(5, 0));
        series.tick(3_000_000_000, Phase::Measure, &totals(5, 1000));
        let mut latency = Spread::default();
        latency.record(2_000_000);
        series.add_latency(1, &latency);
        series.add_latency(1, &latency);
        let rows = series.finish();
        assert_eq!((rows.len(), rows[1].ready, rows[1].away), (2, 4, 1));
        assert_eq!((rows[1].sent_per_second, rows[1].received_per_second), (500.0, 250.0));
        assert_eq!(rows[0].p50_micros, None);
        assert!((rows[1].p50_micros.unwrap() - 2000.0).abs() < 10.0);
        assert!(rows[0].server_cpu_percent.is_none() && rows[1].server_cpu_percent.is_some());
        assert!(rows[1].server_rss_bytes.unwrap() > 0);
    }
}
