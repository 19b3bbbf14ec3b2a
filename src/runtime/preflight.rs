//! The limits of this host, looked at before anything is opened.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::cpus::{self, Pinning, counted};
use super::{Needed, StartError};
use crate::config::{Config, EngineChoice, OnHost};
use crate::engine::{EpollEngine, RingEngine, SystemEngine};
use crate::settings::HANDSHAKES_PER_SHARD;

/// The least that glommio insists on, however many executors there are.
const MEMLOCK_KIB_MIN: u64 = 512;
/// Memlock that the rings of one shard take with each engine, measured on Linux 6.18 and rounded
/// up: the executor's three rings and their buffers, and the ring engine's own.
const MEMLOCK_KIB_PER_RING: u64 = 640;
const MEMLOCK_KIB_PER_EPOLL: u64 = 256;
/// The first Linux that counts the memory of rings against memlock again, and not only registered
/// buffers.
const RINGS_ARE_COUNTED_SINCE: (u32, u32) = (6, 14);
/// In `CapEff`: a process that has it is not limited.
const CAP_IPC_LOCK: u32 = 14;
/// Descriptors besides connections: logs, listeners, rings, eventfds, and room for clients that are
/// refused politely.
const FILES_RESERVED: u64 = 100;
/// Descriptors of one shard: listener, two rings and the executor's three, eventfds, duplicates.
const FILES_PER_SHARD: u64 = 24;

/// Which engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring
    Ring,
    /// epoll
    Epoll,
}

impl EngineKind {
    /// Its name in metrics and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Ring => RingEngine::NAME,
            EngineKind::Epoll => EpollEngine::NAME,
        }
    }
}

/// The limits of the host for this gateway.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where shards run.
    pub pinning: Pinning,
    /// The engine.
    pub engine: EngineKind,
    /// Connections that are allowed: `limits.connections`, or all that fit.
    pub connections_max: usize,
    /// Connections that fit.
    pub connections_possible: usize,
}

/// Looks at the host and raises soft limits.
///
/// # Errors
/// The first thing that keeps the gateway from running, with its remedy.
pub fn inspect(config: &Config) -> Result<Host, StartError> {
    check_io_uring()?;
    let pinning = cpus::plan(config)?;
    let shards = pinning.cpus.len();
    check_threads(shards)?;
    raise(Resource::Memlock);
    let engine = choose_engine(config.engine, shards)?;
    raise(Resource::Nofile);
    let nofile = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let reserve = reserve(shards);
    let possible = nofile.saturating_sub(reserve) as usize;
    if possible == 0 {
        return Err(StartError::Nofile {
            available: nofile,
            needed: reserve,
        });
    }
    let connections_max = config.limits.connections.unwrap_or(possible);
    if connections_max > possible {
        return Err(StartError::TooManyConnections {
            wanted: connections_max,
            possible,
            nofile,
        });
    }
    if let Some(remark) = &pinning.remark {
        log::warn!("{remark}");
    }
    log::info!(
        "{}, {} engine, room for {} (nofile {nofile})",
        counted(shards, "shard"),
        engine.name(),
        counted(connections_max, "connection"),
    );
    Ok(Host {
        pinning,
        engine,
        connections_max,
        connections_possible: possible,
    })
}

/// The values that a start would find, for a check before it. Changes nothing.
///
/// # Errors
/// A key names a CPU that this process may not use.
pub fn foresee(config: &Config) -> Result<OnHost, StartError> {
    let cpus = cpus::plan(config)?.cpus;
    let nofile = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    Ok(OnHost {
        connections: nofile.saturating_sub(reserve(cpus.len())) as usize,
        handshakes: cpus.len() * HANDSHAKES_PER_SHARD,
        cpus,
    })
}

/// Descriptors that no connection gets.
fn reserve(shards: usize) -> u64 {
    FILES_RESERVED + FILES_PER_SHARD * shards as u64
}

/// Raises a soft limit to its hard one. Failing is not an error here: what counts is the limit
/// afterwards.
fn raise(resource: Resource) {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let _ = setrlimit(
        resource,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

/// An executor starts a thread besides its own, and panics without it. So as many threads as there
/// will be are started here first. The limits of the cgroup, of the user and of the kernel are too
/// many to compute.
fn check_threads(shards: usize) -> Result<(), StartError> {
    const BESIDES: usize = 4;
    let count = 2 * shards + BESIDES;
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let start = |_| {
        let held = held.clone();
        let thread = std::thread::Builder::new().stack_size(64 * 1024);
        thread.spawn(move || {
            let _ = held.recv();
        })
    };
    let started: Vec<_> = (0..count).map(start).collect();
    drop(release);
    let ended = started
        .into_iter()
        .map(|thread| thread.map(|thread| drop(thread.join())));
    // All of them end, also those behind the one that could not be started.
    let failed = ended.collect::<Vec<_>>().into_iter().find_map(Result::err);
    failed.map_or(Ok(()), |cause| Err(StartError::Threads { count, shards, cause }))
}

/// glommio panics without io_uring, so it is asked for first.
fn check_io_uring() -> Result<(), StartError> {
    io_uring::IoUring::new(4)
        .map(drop)
        .map_err(|cause| StartError::NoIoUring { cause })
}

/// The remedy for a ring that cannot be made, by the kernel's error; each errno has several causes,
/// and a file.
pub(super) fn ring_remedy(cause: &io::Error) -> &'static str {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (cause.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM | libc::EACCES), "1" | "2") => "set the sysctl kernel.io_uring_disabled to 0",
        (Some(libc::EPERM | libc::EACCES), _) => {
            "let the sandbox (seccomp profile, LSM) allow io_uring_setup, io_uring_enter and io_uring_register"
        }
        (Some(libc::ENOSYS), _) => "use Linux 6.1 or later, or a sandbox (seccomp profile) that allows io_uring",
        (Some(libc::ENOMEM), _) => {
            "raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the systemd unit), which all processes of this user share, or the memory of the cgroup"
        }
        (Some(libc::EMFILE), _) => "raise RLIMIT_NOFILE (LimitNOFILE= in the systemd unit, nofile in limits.conf)",
        (Some(libc::ENFILE), _) => "raise the sysctl fs.file-max",
        (Some(libc::EAGAIN), _) => {
            "allow more threads (TasksMax= in the systemd unit, pids.max of the cgroup, nproc in limits.conf)"
        }
        _ => "use Linux 6.1 or later",
    }
}

