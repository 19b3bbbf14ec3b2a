//! Where each connection comes from, what proxies say about it, and what one address may ask for.
//!
//! Owned by the shard. An address costs a connection 8 bytes; IPv6 ones, which do not fit there, have a table of their own.
//!
//! A handshake is open from the accept until the user is known (or the connection is gone): the request head, TLS, plain HTTP
//! and the wait for `auth` all count. What comes from a proxy counts once the client is known: with the PROXY header, or with the
//! `X-Forwarded-For` of the handshake. Plain HTTP through a proxy is not counted, as many clients share its connections.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;

use super::core::Core;
use crate::address::limits::{AddressLimits, Entry, Table};
use crate::address::proxy::{self, Header};
use crate::metrics::RefusalReason;
use crate::session::Stage;
use crate::wire::ws::head::{self, Upgrade};

/// Bounds of `Retry-After`, seconds: the limits are per second, or end with a handshake.
const RETRY_AFTER_S: (u64, u64) = (1, 5);

/// The addresses of a shard's connections.
#[derive(Debug, Default)]
pub(super) struct Addresses {
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

    fn get(&self, slot: u32) -> Option<SocketAddr> {
        let remote = self.by_slot.get(slot as usize)?;
        match remote.kind {
            Kind::Unknown => None,
            Kind::V4 => Some(SocketAddr::new(Ipv4Addr::from(remote.ip).into(), remote.port)),
            Kind::V6 => self.v6.get(&slot).copied(),
        }
    }

    /// Writes the address down; whatever was counted is settled before.
    fn set(&mut self, slot: u32, address: Option<SocketAddr>) {
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

    fn settle(&mut self, slot: u32) {
        let address = self.get(slot);
        let remote = self.remote(slot);
        let standing = std::mem::take(&mut remote.standing);
        if let (Standing::Counted, Some(address)) = (standing, address) {
            self.table.settle(address.ip());
        }
    }

    fn forget(&mut self, slot: u32) {
        self.settle(slot);
        let remote = std::mem::take(self.remote(slot));
        if remote.kind == Kind::V6 {
            self.v6.remove(&slot);
        }
        self.headers.remove(&slot);
    }

    /// Asserts that what the table counts are the connections that are counted.
    pub(super) fn check_invariants(&self) {
        let counted = self.by_slot.iter().filter(|r| r.standing == Standing::Counted).count();
        assert_eq!(counted as u64, self.table.open(), "open handshakes by address");
        let v6 = self.by_slot.iter().filter(|r| r.kind == Kind::V6).count();
        assert_eq!(v6, self.v6.len(), "IPv6 addresses");
    }
}

impl Core {
    /// Where a connection comes from: the client, as far as proxies that we believe name it. The port is 0 where only the
    /// address is known.
    pub fn remote_addr(&self, slot: u32) -> Option<SocketAddr> {
        self.addresses.get(slot)
    }

    /// A connection that was accepted from here. False if this address has too many.
    pub(super) fn came_from(&mut self, slot: u32, peer: Option<SocketAddr>) -> bool {
        self.addresses.set(slot, peer);
        let Some(peer) = peer else {
            // It has gone already, or came by a Unix socket.
            if self.settings.proxies.contains_unix_socket() {
                self.addresses.remote(slot).standing = Standing::MayBringHeader;
            }
            return true;
        };
        if self.settings.proxies.contains(peer.ip()) {
            self.addresses.remote(slot).standing = Standing::MayBringHeader;
            return true;
        }
        self.takes_one_more_from(slot, peer.ip())
    }

    /// A connection that another shard had; its handshake was counted there.
    pub(super) fn handed_over_from(&mut self, slot: u32, remote: Option<SocketAddr>) {
        self.addresses.set(slot, remote);
    }

