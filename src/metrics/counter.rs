//! Numbers with one writer, which any thread may read at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Sets the value of a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper edges of the buckets of every histogram, microseconds: from an iteration of the loop
/// without work to a stall that a person notices. Neighbours are 2 or 2.5 apart, or a quantile is
/// drawn at twice what it was.
pub(super) const BUCKET_EDGES_US: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000,
];

/// Times in buckets, with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKET_EDGES_US.len() + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts `times` events that each took `ns` nanoseconds.
    pub fn record(&self, ns: u64, times: u64) {
        let bucket = BUCKET_EDGES_US.partition_point(|edge| *edge * 1000 < ns);
        self.buckets[bucket].add(times);
        self.sum_ns.add(ns.saturating_mul(times));
    }

    /// How many events fell between two edges each; the last bucket has no upper edge.
    pub(super) fn buckets(&self) -> &[Counter; BUCKET_EDGES_US.len() + 1] {
        &self.buckets
    }

    /// The sum of all times.
    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_ns.get() as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quantile is read off a bucket, so no bucket is much wider than what it stands for.
    #[test]
    fn buckets_resolve_what_people_look_at() {
        for pair in BUCKET_EDGES_US.windows(2) {
            let factor = pair[1] as f64 / pair[0] as f64;
            assert!((2.0..=2.5).contains(&factor), "{pair:?}");
        }
        assert!(BUCKET_EDGES_US[0] <= 500 && BUCKET_EDGES_US.last() == Some(&5_000_000));
    }
}
