//! The header of the PROXY protocol, versions 1 and 2: a proxy sends it before the first byte of
//! its client.
//!
//! It is read to the byte: all bytes behind it are the client's. Version 1 is a line of text,
//! version 2 is binary.

use core::net::{IpAddr, SocketAddr};

/// The first bytes of every header. No HTTP request and no TLS record has them.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The first bytes of every header of version 1. No method of HTTP has that name.
const WORD: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// The longest header that is taken: addresses are at most 36 bytes. The rest is for what proxies
/// add about TLS and the like.
pub const HEADER_BYTES_MAX: usize = 4096;

/// The result of reading the bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// No header: the client's own bytes. Known by the first one that is another.
    Absent,
    /// A header that needs so many bytes more, as far as is known; at least one.
    Partial(usize),
    /// A whole header of this many bytes, and the client's address. The address is `None` for a
    /// proxy's own connection (health checks) or an unknown client.
    Complete(usize, Option<SocketAddr>),
    /// Begins like a header and is none that we take.
    Garbage,
}

/// Looks at the first bytes of a connection, at least one.
pub fn read(bytes: &[u8]) -> Header {
    if bytes.first() == WORD.first() {
        return read_line(bytes);
    }
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes.first() != SIGNATURE.first() {
        return Header::Absent;
    }
    if bytes[..seen] != SIGNATURE[..seen] {
        return Header::Garbage;
    }
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED_BYTES) else {
        return Header::Partial(FIXED_BYTES - bytes.len());
    };
    let body_bytes = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let header_bytes = FIXED_BYTES + body_bytes;
    // Nothing is waited for that will not be taken.
    let (command, family) = (fixed[12], fixed[13]);
    let addresses = match (command, family) {
        (0x21, 0x11) if body_bytes >= 12 => Addresses::V4,
        (0x21, 0x21) if body_bytes >= 36 => Addresses::V6,
        // LOCAL: the rest is skipped. The same goes for PROXY of anything but TCP over IP (unknown,
        // datagrams, Unix sockets).
        (0x20, _) | (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Addresses::Skip,
        _ => return Header::Garbage,
    };
    if header_bytes > HEADER_BYTES_MAX {
        return Header::Garbage;
    }
    let Some(body) = rest.get(..body_bytes) else {
        return Header::Partial(header_bytes - bytes.len());
    };
    // Source address, destination address, source port, destination port.
    let source = match addresses {
        Addresses::Skip => None,
        Addresses::V4 => array(body, 0).map(|ip: [u8; 4]| (IpAddr::from(ip), 8)),
        Addresses::V6 => array(body, 0).map(|ip: [u8; 16]| (IpAddr::from(ip).to_canonical(), 32)),
    };
    let client = source.and_then(|(ip, at)| Some(SocketAddr::new(ip, u16::from_be_bytes(array(body, at)?))));
    Header::Complete(header_bytes, client)
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.7 4711 443` and the end of the line.
fn read_line(bytes: &[u8]) -> Header {
    let seen = bytes.len().min(WORD.len());
    if bytes[..seen] != WORD[..seen] {
        return Header::Absent;
    }
    if seen < WORD.len() {
        return Header::Partial(WORD.len() - seen);
    }
    let bounded = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = bounded.iter().position(|byte| *byte == b'\n') else {
        let is_over = bounded.len() == LINE_BYTES_MAX;
        return if is_over { Header::Garbage } else { Header::Partial(1) };
    };
    let line = bounded[..end].strip_suffix(b"\r");
    let Some(line) = line.and_then(|line| std::str::from_utf8(&line[WORD.len()..]).ok()) else {
        return Header::Garbage;
    };
    let parts: Vec<&str> = line.split(' ').collect();
    let client = match parts[..] {
        // The rest is skipped.
        ["UNKNOWN", ..] => return Header::Complete(end + 1, None),
        ["TCP4", source, _, port, _] => source.parse().map(IpAddr::V4).ok().zip(port.parse().ok()),
        ["TCP6", source, _, port, _] => source.parse().map(IpAddr::V6).ok().zip(port.parse().ok()),
        _ => None,
    };
    let address = client.map(|(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port));
    address.map_or(Header::Garbage, |address| Header::Complete(end + 1, Some(address)))
}

#[derive(Clone, Copy)]
enum Addresses {
    Skip,
    V4,
    V6,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// 192.0.2.1:4711 to 198.51.100.7:443
    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x67, 0x01, 0xbb];

    fn v6() -> Vec<u8> {
        let mut body = vec![0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        body.extend([0; 15]);
        body.extend([2, 0x12, 0x67, 0x01, 0xbb]);
        body
    }

    #[test]
    fn addresses() {
        let client = |text: &str| Some(text.parse().unwrap());
        let v4 = header(0x21, 0x11, &V4);
        assert_eq!(read(&v4), Header::Complete(28, client("192.0.2.1:4711")));
        assert_eq!(
            read(&header(0x21, 0x21, &v6())),
            Header::Complete(52, client("[2001:db8::1]:4711"))
        );
        // The bytes behind the addresses are skipped; the bytes behind the header are not looked
        // at.
        let mut with_more = header(0x21, 0x11, &[&V4[..], &[0x04, 0, 1, 0]].concat());
        with_more.extend_from_slice(b"GET /");
        assert_eq!(read(&with_more), Header::Complete(32, client("192.0.2.1:4711")));
        let mapped = header(
            0x21,
            0x21,
            &[&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 1], &v6()[16..]].concat(),
        );
        assert_eq!(read(&mapped), Header::Complete(52, client("192.0.2.1:4711")));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself() {
        assert_eq!(read(&header(0x20, 0x00, &[])), Header::Complete(16, None));
        assert_eq!(read(&header(0x20, 0x11, &V4)), Header::Complete(28, None));
        assert_eq!(read(&header(0x21, 0x00, &[1, 2, 3])), Header::Complete(19, None));
    }

    #[test]
    fn a_client_that_came_over_a_unix_socket_or_by_datagram_has_no_address() {
        assert_eq!(read(&header(0x21, 0x31, &[0; 216])), Header::Complete(232, None));
        assert_eq!(read(&header(0x21, 0x12, &V4)), Header::Complete(28, None));
        assert_eq!(read(&header(0x21, 0x22, &v6())), Header::Complete(52, None));
    }

    #[test]
    fn garbage() {
        for (command, family, body) in [
            (0x11, 0x11, &V4[..]),   // version 1
            (0x22, 0x11, &V4[..]),   // no such command
            (0x21, 0x13, &V4[..]),   // no such protocol
            (0x21, 0x41, &V4[..]),   // no such family
            (0x21, 0x11, &V4[..11]), // too short
            (0x21, 0x21, &V4[..]),   // too short for IPv6
            (0x20, 0x00, &[0; 4081][..]),
        ] {
            assert_eq!(
                read(&header(command, family, body)),
                Header::Garbage,
                "{command:x} {family:x}"
            );
        }
        assert_eq!(read(b"\r\nGET / HTTP/1.1"), Header::Garbage);
        assert_eq!(
            read(&header(0x21, 0x11, &[0; 60_000])[..16]),
            Header::Garbage,
            "before it came"
        );
        assert!(matches!(
            read(&header(0x20, 0, &[0; 4080])),
            Header::Complete(HEADER_BYTES_MAX, None)
        ));
    }

    #[test]
    fn nobody_else_begins_like_that() {
        for first in [&b"GET /ws"[..], b"\x16\x03\x01", b"POST /admin", b"PROPFIND /", b"\n"] {
            assert_eq!(read(first), Header::Absent);
        }
    }

    #[test]
    fn lines_of_version_1() {
        let client = |text: &str| Some(text.parse().unwrap());
        for (line, address) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.7 4711 443", client("192.0.2.1:4711")),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 4711 443",
                client("[2001:db8::1]:4711"),
            ),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 4711 443", client("192.0.2.1:4711")),
            ("PROXY UNKNOWN", None),
            ("PROXY UNKNOWN ffff:f:f ffff:f 65535 65535", None),
        ] {
            let whole = format!("{line}\r\nGET /");
            let len = line.len() + 2;
            assert_eq!(read(whole.as_bytes()), Header::Complete(len, address), "{line}");
            for cut in 1..len {
                let Header::Partial(more) = read(&whole.as_bytes()[..cut]) else {
                    panic!("{line} cut at {cut}");
                };
                assert!(more > 0 && cut + more <= len, "{line} cut at {cut}");
            }
        }
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 70000 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 4711\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.7 4711 443\r\n",
            "PROXY / HTTP/1.1\r\n",
        ] {
            assert_eq!(read(line.as_bytes()), Header::Garbage, "{line}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(read(endless.as_bytes()), Header::Garbage);
    }

    proptest! {
        /// Repeated reads of the wanted length end at the header's last byte.
        #[test]
        fn every_prefix_asks_for_no_more_than_the_header(more in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..328) {
            let whole = header(0x21, 0x11, &[&V4[..], &more].concat());
            let mut seen = cut.min(whole.len());
            loop {
                match read(&whole[..seen]) {
                    Header::Partial(more) => {
                        prop_assert!(more > 0 && seen + more <= whole.len());
                        seen += more;
                    }
                    Header::Complete(len, Some(_)) => {
                        prop_assert_eq!(len, whole.len());
                        break;
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 1..80), signed: bool) {
            let bytes = if signed { [&SIGNATURE[..], &bytes].concat() } else { bytes };
            if let Header::Complete(len, _) = read(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
