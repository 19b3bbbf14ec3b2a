//! What keeps a gateway from starting: one clear line with the cause and the remedy, exit 1 or 2, and nothing opened.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};

use common::admin::{Admin, TOKEN};
use common::gateway::{Ended, command, run_command, run_to_exit};
use common::{Gateway, Redis, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_shardgate");

/// One line that names all of this, and this exit code.
#[track_caller]
fn assert_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    let line = ended.stderr.lines().find(|line| line.starts_with("shardgate: "));
    let line = line.unwrap_or_else(|| panic!("no line of the program's own: {ended:#?}"));
    for word in words {
        assert!(line.contains(word), "{word:?} not in {line:?}");
    }
    assert!(!ended.stderr.contains("panicked"), "{ended:#?}");
    assert!(!ended.stderr.contains("listening on"), "{ended:#?}");
}

/// The gateway through a shell that first does this.
fn shell(before: &str, args: &str) -> Ended {
    let mut sh = command("sh");
    sh.arg("-c")
        .arg(format!("{before} && exec {PROGRAM} --listen 127.0.0.1:0 {args}"));
    run_command(sh)
}

#[test]
fn a_port_that_another_gateway_has() {
    for engine in ["epoll", "auto"] {
        let gateway = Gateway::start(&["--engine", engine]);
        let addr = gateway.addr.to_string();
        let ended = run_to_exit(&["--listen", &addr, "--engine", engine]);
        assert_refused(&ended, 1, &[&addr, "in use", "--listen"]);
        // The first one did not notice, and its port is free when it is gone.
        gateway.connect("alice").close();
        drop(gateway);
        let again = Gateway::start(&["--listen", &addr, "--engine", engine]);
        assert_eq!(again.addr.to_string(), addr);
        let ended = run_to_exit(&["--listen", &addr]);
        assert_refused(&ended, 1, &[&addr, "in use"]);
    }
}

#[test]
fn a_port_that_another_program_has() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap().to_string();
    assert_refused(&run_to_exit(&["--listen", &addr]), 1, &[&addr, "in use", "--listen"]);
}

#[test]
fn an_address_of_another_host() {
    let ended = run_to_exit(&["--listen", "203.0.113.1:8080", "--insecure"]);
    assert_refused(
        &ended,
        1,
        &[
            "203.0.113.1:8080",
            "cannot listen",
            "no interface of this host has that address",
        ],
    );
}

#[test]
fn a_bad_configuration() {
    for (args, words) in [
        (&["--lisen", "127.0.0.1:0"][..], &["lisen", "--listen"][..]),
        (&["--limits-mesage-bytes", "1000"], &["--limits-message-bytes"]),
        (
            &["--limits-message-bytes", "many"],
            &["limits.message_bytes", "many", "125"],
        ),
        (&["--limits-message-bytes", "1"], &["limits.message_bytes", "125"]),
        (&["--heartbeat-interval", "25"], &["heartbeat.interval", "25", "s"]),
        (
            &["--heartbeat-interval", "2m"],
            &["heartbeat.interval", "heartbeat.timeout"],
        ),
        (&["--engine", "kqueue"], &["engine", "kqueue", "ring", "epoll"]),
        (&["--listen", "8080"], &["listen", "8080"]),
        (&["--origins", "example.com"], &["origins", "example.com"]),
        (&["--config", "/no/such/file.toml"], &["/no/such/file.toml"]),
        (&["--shards", "0"], &["shards", "0"]),
        (&["--auth-key", "secret"], &["auth.key"]),
        (&["--redis-url", "redis:/h"], &["redis.url", "redis://"]),
        (&["--presence-ttl", "10ms"], &["presence.ttl", "1s"]),
        (&["nonsense"], &["nonsense"]),
    ] {
        assert_refused(&run_to_exit(args), 2, words);
    }
}

