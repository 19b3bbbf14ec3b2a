//! Limits per address: open handshakes, and connects per second.
//!
//! Owned by a shard, which counts for itself, as shards share nothing. The kernel may spread an
//! address over all shards: it then gets up to as many times the limit, and never less than the
//! limit.
//!
//! An IPv6 client has a whole /64 to itself, so the /64 counts as one. The table is bounded: an
//! entry stays while a handshake is open, and a second or two after the last connect. When it is
//! full, addresses that are not in it are not counted. A limit per address cannot hold a client
//! with that many addresses, and that client must not keep the others out.

use core::net::IpAddr;
use std::collections::BTreeMap;

/// Entries of one shard's table: some 3 MiB. More than a shard has open handshakes and connects per
/// second at its busiest.
pub const ENTRIES_MAX: usize = 65_536;
/// Entries that have expired are looked for this often.
const SWEEP_EVERY_US: u64 = 1_000_000;

/// The limits of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressLimits {
    /// Connections that have not finished their handshake; 0: no limit.
    pub handshakes: u32,
    /// Connects per second, one second's worth at once; 0: no limit.
    pub connects_per_second: u32,
}

/// The decision about a connection that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressDecision {
    /// It may, and is counted as an open handshake until [`Table::settle`].
    Counted,
    /// It may, and is not counted: there is no limit, or no room in the table.
    Free,
    /// It may not.
    Refused,
}

/// The part of an address that one client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    V4(u32),
    /// The /64.
    V6(u64),
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Client::V4(v4.to_bits()),
            IpAddr::V6(v6) => Client::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    open: u32,
    /// When the bucket will be full again, microseconds of the gateway's clock (GCRA).
    full_at_us: u64,
}

/// All addresses that a shard counts. A tree, so that no choice of addresses makes it slow.
#[derive(Debug, Default)]
pub struct Table {
    clients: BTreeMap<Client, State>,
    sweep_due_us: u64,
}

impl Table {
    /// One more connection from this address, at `now_us` of the gateway's clock.
    pub fn enter(&mut self, address: IpAddr, now_us: u64, limits: AddressLimits) -> AddressDecision {
        let AddressLimits {
            handshakes,
            connects_per_second,
        } = limits;
        if handshakes == 0 && connects_per_second == 0 {
            return AddressDecision::Free;
        }
        if now_us >= self.sweep_due_us {
            self.sweep_due_us = now_us + SWEEP_EVERY_US;
            self.clients
                .retain(|_, state| state.open > 0 || state.full_at_us > now_us);
        }
        let client = Client::from(address);
        let full = self.clients.len() >= ENTRIES_MAX;
        let state = match self.clients.get_mut(&client) {
            Some(state) => state,
            None if full => return AddressDecision::Free,
            None => self.clients.entry(client).or_default(),
        };
        if handshakes > 0 && state.open >= handshakes {
            return AddressDecision::Refused;
        }
        if connects_per_second > 0 {
            let interval_us = 1_000_000 / u64::from(connects_per_second);
            let full_at_us = state.full_at_us.max(now_us) + interval_us;
            if full_at_us > now_us + interval_us * u64::from(connects_per_second) {
                return AddressDecision::Refused;
            }
            state.full_at_us = full_at_us;
        }
        state.open += 1;
        AddressDecision::Counted
    }

    /// A handshake that was [`AddressDecision::Counted`] is finished, well or not.
    pub fn settle(&mut self, address: IpAddr) {
        let Some(state) = self.clients.get_mut(&address.into()) else {
            debug_assert!(false, "settled without having been counted");
            return;
        };
        state.open -= 1;
        // The sweep lets it go when its time has come, too.
    }

