//! Asks the kernel about this process, for `/metrics`.

use std::fs;

use crate::metrics::ProcessMetrics;

/// Reads what there is, and how many lines of the log are gone. Some ten microseconds.
pub(super) fn read(into: &ProcessMetrics) {
    let status = fs::read_to_string("/proc/self/status");
    let resident = status.ok().and_then(|status| resident_bytes(&status));
    into.resident_bytes.set(resident.unwrap_or_default());
    into.open_fds.set(open_fds().unwrap_or_default());
    into.log_lines_dropped.set(crate::logging::lines_dropped());
}

/// `VmRSS` of `/proc/self/status`: in kB, where `statm` counts in pages of a size that it does not
/// say.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Linux 6.2 and later give the number as the size of the directory. Before that the size is 0, and
/// listing a name per connection would hold the shard up that answers: then the number is not
/// known.
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
        let process = ProcessMetrics::default();
        read(&process);
        assert!(process.resident_bytes.get() > 100_000);
    }
}
