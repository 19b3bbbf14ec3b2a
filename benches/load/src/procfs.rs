//! The cost of a process, read from `/proc`.
//!
//! Duty: CPU time and memory of the server (and CPU time of ourselves) at one moment. `stat` counts
//! in ticks of 10 ms; `schedstat` in nanoseconds, but loses threads that ended, so the larger of
//! both is used.

use std::fs;

/// `utime` and `stime` are in ticks of 1/100 s on every Linux that we run on (`USER_HZ`).
const NS_PER_TICK: u64 = 10_000_000;

/// One process at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    /// Time on a CPU of all live threads; 0 where the kernel does not count it.
    sched_ns: u64,
    pub(crate) rss_bytes: u64,
    /// Anonymous memory: the heap, stacks and buffers, without the program's own pages.
    pub(crate) anon_bytes: u64,
    pub(crate) threads: u64,
}

impl Sample {
    /// CPU time since `before`: by `schedstat` where possible, since ticks are coarse.
    pub(crate) fn cpu_ns_since(&self, before: &Self) -> u64 {
        let ticks = (self.user_ns + self.system_ns).saturating_sub(before.user_ns + before.system_ns);
        match self.sched_ns.checked_sub(before.sched_ns) {
            // Fewer than the ticks by more than their rounding: a thread ended and took its count
            // along.
            Some(sched) if sched > 0 && sched + 2 * NS_PER_TICK * self.threads.max(1) >= ticks => sched,
            _ => ticks,
        }
    }
}

/// Looks at process `pid` (`self` for our own).
///
/// # Errors
/// There is no such process, or we may not look at it.
pub(crate) fn sample(pid: &str) -> Result<Sample, String> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(|error| format!("--pid: cannot read {path}: {error}"))
    };
    let (user_ticks, system_ticks, threads) = parse_stat(&read("stat")?).ok_or("--pid: stat is not as expected")?;
    // smaps_rollup is exact; the counters of status lag by up to some hundred KiB per CPU.
    let memory = read("smaps_rollup").or_else(|_| read("status"))?;
    let field = |names: [&str; 2]| {
        let line = memory
            .lines()
            .find_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib * 1024)
    };
    Ok(Sample {
        user_ns: user_ticks * NS_PER_TICK,
        system_ns: system_ticks * NS_PER_TICK,
        sched_ns: sched_ns(pid),
        rss_bytes: field(["Rss:", "VmRSS:"]),
        anon_bytes: field(["Anonymous:", "RssAnon:"]),
        threads,
    })
}

/// The time that the calling thread could have run and waited for a CPU; 0 where the kernel does
/// not count it.
pub(crate) fn starved_ns() -> u64 {
    let line = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}

/// Memory of process `pid` at a glance: the kernel's rough count, as the exact one of a large
/// process takes milliseconds. `None` when it is gone.
pub(crate) fn rough_rss_bytes(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// CPU time of process `pid`; `None` when it is gone.
pub(crate) fn cpu_ns(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (user, system, _) = parse_stat(&stat)?;
    Some(sched_ns(pid).max((user + system) * NS_PER_TICK))
}

/// `utime`, `stime` and the number of threads. The name before them may hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<(u64, u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user, system, fields.nth(4)?.parse().ok()?))
}

fn sched_ns(pid: &str) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_nasty_name() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 3 0 55 1000 200";
        assert_eq!(parse_stat(line), Some((12, 34, 3)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn we_can_look_at_ourselves() {
        let before = sample("self").unwrap();
        assert!(before.rss_bytes >= before.anon_bytes && before.anon_bytes > 0 && before.threads > 0);
        assert!(sample("self").unwrap().cpu_ns_since(&before) < 60_000_000_000);
        assert!(sample("0").is_err());
        assert!(rough_rss_bytes("self").unwrap() > 0 && cpu_ns("self").is_some() && cpu_ns("0").is_none());
    }

    #[test]
    fn the_finer_count_is_used_unless_it_lost_a_thread() {
        let sample = |ticks: u64, sched_ns| Sample {
            user_ns: ticks * NS_PER_TICK,
            sched_ns,
            threads: 1,
            ..Default::default()
        };
        assert_eq!(sample(10, 105_000_000).cpu_ns_since(&sample(0, 0)), 105_000_000);
        assert_eq!(sample(100, 5_000_000).cpu_ns_since(&sample(0, 0)), 1_000_000_000);
        assert_eq!(sample(10, 0).cpu_ns_since(&sample(0, 0)), 100_000_000);
    }
}
