//! The gate of administrators' requests: how many wait for an answer, and whether more are taken.
//!
//! Written by every shard and the control thread. "None waits" and "no more are taken" is one
//! compare-and-exchange, so no request comes between.

use std::sync::atomic::{AtomicU64, Ordering};

/// The gate is closed.
const CLOSED: u64 = 1 << 63;

/// The gate: answers that are due, and `CLOSED`.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

impl Gate {
    /// From now on an administrator waits for an answer, and a drain waits too, until
    /// [`Gate::answered`]. Returns false once the gate is closed, as no thread would answer.
    pub fn expect(&self) -> bool {
        let more = |due| (due & CLOSED == 0).then_some(due + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// A due answer was sent, or its client is gone. To be called once for each.
    pub fn answered(&self) {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & !CLOSED > 0, "an answer that nobody expected");
    }

    /// Closes the gate if no answer is due. Returns false if one is.
    pub fn try_close(&self) -> bool {
        self.0
            .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Closes the gate. Returns how many answers are due, and will not be given.
    pub fn close(&self) -> u64 {
        self.0.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED
    }
}