#[test]
fn a_bad_file_or_variable() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    for (text, words) in [
        ("listne = \"127.0.0.1:0\"", &["listne", "listen"][..]),
        ("[limits]\nmesage_bytes = 5", &["mesage_bytes", "limits.message_bytes"]),
        ("limits.message_bytes = true", &["limits.message_bytes"]),
        ("listen = ", &["shardgate.toml"]),
    ] {
        std::fs::write(&file, text).unwrap();
        assert_refused(&run_to_exit(&["--config", file.to_str().unwrap()]), 2, words);
    }
    let mut with_variable = command(PROGRAM);
    with_variable.env("SHARDGATE_LISTNE", "127.0.0.1:0");
    assert_refused(
        &run_command(with_variable),
        2,
        &["SHARDGATE_LISTNE", "SHARDGATE_LISTEN"],
    );
    let mut with_variable = command(PROGRAM);
    with_variable.env("SHARDGATE_SHARDS", "some");
    assert_refused(&run_command(with_variable), 2, &["SHARDGATE_SHARDS", "some"]);
}

#[test]
fn precedence_is_flag_then_variable_then_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    std::fs::write(&file, "gateway_id = \"file\"\nshards = 3\necho = true\n").unwrap();
    let file = file.to_str().unwrap();
    let of = |args: &[&str], env: &[(&str, &str)]| Gateway::start_with_env(args, env).id.clone();
    assert_eq!(of(&["--config", file], &[]), "file");
    assert_eq!(
        of(&["--config", file], &[("SHARDGATE_GATEWAY_ID", "variable")]),
        "variable"
    );
    assert_eq!(
        of(
            &["--config", file, "--gateway-id", "flag"],
            &[("SHARDGATE_GATEWAY_ID", "variable")]
        ),
        "flag"
    );
    assert_eq!(of(&[], &[("SHARDGATE_CONFIG", file)]), "file");
    assert_ne!(of(&[], &[]), of(&[], &[]), "a made-up name is made up each time");
}

#[test]
fn variables_of_kubernetes_are_ignored() {
    let gateway = Gateway::start_with_env(
        &[],
        &[
            ("SHARDGATE_PORT", "tcp://10.0.0.1:8080"),
            ("SHARDGATE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("SHARDGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
            ("SHARDGATE_SERVICE_PORT", "8080"),
            ("SHARDGATE_SERVICE_PORT_WS", "8080"),
        ],
    );
    gateway.connect("alice").close();
}

#[test]
fn development_mode_stays_at_home() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        assert_refused(
            &run_to_exit(&["--listen", listen]),
            2,
            &["listen", "development mode", "auth.key", "--insecure"],
        );
        let gateway = Gateway::start(&["--listen", listen, "--insecure"]);
        drop(gateway);
    }
    for listen in ["127.0.0.1:0", "127.0.0.2:0"] {
        Gateway::start(&["--listen", listen]).connect("alice").close();
    }
}

