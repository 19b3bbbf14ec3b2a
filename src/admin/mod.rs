//! The admin API as data: the routes, the requests and the answers.
//!
//! Pure. A request comes in as it is ([`Request`]) and becomes an [`Action`] or the [`AdminReply`]
//! that refuses it. The control thread carries actions out. [`ROUTES`] and `openapi.json` agree,
//! and a test keeps them so.
//!
//! | file | duty |
//! | --- | --- |
//! | `mod` | requests, answers, and what they show |
//! | [`routes`] | paths, methods, queries and bodies |
//! | [`token`] | who may |

pub mod routes;
pub mod token;

use core::net::SocketAddr;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

use crate::ids::SocketKey;
pub use routes::{Action, Cursor, ROUTES, Receivers};

/// The whole API, in OpenAPI 3.1.
pub const DOCUMENT: &str = include_str!("openapi.json");

/// True for the paths that are this room's.
pub fn is_admin_path(path: &str) -> bool {
    path.strip_prefix("/admin")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An authorized request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// As it came.
    pub method: Box<str>,
    /// As it came, percent-encoded.
    pub path: Box<str>,
    /// As it came, without the question mark.
    pub query: Box<str>,
    /// At most `limits.message_bytes`.
    pub body: Bytes,
}

/// The answer to a request: JSON, or no body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminReply {
    /// Of HTTP.
    pub status: u16,
    /// The value of `Allow`, with 405.
    pub allow: Option<String>,
    /// Empty if the answer has no content.
    pub body: Bytes,
}

/// Why a request was not carried out, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminError {
    /// The request makes no sense.
    BadRequest,
    /// No token, or a wrong one.
    Unauthorized,
    /// There is no such thing.
    NotFound,
    /// Not by this method.
    MethodNotAllowed,
    /// The body is over `limits.message_bytes`.
    PayloadTooLarge,
    /// Not now, or not everywhere.
    Unavailable,
    /// It took too long; it may have been carried out all the same.
    Timeout,
    /// A fault of ours.
    Internal,
}

impl AdminError {
    fn status_and_code(self) -> (u16, &'static str) {
        match self {
            AdminError::BadRequest => (400, "badRequest"),
            AdminError::Unauthorized => (401, "unauthorized"),
            AdminError::NotFound => (404, "notFound"),
            AdminError::MethodNotAllowed => (405, "methodNotAllowed"),
            AdminError::PayloadTooLarge => (413, "payloadTooLarge"),
            AdminError::Unavailable => (503, "unavailable"),
            AdminError::Timeout => (504, "timeout"),
            AdminError::Internal => (500, "internal"),
        }
    }
}

impl AdminReply {
    /// 200 with this.
    pub fn json(content: &impl Serialize) -> Self {
        match serde_json::to_vec(content) {
            Ok(json) => AdminReply::with_body(200, json.into()),
            Err(error) => AdminReply::refuse(AdminError::Internal, &error.to_string()),
        }
    }

    /// Nothing but a status.
    pub fn empty(status: u16) -> Self {
        AdminReply::with_body(status, Bytes::new())
    }

    /// The document.
    pub fn document() -> Self {
        AdminReply::with_body(200, Bytes::from_static(DOCUMENT.as_bytes()))
    }

    /// `{"error":{"code","message"}}`
    pub fn refuse(refusal: AdminError, message: &str) -> Self {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Error<'a>,
        }
        #[derive(Serialize)]
        struct Error<'a> {
            code: &'static str,
            message: &'a str,
        }
        let (status, code) = refusal.status_and_code();
        let error = Error { code, message };
        // Text alone always becomes JSON.
        let body = serde_json::to_vec(&Body { error }).unwrap_or_default();
        AdminReply::with_body(status, body.into())
    }

    /// The refusal of a gateway that carries out nothing more.
    pub fn ending() -> Self {
        AdminReply::refuse(AdminError::Unavailable, "the gateway is ending")
    }

    fn with_body(status: u16, body: Bytes) -> Self {
        AdminReply {
            status,
            allow: None,
            body,
        }
    }
}

/// One connection, as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// Its socket, by which the shard closes it.
    #[serde(skip)]
    pub key: SocketKey,
    /// As the client knows it.
    #[serde(serialize_with = "as_text")]
    pub conn_id: Uuid,
    /// Whose it is.
    pub user_id: Box<str>,
    /// Where it is.
    pub shard: u16,
    /// The client, as far as proxies that are believed name it, else the socket's peer; `None` if
    /// it has just gone. Port 0 where only the address is known.
    pub remote_addr: Option<SocketAddr>,
    /// Unix milliseconds.
    pub connected_at: u64,
    /// When something last came from it, Unix milliseconds.
    pub last_seen: u64,
    /// Frames that it sent.
    pub messages_in: u32,
    /// Frames that were queued to it.
    pub messages_out: u32,
    /// Bytes that wait for it or are in flight.
    pub outbox_bytes: usize,
}

