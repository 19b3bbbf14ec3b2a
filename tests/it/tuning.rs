//! `tuning/`: `check` sees what is wrong with a host, `apply` mends it once and puts it back.
//!
//! Hosts are trees of files below a directory (`--root`). One test sets sysctls of the kernel
//! itself, in a network namespace of its own. If that is not permitted it fails and reports it.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use common::Gateway;
use common::gateway::{Ended, command, run_command};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_shardgate");

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn config(name: &str) -> String {
    repository().join("tuning").join(name).to_str().unwrap().to_owned()
}

/// A host of files.
struct Host(tempfile::TempDir);

impl Host {
    /// One network card and the sysctls of an untouched kernel, with 64 GiB.
    fn stock(cpus: usize, card_queues: usize) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for (name, value) in [
            ("fs/nr_open", "1048576"),
            ("fs/file-max", "9223372036854775807"),
            ("net/core/somaxconn", "4096"),
            ("net/core/netdev_max_backlog", "1000"),
            ("net/core/busy_poll", "0"),
            ("net/core/busy_read", "0"),
            ("net/ipv4/tcp_max_syn_backlog", "4096"),
            ("net/ipv4/tcp_syncookies", "1"),
            ("net/ipv4/tcp_mem", "768000\t1024000\t1536000"),
            ("net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
            ("net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
            ("net/ipv4/ip_local_port_range", "32768\t60999"),
            ("net/ipv4/tcp_tw_reuse", "2"),
            ("net/ipv4/tcp_migrate_req", "0"),
            ("net/netfilter/nf_conntrack_max", "262144"),
            ("kernel/io_uring_disabled", "0"),
            ("kernel/osrelease", "6.12.9-amd64"),
            ("kernel/random/boot_id", "first"),
            ("vm/max_map_count", "65530"),
            ("vm/overcommit_memory", "0"),
        ] {
            host.put(&format!("proc/sys/{name}"), value);
        }
        host.put(
            "proc/meminfo",
            "MemTotal:       65536000 kB\nMemFree:        60000000 kB",
        );
        host.put("proc/net/softnet_stat", "0000ffff 00000000 00000001 00000000");
        host.put("proc/kallsyms", "0000000000000000 T __x64_sys_io_uring_setup");
        host.limits("524288", "8388608");
        host.put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
        host.put("sys/devices/system/cpu/online", &format!("0-{}", cpus - 1));
        host.node(0, &format!("0-{}", cpus - 1));
        for cpu in 0..cpus {
            host.siblings(cpu, &cpu.to_string());
            host.governor(cpu, "performance");
        }
        host.card("eth0", 40, card_queues, 0);
        fs::create_dir_all(host.path("etc/systemd/system")).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn get(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap().trim().to_owned()
    }

    fn node(&self, node: usize, cpus: &str) {
        self.put(&format!("sys/devices/system/node/node{node}/cpulist"), cpus);
    }

    fn siblings(&self, cpu: usize, list: &str) {
        self.put(
            &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"),
            list,
        );
    }

    fn governor(&self, cpu: usize, governor: &str) {
        self.put(
            &format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"),
            governor,
        );
    }

    /// The limits of the shell that `check` runs in.
    fn limits(&self, files: &str, memlock: &str) {
        let text = format!(
            "Max open files            1024                 {files}               files\n\
             Max locked memory         8388608              {memlock}              bytes"
        );
        self.put("proc/self/limits", &text);
    }

    /// A card with an interrupt for its configuration and one per queue, from `first` on, that may
    /// go anywhere.
    fn card(&self, name: &str, first: usize, queues: usize, node: i32) {
        let device = format!("sys/class/net/{name}");
        self.put(&format!("{device}/device/numa_node"), &node.to_string());
        let mut interrupts =
            format!("           CPU0       CPU1\n {first}:   7   0  PCI-MSI-0000  0-edge  {name}-config\n");
        self.put(&format!("{device}/device/msi_irqs/{first}"), "msix");
        for queue in 0..queues {
            let irq = first + 1 + queue;
            interrupts += &format!(" {irq}:   123   4  PCI-MSI-0000  {irq}-edge  {name}-TxRx-{queue}\n");
            self.put(&format!("{device}/device/msi_irqs/{irq}"), "msix");
            self.put(&format!("{device}/queues/rx-{queue}/rps_cpus"), "00000000,00000000");
            self.put(&format!("proc/irq/{irq}/smp_affinity_list"), "0-63");
        }
        self.put("proc/interrupts", &interrupts);
        // Another device's, which is not the program's business.
        self.put("proc/irq/7/smp_affinity_list", "0-63");
    }

    /// Where the interrupts from `first` on may go.
    fn affinities(&self, first: usize, count: usize) -> Vec<String> {
        (first..first + count)
            .map(|irq| self.get(&format!("proc/irq/{irq}/smp_affinity_list")))
            .collect()
    }

    /// Every file with its mode, every folder.
    fn snapshot(&self) -> BTreeMap<PathBuf, (u32, String)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let mode = fs::metadata(&path).unwrap().permissions().mode();
                let text = if path.is_dir() {
                    folders.push(path.clone());
                    String::new()
                } else {
                    // The kernel writes tabs between numbers, and whatever way they are written
                    // means the same.
                    fs::read_to_string(&path).unwrap().replace('\t', " ")
                };
                all.insert(path, (mode, text));
            }
        }
        all
    }

    fn run(&self, script: &str, args: &[&str]) -> Ended {
        let mut command = as_root(script);
        command.arg("--root").arg(self.0.path()).args(args);
        run_command(command)
    }

    /// Runs `check --json`: its rows by name.
    #[track_caller]
    fn check(&self, args: &[&str]) -> Checked {
        let ended = self.run("check", &[args, &["--json"]].concat());
        assert!(matches!(ended.code, Some(0 | 1)), "{ended:#?}");
        let json: Value = serde_json::from_str(&ended.stdout).unwrap();
        let rows: BTreeMap<String, Value> = json["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (row["name"].as_str().unwrap().to_owned(), row.clone()))
            .collect();
        let checked = Checked(rows);
        assert_eq!(checked.wrong().len() as u64, json["wrong"].as_u64().unwrap(), "{json}");
        assert_eq!(ended.code, Some(i32::from(!checked.wrong().is_empty())), "{json}");
        checked
    }

    #[track_caller]
    fn apply(&self, args: &[&str]) -> Ended {
        let ended = self.run("apply", args);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:#?}");
        ended
    }
}