#[test]
fn check_config_prints_and_opens_nothing() {
    let gateway = Gateway::start(&[]);
    let addr = gateway.addr.to_string();
    // The port is in use, and that is no matter.
    let ended = run_to_exit(&["--check-config", "--listen", &addr, "--heartbeat-interval", "7s"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stdout.contains(&addr) && ended.stdout.contains("7s"),
        "{}",
        ended.stdout
    );
    // What it prints is a file that says the same.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("printed.toml");
    std::fs::write(&file, &ended.stdout).unwrap();
    let again = run_to_exit(&["--check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(again.code, Some(0), "{again:#?}");
    assert!(
        again.stdout.contains(&addr) && again.stdout.contains("7s"),
        "{}",
        again.stdout
    );
    assert_refused(&run_to_exit(&["--check-config", "--shards", "x"]), 2, &["shards"]);
}

#[test]
fn help_and_version() {
    let help = run_to_exit(&["--help"]);
    assert_eq!(help.code, Some(0));
    for flag in [
        "--listen",
        "--engine",
        "--limits-connections",
        "--drain-timeout",
        "--config",
    ] {
        assert!(help.stdout.contains(flag), "{flag}");
    }
    let version = run_to_exit(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
}

#[test]
fn too_little_memlock() {
    // The hard limit: the gateway raises the soft one by itself.
    assert_refused(
        &shell("ulimit -l 64", ""),
        1,
        &["RLIMIT_MEMLOCK", "64 KiB", "512 KiB", "LimitMEMLOCK"],
    );
}

#[test]
fn too_few_descriptors() {
    assert_refused(
        &shell("ulimit -n 64", "--engine epoll"),
        1,
        &["RLIMIT_NOFILE", "64", "LimitNOFILE"],
    );
    let ended = shell("ulimit -n 1000", "--limits-connections 5000 --shards 1 --cpus none");
    assert_refused(&ended, 1, &["limits.connections", "5000", "1000", "nofile"]);
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let mut sh = command("sh");
    sh.arg("-c").arg(format!(
        "ulimit -Sn 64 && exec {PROGRAM} --listen 127.0.0.1:0 --shards 1 --cpus none --limits-connections 200"
    ));
    let gateway = Gateway::try_spawn(sh).unwrap_or_else(|ended| panic!("{ended:#?}"));
    let clients: Vec<_> = (0..150).map(|n| gateway.connect(&format!("user{n}"))).collect();
    assert_eq!(gateway.stats()["connections"], 150);
    drop(clients);
}

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

/// The CPUs that each thread of a shard may run on, as the kernel writes them; the executor's pool, which sleeps, is not pinned.
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

/// Whether this user may make mounts of their own; says so if not.
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

/// A quota says how much there is, whatever the host has; nested, the smallest does.
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

/// The second gateway of a host does not pin to the same CPUs, and says why.
#[test]
fn two_gateways_on_one_host() {
    // Only CPUs that no other gateway of this host has: a name per CPU, kept here so that no other test's is in the way.
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

/// Who reads only the beginning, and who has no room, gets no panic.
#[test]
fn what_cannot_be_printed() {
    for args in ["--help", "--version", "--check-config", "token --help"] {
        let mut full = command("sh");
        full.arg("-c").arg(format!("{PROGRAM} {args} >/dev/full"));
        let ended = run_command(full);
        assert_refused(&ended, 1, &["cannot write to standard output", "No space left"]);
        let mut closed = command("sh");
        // The reader has gone before anything is written.
        closed.arg("-c").arg(format!(
            "exec 3>&1; ({{ sleep 0.2; {PROGRAM} {args}; echo $? >&3; }} | true)"
        ));
        let ended = run_command(closed);
        assert_eq!((ended.stdout.trim(), ended.stderr.as_str()), ("1", ""), "{args}");
    }
    // The same of what is said on standard error: the exit code tells all the same.
    let mut full = command("sh");
    full.arg("-c").arg(format!("{PROGRAM} --bogus 2>/dev/full"));
    assert_eq!(run_command(full).code, Some(2));
}

/// A port that only root may have, and nobody else.
#[test]
fn a_port_below_1024() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if rustix::process::geteuid().is_root() && first.trim() != "0" {
        let place = tempfile::tempdir().unwrap();
        let mut sh = as_user(nobody(), &place, "");
        sh.args(["--listen", "127.0.0.1:80"]);
        assert_refused(
            &run_command(sh),
            1,
            &["cannot listen on 127.0.0.1:80", "CAP_NET_BIND_SERVICE"],
        );
    }
}

/// A user without any privilege, whose memlock no other test takes.
fn nobody() -> u32 {
    fastrand::u32(100_000..2_000_000_000)
}

/// The gateway as this user, through a shell that first does this.
fn as_user(user: u32, place: &tempfile::TempDir, before: &str) -> Command {
    use std::os::unix::fs::PermissionsExt;
    // Where that user may run it.
    let program = place.path().join("shardgate");
    if !program.exists() {
        // Not by this process: whatever another test starts meanwhile would keep the file open for writing.
        let copied = command("cp").arg(PROGRAM).arg(&program).status().unwrap();
        assert!(copied.success());
    }
    for path in [place.path(), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut nobody = command("setpriv");
    nobody.args([
        &format!("--reuid={user}"),
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    nobody
        .args(["sh", "-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(&program);
    nobody
}

/// A limit that is enough for one shard and not for all: io_uring's memory counts since Linux 6.14.
#[test]
fn memlock_for_one_shard_and_not_for_all() {
    if !rustix::process::geteuid().is_root() || !rings_are_counted() {
        eprintln!("SKIPPED: memlock does not bind here");
        return;
    }
    let (user, place) = (nobody(), tempfile::tempdir().unwrap());
    let start = |engine: &str| {
        let mut command = as_user(user, &place, "ulimit -l 8192;");
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--shards",
            "16",
            "--cpus",
            "none",
            "--engine",
            engine,
        ]);
        command
    };
    assert_refused(
        &run_command(start("ring")),
        1,
        &[
            "RLIMIT_MEMLOCK is 8192 KiB",
            "16 shards",
            "10240 KiB",
            "LimitMEMLOCK=",
            "--engine epoll",
        ],
    );
    let gateway = Gateway::try_spawn(start("auto")).unwrap_or_else(|ended| panic!("{ended:#?}"));
    gateway.wait_for_log("using the epoll engine: RLIMIT_MEMLOCK is 8192 KiB");
    gateway.connect("alice").close();
}

/// As above, where nothing but the rings themselves can tell: what a first gateway of the same user has is not to be seen.
#[test]
fn memlock_is_shared_with_a_second_gateway_of_the_same_user() {
    if !rustix::process::geteuid().is_root() || !rings_are_counted() {
        eprintln!("SKIPPED: memlock does not bind here");
        return;
    }
    let (user, place) = (nobody(), tempfile::tempdir().unwrap());
    let start = |engine: &str| {
        let mut command = as_user(user, &place, "ulimit -l 4096;");
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--shards",
            "5",
            "--cpus",
            "none",
            "--engine",
            engine,
        ]);
        command
    };
    let first = Gateway::try_spawn(start("ring")).unwrap_or_else(|ended| panic!("{ended:#?}"));
    assert_refused(
        &run_command(start("ring")),
        1,
        &["RLIMIT_MEMLOCK is 4096 KiB", "5 shards", "other processes of this user"],
    );
    let second = Gateway::try_spawn(start("auto")).unwrap_or_else(|ended| panic!("{ended:#?}"));
    second.wait_for_log("using the epoll engine: RLIMIT_MEMLOCK is 4096 KiB");
    second.connect("alice").close();
    drop(first);
}

/// A limit of threads, as TasksMax= sets one, wherever it strikes: signals, control thread, shards.
#[test]
fn too_few_threads() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: no other user to be");
        return;
    }
    for threads in [1, 2, 5, 9] {
        let place = tempfile::tempdir().unwrap();
        let mut command = as_user(nobody(), &place, &format!("prlimit --pid $$ --nproc={threads};"));
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--shards",
            "4",
            "--cpus",
            "none",
            "--engine",
            "epoll",
        ]);
        assert_refused(&run_command(command), 1, &["cannot start", "TasksMax="]);
    }
}

fn rings_are_counted() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 14))
}

