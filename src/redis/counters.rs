//! Counters of each operation. Written on the control thread, read by the thread that serves
//! metrics.

use std::sync::atomic::Ordering::Relaxed;

use super::commands::{self, Step};
use crate::cluster::store::Op;
pub use crate::metrics::BrokerCounters;

/// Counts operations by kind when they are sent.
pub(super) trait Count {
    fn count(&self, step: &Step);
}

impl Count for BrokerCounters {
    fn count(&self, step: &Step) {
        self.sent(commands::operation(step));
        if let Step::Op(Op::Publish { payload, .. }) = step {
            self.bytes_out.fetch_add(payload.len() as u64, Relaxed);
        }
    }
}
