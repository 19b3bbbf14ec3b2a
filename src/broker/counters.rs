//! What the broker counts. Written on the control thread, read by whoever serves metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::commands::{self, Step};
use crate::cluster::store::Op;

/// Counts since the start; all rise, none is exact to the instant.
#[derive(Debug, Default)]
pub struct BrokerCounters {
    /// Commands that were sent, those of connections' upkeep too.
    pub commands_total: AtomicU64,
    /// Operations that were sent, by kind, in the order of [`BrokerCounters::LABELS`]; one that was sent again counts again.
    pub operations: [AtomicU64; BrokerCounters::LABELS.len()],
    /// Connections that were lost and had to be made again.
    pub reconnects: AtomicU64,
    /// Packets that were heard and dropped, as too much waited.
    pub packets_dropped: AtomicU64,
    /// Bytes of payload that were published.
    pub bytes_out: AtomicU64,
    /// Bytes of payload that were heard and not dropped.
    pub bytes_in: AtomicU64,
}

impl BrokerCounters {
    /// What [`BrokerCounters::operations`] counts.
    pub const LABELS: [&'static str; 15] = commands::LABELS;

    pub(super) fn count(&self, step: &Step) {
        self.operations[commands::kind_of(step)].fetch_add(1, Relaxed);
        if let Step::Op(Op::Publish { payload, .. }) = step {
            self.bytes_out.fetch_add(payload.len() as u64, Relaxed);
        }
    }
}
