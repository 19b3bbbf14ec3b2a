//! The host under the gateway: its limits, the CPUs of shards, and the sockets they listen on.
//!
//! Everything here happens once, on the starting thread, before the first shard exists.

pub mod admin;
pub mod claim;
pub mod cpus;
pub mod listener;
pub mod preflight;
mod unix;

use std::fmt;
use std::io;

use claim::Holder;
use cpus::counted;
use preflight::ring_remedy;
pub use unix::SocketFile;

use crate::config::Listen;

/// Why a gateway did not start: one line with the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The kernel or a sandbox forbids io_uring, which the executor needs.
    #[error("io_uring is not available ({cause}): {}", ring_remedy(.cause))]
    NoIoUring {
        /// The kernel's error.
        cause: io::Error,
    },
    /// `--engine ring`, and the kernel lacks what it needs.
    #[error("the ring engine cannot run here ({cause}): {}, or --engine epoll", ring_remedy(.cause))]
    NoRing {
        /// The kernel's error, or the missing feature.
        cause: io::Error,
    },
    /// RLIMIT_MEMLOCK is too low for the rings of all shards.
    #[error(transparent)]
    Memlock(Needed),
    /// RLIMIT_NOFILE leaves no room for connections.
    #[error(
        "RLIMIT_NOFILE is {available}, {needed} are needed before the first connection: raise it (LimitNOFILE= in the systemd unit, nofile in limits.conf)"
    )]
    Nofile {
        /// The limit now.
        available: u64,
        /// Descriptors that the gateway itself uses.
        needed: u64,
    },
    /// More connections were asked for than the host permits.
    #[error(
        "limits.connections is {wanted}, but RLIMIT_NOFILE {nofile} permits {possible}: lower it, or raise nofile (LimitNOFILE= in the systemd unit)"
    )]
    TooManyConnections {
        /// The configured number.
        wanted: usize,
        /// The possible number.
        possible: usize,
        /// The hard limit.
        nofile: u64,
    },
    /// A CPU was asked for that this process may not use.
    #[error(
        "{key} names CPU {cpu}, but this process may use only {allowed}: change {key}, or the affinity (taskset, cpuset)"
    )]
    Cpu {
        /// `cpus` or `control_cpu`.
        key: &'static str,
        /// Which CPU.
        cpu: usize,
        /// The allowed ones.
        allowed: String,
    },
    /// The address is taken.
    #[error("{at} is in use by {holder}: stop it, or choose another address with --listen")]
    AddressInUse {
        /// The address.
        at: Listen,
        /// The process that has it, as far as it can be seen.
        holder: Holder,
    },
    /// The address cannot be bound for another reason.
    #[error("cannot listen on {at}: {cause}{}", bind_remedy(.cause))]
    Listen {
        /// The address.
        at: Listen,
        /// The kernel's error.
        cause: io::Error,
    },
    /// A name that points nowhere.
    #[error("{key} names {name}, which has no address ({cause}): correct it, or give an IP address")]
    Unresolved {
        /// `listen` or `admin.listen`.
        key: &'static str,
        /// The name.
        name: String,
        /// The resolver's error.
        cause: io::Error,
    },
    /// A name that is reserved for this host points elsewhere, and any client could be any user.
    #[error(
        "listen = {name} is {at}, which is not a loopback address, and without a key the gateway runs in development mode: \
         configure a key (auth.key or auth.jwks_url, with auth.algorithm), listen on 127.0.0.1, or say --insecure if you mean it"
    )]
    OpenDevelopmentMode {
        /// As configured.
        name: Listen,
        /// Where it points.
        at: Listen,
    },
    /// The certificate, its key or the clients' authorities cannot be used.
    #[error("no TLS: {0}")]
    Tls(#[from] crate::tls::CertificatesError),
    /// Another process listens on `admin.listen`.
    #[error("admin.listen = {listen} is in use by {holder}: stop it, or choose another")]
    AdminInUse {
        /// Where.
        listen: String,
        /// The process that has it, as far as it can be seen.
        holder: Holder,
    },
    /// `admin.listen` cannot be bound for another reason.
    #[error("cannot listen on admin.listen = {listen}: {cause}{}", bind_remedy(.cause))]
    AdminListen {
        /// Where.
        listen: String,
        /// The system's error.
        cause: io::Error,
    },
    /// A list that shards cannot use.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
    /// A shard's thread, its rings or its engine could not be made.
    #[error("cannot start shard {shard}: {cause}{}", shard_remedy(.cause))]
    Shard {
        /// Which shard.
        shard: u16,
        /// The error.
        cause: io::Error,
    },
    /// A limit leaves no room for the threads of all shards.
    #[error("cannot start {count} threads, which {} need: {cause}{}", counted(*shards, "shard"), limit_remedy(.cause))]
    Threads {
        /// How many there will be.
        count: usize,
        /// How many shards.
        shards: usize,
        /// The kernel's error.
        cause: io::Error,
    },
    /// Redis did not accept us within `redis.start_timeout`.
    #[error("{cause} (waited {waited:?}): start Redis, correct redis.url, or raise redis.start_timeout")]
    NoRedis {
        /// The reply of Redis, or the error of the request.
        cause: String,
        /// `redis.start_timeout`.
        waited: std::time::Duration,
    },
    /// No keys came from the JWKS URL.
    #[error("no keys from {url}: {cause} (waited {waited:?}): start the server, or correct auth.jwks_url")]
    NoKeys {
        /// The URL, as it may be shown.
        url: String,
        /// The error of the last try.
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
    /// Gateways that divide channels differently do not receive each other's publications.
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
    /// Its handle ended it.
    #[error("told to end while starting")]
    GivenUp,
    /// Something the system should always grant.
    #[error("{what}: {cause}{}", limit_remedy(.cause))]
    System {
        /// The operation that failed.
        what: &'static str,
        /// The kernel's error.
        cause: io::Error,
    },
}

/// How much memlock there is, and how much all shards need.
#[derive(Debug)]
pub struct Needed {
    /// The limit now.
    pub available_kib: u64,
    /// The part of it that `shards` take.
    pub needed_kib: u64,
    /// How many there shall be.
    pub shards: usize,
    /// With the ring engine, which takes more.
    pub with_rings: bool,
}

impl std::error::Error for Needed {}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RLIMIT_MEMLOCK is {} KiB, and io_uring needs {} KiB for {}, besides what other processes of this user have of it: \
             raise it (LimitMEMLOCK= in the systemd unit, memlock in limits.conf)",
            self.available_kib,
            self.needed_kib,
            counted(self.shards, "shard")
        )?;
        if self.with_rings {
            f.write_str(", or use fewer shards or --engine epoll")?;
        }
        Ok(())
    }
}

/// The remedy for an address that cannot be bound, with a colon before it; empty where the kernel's
/// error is enough.
fn bind_remedy(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EACCES) => {
            ": a port below 1024 needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in the systemd unit, or the sysctl \
             net.ipv4.ip_unprivileged_port_start), and the folder of a Unix socket must be writable"
        }
        Some(libc::EADDRNOTAVAIL) => {
            ": no interface of this host has that address (see ip address); 0.0.0.0 and [::] listen on all there are"
        }
        Some(libc::EAFNOSUPPORT) => ": this host does not speak that family of addresses (is IPv6 switched off?)",
        Some(libc::ENOENT | libc::ENOTDIR) => {
            ": its folder does not exist (RuntimeDirectory= in the systemd unit makes one)"
        }
        _ => "",
    }
}

/// The remedy for a limit that a thread or a descriptor ran into, with a colon before it.
#[must_use]
pub fn limit_remedy(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(libc::EAGAIN | libc::EMFILE | libc::ENFILE) => format!(": {}", ring_remedy(cause)),
        _ => String::new(),
    }
}

/// The remedy for a shard that cannot be started, with a colon before it.
fn shard_remedy(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(_) => format!(": {}", ring_remedy(cause)),
        None => String::new(),
    }
}
