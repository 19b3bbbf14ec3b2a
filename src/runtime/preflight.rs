//! What this host allows, looked at before anything is opened.

use std::collections::BTreeSet;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::StartError;
use crate::config::{Config, EngineChoice, Placement};
use crate::engine::{Engine, RingEngine};

/// What glommio insists on per executor.
const MEMLOCK_BYTES_MIN: u64 = 512 * 1024;
/// Descriptors besides connections: logs, listeners, rings, eventfds, and room for clients that are refused politely.
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

/// What the host allows this gateway.
#[derive(Debug, Clone)]
pub struct Host {
    /// The CPU of each shard, `None` where it is not pinned.
    pub cpus: Vec<Option<usize>>,
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
    raise(Resource::Memlock);
    let memlock = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    if memlock < MEMLOCK_BYTES_MIN {
        return Err(StartError::Memlock {
            available_kib: memlock / 1024,
            needed_kib: MEMLOCK_BYTES_MIN / 1024,
        });
    }
    let engine = choose_engine(config.engine)?;
    let cpus = place(config)?;
    raise(Resource::Nofile);
    let nofile = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let reserve = FILES_RESERVED + FILES_PER_SHARD * cpus.len() as u64;
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
    log::info!(
        "{} shards, {} engine, room for {connections_max} connections (nofile {nofile})",
        cpus.len(),
        match engine {
            EngineKind::Ring => "ring",
            EngineKind::Epoll => "epoll",
        },
    );
    Ok(Host {
        cpus,
        engine,
        connections_max,
        connections_possible: possible,
    })
}

/// Raises a soft limit to its hard one. Failing is not an error here: what counts is the limit afterwards.
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

/// glommio panics without io_uring, so it is asked for first.
fn check_io_uring() -> Result<(), StartError> {
    io_uring::IoUring::new(4).map(drop).map_err(|cause| {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        let remedy = match (cause.raw_os_error(), disabled.trim()) {
            (_, "1" | "2") => "set the sysctl kernel.io_uring_disabled to 0",
            (Some(libc::ENOSYS), _) => "use Linux 6.1 or later, or a sandbox (seccomp profile) that allows io_uring",
            (Some(libc::EPERM | libc::EACCES), _) => "let the sandbox (seccomp profile, LSM) allow io_uring_setup",
            (Some(libc::ENOMEM), _) => "raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the systemd unit)",
            (Some(libc::EMFILE | libc::ENFILE), _) => "raise the limit of open files",
            _ => "use Linux 6.1 or later",
        };
        StartError::NoIoUring { cause, remedy }
    })
}

fn choose_engine(choice: EngineChoice) -> Result<EngineKind, StartError> {
    if choice == EngineChoice::Epoll {
        return Ok(EngineKind::Epoll);
    }
    match try_ring() {
        Ok(()) => Ok(EngineKind::Ring),
        Err(cause) if choice == EngineChoice::Ring => Err(StartError::NoRing { cause }),
        Err(cause) => {
            log::warn!("using the epoll engine: {cause}");
            Ok(EngineKind::Epoll)
        }
    }
}

/// Makes a ring engine and lets it go: the only way to know is to try. It listens where nobody can connect by chance.
fn try_ring() -> io::Result<()> {
    let name = format!("shardgate/probe/{}/{:x}", std::process::id(), getrandom::u64()?);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    RingEngine::new(listener.into()).map(drop)
}

/// The CPUs that this process may use.
///
/// # Errors
/// The kernel does not say.
pub fn allowed_cpus() -> Result<BTreeSet<usize>, StartError> {
    let set = rustix::thread::sched_getaffinity(None).map_err(|cause| StartError::System {
        what: "cannot read the CPU affinity",
        cause: cause.into(),
    })?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn place(config: &Config) -> Result<Vec<Option<usize>>, StartError> {
    let allowed = allowed_cpus()?;
    let shards = config.shards.unwrap_or(match &config.cpus {
        Placement::Cpus(cpus) => cpus.len(),
        Placement::FirstAllowed | Placement::Unpinned => allowed.len().max(1),
    });
    let check = |cpu: usize| {
        if allowed.contains(&cpu) {
            return Ok(());
        }
        let allowed: Vec<String> = allowed.iter().map(usize::to_string).collect();
        Err(StartError::Cpu {
            cpu,
            allowed: allowed.join(","),
        })
    };
    if let Some(cpu) = config.control_cpu {
        check(cpu)?;
    }
    match &config.cpus {
        Placement::Unpinned => Ok(vec![None; shards]),
        Placement::Cpus(cpus) => {
            let used = &cpus[..shards.min(cpus.len())];
            used.iter().try_for_each(|cpu| check(*cpu))?;
            Ok(used.iter().copied().map(Some).collect())
        }
        Placement::FirstAllowed if shards > allowed.len() => {
            log::warn!(
                "{shards} shards on {} CPUs: not pinning them; one shard per CPU is best",
                allowed.len()
            );
            Ok(vec![None; shards])
        }
        Placement::FirstAllowed => Ok(allowed.iter().take(shards).copied().map(Some).collect()),
    }
}
