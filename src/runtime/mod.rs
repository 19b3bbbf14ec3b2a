//! The host under the gateway: what it allows, where shards run, which sockets they listen on.
//!
//! Everything here happens once, on the starting thread, before the first shard exists.

pub mod admin;
pub mod listener;
pub mod preflight;

use std::net::SocketAddr;

/// Why a gateway did not start: one line with the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The kernel or a sandbox forbids io_uring, which the executor needs.
    #[error("io_uring is not available ({cause}): {remedy}")]
    NoIoUring {
        /// What the kernel said.
        cause: std::io::Error,
        /// What to change.
        remedy: &'static str,
    },
    /// `--engine ring`, and the kernel lacks what it needs.
    #[error("the ring engine cannot run here ({cause}): use Linux 6.1 or later, or --engine epoll")]
    NoRing {
        /// What is missing.
        cause: std::io::Error,
    },
    /// RLIMIT_MEMLOCK is too low for an executor.
    #[error(
        "RLIMIT_MEMLOCK is {available_kib} KiB, {needed_kib} KiB are needed per shard: raise it (LimitMEMLOCK= in the systemd unit, memlock in limits.conf)"
    )]
    Memlock {
        /// The limit now.
        available_kib: u64,
        /// What an executor insists on.
        needed_kib: u64,
    },
    /// RLIMIT_NOFILE leaves no room for connections.
    #[error(
        "RLIMIT_NOFILE is {available}, {needed} are needed before the first connection: raise it (LimitNOFILE= in the systemd unit, nofile in limits.conf)"
    )]
    Nofile {
        /// The limit now.
        available: u64,
        /// What the gateway itself uses.
        needed: u64,
    },
    /// More connections were asked for than the host permits.
    #[error(
        "limits.connections is {wanted}, but RLIMIT_NOFILE {nofile} permits {possible}: lower it, or raise nofile (LimitNOFILE= in the systemd unit)"
    )]
    TooManyConnections {
        /// What was asked for.
        wanted: usize,
        /// What is possible.
        possible: usize,
        /// The hard limit.
        nofile: u64,
    },
    /// A CPU was asked for that this process may not use.
    #[error(
        "cpus names CPU {cpu}, but this process may use only {allowed}: change cpus, or the affinity (taskset, cpuset)"
    )]
    Cpu {
        /// Which CPU.
        cpu: usize,
        /// The allowed ones.
        allowed: String,
    },
    /// The address is taken.
    #[error(
        "{addr} is in use, by another program or another shardgate: stop it, or choose another address with --listen"
    )]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be bound for another reason.
    #[error("cannot listen on {addr}: {cause}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The certificate, its key or the clients' authorities are no good.
    #[error("no TLS: {0}")]
    Tls(#[from] crate::tls::CertificatesError),
    /// Somebody else listens on `admin.listen`.
    #[error("admin.listen = {listen} is in use, by another program or another shardgate: stop it, or choose another")]
    AdminInUse {
        /// Where.
        listen: String,
    },
    /// `admin.listen` cannot be bound for another reason.
    #[error("cannot listen on admin.listen = {listen}: {cause}")]
    AdminListen {
        /// Where.
        listen: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A list that shards cannot go by.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
    /// A thread could not be started.
    #[error("cannot start shard {shard}: {cause}")]
    Shard {
        /// Which shard.
        shard: u16,
        /// What broke.
        cause: String,
    },
    /// Redis did not let us in within `redis.start_timeout`.
    #[error("{cause} (waited {waited:?}): start Redis, correct redis.url, or raise redis.start_timeout")]
    NoRedis {
        /// What Redis said, or what became of asking.
        cause: String,
        /// `redis.start_timeout`.
        waited: std::time::Duration,
    },
    /// No keys came from the JWKS URL.
    #[error("no keys from {url}: {cause} (waited {waited:?}): start the server, or correct auth.jwks_url")]
    NoKeys {
        /// The URL, as it may be shown.
        url: String,
        /// What the last try brought.
        cause: String,
        /// How long it was tried.
        waited: std::time::Duration,
    },
    /// A gateway with the same id lives.
    #[error(
        "another gateway with the id {id:?} is alive in this cluster: stop it, or choose another id with --gateway-id"
    )]
    IdTaken {
        /// The id.
        id: String,
    },
    /// Gateways that divide channels differently do not hear each other's publications.
    #[error(
        "gateway {other:?} of this cluster has channels.partitions = {theirs}, this one {ours}: give all the same number, or another redis.prefix"
    )]
    Partitions {
        /// Another gateway.
        other: String,
        /// Its number.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// Its handle was told to end it.
    #[error("told to end while starting")]
    GivenUp,
    /// Something the system should always grant.
    #[error("{what}: {cause}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        cause: std::io::Error,
    },
}
