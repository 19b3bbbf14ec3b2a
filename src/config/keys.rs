//! The one table of keys: its rows drive flags, variables, TOML, `--help`, `--check-config` and the
//! documentation.
//!
//! Owns names, kinds, defaults and help lines; knows nothing of where a value comes from. A new key
//! is one row here, one field in [`Config`](super::Config) and one line in `checks.rs`.

use std::time::Duration;

use super::bounds::{CPU_MAX, SHARDS_MAX};
use super::value::Kind;
use crate::jws::Algorithm;

/// Prefix of all variables of the gateway.
pub(super) const VARIABLE_PREFIX: &str = "SHARDGATE_";
/// The variable that names the TOML file.
pub(super) const CONFIG_VARIABLE: &str = "SHARDGATE_CONFIG";
/// Flags that are no keys, with their text for `--help`.
pub(super) const OTHER_FLAGS: &[(&str, &str)] = &[
    ("--config FILE", "Read this TOML file; also SHARDGATE_CONFIG"),
    (
        "--check-config",
        "Validate, print the effective configuration as TOML (secrets masked), exit",
    ),
    ("--help, -h", "Print this text, exit"),
    ("--version, -V", "Print the version, exit"),
];

/// One row of the table.
#[derive(Debug)]
pub(super) struct Key {
    /// Chapter of `--help`.
    pub(super) group: &'static str,
    /// Dotted name, as in TOML.
    pub(super) name: &'static str,
    /// The kind of its values.
    pub(super) kind: Kind,
    /// Its value while it is not set.
    pub(super) default: Fallback,
    /// Whether SIGHUP applies a change.
    pub(super) reloadable: bool,
    /// One line for people.
    pub(super) help: &'static str,
}

/// The value of a key that is not set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fallback {
    /// This value, written as in a flag.
    Value(&'static str),
    /// No value; the text describes the behaviour then.
    Unset(&'static str),
}

impl Key {
    /// `--limits-message-bytes`
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.name.replace(['.', '_'], "-"))
    }

    /// `SHARDGATE_LIMITS_MESSAGE_BYTES`
    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// `("limits", "message_bytes")`; a key without a table has an empty first part.
    pub(super) fn table_and_leaf(&self) -> (&'static str, &'static str) {
        self.name.rsplit_once('.').unwrap_or(("", self.name))
    }
}

/// The row of that dotted name, with the second spelling that the wire uses for `gateway_id`.
pub(super) fn find(name: &str) -> Option<usize> {
    let name = if name == "gatewayId" { "gateway_id" } else { name };
    KEYS.iter().position(|key| key.name == name)
}

