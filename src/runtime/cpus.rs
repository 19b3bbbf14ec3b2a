//! Which CPUs this process may use, how much of them, and where shards run.
//!
//! The process may use less than the machine has: the affinity leaves CPUs out, and the quota of a
//! cgroup leaves time out.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use super::StartError;
use crate::config::{Config, Placement};

/// How many shards run, and on which CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinning {
    /// The CPU of each shard, `None` where it is not pinned.
    pub cpus: Vec<Option<usize>>,
    /// An explanation for the log, for operators who expect another number.
    pub remark: Option<String>,
}

/// The CPUs that this process may use.
///
/// # Errors
/// The kernel refuses the question.
pub fn allowed_cpus() -> Result<BTreeSet<usize>, StartError> {
    let set = rustix::thread::sched_getaffinity(None).map_err(|cause| StartError::System {
        what: "cannot read the CPU affinity",
        cause: cause.into(),
    })?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

/// Pins the calling thread.
///
/// # Errors
/// The CPU went away since the start.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Where shards run, by the configuration and by what this process may use.
///
/// # Errors
/// A key names a CPU that this process may not use.
pub fn plan(config: &Config) -> Result<Pinning, StartError> {
    plan_within(config, &allowed_cpus()?, quota())
}

fn plan_within(config: &Config, allowed: &BTreeSet<usize>, quota: Option<f64>) -> Result<Pinning, StartError> {
    let check = |key: &'static str, cpu: usize| {
        if allowed.contains(&cpu) {
            return Ok(());
        }
        let allowed: Vec<String> = allowed.iter().map(usize::to_string).collect();
        Err(StartError::Cpu {
            key,
            cpu,
            allowed: allowed.join(","),
        })
    };
    if let Some(cpu) = config.control_cpu {
        check("control_cpu", cpu)?;
    }
    // A shard with half a CPU is stopped for half of the time, and so are its users. So the quota
    // is rounded down.
    let paid = quota.map_or(usize::MAX, |cpus| (cpus as usize).max(1));
    let shards = config.shards.unwrap_or(match &config.cpus {
        Placement::Cpus(cpus) => cpus.len(),
        Placement::FirstAllowed | Placement::Unpinned => allowed.len().clamp(1, crate::config::SHARDS_MAX).min(paid),
    });
    let unpinned = |remark| Pinning {
        cpus: vec![None; shards],
        remark,
    };
    match &config.cpus {
        Placement::Unpinned => Ok(unpinned(None)),
        Placement::Cpus(cpus) => {
            let used = &cpus[..shards.min(cpus.len())];
            used.iter().try_for_each(|cpu| check("cpus", *cpu))?;
            Ok(Pinning {
                cpus: used.iter().copied().map(Some).collect(),
                remark: None,
            })
        }
        Placement::FirstAllowed if shards > allowed.len() => Ok(unpinned(Some(format!(
            "{shards} shards on {}: not pinning them; one shard for each CPU is best",
            counted(allowed.len(), "CPU")
        )))),
        Placement::FirstAllowed if shards > paid => Ok(unpinned(Some(format!(
            "{} with a CPU quota of {} CPUs: shards will be stopped when it is used up; leave shards out, or raise the \
             quota (CPUQuota= in the systemd unit, limits.cpu of the pod)",
            counted(shards, "shard"),
            quota.unwrap_or_default()
        )))),
        // Where CPU time is shared, every gateway of the host would pin its shards to the same
        // first CPUs.
        Placement::FirstAllowed if paid < allowed.len() => Ok(unpinned(None)),
        Placement::FirstAllowed => Ok(Pinning {
            cpus: allowed.iter().take(shards).copied().map(Some).collect(),
            remark: None,
        }),
    }
}

/// `1 shard`, `2 shards`.
#[must_use]
pub fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// The CPU time that the cgroups of this process may use, in CPUs; `None` without a quota, or where
/// it cannot be read.
pub fn quota() -> Option<f64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let own = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    quota_of(&own, &mounts, read)
}

