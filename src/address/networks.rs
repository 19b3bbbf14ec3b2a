//! Lists of addresses and networks.

use core::net::{IpAddr, Ipv6Addr};

/// Addresses and networks, as `proxies` lists them. An empty list contains no address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks {
    networks: Vec<Network>,
    on_a_unix_socket: bool,
}

/// The entry for peers on a Unix socket, which have no address.
pub const ON_A_UNIX_SOCKET: &str = "unix:";

/// All addresses are IPv6 here, IPv4 as `::ffff:a.b.c.d`: a listener on `[::]` sees IPv4 clients
/// that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: u128,
    mask: u128,
}

/// An entry that is neither an address nor a network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{entry:?} {why}")]
pub struct NetworkError {
    /// The entry.
    pub entry: String,
    /// The reason.
    pub why: &'static str,
}

impl Networks {
    /// Reads entries such as `192.0.2.1`, `10.0.0.0/8` or `2001:db8::/32`.
    ///
    /// # Errors
    /// The first entry that is no address, or whose prefix has bits behind its length. The author
    /// of `10.1.2.3/8` may have meant one host.
    pub fn parse(entries: &[String]) -> Result<Networks, NetworkError> {
        let network = |entry: &String| {
            Network::parse(entry).map_err(|why| NetworkError {
                entry: entry.chars().take(200).collect(),
                why,
            })
        };
        let (named, networks): (Vec<&String>, Vec<&String>) =
            entries.iter().partition(|entry| *entry == ON_A_UNIX_SOCKET);
        Ok(Networks {
            networks: networks.into_iter().map(network).collect::<Result<_, _>>()?,
            on_a_unix_socket: !named.is_empty(),
        })
    }

    /// True if the list contains peers on a Unix socket.
    #[must_use]
    pub fn contains_unix_socket(&self) -> bool {
        self.on_a_unix_socket
    }

    /// Is this address in one of them?
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = bits(address);
        self.networks
            .iter()
            .any(|network| address & network.mask == network.address)
    }
}

impl Network {
    fn parse(entry: &str) -> Result<Network, &'static str> {
        let (address, length) = match entry.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (entry, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "is no IP address")?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => width,
            // `parse` takes a leading plus.
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse::<u32>()
                .ok()
                .filter(|length| *length <= width)
                .ok_or("has a prefix length out of range")?,
            Some(_) => return Err("has a prefix length that is no number"),
        };
        let mask = u128::MAX.checked_shl(width - length).unwrap_or(0);
        // The bits in front of an IPv4 address belong to the mask, too.
        let mask = if width == 32 { mask | (u128::MAX << 32) } else { mask };
        let address = bits(address);
        if address & !mask != 0 {
            return Err("has bits set behind its prefix length");
        }
        Ok(Network { address, mask })
    }
}

fn bits(address: IpAddr) -> u128 {
    let address: Ipv6Addr = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    address.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(entries: &[&str]) -> Result<Networks, NetworkError> {
        Networks::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>())
    }

    fn contains(entry: &str, address: &str) -> bool {
        networks(&[entry]).unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn members() {
        assert!(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.2"));
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("0.0.0.0/0", "255.255.255.255") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(contains("::/0", "2001:db8::1") && contains("::1", "::1"));
        // A listener on [::] sees IPv4 clients as mapped addresses.
        assert!(contains("192.0.2.1", "::ffff:192.0.2.1") && contains("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!Networks::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network() {
        for (entry, why) in [
            ("", "no IP address"),
            ("localhost", "no IP address"),
            ("10.0.0/8", "no IP address"),
            ("10.0.0.0/", "out of range"),
            ("10.0.0.0/33", "out of range"),
            ("::/129", "out of range"),
            ("10.0.0.0/+8", "no number"),
            ("10.0.0.0/8/8", "no number"),
            ("10.0.0.1/8", "bits set"),
            ("2001:db8::1/64", "bits set"),
        ] {
            assert!(networks(&[entry]).unwrap_err().why.contains(why), "{entry}");
        }
    }

    proptest! {
        #[test]
        fn a_network_has_exactly_the_addresses_with_its_prefix(base: u32, length in 0u32..=32, other: u32) {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let [base, other] = [base & mask, other].map(core::net::Ipv4Addr::from_bits);
            let network = networks(&[&format!("{base}/{length}")]).unwrap();
            prop_assert_eq!(network.contains(other.into()), other.to_bits() & mask == base.to_bits());
            prop_assert!(network.contains(base.into()));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = networks(&[&text]);
        }
    }
}
