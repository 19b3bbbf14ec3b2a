//! The host's limits: memory, descriptors, threads, system calls.

use std::process::Command;

use super::{PROGRAM, as_user, assert_refused, nobody, shell};
use crate::common::Gateway;
use crate::common::gateway::{command, run_command};

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

/// As above, where nothing but the rings themselves can tell: what a first gateway of the same user
/// has is not to be seen.
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
        // SAFETY: prctl with integers; `filter` and the program it points to outlive the second
        // call, which copies them.
        unsafe {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only prctl is called, which allocates nothing and takes no
    // lock.
    unsafe { command.pre_exec(install) };
}

#[test]
fn no_io_uring() {
    let mut sandboxed = command(PROGRAM);
    sandboxed.args(["--listen", "127.0.0.1:0"]);
    forbid(&mut sandboxed, &[libc::SYS_io_uring_setup]);
    assert_refused(&run_command(sandboxed), 1, &["io_uring is not available", "seccomp"]);
}
