//! From a request's path, method, query and body to its action.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{AdminError, AdminReply, Request};
use crate::ids::{is_valid_channel, is_valid_user_id};
use crate::wire::ws::close::CloseReason;

/// Connections on a page if the request has no limit.
const PAGE: usize = 100;
/// The largest limit that a request may have.
const PAGE_MAX: usize = 1000;
/// The most receivers of one message.
const RECEIVERS_MAX: usize = 1000;

const DOCUMENT: &str = "/admin/openapi.json";
const CONNECTIONS: &str = "/admin/connections";
const CONNECTION: &str = "/admin/connections/{connId}";
const USER: &str = "/admin/users/{userId}";
const USER_CONNECTIONS: &str = "/admin/users/{userId}/connections";
const USER_CHANNEL: &str = "/admin/users/{userId}/channels/{channel}";
const CHANNELS: &str = "/admin/channels";
const MESSAGES: &str = "/admin/messages";
const PUBLISH: &str = "/admin/publish";
const BROADCAST: &str = "/admin/broadcast";
const DRAIN: &str = "/admin/drain";

/// Every path with its methods, without the page for people, which is not for programs. `HEAD` goes
/// where `GET` goes. A name in braces stands for one segment of any text.
pub const ROUTES: &[(&str, &[&str])] = &[
    (DOCUMENT, &["GET"]),
    (CONNECTIONS, &["GET"]),
    (CONNECTION, &["GET", "DELETE"]),
    (USER, &["GET"]),
    (USER_CONNECTIONS, &["DELETE"]),
    (USER_CHANNEL, &["DELETE"]),
    (CHANNELS, &["GET"]),
    (MESSAGES, &["POST"]),
    (PUBLISH, &["POST"]),
    (BROADCAST, &["POST"]),
    (DRAIN, &["POST"]),
];

/// The action of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Shows the document of this API.
    Document,
    /// Shows a page of connections.
    ListConnections {
        /// Of this user only.
        user: Option<String>,
        /// Where to go on.
        cursor: Option<Cursor>,
        /// At most so many.
        limit: usize,
    },
    /// Shows one connection.
    ShowConnection(Uuid),
    /// Closes one.
    CloseConnection(Uuid, CloseReason),
    /// Shows where a user is.
    ShowUser(String),
    /// Closes all connections of a user.
    CloseUser(String, CloseReason),
    /// Ends the subscriptions of a user to a channel.
    EndSubscription {
        /// The user.
        user: String,
        /// The channel.
        channel: String,
    },
    /// Shows a page of channels.
    ListChannels {
        /// The prefix of their names.
        prefix: String,
        /// The name that they come after, in byte order.
        after: String,
        /// At most so many.
        limit: usize,
    },
    /// Sends a message.
    Send {
        /// The receivers.
        to: Receivers,
        /// The user in whose name; empty: the system.
        from: String,
        /// JSON as it was sent.
        content: &'a str,
    },
    /// Publishes.
    Publish {
        /// The channel.
        channel: String,
        /// The user in whose name; empty: the system.
        from: String,
        /// JSON as it was sent.
        content: &'a str,
    },
    /// Sends to every connection.
    Broadcast {
        /// JSON as it was sent.
        content: &'a str,
    },
    /// Begins a drain.
    Drain,
}

/// The receivers of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Receivers {
    /// This one.
    One(String),
    /// Each of these once, at least one.
    Many(Vec<String>),
}