    fn takes_one_more_from(&mut self, slot: u32, address: IpAddr) -> bool {
        let limits = AddressLimits {
            handshakes: self.settings.limits.handshakes_per_address,
            connects_per_second: self.settings.limits.connects_per_address,
        };
        let now_us = self.now.mono_ns / 1000;
        match self.addresses.table.enter(address, now_us, limits) {
            Entry::Counted => self.addresses.remote(slot).standing = Standing::Counted,
            Entry::Free => {}
            Entry::Refused => {
                self.count_refused(slot, RefusalReason::AddressLimit);
                return false;
            }
        }
        true
    }

    /// The handshake is over: the user is known, or nobody is to be.
    pub(super) fn settle_address(&mut self, slot: u32) {
        self.addresses.settle(slot);
    }

    /// The slot is free.
    pub(super) fn forget_address(&mut self, slot: u32) {
        self.addresses.forget(slot);
    }

    /// The client's own bytes among the first ones of a connection; `None` if there are none yet, or the connection was refused.
    pub(super) fn behind_proxy_header<'a>(&mut self, slot: u32, bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
        if self.addresses.remote(slot).standing != Standing::MayBringHeader {
            return Some(bytes);
        }
        let mut header = self.addresses.headers.remove(&slot).unwrap_or_default();
        let mut rest = bytes;
        loop {
            let seen = if header.is_empty() { &*rest } else { &header };
            match proxy::read(seen) {
                Header::Absent => {
                    self.addresses.settle(slot);
                    if header.is_empty() {
                        return Some(rest);
                    }
                    // It only began like one: all of it is the client's.
                    header.extend_from_slice(rest);
                    let key = self.key(slot);
                    self.client_bytes(key, &mut header);
                    return None;
                }
                Header::Partial(_) if rest.is_empty() => {
                    self.addresses.headers.insert(slot, header);
                    return None;
                }
                // Only what belongs to the header is taken, a step at a time: the fixed part, then what that announces.
                Header::Partial(more) => {
                    let more = if header.is_empty() {
                        rest.len()
                    } else {
                        more.min(rest.len())
                    };
                    let (taken, left) = rest.split_at_mut(more);
                    header.extend_from_slice(taken);
                    rest = left;
                }
                Header::Complete(len, client) => {
                    if header.is_empty() {
                        rest = &mut rest[len..];
                    }
                    self.addresses.settle(slot);
                    if let Some(client) = client
                        && !self.is_from(slot, client)
                    {
                        self.close_now(slot);
                        return None;
                    }
                    return (!rest.is_empty()).then_some(rest);
                }
                Header::Garbage => {
                    self.count_refused(slot, RefusalReason::Malformed);
                    self.close_now(slot);
                    return None;
                }
            }
        }
    }

    /// A proxy that we believe says where the connection comes from. False if that address has too many.
    fn is_from(&mut self, slot: u32, client: SocketAddr) -> bool {
        self.addresses.set(slot, Some(client));
        // Behind one proxy there may be another, whose clients the handshake names.
        self.settings.proxies.contains(client.ip()) || self.takes_one_more_from(slot, client.ip())
    }

    /// A handshake that is in order: if it came from a proxy, here is its client. False if that one has too many; then it is told.
    pub(super) fn takes_handshake_from(&mut self, slot: u32, upgrade: &Upgrade) -> bool {
        let Some(client) = upgrade.forwarded_for else {
            return true;
        };
        let proxies = &self.settings.proxies;
        let from_proxy = match self.remote_addr(slot) {
            Some(current) => proxies.contains(current.ip()),
            None => proxies.contains_unix_socket(),
        };
        if !from_proxy || self.is_from(slot, SocketAddr::new(client, 0)) {
            return true;
        }
        let retry = self.retry_after(RETRY_AFTER_S);
        let mut response = Vec::new();
        let text = "too many connections from this address: try again later";
        head::final_response(&mut response, "429 Too Many Requests", &retry, text);
        self.append_unlimited(slot, &response);
        debug_assert!(matches!(self.conn(slot).stage, Stage::Head(_) | Stage::Http(_)));
        self.linger(slot);
        false
    }
}