    /// Open handshakes that are counted.
    pub fn open(&self) -> u64 {
        self.clients.values().map(|state| u64::from(state.open)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const S: u64 = 1_000_000;

    fn limits(handshakes: u32, connects_per_second: u32) -> AddressLimits {
        AddressLimits {
            handshakes,
            connects_per_second,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn open_handshakes() {
        let mut table = Table::default();
        let (one, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        assert_eq!(table.enter(one, 0, limits(2, 0)), AddressDecision::Counted);
        assert_eq!(table.enter(one, 0, limits(2, 0)), AddressDecision::Counted);
        assert_eq!(table.enter(one, 9 * S, limits(2, 0)), AddressDecision::Refused);
        assert_eq!(table.enter(other, 9 * S, limits(2, 0)), AddressDecision::Counted);
        table.settle(one);
        assert_eq!(table.enter(one, 9 * S, limits(2, 0)), AddressDecision::Counted);
        assert_eq!(table.open(), 3);
    }

    #[test]
    fn connects_per_second() {
        let mut table = Table::default();
        let one = ip("192.0.2.1");
        for _ in 0..10 {
            assert_eq!(table.enter(one, 5 * S, limits(0, 10)), AddressDecision::Counted);
            table.settle(one);
        }
        assert_eq!(table.enter(one, 5 * S, limits(0, 10)), AddressDecision::Refused);
        // Being refused costs nothing: the next one is due after a tenth of a second all the same.
        assert_eq!(
            table.enter(one, 5 * S + S / 10, limits(0, 10)),
            AddressDecision::Counted
        );
        assert_eq!(
            table.enter(one, 5 * S + S / 10, limits(0, 10)),
            AddressDecision::Refused
        );
    }

    #[test]
    fn an_ipv6_client_is_its_network_and_a_mapped_one_is_ipv4() {
        let mut table = Table::default();
        assert_eq!(
            table.enter(ip("2001:db8::1"), 0, limits(1, 0)),
            AddressDecision::Counted
        );
        assert_eq!(
            table.enter(ip("2001:db8::ffff:1"), 0, limits(1, 0)),
            AddressDecision::Refused
        );
        assert_eq!(
            table.enter(ip("2001:db8:0:1::1"), 0, limits(1, 0)),
            AddressDecision::Counted
        );
        assert_eq!(table.enter(ip("192.0.2.1"), 0, limits(1, 0)), AddressDecision::Counted);
        assert_eq!(
            table.enter(ip("::ffff:192.0.2.1"), 0, limits(1, 0)),
            AddressDecision::Refused
        );
    }

    #[test]
    fn without_limits_nothing_is_kept() {
        let mut table = Table::default();
        assert_eq!(table.enter(ip("192.0.2.1"), 0, limits(0, 0)), AddressDecision::Free);
        assert!(table.clients.is_empty());
    }

    #[test]
    fn many_addresses_fill_it_and_keep_nobody_out() {
        let mut table = Table::default();
        let address = |n: usize| IpAddr::from(Ipv6Addr::from_bits((n as u128) << 64));
        for n in 0..ENTRIES_MAX {
            assert_eq!(table.enter(address(n), 0, limits(1, 1)), AddressDecision::Counted);
        }
        assert_eq!(
            table.enter(address(ENTRIES_MAX), 0, limits(1, 1)),
            AddressDecision::Free
        );
        assert_eq!(table.enter(address(0), 0, limits(1, 1)), AddressDecision::Refused);
        assert_eq!(table.clients.len(), ENTRIES_MAX);
        // Expired entries make room.
        for n in 0..ENTRIES_MAX {
            table.settle(address(n));
        }
        assert_eq!(
            table.enter(address(ENTRIES_MAX), 2 * S, limits(1, 1)),
            AddressDecision::Counted
        );
        assert_eq!(table.clients.len(), 1);
    }

    proptest! {
        /// Against a model that only counts what is open.
        #[test]
        fn no_address_has_more_open_than_it_may(steps in prop::collection::vec((0u8..4, any::<bool>(), 0u64..3 * S), 0..200)) {
            let mut table = Table::default();
            let mut open: BTreeMap<u8, u32> = BTreeMap::new();
            let mut now = 0;
            for (n, enters, passed) in steps {
                now += passed;
                let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, n));
                let count = open.entry(n).or_default();
                if enters {
                    let entry = table.enter(address, now, limits(3, 0));
                    prop_assert_eq!(entry, if *count < 3 { AddressDecision::Counted } else { AddressDecision::Refused });
                    *count += u32::from(entry == AddressDecision::Counted);
                } else if *count > 0 {
                    table.settle(address);
                    *count -= 1;
                }
                prop_assert_eq!(table.open(), open.values().map(|n| u64::from(*n)).sum::<u64>());
            }
        }
    }
}
