//! The configuration as the rest of the program sees it: every value checked, and with its default.
//! Pure.

use std::path::PathBuf;
use std::time::Duration;

use super::admin::AdminConfig;
use super::listen::Listen;
use super::redis_url::RedisTarget;
use super::secret::Secret;
use crate::jws::{Algorithm, ShortSecret, VerifyingKey};

/// The whole configuration of the gateway, checked and with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients are listened to.
    pub listen: Listen,
    /// Socket engine.
    pub engine: EngineChoice,
    /// Serve `/echo`.
    pub echo: bool,
    /// Development mode away from loopback was asked for by name.
    pub insecure: bool,
    /// Unique name of this gateway in the cluster.
    pub gateway_id: String,
    /// Number of shards, at least 1 and at most as many as `cpus` lists; `None`: one per allowed
    /// CPU.
    pub shards: Option<usize>,
    /// Where shards are pinned.
    pub cpus: Placement,
    /// CPU of the control thread.
    pub control_cpu: Option<usize>,
    /// Accept queue length of each listener, connections.
    pub listen_backlog: u32,
    /// Log level: `off`, `error`, `warn`, `info`, `debug`, `trace`.
    pub log_level: log::LevelFilter,
    /// Form of the log's lines.
    pub log_format: LogFormat,
    /// Allowed `Origin` values, good for
    /// [`OriginPolicy::parse`](super::origins::OriginPolicy::parse); empty: same origin only.
    pub origins: Vec<String>,
    /// Addresses and networks of proxies, good for
    /// [`Networks::parse`](crate::address::networks::Networks::parse).
    pub proxies: Vec<String>,
    /// Limits on what one client, one user and all of them may take.
    pub limits: Limits,
    /// Heartbeat times.
    pub heartbeat: Heartbeat,
    /// Time to show a credential after the handshake.
    pub auth_timeout: Duration,
    /// How users show who they are.
    pub auth: AuthConfig,
    /// Permissions of channels, and how channels are spread.
    pub channels: ChannelsConfig,
    /// Permissions to write to users, and to see them.
    pub messages: MessagesConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// The end of this gateway.
    pub drain: DrainConfig,
    /// TLS on the public listener; `None`: plain text.
    pub tls: Option<TlsFiles>,
    /// Redis; `None`: one gateway, embedded presence.
    pub redis: Option<RedisConfig>,
    /// The longest that a user can still look online after their gateway died.
    pub presence_ttl: Duration,
}

impl Config {
    /// Development mode without `--insecure`: good for one machine.
    pub(super) fn is_open(&self) -> bool {
        self.auth.is_development() && !self.insecure
    }
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
    /// Bytes of the names of all channels that one connection subscribes to.
    pub channel_name_bytes: usize,
    /// Frames of any kind per second that one connection may send; 0: no limit.
    pub messages_per_second: u32,
    /// Frames that one connection may send at once.
    pub burst: u32,
    /// Connections of one user on this gateway; 0: no limit.
    pub connections_per_user: usize,
    /// Handshakes per second on this gateway; 0: no limit.
    pub handshakes_per_second: u32,
    /// Sockets of this gateway that are no WebSocket connections.
    pub handshakes: Option<usize>,
    /// Connections of one address that have not finished their handshake, on each shard; 0: no
    /// limit.
    pub handshakes_per_address: u32,
    /// Connects per second of one address, on each shard; 0: no limit.
    pub connects_per_address: u32,
    /// Time to finish a request head.
    pub handshake_timeout: Duration,
    /// Bytes of one request head.
    pub header_bytes: usize,
}

/// Permissions of channels, and how channels are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelsConfig {
    /// Channels that every user may subscribe to, good for
    /// [`Patterns::parse`](super::patterns::Patterns::parse); `None`: not set, empty: nothing.
    pub subscribe: Option<Vec<String>>,
    /// Channels that every user may publish to; as `subscribe`.
    pub publish: Option<Vec<String>>,
    /// Number of partitions between gateways; the same on all gateways of a cluster.
    pub partitions: u16,
}

/// Permissions to write to users and to see them, for tokens that list none. Good for
/// [`Patterns::parse`](super::patterns::Patterns::parse).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessagesConfig {
    /// Users that every user may write to.
    pub send: Vec<String>,
    /// Users of whom every user may know whether they are there.
    pub presence: Vec<String>,
}

/// PEM files for TLS on the public listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, the gateway's own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities that must have signed the clients' certificates; `None`: clients need none.
    pub client_ca: Option<PathBuf>,
}

/// How gateways are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Where it is, with `redis.ca`.
    pub target: RedisTarget,
    /// How long to wait for it at start.
    pub start_timeout: Duration,
    /// Prefix of every key and channel.
    pub prefix: String,
    /// `cluster.key`: the first signs packets, each is believed; empty: none is asked for.
    pub keys: Vec<Secret>,
}

/// Form of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How a gateway ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// How long a drain may last.
    pub timeout: Duration,
    /// At most this many connections are told to go per second; 0: no limit.
    pub per_second: u32,
}

/// Heartbeat times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// A silent connection is pinged this often.
    pub interval: Duration,
    /// A connection silent for this long is closed.
    pub timeout: Duration,
}

/// How users show who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Where keys come from.
    pub source: CredentialSource,
    /// The algorithms that are accepted, each once; none in development mode.
    pub algorithms: Vec<Algorithm>,
    /// The `iss` that a token must have.
    pub issuer: Option<String>,
    /// A token must be for one of these; empty: for any audience.
    pub audience: Vec<String>,
    /// Tolerated difference of clocks.
    pub leeway: Duration,
    /// Name of the cookie that carries a token.
    pub cookie: String,
    /// A handshake without a token is refused.
    pub required_at_handshake: bool,
    /// A token without `exp` is refused.
    pub require_exp: bool,
    /// Browsers whose credential is refused get a close code instead of an HTTP status.
    pub browser_close: bool,
    /// User ids may have format characters and outer spaces.
    pub any_user_id: bool,
}

/// Where the keys come from that tokens are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// Nowhere: users name themselves.
    Development,
    /// The configuration.
    Key(Secret),
    /// This URL, again and again.
    Jwks(String),
}

impl AuthConfig {
    /// True if users name themselves.
    #[must_use]
    pub fn is_development(&self) -> bool {
        self.source == CredentialSource::Development
    }

    /// The algorithm for which the key is a secret that is too short, if there is one.
    #[must_use]
    pub fn short_secret(&self) -> Option<ShortSecret> {
        let CredentialSource::Key(key) = &self.source else {
            return None;
        };
        let keys = VerifyingKey::configured(key.expose(), &self.algorithms).ok()?;
        keys.first()?.short_secret(&self.algorithms)
    }
}