/// The candidate that was most likely meant by `wrong`, if any is near.
///
/// Case and separators do not count, and neither does a forgotten table (`message_bytes` for
/// `limits.message_bytes`).
pub(super) fn nearest(wrong: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let squash = |text: &str| -> String {
        let text = text.trim_start_matches(VARIABLE_PREFIX);
        text.chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect()
    };
    let wrong = squash(wrong);
    let near = (wrong.len() / 3).clamp(1, 3);
    let distance = |candidate: &str| {
        let whole = strsim::osa_distance(&wrong, &squash(candidate));
        let leaf = candidate.trim_start_matches(VARIABLE_PREFIX).trim_start_matches('-');
        let leaf = leaf.split_once(['.', '-', '_']).map_or(leaf, |(_, leaf)| leaf);
        // A hit without its table is a little farther than one with it.
        whole.min(strsim::osa_distance(&wrong, &squash(leaf)) + 1)
    };
    let scored = candidates.map(|candidate| (distance(&candidate), candidate));
    scored
        .filter(|(distance, _)| *distance <= near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

const LISTENER: &str = "Listener";
const PLACE: &str = "Identity and placement";
const LOG: &str = "Logging";
const LIMITS: &str = "Limits";
const TIMES: &str = "Heartbeat and drain";
const AUTH: &str = "Credentials";
const CHANNELS: &str = "Channels";
const MESSAGES: &str = "Messages";
const ADMIN: &str = "Administration";
const TLS: &str = "TLS";
const CLUSTER: &str = "Cluster";

/// Largest message that can be allowed, bytes: a receiver must be able to hold one in memory per
/// connection.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;
/// Smallest allowed outbox, bytes: room for `welcome` with the longest names, and for replies to
/// the first messages. With less, a new connection is closed as too slow before it was sent
/// anything.
const OUTBOX_BYTES_MIN: u64 = 4_096;
const fn number(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, unit }
}

/// Any time above zero, up to a day.
const TIME: Kind = Kind::Duration {
    min: Duration::from_millis(1),
    max: DAY,
};
/// A lease is renewed several times while it lasts, and a renewal may take as long as Redis is
/// given to reply. With less than a second, every hiccup would look like a death.
const TTL: Kind = Kind::Duration {
    min: Duration::from_secs(1),
    max: DAY,
};
/// Any time, zero included.
const TIME_OR_ZERO: Kind = Kind::Duration {
    min: Duration::ZERO,
    max: DAY,
};
const DAY: Duration = Duration::from_secs(24 * 3600);

// Short words for the column `reloadable`.
const LIVE: bool = true;
const RESTART: bool = false;

const fn row(
    group: &'static str,
    name: &'static str,
    kind: Kind,
    default: Fallback,
    reloadable: bool,
    help: &'static str,
) -> Key {
    Key {
        group,
        name,
        kind,
        default,
        reloadable,
        help,
    }
}

use Fallback::{Unset, Value};

/// Every key. Rows of one group stand together, and so do rows of one TOML table.
#[rustfmt::skip] // A table is read by row: one row, two lines, the second for people.
pub(super) static KEYS: &[Key] = &[
    row(LISTENER, "listen", Kind::Listen, Value("127.0.0.1:8080"), RESTART,
        "Address, host name or Unix socket of the public listener; port 0 lets the kernel choose"),
    row(LISTENER, "listen_backlog", number(1, 65_535, "connections"), Value("4096"), RESTART,
        "Accept queue of each shard's listener; the kernel caps it at net.core.somaxconn"),
    row(LISTENER, "engine", Kind::Choice(&["auto", "ring", "epoll"]), Value("auto"), RESTART,
        "Socket engine; auto is io_uring where the kernel can, else epoll"),
    row(LISTENER, "echo", Kind::Bool, Value("false"), RESTART,
        "Serve /echo, a WebSocket that sends back what it gets"),
    row(LISTENER, "origins", Kind::Origins, Unset("same origin only"), LIVE,
        "Allowed Origin values: https://app.example.com, https://*.example.com, null or *"),
    row(LISTENER, "proxies", Kind::Networks, Unset("none"), LIVE,
        "Proxies whose X-Forwarded-For and PROXY header say where clients are: 10.0.0.0/8, 2001:db8::1, or unix: for all on a Unix socket"),
    row(LISTENER, "insecure", Kind::Bool, Value("false"), RESTART,
        "Allow development mode (anyone may be any user) away from loopback"),

    row(PLACE, "gateway_id", Kind::Text { max: 128 }, Unset("host name and a random suffix"), RESTART,
        "Unique name of this gateway in the cluster"),
    row(PLACE, "shards", number(1, SHARDS_MAX, "shards"), Unset("one per CPU of cpus, else per allowed CPU"), RESTART,
        "Number of shards"),
    row(PLACE, "cpus", Kind::Cpus, Unset("the first allowed CPUs"), RESTART,
        "CPU of each shard in turn, such as 0-3,8-11; none for no pinning"),
    row(PLACE, "control_cpu", number(0, CPU_MAX, ""), Unset("not pinned"), RESTART,
        "CPU of the control thread"),

    row(LOG, "log_level", Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]), Value("info"), LIVE,
        "How much is logged"),
    row(LOG, "log.format", Kind::Choice(&["text", "json"]), Value("text"), RESTART,
        "Form of the lines on stderr; json is one object a line with time, level, target, message and fields"),

    row(LIMITS, "limits.connections", number(1, 100_000_000, "connections"), Unset("what nofile permits, less a reserve"), LIVE,
        "Connections of known users on this gateway; over it /ws answers 503, and a client that shows itself later is closed with 3013"),
    row(LIMITS, "limits.message_bytes", number(125, MESSAGE_BYTES_MAX, "bytes"), Value("65536"), LIVE,
        "Size of one client message; a larger one closes with 1009"),
    row(LIMITS, "limits.outbox_bytes", number(OUTBOX_BYTES_MIN, 1 << 30, "bytes"), Value("1048576"), LIVE,
        "What may wait for one slow consumer before it is closed with 3008; an empty outbox takes any one message"),
    row(LIMITS, "limits.channels_per_connection", number(1, 1_000_000, "channels"), Value("128"), LIVE,
        "Channels that one connection may subscribe to"),
    row(LIMITS, "limits.channel_name_bytes", number(1, 1 << 28, "bytes"), Value("32768"), LIVE,
        "Bytes of the names of all channels that one connection subscribes to; over it limitExceeded"),
    row(LIMITS, "limits.messages_per_second", number(0, 1_000_000, "frames"), Value("100"), LIVE,
        "Frames of any kind per second that one connection may send; one that asks for users costs one more for every ten; 0 for no limit"),
    row(LIMITS, "limits.burst", number(1, 1_000_000, "frames"), Value("200"), LIVE,
        "Frames that one connection may send at once"),
    row(LIMITS, "limits.connections_per_user", number(0, 1_000_000, "connections"), Value("16"), LIVE,
        "Connections of one user on this gateway; over it one is closed with 3504, the one silent longest; 0 for no limit"),
    row(LIMITS, "limits.handshakes_per_second", number(0, 10_000_000, "handshakes"), Value("0"), LIVE,
        "Admission rate of this gateway; over it 503; 0 for no limit"),
    row(LIMITS, "limits.handshakes", number(1, 100_000_000, "connections"), Unset("4096 for each shard"), LIVE,
        "Sockets without a known user: half a handshake, the wait for auth, plain HTTP, what has ended and stays; over it the oldest is closed"),
    row(LIMITS, "limits.handshakes_per_address", number(0, 1_000_000, "connections"), Value("0"), LIVE,
        "Connections of one address (IPv6: one /64) that have not finished their handshake, counted by each shard; 0 for no limit"),
    row(LIMITS, "limits.connects_per_address", number(0, 1_000_000, "connections"), Value("0"), LIVE,
        "Connects per second of one address, a second's worth at once, counted by each shard; 0 for no limit"),
    row(LIMITS, "limits.handshake_timeout", TIME, Value("10s"), LIVE,
        "Time to finish a request head"),
    row(LIMITS, "limits.header_bytes", number(512, 1 << 20, "bytes"), Value("16384"), LIVE,
        "Size of one request head; a longer one gets 431"),

    row(TIMES, "heartbeat.interval", TIME, Value("25s"), RESTART,
        "The server pings a silent connection this often"),
    row(TIMES, "heartbeat.timeout", TIME, Value("90s"), RESTART,
        "A connection from which nothing came for this long is closed with 3012; above interval"),
    row(TIMES, "drain.timeout", TIME_OR_ZERO, Value("30s"), RESTART,
        "How long a drain may last; 0s to close everyone at once; more than 10m only with drain.per_second"),
    row(TIMES, "drain.per_second", number(0, 1_000_000, "connections"), Value("0"), RESTART,
        "A drain tells at most so many connections to go per second, on the whole gateway; 0 for no limit"),

    row(AUTH, "auth.timeout", TIME, Value("5s"), RESTART,
        "Time to show a credential after the handshake, else close 3502"),
    row(AUTH, "auth.algorithm", Kind::Choices(&Algorithm::NAMES), Unset("none"), LIVE,
        "JWT algorithms that are accepted, one or a list; what a token says of itself never counts"),
    row(AUTH, "auth.key", Kind::Secret, Unset("none: development mode"), LIVE,
        "Shared secret (HS*) or public key in PEM (all others), or @FILE; between a key, a URL and none only a restart changes"),
    row(AUTH, "auth.jwks_url", Kind::Url(&["https", "http"]), Unset("none"), RESTART,
        "Where to fetch public keys that rotate; instead of auth.key"),
    row(AUTH, "auth.issuer", Kind::Text { max: 1024 }, Unset("not checked"), LIVE,
        "The iss that a token must have"),
    row(AUTH, "auth.audience", Kind::Texts { max: 1024 }, Unset("not checked"), LIVE,
        "A token's aud must have one of these"),
    row(AUTH, "auth.leeway", TIME_OR_ZERO, Value("0s"), LIVE,
        "Tolerated clock difference when exp and nbf are checked"),
    row(AUTH, "auth.cookie", Kind::Cookie, Value("shardgate_token"), LIVE,
        "Name of the cookie that carries a token"),
    row(AUTH, "auth.required_at_handshake", Kind::Bool, Value("false"), LIVE,
        "Refuse a handshake without a token with 401"),
    row(AUTH, "auth.require_exp", Kind::Bool, Value("false"), LIVE,
        "Refuse a token without exp"),
    row(AUTH, "auth.browser_close", Kind::Bool, Value("true"), LIVE,
        "Tell a browser of a refused credential by a close code, 3500 or 3005: it sees no status of a handshake"),
    row(AUTH, "auth.any_user_id", Kind::Bool, Value("false"), LIVE,
        "Allow user ids with format characters (bidi, zero width) and outer spaces, by which two can look the same"),

    row(CHANNELS, "channels.subscribe", Kind::Patterns, Unset("* in development mode, else none"), LIVE,
        "Channels that every user may subscribe to; * is any run of characters, {user} the user's id"),
    row(CHANNELS, "channels.publish", Kind::Patterns, Unset("* in development mode, else none"), LIVE,
        "Channels that every user may publish to, in the same patterns"),
    row(CHANNELS, "channels.partitions", number(1, 16_384, "partitions"), Value("64"), RESTART,
        "Channels are spread over so many partitions between gateways; the same number on all gateways of a cluster"),

    row(MESSAGES, "messages.send", Kind::Patterns, Value("*"), LIVE,
        "Users that every user may write to, in patterns as for channels; a token's write_to takes its place"),
    row(MESSAGES, "messages.presence", Kind::Patterns, Value("*"), LIVE,
        "Users of whom every user may know whether they are there; a token's see takes its place"),

    row(ADMIN, "admin.token", Kind::Secret, Unset("none: no /admin"), LIVE,
        "Bearer token of /admin, at least 16 bytes of visible ASCII, or @FILE"),
    row(ADMIN, "admin.listen", Kind::Listen, Unset("none: the public listener"), RESTART,
        "Serve /admin, /metrics, /stats and /dashboard only here"),

    row(TLS, "tls.cert", Kind::File, Unset("none: plain text"), LIVE,
        "Certificate chain in PEM, the gateway's own first; with tls.key the public listener speaks TLS"),
    row(TLS, "tls.key", Kind::File, Unset("none"), LIVE,
        "Private key of the certificate in PEM"),
    row(TLS, "tls.client_ca", Kind::File, Unset("clients need no certificate"), LIVE,
        "Clients must have a certificate that one of these authorities signed, in PEM"),

    row(CLUSTER, "redis.url", Kind::RedisUrl, Unset("none: one gateway, embedded presence"), RESTART,
        "Redis server, cluster or sentinels that join gateways"),
    row(CLUSTER, "redis.ca", Kind::File, Unset("the system's authorities"), RESTART,
        "Authorities that may have signed the certificates of a rediss URL, in PEM"),
    row(CLUSTER, "redis.cert", Kind::File, Unset("none"), RESTART,
        "Certificate chain of this gateway for servers that want one, in PEM"),
    row(CLUSTER, "redis.key", Kind::File, Unset("none"), RESTART,
        "Private key of redis.cert, in PEM"),
    row(CLUSTER, "redis.sentinel_user", Kind::Text { max: 256 }, Unset("none: see sentinel_password"), RESTART,
        "User for sentinels"),
    row(CLUSTER, "redis.sentinel_password", Kind::Secret, Unset("none: that of redis.url, where sentinels ask"), RESTART,
        "Password for sentinels"),
    row(CLUSTER, "redis.start_timeout", TIME, Value("5s"), RESTART,
        "How long to wait for Redis at start before giving up with exit 1"),
    row(CLUSTER, "redis.prefix", Kind::Text { max: 128 }, Value("shardgate:"), RESTART,
        "Prefix of every key and channel in Redis"),
    row(CLUSTER, "cluster.key", Kind::Secrets, Unset("none: packets have no tags"), RESTART,
        "Secret of all gateways that share a Redis: packets between them are refused without its tag; two while one is replaced, the first signs"),
    row(CLUSTER, "presence.ttl", TTL, Value("90s"), RESTART,
        "The longest that a user can still look online after their gateway died; below a second every hiccup looks like a death"),
];
