//! `redis.url`: text to a checked [`RedisTarget`], or a text with the allowed values.
//!
//! Pure. Owns the forms of the URL and keeps its credentials out of everything that is printed.

use std::fmt;
use std::path::PathBuf;

use super::bounds::MASK;

/// URL schemes of a Redis server, cluster and sentinel, each also over TLS, and of a server's Unix
/// socket.
pub(super) const SCHEMES: &[&str] = &[
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
    "unix",
    "redis+unix",
];

/// Port of a server where the URL names none.
const SERVER_PORT: u16 = 6379;
/// Port of a sentinel where the URL names none.
const SENTINEL_PORT: u16 = 26_379;

/// Where Redis is and how to log in. `Debug` masks the credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisTarget {
    /// One server, a cluster, or sentinels.
    pub servers: RedisServers,
    /// Use TLS to every server and sentinel.
    pub tls: bool,
    /// PEM file with the only authorities that may have signed a server's certificate; `None`: the
    /// system's.
    pub ca: Option<PathBuf>,
    /// PEM files with our certificate and its key, for servers that want one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// User of the access list; `None`: the default user.
    pub username: Option<String>,
    /// Password; `None`: the server asks for none.
    pub password: Option<String>,
    /// User for sentinels. Without it and its password they get the others, if they ask for some.
    pub sentinel_username: Option<String>,
    /// Password for sentinels.
    pub sentinel_password: Option<String>,
    /// Database; 0 in a cluster.
    pub db: u32,
}

/// Which servers make up the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisServers {
    /// This one.
    Single(RedisAddress),
    /// The one that listens on this Unix socket.
    Socket(PathBuf),
    /// A cluster, of which these are known.
    Cluster(Vec<RedisAddress>),
    /// The master that these sentinels name.
    Sentinel {
        /// The sentinels, in the order in which they are asked.
        sentinels: Vec<RedisAddress>,
        /// The name by which they know the master.
        master: String,
    },
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RedisAddress {
    /// Name or IP address, an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTarget")
            .field("servers", &self.servers)
            .field("tls", &self.tls)
            .field("ca", &self.ca)
            .field("client", &self.client)
            .field("sentinel_username", &self.sentinel_username.as_ref().map(|_| MASK))
            .field("sentinel_password", &self.sentinel_password.as_ref().map(|_| MASK))
            .field("username", &self.username.as_ref().map(|_| MASK))
            .field("password", &self.password.as_ref().map(|_| MASK))
            .field("db", &self.db)
            .finish()
    }
}

/// The addresses, nothing else.
impl fmt::Display for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = match self {
            RedisServers::Socket(path) => return path.display().fmt(f),
            RedisServers::Single(address) => std::slice::from_ref(address),
            RedisServers::Cluster(addresses) => addresses,
            RedisServers::Sentinel { sentinels, .. } => sentinels,
        };
        for (index, address) in addresses.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

