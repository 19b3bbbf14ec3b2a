//! Reads the facts about a server from INFO. Pure.

use std::sync::Arc;

use redis::Value;

/// The facts of `INFO server`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The id of one life of one server; `None` if the server does not give it.
    pub(super) run_id: Option<Arc<str>>,
    /// The server runs in cluster mode.
    pub(super) is_of_cluster: bool,
}

impl Facts {
    /// Nothing is known of a server that refuses the question.
    pub(super) fn read(reply: &Value) -> Facts {
        let text = text(reply).unwrap_or_default();
        Facts {
            run_id: field(&text, "run_id").map(Arc::from),
            is_of_cluster: field(&text, "redis_mode") == Some("cluster"),
        }
    }
}

/// The eviction facts of `INFO memory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Eviction {
    /// `maxmemory-policy`.
    pub(super) policy: Arc<str>,
    /// Memory is bounded, and keys that never expire are thrown away when it is full: presence
    /// among them.
    pub(super) takes_presence: bool,
}

impl Eviction {
    /// `None` if the server does not give it.
    pub(super) fn read(reply: &Value) -> Option<Eviction> {
        let text = text(reply)?;
        let policy = field(&text, "maxmemory_policy")?;
        let is_bounded = field(&text, "maxmemory") != Some("0");
        Some(Eviction {
            policy: policy.into(),
            takes_presence: is_bounded && policy.starts_with("allkeys"),
        })
    }
}

/// Several masters share the slots, according to `CLUSTER INFO`.
pub(super) fn shares_slots(reply: &Value) -> bool {
    let text = text(reply).unwrap_or_default();
    field(&text, "cluster_size").is_some_and(|size| !matches!(size, "0" | "1"))
}

/// The epoch of the cluster, as far as this server knows it, by `CLUSTER INFO`.
pub(super) fn epoch(reply: &Value) -> Option<u64> {
    field(&text(reply)?, "cluster_current_epoch")?.parse().ok()
}

fn text(reply: &Value) -> Option<String> {
    match reply {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

/// The value of a line `name:value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    text.lines().find_map(value).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_server_says_who_it_is_and_what_it_throws_away() {
        let facts = Facts::read(&said("# Server\r\nredis_mode:cluster\r\nrun_id:ab12\r\n"));
        assert_eq!((facts.run_id.as_deref(), facts.is_of_cluster), (Some("ab12"), true));
        assert_eq!(Facts::read(&Value::Nil), Facts::default());
        let takes = |text: &str| Eviction::read(&said(text)).map(|eviction| eviction.takes_presence);
        for (text, expected) in [
            ("maxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n", Some(true)),
            ("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n", Some(false)),
            ("maxmemory:100\r\nmaxmemory_policy:noeviction\r\n", Some(false)),
            ("maxmemory:100\r\nmaxmemory_policy:volatile-ttl\r\n", Some(false)),
            ("used_memory:100\r\n", None),
        ] {
            assert_eq!(takes(text), expected, "{text}");
        }
        assert!(shares_slots(&said("cluster_size:3\r\n")) && !shares_slots(&said("cluster_size:1\r\n")));
        assert_eq!(epoch(&said("cluster_current_epoch:17\r\n")), Some(17));
    }
}
