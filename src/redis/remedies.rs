//! The remedy for an error, for readers of the log, of `/readyz` or of a failed start. Pure.
//!
//! Redis names its complaint; this file names the key or command that mends it.

use redis::RedisError;

/// The code of [`with`] for MOVED and ASK from a server that was named with `redis://`.
pub(super) const NOT_ALONE: &str = "MOVED";

/// These words of a server, and behind them what to do about an error with this code.
pub(super) fn with(words: String, code: &str) -> String {
    match remedy(code, &words) {
        Some(remedy) => format!("{words}; {remedy}"),
        None => words,
    }
}

/// The same for a connection that could not be opened. `tls`: with `rediss://`.
pub(super) fn with_connecting(words: String, error: &RedisError, tls: bool) -> String {
    // Some errors of the handshake come with the server's code, others have it in their text.
    const CODES: [&str; 6] = ["WRONGPASS", "NOAUTH", "NOPERM", "DENIED", "NOPROTO", "LOADING"];
    let code = error.code().filter(|code| remedy(code, &words).is_some());
    let code = code.or_else(|| CODES.into_iter().find(|code| words.contains(code)));
    if code.is_some() || remedy("ERR", &words).is_some() {
        return with(words, code.unwrap_or("ERR"));
    }
    let garbled = words.contains("InvalidContentType") || words.contains("UnexpectedMessage");
    let cut_off = !error.is_connection_refusal() && (error.is_connection_dropped() || is_parse_error(error));
    let remedy = if tls && garbled {
        "this port does not speak TLS: begin redis.url with redis instead of rediss, or name the port that does"
    } else if tls && words.contains("certificate required") || words.contains("CertificateRequired") {
        "the server wants a certificate of its clients: set redis.cert and redis.key"
    } else if tls && words.contains("UnknownIssuer") {
        "nobody whom we know signed its certificate: set redis.ca to the authority's certificate"
    } else if !tls && cut_off {
        "if this port speaks TLS, begin redis.url with rediss instead of redis"
    } else {
        return words;
    };
    format!("{words}; {remedy}")
}

/// The same for a server that sends nothing. Redis waits for the end of a line while TLS sends
/// none.
pub(super) fn with_silent(words: String, tls: bool) -> String {
    if tls {
        format!("{words}; if this port does not speak TLS, begin redis.url with redis instead of rediss")
    } else {
        words
    }
}

fn is_parse_error(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Parse
}

/// Goes by the code that a message of Redis begins with. The text counts if the code is only ERR.
fn remedy(code: &str, words: &str) -> Option<&'static str> {
    let remedy = match code {
        "NOAUTH" => "write the password into redis.url, as in redis://user:password@host",
        "WRONGPASS" => "correct user and password in redis.url; in them / is written %2F, @ %40 and : %3A",
        "NOPERM" => {
            "allow that to this user: \"Securing Redis\" in docs/cluster.md has the ACL SETUSER that gateways need"
        }
        "DENIED" => {
            "give Redis a password (requirepass, or an ACL user) and write it into redis.url, or bind it to \
                     an address that only gateways reach and set protected-mode no"
        }
        "MISCONF" => {
            "Redis cannot write its snapshots: make room on its disk, or, as gateways need none, set save \"\""
        }
        "OOM" => "raise maxmemory of Redis, or find out what fills it",
        "LOADING" => "wait: Redis reads its data and will be there soon",
        "READONLY" => "this is a replica: name the master in redis.url, or let redis-sentinel:// find it",
        "MASTERDOWN" => "this is a replica that lost its master: name a master in redis.url",
        "NOREPLICAS" => "Redis wants more replicas than it has: see min-replicas-to-write",
        "CLUSTERDOWN" => "see with redis-cli --cluster check which slots nobody serves",
        "MOVED" | "ASK" => {
            "this server is one of a Redis Cluster: begin redis.url with redis-cluster:// instead of redis://"
        }
        "NOPROTO" => "gateways need Redis 6 or later",
        "ERR" if words.contains("cluster support disabled") => {
            "this server is no Redis Cluster: begin redis.url with redis:// instead of redis-cluster://"
        }
        "ERR" if words.contains("max number of clients") => "raise maxclients of Redis",
        "ERR" if words.contains("DB index is out of range") => {
            "the database at the end of redis.url is higher than Redis has: raise databases of Redis, or name a lower one"
        }
        "ERR" if words.contains("unknown command") => "gateways need Redis 6 or later, with this command not renamed",
        _ => return None,
    };
    Some(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_somebody_can_mend_say_how() {
        for (words, mend) in [
            ("NOAUTH Authentication required.", "redis.url"),
            ("WRONGPASS invalid username-password pair", "redis.url"),
            (
                "NOPERM User gw has no permissions to run the 'hset' command",
                "ACL SETUSER",
            ),
            ("DENIED Redis is running in protected mode", "requirepass"),
            ("MISCONF Errors writing to the AOF file", "disk"),
            ("OOM command not allowed when used memory > 'maxmemory'", "maxmemory"),
            ("LOADING Redis is loading the dataset in memory", "wait"),
            ("READONLY You can't write against a read only replica.", "master"),
            ("MOVED 1 127.0.0.1:7000", "redis-cluster://"),
            ("ERR This instance has cluster support disabled", "redis://"),
            ("ERR max number of clients reached", "maxclients"),
            ("ERR DB index is out of range", "databases"),
            ("NOPROTO unsupported protocol version", "Redis 6"),
        ] {
            let code = words.split(' ').next().unwrap_or_default();
            let said = with(words.to_owned(), code);
            let (before, after) = said.split_once("; ").expect(words);
            assert_eq!(before, words);
            assert!(after.contains(mend), "{said}");
        }
        assert_eq!(with("ERR something else".into(), "ERR"), "ERR something else");
        assert_eq!(with("NEW code".into(), "NEW"), "NEW code");
    }

    #[test]
    fn a_refused_connection_names_the_key_to_change() {
        let error = |text: &str| {
            RedisError::from(std::io::Error::new(
                std::io::ErrorKind::ConnectionReset,
                text.to_owned(),
            ))
        };
        let said = |text: &str, tls| with_connecting(text.to_owned(), &error(text), tls);
        assert!(said("received corrupt message of type InvalidContentType", true).contains("does not speak TLS"));
        assert!(said("connection reset", false).contains("rediss"));
        assert!(said("invalid peer certificate: UnknownIssuer", true).contains("redis.ca"));
        assert!(said("AuthenticationFailed: WRONGPASS invalid", false).contains("redis.url"));
        let refused = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(with_connecting("refused".into(), &refused, false), "refused");
    }
}
