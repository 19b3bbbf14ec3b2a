//! `X-Forwarded-For`: who connected to the proxies in front of us.
//!
//! Every proxy appends the address that connected to it. The list is therefore believed from its
//! end, as long as the named addresses are proxies. The client may have written everything further
//! left.

use core::net::{IpAddr, SocketAddr};

/// The client's address by these field values (in the order in which they came), if the request
/// came from a proxy.
///
/// That is the last address which is no proxy's. Where all are, or what is left of them is no
/// address, it is the leftmost proxy that can be named: that much is known. `None` if nothing is.
pub fn client<'a>(
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    is_proxy: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut client = None;
    let hops = values.rev().flat_map(|value| value.rsplit(|b| *b == b','));
    // Elements of a list may be empty and then have no meaning (RFC 9110, 5.6.1.2).
    for hop in hops.filter(|hop| !hop.trim_ascii().is_empty()) {
        let Some(address) = address(hop) else {
            break;
        };
        client = Some(address);
        if !is_proxy(address) {
            break;
        }
    }
    client
}

/// An address, with a port or without.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop.trim_ascii()).ok()?;
    let bare = hop
        .strip_prefix('[')
        .and_then(|hop| hop.strip_suffix(']'))
        .unwrap_or(hop);
    let address = bare
        .parse()
        .or_else(|_| hop.parse().map(|address: SocketAddr| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[&str]) -> Option<String> {
        let is_proxy = |address: IpAddr| address.to_string().starts_with("10.");
        client(values.iter().map(|value| value.as_bytes()), is_proxy).map(|address| address.to_string())
    }

    #[test]
    fn the_last_that_is_no_proxy() {
        assert_eq!(of(&["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(of(&["198.51.100.9, 192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(of(&["198.51.100.9, 192.0.2.1, 10.0.0.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(
            of(&["198.51.100.9", "192.0.2.1,10.0.0.2", "10.0.0.1"]).as_deref(),
            Some("192.0.2.1")
        );
        assert_eq!(of(&["10.0.0.3, 10.0.0.1"]).as_deref(), Some("10.0.0.3"));
    }

    #[test]
    fn what_cannot_be_read_ends_the_search() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[""]), None);
        assert_eq!(of(&["192.0.2.1, unknown"]), None);
        assert_eq!(of(&["192.0.2.1, unknown, 10.0.0.1"]).as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn empty_elements_are_skipped() {
        for values in [
            &["192.0.2.1, 10.0.0.4,"][..],
            &["192.0.2.1,, 10.0.0.4", ""],
            &["192.0.2.1", " , ,10.0.0.4 , "],
        ] {
            assert_eq!(of(values).as_deref(), Some("192.0.2.1"), "{values:?}");
        }
        assert_eq!(of(&[" , ", ""]), None);
    }

    #[test]
    fn spellings() {
        for (text, address) in [
            (" 192.0.2.1:4711 ", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(of(&[text]).as_deref(), Some(address), "{text}");
        }
    }

    proptest! {
        /// Only the proxy's addition counts, whatever the client writes in front of it.
        #[test]
        fn a_client_cannot_choose_its_address(written in prop::collection::vec(any::<u8>(), 0..60), appended: u32) {
            let appended = core::net::Ipv4Addr::from_bits(appended);
            let mut value = written;
            value.extend_from_slice(format!(", {appended}").as_bytes());
            prop_assert_eq!(client([&value[..]].into_iter(), |_| false), Some(appended.into()));
        }
    }
}
