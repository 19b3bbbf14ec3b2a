//! Operations to commands, and replies to answers. Pure.
//!
//! [`verdict`] alone decides the meaning of a server's error for the request and for the
//! connection.

use std::sync::Arc;

use redis::{Cmd, ServerError, Value, cmd};

use super::keys::Names;
use super::remedies;
use crate::cluster::store::{Answer, Failure, FailureKind, Incarnation, Lease, Op, Registered};
use crate::metrics::RedisOperation;

/// Users that one SSCAN looks at: few enough not to delay the server's other clients.
const SCAN_COUNT: u32 = 500;

/// One command's purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// An operation; of `ReadDirectory` the first half.
    Op(Op),
    /// The second half of `ReadDirectory`: the leases of these gateways.
    Leases(Vec<(Arc<str>, Incarnation)>),
}

/// The result of a reply.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// Through.
    Answer(Answer),
    /// Another step is needed first.
    Then(Step),
    /// Another server has this slot, for good (MOVED) or for this key (ASK).
    Elsewhere {
        /// As the server wrote it, see [`super::topology::named_address`].
        address: String,
        /// ASK.
        asking: bool,
        /// The server's words.
        text: Arc<str>,
    },
}

/// The meaning of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// For the asker.
    pub(super) kind: FailureKind,
    /// Nothing good can come from this connection: look for the master again.
    pub(super) connection_is_lost: bool,
    /// As above, and this server gets no more commands: it is no master any more.
    pub(super) is_demoted: bool,
}

/// The meaning of a server's error.
pub(super) fn verdict(error: &ServerError) -> Verdict {
    let (kind, connection_is_lost) = match error.code() {
        // No master any more: writes belong elsewhere.
        "READONLY" => (FailureKind::Refused, true),
        // It answers, but serves no client. Attempts to connect find out when that is over.
        "LOADING" | "MASTERDOWN" => (FailureKind::Unavailable, true),
        // The password was changed and our user was logged out. The next handshake fails with the
        // server's own words.
        "NOAUTH" => (FailureKind::Refused, true),
        // BUSY: a script that does not end. UNBLOCKED: another client's doing.
        "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "BUSY" | "UNBLOCKED" => (FailureKind::Unavailable, false),
        _ => (FailureKind::Refused, false),
    };
    Verdict {
        kind,
        connection_is_lost,
        is_demoted: matches!(error.code(), "READONLY" | "MASTERDOWN"),
    }
}

/// The metric's operation of a step; both halves of `ReadDirectory` count.
pub(super) fn operation(step: &Step) -> RedisOperation {
    let Step::Op(op) = step else {
        return RedisOperation::ReadDirectory;
    };
    match op {
        Op::SetPresence { .. } => RedisOperation::SetPresence,
        Op::ClearPresence { .. } => RedisOperation::ClearPresence,
        Op::Locate { .. } => RedisOperation::Locate,
        Op::IndexAdd { .. } => RedisOperation::IndexAdd,
        Op::IndexRemove { .. } => RedisOperation::IndexRemove,
        Op::IndexScan { .. } => RedisOperation::IndexScan,
        Op::Publish { .. } => RedisOperation::Publish,
        Op::LeaseTake { .. } => RedisOperation::LeaseTake,
        Op::LeaseWrite { .. } => RedisOperation::LeaseWrite,
        Op::LeaseRead { .. } => RedisOperation::LeaseRead,
        Op::LeaseDrop { .. } => RedisOperation::LeaseDrop,
        Op::Register { .. } => RedisOperation::Register,
        Op::Unregister { .. } => RedisOperation::Unregister,
        Op::ReadDirectory => RedisOperation::ReadDirectory,
        Op::Claim { .. } => RedisOperation::Claim,
        Op::KeepPresence { .. } => RedisOperation::KeepPresence,
    }
}

