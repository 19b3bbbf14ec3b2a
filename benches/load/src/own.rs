//! The generator's own cost, and whether it, not the server, was the limit.
//!
//! Duty: the part `generator` of the report. A slow generator makes the server look slow, or idle;
//! every sign of that is reported in words.

use std::fmt::Write;

use serde::Serialize;

use crate::args::Options;
use crate::figures::{Quantiles, round, shown};
use crate::tally::Tally;

/// A thread that is busy for more than this share of the time may have been the limit.
const BUSY_FROM: f64 = 0.95;
/// One that could run and had no CPU for more than this share of the time measured others' work.
const STARVED_FROM: f64 = 0.1;
/// An open loop that is later than this share of the latency that it reports measured itself.
const LATE_FROM: f64 = 0.25;
/// Below this nobody's lateness matters.
const LATE_MICROS_MIN: f64 = 1000.0;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Generator {
    cpu_seconds: f64,
    cpu_micros_per_message: Option<f64>,
    /// Of those, outside of the kernel; counted in ticks of 10 ms.
    user_micros_per_message: Option<f64>,
    /// Of its core, the busiest thread.
    busiest_percent: f64,
    /// Of the time, how long the thread that waited most for a CPU waited for it.
    starved_percent: f64,
    /// One of `limits` is there.
    saturated: bool,
    /// Why the server may be better than shown.
    limits: Vec<String>,
    /// Open loop: how late messages were handed to the kernel or, if a socket was full, to its
    /// queue.
    lag_micros: Quantiles,
}

impl Generator {
    /// Of the measured part, which lasted for so many seconds; none if there was no load.
    pub(crate) fn new(options: &Options, tally: &Tally, user_ns: u64, received: u64, seconds: f64) -> Self {
        let per_message = |ns: u64| (received > 0).then(|| round(ns as f64 / 1e3 / received as f64, 3));
        // Phases that a run without load only passes through last for no time, which any work
        // exceeds.
        let (busiest, starved) = if seconds > 0.0 {
            (tally.busiest, tally.starved)
        } else {
            (0.0, 0.0)
        };
        let (lag, latency) = (Quantiles::new(&tally.lag), Quantiles::new(&tally.latency()));
        let mut limits = vec![];
        if busiest > BUSY_FROM {
            limits.push(format!("a thread was busy for {:.0} % of the time", busiest * 100.0));
        }
        if starved > STARVED_FROM {
            limits.push(format!(
                "a thread waited {:.0} % of the time for a CPU",
                starved * 100.0
            ));
        }
        if let (Some(lag), Some(latency)) = (lag.p99, latency.p99)
            && options.rate.is_some()
            && lag > LATE_MICROS_MIN
            && lag > latency * LATE_FROM
        {
            limits.push(format!("p99 of sending late is {lag} us of a latency of {latency} us"));
        }
        Self {
            cpu_seconds: round(tally.cpu_ns as f64 / 1e9, 6),
            cpu_micros_per_message: per_message(tally.cpu_ns),
            user_micros_per_message: per_message(user_ns),
            busiest_percent: round(busiest * 100.0, 1),
            starved_percent: round(starved * 100.0, 1),
            saturated: !limits.is_empty(),
            limits,
            lag_micros: lag,
        }
    }

    pub(crate) fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "generator    {} us CPU per message ({} user), busiest thread {:.0} % of its core, waiting for a CPU {:.0} %",
            shown(self.cpu_micros_per_message),
            shown(self.user_micros_per_message),
            self.busiest_percent,
            self.starved_percent
        )?;
        if self.lag_micros.p99.is_some() {
            writeln!(out, "send lag     {}", self.lag_micros)?;
        }
        for limit in &self.limits {
            writeln!(out, "SATURATED    {limit}: the server may be faster than shown")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(line: &str, tally: &Tally, seconds: f64) -> Vec<String> {
        let words = format!("{line} --url ws://127.0.0.1:9");
        let options = crate::args::parse(words.split_whitespace().map(str::to_owned)).unwrap();
        Generator::new(&options, tally, 0, 1, seconds).limits
    }

    /// All messages took so long, and all were sent so late.
    fn tally(latency_ms: u64, lag_ms: u64) -> Tally {
        let mut tally = Tally::default();
        for _ in 0..100 {
            tally.local_latency.record(latency_ms * 1_000_000);
            tally.lag.record(lag_ms * 1_000_000);
        }
        tally
    }

    #[test]
    fn each_limit_has_its_words() {
        assert!(limits("direct", &tally(10, 2), 1.0).is_empty());
        let late = limits("direct", &tally(10, 5), 1.0);
        assert!(late[0].starts_with("p99 of sending late is"), "{late:?}");
        assert!(
            limits("direct --in-flight 1", &tally(10, 5), 1.0).is_empty(),
            "nothing was due"
        );
        let mut tally = tally(10, 0);
        (tally.busiest, tally.starved) = (0.96, 0.11);
        let both = limits("direct", &tally, 1.0);
        assert!(
            both[0].contains("busy for 96 %") && both[1].contains("waited 11 %"),
            "{both:?}"
        );
        assert!(limits("direct", &tally, 0.0).is_empty(), "there was no load");
    }
}
