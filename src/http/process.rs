//! What the kernel says about this process, under the names that Prometheus clients use.

use std::fs;

use crate::metrics::Exposition;

/// Adds what can be read; what cannot is absent, which a graph shows better than a zero.
pub(super) fn expose(exposition: &mut Exposition) {
    if let Some(bytes) = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| resident_bytes(&status))
    {
        exposition.single(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory of the process.",
            bytes,
        );
    }
    if let Some(fds) = open_fds() {
        exposition.single("process_open_fds", "gauge", "Open file descriptors.", fds);
    }
}

/// `VmRSS` of `/proc/self/status`: in kB, where `statm` counts in pages of a size that it does not say.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Linux 6.2 and later give the number as the size of the directory. Before that the size is 0, and listing a name per
/// connection would hold the shard up that answers: then nobody knows.
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
        let mut exposition = Exposition::default();
        expose(&mut exposition);
        let text = exposition.into_text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("process_resident_memory_bytes "))
            .unwrap();
        assert!(value.parse::<u64>().unwrap() > 100_000, "{text}");
    }
}
