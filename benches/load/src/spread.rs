//! How times are spread: a histogram that travels.
//!
//! Duty: one set of bounds for all times of a run, so that what threads and processes recorded can
//! be added up. Pure.

use hdrhistogram::Histogram;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nanoseconds from 1 to an hour with three digits: about 280 KiB.
#[derive(Clone, Debug)]
pub(crate) struct Spread(Histogram<u64>);

impl Default for Spread {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("constant bounds are valid"))
    }
}

impl Spread {
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("equal bounds");
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// The time that so many of 1 do not exceed.
    pub(crate) fn quantile_ns(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.0.max()
    }
}

/// As pairs of a time and how often it came, those that came.
impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.0
                .iter_recorded()
                .map(|v| (v.value_iterated_to(), v.count_at_value())),
        )
    }
}

impl<'de> Deserialize<'de> for Spread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut spread = Self::default();
        for (ns, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            spread.0.record_n(ns, count).map_err(D::Error::custom)?;
        }
        Ok(spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_arrives_unchanged() {
        let mut spread = Spread::default();
        (0..10_000u64).for_each(|n| spread.record(n * n * 997));
        spread.record(u64::MAX);
        let json = serde_json::to_string(&spread).unwrap();
        let arrived: Spread = serde_json::from_str(&json).unwrap();
        assert_eq!(arrived.len(), spread.len());
        for quantile in [0.0, 0.5, 0.9, 0.99, 0.999, 1.0] {
            assert_eq!(arrived.quantile_ns(quantile), spread.quantile_ns(quantile));
        }
        assert!(Spread::default().is_empty());
    }
}