struct Checked(BTreeMap<String, Value>);

impl Checked {
    fn wrong(&self) -> Vec<&str> {
        let wrong = self.0.values().filter(|row| row["state"] == "CHANGE");
        wrong.map(|row| row["name"].as_str().unwrap()).collect()
    }

    #[track_caller]
    fn row(&self, name: &str) -> (&str, &str, &str) {
        let row = self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("no {name:?} in {:?}", self.0.keys()));
        let text = |key: &str| row[key].as_str().unwrap();
        assert!(!text("reason").is_empty() && !text("effect").is_empty(), "{row}");
        (text("state"), text("value"), text("wanted"))
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A script as root: as who we are, or as root of a namespace where only our own files can be
/// changed.
fn as_root(script: &str) -> Command {
    let script = repository().join("tuning").join(script);
    if is_root() {
        return command(script.to_str().unwrap());
    }
    let mut command = command("unshare");
    command.arg("--map-root-user").arg(script);
    command
}

#[test]
fn a_host_that_nobody_touched() {
    let host = Host::stock(16, 8);
    host.put("proc/4711/comm", "irqbalance");
    for cpu in 0..16 {
        host.governor(cpu, "powersave");
    }
    let checked = host.check(&["--config", &config("16-core.toml")]);
    assert_eq!(
        checked.wrong(),
        [
            "IRQs of eth0",
            "cpufreq governor",
            "irqbalance",
            "net.core.netdev_max_backlog",
            "net.core.somaxconn",
            "net.ipv4.tcp_max_syn_backlog",
            "net.ipv4.tcp_rmem",
            "net.ipv4.tcp_wmem",
        ]
    );
    assert_eq!(checked.row("net.core.somaxconn"), ("CHANGE", "4096", "16384 or more"));
    assert_eq!(checked.row("cpus"), ("ok", "0-11", "0-11"));
    // 200,000 connections, 100 besides, 24 for each of 12 shards.
    assert_eq!(checked.row("nofile of this shell").2, "200388 or more");
    assert_eq!(checked.row("kernel memory, idle").1, "896 MiB");
    // 12 is the control thread's.
    assert_eq!(checked.row("IRQs of eth0").2, "on 13-15");
}

#[test]
fn a_small_gateway_needs_nothing() {
    let host = Host::stock(2, 1);
    let ended = host.run("check", &["--connections", "1000"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("0 should change"), "{ended:#?}");
    let applied = host.apply(&["--connections", "1000", "--yes"]);
    assert_eq!(applied.stdout, "Nothing to change.\n");
    assert!(!host.path("var").exists());
}

#[test]
fn what_keeps_a_gateway_from_running() {
    let host = Host::stock(2, 1);
    host.put("proc/sys/kernel/io_uring_disabled", "2");
    host.put("proc/sys/kernel/osrelease", "5.4.0-150-generic");
    host.put("proc/kallsyms", "0000000000000000 T __x64_sys_openat");
    host.put("proc/sys/vm/overcommit_memory", "2");
    host.put("proc/sys/net/core/busy_poll", "50");
    host.put("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never");
    host.put("proc/meminfo", "MemTotal:        4096000 kB");
    host.limits("4096", "65536");
    let checked = host.check(&["--connections", "1000000", "--config", &config("16-core.toml")]);
    for name in [
        "kernel",
        "io_uring",
        "kernel.io_uring_disabled",
        "vm.overcommit_memory",
        "net.core.busy_poll",
        "net.netfilter.nf_conntrack_max",
        "transparent huge pages",
        "memory of the host",
        "nofile of this shell",
        "memlock of this shell",
        "cpus",
    ] {
        assert_eq!(checked.row(name).0, "CHANGE", "{name}");
    }
}

/// 64 CPUs on two nodes, the card on the second one.
fn two_nodes() -> Host {
    let host = Host::stock(64, 6);
    host.node(0, "0-31");
    host.node(1, "32-63");
    host.put("sys/class/net/eth0/device/numa_node", "1");
    host
}

#[test]
fn two_nodes_and_a_card_on_the_second() {
    let host = two_nodes();
    let config = config("64-core-2-numa.toml");
    let checked = host.check(&["--config", &config]);
    assert_eq!(
        checked.row("NUMA nodes"),
        ("ok", "node0: 28, node1: 28", "pinned shards")
    );
    assert_eq!(checked.row("NUMA node of eth0").0, "note");
    assert_eq!(
        checked.row("IRQs of eth0"),
        (
            "CHANGE",
            "6, elsewhere: 41:0-63 42:0-63 43:0-63 44:0-63 45:0-63 46:0-63",
            "on 60-63"
        )
    );
    host.apply(&["--config", &config, "--yes"]);
    assert_eq!(host.affinities(41, 6), ["60", "61", "62", "63", "60", "61"]);
    // Its configuration's and other devices' interrupts stay.
    assert_eq!(host.get("proc/irq/7/smp_affinity_list"), "0-63");
    assert_eq!(host.check(&["--config", &config]).row("IRQs of eth0").0, "ok");
    // Threads of a core are told.
    for cpu in 0..32 {
        host.siblings(cpu, &format!("{cpu},{}", cpu + 32));
        host.siblings(cpu + 32, &format!("{cpu},{}", cpu + 32));
    }
    let checked = host.check(&["--config", &config]);
    assert_eq!(checked.row("SMT siblings").1, "28 cores for 56 shards");
}

#[test]
fn unpinned_shards_belong_on_one_node() {
    let host = two_nodes();
    assert_eq!(
        host.check(&["--config", &config("laptop.toml")]).row("NUMA nodes").0,
        "CHANGE"
    );
}

#[test]
fn where_all_cpus_have_shards_queues_go_to_them() {
    let host = Host::stock(2, 2);
    host.apply(&["--config", &config("2-core.toml"), "--yes"]);
    assert_eq!(host.affinities(41, 2), ["0", "1"]);
}

#[test]
fn a_card_with_one_queue_is_spread() {
    let host = Host::stock(8, 1);
    let config = config("behind-nginx.toml");
    assert_eq!(
        host.check(&["--config", &config]).row("RPS of eth0"),
        ("CHANGE", "0", "f0")
    );
    host.apply(&["--config", &config, "--yes"]);
    assert_eq!(host.get("sys/class/net/eth0/queues/rx-0/rps_cpus"), "f0");
    assert_eq!(host.check(&["--config", &config]).row("RPS of eth0").0, "ok");
}

#[test]
fn what_is_applied_is_well_and_what_is_undone_was_never_there() {
    let host = two_nodes();
    host.put("etc/sysctl.d/90-shardgate.conf", "# by hand");
    fs::set_permissions(
        host.path("etc/sysctl.d/90-shardgate.conf"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    host.limits("4096", "65536");
    let before = host.snapshot();
    let config = config("64-core-2-numa.toml");
    let args = ["--config", &config];

    let shown = host.apply(&[&args[..], &["--dry-run"]].concat());
    for part in [
        "/proc/sys/net/ipv4/tcp_rmem: 4096 131072 6291456 -> 4096 131072 1048576\n",
        "-# by hand\n",
        "+net.netfilter.nf_conntrack_max = 1260000\n",
        "+* hard nofile 1001444\n",
        "+LimitNOFILE=1001444\n",
        "/proc/irq/41/smp_affinity_list: 0-63 -> 60\n",
    ] {
        assert!(shown.stdout.contains(part), "no {part:?} in {}", shown.stdout);
    }
    assert_eq!(host.snapshot(), before);

    let applied = host.apply(&[&args[..], &["--yes"]].concat());
    assert_eq!(applied.stdout, shown.stdout);
    // The limits of a shell that is already there stay; a new login has those of limits.d.
    assert_eq!(
        host.check(&args).wrong(),
        ["memlock of this shell", "nofile of this shell"]
    );
    host.limits("1001444", "36700160");
    assert_eq!(host.check(&args).wrong(), [""; 0]);
    host.limits("4096", "65536");

    let once = host.snapshot();
    let again = host.apply(&[&args[..], &["--yes"]].concat());
    assert_eq!(again.stdout, "Nothing to change.\n");
    assert_eq!(host.snapshot(), once);

    // Fewer: settings that are not needed any more are as they were.
    host.apply(&["--config", &config, "--connections", "20000", "--yes"]);
    assert_eq!(host.get("proc/sys/net/netfilter/nf_conntrack_max"), "262144");
    assert_eq!(
        host.get("proc/sys/net/ipv4/tcp_rmem").replace('\t', " "),
        "4096 131072 6291456"
    );

    let undone = host.apply(&["--undo", "--yes"]);
    assert!(undone.stdout.contains("+# by hand\n"), "{}", undone.stdout);
    assert_eq!(host.snapshot(), before);
    assert_eq!(host.apply(&["--undo", "--yes"]).stdout, "Nothing to change.\n");
}

#[test]
fn after_a_boot_interrupts_have_other_numbers() {
    let host = two_nodes();
    let config = config("64-core-2-numa.toml");
    host.apply(&["--config", &config, "--yes"]);
    host.put("proc/sys/kernel/random/boot_id", "second");
    host.put("proc/irq/41/smp_affinity_list", "17");
    let undone = host.apply(&["--undo", "--yes"]);
    assert!(!undone.stdout.contains("irq"), "{}", undone.stdout);
    assert_eq!(host.get("proc/irq/41/smp_affinity_list"), "17");
    assert_eq!(host.get("proc/sys/net/netfilter/nf_conntrack_max"), "262144");
}

#[test]
fn irqbalance_keeps_its_interrupts() {
    let host = two_nodes();
    host.put("proc/4711/comm", "irqbalance");
    let ended = host.run("apply", &["--config", &config("64-core-2-numa.toml"), "--yes"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stderr.contains("systemctl disable --now irqbalance"),
        "{ended:#?}"
    );
    assert_eq!(host.get("proc/irq/41/smp_affinity_list"), "0-63");
}

#[test]
fn a_file_that_is_read_later_is_named() {
    let host = two_nodes();
    host.put("etc/sysctl.d/99-local.conf", "net.ipv4.tcp_rmem = 1 2 3");
    host.put("etc/sysctl.d/10-local.conf", "net.ipv4.tcp_wmem = 1 2 3");
    let ended = host.run("apply", &["--config", &config("64-core-2-numa.toml"), "--yes"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended
            .stderr
            .contains("/etc/sysctl.d/99-local.conf sets net.ipv4.tcp_rmem"),
        "{ended:#?}"
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:#?}");
}

/// A login with a limit above `fs.nr_open` is turned away.
#[test]
fn no_limit_that_the_kernel_does_not_allow() {
    let host = two_nodes();
    let before = host.snapshot();
    host.limits("4096", "65536");
    // 65,536, and it cannot be written.
    fs::remove_file(host.path("proc/sys/fs/nr_open")).unwrap();
    std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", host.path("proc/sys/fs/nr_open")).unwrap();
    let ended = host.run("apply", &["--connections", "1000000", "--yes"]);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("no limits are written"), "{ended:#?}");
    assert!(!host.path("etc/security/limits.d/90-shardgate.conf").exists());
    host.apply(&["--undo", "--yes"]);
    assert_eq!(host.snapshot().len(), before.len());
}

#[test]
fn the_limits_of_the_unit_count() {
    let host = Host::stock(2, 1);
    host.limits("4096", "65536");
    let unit = fs::read_to_string(repository().join("tuning/shardgate.service")).unwrap();
    host.put("etc/systemd/system/shardgate.service", &unit);
    let checked = host.check(&["--connections", "1000"]);
    assert_eq!(
        checked.row("LimitNOFILE of the unit"),
        ("ok", "1048576", "1148 or more")
    );
    assert_eq!(
        checked.row("LimitMEMLOCK of the unit"),
        ("ok", "536870912", "1310720 or more")
    );
    assert!(!checked.0.contains_key("nofile of this shell"));
    // A drop-in of the operator's, and one of ours for what it lacks.
    let folder = "etc/systemd/system/shardgate.service.d";
    host.put(&format!("{folder}/10-local.conf"), "[Service]\nLimitNOFILE=2000:30000");
    let args = ["--connections", "50000"];
    assert_eq!(host.check(&args).row("LimitNOFILE of the unit").0, "CHANGE");
    host.apply(&[&args[..], &["--yes"]].concat());
    let ours = host.get(&format!("{folder}/90-shardgate.conf"));
    assert!(ours.ends_with("LimitNOFILE=50148\nLimitMEMLOCK=536870912"), "{ours}");
    assert_eq!(host.check(&args).row("LimitNOFILE of the unit").0, "ok");
}

#[test]
fn nobody_is_asked_twice_and_no_means_no() {
    let host = two_nodes();
    let before = host.snapshot();
    // Standard input is empty, which is no yes.
    let ended = host.run("apply", &["--connections", "1000000"]);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("nothing was changed"), "{ended:#?}");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn only_root_changes_a_host() {
    let host = two_nodes();
    fs::set_permissions(host.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let before = host.snapshot();
    // The user `nobody` may not be let into this repository.
    let copy = tempfile::tempdir().unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["apply", "wanted.sh", "lib.sh"] {
        fs::copy(repository().join("tuning").join(name), copy.path().join(name)).unwrap();
    }
    let script = copy.path().join("apply");
    let run = |args: &[&str]| {
        let mut nobody = command("setpriv");
        if is_root() {
            nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        nobody.arg(&script).arg("--root").arg(host.0.path()).args(args);
        run_command(nobody)
    };
    let ended = run(&["--connections", "1000000", "--yes"]);
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("only root"), "{ended:#?}");
    let ended = run(&["--connections", "1000000", "--dry-run"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("nf_conntrack_max"), "{ended:#?}");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn wrong_usage() {
    let host = Host::stock(2, 1);
    let odd = tempfile::NamedTempFile::new().unwrap();
    let odd_path = odd.path().to_str().unwrap();
    for (toml, args, word) in [
        ("", &["--conections", "5"][..], "--conections"),
        ("", &["--connections", "many"], "many"),
        ("", &["--connections", "0"], "above 0"),
        ("", &["--connections"], "needs a value"),
        ("", &["--config", "/nowhere.toml"], "/nowhere.toml"),
        ("limits = { connections = 5 }", &["--config", odd_path], "[limits]"),
        ("cpus = \"a-b\"", &["--config", odd_path], "a-b"),
        ("cpus = [", &["--config", odd_path], "one line"),
        ("shards = \"two\"", &["--config", odd_path], "two"),
    ] {
        fs::write(odd.path(), toml).unwrap();
        for script in ["check", "apply"] {
            let ended = host.run(script, args);
            assert_eq!(ended.code, Some(2), "{script} {args:?}: {ended:#?}");
            assert!(ended.stderr.contains(word), "{script} {args:?}: {ended:#?}");
        }
    }
}

#[test]
fn the_files_that_check_asks_for_are_what_the_gateway_needs() {
    let host = Host::stock(2, 1);
    let args = ["--connections", "300", "--config", &config("2-core.toml")];
    let checked = host.check(&args);
    let wanted = checked.row("nofile of this shell").2;
    let wanted: u32 = wanted.strip_suffix(" or more").unwrap().parse().unwrap();
    let start = |files: u32| {
        let mut shell = command("sh");
        // Pinned to nothing, as this machine may not have two CPUs.
        let flags = "--listen 127.0.0.1:0 --shards 2 --cpus none --limits-connections 300";
        shell
            .arg("-c")
            .arg(format!("ulimit -n {files} && exec {PROGRAM} {flags}"));
        Gateway::try_spawn(shell)
    };
    let short = start(wanted - 1).err().expect("one file less is not enough");
    assert!(short.stderr.contains("limits.connections"), "{short:#?}");
    let gateway = start(wanted).unwrap_or_else(|ended| panic!("{ended:#?}"));
    let clients: Vec<_> = (0..300).map(|n| gateway.connect(&format!("user{n}"))).collect();
    assert_eq!(gateway.stats()["connections"], 300);
    drop(clients);
}

/// systemd kills what has not ended by `TimeoutStopSec`, and with it the clients of a drain.
#[test]
fn a_unit_that_would_cut_a_drain_short_is_noticed() {
    let host = Host::stock(64, 1);
    let unit = fs::read_to_string(repository().join("tuning/shardgate.service")).unwrap();
    host.put("etc/systemd/system/shardgate.service", &unit);
    let name = "TimeoutStopSec of the unit";
    // As they ship: 75 s do for a drain of 60 s, and not for one of 120 s.
    let (short, long) = (config("16-core.toml"), config("64-core-2-numa.toml"));
    assert_eq!(host.check(&["--config", &short]).row(name), ("ok", "75", "70 or more"));
    assert_eq!(
        host.check(&["--config", &long]).row(name),
        ("CHANGE", "75", "130 or more")
    );
    host.apply(&["--config", &long, "--yes"]);
    assert_eq!(host.check(&["--config", &long]).row(name).1, "130");
    host.apply(&["--undo", "--yes"]);
    // systemd waits for 90 s, however the setting is written, and also without it.
    let folder = "etc/systemd/system/shardgate.service.d";
    for (line, seconds, state) in [
        ("TimeoutStopSec=2min 5s", "125", "CHANGE"),
        ("TimeoutStopSec=3m", "180", "ok"),
        ("TimeoutSec=130", "130", "ok"),
        ("TimeoutStopSec=infinity", "infinity", "ok"),
        ("TimeoutStopSec=0", "infinity", "ok"),
        ("TimeoutStopSec=129500ms", "130", "ok"),
    ] {
        host.put(&format!("{folder}/10-local.conf"), &format!("[Service]\n{line}"));
        let checked = host.check(&["--config", &long]);
        assert_eq!((checked.row(name).0, checked.row(name).1), (state, seconds), "{line}");
    }
    fs::remove_dir_all(host.path(folder)).unwrap();
    host.put("etc/systemd/system/shardgate.service", "[Service]\nExecStart=shardgate");
    assert_eq!(host.check(&["--config", &short]).row(name).1, "90");
}

/// The kernel's own sysctls, of a network namespace that ends with the test.
#[test]
fn a_kernel_is_tuned_and_put_back() {
    let host = Host::stock(2, 1);
    // 60,000 need what a namespace has of its own, and no more connection tracking than there is.
    let script = r#"
        set -eu
        mount --bind /proc/sys/net "$1/proc/sys/net"
        cd "$1/proc/sys/net"
        values() { for name in core/somaxconn ipv4/tcp_max_syn_backlog ipv4/tcp_rmem ipv4/tcp_wmem ipv4/ip_local_port_range; do tr '\t\n' '  ' <$name; echo; done; }
        echo 128 >core/somaxconn
        echo 128 >ipv4/tcp_max_syn_backlog
        echo 4096 131072 6291456 >ipv4/tcp_rmem
        echo 4096 16384 4194304 >ipv4/tcp_wmem
        echo 32768 60999 >ipv4/ip_local_port_range
        values
        "$2/apply" --root "$1" --connections 60000 --yes >/dev/null
        values
        "$2/check" --root "$1" --connections 60000 >&2
        "$2/apply" --root "$1" --undo --yes >/dev/null
        values
    "#;
    let mut namespace = command("unshare");
    if !is_root() {
        namespace.arg("--map-root-user");
    }
    namespace.args(["--net", "--mount", "bash", "-c", script, "tuning"]);
    namespace.arg(host.0.path()).arg(repository().join("tuning"));
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let ended = run_command(namespace);
    assert!(
        ended.code == Some(0),
        "NOT PROVEN: this test needs a network and a mount namespace (unshare --net --mount), as root or as a user who may: {ended:#?}"
    );
    let untouched = ["128", "128", "4096 131072 6291456", "4096 16384 4194304", "32768 60999"];
    let tuned = [
        "4096",
        "4096",
        "4096 131072 1048576",
        "4096 16384 1048576",
        "10000 65535",
    ];
    let values: Vec<&str> = ended.stdout.lines().map(str::trim).collect();
    assert_eq!(values, [untouched, tuned, untouched].concat(), "{ended:#?}");
    assert_eq!(fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap(), somaxconn);
    assert!(!host.path("var").exists());
}