/// The smallest quota of our cgroup and those around it, in both versions of cgroups.
fn quota_of(own: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<f64> {
    let mut smallest: Option<f64> = None;
    for mount in mounts.lines().filter_map(Mount::parse) {
        // `ID:CONTROLLERS:PATH`; version 2 is `0::PATH`.
        let path = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_ours = match mount.version {
                Version::One => controllers.split(',').any(|name| name == "cpu"),
                Version::Two => controllers.is_empty(),
            };
            is_ours.then_some(path)
        });
        let Some(path) = path else { continue };
        // A container sees its own cgroup as the root of the mount, under any name in `/proc`.
        let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let below = below.strip_prefix("/").unwrap_or(below);
        let mut group = mount.at.join(below);
        loop {
            let found = match mount.version {
                Version::One => read(&group.join("cpu.cfs_quota_us"))
                    .zip(read(&group.join("cpu.cfs_period_us")))
                    .and_then(|(quota, period)| in_cpus(&quota, &period)),
                Version::Two => read(&group.join("cpu.max"))
                    .and_then(|max| max.split_once(' ').and_then(|(quota, period)| in_cpus(quota, period))),
            };
            smallest = smallest.into_iter().chain(found).reduce(f64::min);
            if group == mount.at || !group.pop() {
                break;
            }
        }
    }
    smallest
}

/// A quota of `max` or -1 is none.
fn in_cpus(quota: &str, period: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| *number > 0.0);
    Some(number(quota)? / number(period)?)
}

enum Version {
    One,
    Two,
}

/// Where a hierarchy of cgroups that may hold quotas is mounted.
struct Mount {
    version: Version,
    root: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// Reads a line of `mountinfo`: `36 35 98:0 ROOT AT rw,… - cgroup2 SOURCE OPTIONS`.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => Version::Two,
            "cgroup" if kind.nth(1)?.split(',').any(|option| option == "cpu") => Version::One,
            _ => return None,
        };
        // The kernel writes a space in a path as `\040`.
        let path = |text: &str| PathBuf::from(text.replace("\\040", " "));
        Some(Mount {
            version,
            root: path(mount.next()?),
            at: path(mount.next()?),
        })
    }
}

/// Announces to other gateways on this host which CPUs our shards are pinned to. These are names in
/// the abstract socket namespace, which end with the process. Any process may hold them, so they
/// are a hint and no lock.
#[derive(Debug, Default)]
pub struct PinnedHere {
    _names: Vec<UnixListener>,
}

