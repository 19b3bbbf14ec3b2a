//! What the kernel says about this process, under the names that Prometheus clients use. The
//! control thread asks it.

use super::counter::Counter;
use super::exposition::Row;

/// What could be read; 0 is what could not. That is absent, which a graph shows better than a zero.
#[derive(Debug, Default)]
pub struct ProcessMetrics {
    /// Resident memory, bytes.
    pub resident_bytes: Counter,
    /// Open descriptors.
    pub open_fds: Counter,
    /// Lines of the log that were dropped.
    pub log_lines_dropped: Counter,
}

/// Of the process.
pub(super) const TABLE: &[Row<ProcessMetrics>] = &[
    Row::optional_gauge(
        "process_resident_memory_bytes",
        "Resident memory of the process.",
        |process| known(&process.resident_bytes),
    ),
    Row::optional_gauge("process_open_fds", "Open file descriptors.", |process| {
        known(&process.open_fds)
    }),
];

fn known(value: &Counter) -> Option<u64> {
    Some(value.get()).filter(|value| *value > 0)
}