fn choose_engine(choice: EngineChoice, shards: usize) -> Result<EngineKind, StartError> {
    let memlock = Memlock::now();
    if memlock.limit_kib < MEMLOCK_KIB_MIN {
        return Err(memlock.too_little(shards, choice != EngineChoice::Epoll));
    }
    if choice == EngineChoice::Epoll {
        return Ok(EngineKind::Epoll);
    }
    let trouble = if memlock.holds_rings(shards) {
        try_ring().err().map(|cause| StartError::NoRing { cause })
    } else {
        Some(memlock.too_little(shards, true))
    };
    match trouble {
        None => Ok(EngineKind::Ring),
        Some(error) if choice == EngineChoice::Ring => Err(error),
        Some(error) => {
            log::warn!("using the epoll engine: {error}");
            Ok(EngineKind::Epoll)
        }
    }
}

/// The memlock that a start needed and did not get, although the check passed. Another process of
/// this user has taken some. It is a second gateway, say, or one that has just ended and whose
/// rings the kernel still takes down.
pub fn out_of_memlock(engine: EngineKind, shards: usize) -> StartError {
    Memlock::now().too_little(shards, engine == EngineKind::Ring)
}

/// RLIMIT_MEMLOCK, and whether we are held to it.
struct Memlock {
    limit_kib: u64,
    rings_are_counted: bool,
}

impl Memlock {
    fn now() -> Memlock {
        let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let kernel = rustix::system::uname();
        Memlock {
            limit_kib: limit / 1024,
            rings_are_counted: !is_exempt(&status, &users)
                && version(&kernel.release().to_string_lossy()).is_some_and(|linux| linux >= RINGS_ARE_COUNTED_SINCE),
        }
    }

    fn holds_rings(&self, shards: usize) -> bool {
        !self.rings_are_counted || self.limit_kib >= shards as u64 * MEMLOCK_KIB_PER_RING
    }

    fn too_little(&self, shards: usize, with_rings: bool) -> StartError {
        let per_shard = match (self.rings_are_counted, with_rings) {
            (false, _) => 0,
            (true, true) => MEMLOCK_KIB_PER_RING,
            (true, false) => MEMLOCK_KIB_PER_EPOLL,
        };
        StartError::Memlock(Needed {
            available_kib: self.limit_kib,
            needed_kib: MEMLOCK_KIB_MIN.max(shards as u64 * per_shard),
            shards,
            with_rings,
        })
    }
}

/// True if memlock does not bind us: CAP_IPC_LOCK, and not only within a user namespace.
fn is_exempt(status: &str, uid_map: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let on_the_host = uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
    on_the_host && effective.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

/// `6.18.44-fc` is (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Makes a ring engine and drops it: only a try tells. It listens where no client can connect by
/// chance.
fn try_ring() -> io::Result<()> {
    let name = format!("shardgate/probe/{}/{:x}", std::process::id(), getrandom::u64()?);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    RingEngine::new(listener.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_count_on_the_host_only() {
        let status = |set: &str| format!("Name:\tshardgate\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\n");
        let host = "         0          0 4294967295\n";
        assert!(is_exempt(&status("000001ffffffffff"), host));
        assert!(is_exempt(&status("0000000000004000"), host));
        assert!(!is_exempt(&status("000001ffffffbfff"), host));
        assert!(!is_exempt(&status("0000000000000000"), host));
        assert!(!is_exempt(&status("000001ffffffffff"), "0 1000 1\n"));
        assert!(!is_exempt("", ""));
    }

    #[test]
    fn versions_of_the_kernel() {
        assert_eq!(version("6.18.44-fc-v857"), Some((6, 18)));
        assert_eq!(version("6.1.0-37-amd64"), Some((6, 1)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn memlock_is_asked_for_all_shards() {
        let memlock = |limit_kib, rings_are_counted| Memlock {
            limit_kib,
            rings_are_counted,
        };
        assert!(memlock(8192, true).holds_rings(12));
        assert!(!memlock(8192, true).holds_rings(16));
        assert!(memlock(8192, false).holds_rings(256));
        let words = memlock(8192, true).too_little(16, true).to_string();
        for word in [
            "RLIMIT_MEMLOCK is 8192 KiB",
            "10240 KiB",
            "16 shards",
            "LimitMEMLOCK=",
            "--engine epoll",
        ] {
            assert!(words.contains(word), "{word:?} not in {words:?}");
        }
        let words = memlock(64, false).too_little(1, false).to_string();
        assert!(
            words.contains("512 KiB") && words.contains("1 shard") && !words.contains("--engine"),
            "{words}"
        );
    }
}
