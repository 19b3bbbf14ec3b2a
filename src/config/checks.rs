//! From key values to a [`Config`]: types, what this release has, and contradictions between keys.
//!
//! Pure. Owns every rule that needs more than one key.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::admin::{AdminConfig, TOKEN_BYTES_MIN, is_good_token};
use super::bounds::MASK;
use super::error::ConfigError;
use super::keys::{self, KEYS};
use super::listen::Listen;
use super::redis_url::{RedisServers, RedisTarget};
use super::secret::Secret;
use super::sources::KeyValues;
use super::types::{
    AuthConfig, ChannelsConfig, Config, CredentialSource, DrainConfig, EngineChoice, Heartbeat, Limits, LogFormat,
    MessagesConfig, Placement, RedisConfig, TlsFiles,
};
use super::value::Value;
use crate::jws::{Algorithm, VerifyingKey};

/// Keys that mean nothing without a source of verification keys.
pub(super) const OF_TOKENS: [&str; 5] = [
    "auth.algorithm",
    "auth.issuer",
    "auth.audience",
    "auth.required_at_handshake",
    "auth.require_exp",
];

/// A shorter secret is found by trying all, from one token.
const SECRET_BYTES_MIN: usize = 16;

/// A shorter secret can be guessed by anyone who has seen one packet.
const CLUSTER_KEY_BYTES_MIN: usize = 16;

impl KeyValues {
    /// The checked configuration; `gateway_id` is what to use where none is set.
    pub(super) fn build(
        &self,
        gateway_id: impl FnOnce() -> Result<String, ConfigError>,
    ) -> Result<Config, ConfigError> {
        let config = self.read(gateway_id)?;
        self.check_together(&config)?;
        Ok(config)
    }

    fn read(&self, gateway_id: impl FnOnce() -> Result<String, ConfigError>) -> Result<Config, ConfigError> {
        let cpus = self.get("cpus");
        let shards = match &cpus {
            // A list of CPUs implies the number of shards, unless `shards` is lower.
            Placement::Cpus(cpus) => self.get::<Option<usize>>("shards").or(Some(cpus.len())),
            _ => self.get("shards"),
        };
        let file = |name| self.get::<Option<String>>(name).map(PathBuf::from);
        let redis = self.get::<Option<RedisTarget>>("redis.url").map(|target| RedisConfig {
            target: RedisTarget {
                ca: file("redis.ca"),
                // One without the other is refused by `check_together`.
                client: file("redis.cert").zip(file("redis.key")),
                sentinel_username: self.get("redis.sentinel_user"),
                sentinel_password: self.get("redis.sentinel_password"),
                ..target
            },
            start_timeout: self.get("redis.start_timeout"),
            prefix: self.get("redis.prefix"),
            keys: self.get("cluster.key"),
        });
        let tls = file("tls.cert").zip(file("tls.key")).map(|(cert, key)| TlsFiles {
            cert,
            key,
            client_ca: file("tls.client_ca"),
        });
        Ok(Config {
            listen: self.get("listen"),
            engine: self.get("engine"),
            echo: self.get("echo"),
            insecure: self.get("insecure"),
            gateway_id: self.get::<Option<String>>("gateway_id").map_or_else(gateway_id, Ok)?,
            shards,
            cpus,
            control_cpu: self.get("control_cpu"),
            listen_backlog: self.get("listen_backlog"),
            log_level: self.get("log_level"),
            log_format: self.get("log.format"),
            origins: self.get("origins"),
            proxies: self.get("proxies"),
            limits: Limits {
                connections: self.get("limits.connections"),
                message_bytes: self.get("limits.message_bytes"),
                outbox_bytes: self.get("limits.outbox_bytes"),
                channels_per_connection: self.get("limits.channels_per_connection"),
                channel_name_bytes: self.get("limits.channel_name_bytes"),
                messages_per_second: self.get("limits.messages_per_second"),
                burst: self.get("limits.burst"),
                connections_per_user: self.get("limits.connections_per_user"),
                handshakes_per_second: self.get("limits.handshakes_per_second"),
                handshakes: self.get("limits.handshakes"),
                handshakes_per_address: self.get("limits.handshakes_per_address"),
                connects_per_address: self.get("limits.connects_per_address"),
                handshake_timeout: self.get("limits.handshake_timeout"),
                header_bytes: self.get("limits.header_bytes"),
            },
            heartbeat: Heartbeat {
                interval: self.get("heartbeat.interval"),
                timeout: self.get("heartbeat.timeout"),
            },
            auth_timeout: self.get("auth.timeout"),
            auth: AuthConfig {
                source: match (self.get("auth.key"), self.get("auth.jwks_url")) {
                    (Some(key), _) => CredentialSource::Key(key),
                    (None, Some(url)) => CredentialSource::Jwks(url),
                    (None, None) => CredentialSource::Development,
                },
                algorithms: self.get("auth.algorithm"),
                issuer: self.get("auth.issuer"),
                audience: self.get("auth.audience"),
                leeway: self.get("auth.leeway"),
                cookie: self.get("auth.cookie"),
                required_at_handshake: self.get("auth.required_at_handshake"),
                require_exp: self.get("auth.require_exp"),
                browser_close: self.get("auth.browser_close"),
                any_user_id: self.get("auth.any_user_id"),
            },
            channels: ChannelsConfig {
                subscribe: self.get("channels.subscribe"),
                publish: self.get("channels.publish"),
                partitions: self.get("channels.partitions"),
            },
            messages: MessagesConfig {
                send: self.get("messages.send"),
                presence: self.get("messages.presence"),
            },
            admin: AdminConfig {
                token: self.get("admin.token"),
                listen: self.get("admin.listen"),
            },
            drain: DrainConfig {
                timeout: self.get("drain.timeout"),
                per_second: self.get("drain.per_second"),
            },
            tls,
            redis,
            presence_ttl: self.get("presence.ttl"),
        })
    }

