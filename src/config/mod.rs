//! Configuration: flags over environment over TOML file over defaults, checked before anything is opened.
//!
//! Owns names, defaults and meaning of every key, and the text about them. Pure, except that [`load`] reads the TOML
//! file, files that an `@` names, the host name and a random suffix; no sockets, no global state.
//!
//! | file | duty |
//! | --- | --- |
//! | `keys` | the one table of keys, which drives all else |
//! | `value` | kinds: text or TOML to a checked value and back |
//! | `sources` | flags, variables and TOML to one setting per key |
//! | `checks` | settings to a [`Config`]; contradictions |
//! | `redis_url` | [`RedisTarget`] |
//! | `secrets` | secrets and files that hold them, without what tools put around them |
//! | `text` | `--help`, `--check-config`, documentation |
//! | `error` | [`ConfigError`] |
//! | `admin` | [`AdminConfig`] |
//! | `listen` | [`Listen`] |
//! | [`origins`] | which web pages may connect |
//! | [`patterns`] | which channels a user may use, and whom it may write to and see |
//!
//! Invariants: a value that nobody can honour is refused, never dropped; what is printed holds no secret; what
//! `--check-config` prints loads to the same [`Config`].

mod admin;
mod checks;
mod error;
mod keys;
mod listen;
pub mod origins;
pub mod patterns;
mod redis_url;
mod secrets;
mod sources;
mod text;
mod value;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::jws::{Algorithm, Key, ShortSecret};
pub use admin::AdminConfig;
pub use error::{ConfigError, Place};
pub use listen::Listen;
pub use origins::{OriginError, OriginPolicy};
pub use patterns::{PatternError, Patterns};
pub use redis_url::{RedisAddress, RedisServers, RedisTarget};

/// Most shards of one gateway.
pub const SHARDS_MAX: usize = keys::SHARDS_MAX as usize;

use sources::{Request, Settings};

/// What the command line asked for.
#[derive(Debug)]
pub enum Outcome {
    /// Start with this.
    Run(Box<Config>),
    /// Print this and exit 0: `--help`.
    Help(String),
    /// Print this and exit 0: `--version`.
    Version(String),
    /// `--check-config`, and this is good as far as words go: look at the files that it names, then print the text and exit 0.
    Checked(Box<Config>, Effective),
}

/// What `--check-config` prints.
pub struct Effective(Settings);

impl Effective {
    /// TOML with every value. `on_host` has those of keys that nobody set and that follow from the host, if it is at hand.
    #[must_use]
    pub fn text(&self, config: &Config, on_host: Option<&OnHost>) -> String {
        let mut derived = vec![("gateway_id", value::write_text(&config.gateway_id))];
        if let Some(host) = on_host {
            // As `Settings` reads it: all channels in development mode, and else none.
            let channels = if config.auth.is_development() { "[\"*\"]" } else { "[]" };
            derived.extend(["channels.subscribe", "channels.publish"].map(|key| (key, channels.to_owned())));
            derived.push(("shards", host.cpus.len().to_string()));
            derived.push(("cpus", value::write_text(&value::write_places(&host.cpus))));
            derived.push(("limits.connections", host.connections.to_string()));
            derived.push(("limits.handshakes", host.handshakes.to_string()));
        }
        text::effective(&self.0, &derived)
    }
}

impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Effective")
    }
}

/// What follows from the host where the configuration says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnHost {
    /// The CPU of each shard, `None` where it is not pinned.
    pub cpus: Vec<Option<usize>>,
    /// `limits.connections`
    pub connections: usize,
    /// `limits.handshakes`
    pub handshakes: usize,
}

/// Reads the configuration from arguments (without the program's name) and environment variables.
///
/// ```no_run
/// let outcome = shardgate::config::load(std::env::args_os().skip(1), std::env::vars_os());
/// ```
///
/// # Errors
/// A [`ConfigError`] names the first thing that is wrong, strongest source last; print it and exit with
/// [`ConfigError::EXIT_CODE`].
pub fn load<A, E, K, V>(args: A, env: E) -> Result<Outcome, ConfigError>
where
    A: IntoIterator<Item: Into<OsString>>,
    E: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let invocation = match sources::read_args(args.into_iter().map(Into::into).collect())? {
        Request::Help => return Ok(Outcome::Help(text::help())),
        Request::Version => return Ok(Outcome::Version(text::version())),
        Request::Run(invocation) => invocation,
    };
    let env = env
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let settings = Settings::gather(&invocation, env)?;
    let config = settings.build(default_gateway_id)?;
    if invocation.check {
        return Ok(Outcome::Checked(Box::new(config), Effective(settings)));
    }
    Ok(Outcome::Run(Box::new(config)))
}

/// Reads the configuration again, for SIGHUP, from the arguments and variables that the program was started with.
///
/// Gives what to run with from now on, and the keys that were changed but need a restart. A gateway without a
/// configured id keeps the one it has.
///
/// # Errors
/// As [`load`]; the running configuration then stays.
pub fn reload<A, E, K, V>(running: &Config, args: A, env: E) -> Result<(Config, Vec<&'static str>), ConfigError>
where
    A: IntoIterator<Item: Into<OsString>>,
    E: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let Request::Run(invocation) = sources::read_args(args.into_iter().map(Into::into).collect())? else {
        // A program that was asked for its help text does not run long enough to be asked to reload.
        return Ok((running.clone(), Vec::new()));
    };
    let env = env
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let new = Settings::gather(&invocation, env)?.build(|| Ok(running.gateway_id.clone()))?;
    Ok(running.reloadable_changes(&new))
}

