//! What the kernel says about this process, under the names that Prometheus clients use.

use std::fs;

use super::exposition::Row;

/// What could be read; what could not is absent, which a graph shows better than a zero.
#[derive(Debug)]
pub(super) struct Process {
    resident_bytes: Option<u64>,
    open_fds: Option<u64>,
}

/// Of the process.
pub(super) const TABLE: &[Row<Process>] = &[
    Row::optional_gauge(
        "process_resident_memory_bytes",
        "Resident memory of the process.",
        |process| process.resident_bytes,
    ),
    Row::optional_gauge("process_open_fds", "Open file descriptors.", |process| process.open_fds),
];

impl Process {
    /// Asks the kernel.
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status");
        Process {
            resident_bytes: status.ok().and_then(|status| resident_bytes(&status)),
            open_fds: open_fds(),
        }
    }
}

/// `VmRSS` of `/proc/self/status`: in kB, where `statm` counts in pages of a size that it does not say.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Linux 6.2 and later give the number as the size of the directory. Before that the size is 0, and listing a name per
/// connection would hold the shard up that answers: then the number is not known.
fn open_fds() -> Option<u64> {
    let fds = fs::metadata("/proc/self/fd").ok()?.len();
    (fds > 0).then_some(fds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_status_or_not_at_all() {
        assert_eq!(
            resident_bytes("VmHWM:\t  90 kB\nVmRSS:\t   12 kB\nRssAnon:\t 3 kB\n"),
            Some(12 * 1024)
        );
        for status in [
            "",
            "VmRSS:\n",
            "VmRSS: 12\n",
            "VmRSS: x kB\n",
            "VmRSS: 18446744073709551615 kB\n",
        ] {
            assert_eq!(resident_bytes(status), None, "{status:?}");
        }
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Process::read().resident_bytes.is_some_and(|bytes| bytes > 100_000));
    }
}