    fn check_together(&self, config: &Config) -> Result<(), ConfigError> {
        let contradiction = |first: &str, second: &str, rule: &'static str| {
            Err(ConfigError::Contradiction {
                first: self.describe(first),
                second: self.describe(second),
                rule,
            })
        };
        if config.heartbeat.timeout <= config.heartbeat.interval {
            return contradiction(
                "heartbeat.timeout",
                "heartbeat.interval",
                "the timeout must be longer, or a silent connection is closed before it was ever asked",
            );
        }
        if config.drain.timeout > DRAIN_MAX && config.drain.per_second == 0 {
            return contradiction(
                "drain.timeout",
                "drain.per_second",
                "without a limit everybody is told within minutes, and whatever waits longer waits for one lost client: \
                 10m at most, or set drain.per_second",
            );
        }
        if let (Some(shards), Placement::Cpus(cpus)) = (config.shards, &config.cpus)
            && shards > cpus.len()
        {
            return contradiction(
                "shards",
                "cpus",
                "every shard needs a CPU of its own in the list; list more, or use none",
            );
        }
        let is_set = |key| self.setting(key).value != Value::Unset;
        for key in ["redis.ca", "redis.cert", "redis.key"] {
            if is_set(key) && !config.redis.as_ref().is_some_and(|redis| redis.target.tls) {
                return contradiction(
                    key,
                    "redis.url",
                    "only TLS has certificates: use rediss://, rediss-cluster:// or rediss-sentinel://, or leave the file out",
                );
            }
        }
        let has_sentinels = |redis: &RedisConfig| matches!(redis.target.servers, RedisServers::Sentinel { .. });
        for key in ["redis.sentinel_user", "redis.sentinel_password"] {
            if is_set(key) && !config.redis.as_ref().is_some_and(has_sentinels) {
                return contradiction(
                    key,
                    "redis.url",
                    "only redis-sentinel:// and rediss-sentinel:// have sentinels; other credentials stand in redis.url",
                );
            }
        }
        for (first, second, rule) in [
            (
                "tls.cert",
                "tls.key",
                "a certificate is no good without its private key: set both, or neither",
            ),
            (
                "tls.key",
                "tls.cert",
                "a private key is no good without its certificate: set both, or neither",
            ),
            (
                "redis.cert",
                "redis.key",
                "a certificate is no good without its private key: set both, or neither",
            ),
            (
                "redis.key",
                "redis.cert",
                "a private key is no good without its certificate: set both, or neither",
            ),
            (
                "redis.sentinel_user",
                "redis.sentinel_password",
                "a user is no good without a password: set both, or the password alone",
            ),
            (
                "tls.client_ca",
                "tls.cert",
                "only TLS asks clients for certificates: set tls.cert and tls.key, or leave the file out",
            ),
        ] {
            if self.setting(first).value != Value::Unset && self.setting(second).value == Value::Unset {
                return contradiction(first, second, rule);
            }
        }
        let on_socket = config
            .proxies
            .iter()
            .any(|proxy| proxy == crate::address::networks::ON_A_UNIX_SOCKET);
        if on_socket && !matches!(config.listen, Listen::Unix(_)) {
            return contradiction(
                "proxies",
                "listen",
                "unix: means whoever comes by a Unix socket: listen on one, or leave it out",
            );
        }
        if self.setting("cluster.key").value != Value::Unset && config.redis.is_none() {
            return contradiction(
                "cluster.key",
                "redis.url",
                "it is for gateways that share a Redis: set redis.url, or leave the key out",
            );
        }
        self.check_cluster_key(config)?;
        self.check_admin(config)?;
        self.check_credentials(&config.auth)?;
        let is_open = config.is_open();
        if is_open && !config.listen.is_local() {
            let from = self.setting("listen").from.clone();
            return Err(ConfigError::OpenDevelopmentMode {
                listen: config.listen.clone(),
                from,
            });
        }
        if is_open && !config.proxies.is_empty() {
            return contradiction(
                "proxies",
                "auth.key",
                "who comes through a proxy comes from elsewhere, and without a key the gateway runs in development mode, where anyone \
                 may be any user: configure auth.key or auth.jwks_url, or say --insecure if that is meant",
            );
        }
        Ok(())
    }

    fn check_cluster_key(&self, config: &Config) -> Result<(), ConfigError> {
        let keys = config.redis.iter().flat_map(|redis| &redis.keys);
        if keys
            .map(|key| key.expose().len())
            .any(|len| len < CLUSTER_KEY_BYTES_MIN)
        {
            return Err(ConfigError::BadValue {
                key: "cluster.key".into(),
                from: self.setting("cluster.key").from.clone(),
                value: MASK.into(),
                allowed: format!(
                    "at least {CLUSTER_KEY_BYTES_MIN} bytes each, such as what openssl rand -hex 32 prints"
                ),
            });
        }
        Ok(())
    }

    fn check_admin(&self, config: &Config) -> Result<(), ConfigError> {
        let token = config.admin.token.as_ref();
        if token.is_some_and(|token| !is_good_token(token.expose())) {
            return Err(ConfigError::BadValue {
                key: "admin.token".into(),
                from: self.setting("admin.token").from.clone(),
                value: MASK.into(),
                allowed: format!(
                    "at least {TOKEN_BYTES_MIN} bytes of visible ASCII, such as what openssl rand -hex 32 prints"
                ),
            });
        }
        if config.admin.listen.as_ref() == Some(&config.listen) && config.listen.is_one_address() {
            return Err(ConfigError::Contradiction {
                first: self.describe("admin.listen"),
                second: self.describe("listen"),
                rule: "the two need addresses of their own; leave admin.listen out to serve both on one",
            });
        }
        Ok(())
    }

    fn check_credentials(&self, auth: &AuthConfig) -> Result<(), ConfigError> {
        let contradiction = |first: &str, second: &str, rule: &'static str| {
            Err(ConfigError::Contradiction {
                first: self.describe(first),
                second: self.describe(second),
                rule,
            })
        };
        let defaults = KeyValues::defaults();
        let is_set = |name: &str| self.setting(name).value != defaults.setting(name).value;
        if is_set("auth.key") && is_set("auth.jwks_url") {
            let rule = "keys come from one place: leave one of the two out";
            return contradiction("auth.jwks_url", "auth.key", rule);
        }
        match &auth.source {
            CredentialSource::Development => {
                let rule = "without auth.key or auth.jwks_url no token is ever looked at: configure one of them";
                match OF_TOKENS.into_iter().find(|name| is_set(name)) {
                    Some(name) => contradiction(name, "auth.key", rule),
                    None => Ok(()),
                }
            }
            CredentialSource::Key(_) | CredentialSource::Jwks(_) if auth.algorithms.is_empty() => {
                let source = if is_set("auth.key") {
                    "auth.key"
                } else {
                    "auth.jwks_url"
                };
                let rule = "which algorithm is accepted must not be the token's to say: set auth.algorithm";
                contradiction(source, "auth.algorithm", rule)
            }
            CredentialSource::Jwks(_) if auth.algorithms.iter().any(|algorithm| algorithm.is_symmetric()) => {
                let rule =
                    "a JWKS has public keys, and HS256, HS384 and HS512 need a secret: leave them out, or use auth.key";
                contradiction("auth.jwks_url", "auth.algorithm", rule)
            }
            CredentialSource::Key(key)
                if auth.algorithms.iter().any(|algorithm| algorithm.is_symmetric())
                    && key.expose().len() < SECRET_BYTES_MIN =>
            {
                Err(ConfigError::BadValue {
                    key: "auth.key".into(),
                    from: self.setting("auth.key").from.clone(),
                    value: MASK.into(),
                    allowed: format!(
                        "a secret of at least {SECRET_BYTES_MIN} bytes, and this one has {}: whoever has one token could \
                         guess it and make others; take what openssl rand -hex 32 prints, here and where tokens are made",
                        key.expose().len()
                    ),
                })
            }
            CredentialSource::Key(key) => match VerifyingKey::configured(key.expose(), &auth.algorithms) {
                Ok(_) => Ok(()),
                Err(cause) => Err(ConfigError::BadKey {
                    from: self.setting("auth.key").from.clone(),
                    algorithm: self.describe("auth.algorithm"),
                    cause,
                }),
            },
            CredentialSource::Jwks(_) => Ok(()),
        }
    }

    /// `key = value (source)`, secrets masked; `key (not set)` without a value.
    fn describe(&self, name: &str) -> String {
        let setting = self.setting(name);
        let row = keys::find(name).expect("setting() found it");
        match KEYS[row].kind.write_toml(&setting.value) {
            nothing if nothing.is_empty() => format!("{name} (not set)"),
            value => format!("{name} = {value} ({})", setting.from),
        }
    }

    fn get<T: FromValue>(&self, name: &str) -> T {
        T::from_value(&self.setting(name).value)
            .unwrap_or_else(|| panic!("{name} is read as a type that its kind is not"))
    }
}

