//! Request heads: is this a WebSocket upgrade that we take, and for whom?
//!
//! Anything that is not goes to the `http` room with its bytes untouched. Here the `101` is
//! written, and the last response to heads that never became a request. Pure.

use core::net::IpAddr;
use std::borrow::Cow;

use async_tungstenite::tungstenite::handshake::derive_accept_key;

use super::credentials::{self, Credentials};
use super::request::{Request, names_host, split_authority, split_target};
use crate::address::forwarded;
use crate::auth::Token;
use crate::ids::is_valid_user_id;

/// The subprotocol that we speak, if a client asks for one.
pub const SUBPROTOCOL: &str = "shardgate.v1";

/// More header fields than any client sends; hyper's own limit too.
const HEADER_FIELDS_MAX: usize = 100;

/// What the bytes so far are.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// The head is not whole yet.
    Partial,
    /// A whole head of this many bytes, and what to do with it.
    Complete(usize, Decision),
    /// Not HTTP.
    Malformed,
    /// More fields than allowed.
    TooManyFields,
}

/// What to do with a request.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Answer `101` (if there is room) and speak WebSocket.
    Upgrade(Upgrade),
    /// A WebSocket endpoint was asked for in a way that we refuse.
    Refuse(Refusal),
    /// Some other request.
    Plain,
}

/// A handshake that is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// Value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The client offered [`SUBPROTOCOL`].
    pub subprotocol: bool,
    /// The user of `?user=`, in development mode.
    pub user: Option<String>,
    /// The client's address by `X-Forwarded-For`; to be believed only if it came from a proxy of
    /// ours.
    pub forwarded_for: Option<IpAddr>,
    /// What shall show who the user is, outside development mode; taken out when it is looked at.
    pub token: Option<Token>,
    /// A browser, which sees no status of a refused handshake: a credential is refused by a close
    /// code.
    pub browser: bool,
    /// The credential is none: the connection is closed at once. Only with `browser`; others are
    /// refused before.
    pub refused: bool,
}

/// The WebSocket endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/ws`: the gateway itself.
    Gateway,
    /// `/echo`: gives back what it gets.
    Echo,
}

/// Why a handshake was refused; each has its HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 405
    Method,
    /// 400
    NotAnUpgrade,
    /// 426
    Version,
    /// 403
    Origin,
    /// 400
    User,
    /// 401
    Credential,
    /// 421
    Host,
}

impl Refusal {
    /// Status and the text of the answer.
    pub fn response(self) -> (u16, &'static str) {
        match self {
            Refusal::Method => (405, "only GET is allowed here"),
            Refusal::NotAnUpgrade => (400, "not a valid WebSocket upgrade (RFC 6455)"),
            Refusal::Version => (426, "Sec-WebSocket-Version must be 13"),
            Refusal::Origin => (403, "this Origin is not allowed"),
            Refusal::User => (
                400,
                "user must be given once, 1 to 128 bytes of UTF-8 without control characters, and without format characters and \
                 outer spaces unless auth.any_user_id is set",
            ),
            Refusal::Credential => (401, "a valid token is needed"),
            Refusal::Host => (
                421,
                "in development mode the gateway answers to localhost and loopback addresses only, so that no page of somebody else's \
                 reaches it by a name of theirs: use http://localhost, configure auth.key, or start it with --insecure",
            ),
        }
    }
}

/// What the decision depends on besides the request.
pub trait Policy {
    /// May a page of this origin connect to this host?
    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool;
    /// Is `/echo` served?
    fn serves_echo(&self) -> bool;
    /// Is what this address says about its clients believed?
    fn is_proxy(&self, _address: IpAddr) -> bool {
        false
    }
    /// Is a request refused whose host is another machine's name?
    fn is_local_only(&self) -> bool {
        false
    }
    /// May somebody have this id?
    fn takes_user_id(&self, user: &str) -> bool {
        is_valid_user_id(user)
    }
    /// What do users show?
    fn credentials(&self) -> Credentials<'_>;
}

/// Looks at the bytes that arrived so far.
pub fn read(bytes: &[u8], policy: &impl Policy) -> Progress {
    let mut fields = [httparse::EMPTY_HEADER; HEADER_FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    let len = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Progress::Partial,
        Err(httparse::Error::TooManyHeaders) => return Progress::TooManyFields,
        Err(_) => return Progress::Malformed,
    };
    let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
        return Progress::Malformed;
    };
    let mut headers = [("", &b""[..]); HEADER_FIELDS_MAX];
    let count = parsed.headers.len();
    for (slot, field) in headers.iter_mut().zip(parsed.headers.iter()) {
        *slot = (field.name, field.value);
    }
    let request = Request {
        method,
        target,
        minor_version,
        headers: &headers[..count],
    };
    Progress::Complete(len, decide(&request, policy))
}