impl RedisTarget {
    /// Reads a URL such as `redis://user:password@host:6379/0`, `redis-cluster://a,b:7000`,
    /// `redis-sentinel://a,b/master/0` or `unix:///run/redis.sock?db=0`.
    ///
    /// # Errors
    /// The error in it, in words that repeat nothing of the credentials.
    pub fn parse(url: &str) -> Result<RedisTarget, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("there is no ://")?;
        if !SCHEMES.contains(&scheme) {
            return Err("the scheme is none of these");
        }
        if url.chars().any(|c| c.is_control() || c == ' ') {
            return Err("there are spaces or control characters in it");
        }
        if matches!(scheme, "unix" | "redis+unix") {
            return RedisTarget::parse_socket(rest);
        }
        if rest.contains(['?', '#']) {
            return Err("nothing may follow a ? or #, and in a password they are written %3F and %23");
        }
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (username, password) = credentials.map_or(Ok((None, None)), parse_credentials)?;
        let (hosts, path) = match rest.split_once('/') {
            Some((hosts, path)) => (hosts, Some(path)),
            None => (rest, None),
        };
        let (plain, tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (kind, true),
            None => (scheme.strip_prefix("redis").unwrap_or_default(), false),
        };
        let (servers, db) = match plain {
            "-cluster" => {
                if path.is_some_and(|path| !path.is_empty()) {
                    return Err("a cluster has one database and nothing follows its hosts");
                }
                (RedisServers::Cluster(parse_hosts(hosts, SERVER_PORT)?), 0)
            }
            "-sentinel" => {
                let path = path.unwrap_or_default();
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err("the name of the master is missing, as in redis-sentinel://host/master");
                }
                let servers = RedisServers::Sentinel {
                    sentinels: parse_hosts(hosts, SENTINEL_PORT)?,
                    master: decode(master)?,
                };
                (servers, parse_db(db)?)
            }
            _ => {
                if hosts.contains(',') {
                    return Err("one server has one host; several need redis-cluster:// or redis-sentinel://");
                }
                let server = parse_host(hosts, SERVER_PORT)?;
                (RedisServers::Single(server), parse_db(path.unwrap_or_default())?)
            }
        };
        Ok(RedisTarget {
            tls,
            username,
            password,
            db,
            ..RedisTarget::open(servers)
        })
    }

    /// `/path?db=0&user=name&pass=word`, spelled as the crate `redis` and others do.
    fn parse_socket(rest: &str) -> Result<RedisTarget, &'static str> {
        let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') || path.ends_with('/') {
            return Err("the path of a Unix socket begins with /, as in unix:///run/redis/redis.sock");
        }
        if rest.contains('#') {
            return Err("nothing may follow a #, and in a path or password it is written %23");
        }
        let mut target = RedisTarget::open(RedisServers::Socket(decode(path)?.into()));
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("db", db)) if !db.is_empty() => target.db = parse_db(db)?,
                Some(("user", user)) if !user.is_empty() => target.username = Some(decode(user)?),
                Some(("pass", password)) if !password.is_empty() => target.password = Some(decode(password)?),
                _ => {
                    return Err(
                        "after the path of a Unix socket stand db, user and pass, as in ?db=0&user=name&pass=word",
                    );
                }
            }
        }
        if target.username.is_some() && target.password.is_none() {
            return Err("a user needs a password");
        }
        Ok(target)
    }

    /// Servers that are open to everybody.
    fn open(servers: RedisServers) -> RedisTarget {
        RedisTarget {
            servers,
            tls: false,
            ca: None,
            client: None,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            db: 0,
        }
    }
}

type UserInfo = (Option<String>, Option<String>);

fn parse_credentials(text: &str) -> Result<UserInfo, &'static str> {
    if text.contains(['/', '@']) {
        return Err("in a user or password, / and @ are written %2F and %40");
    }
    let (username, password) = text
        .split_once(':')
        .ok_or("before the @ stands user:password or :password")?;
    if password.contains(':') {
        return Err("in a password, : is written %3A");
    }
    match (decode(username)?, decode(password)?) {
        (username, password) if username.is_empty() && password.is_empty() => Err("user and password are empty"),
        (username, password) if username.is_empty() => Ok((None, Some(password))),
        (username, password) => Ok((Some(username), Some(password))),
    }
}

fn parse_hosts(text: &str, default_port: u16) -> Result<Vec<RedisAddress>, &'static str> {
    text.split(',').map(|host| parse_host(host, default_port)).collect()
}

fn parse_host(text: &str, default_port: u16) -> Result<RedisAddress, &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("an IPv6 address has no closing ]")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("what stands in [] is no IPv6 address");
        }
        match port.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if port.is_empty() => (host, None),
            None => return Err("after an IPv6 address stands :port or nothing"),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address stands in [], as in [::1]:6379"),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("a host is empty");
    }
    if host.contains(['[', ']', '%', '\\']) {
        return Err("a host is a name or an IP address");
    }
    let port = match port {
        None => default_port,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 && port_is_digits(text) => port,
            _ => return Err("a port is a number from 1 to 65535"),
        },
    };
    Ok(RedisAddress {
        host: host.to_owned(),
        port,
    })
}

/// `parse` takes a leading plus.
fn port_is_digits(host: &str) -> bool {
    !host.contains('+')
}

fn parse_db(text: &str) -> Result<u32, &'static str> {
    match text {
        "" => Ok(0),
        // The server's own limit is an int.
        _ if text.bytes().all(|b| b.is_ascii_digit()) => text
            .parse()
            .ok()
            .filter(|db| *db <= i32::MAX as u32)
            .ok_or("the database is too large a number"),
        _ => Err("the database is a number, as in redis://host/0"),
    }
}

