//! Figures of a report: rounded, in words, and the quantiles of a [`Spread`]. Pure.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::Serialize;

use crate::spread::Spread;

/// A figure for people.
pub(crate) fn shown(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |v| format!("{v:.2}"))
}

/// Counts for people.
pub(crate) fn list<K: Display>(counts: &BTreeMap<K, u64>) -> String {
    counts
        .iter()
        .map(|(key, n)| format!("{key}: {n}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `value` with so many decimals.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// Quantiles of times, in microseconds; all null if nothing was recorded.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Quantiles {
    p50: Option<f64>,
    p90: Option<f64>,
    pub(crate) p99: Option<f64>,
    p999: Option<f64>,
    max: Option<f64>,
}

impl Quantiles {
    pub(crate) fn new(spread: &Spread) -> Self {
        let micros = |ns: u64| (!spread.is_empty()).then(|| round(ns as f64 / 1e3, 1));
        let at = |quantile| micros(spread.quantile_ns(quantile));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(spread.max_ns()),
        }
    }
}

impl Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.p50, self.p90, self.p99, self.p999, self.max) {
            (Some(p50), Some(p90), Some(p99), Some(p999), Some(max)) => {
                write!(f, "p50 {p50} p90 {p90} p99 {p99} p99.9 {p999} max {max} us")
            }
            _ => f.write_str("nothing measured"),
        }
    }
}