impl Action<'_> {
    /// The change that it makes, for the log; `None` if it only reads.
    pub fn change(&self) -> Option<String> {
        match self {
            Action::Document
            | Action::ListConnections { .. }
            | Action::ListChannels { .. }
            | Action::ShowConnection(_)
            | Action::ShowUser(_) => None,
            Action::CloseConnection(id, reason) => Some(format!("close connection {id} with {}", reason.code())),
            Action::CloseUser(user, reason) => {
                Some(format!("close all connections of {user:?} with {}", reason.code()))
            }
            Action::EndSubscription { user, channel } => {
                Some(format!("end the subscriptions of {user:?} to {channel:?}"))
            }
            Action::Send { to, from, .. } => Some(match to {
                Receivers::One(to) => format!("send to {to:?}{}", as_whom(from)),
                Receivers::Many(to) => format!("send to {} users{}", to.len(), as_whom(from)),
            }),
            Action::Publish { channel, from, .. } => Some(format!("publish on {channel:?}{}", as_whom(from))),
            Action::Broadcast { .. } => Some("broadcast".into()),
            Action::Drain => Some("drain".into()),
        }
    }
}

fn as_whom(from: &str) -> String {
    match from {
        "" => String::new(),
        from => format!(" as {from:?}"),
    }
}

/// Where a walk through all connections goes on. A connection of a user keeps its shard and slot
/// for as long as it lives. So a connection that stays is listed exactly once, even while others
/// come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The shard.
    pub shard: u16,
    /// The next slot to look at.
    pub slot: u32,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.shard, self.slot)
    }
}

/// Not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (shard, slot) = text.split_once('.').ok_or(NotACursor)?;
        let cursor = Cursor {
            shard: shard.parse().map_err(|_| NotACursor)?,
            slot: slot.parse().map_err(|_| NotACursor)?,
        };
        // A second spelling of the same value is refused.
        if cursor.to_string() == text {
            Ok(cursor)
        } else {
            Err(NotACursor)
        }
    }
}

/// Reads the action of a request.
///
/// # Errors
/// The answer that refuses it.
pub fn read(request: &Request) -> Result<Action<'_>, AdminReply> {
    let Some((route, methods, [named, second])) = find(&request.path) else {
        return Err(AdminReply::refuse(AdminError::NotFound, "there is no such path"));
    };
    let method = match &*request.method {
        "HEAD" => "GET",
        method => method,
    };
    if !methods.contains(&method) {
        return Err(not_allowed(methods));
    }
    match (route, method) {
        (DOCUMENT, _) => Ok(Action::Document),
        (CONNECTIONS, _) => read_list(&request.query),
        (CONNECTION, method) => {
            let id = read_conn_id(named)?;
            Ok(match method {
                "DELETE" => Action::CloseConnection(id, read_code(&request.query)?),
                _ => Action::ShowConnection(id),
            })
        }
        (USER, _) => read_user(named).map(Action::ShowUser),
        (USER_CONNECTIONS, _) => Ok(Action::CloseUser(read_user(named)?, read_code(&request.query)?)),
        (USER_CHANNEL, _) => Ok(Action::EndSubscription {
            user: read_user(named)?,
            channel: check_channel(read_segment(second)?)?,
        }),
        (CHANNELS, _) => read_channels(&request.query),
        (MESSAGES, _) => read_message(&request.body),
        (PUBLISH, _) => read_publication(&request.body),
        (BROADCAST, _) => {
            let content = read_body(&request.body)?.content()?;
            Ok(Action::Broadcast { content })
        }
        (DRAIN, _) => Ok(Action::Drain),
        (route, _) => unreachable!("{route} is in the table"),
    }
}