/// Percent-encoding to text.
fn decode(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "after a % stand two hexadecimal digits, and what is encoded is UTF-8";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|b| char::from(b).to_digit(16))
                .and_then(|d| u8::try_from(d).ok())
        };
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => return Err(WRONG),
        }
    }
    String::from_utf8(bytes).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> RedisAddress {
        RedisAddress {
            host: host.into(),
            port,
        }
    }

    fn parse(url: &str) -> RedisTarget {
        RedisTarget::parse(url).unwrap_or_else(|why| panic!("{url}: {why}"))
    }

    #[test]
    fn one_server() {
        let target = parse("redis://us%3Aer:p%40ss%2F%25@host:7000/3");
        assert_eq!(target.servers, RedisServers::Single(address("host", 7000)));
        assert_eq!(target.username.as_deref(), Some("us:er"));
        assert_eq!(target.password.as_deref(), Some("p@ss/%"));
        assert_eq!((target.db, target.tls), (3, false));
        assert_eq!(
            parse("rediss://[::1]").servers,
            RedisServers::Single(address("::1", 6379))
        );
        assert!(parse("rediss://[::1]:1/").tls);
        let target = parse("redis://:pw@host");
        assert_eq!((target.username, target.password.as_deref()), (None, Some("pw")));
    }

    #[test]
    fn a_cluster_and_sentinels() {
        let target = parse("rediss-cluster://u:p@a,b:7001,[fe80::1]:7002/");
        let seeds = vec![address("a", 6379), address("b", 7001), address("fe80::1", 7002)];
        assert_eq!((target.servers, target.tls), (RedisServers::Cluster(seeds), true));
        for (url, db) in [
            ("redis-sentinel://a,b:1/my%20master", 0),
            ("redis-sentinel://a,b:1/my%20master/2", 2),
        ] {
            let target = parse(url);
            let servers = RedisServers::Sentinel {
                sentinels: vec![address("a", 26_379), address("b", 1)],
                master: "my master".into(),
            };
            assert_eq!((target.servers, target.db), (servers, db));
        }
    }

    #[test]
    fn a_unix_socket() {
        let target = parse("redis+unix:///run/a%20b/redis.sock?db=3&user=me&pass=p%26w");
        assert_eq!(target.servers, RedisServers::Socket("/run/a b/redis.sock".into()));
        assert_eq!((target.db, target.tls), (3, false));
        let login = (target.username.as_deref(), target.password.as_deref());
        assert_eq!(login, (Some("me"), Some("p&w")));
        assert_eq!(parse("unix:///run/redis.sock").db, 0);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, why) in [
            ("host", "://"),
            ("http://host", "scheme"),
            ("redis://", "empty"),
            ("redis://host:0", "port"),
            ("redis://host:65536", "port"),
            ("redis://host:+1", "port"),
            ("redis://host:", "port"),
            ("redis://:1", "empty"),
            ("redis://::1", "[]"),
            ("redis://[::1", "]"),
            ("redis://[x]:1", "IPv6"),
            ("redis://a,b", "several"),
            ("redis://host/x", "database"),
            ("redis://host/1/2", "database"),
            ("redis://host/99999999999", "database"),
            ("redis://host?db=1", "?"),
            ("redis://ho st", "spaces"),
            ("redis://user@host", "user:password"),
            ("redis://:@host", "empty"),
            ("redis://u:a/b@host", "%2F"),
            ("redis://u:a%@host", "hexadecimal"),
            ("redis://u:%ff@host", "UTF-8"),
            ("redis-cluster://a,,b", "empty"),
            ("redis-cluster://a/1", "one database"),
            ("unix://run/redis.sock", "begins with /"),
            ("unix:///", "begins with /"),
            ("unix:///s?db=x", "database"),
            ("unix:///s?proto=3", "db, user and pass"),
            ("unix:///s?user=x", "password"),
            ("redis-sentinel://a", "master"),
            ("redis-sentinel://a//1", "master"),
        ] {
            let said = RedisTarget::parse(url).expect_err(url);
            assert!(said.contains(why), "{url}: {said}");
        }
    }

    #[test]
    fn credentials_are_never_printed() {
        let target = parse("redis://someone:s3cret@host");
        let printed = format!("{target:?} {target:#?}");
        assert!(!printed.contains("s3cret") && !printed.contains("someone"), "{printed}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(rediss?(-cluster|-sentinel|[+]unix)?://)?[a-z@:/%\\[\\],0-9?=&]{0,20}") {
            let _ = RedisTarget::parse(&text);
        }
    }
}