/// Reads a time with its unit, as the configuration writes it: `25s`, `500ms`, `2m`, `1h`.
///
/// # Errors
/// What is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let hint = "a number and its unit, such as 25s, 500ms, 2m or 1h";
    value::parse_duration(text).map_err(|why| format!("{hint}{why}"))
}

/// A URL as logs and errors may show it: what may be a password or a key is masked.
#[must_use]
pub fn shown_url(url: &str) -> String {
    value::mask_url(url)
}

/// Host name and a random suffix: unique without anybody's care, and a person can tell where it runs.
fn default_gateway_id() -> Result<String, ConfigError> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let random = getrandom::u32().map_err(|cause| ConfigError::NoRandom { cause })?;
    let suffix: String = (0..6)
        .map(|at| char::from(ALPHABET[(random >> (5 * at)) as usize % ALPHABET.len()]))
        .collect();
    // The kernel limits it to 64 bytes; without /proc the suffix alone has to tell gateways apart.
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    let host = if host.is_empty() { "shardgate" } else { &host };
    Ok(format!("{host}-{suffix}"))
}

/// Everything that the gateway was told, checked and with defaults filled in.
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
    /// Number of shards, at least 1 and at most as many as `cpus` lists; `None`: one per allowed CPU.
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
    /// Allowed `Origin` values, good for [`OriginPolicy::parse`]; empty: same origin only.
    pub origins: Vec<String>,
    /// Addresses and networks of proxies, good for [`Networks::parse`](crate::address::networks::Networks::parse).
    pub proxies: Vec<String>,
    /// Limits on what one client, one user and all of them may take.
    pub limits: Limits,
    /// Heartbeat times.
    pub heartbeat: Heartbeat,
    /// Time to show a credential after the handshake.
    pub auth_timeout: Duration,
    /// How users show who they are.
    pub auth: AuthConfig,
    /// Who may use which channels, and how those are spread.
    pub channels: ChannelsConfig,
    /// Who may write to whom, and see whom.
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
    /// This configuration with what can change while running taken from `new` (log level, limits, origins, proxies,
    /// patterns of channels, TLS, the administrator's token, keys and what tokens must have), and the names of the keys that
    /// differ and need a restart.
    ///
    /// Where credentials come from needs one: a line that is missing from the file for a moment must not open the gateway to
    /// everyone. A gateway that runs without credentials takes no proxies either, as it would not start with some.
    #[must_use]
    pub fn reloadable_changes(&self, new: &Config) -> (Config, Vec<&'static str>) {
        let auth = if checks::is_same_source(&self.auth.source, &new.auth.source) {
            new.auth.clone()
        } else {
            self.auth.clone()
        };
        let changed = Config {
            log_level: new.log_level,
            limits: new.limits,
            origins: new.origins.clone(),
            proxies: if self.is_open() { &self.proxies } else { &new.proxies }.clone(),
            auth,
            tls: new.tls.clone(),
            channels: ChannelsConfig {
                partitions: self.channels.partitions,
                ..new.channels.clone()
            },
            messages: new.messages.clone(),
            admin: AdminConfig {
                token: new.admin.token.clone(),
                ..self.admin.clone()
            },
            ..self.clone()
        };
        (changed, checks::restart_keys(self, new))
    }

    /// Development mode that nobody asked for by name: good for one machine.
    fn is_open(&self) -> bool {
        self.auth.is_development() && !self.insecure
    }
}

impl Default for Config {
    /// Every key at its default, and the gateway id `shardgate`: reproducible, for tests and tools.
    fn default() -> Self {
        Settings::defaults()
            .build(|| Ok("shardgate".to_owned()))
            .expect("a test loads the defaults")
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
    /// Connections of one address that have not finished their handshake, on each shard; 0: no limit.
    pub handshakes_per_address: u32,
    /// Connects per second of one address, on each shard; 0: no limit.
    pub connects_per_address: u32,
    /// Time to finish a request head.
    pub handshake_timeout: Duration,
    /// Bytes of one request head.
    pub header_bytes: usize,
}

/// Who may use which channels, and how those are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelsConfig {
    /// What every user may subscribe to, good for [`Patterns::parse`]; `None`: not set, empty: nothing.
    pub subscribe: Option<Vec<String>>,
    /// What every user may publish to; as `subscribe`.
    pub publish: Option<Vec<String>>,
    /// Number of partitions between gateways; the same on all gateways of a cluster.
    pub partitions: u16,
}

/// Who may write to whom, and see whom, where a token says nothing of it. Good for [`Patterns::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessagesConfig {
    /// Users that every user may write to.
    pub send: Vec<String>,
    /// Users of whom every user may know whether they are there.
    pub presence: Vec<String>,
}

/// What TLS on the public listener is made of; PEM files.
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
    /// At most so many connections are told to go per second; 0: no limit.
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
    /// A token must be for one of these; empty: for anybody.
    pub audience: Vec<String>,
    /// Tolerated difference of clocks.
    pub leeway: Duration,
    /// Name of the cookie that carries a token.
    pub cookie: String,
    /// A handshake without a token is refused.
    pub required_at_handshake: bool,
    /// A token without `exp` is refused.
    pub require_exp: bool,
    /// Browsers whose credential is refused hear it by a close code.
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

    /// That the key is a secret which is too short for one of the algorithms, if so.
    #[must_use]
    pub fn short_secret(&self) -> Option<ShortSecret> {
        let CredentialSource::Key(key) = &self.source else {
            return None;
        };
        let keys = Key::configured(key.expose(), &self.algorithms).ok()?;
        keys.first()?.short_secret(&self.algorithms)
    }
}

/// A text that nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The text itself, for whoever has to use it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(value::MASK)
    }
}
