//! CPUs: how many shards there are, and where they run.

use std::path::PathBuf;

use super::{PROGRAM, assert_refused};
use crate::common::gateway::{command, run_command, run_to_exit};
use crate::common::{Gateway, eventually};

#[test]
fn a_cpu_that_is_not_allowed() {
    let ended = run_to_exit(&["--listen", "127.0.0.1:0", "--cpus", "1023"]);
    assert_refused(&ended, 1, &["cpus", "1023", "may use only"]);
    let ended = run_to_exit(&["--listen", "127.0.0.1:0", "--control-cpu", "1023"]);
    assert_refused(
        &ended,
        1,
        &["control_cpu names CPU 1023", "may use only", "change control_cpu"],
    );
}

#[test]
fn shards_are_pinned_and_say_so() {
    let cpu = first_allowed_cpu();
    let gateway = Gateway::start(&["--shards", "1", "--cpus", &cpu.to_string()]);
    assert_eq!(gateway.stats()["shards"][0]["cpu"], cpu);
    assert!(allowed_to_shards(&gateway).contains(&cpu.to_string()));
}

/// The CPUs that each thread of a shard may run on, as the kernel writes them; the executor's pool,
/// which sleeps, is not pinned.
fn allowed_to_shards(gateway: &Gateway) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        name.starts_with("shard-").then(|| allowed.trim().to_owned())
    };
    tasks.filter_map(of_task).collect()
}

/// In a chroot or a sandbox there is no `/sys` to look for CPUs in.
#[test]
fn no_sys_is_no_reason_to_panic() {
    for engine in ["epoll", "auto"] {
        let mut unshared = command("unshare");
        let cpu = first_allowed_cpu();
        unshared.args(["--mount", "sh", "-c"]).arg(format!(
            "mount -t tmpfs none /sys && exec {PROGRAM} --listen 127.0.0.1:0 --shards 1 --cpus {cpu} --engine {engine}"
        ));
        if !can_mount() {
            return;
        }
        let gateway = Gateway::try_spawn(unshared).unwrap_or_else(|ended| panic!("{ended:#?}"));
        gateway.connect("alice").close();
        assert!(allowed_to_shards(&gateway).contains(&cpu.to_string()));
    }
}

/// Whether this user may make mounts of their own; prints if not.
fn can_mount() -> bool {
    let mut probe = command("unshare");
    probe.args(["--mount", "mount", "-t", "tmpfs", "none", "/sys"]);
    let can = run_command(probe).code == Some(0);
    if !can {
        eprintln!("SKIPPED: no mounts of our own");
    }
    can
}

/// A cgroup with this CPU quota, removed when it goes; `None` where none can be made.
struct CpuGroup(PathBuf);

impl CpuGroup {
    fn new(quota_us: u32) -> Option<CpuGroup> {
        let name = format!("shardgate-test-{}-{quota_us}", std::process::id());
        for (root, file, value) in [
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", quota_us.to_string()),
            ("/sys/fs/cgroup", "cpu.max", format!("{quota_us} 100000")),
        ] {
            let group = CpuGroup(PathBuf::from(root).join(&name));
            if std::fs::create_dir(&group.0).is_ok() && std::fs::write(group.0.join(file), value).is_ok() {
                return Some(group);
            }
        }
        eprintln!("SKIPPED: no cgroups of our own");
        None
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        eventually("the cgroup is empty", || {
            std::fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

/// A quota limits the CPUs, whatever the host has; nested, the smallest does.
#[test]
fn a_cpu_quota_bounds_the_number_of_shards() {
    for quota_us in [50_000, 100_000] {
        let Some(group) = CpuGroup::new(quota_us) else { return };
        let inner = group.0.join("inner");
        std::fs::create_dir(&inner).unwrap();
        let inner = CpuGroup(inner);
        let procs = inner.0.join("cgroup.procs");
        let mut sh = command("sh");
        sh.arg("-c").arg(format!(
            "echo $$ > {} && exec {PROGRAM} --listen 127.0.0.1:0",
            procs.display()
        ));
        let gateway = Gateway::try_spawn(sh).unwrap_or_else(|ended| panic!("{ended:#?}"));
        gateway.wait_for_log("1 shard, ");
        let shards = gateway.stats()["shards"].clone();
        assert_eq!(shards.as_array().unwrap().len(), 1, "{shards}");
        assert!(shards[0]["cpu"].is_null(), "nobody else's CPU is taken: {shards}");
        drop(gateway);
        drop(inner);
    }
}

/// The second gateway of a host does not pin to the same CPUs, and logs why.
#[test]
fn two_gateways_on_one_host() {
    // Only CPUs that no other gateway of this host has: a name per CPU, kept here so that no other
    // test's is in the way.
    let cpu = first_allowed_cpu().to_string();
    let first = Gateway::start(&["--shards", "1", "--cpus", &cpu]);
    let mut second = command("taskset");
    second.args(["-c", &cpu, PROGRAM, "--listen", "127.0.0.1:0", "--shards", "1"]);
    let second = Gateway::try_spawn(second).unwrap_or_else(|ended| panic!("{ended:#?}"));
    second.wait_for_log(&format!(
        "another gateway on this host has pinned shards to CPU {cpu}: not pinning ours"
    ));
    assert!(second.stats()["shards"][0]["cpu"].is_null());
    let third = Gateway::start(&["--shards", "1", "--cpus", &cpu]);
    third.wait_for_log(&format!("has pinned shards to CPU {cpu}, too"));
    assert_eq!(third.stats()["shards"][0]["cpu"], first_allowed_cpu());
    drop(first);
}

fn first_allowed_cpu() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap()
        .trim();
    list.split([',', '-']).next().unwrap().parse().unwrap()
}
