//! Counters of plain HTTP and of the admin API. Each listener has one writer: the shard that
//! answers on the public port, or the control thread.

use super::counter::Counter;
use super::exposition::Row;
use super::labels::{ADMIN_STATUS_LABELS, ADMIN_STATUSES};

/// The counters of one listener's thread.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    /// Requests answered.
    pub requests: Counter,
    /// Connections that were closed as the oldest of too many.
    pub crowded: Counter,
    admin: [Counter; ADMIN_STATUSES.len()],
}

impl HttpMetrics {
    /// Counts an answer of the admin API; `status` is one of [`ADMIN_STATUSES`].
    pub fn administered(&self, status: u16) {
        let index = ADMIN_STATUSES.binary_search(&status);
        debug_assert!(index.is_ok(), "unknown status {status}");
        if let Ok(index) = index {
            self.admin[index].inc();
        }
    }
}

/// Of each shard, and of the control thread.
pub(super) const REQUESTS: Row<HttpMetrics> = Row::counters(
    "shardgate_admin_requests_total",
    "Requests to the admin API and its page, by status; control answers those on admin.listen.",
    "status",
    &ADMIN_STATUS_LABELS,
    |m, at| m.admin[at].get(),
);

/// Of `admin.listen` alone.
pub(super) const TABLE: &[Row<HttpMetrics>] = &[Row::counter(
    "shardgate_admin_crowded_total",
    "Connections of admin.listen that were closed, as the longest silent of too many.",
    |m| m.crowded.get(),
)];
