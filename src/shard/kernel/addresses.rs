//! Where each connection comes from, and how many handshakes each address has open.
//!
//! An address costs a connection 8 bytes. IPv6 ones do not fit there and have a table of their own.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;

use crate::address::limits::{AddressDecision, AddressLimits, Table};

/// The addresses of a shard's connections.
#[derive(Debug, Default)]
pub(in crate::shard) struct Addresses {
    table: Table,
    by_slot: Vec<Remote>,
    v6: BTreeMap<u32, SocketAddr>,
    /// PROXY headers that are half-way in.
    headers: BTreeMap<u32, Vec<u8>>,
}

/// One connection's, packed.
#[derive(Debug, Clone, Copy, Default)]
struct Remote {
    ip: [u8; 4],
    port: u16,
    kind: Kind,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Unknown,
    V4,
    /// In the table of its own.
    V6,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Standing {
    /// Not, or no longer, counted as an open handshake.
    #[default]
    Settled,
    /// Counted as one.
    Counted,
    /// A proxy from which nothing has come yet: a PROXY header may.
    MayBringHeader,
}

impl Addresses {
    fn remote(&mut self, slot: u32) -> &mut Remote {
        let index = slot as usize;
        if index >= self.by_slot.len() {
            self.by_slot.resize(index + 1, Remote::default());
        }
        &mut self.by_slot[index]
    }

    pub(super) fn get(&self, slot: u32) -> Option<SocketAddr> {
        let remote = self.by_slot.get(slot as usize)?;
        match remote.kind {
            Kind::Unknown => None,
            Kind::V4 => Some(SocketAddr::new(Ipv4Addr::from(remote.ip).into(), remote.port)),
            Kind::V6 => self.v6.get(&slot).copied(),
        }
    }

    /// A proxy from which nothing has come yet: a PROXY header may.
    pub(in crate::shard) fn expect_header(&mut self, slot: u32) {
        self.remote(slot).standing = Standing::MayBringHeader;
    }

    /// True until it is known whether a PROXY header comes.
    pub(in crate::shard) fn expects_header(&self, slot: u32) -> bool {
        let remote = self.by_slot.get(slot as usize);
        remote.is_some_and(|remote| remote.standing == Standing::MayBringHeader)
    }

    /// The part of a PROXY header that has come.
    pub(in crate::shard) fn take_header(&mut self, slot: u32) -> Vec<u8> {
        self.headers.remove(&slot).unwrap_or_default()
    }

    /// A PROXY header is half-way in.
    pub(in crate::shard) fn keep_header(&mut self, slot: u32, header: Vec<u8>) {
        self.headers.insert(slot, header);
    }

    /// One more handshake of this address. False if it has too many.
    pub(in crate::shard) fn enter(&mut self, slot: u32, address: IpAddr, now_us: u64, limits: AddressLimits) -> bool {
        match self.table.enter(address, now_us, limits) {
            AddressDecision::Counted => self.remote(slot).standing = Standing::Counted,
            AddressDecision::Free => {}
            AddressDecision::Refused => return false,
        }
        true
    }

    /// Writes the address down; whatever was counted is settled before.
    pub(in crate::shard) fn set(&mut self, slot: u32, address: Option<SocketAddr>) {
        self.forget(slot);
        let remote = match address.map(|address| (address.ip().to_canonical(), address.port())) {
            None => Remote::default(),
            Some((IpAddr::V4(ip), port)) => Remote {
                ip: ip.octets(),
                port,
                kind: Kind::V4,
                standing: Standing::Settled,
            },
            Some((ip @ IpAddr::V6(_), port)) => {
                self.v6.insert(slot, SocketAddr::new(ip, port));
                Remote {
                    kind: Kind::V6,
                    ..Remote::default()
                }
            }
        };
        *self.remote(slot) = remote;
    }

    /// The handshake is not counted any more.
    pub(in crate::shard) fn settle(&mut self, slot: u32) {
        let address = self.get(slot);
        let remote = self.remote(slot);
        let standing = std::mem::take(&mut remote.standing);
        if let (Standing::Counted, Some(address)) = (standing, address) {
            self.table.settle(address.ip());
        }
    }

    pub(super) fn forget(&mut self, slot: u32) {
        self.settle(slot);
        let remote = std::mem::take(self.remote(slot));
        if remote.kind == Kind::V6 {
            self.v6.remove(&slot);
        }
        self.headers.remove(&slot);
    }

    /// Asserts that what the table counts are the connections that are counted.
    pub(in crate::shard) fn check_invariants(&self) {
        let counted = self.by_slot.iter().filter(|r| r.standing == Standing::Counted).count();
        assert_eq!(counted as u64, self.table.open(), "open handshakes by address");
        let v6 = self.by_slot.iter().filter(|r| r.kind == Kind::V6).count();
        assert_eq!(v6, self.v6.len(), "IPv6 addresses");
    }
}
