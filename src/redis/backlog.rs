//! Packets that were read from Redis and not yet taken by the control thread: how many there may
//! be.
//!
//! Shared by the connections' tasks, which let packets in, and the [`Broker`](super::Broker), which
//! takes them out. A [`PROBE`](crate::cluster::store::PROBE) is no packet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::counters::BrokerCounters;

/// Bytes that may wait.
const BYTES_MAX: usize = 64 << 20;
/// Packets that may wait.
const PACKETS_MAX: usize = 65_536;

/// Counts what waits.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: AtomicUsize,
    packets: AtomicUsize,
    counters: Arc<BrokerCounters>,
}

impl Backlog {
    pub(super) fn new(counters: Arc<BrokerCounters>) -> Backlog {
        Backlog {
            bytes: AtomicUsize::new(0),
            packets: AtomicUsize::new(0),
            counters,
        }
    }

    /// Whether a packet of that size may wait too; one that may not is counted. An empty backlog
    /// takes any packet.
    pub(super) fn admit(&self, bytes: usize) -> bool {
        let waiting = self.packets.load(Relaxed);
        // All connections' tasks run on one thread, so nothing comes between look and addition.
        if waiting >= PACKETS_MAX || (waiting > 0 && self.bytes.load(Relaxed) + bytes > BYTES_MAX) {
            self.counters.packets_dropped.fetch_add(1, Relaxed);
            return false;
        }
        self.packets.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.counters.bytes_in.fetch_add(bytes as u64, Relaxed);
        true
    }

    /// A packet of that size was taken.
    pub(super) fn take(&self, bytes: usize) {
        self.packets.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let counters = Arc::new(BrokerCounters::default());
        let backlog = Backlog::new(counters.clone());
        assert!(backlog.admit(BYTES_MAX * 2), "an empty one takes any");
        assert!(!backlog.admit(1));
        backlog.take(BYTES_MAX * 2);
        for _ in 0..PACKETS_MAX {
            assert!(backlog.admit(1));
        }
        assert!(!backlog.admit(0));
        assert_eq!(counters.packets_dropped.load(Relaxed), 2);
    }
}
