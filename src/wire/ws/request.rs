//! The head of an HTTP request: its target, its host, its fields. Pure; whoever parsed it, hyper or
//! httparse.

use crate::address::local::is_local_host;

/// A request head, wherever it was parsed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method as sent.
    pub method: &'a str,
    /// The request target as sent.
    pub target: &'a str,
    /// `HTTP/1.x`
    pub minor_version: u8,
    /// Names and values as sent.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// True if a head ends at `from` or behind it: with an empty line. So a head that comes in pieces
/// is not read anew for each of them; `from` is how much was looked at before.
pub fn has_end(bytes: &[u8], from: usize) -> bool {
    // The end's own bytes may have come in two pieces.
    let from = from.saturating_sub(2);
    let tail = &bytes[from.min(bytes.len())..];
    let mut lines = tail.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    lines.any(|(at, _)| tail[at + 1..].starts_with(b"\n") || tail[at + 1..].starts_with(b"\r\n"))
}

/// Path and query of a request target, in origin form or absolute form.
pub fn split_target(target: &str) -> (&str, &str) {
    let origin_form = split_authority(target).map_or(target, |(_, rest)| rest);
    match origin_form.split_once('?') {
        Some(("", query)) => ("/", query),
        Some(both) => both,
        None if origin_form.is_empty() => ("/", ""),
        None => (origin_form, ""),
    }
}

/// The authority of a request target in absolute form, and what comes behind it. A server takes
/// that form with the schemes that it serves (RFC 9112, 3.2.2; RFC 6455, 3).
pub(super) fn split_authority(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    let is_ours = ["ws", "wss", "http", "https"]
        .iter()
        .any(|ours| scheme.eq_ignore_ascii_case(ours));
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    is_ours.then(|| rest.split_at(end))
}

/// Is the host of a request named as RFC 9112, 3.2 wants it? HTTP/1.1 has the field once, HTTP/1.0
/// once at the most, and its value, which may be empty, is a host with or without a port.
pub fn names_host<'a>(mut hosts: impl Iterator<Item = &'a [u8]>, minor_version: u8) -> bool {
    let (first, second) = (hosts.next(), hosts.next());
    let is_host = |host: &[u8]| {
        let of_uri = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(byte);
        host.trim_ascii().iter().all(of_uri)
    };
    second.is_none() && first.map_or(minor_version < 1, is_host)
}

impl<'a> Request<'a> {
    /// All values of a field, in order.
    pub fn values(&self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim_ascii())
    }

    /// The value of a field that is there exactly once.
    pub(super) fn one(&self, name: &'a str) -> Option<&'a [u8]> {
        let mut values = self.values(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// True if each host that it names is `localhost` or a loopback address. A request without any
    /// names none that somebody else's DNS could have led here; browsers always name one.
    pub fn is_for_this_machine(&self) -> bool {
        let is_local = |host: &[u8]| std::str::from_utf8(host).is_ok_and(is_local_host);
        let authority = self.target.split_once("://").filter(|_| !self.target.starts_with('/'));
        let authority = authority.map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
        self.values("host").all(is_local) && authority.is_none_or(is_local_host)
    }

    /// True if the client offers this subprotocol. Their names are compared as they are written
    /// (RFC 6455, 11.5).
    pub(super) fn offers(&self, subprotocol: &str) -> bool {
        self.values("sec-websocket-protocol")
            .flat_map(|value| value.split(|b| *b == b','))
            .any(|part| part.trim_ascii() == subprotocol.as_bytes())
    }

    pub(super) fn has_token(&self, name: &'a str, token: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(|b| *b == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (target, path, query) in [
            ("/ws?a=b", "/ws", "a=b"),
            ("ws://h/ws?a", "/ws", "a"),
            ("HTTPS://h:1/ws", "/ws", ""),
            ("http://h", "/", ""),
            ("http://h?a=/b", "/", "a=/b"),
            ("*", "*", ""),
            ("ftp://h/ws", "ftp://h/ws", ""),
            ("/x?y=ws://h/ws", "/x", "y=ws://h/ws"),
        ] {
            assert_eq!(split_target(target), (path, query), "{target}");
        }
    }

    #[test]
    fn the_field_of_the_host() {
        let named = |hosts: &[&str], minor| names_host(hosts.iter().map(|host| host.as_bytes()), minor);
        for host in ["h", "", "gateway.example:8080", "[2001:db8::1]:80", "127.0.0.1"] {
            assert!(named(&[host], 1) && named(&[host], 0), "{host}");
        }
        assert!(named(&[], 0) && !named(&[], 1));
        for hosts in [&["h", "h"][..], &["h i"], &["h/x"], &["user@h"], &["h\u{e4}"]] {
            assert!(!named(hosts, 1) && !named(hosts, 0), "{hosts:?}");
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_however_it_is_cut() {
        let head = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n";
        for head in [
            head.to_owned(),
            head.replace("\r\n", "\n"),
            head.replace("\r\n\r\n", "\n\r\n"),
        ] {
            let bytes = head.as_bytes();
            for from in 0..bytes.len() {
                assert!(has_end(bytes, from), "{from}");
                assert!(!has_end(&bytes[..bytes.len() - 1], from), "{from}");
            }
        }
        assert!(!has_end(b"", 0) && !has_end(b"\n", 1) && !has_end(b"a\n\r", 0));
    }
}