/// True if verification keys come from the same kind of source, and from the same URL.
pub(super) fn is_same_source(old: &CredentialSource, new: &CredentialSource) -> bool {
    matches!((old, new), (CredentialSource::Key(_), CredentialSource::Key(_))) || old == new
}

/// The names of the keys that differ and need a restart.
pub(super) fn restart_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    // Destructured without `..`, so that a new field does not compile until it was decided where it
    // belongs.
    let Config {
        listen,
        engine,
        echo,
        insecure,
        gateway_id,
        shards,
        cpus,
        control_cpu,
        listen_backlog,
        log_level: _,
        log_format,
        origins: _,
        proxies,
        limits: _,
        heartbeat: Heartbeat { interval, timeout },
        auth_timeout,
        auth,
        channels: ChannelsConfig {
            subscribe: _,
            publish: _,
            partitions,
        },
        messages: _,
        admin: AdminConfig {
            token: _,
            listen: admin_listen,
        },
        drain,
        tls: _,
        redis,
        presence_ttl,
    } = old;
    let jwks_url = |auth: &AuthConfig| match &auth.source {
        CredentialSource::Jwks(url) => Some(url.clone()),
        CredentialSource::Key(_) | CredentialSource::Development => None,
    };
    let has_key = |auth: &AuthConfig| matches!(auth.source, CredentialSource::Key(_));
    // Without a URL the other keys of Redis mean nothing. When a URL is added or removed, all of
    // them begin or cease to count.
    let of_redis = |field: &dyn Fn(&RedisConfig, &RedisConfig) -> bool| match (redis, &new.redis) {
        (Some(old), Some(new)) => field(old, new),
        _ => false,
    };
    let another_target = |old: &RedisConfig, new: &RedisConfig| {
        // Those keys are reported by themselves.
        let old = old.target.clone();
        let apart = RedisTarget {
            ca: old.ca.clone(),
            client: old.client.clone(),
            sentinel_username: old.sentinel_username.clone(),
            sentinel_password: old.sentinel_password.clone(),
            ..new.target.clone()
        };
        old != apart
    };
    let of_client = |target: &RedisTarget| target.client.clone().unzip();
    let changes = [
        ("listen", *listen != new.listen),
        ("engine", *engine != new.engine),
        ("echo", *echo != new.echo),
        ("insecure", *insecure != new.insecure),
        ("gateway_id", *gateway_id != new.gateway_id),
        ("shards", *shards != new.shards),
        ("cpus", *cpus != new.cpus),
        ("control_cpu", *control_cpu != new.control_cpu),
        ("listen_backlog", *listen_backlog != new.listen_backlog),
        ("log.format", *log_format != new.log_format),
        ("proxies", old.is_open() && *proxies != new.proxies),
        ("heartbeat.interval", *interval != new.heartbeat.interval),
        ("heartbeat.timeout", *timeout != new.heartbeat.timeout),
        ("auth.timeout", *auth_timeout != new.auth_timeout),
        ("auth.key", has_key(auth) != has_key(&new.auth)),
        ("auth.jwks_url", jwks_url(auth) != jwks_url(&new.auth)),
        ("channels.partitions", *partitions != new.channels.partitions),
        ("admin.listen", *admin_listen != new.admin.listen),
        ("drain.timeout", drain.timeout != new.drain.timeout),
        ("drain.per_second", drain.per_second != new.drain.per_second),
        (
            "redis.url",
            redis.is_some() != new.redis.is_some() || of_redis(&another_target),
        ),
        ("redis.ca", of_redis(&|old, new| old.target.ca != new.target.ca)),
        ("cluster.key", of_redis(&|old, new| old.keys != new.keys)),
        (
            "redis.cert",
            of_redis(&|old, new| of_client(&old.target).0 != of_client(&new.target).0),
        ),
        (
            "redis.key",
            of_redis(&|old, new| of_client(&old.target).1 != of_client(&new.target).1),
        ),
        (
            "redis.sentinel_user",
            of_redis(&|old, new| old.target.sentinel_username != new.target.sentinel_username),
        ),
        (
            "redis.sentinel_password",
            of_redis(&|old, new| old.target.sentinel_password != new.target.sentinel_password),
        ),
        (
            "redis.start_timeout",
            of_redis(&|old, new| old.start_timeout != new.start_timeout),
        ),
        ("redis.prefix", of_redis(&|old, new| old.prefix != new.prefix)),
        ("presence.ttl", *presence_ttl != new.presence_ttl),
    ];
    changes
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(name, _)| name)
        .collect()
}

