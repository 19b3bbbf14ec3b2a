//! Names of this machine. A request with one of them in `Host` was not sent here by foreign DNS.

use core::net::{IpAddr, Ipv6Addr};

/// True for `localhost` and loopback addresses, as `Host` writes them, with or without a port.
#[must_use]
pub fn is_local_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if name.parse::<Ipv6Addr>().is_ok() => (name, port),
            _ => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let has_good_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_number);
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    has_good_port && (name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback))
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for local in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.8.9.10:1",
            "[::1]",
            "[::1]:8080",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]:80",
            "localhost:",
        ] {
            assert!(is_local_host(local), "{local}");
        }
        for other in [
            "",
            ":8080",
            "localhost.",
            "localhost.evil.example",
            "evil.localhost",
            "xlocalhost",
            "localhost:x",
            "localhost:80@evil",
            "user@localhost",
            "127.0.0.1.evil.example",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "127.0.0.1 ",
            "0.0.0.0",
            "192.168.0.1",
            "[::]",
            "[::1",
            "::1",
            "[::1]x",
            "[127.0.0.1]",
            "[fe80::1]",
            "gateway.example",
        ] {
            assert!(!is_local_host(other), "{other}");
        }
    }
}