/// The route of a path, its methods, and what stands where it has names in braces.
fn find(path: &str) -> Option<(&'static str, &'static [&'static str], [&str; 2])> {
    ROUTES.iter().find_map(|(route, methods)| {
        let (mut named, mut names) = ([""; 2], 0);
        let mut segments = path.split('/');
        for expected in route.split('/') {
            let segment = segments.next()?;
            if expected.starts_with('{') {
                *named.get_mut(names)? = segment;
                names += 1;
            } else if segment != expected {
                return None;
            }
        }
        segments.next().is_none().then_some((*route, *methods, named))
    })
}

/// The path has these methods only; `HEAD` goes where `GET` goes.
pub fn not_allowed(methods: &[&str]) -> AdminReply {
    let mut allowed = methods.to_vec();
    if let Some(get) = allowed.iter().position(|method| *method == "GET") {
        allowed.insert(get + 1, "HEAD");
    }
    let allowed = allowed.join(", ");
    AdminReply {
        allow: Some(allowed.clone()),
        ..AdminReply::refuse(AdminError::MethodNotAllowed, &format!("only {allowed} here"))
    }
}

fn bad(message: impl Into<String>) -> AdminReply {
    AdminReply::refuse(AdminError::BadRequest, &message.into())
}

fn read_conn_id(segment: &str) -> Result<Uuid, AdminReply> {
    let text = read_segment(segment)?;
    // Text that is no id names no connection either.
    let hyphenated = Some(&text).filter(|text| text.len() == 36);
    let id = hyphenated.and_then(|text| Uuid::try_parse(text).ok());
    id.ok_or_else(no_such_connection)
}

/// The connection is not here, or not any more.
pub fn no_such_connection() -> AdminReply {
    AdminReply::refuse(AdminError::NotFound, "this gateway has no such connection")
}

fn read_segment(segment: &str) -> Result<String, AdminReply> {
    decode(segment, false).ok_or_else(|| bad("the path is not percent-encoded UTF-8"))
}

fn read_user(segment: &str) -> Result<String, AdminReply> {
    check_user(read_segment(segment)?)
}

fn check_channel(channel: String) -> Result<String, AdminReply> {
    if is_valid_channel(&channel) {
        Ok(channel)
    } else {
        Err(bad(
            "the name of a channel is 1 to 255 bytes of UTF-8 without control characters",
        ))
    }
}

/// The close code of `?code=`, else 3503.
fn read_code(query: &str) -> Result<CloseReason, AdminReply> {
    let [code] = read_query(query, ["code"])?;
    let Some(code) = code else {
        return Ok(CloseReason::Administrator);
    };
    // A second spelling of the same number is refused.
    let digits = code.len() == 4 && code.bytes().all(|byte| byte.is_ascii_digit());
    let reason = code.parse().ok().filter(|_| digits).and_then(CloseReason::by_order);
    reason.ok_or_else(|| {
        bad("code is a close code from 3000 to 4999: 3011 asks the client to come back, 3503 tells it not to")
    })
}

fn check_user(user: String) -> Result<String, AdminReply> {
    if is_valid_user_id(&user) {
        Ok(user)
    } else {
        Err(bad("a user id is 1 to 128 bytes of UTF-8 without control characters"))
    }
}

/// The values of these names in a query. Other names are ignored, and an empty value counts as
/// absent.
fn read_query<const N: usize>(query: &str, names: [&str; N]) -> Result<[Option<String>; N], AdminReply> {
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = decode(name, true).zip(decode(value, true));
        let (name, value) = decoded.ok_or_else(|| bad("the query is not percent-encoded UTF-8"))?;
        let Some(index) = names.iter().position(|known| *known == name) else {
            continue;
        };
        if !value.is_empty() && values[index].replace(value).is_some() {
            return Err(bad(format!("{name} is given twice")));
        }
    }
    Ok(values)
}

fn read_list<'a>(query: &str) -> Result<Action<'a>, AdminReply> {
    let [user, cursor, limit] = read_query(query, ["user", "cursor", "limit"])?;
    Ok(Action::ListConnections {
        user: user.map(check_user).transpose()?,
        cursor: cursor
            .map(|cursor| cursor.parse().map_err(|NotACursor| bad_cursor()))
            .transpose()?,
        limit: read_limit(limit)?,
    })
}

fn read_channels<'a>(query: &str) -> Result<Action<'a>, AdminReply> {
    let [prefix, cursor, limit] = read_query(query, ["prefix", "cursor", "limit"])?;
    let after = cursor.unwrap_or_default();
    if !after.is_empty() && !is_valid_channel(&after) {
        return Err(bad_cursor());
    }
    Ok(Action::ListChannels {
        prefix: prefix.unwrap_or_default(),
        after,
        limit: read_limit(limit)?,
    })
}