/// The longest drain if `drain.per_second` sets no limit.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// A field's type from a value; `None` if the kind of the key is another, which is a bug of ours.
trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

/// Each arm: type, pattern, result.
macro_rules! from_value {
    ($($type:ty: $pattern:pat => $result:expr;)*) => {$(
        impl FromValue for $type {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    $pattern => $result,
                    _ => None,
                }
            }
        }
    )*};
}

from_value! {
    bool: Value::Bool(yes) => Some(*yes);
    u16: Value::Integer(n) => u16::try_from(*n).ok();
    u32: Value::Integer(n) => u32::try_from(*n).ok();
    usize: Value::Integer(n) => usize::try_from(*n).ok();
    Duration: Value::Duration(time) => Some(*time);
    String: Value::Text(text) => Some(text.clone());
    Secret: Value::Text(text) => Some(Secret::from(text.clone()));
    RedisTarget: Value::Text(text) => RedisTarget::parse(text).ok();
    Listen: Value::Text(text) => Listen::parse(text);
    LevelFilter: Value::Text(text) => text.parse().ok();
}

impl FromValue for LogFormat {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text == "text" => Some(LogFormat::Text),
            Value::Text(text) if text == "json" => Some(LogFormat::Json),
            _ => None,
        }
    }
}

impl FromValue for EngineChoice {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text == "auto" => Some(EngineChoice::Auto),
            Value::Text(text) if text == "ring" => Some(EngineChoice::Ring),
            Value::Text(text) if text == "epoll" => Some(EngineChoice::Epoll),
            _ => None,
        }
    }
}

impl FromValue for Placement {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Unset => Some(Placement::FirstAllowed),
            Value::Cpus(placement) => Some(placement.clone()),
            _ => None,
        }
    }
}

impl FromValue for Vec<String> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Unset => Some(Vec::new()),
            Value::List(items) => Some(items.clone()),
            _ => None,
        }
    }
}

impl FromValue for Vec<Secret> {
    fn from_value(value: &Value) -> Option<Self> {
        let texts = Vec::<String>::from_value(value)?;
        Some(texts.into_iter().map(Secret::from).collect())
    }
}

impl FromValue for Vec<Algorithm> {
    fn from_value(value: &Value) -> Option<Self> {
        Vec::<String>::from_value(value)?
            .iter()
            .map(|name| Algorithm::by_name(name))
            .collect()
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Unset => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}