/// Whoever is on this host can hold the name in which two gateways meet; that keeps nobody out, and is told.
#[test]
fn a_stranger_who_holds_the_name_of_an_address() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: no other user to be");
        return;
    }
    let addr = SocketAddr::from(([127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)], 8080));
    let mut squatter = command("sleep");
    squatter.arg("600").uid(65534).gid(65534);
    let name = format!("shardgate/listen/{addr}");
    let hold = move || {
        // SAFETY: plain system calls on a descriptor and a struct of this frame; nothing is allocated.
        unsafe {
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            let mut at: libc::sockaddr_un = std::mem::zeroed();
            at.sun_family = libc::AF_UNIX as _;
            for (to, from) in at.sun_path[1..].iter_mut().zip(name.bytes()) {
                *to = from as _;
            }
            let len = size_of::<libc::sa_family_t>() + 1 + name.len();
            if libc::bind(socket, (&raw const at).cast(), len as u32) != 0 || libc::listen(socket, 1) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { squatter.pre_exec(hold) };
    let squatter = Starting::spawn(squatter);
    let pid = squatter.child.as_ref().unwrap().id();
    let folder = tempfile::tempdir().unwrap();
    let addr = addr.to_string();
    let env = [("RUNTIME_DIRECTORY", folder.path().to_str().unwrap())];
    let gateway = Gateway::start_with_env(&["--listen", &addr], &env);
    gateway.wait_for_log(&format!("process {pid} (sleep) of user 65534 holds"));
    gateway.connect("alice").close();
    // A second gateway is kept off all the same.
    let mut second = command(PROGRAM);
    second.args(["--listen", &addr]).envs(env);
    let words = [&addr, "in use by process", &gateway.pid().to_string()];
    assert_refused(&run_command(second), 1, &words.map(|word| word as &str));
    drop((gateway, squatter));
}

/// As many as start at the same instant: one serves, all others say that the address is in use.
#[test]
fn of_many_that_start_at_once_one_serves() {
    let addr = SocketAddr::from(([127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)], 8080));
    let start = || {
        let mut command = command(PROGRAM);
        command.args(["--listen", &addr.to_string(), "--shards", "1", "--cpus", "none"]);
        Gateway::try_spawn(command)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut serving = 0;
    for result in &results {
        match result {
            Ok(_) => serving += 1,
            Err(ended) => assert_refused(ended, 1, &[&addr.to_string(), "in use by process"]),
        }
    }
    assert_eq!(serving, 1);
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

/// Lets a child run without these system calls: they fail as in a sandbox.
fn forbid(command: &mut Command, calls: &[libc::c_long]) {
    use std::os::unix::process::CommandExt;
    // A BPF program over `struct seccomp_data`: load the call's number, compare, return.
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        let mut compare = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *call as u32);
        compare.jf = 1;
        program.push(compare);
        program.push(statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let install = move || {
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: prctl with integers; `filter` and the program it points to outlive the second call, which copies them.
        unsafe {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only prctl is called, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) };
}

#[test]
fn no_io_uring() {
    let mut sandboxed = command(PROGRAM);
    sandboxed.args(["--listen", "127.0.0.1:0"]);
    forbid(&mut sandboxed, &[libc::SYS_io_uring_setup]);
    assert_refused(&run_command(sandboxed), 1, &["io_uring is not available", "seccomp"]);
}

#[test]
fn ready_comes_when_all_shards_accept() {
    let gateway = Gateway::start(&["--shards", "4"]);
    let log = gateway.log();
    let listening = log.find("listening on").unwrap();
    let ready = log.find("Ready").unwrap();
    assert!(listening < ready, "{log}");
    for n in 0..16 {
        gateway.connect(&format!("user{n}")).close();
    }
}

/// What systemd is told, by a gateway that asks it to listen there.
struct Notified {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Notified {
    fn new() -> Notified {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(common::DEADLINE)).unwrap();
        Notified { directory, socket }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 256];
        let len = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[track_caller]
    fn expect_nothing(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let error = self.socket.recv(&mut [0; 256]).expect_err("systemd was told something");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// Of the end whoever wishes it, and once, however often.
#[test]
fn systemd_is_told() {
    type TokenArgs = fn(&Gateway);
    let by_signal: TokenArgs = |gateway| gateway.signal(libc::SIGTERM);
    let by_administrator: TokenArgs = |gateway| {
        assert_eq!(Admin::of(gateway).ask("POST", "/admin/drain", "").0, 202);
    };
    for wishes in [[by_signal, by_administrator], [by_administrator, by_signal]] {
        let notified = Notified::new();
        let path = notified.path();
        let args = ["--admin-token", TOKEN, "--drain-timeout", "10m"];
        let mut gateway = Gateway::start_with_env(&args, &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
        let mut alice = gateway.connect("alice");
        assert!(notified.next().contains("READY=1"));
        notified.expect_nothing();
        wishes[0](&gateway);
        assert!(notified.next().contains("STOPPING=1"));
        assert_eq!(alice.recv_json()["type"], "shutdown");
        wishes[1](&gateway);
        alice.expect_close(3001);
        assert_eq!(gateway.wait_for_exit(), 0);
        notified.expect_nothing();
    }
}

/// `WatchdogSec=`: twice in its time, from `Ready` to the end of a drain.
#[test]
fn systemd_hears_that_the_gateway_lives() {
    let notified = Notified::new();
    let path = notified.path();
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut gateway = Gateway::start_with_env(&["--drain-timeout", "10m"], &env);
    let mut alice = gateway.connect("alice");
    let first = [notified.next(), notified.next(), notified.next()].concat();
    assert!(first.contains("READY=1") && first.contains("WATCHDOG=1"), "{first}");
    gateway.signal(libc::SIGTERM);
    assert_eq!(alice.recv_json()["type"], "shutdown");
    while !notified.next().contains("STOPPING=1") {}
    assert!(notified.next().contains("WATCHDOG=1"));
    // A gateway whose shards stand still is none: systemd hears nothing more.
    alice.close();
    assert_eq!(gateway.wait_for_exit(), 0);
    // For another process, nobody feeds it.
    let notified = Notified::new();
    let path = notified.path();
    let env = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "1000"),
        ("WATCHDOG_PID", "1"),
    ];
    let gateway = Gateway::start_with_env(&[], &env);
    assert!(notified.next().contains("READY=1"));
    gateway.connect("alice").close();
    notified.expect_nothing();
}

/// A proxy on the same host needs no port: the whole gateway on a Unix socket, its shards together.
#[test]
fn clients_come_by_a_unix_socket() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    for engine in ["epoll", "auto"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        let listen = format!("unix:{}", path.display());
        let start = || {
            let args = [
                "--listen",
                &listen,
                "--engine",
                engine,
                "--shards",
                "3",
                "--proxies",
                "unix:",
                "--insecure",
            ];
            let mut command = command(PROGRAM);
            command.args(args).args(["--cpus", "none", "--admin-token", TOKEN]);
            command
        };
        let mut gateway = Gateway::try_spawn(start()).unwrap_or_else(|ended| panic!("{ended:#?}"));
        let connect = || {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
            stream
        };
        let until = |stream: &mut UnixStream, word: &str| {
            let (mut text, mut piece) = (String::new(), [0; 1024]);
            while !text.contains(word) {
                let len = stream.read(&mut piece).unwrap();
                assert!(len > 0, "{word:?} did not come: {text}");
                text.push_str(&String::from_utf8_lossy(&piece[..len]));
            }
            text
        };
        // Enough for every shard to have some, and users of other shards among them.
        let users: Vec<UnixStream> = (0..24)
            .map(|n| {
                let mut stream = connect();
                let fields = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                let forwarded = if n == 0 { "X-Forwarded-For: 203.0.113.9\r\n" } else { "" };
                write!(stream, "GET /ws?user=user{n} HTTP/1.1\r\n{fields}{forwarded}\r\n").unwrap();
                until(&mut stream, "\"type\":\"welcome\"");
                stream
            })
            .collect();
        let ask = |request: &str| {
            let mut stream = connect();
            write!(
                stream,
                "{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(ask("GET /readyz").starts_with("HTTP/1.1 200"));
        let listed = ask("GET /admin/connections?user=user0");
        assert!(listed.contains("\"remoteAddr\":\"203.0.113.9:0\""), "{listed}");
        let listed = ask("GET /admin/connections?user=user1");
        assert!(
            listed.contains("\"userId\":\"user1\"") && listed.contains("\"remoteAddr\":null"),
            "{listed}"
        );
        // Nobody else gets there, and the first one does not notice.
        let pid = gateway.pid().to_string();
        assert_refused(&run_command(start()), 1, &[&listen, "in use by process", &pid]);
        assert!(ask("GET /livez").starts_with("HTTP/1.1 200"));
        drop(users);
        gateway.signal(libc::SIGTERM);
        assert_eq!(gateway.wait_for_exit(), 0);
        assert!(!path.exists(), "the file goes with the gateway");
        // One that is killed leaves it, and the next one takes it over.
        let mut killed = Gateway::try_spawn(start()).unwrap_or_else(|ended| panic!("{ended:#?}"));
        killed.kill();
        assert!(path.exists());
        let gateway = Gateway::try_spawn(start()).unwrap_or_else(|ended| panic!("{ended:#?}"));
        assert!(ask("GET /livez").starts_with("HTTP/1.1 200"));
        drop(gateway);
    }
}

/// A name is looked up once, at the start.
#[test]
fn clients_come_to_a_name() {
    let gateway = Gateway::start(&["--listen", "localhost:0"]);
    assert!(gateway.addr.ip().is_loopback() && gateway.addr.port() != 0);
    gateway.connect("alice").close();
    let ended = run_to_exit(&["--listen", "no-such-host.invalid:8080", "--insecure"]);
    assert_refused(&ended, 1, &["listen names no-such-host.invalid", "give an IP address"]);
    assert_refused(
        &run_to_exit(&["--listen", "gateway.example:8080"]),
        2,
        &["gateway.example:8080", "development mode", "--insecure"],
    );
}

/// A gateway that is not ready, and may never be. Dropping it kills and reaps it.
struct Starting {
    child: Option<Child>,
}

impl Starting {
    fn spawn(mut command: Command) -> Starting {
        let child = Some(command.spawn().unwrap());
        Starting { child }
    }

    #[track_caller]
    fn signal(&mut self, signal: i32) {
        let child = self.child.as_mut().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        // SAFETY: kill takes no pointers; the child is not reaped yet, so the id is its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    }

    #[track_caller]
    fn wait(mut self) -> Ended {
        let child = self.child.as_mut().unwrap();
        eventually("it ends", || child.try_wait().unwrap().is_some());
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A gateway that waits for this Redis as long as it must, on an address that no other test has.
fn with_redis(redis: &Redis) -> (SocketAddr, Command) {
    let host = [127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)];
    let addr = SocketAddr::from((host, 8080));
    let mut gateway = command(PROGRAM);
    gateway.args(["--listen", &addr.to_string(), "--shards", "2", "--cpus", "none"]);
    gateway.args(["--redis-url", &redis.url(), "--redis-start-timeout", "10m"]);
    (addr, gateway)
}

#[track_caller]
fn assert_nobody_listens(addr: SocketAddr) {
    let error = TcpStream::connect(addr).expect_err("somebody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// Until Redis is there and lets it in, a gateway takes no connection that it could not serve.
#[test]
fn nobody_listens_before_redis_is_there() {
    let mut redis = Redis::not_yet(&[("min-replicas-to-write", "1")]);
    let (addr, mut command) = with_redis(&redis);
    let notified = Notified::new();
    command.env("NOTIFY_SOCKET", notified.path());
    let assert_not_ready = || {
        assert_nobody_listens(addr);
        notified.expect_nothing();
    };
    assert_not_ready();
    let door = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| Gateway::try_spawn(command));
        // Somebody who takes connections, and says nothing; then nobody at all.
        let silent = door.accept().unwrap();
        assert_not_ready();
        drop((silent, door));
        assert_not_ready();
        // A Redis that is there, and refuses every write.
        redis.restart();
        wait_until_refused(&redis);
        assert_not_ready();
        redis.set_config("min-replicas-to-write", "0");
        let gateway = starting.join().unwrap().unwrap_or_else(|ended| panic!("{ended:#?}"));
        assert_eq!(gateway.addr, addr);
        assert_eq!(gateway.get("/readyz").status, 200);
        let mut alice = gateway.connect("alice");
        alice.send_message_expecting("bob", "1", "offline");
        assert!(notified.next().starts_with("READY=1"));
    });
}

/// Whatever it waits for, it does not wait for it after it was told to end.
#[test]
fn a_start_can_be_given_up() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for silent in [true, false] {
            let redis = Redis::not_yet(&[]);
            let door = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
            let (addr, command) = with_redis(&redis);
            let mut starting = Starting::spawn(command);
            // It waits now: for an answer that does not come, or for somebody to connect to.
            let held = (door.accept().unwrap(), door);
            let held = silent.then_some(held);
            starting.signal(signal);
            assert_given_up(&starting.wait());
            assert_nobody_listens(addr);
            drop(held);
        }
    }
}

/// The same where Redis is there, and does not let it in.
#[test]
fn a_start_that_is_refused_can_be_given_up() {
    let redis = Redis::with_config(&[("min-replicas-to-write", "1")]);
    let (addr, command) = with_redis(&redis);
    let mut starting = Starting::spawn(command);
    wait_until_refused(&redis);
    starting.signal(libc::SIGTERM);
    assert_given_up(&starting.wait());
    assert_nobody_listens(addr);
    assert_eq!(redis.keys(""), Vec::<String>::new());
}

/// Waits until a Redis has refused something without carrying it out.
#[track_caller]
fn wait_until_refused(redis: &Redis) {
    eventually("something was refused", || {
        let stats = redis.cmd(&["INFO", "commandstats"]).good().text();
        let mut counts = stats
            .lines()
            .filter_map(|line| line.split_once("rejected_calls=").map(|(_, rest)| rest));
        counts.any(|count| !count.starts_with("0,"))
    });
}

#[track_caller]
fn assert_given_up(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for word in ["panicked", "listening on", "Ready"] {
        assert!(!ended.stderr.contains(word), "{word}: {ended:#?}");
    }
    assert!(ended.stderr.contains("told to end while starting"), "{ended:#?}");
}
