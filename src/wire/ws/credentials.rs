//! Credentials of a handshake: tokens, and where they may stand. Pure.

use std::borrow::Cow;

use super::request::Request;
use crate::auth::Token;
use crate::jws::TOKEN_BYTES_MAX;

/// The prefix of a token that is offered as a subprotocol. Scripts in browsers can say nothing
/// else in a handshake, but for its address, which is logged everywhere. It is never selected: the
/// client offers the other subprotocol as well.
pub const TOKEN_SUBPROTOCOL: &[u8] = b"shardgate.token.";

/// The kind of credentials that users show.
#[derive(Debug, Clone, Copy)]
pub enum Credentials<'a> {
    /// Nothing: they name themselves.
    Names,
    /// A token.
    Tokens {
        /// The cookie that may carry one.
        cookie: &'a str,
        /// Not later than with the handshake.
        required: bool,
        /// Browsers whose credential is refused hear it by a close code.
        browser_close: bool,
    },
}

/// A token is shown that is none, or two are shown in one location: nobody can tell which is meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclear;

/// The first token that is shown: by `Authorization: Bearer`, by `?token=`, by cookie, as a
/// subprotocol. What comes behind it does not count, not even when the first is bad.
///
/// # Errors
/// The first location that shows one shows it twice, or shows nothing that could be one.
pub(super) fn token(request: &Request<'_>, query: &str, cookie: &str) -> Result<Option<Token>, Unclear> {
    fn once<T: AsRef<[u8]>>(mut shown: impl Iterator<Item = T>) -> Result<Option<Token>, Unclear> {
        let Some(token) = shown.next() else {
            return Ok(None);
        };
        let text = std::str::from_utf8(token.as_ref()).ok();
        match text.filter(|text| !text.is_empty() && text.len() <= TOKEN_BYTES_MAX) {
            Some(text) if shown.next().is_none() => Ok(Some(Token(text.to_owned()))),
            _ => Err(Unclear),
        }
    }
    if let Some(token) = once(request.values("authorization").filter_map(bearer))? {
        return Ok(Some(token));
    }
    let parameters = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "token");
    if let Some(token) = once(parameters.map(|(_, value)| Cow::into_owned(value)))? {
        return Ok(Some(token));
    }
    let pairs = request
        .values("cookie")
        .flat_map(|value| value.split(|byte| *byte == b';'));
    if let Some(token) = once(pairs.filter_map(|pair| cookie_value(pair, cookie)))? {
        return Ok(Some(token));
    }
    let offered = request
        .values("sec-websocket-protocol")
        .flat_map(|value| value.split(|byte| *byte == b','));
    once(offered.filter_map(|protocol| protocol.trim_ascii().strip_prefix(TOKEN_SUBPROTOCOL)))
}

/// The value behind `Bearer`, perhaps empty. Another scheme belongs to another party, a proxy
/// perhaps.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let is_ours = scheme.eq_ignore_ascii_case(b"bearer") && rest.first().is_none_or(u8::is_ascii_whitespace);
    is_ours.then(|| rest.trim_ascii())
}

/// The value of one `name=value`, if the name is this one.
fn cookie_value<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some(quoted.unwrap_or(value))
}
