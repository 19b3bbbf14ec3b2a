//! Operations to commands, and replies to answers. Pure.
//!
//! What a server's error means for the asker and for the connection is decided here, in [`verdict`], and nowhere else.

use std::sync::Arc;

use redis::{Cmd, ServerError, Value, cmd};

use super::keys::Names;
use crate::cluster::store::{Answer, Failure, FailureKind, Incarnation, Lease, Op, Registered};

/// Users that one SSCAN looks at: few enough for a server that others wait for.
const SCAN_COUNT: u32 = 500;

/// One command's purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// An operation; of `ReadDirectory` the first half.
    Op(Op),
    /// The second half of `ReadDirectory`: the leases of these gateways.
    Leases(Vec<(Arc<str>, Incarnation)>),
}

/// What a reply leads to.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// Through.
    Answer(Answer),
    /// Something more is to be asked first.
    Then(Step),
    /// Another server has this slot, for good (MOVED) or for this key (ASK).
    Elsewhere {
        /// `host:port`; the host is empty where it is the server's own that answered.
        address: String,
        /// ASK.
        asking: bool,
        /// The server's words.
        text: Arc<str>,
    },
    /// Not now, without doubt not carried out: worth another try.
    Again(Arc<str>),
}

/// What an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// For the asker.
    pub(super) kind: FailureKind,
    /// Nothing good can come from this connection: look for the master again.
    pub(super) connection_is_lost: bool,
}

/// What a server's error means.
pub(super) fn verdict(error: &ServerError) -> Verdict {
    let (kind, connection_is_lost) = match error.code() {
        // No master any more: writes belong elsewhere.
        "READONLY" => (FailureKind::Refused, true),
        // It answers, but serves nobody; trying to connect finds out when that is over.
        "LOADING" | "MASTERDOWN" => (FailureKind::Unavailable, true),
        // The password was changed and our user was logged out: the handshake will tell in its own words.
        "NOAUTH" => (FailureKind::Refused, true),
        // BUSY: a script that does not end. UNBLOCKED: somebody else's doing.
        "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "BUSY" | "UNBLOCKED" => (FailureKind::Unavailable, false),
        _ => (FailureKind::Refused, false),
    };
    Verdict {
        kind,
        connection_is_lost,
    }
}

/// Index into [`crate::metrics::BrokerCounters::LABELS`].
pub(super) fn kind_of(step: &Step) -> usize {
    let Step::Op(op) = step else { return 13 };
    match op {
        Op::SetPresence { .. } => 0,
        Op::ClearPresence { .. } => 1,
        Op::Locate { .. } => 2,
        Op::IndexAdd { .. } => 3,
        Op::IndexRemove { .. } => 4,
        Op::IndexScan { .. } => 5,
        Op::Publish { .. } => 6,
        Op::LeaseTake { .. } => 7,
        Op::LeaseWrite { .. } => 8,
        Op::LeaseRead { .. } => 9,
        Op::LeaseDrop { .. } => 10,
        Op::Register { .. } => 11,
        Op::Unregister { .. } => 12,
        Op::ReadDirectory => 13,
        Op::Claim { .. } => 14,
    }
}

/// The key or channel that decides which server is asked.
pub(super) fn routing_key(names: &Names, step: &Step) -> String {
    let Step::Op(op) = step else { return names.directory() };
    match op {
        Op::SetPresence { user, .. } | Op::ClearPresence { user, .. } | Op::Locate { user } => names.user(user),
        Op::IndexAdd { owner, .. } | Op::IndexRemove { owner, .. } | Op::IndexScan { owner, .. } => names.index(*owner),
        Op::Publish { channel, .. } => names.channel(channel),
        Op::LeaseTake { .. }
        | Op::LeaseWrite { .. }
        | Op::LeaseRead { .. }
        | Op::LeaseDrop { .. }
        | Op::Register { .. }
        | Op::Unregister { .. }
        | Op::ReadDirectory
        | Op::Claim { .. } => names.directory(),
    }
}

