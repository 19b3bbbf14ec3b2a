//! The findings of `storm` and `mixed` besides messages.
//!
//! Duty: the parts of the report with these names.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::args::{Cut, Options};
use crate::figures::{Quantiles, list, round, shown};
use crate::spread::Spread;
use crate::tally::{self, Comebacks, Tally};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Storm {
    /// Connections that ended, and by which close codes: 1006 none at all, 1000 we left as the
    /// gateway asked.
    cut: u64,
    cut_by_code: BTreeMap<u16, u64>,
    back: u64,
    /// Clients that the gateway told not to come back, by its words.
    stayed_away: BTreeMap<String, u64>,
    /// Clients that tried until the end.
    missing: u64,
    /// From the first connection lost until so many of those cut were back; null if they never
    /// were.
    back_seconds: BackSeconds,
    attempts_per_client: Attempts,
    /// Latency of the pairs' messages, by when they were due.
    beside: Beside,
    /// They were cut off in a way that tells them to.
    #[serde(skip)]
    all_stay_away: bool,
}

#[derive(Debug, Serialize)]
struct BackSeconds {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p100: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempts {
    mean: Option<f64>,
    max: Option<u32>,
    /// How many clients needed so many.
    counts: BTreeMap<u32, u64>,
}

#[derive(Debug, Serialize)]
struct Beside {
    pairs: usize,
    before: Quantiles,
    /// From the first connection lost to the last one back.
    during: Quantiles,
    after: Quantiles,
}

impl Storm {
    pub(crate) fn new(options: &Options, tally: &Tally) -> Self {
        let storm = &tally.storm;
        let begin_ns = storm.begin_ns.unwrap_or(u64::MAX);
        let mut back_ns = storm.back_ns.clone();
        back_ns.sort_unstable();
        let end_ns = match storm.missing {
            0 => back_ns.last().copied().unwrap_or(begin_ns),
            _ => u64::MAX,
        };
        let cut: u64 = storm.cuts.values().sum();
        let back_seconds = |percent: u64| {
            let wanted = (cut * percent).div_ceil(100).max(1) as usize;
            let at_ns = back_ns.get(wanted - 1)?;
            Some(round(at_ns.saturating_sub(begin_ns) as f64 / 1e9, 3))
        };
        let latency = |during: std::ops::Range<u64>| {
            let mut spread = Spread::default();
            let samples = storm.beside.iter().filter(|(due_ns, _)| during.contains(due_ns));
            samples.for_each(|(_, latency_ns)| spread.record(*latency_ns));
            Quantiles::new(&spread)
        };
        let clients: u64 = storm.attempts.values().sum();
        let attempts: u64 = storm.attempts.iter().map(|(n, count)| u64::from(*n) * count).sum();
        Self {
            cut,
            cut_by_code: storm.cuts.clone(),
            back: back_ns.len() as u64,
            stayed_away: storm.stayed_away.clone(),
            missing: storm.missing,
            back_seconds: BackSeconds {
                p50: back_seconds(50),
                p90: back_seconds(90),
                p99: back_seconds(99),
                p100: back_seconds(100),
            },
            attempts_per_client: Attempts {
                mean: (clients > 0).then(|| round(attempts as f64 / clients as f64, 2)),
                max: storm.attempts.keys().next_back().copied(),
                counts: storm.attempts.clone(),
            },
            all_stay_away: options.cut() == Cut::Delete,
            beside: Beside {
                pairs: options.pairs(),
                before: latency(0..begin_ns),
                during: latency(begin_ns..end_ns),
                after: latency(end_ns..u64::MAX),
            },
        }
    }

    /// Whether there was a storm, and everybody is where they should be.
    pub(crate) fn is_ok(&self) -> bool {
        let stayed_away: u64 = self.stayed_away.values().sum();
        let wanted = if self.all_stay_away { self.cut } else { 0 };
        self.cut > 0 && self.missing == 0 && stayed_away == wanted
    }

    pub(crate) fn write_summary(&self, comebacks: &Comebacks, out: &mut String) -> std::fmt::Result {
        if self.cut == 0 {
            return writeln!(out, "NO STORM: nobody was cut off");
        }
        writeln!(
            out,
            "storm        {} cut off ({}), {} back, {} missing, {} told to stay away",
            self.cut,
            list(&self.cut_by_code),
            self.back,
            self.missing,
            self.stayed_away.values().sum::<u64>()
        )?;
        let back = &self.back_seconds;
        writeln!(
            out,
            "back after   50 % {} s, 90 % {} s, 99 % {} s, all {} s",
            shown(back.p50),
            shown(back.p90),
            shown(back.p99),
            shown(back.p100)
        )?;
        let attempts = &self.attempts_per_client;
        writeln!(
            out,
            "attempts     {} in all, {} per client that is back, {} at most; refused {}",
            comebacks.attempts,
            shown(attempts.mean),
            attempts.max.unwrap_or(0),
            some(&comebacks.refused)
        )?;
        for (when, latency) in [
            ("before", &self.beside.before),
            ("during", &self.beside.during),
            ("after", &self.beside.after),
        ] {
            writeln!(out, "  {when:<10} {latency}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mixed {
    actions: BTreeMap<String, u64>,
    /// From the intended time of a request to its answer.
    answer_micros: BTreeMap<String, Quantiles>,
    /// Publications that came although they need not, and do not count: from before `subscribed`,
    /// or while leaving.
    extra: u64,
    presence_wrong: u64,
    status_wrong: u64,
    /// Attempts to come back that failed.
    refused: u64,
    /// Due actions when nobody seemed to be there.
    skipped: u64,
}

impl Mixed {
    pub(crate) fn new(mixed: tally::Mixed) -> Self {
        let answers = mixed.answers.iter();
        Self {
            answer_micros: answers
                .map(|(kind, spread)| (kind.clone(), Quantiles::new(spread)))
                .collect(),
            actions: mixed.actions,
            extra: mixed.extra,
            presence_wrong: mixed.presence_wrong,
            status_wrong: mixed.status_wrong,
            refused: mixed.refused,
            skipped: mixed.skipped,
        }
    }

    pub(crate) fn write_summary(&self, comebacks: &Comebacks, out: &mut String) -> std::fmt::Result {
        writeln!(out, "actions      {}; skipped {}", list(&self.actions), self.skipped)?;
        for (kind, quantiles) in &self.answer_micros {
            writeln!(out, "  {kind:<10} answered after {quantiles}")?;
        }
        writeln!(
            out,
            "came back    {} of {} attempts; refused {}",
            comebacks.ready,
            comebacks.attempts,
            some(&comebacks.refused)
        )?;
        writeln!(
            out,
            "said wrong   presence {}, status {}; {} publications more than need be",
            self.presence_wrong, self.status_wrong, self.extra
        )
    }
}

fn some(counts: &BTreeMap<String, u64>) -> String {
    match list(counts) {
        text if text.is_empty() => "none".to_owned(),
        text => text,
    }
}
