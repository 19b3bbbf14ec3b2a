//! Limits and words that several kinds of values share. Pure.

/// Most shards of one gateway; lanes grow with the square of it.
pub(super) const SHARDS_MAX: u64 = 256;
/// Highest CPU number: `cpu_set_t` of glibc has 1024 bits.
pub(super) const CPU_MAX: u64 = 1023;
/// Printed instead of a secret.
pub(super) const MASK: &str = "***";
