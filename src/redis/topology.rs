//! The owner of each slot of a cluster. Pure.
//!
//! Without a cluster there is one server, which serves slot 0, and every key is in slot 0.

use redis::Value;

use super::facts;
use crate::config::RedisAddress;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// The slot of a key or channel. Text between the first `{` and the next `}` alone decides, if
/// there is any.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = match tag {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    };
    crc16(hashed.as_bytes()) % SLOTS
}

/// CRC16/XMODEM: polynomial 0x1021, from zero.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
        })
    })
}

/// A cluster as one of its servers sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClusterSlots {
    /// The server reports that the cluster works.
    pub(super) works: bool,
    /// Rises with each change, so that a server which was cut off is known by it.
    pub(super) epoch: u64,
    /// First slot, last slot, master.
    pub(super) ranges: Vec<(u16, u16, RedisAddress)>,
    /// Other servers that could be asked.
    pub(super) replicas: Vec<RedisAddress>,
}

impl ClusterSlots {
    /// Reads `CLUSTER INFO` and `CLUSTER SLOTS`, as answered by the server at `asked`.
    pub(super) fn read(info: &Value, slots: &Value, asked: &RedisAddress) -> Option<ClusterSlots> {
        let works = match info {
            Value::BulkString(text) => text.windows(16).any(|line| line == b"cluster_state:ok"),
            Value::VerbatimString { text, .. } => text.contains("cluster_state:ok"),
            _ => return None,
        };
        let Value::Array(lines) = slots else { return None };
        let mut shared = ClusterSlots {
            works,
            epoch: facts::epoch(info).unwrap_or_default(),
            ranges: Vec::with_capacity(lines.len()),
            replicas: Vec::new(),
        };
        for line in lines {
            let Value::Array(line) = line else { return None };
            let [Value::Int(first), Value::Int(last), master, replicas @ ..] = &line[..] else {
                return None;
            };
            let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if first > last || last >= SLOTS {
                return None;
            }
            shared.ranges.push((first, last, server(master, asked)?));
            shared
                .replicas
                .extend(replicas.iter().filter_map(|replica| server(replica, asked)));
        }
        Some(shared)
    }

    /// The first slot without an owner.
    pub(super) fn first_gap(&self) -> Option<u16> {
        let mut ranges: Vec<(u16, u16)> = self.ranges.iter().map(|(first, last, _)| (*first, *last)).collect();
        ranges.sort_unstable();
        let mut next = 0;
        for (first, last) in ranges {
            if first > next {
                return Some(next);
            }
            next = next.max(last + 1);
        }
        (next < SLOTS).then_some(next)
    }
}

/// `[host, port, id, ...]`; a server that does not know its own address leaves the host out.
fn server(value: &Value, asked: &RedisAddress) -> Option<RedisAddress> {
    let Value::Array(parts) = value else { return None };
    let [host, Value::Int(port), ..] = &parts[..] else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) if !host.is_empty() && host != b"?" => String::from_utf8(host.clone()).ok()?,
        Value::BulkString(_) | Value::Nil => asked.host.clone(),
        _ => return None,
    };
    Some(RedisAddress {
        host,
        port: u16::try_from(*port).ok()?,
    })
}

/// The address in `MOVED 3999 127.0.0.1:6381`. Without a host it is another port of the server that
/// sent it.
pub(super) fn named_address(text: &str, asked: &RedisAddress) -> Option<RedisAddress> {
    // IPv6 addresses come without brackets, so the port is what follows the last colon.
    let (host, port) = text.rsplit_once(':')?;
    Some(RedisAddress {
        host: if host.is_empty() {
            asked.host.clone()
        } else {
            host.to_owned()
        },
        port: port.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> RedisAddress {
        RedisAddress {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot_of("foo"), 12_182);
        assert_eq!(slot_of("{user1000}.following"), slot_of("user1000"));
        assert_eq!(slot_of("foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot_of("foo{{bar}}zap"), slot_of("{bar"));
        assert_eq!(slot_of("foo{bar}{zap}"), slot_of("bar"));
        assert_eq!(slot_of("p:{gateways}:lease:{x}"), slot_of("p:{gateways}"));
    }

    #[test]
    fn a_view_is_read_and_its_gaps_are_found() {
        let server = |host: Value, port| Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())]);
        let host = |name: &str| Value::BulkString(name.as_bytes().to_vec());
        let slots = |last| {
            Value::Array(vec![
                Value::Array(vec![Value::Int(100), Value::Int(last), server(Value::Nil, 2)]),
                Value::Array(vec![
                    Value::Int(0),
                    Value::Int(99),
                    server(host("a"), 1),
                    server(host("r"), 3),
                ]),
            ])
        };
        let info = Value::BulkString(b"cluster_enabled:1\r\ncluster_state:ok\r\n".to_vec());
        let asked = at("seed", 7);
        let shared = ClusterSlots::read(&info, &slots(16_383), &asked).unwrap();
        assert_eq!(shared.ranges, [(100, 16_383, at("seed", 2)), (0, 99, at("a", 1))]);
        assert_eq!(
            (shared.works, shared.first_gap(), &shared.replicas[..]),
            (true, None, &[at("r", 3)][..])
        );
        assert_eq!(
            ClusterSlots::read(&info, &slots(200), &asked).unwrap().first_gap(),
            Some(201)
        );
        assert_eq!(ClusterSlots::read(&info, &slots(16_384), &asked), None);
        assert_eq!(
            ClusterSlots::read(&info, &Value::Array(vec![]), &asked)
                .unwrap()
                .first_gap(),
            Some(0)
        );
        assert_eq!(ClusterSlots::read(&info, &Value::Okay, &asked), None);
    }

    #[test]
    fn an_address_is_named_in_three_ways() {
        let asked = at("me", 1);
        assert_eq!(named_address("10.0.0.1:7000", &asked), Some(at("10.0.0.1", 7000)));
        assert_eq!(named_address("fe80::1:7000", &asked), Some(at("fe80::1", 7000)));
        assert_eq!(named_address(":7000", &asked), Some(at("me", 7000)));
        assert_eq!(named_address("nonsense", &asked), None);
    }
}