fn read_limit(limit: Option<String>) -> Result<usize, AdminReply> {
    let limit = limit.map_or(Some(PAGE), |limit| {
        limit.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit))
    });
    limit.ok_or_else(|| bad(format!("limit is a whole number from 1 to {PAGE_MAX}")))
}

/// Nothing goes on there.
pub fn bad_cursor() -> AdminReply {
    bad("cursor is not one that an earlier page gave")
}

/// The keys that some body has. Unknown ones are ignored.
#[derive(Deserialize)]
struct Body<'a> {
    to: Option<OneOrMore>,
    channel: Option<String>,
    from: Option<String>,
    /// `Some` also for a JSON `null`, which is content like any other.
    #[serde(borrow, default, deserialize_with = "raw_even_if_null")]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn raw_even_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Body<'a> {
    fn content(&self) -> Result<&'a str, AdminReply> {
        let content = self.content.ok_or_else(|| bad("content is missing"))?;
        Ok(content.get())
    }

    /// The sender: the named user, or the system if none is named.
    fn from(&mut self) -> Result<String, AdminReply> {
        match self.from.take() {
            Some(from) if !from.is_empty() => check_user(from),
            _ => Ok(String::new()),
        }
    }
}

fn read_body(body: &[u8]) -> Result<Body<'_>, AdminReply> {
    let text = std::str::from_utf8(body).map_err(|_| bad("the body is not UTF-8"))?;
    // serde takes an array for a struct.
    if text.trim_start().starts_with('[') {
        return Err(bad("the body is not the JSON object that is wanted, but an array"));
    }
    serde_json::from_str(text).map_err(|error| bad(format!("the body is not the JSON object that is wanted: {error}")))
}

fn read_message(body: &[u8]) -> Result<Action<'_>, AdminReply> {
    let mut body = read_body(body)?;
    let content = body.content()?;
    let to = match body.to.take().ok_or_else(|| bad("to is missing"))? {
        OneOrMore::One(to) => Receivers::One(check_user(to)?),
        OneOrMore::More(to) if to.is_empty() || to.len() > RECEIVERS_MAX => {
            return Err(bad(format!("to is a user, or a list of 1 to {RECEIVERS_MAX} users")));
        }
        OneOrMore::More(to) => {
            let mut once = to.into_iter().map(check_user).collect::<Result<Vec<_>, _>>()?;
            once.sort_unstable();
            once.dedup();
            Receivers::Many(once)
        }
    };
    let from = body.from()?;
    Ok(Action::Send { to, from, content })
}

fn read_publication(body: &[u8]) -> Result<Action<'_>, AdminReply> {
    let mut body = read_body(body)?;
    let content = body.content()?;
    let channel = check_channel(body.channel.take().ok_or_else(|| bad("channel is missing"))?)?;
    let from = body.from()?;
    Ok(Action::Publish { channel, from, content })
}