/// The command; `sharded`: a cluster, where channels belong to slots.
pub(super) fn command(names: &Names, step: &Step, sharded: bool) -> Cmd {
    let op = match step {
        Step::Op(op) => op,
        Step::Leases(gateways) => {
            let mut mget = cmd("MGET");
            for (id, _) in gateways {
                mget.arg(names.lease(id));
            }
            return mget;
        }
    };
    let with = |name: &str, key: String| {
        let mut command = cmd(name);
        command.arg(key);
        command
    };
    let mut command = match op {
        Op::SetPresence { user, .. } => with("HSET", names.user(user)),
        Op::ClearPresence { user, .. } => with("HDEL", names.user(user)),
        Op::Locate { user } => with("HGETALL", names.user(user)),
        Op::IndexAdd { owner, .. } => with("SADD", names.index(*owner)),
        Op::IndexRemove { owner, .. } => with("SREM", names.index(*owner)),
        Op::IndexScan { owner, .. } => with("SSCAN", names.index(*owner)),
        Op::Publish { channel, .. } => with(if sharded { "SPUBLISH" } else { "PUBLISH" }, names.channel(channel)),
        Op::LeaseTake { id, .. } | Op::LeaseWrite { id, .. } => with("SET", names.lease(id)),
        Op::LeaseRead { id } => with("GET", names.lease(id)),
        Op::LeaseDrop { id } => with("DEL", names.lease(id)),
        Op::Register { .. } => with("HSET", names.directory()),
        Op::Unregister { .. } => with("HDEL", names.directory()),
        Op::ReadDirectory => with("HGETALL", names.directory()),
        Op::Claim { task, .. } => with("SET", names.claim(task)),
    };
    match op {
        Op::SetPresence { owner, connections, .. } => command.arg(owner.to_string()).arg(*connections),
        Op::ClearPresence { owner, .. } => command.arg(owner.to_string()),
        Op::IndexAdd { users, .. } | Op::IndexRemove { users, .. } => {
            users.iter().fold(&mut command, |command, user| command.arg(&**user))
        }
        Op::IndexScan { cursor, .. } => command.arg(*cursor).arg("COUNT").arg(SCAN_COUNT),
        Op::Publish { payload, .. } => command.arg(&payload[..]),
        Op::LeaseTake { lease, ttl_ms, .. } => command.arg(lease.to_string()).arg("NX").arg("PX").arg(*ttl_ms),
        Op::LeaseWrite { lease, ttl_ms, .. } => command.arg(lease.to_string()).arg("PX").arg(*ttl_ms),
        Op::Register { id, incarnation } => command.arg(incarnation.to_string()).arg(&**id),
        Op::Unregister { incarnation } => command.arg(incarnation.to_string()),
        Op::Claim { by, ttl_ms, .. } => command.arg(by.to_string()).arg("NX").arg("PX").arg(*ttl_ms),
        Op::Locate { .. } | Op::LeaseRead { .. } | Op::LeaseDrop { .. } | Op::ReadDirectory => &mut command,
    };
    command
}

/// What a reply to that step leads to.
pub(super) fn outcome(step: &Step, reply: Value) -> Outcome {
    match reply {
        Value::ServerError(error) => outcome_of_error(&error),
        reply => read(step, reply).unwrap_or_else(|| {
            // Somebody else's key stands where ours should, or this is no Redis.
            Outcome::Answer(failed(
                FailureKind::Refused,
                "the reply is not of the kind that was asked for",
            ))
        }),
    }
}

/// A failed operation.
pub(super) fn failed(kind: FailureKind, text: &str) -> Answer {
    Answer::Failed(Failure {
        kind,
        text: text.into(),
    })
}