/// The key or channel that decides which server gets the step.
pub(super) fn routing_key(names: &Names, step: &Step) -> String {
    let Step::Op(op) = step else { return names.directory() };
    match op {
        Op::SetPresence { user, .. }
        | Op::KeepPresence { user, .. }
        | Op::ClearPresence { user, .. }
        | Op::Locate { user } => names.user(user),
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
        Op::KeepPresence { user, .. } => with("HSETNX", names.user(user)),
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
        Op::SetPresence { owner, connections, .. } | Op::KeepPresence { owner, connections, .. } => {
            command.arg(owner.to_string()).arg(*connections)
        }
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

/// The result of a reply to that step.
pub(super) fn outcome(step: &Step, reply: Value) -> Outcome {
    match reply {
        Value::ServerError(error) => outcome_of_error(&error),
        reply => read(step, reply).unwrap_or_else(|| {
            // A foreign value is in our key, or this is no Redis.
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

/// A server's error in its own words, and what to do about it.
pub(super) fn explained(error: &ServerError) -> String {
    remedies::with(words(error), error.code())
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
        _ => Outcome::Answer(failed(verdict(error).kind, &explained(error))),
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
                // A field of a later version or by another writer is no location that a message
                // could be sent to.
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
        Op::KeepPresence { .. } => match reply {
            Value::Int(new) => Answer::Taken(new == 1),
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
        // One unreadable lease must not hide the others.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use redis::parse_redis_value;

    use super::*;
    use crate::cluster::store::{Channel, LeaseState, Task};

    const LIFE: Incarnation = Incarnation(0xab);

    fn one_of_each() -> Vec<(Op, &'static str)> {
        let (user, id): (Arc<str>, Arc<str>) = ("bob".into(), "gw".into());
        let lease = Lease {
            incarnation: LIFE,
            state: LeaseState::Synced,
            renewals: 7,
            partitions: 64,
            keyed: false,
            reads_bodies: false,
        };
        let (owner, incarnation, ttl_ms) = (LIFE, LIFE, 500);
        let users = vec![user.clone(), "ann".into()];
        vec![
            (
                Op::SetPresence {
                    user: user.clone(),
                    owner,
                    connections: 2,
                },
                "HSET p:user:bob 00000000000000ab 2",
            ),
            (
                Op::ClearPresence {
                    user: user.clone(),
                    owner,
                },
                "HDEL p:user:bob 00000000000000ab",
            ),
            (Op::Locate { user }, "HGETALL p:user:bob"),
            (
                Op::IndexAdd {
                    owner,
                    users: users.clone(),
                },
                "SADD p:index:00000000000000ab bob ann",
            ),
            (
                Op::IndexRemove { owner, users },
                "SREM p:index:00000000000000ab bob ann",
            ),
            (
                Op::IndexScan { owner, cursor: 3 },
                "SSCAN p:index:00000000000000ab 3 COUNT 500",
            ),
            (
                Op::Publish {
                    channel: Channel::All,
                    payload: Bytes::from_static(b"hi"),
                },
                "PUBLISH p:all hi",
            ),
            (
                Op::LeaseTake {
                    id: id.clone(),
                    lease,
                    ttl_ms,
                },
                "SET p:{gateways}:lease:gw 00000000000000ab synced 7 64 NX PX 500",
            ),
            (
                Op::LeaseWrite {
                    id: id.clone(),
                    lease,
                    ttl_ms,
                },
                "SET p:{gateways}:lease:gw 00000000000000ab synced 7 64 PX 500",
            ),
            (Op::LeaseRead { id: id.clone() }, "GET p:{gateways}:lease:gw"),
            (Op::LeaseDrop { id: id.clone() }, "DEL p:{gateways}:lease:gw"),
            (
                Op::Register { id, incarnation },
                "HSET p:{gateways} 00000000000000ab gw",
            ),
            (Op::Unregister { incarnation }, "HDEL p:{gateways} 00000000000000ab"),
            (Op::ReadDirectory, "HGETALL p:{gateways}"),
            (
                Op::Claim {
                    task: Task::Sweep(LIFE),
                    by: LIFE,
                    ttl_ms,
                },
                "SET p:{gateways}:sweep:00000000000000ab 00000000000000ab NX PX 500",
            ),
            (
                Op::KeepPresence {
                    user: "bob".into(),
                    owner: LIFE,
                    connections: 2,
                },
                "HSETNX p:user:bob 00000000000000ab 2",
            ),
        ]
    }

    fn line(command: &Cmd) -> String {
        let words = command.args_iter().map(|arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => "?".to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn reply(text: &str) -> Value {
        parse_redis_value(text.replace('|', "\r\n").as_bytes()).unwrap()
    }

    fn answer(op: Op, text: &str) -> Answer {
        match outcome(&Step::Op(op), reply(text)) {
            Outcome::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_operation_is_one_command_and_has_a_label() {
        let names = Names::new("p:", 0);
        for (at, (op, expected)) in one_of_each().into_iter().enumerate() {
            let step = Step::Op(op);
            assert_eq!(line(&command(&names, &step, false)), expected);
            assert_eq!(operation(&step) as usize, at, "one of each, in the order of the labels");
            let key = routing_key(&names, &step);
            assert!(expected.contains(&key), "{key} decides where {expected} goes");
        }
        let publish = Step::Op(one_of_each().swap_remove(6).0);
        assert_eq!(line(&command(&names, &publish, true)), "SPUBLISH p:all hi");
        let leases = Step::Leases(vec![("a".into(), LIFE), ("b".into(), LIFE)]);
        assert_eq!(
            line(&command(&names, &leases, true)),
            "MGET p:{gateways}:lease:a p:{gateways}:lease:b"
        );
    }

    #[test]
    fn replies_become_answers_and_nonsense_by_other_hands_is_left_out() {
        let locate = || Op::Locate { user: "bob".into() };
        let map = "%3|$16|00000000000000ab|$1|2|$3|new|$1|1|$16|00000000000000cd|$1|x|";
        assert_eq!(answer(locate(), map), Answer::Places(vec![(LIFE, 2)]));
        assert_eq!(
            answer(locate(), "*2|$16|00000000000000ab|$1|2|"),
            Answer::Places(vec![(LIFE, 2)])
        );
        let scan = || Op::IndexScan { owner: LIFE, cursor: 0 };
        let users = vec!["bob".into()];
        assert_eq!(
            answer(scan(), "*2|$2|17|*1|$3|bob|"),
            Answer::Users { cursor: 17, users }
        );
        let read = || Op::LeaseRead { id: "gw".into() };
        assert_eq!(answer(read(), "_|"), Answer::Lease(None));
        for (op, wrong) in [(locate(), "+OK|"), (scan(), "*1|$1|0|"), (read(), "$8|nonsense|")] {
            let Answer::Failed(failure) = answer(op, wrong) else {
                panic!("{wrong}")
            };
            assert_eq!(failure.kind, FailureKind::Refused);
        }
    }

    #[test]
    fn the_directory_is_read_in_two_steps() {
        let read = Step::Op(Op::ReadDirectory);
        assert_eq!(outcome(&read, reply("%0|")), Outcome::Answer(Answer::Directory(vec![])));
        let Outcome::Then(step) = outcome(&read, reply("%2|$16|00000000000000ab|$2|gw|$3|odd|$1|x|")) else {
            panic!()
        };
        assert_eq!(step, Step::Leases(vec![("gw".into(), LIFE)]));
        let registered = |lease| {
            Outcome::Answer(Answer::Directory(vec![Registered {
                id: "gw".into(),
                incarnation: LIFE,
                lease,
            }]))
        };
        assert_eq!(outcome(&step, reply("*1|_|")), registered(None));
        assert_eq!(outcome(&step, reply("*1|$3|odd|")), registered(None));
        assert!(matches!(
            outcome(&step, reply("*0|")),
            Outcome::Answer(Answer::Failed(_))
        ));
    }

    #[test]
    fn errors_mean_what_the_contract_says() {
        use FailureKind::{Refused, Unavailable};
        for (error, kind, lost) in [
            ("OOM command not allowed", Refused, false),
            ("NOPERM no", Refused, false),
            ("MISCONF disk", Refused, false),
            ("WRONGTYPE key", Refused, false),
            ("READONLY replica", Refused, true),
            ("NOAUTH who", Refused, true),
            ("LOADING data", Unavailable, true),
            ("MASTERDOWN link", Unavailable, true),
            ("CLUSTERDOWN down", Unavailable, false),
            ("TRYAGAIN later", Unavailable, false),
        ] {
            let Value::ServerError(parsed) = reply(&format!("-{error}|")) else {
                panic!()
            };
            assert_eq!(words(&parsed), error);
            let expected = Verdict {
                kind,
                connection_is_lost: lost,
                is_demoted: ["READONLY", "MASTERDOWN"].contains(&parsed.code()),
            };
            assert_eq!(verdict(&parsed), expected, "{error}");
            let expected = Outcome::Answer(failed(kind, &explained(&parsed)));
            assert_eq!(
                outcome(&Step::Op(Op::ReadDirectory), Value::ServerError(parsed)),
                expected
            );
        }
        for (error, asking) in [("MOVED 1 h:2", false), ("ASK 1 h:2", true)] {
            let expected = Outcome::Elsewhere {
                address: "h:2".into(),
                asking,
                text: error.into(),
            };
            assert_eq!(
                outcome(&Step::Op(Op::ReadDirectory), reply(&format!("-{error}|"))),
                expected
            );
        }
    }

    proptest! {
        #[test]
        fn no_reply_panics(bytes in "[%*$:_+~-][0-9a-f]{0,3}\r\n([$:*_][0-3]\r\n[a-z]{0,3}(\r\n)?){0,5}") {
            if let Ok(value) = parse_redis_value(bytes.as_bytes()) {
                for (op, _) in one_of_each() {
                    let _ = outcome(&Step::Op(op), value.clone());
                }
                let _ = outcome(&Step::Leases(vec![("gw".into(), LIFE)]), value);
            }
        }
    }
}