/// Undoes percent-encoding; `None` if it is malformed or hides what is not UTF-8.
fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(method: &str, target: &str, body: &str) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            body: body.to_owned().into(),
        }
    }

    /// The status and code of a refusal.
    fn refused(method: &str, target: &str, body: &str) -> (u16, String) {
        let answer = read(&request(method, target, body)).unwrap_err();
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(!json["error"]["message"].as_str().unwrap().is_empty());
        (answer.status, json["error"]["code"].as_str().unwrap().to_owned())
    }

    const ID: &str = "0190a5c4-0000-7000-8000-000000000001";

    #[test]
    fn every_route_is_understood() {
        let id = Uuid::try_parse(ID).unwrap();
        let message = r#"{"to":"bob","content": {"a" :1e400},"more":1}"#;
        let content = r#"{"a" :1e400}"#;
        let publication = r#"{"channel":"room","content":null}"#;
        for (method, target, body, expected) in [
            ("GET", "/admin/openapi.json", "", Action::Document),
            (
                "DELETE",
                &*format!("/admin/connections/{ID}"),
                "",
                Action::CloseConnection(id, CloseReason::Administrator),
            ),
            (
                "DELETE",
                &*format!("/admin/connections/{ID}?code=3011&x=1"),
                "",
                Action::CloseConnection(id, CloseReason::Reconnect),
            ),
            (
                "HEAD",
                &*format!("/admin/connections/{}", ID.to_uppercase()),
                "",
                Action::ShowConnection(id),
            ),
            (
                "GET",
                "/admin/users/a%2Fb%25+%F0%9F%98%80",
                "",
                Action::ShowUser("a/b%+😀".into()),
            ),
            (
                "DELETE",
                "/admin/users/bob/connections",
                "",
                Action::CloseUser("bob".into(), CloseReason::Administrator),
            ),
            (
                "DELETE",
                "/admin/users/bob/connections?code=4000",
                "",
                Action::CloseUser("bob".into(), CloseReason::Ordered(4000)),
            ),
            (
                "DELETE",
                "/admin/users/a%2Fb/channels/room%2F1",
                "",
                Action::EndSubscription {
                    user: "a/b".into(),
                    channel: "room/1".into(),
                },
            ),
            (
                "POST",
                "/admin/messages",
                message,
                Action::Send {
                    to: Receivers::One("bob".into()),
                    from: String::new(),
                    content,
                },
            ),
            (
                "POST",
                "/admin/messages",
                r#"{"to":["bob","alice","bob"],"from":"carol","content":1}"#,
                Action::Send {
                    to: Receivers::Many(vec!["alice".into(), "bob".into()]),
                    from: "carol".into(),
                    content: "1",
                },
            ),
            (
                "GET",
                "/admin/channels?prefix=room%3A&cursor=room%3A7&limit=5",
                "",
                Action::ListChannels {
                    prefix: "room:".into(),
                    after: "room:7".into(),
                    limit: 5,
                },
            ),
            (
                "POST",
                "/admin/publish",
                publication,
                Action::Publish {
                    channel: "room".into(),
                    from: String::new(),
                    content: "null",
                },
            ),
            (
                "POST",
                "/admin/broadcast",
                r#"{"content":[1, 2]}"#,
                Action::Broadcast { content: "[1, 2]" },
            ),
            ("POST", "/admin/drain", "", Action::Drain),
        ] {
            assert_eq!(read(&request(method, target, body)).unwrap(), expected);
        }
    }

    #[test]
    fn lists_have_a_limit_and_go_on() {
        let list = |query: &str| match read(&request("GET", &format!("/admin/connections?{query}"), "")) {
            Ok(Action::ListConnections { user, cursor, limit }) => (user, cursor, limit),
            other => panic!("{other:?}"),
        };
        assert_eq!(list(""), (None, None, 100));
        assert_eq!(list("user=&cursor=&limit="), (None, None, 100));
        let cursor = Cursor { shard: 3, slot: 70 };
        assert_eq!(
            list("x=1&user=a+%2B&cursor=3.70&limit=1000"),
            (Some("a +".into()), Some(cursor), 1000)
        );
        for query in [
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=x",
            "limit=1&limit=1",
            "cursor=3",
            "cursor=3.",
            "cursor=03.1",
            "cursor=+3.1",
            "cursor=65536.1",
            "user=%ff",
            "user=%0a",
            "user=%2",
            "us%zzer=a",
        ] {
            assert_eq!(
                refused("GET", &format!("/admin/connections?{query}"), ""),
                (400, "badRequest".into()),
                "{query}"
            );
        }
    }

    #[test]
    fn codes_are_those_of_applications() {
        for path in [
            format!("/admin/connections/{ID}"),
            "/admin/users/bob/connections".into(),
        ] {
            assert!(read(&request("DELETE", &format!("{path}?code="), "")).is_ok());
            for code in [
                "1000",
                "2999",
                "5000",
                "x",
                "03011",
                "+3011",
                "-1",
                "3011.0",
                "99999",
                "3011&code=3011",
            ] {
                let target = format!("{path}?code={code}");
                assert_eq!(refused("DELETE", &target, ""), (400, "badRequest".into()), "{target}");
            }
        }
        for channel in ["", "%0a", "%ff", &"x".repeat(256)] {
            let target = format!("/admin/users/bob/channels/{channel}");
            assert_eq!(refused("DELETE", &target, "").0, 400, "{target}");
        }
    }

    #[test]
    fn paths_and_methods() {
        for path in [
            "/admin",
            "/admin/",
            "/admin/connections/",
            "/admin/users/bob/",
            "/admin/users",
            "/admin/x",
        ] {
            assert_eq!(refused("GET", path, "").0, 404, "{path}");
        }
        for id in ["", "x", &ID[1..], &ID.replace('-', "")] {
            assert_eq!(
                refused("DELETE", &format!("/admin/connections/{id}"), "").0,
                404,
                "{id}"
            );
        }
        assert_eq!(refused("GET", "/admin/users/%C3", ""), (400, "badRequest".into()));
        assert_eq!(refused("DELETE", "/admin/users//connections", "").0, 400);
        for (path, allow) in [
            ("/admin/connections/x", "GET, HEAD, DELETE"),
            ("/admin/drain", "POST"),
            ("/admin/users/bob", "GET, HEAD"),
        ] {
            let answer = read(&request("PATCH", path, "")).unwrap_err();
            assert_eq!((answer.status, answer.allow.as_deref()), (405, Some(allow)));
        }
    }

    #[test]
    fn bad_bodies() {
        let long = format!(r#"{{"to":"{}","content":1}}"#, "x".repeat(129));
        let many = serde_json::json!({"to": vec!["x"; 1001], "content": 1}).to_string();
        for body in [
            "",
            "[]",
            "{",
            r#"{"to":"bob"}"#,
            r#"{"content":1}"#,
            r#"{"to":"","content":1}"#,
            r#"{"to":5,"content":1}"#,
            r#"{"to":[],"content":1}"#,
            r#"{"to":["bob",""],"content":1}"#,
            r#"{"to":["bob",5],"content":1}"#,
            r#"{"to":"bob","from":"a\n","content":1}"#,
            &many,
            r#"{"to":"bob","content":01}"#,
            r#"{"to":"bob","content":1} x"#,
            r#"{"to":"bob","to":"bob","content":1}"#,
            r#"{"to":"a\n","content":1}"#,
            &long,
        ] {
            assert_eq!(
                refused("POST", "/admin/messages", body),
                (400, "badRequest".into()),
                "{body}"
            );
        }
        for body in [r#"{"channel":"","content":1}"#, r#"{"to":"bob","content":1}"#] {
            assert_eq!(refused("POST", "/admin/publish", body).0, 400, "{body}");
        }
        let mut invalid = request("POST", "/admin/broadcast", "");
        invalid.body = b"{\"content\":\"\xff\"}".to_vec().into();
        assert_eq!(read(&invalid).unwrap_err().status, 400);
    }

    proptest! {
        #[test]
        fn any_user_id_gets_through_a_path(user in "\\PC{1,30}") {
            prop_assume!(is_valid_user_id(&user));
            let encoded: String = user.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let asked = request("GET", &format!("/admin/users/{encoded}"), "");
            prop_assert_eq!(read(&asked).unwrap(), Action::ShowUser(user));
        }

        #[test]
        fn survives_anything(method in "(GET|POST|DELETE)", path in "/admin/(connections|users|messages)?/?.{0,20}", body in ".{0,40}") {
            let _ = read(&request(&method, &path, &body));
        }
    }
}