/// Decides what to do with a request whose head is whole.
pub fn decide(request: &Request<'_>, policy: &impl Policy) -> Decision {
    if policy.is_local_only() && !request.is_for_this_machine() {
        return Decision::Refuse(Refusal::Host);
    }
    let (path, query) = split_target(request.target);
    let endpoint = match path {
        "/ws" => Endpoint::Gateway,
        "/echo" if policy.serves_echo() => Endpoint::Echo,
        _ => return Decision::Plain,
    };
    match check(request, endpoint, query, policy) {
        Ok(upgrade) => Decision::Upgrade(upgrade),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn check(request: &Request<'_>, endpoint: Endpoint, query: &str, policy: &impl Policy) -> Result<Upgrade, Refusal> {
    if request.method != "GET" {
        return Err(Refusal::Method);
    }
    // RFC 6455, 4.2.1; a Host is what HTTP/1.1 asks for, and bodies have no place here.
    let has_body =
        request.values("content-length").any(|len| len != b"0") || request.values("transfer-encoding").next().is_some();
    if request.minor_version < 1
        || has_body
        || !names_host(request.values("host"), request.minor_version)
        || !request.has_token("connection", "upgrade")
        || !request.has_token("upgrade", "websocket")
    {
        return Err(Refusal::NotAnUpgrade);
    }
    if request.one("sec-websocket-version") != Some(b"13") {
        return Err(Refusal::Version);
    }
    let key = request
        .one("sec-websocket-key")
        .filter(|key| is_valid_key(key))
        .ok_or(Refusal::NotAnUpgrade)?;
    let has_origin = request.values("origin").next().is_some();
    if has_origin {
        let origin = request.one("origin").and_then(|o| std::str::from_utf8(o).ok());
        // What the target names comes before the field.
        let authority = split_authority(request.target).map(|(authority, _)| authority);
        let host = authority.or_else(|| request.one("host").and_then(|h| std::str::from_utf8(h).ok()));
        if !origin.is_some_and(|origin| policy.allows_origin(origin, host)) {
            return Err(Refusal::Origin);
        }
    }
    let (mut user, mut token, mut browser, mut refused) = (None, None, false, false);
    match (endpoint, policy.credentials()) {
        (Endpoint::Gateway, Credentials::Names) => user = query_user(query, policy)?,
        (
            Endpoint::Gateway,
            Credentials::Tokens {
                cookie,
                required,
                browser_close,
            },
        ) => {
            browser = has_origin && browser_close;
            match credentials::token(request, query, cookie) {
                Ok(None) if required && !browser => return Err(Refusal::Credential),
                Ok(None) => refused = required,
                Ok(shown) => token = shown,
                Err(_) if browser => refused = true,
                Err(_) => return Err(Refusal::Credential),
            }
        }
        (Endpoint::Echo, _) => {}
    }
    Ok(Upgrade {
        endpoint,
        accept: derive_accept_key(key),
        subprotocol: request.offers(SUBPROTOCOL),
        user,
        forwarded_for: forwarded::client(request.values("x-forwarded-for"), |address| policy.is_proxy(address)),
        token,
        browser,
        refused,
    })
}

/// The value of `user` in a query; refused when it is there and is not a user id, or is there
/// twice.
fn query_user(query: &str, policy: &impl Policy) -> Result<Option<String>, Refusal> {
    let mut users = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "user");
    let Some((_, user)) = users.next() else {
        return Ok(None);
    };
    // Bytes that are not UTF-8 were replaced by U+FFFD.
    if users.next().is_some() || user.contains('\u{fffd}') || !policy.takes_user_id(&user) {
        return Err(Refusal::User);
    }
    Ok(Some(Cow::into_owned(user)))
}

/// 16 bytes in base64: 22 digits and two of padding.
fn is_valid_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.ends_with(b"==")
        && key[..22]
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

/// Appends the `101` response.
pub fn switching_protocols(out: &mut Vec<u8>, accept: &str, subprotocol: bool) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept.as_bytes());
    if subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(SUBPROTOCOL.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a short response after which the connection is closed: for heads that never became a
/// request.
pub fn final_response(out: &mut Vec<u8>, status_line: &str, extra: &str, body: &str) {
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status_line}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{extra}Connection: close\r\n\r\n{body}\n",
            body.len() + 1
        )
        .as_bytes(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::TOKEN_BYTES_MAX;
    use proptest::prelude::*;

    struct Open;
    impl Policy for Open {
        fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
            origin == "http://good" && host == Some("h")
        }
        fn serves_echo(&self) -> bool {
            true
        }
        fn credentials(&self) -> Credentials<'_> {
            Credentials::Names
        }
    }

    /// Tokens are shown here, with the handshake or later.
    struct Closed {
        required: bool,
    }
    impl Policy for Closed {
        fn allows_origin(&self, _: &str, _: Option<&str>) -> bool {
            true
        }
        fn serves_echo(&self) -> bool {
            true
        }
        fn credentials(&self) -> Credentials<'_> {
            Credentials::Tokens {
                cookie: "session",
                required: self.required,
                browser_close: true,
            }
        }
    }

    /// The token that counts in a handshake with this query and these fields.
    fn token(query: &str, fields: &str) -> Result<Option<String>, Refusal> {
        let head = GOOD
            .replace("user=alice", query)
            .replace("Host: h\r\n", &format!("Host: h\r\n{fields}"));
        match read(head.as_bytes(), &Closed { required: false }) {
            Progress::Complete(_, Decision::Upgrade(upgrade)) => {
                assert_eq!(upgrade.user, None, "nobody names themselves");
                Ok(upgrade.token.map(|token| token.0))
            }
            Progress::Complete(_, Decision::Refuse(refusal)) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_token_of_header_query_and_cookie_counts() {
        let (header, cookie) = ("Authorization: Bearer H\r\n", "Cookie: a=b; session=C;c=d\r\n");
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(token("token=Q", &[header, cookie].concat()), some("H"));
        assert_eq!(token("user=x&token=Q", cookie), some("Q"));
        assert_eq!(token("user=x", cookie), some("C"));
        let offered = "Sec-WebSocket-Protocol: chat, shardgate.token.S.s-_, shardgate.v1\r\n";
        assert_eq!(token("user=x", &[offered, cookie].concat()), some("C"));
        assert_eq!(token("user=x", offered), some("S.s-_"));
        assert_eq!(token("x", "Sec-WebSocket-Protocol: Shardgate.token.S\r\n"), Ok(None));
        assert_eq!(token("user=x", ""), Ok(None));
        for fields in [
            "authorization: bearer   H  \r\n",
            "Authorization: Basic eDp5\r\nAuthorization: Bearer H\r\n",
            "Authorization: Basic eDp5\r\nCookie: session=H\r\n",
            "Cookie: session=\"H\"\r\n",
            "Cookie: sessions=x; session=H; Session=y; xsession=z\r\nCookie: other=session=x\r\n",
        ] {
            assert_eq!(token("x", fields), some("H"), "{fields}");
        }
        assert_eq!(token("token=a%2Eb", ""), some("a.b"));
    }

    /// Also when a good one comes behind it: who shows a token twice does not know which one they
    /// mean.
    #[test]
    fn a_first_token_that_is_none_is_refused() {
        let long = format!("Authorization: Bearer {}\r\n", "x".repeat(TOKEN_BYTES_MAX + 1));
        for (query, fields) in [
            ("token=Q", "Authorization: Bearer\r\n"),
            ("token=Q", "Authorization: Bearer \r\n"),
            ("token=Q", "Authorization: Bearer a\r\nAuthorization: Bearer a\r\n"),
            ("token=Q", long.as_str()),
            ("token=", "Cookie: session=C\r\n"),
            ("token=a&token=a", ""),
            ("", "Cookie: session=\r\n"),
            ("", "Cookie: session=a; session=b\r\n"),
            ("", "Cookie: session=a\r\nCookie: session=a\r\n"),
            ("", "Sec-WebSocket-Protocol: shardgate.token., shardgate.v1\r\n"),
            ("", "Sec-WebSocket-Protocol: shardgate.token.a, shardgate.token.a\r\n"),
            ("", "Authorization: Bearer \u{fc}\r\nAuthorization: Bearer x\r\n"),
        ] {
            assert_eq!(token(query, fields), Err(Refusal::Credential), "{query} {fields}");
        }
        let required = |head: &str| read(head.as_bytes(), &Closed { required: true });
        assert_eq!(
            required(GOOD),
            Progress::Complete(GOOD.len(), Decision::Refuse(Refusal::Credential))
        );
        let echo = GOOD.replace("/ws", "/echo");
        assert!(matches!(required(&echo), Progress::Complete(_, Decision::Upgrade(_))));
    }

    /// A browser hears of it by a close code, and so is not refused here.
    #[test]
    fn browsers_are_let_in_to_be_refused() {
        let head = |query: &str, fields: &str| {
            GOOD.replace("user=alice", query)
                .replace("Host: h\r\n", &format!("Host: h\r\n{fields}"))
        };
        let origin = "Origin: http://any\r\n";
        let seen = |head: &str, required| match read(head.as_bytes(), &Closed { required }) {
            Progress::Complete(_, Decision::Upgrade(upgrade)) => {
                Ok((upgrade.browser, upgrade.refused, upgrade.token.map(|token| token.0)))
            }
            Progress::Complete(_, Decision::Refuse(refusal)) => Err(refusal),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            seen(&head("token=Q", origin), false),
            Ok((true, false, Some("Q".into())))
        );
        assert_eq!(seen(&head("", origin), false), Ok((true, false, None)));
        assert_eq!(seen(&head("", origin), true), Ok((true, true, None)));
        assert_eq!(seen(&head("token=a&token=b", origin), false), Ok((true, true, None)));
        assert_eq!(seen(&head("token=a&token=b", ""), false), Err(Refusal::Credential));
        assert_eq!(seen(&head("", ""), true), Err(Refusal::Credential));
        assert_eq!(seen(&head("token=Q", ""), false), Ok((false, false, Some("Q".into()))));
    }

    struct Local;
    impl Policy for Local {
        fn allows_origin(&self, _: &str, _: Option<&str>) -> bool {
            true
        }
        fn serves_echo(&self) -> bool {
            true
        }
        fn is_local_only(&self) -> bool {
            true
        }
        fn credentials(&self) -> Credentials<'_> {
            Credentials::Names
        }
    }

    /// Whatever is asked for, and however the name is said.
    #[test]
    fn in_development_mode_other_names_are_misdirected() {
        let seen = |head: &str| match read(head.as_bytes(), &Local) {
            Progress::Complete(_, decision) => decision,
            other => panic!("{other:?}"),
        };
        let good = GOOD.replace("Host: h", "Host: localhost:8080");
        assert!(matches!(seen(&good), Decision::Upgrade(_)));
        assert_eq!(seen(&good.replace("/ws", "/stats")), Decision::Plain);
        assert_eq!(seen("GET /livez HTTP/1.0\r\n\r\n"), Decision::Plain);
        let at = |target: &str| good.replace("GET /ws", &format!("GET {target}"));
        assert!(matches!(seen(&at("http://127.0.0.1/ws")), Decision::Upgrade(_)));
        for head in [
            GOOD.to_owned(),
            GOOD.replace("/ws", "/stats"),
            GOOD.replace("/ws", "/echo"),
            GOOD.replace("Host: h", "Host: localhost\r\nHost: evil"),
            GOOD.replace("Host: h", "Host: "),
            at("http://evil/ws"),
            at("http://localhost@evil/ws"),
        ] {
            assert_eq!(seen(&head), Decision::Refuse(Refusal::Host), "{head}");
        }
    }

    const GOOD: &str = "GET /ws?user=alice HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn decision(head: &str) -> Decision {
        match read(head.as_bytes(), &Open) {
            Progress::Complete(len, decision) => {
                assert_eq!(len, head.len());
                decision
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_handshake_of_the_rfc() {
        let expected = Upgrade {
            endpoint: Endpoint::Gateway,
            accept: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into(),
            subprotocol: false,
            user: Some("alice".into()),
            forwarded_for: None,
            token: None,
            browser: false,
            refused: false,
        };
        assert_eq!(decision(GOOD), Decision::Upgrade(expected));
        let mut out = Vec::new();
        switching_protocols(&mut out, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", true);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: shardgate.v1\r\n\r\n"
        );
    }

    #[test]
    fn every_prefix_is_partial() {
        for cut in 0..GOOD.len() {
            assert_eq!(read(&GOOD.as_bytes()[..cut], &Open), Progress::Partial, "{cut}");
        }
    }

    #[test]
    fn refusals() {
        let cases = [
            ("GET /ws", "POST /ws", Refusal::Method),
            ("GET /ws", "HEAD /ws", Refusal::Method),
            ("HTTP/1.1", "HTTP/1.0", Refusal::NotAnUpgrade),
            ("Host: h\r\n", "", Refusal::NotAnUpgrade),
            ("Host: h\r\n", "Host: h\r\nHost: i\r\n", Refusal::NotAnUpgrade),
            ("Upgrade: websocket", "Upgrade: h2c", Refusal::NotAnUpgrade),
            ("Upgrade: websocket\r\n", "", Refusal::NotAnUpgrade),
            ("keep-alive, Upgrade", "keep-alive", Refusal::NotAnUpgrade),
            ("Host: h", "Host: h\r\nContent-Length: 3", Refusal::NotAnUpgrade),
            (
                "Host: h",
                "Host: h\r\nTransfer-Encoding: chunked",
                Refusal::NotAnUpgrade,
            ),
            ("bm9uY2U=", "", Refusal::NotAnUpgrade),
            ("ZQ==", "ZQ=", Refusal::NotAnUpgrade),
            ("Version: 13", "Version: 8", Refusal::Version),
            ("Sec-WebSocket-Version: 13\r\n", "", Refusal::Version),
            ("Host: h", "Host: h\r\nOrigin: http://evil", Refusal::Origin),
            (
                "Host: h",
                "Host: h\r\nOrigin: http://good\r\nOrigin: http://evil",
                Refusal::Origin,
            ),
            ("user=alice", "user=", Refusal::User),
            ("user=alice", "user=a&user=b", Refusal::User),
            ("user=alice", "user=a%0ab", Refusal::User),
            ("user=alice", "user=%ff", Refusal::User),
        ];
        for (from, to, refusal) in cases {
            let head = if from == "bm9uY2U=" {
                GOOD.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")
            } else {
                GOOD.replace(from, to)
            };
            assert_eq!(decision(&head), Decision::Refuse(refusal), "{from} -> {to}");
        }
    }

    #[test]
    fn variants_that_are_in_order() {
        for (from, to) in [
            ("Upgrade: websocket", "UPGRADE:   WebSocket  "),
            ("Host: h", "Host: h\r\nOrigin: http://good"),
            ("GET /ws", "GET http://h/ws"),
            ("GET /ws", "GET ws://h/ws"),
            ("GET /ws", "GET WSS://h:443/ws"),
            ("Host: h", "Host:"),
            ("Host: h", "Host: h\r\nContent-Length: 0"),
        ] {
            assert!(
                matches!(decision(&GOOD.replace(from, to)), Decision::Upgrade(_)),
                "{to}"
            );
        }
        let user = |query: &str| match decision(&GOOD.replace("user=alice", query)) {
            Decision::Upgrade(upgrade) => upgrade.user,
            other => panic!("{other:?}"),
        };
        assert_eq!(user("x=1"), None);
        assert_eq!(user("x=1&user=al+ice%20%C3%A4").as_deref(), Some("al ice ä"));
        let offered = GOOD.replace("Host: h", "Host: h\r\nSec-WebSocket-Protocol: chat, shardgate.v1");
        assert!(matches!(decision(&offered), Decision::Upgrade(u) if u.subprotocol));
        let other = offered.replace("shardgate.v1", "Shardgate.v1");
        assert!(matches!(decision(&other), Decision::Upgrade(u) if !u.subprotocol));
        assert_eq!(decision(&GOOD.replace("/ws", "/stats")), Decision::Plain);
        assert_eq!(decision(&GOOD.replace("/ws", "/ws/")), Decision::Plain);
        assert!(matches!(
            decision(&GOOD.replace("/ws", "/echo")),
            Decision::Upgrade(Upgrade {
                endpoint: Endpoint::Echo,
                user: None,
                ..
            })
        ));
    }

    /// RFC 9112, 3.2.2: what the target names counts, and not the field.
    #[test]
    fn the_authority_of_the_target_is_the_host() {
        let head = |target: &str, host: &str| {
            let fields = format!("Host: {host}\r\nOrigin: http://good\r\n");
            GOOD.replace("/ws", target).replace("Host: h\r\n", &fields)
        };
        let is_taken = |head: &str| matches!(decision(head), Decision::Upgrade(_));
        assert!(is_taken(&head("ws://h/ws", "other")));
        assert_eq!(decision(&head("ws://other/ws", "h")), Decision::Refuse(Refusal::Origin));
    }

    #[test]
    fn not_http() {
        assert_eq!(read(b"\x16\x03\x01\x02\x00", &Open), Progress::Malformed);
        let fields = "A: b\r\n".repeat(HEADER_FIELDS_MAX);
        assert_eq!(
            read(GOOD.replace("Host: h\r\n", &fields).as_bytes(), &Open),
            Progress::TooManyFields
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &Open);
        }

        #[test]
        fn any_change_of_one_byte_never_panics(place in 0..GOOD.len(), byte: u8) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[place] = byte;
            let _ = read(&bytes, &Open);
        }
    }
}
