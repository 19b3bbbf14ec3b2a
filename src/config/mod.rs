//! Configuration: flags over environment over TOML file over defaults, checked before anything is opened.

use std::net::SocketAddr;
use std::time::Duration;

/// Everything that the gateway was told, checked and with defaults filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the public listener; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Socket engine.
    pub engine: EngineChoice,
    /// Serve `/echo`.
    pub echo: bool,
    /// Development mode away from loopback was asked for by name.
    pub insecure: bool,
    /// Unique name of this gateway in the cluster.
    pub gateway_id: String,
    /// Number of shards, at least 1; `None`: one per allowed CPU.
    pub shards: Option<usize>,
    /// Where shards are pinned.
    pub cpus: Placement,
    /// CPU of the control thread.
    pub control_cpu: Option<usize>,
    /// Accept queue length of each listener, connections.
    pub listen_backlog: u32,
    /// Log level: `error`, `warn`, `info`, `debug`, `trace`.
    pub log_level: log::LevelFilter,
    /// Allowed `Origin` values; empty: same origin only.
    pub origins: Vec<String>,
    /// Limits on what one client, one user and all of them may take.
    pub limits: Limits,
    /// Heartbeat times.
    pub heartbeat: Heartbeat,
    /// Time to show a credential after the handshake.
    pub auth_timeout: Duration,
    /// How long a drain may last.
    pub drain_timeout: Duration,
}

/// Which socket engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// The ring where the kernel can, else epoll.
    Auto,
    /// io_uring, or refuse to start.
    Ring,
    /// epoll.
    Epoll,
}

/// Where shards are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The first allowed CPUs.
    FirstAllowed,
    /// These CPUs, shard by shard.
    Cpus(Vec<usize>),
    /// No pinning.
    Unpinned,
}

/// Limits; every one has a unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// WebSocket connections of this gateway; `None`: what nofile permits, less a reserve.
    pub connections: Option<usize>,
    /// Bytes of one client message.
    pub message_bytes: usize,
    /// Bytes that may wait for one slow consumer.
    pub outbox_bytes: usize,
    /// Channels that one connection may subscribe to.
    pub channels_per_connection: usize,
    /// Frames per second that one connection may send; 0: no limit.
    pub messages_per_second: u32,
    /// Frames that one connection may send at once.
    pub burst: u32,
    /// Connections of one user on this gateway; 0: no limit.
    pub connections_per_user: usize,
    /// Handshakes per second on this gateway; 0: no limit.
    pub handshakes_per_second: u32,
    /// Time to finish a request head.
    pub handshake_timeout: Duration,
    /// Bytes of one request head.
    pub header_bytes: usize,
}

/// Heartbeat times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// A silent connection is pinged this often.
    pub interval: Duration,
    /// A connection silent for this long is closed.
    pub timeout: Duration,
}