/// Looks for CPUs that no other gateway of this host has pinned shards to. Configured CPUs are used
/// all the same, with a warning.
///
/// Two gateways that are started without `cpus` would else pin to the same first CPUs and leave the
/// others idle.
pub fn settle(pinning: &mut Pinning, config: &Config) -> PinnedHere {
    let mut names = Vec::new();
    let mut taken = Vec::new();
    let mut settled = Vec::new();
    let chosen: Vec<usize> = pinning.cpus.iter().copied().flatten().collect();
    let others = match &config.cpus {
        Placement::FirstAllowed if !chosen.is_empty() => allowed_cpus().unwrap_or_default(),
        _ => BTreeSet::new(),
    };
    let spare = others.into_iter().filter(|cpu| !chosen.contains(cpu));
    for cpu in chosen.iter().copied().chain(spare) {
        if settled.len() == chosen.len() {
            break;
        }
        let name = SocketAddr::from_abstract_name(format!("shardgate/cpu/{cpu}"));
        match name.and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(held) => {
                names.push(held);
                settled.push(cpu);
            }
            Err(_) => taken.push(cpu.to_string()),
        }
    }
    if taken.is_empty() {
        return PinnedHere { _names: names };
    }
    let taken = taken.join(",");
    if config.cpus != Placement::FirstAllowed {
        log::warn!(
            "another gateway on this host has pinned shards to CPU {taken}, too: give each gateway CPUs of its own with cpus"
        );
    } else if settled.len() == chosen.len() {
        log::info!("another gateway on this host has pinned shards to CPU {taken}: taking others");
        pinning.cpus = settled.into_iter().map(Some).collect();
    } else {
        log::warn!(
            "another gateway on this host has pinned shards to CPU {taken}: not pinning ours; give each gateway CPUs of its \
             own with cpus, or fewer shards"
        );
        pinning.cpus.fill(None);
        names.clear();
    }
    PinnedHere { _names: names }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const V2: &str = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "33 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct\n\
                      34 30 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory\n";

    fn quota_with(own: &str, mounts: &str, files: &[(&str, &str)]) -> Option<f64> {
        let files: BTreeMap<&str, &str> = files.iter().copied().collect();
        quota_of(own, mounts, |path| {
            files.get(path.to_str().unwrap()).map(|text| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_quota_of_all_cgroups_around_us_counts() {
        let own = "0::/pods/one/gateway\n";
        assert_eq!(quota_with(own, V2, &[]), None);
        let max = |leaf, pod, pods| {
            let files = [
                ("/sys/fs/cgroup/pods/one/gateway/cpu.max", leaf),
                ("/sys/fs/cgroup/pods/one/cpu.max", pod),
                ("/sys/fs/cgroup/pods/cpu.max", pods),
            ];
            quota_with(own, V2, &files)
        };
        assert_eq!(max("max 100000\n", "max 100000\n", "max 100000\n"), None);
        assert_eq!(max("50000 100000\n", "max 100000\n", "max 100000\n"), Some(0.5));
        assert_eq!(max("400000 100000\n", "max 100000\n", "150000 50000\n"), Some(3.0));
        assert_eq!(max("garbage\n", "100000 100000\n", "0 0\n"), Some(1.0));
    }

    #[test]
    fn version_one_has_files_of_its_own() {
        let own = "9:memory:/other\n4:cpu,cpuacct:/docker/a\n0::/system.slice\n";
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "250000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_with(own, V1, &files), Some(2.5));
        assert_eq!(quota_with("0::/x\n", V1, &files), None);
    }

    /// The mount shows the container's own cgroup and nothing above it.
    #[test]
    fn a_container_finds_its_quota_at_the_root_of_the_mount() {
        let files = [
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ];
        let mounts = "40 30 0:30 /docker/a /sys/fs/cgroup/cpu ro,nosuid - cgroup cgroup rw,cpu\n";
        assert_eq!(quota_with("4:cpu:/docker/a\n", mounts, &files), Some(1.0));
        assert_eq!(quota_with("4:cpu:/../elsewhere\n", mounts, &files), Some(1.0));
        let unified = "40 30 0:30 /../../pod /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
        let files = [("/sys/fs/cgroup/cpu.max", "20000 10000")];
        assert_eq!(quota_with("0::/\n", unified, &files), Some(2.0));
    }

    fn planned(shards: Option<usize>, cpus: Placement, allowed: usize, quota: Option<f64>) -> Vec<Option<usize>> {
        let config = Config {
            shards,
            cpus,
            ..Config::default()
        };
        plan_within(&config, &(0..allowed).collect(), quota).unwrap().cpus
    }

    #[test]
    fn there_are_as_many_shards_as_cpu_time_is_paid_for() {
        let first = || Placement::FirstAllowed;
        assert_eq!(planned(None, first(), 3, None), [Some(0), Some(1), Some(2)]);
        assert_eq!(planned(None, first(), 3, Some(3.0)), [Some(0), Some(1), Some(2)]);
        for (quota, shards) in [(0.1, 1), (0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (2.5, 2)] {
            assert_eq!(planned(None, first(), 3, Some(quota)), vec![None; shards], "{quota}");
            assert_eq!(planned(None, Placement::Unpinned, 3, Some(quota)).len(), shards);
        }
        // A configured number counts.
        assert_eq!(planned(Some(2), first(), 3, Some(0.5)), [None, None]);
        let listed = || Placement::Cpus(vec![2, 0]);
        assert_eq!(planned(None, listed(), 3, Some(0.5)), [Some(2), Some(0)]);
        assert_eq!(planned(Some(1), listed(), 3, None), [Some(2)]);
        assert_eq!(planned(Some(4), first(), 3, None), [None; 4]);
        // More than a gateway has.
        assert_eq!(planned(None, Placement::Unpinned, 900, None).len(), 256);
    }

    #[test]
    fn the_key_that_names_a_wrong_cpu_is_blamed() {
        let config = Config {
            control_cpu: Some(7),
            ..Config::default()
        };
        let error = plan_within(&config, &BTreeSet::from([0, 1]), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("control_cpu names CPU 7") && error.contains("0,1"),
            "{error}"
        );
        let config = Config {
            cpus: Placement::Cpus(vec![1, 9]),
            shards: Some(2),
            ..Config::default()
        };
        let error = plan_within(&config, &BTreeSet::from([0, 1]), None)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cpus names CPU 9"), "{error}");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(counted(1, "shard"), "1 shard");
        assert_eq!(counted(2, "shard"), "2 shards");
        assert_eq!(counted(0, "CPU"), "0 CPUs");
    }
}