fn as_text<S: serde::Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// A page of connections.
#[derive(Debug, Serialize)]
pub struct Page {
    /// At most as many as the request wanted.
    pub connections: Vec<ConnectionInfo>,
    /// Where to go on; `None`: that was the last page.
    #[serde(serialize_with = "as_cursor")]
    pub cursor: Option<Cursor>,
}

fn as_cursor<S: serde::Serializer>(cursor: &Option<Cursor>, serializer: S) -> Result<S::Ok, S::Error> {
    match cursor {
        Some(cursor) => serializer.collect_str(cursor),
        None => serializer.serialize_none(),
    }
}

/// A page of channels.
#[derive(Debug, Serialize)]
pub struct ChannelPage {
    /// At most as many as the request wanted, in byte order.
    pub channels: Vec<ChannelInfo>,
    /// Where to go on; `None`: that was the last page.
    pub cursor: Option<Box<str>>,
}

/// One channel.
#[derive(Debug, Serialize)]
pub struct ChannelInfo {
    /// Its name.
    pub channel: Box<str>,
    /// Connections of this gateway that subscribe to it.
    pub subscribers: u64,
}

/// Where a user is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserInfo<'a> {
    /// The user.
    pub user_id: &'a str,
    /// Gateways with a connection of this user.
    pub gateways: Vec<GatewayInfo>,
}

/// One gateway where a user is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayInfo {
    /// Its id.
    pub gateway_id: String,
    /// Connections of the user there.
    pub connections: u64,
}

/// The outcome of a send.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SentInfo {
    /// Made by the gateway.
    #[serde(serialize_with = "as_text")]
    pub message_id: Uuid,
    /// Of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'static str>,
    /// Of a message to many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<BTreeMap<Box<str>, &'static str>>,
    /// Of a broadcast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<u64>,
}

/// How many connections were closed, or how many subscriptions were ended.
#[derive(Debug, Serialize)]
pub struct ClosedInfo {
    /// Of this gateway.
    pub closed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_room() {
        assert!(is_admin_path("/admin") && is_admin_path("/admin/") && is_admin_path("/admin/x"));
        assert!(!is_admin_path("/administrator") && !is_admin_path("/") && !is_admin_path("/x/admin"));
    }

    #[test]
    fn answers_are_as_in_the_contract() {
        let refused = AdminReply::refuse(AdminError::BadRequest, "a \"b\"");
        assert_eq!(refused.status, 400);
        assert_eq!(refused.body, r#"{"error":{"code":"badRequest","message":"a \"b\""}}"#);
        let page = Page {
            connections: vec![ConnectionInfo {
                key: SocketKey { slot: 1, generation: 2 },
                conn_id: Uuid::nil(),
                user_id: "alice".into(),
                shard: 1,
                remote_addr: Some("127.0.0.1:1".parse().unwrap()),
                connected_at: 2,
                last_seen: 3,
                messages_in: 4,
                messages_out: 5,
                outbox_bytes: 6,
            }],
            cursor: Some(Cursor { shard: 2, slot: 7 }),
        };
        assert_eq!(
            AdminReply::json(&page).body,
            r#"{"connections":[{"connId":"00000000-0000-0000-0000-000000000000","userId":"alice","shard":1,"remoteAddr":"127.0.0.1:1","connectedAt":2,"lastSeen":3,"messagesIn":4,"messagesOut":5,"outboxBytes":6}],"cursor":"2.7"}"#
        );
        let sent = SentInfo {
            message_id: Uuid::nil(),
            status: None,
            statuses: None,
            recipients: Some(3),
        };
        assert_eq!(
            AdminReply::json(&sent).body,
            r#"{"messageId":"00000000-0000-0000-0000-000000000000","recipients":3}"#
        );
    }

    #[test]
    fn every_status_is_counted() {
        use crate::metrics::ADMIN_STATUSES;
        for refusal in [
            AdminError::BadRequest,
            AdminError::Unauthorized,
            AdminError::NotFound,
            AdminError::MethodNotAllowed,
            AdminError::PayloadTooLarge,
            AdminError::Unavailable,
            AdminError::Timeout,
            AdminError::Internal,
        ] {
            assert!(ADMIN_STATUSES.contains(&refusal.status_and_code().0), "{refusal:?}");
        }
    }
}