/// A server's error in its own words, as `redis-cli` shows them.
pub(super) fn words(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

fn outcome_of_error(error: &ServerError) -> Outcome {
    let text = words(error);
    match error.code() {
        code @ ("MOVED" | "ASK") => {
            // `MOVED 3999 127.0.0.1:6381`
            let address = error.details().and_then(|details| details.split(' ').nth(1));
            match address {
                Some(address) => Outcome::Elsewhere {
                    address: address.to_owned(),
                    asking: code == "ASK",
                    text: text.into(),
                },
                None => Outcome::Answer(failed(FailureKind::Unavailable, &text)),
            }
        }
        "TRYAGAIN" | "CLUSTERDOWN" => Outcome::Again(text.into()),
        _ => Outcome::Answer(failed(verdict(error).kind, &text)),
    }
}

fn read(step: &Step, reply: Value) -> Option<Outcome> {
    let op = match step {
        Step::Op(op) => op,
        Step::Leases(gateways) => return leases(gateways, reply).map(Outcome::Answer),
    };
    let answer = match op {
        Op::SetPresence { .. }
        | Op::ClearPresence { .. }
        | Op::IndexAdd { .. }
        | Op::IndexRemove { .. }
        | Op::LeaseWrite { .. }
        | Op::LeaseDrop { .. }
        | Op::Register { .. }
        | Op::Unregister { .. } => match reply {
            Value::Int(_) | Value::Okay => Answer::Done,
            _ => return None,
        },
        Op::Locate { .. } => Answer::Places(
            pairs(reply)?
                .into_iter()
                // A field of a later version or by another hand is no place that anybody could be sent to.
                .filter_map(|(owner, count)| Some((text(&owner)?.parse().ok()?, text(&count)?.parse().ok()?)))
                .collect(),
        ),
        Op::IndexScan { .. } => {
            let Value::Array(parts) = reply else { return None };
            let [cursor, users] = <[Value; 2]>::try_from(parts).ok()?;
            Answer::Users {
                cursor: text(&cursor)?.parse().ok()?,
                users: items(users)?
                    .iter()
                    .filter_map(|user| text(user).map(Arc::from))
                    .collect(),
            }
        }
        Op::Publish { .. } => match reply {
            Value::Int(count) => Answer::Count(u64::try_from(count).ok()?),
            _ => return None,
        },
        Op::LeaseTake { .. } | Op::Claim { .. } => match reply {
            Value::Okay => Answer::Taken(true),
            Value::Nil => Answer::Taken(false),
            _ => return None,
        },
        Op::LeaseRead { .. } => Answer::Lease(lease(&reply)?),
        Op::ReadDirectory => {
            let gateways: Vec<(Arc<str>, Incarnation)> = pairs(reply)?
                .into_iter()
                .filter_map(|(incarnation, id)| Some((text(&id)?.into(), text(&incarnation)?.parse().ok()?)))
                .collect();
            // MGET without a key is an error.
            if gateways.is_empty() {
                Answer::Directory(Vec::new())
            } else {
                return Some(Outcome::Then(Step::Leases(gateways)));
            }
        }
    };
    Some(Outcome::Answer(answer))
}

fn leases(gateways: &[(Arc<str>, Incarnation)], reply: Value) -> Option<Answer> {
    let values = items(reply)?;
    if values.len() != gateways.len() {
        return None;
    }
    let line = |((id, incarnation), value): (&(Arc<str>, Incarnation), &Value)| Registered {
        id: id.clone(),
        incarnation: *incarnation,
        // One lease that nobody can read must not hide all the others.
        lease: lease(value).flatten(),
    };
    Some(Answer::Directory(gateways.iter().zip(&values).map(line).collect()))
}

/// `None`: no lease of ours.
fn lease(value: &Value) -> Option<Option<Lease>> {
    match value {
        Value::Nil => Some(None),
        value => text(value)?.parse().ok().map(Some),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn items(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        _ => None,
    }
}

fn pairs(value: Value) -> Option<Vec<(Value, Value)>> {
    match value {
        Value::Map(pairs) => Some(pairs),
        Value::Array(items) if items.len() % 2 == 0 => {
            let mut items = items.into_iter();
            let mut pairs = Vec::new();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Some(pairs)
        }
        _ => None,
    }
}
