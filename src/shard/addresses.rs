//! Where each connection comes from, what proxies say about it, and what one address may ask for.
//!
//! Owned by the shard.
//!
//! A handshake is open from the accept until the user is known (or the connection is gone): the request head, TLS, plain HTTP
//! and the wait for `auth` all count. What comes from a proxy counts once the client is known: with the PROXY header, or with the
//! `X-Forwarded-For` of the handshake. Plain HTTP through a proxy is not counted, as many clients share its connections.

use core::net::{IpAddr, SocketAddr};

use super::core::Core;
use crate::address::limits::AddressLimits;
use crate::address::proxy::{self, Header};
use crate::metrics::RefusalReason;
use crate::session::Stage;
use crate::wire::ws::head::{self, Upgrade};

/// Bounds of `Retry-After`, seconds: the limits are per second, or end with a handshake.
const RETRY_AFTER_S: (u64, u64) = (1, 5);

impl Core {
    /// A connection that was accepted from here. False if this address has too many.
    pub(super) fn came_from(&mut self, slot: u32, peer: Option<SocketAddr>) -> bool {
        self.kernel.addresses.set(slot, peer);
        let Some(peer) = peer else {
            // It has gone already, or came by a Unix socket.
            if self.kernel.settings.proxies.contains_unix_socket() {
                self.kernel.addresses.expect_header(slot);
            }
            return true;
        };
        if self.kernel.settings.proxies.contains(peer.ip()) {
            self.kernel.addresses.expect_header(slot);
            return true;
        }
        self.takes_one_more_from(slot, peer.ip())
    }

    /// A connection that another shard had; its handshake was counted there.
    pub(super) fn handed_over_from(&mut self, slot: u32, remote: Option<SocketAddr>) {
        self.kernel.addresses.set(slot, remote);
    }

    fn takes_one_more_from(&mut self, slot: u32, address: IpAddr) -> bool {
        let limits = AddressLimits {
            handshakes: self.kernel.settings.limits.handshakes_per_address,
            connects_per_second: self.kernel.settings.limits.connects_per_address,
        };
        let now_us = self.kernel.now.mono_ns / 1000;
        let taken = self.kernel.addresses.enter(slot, address, now_us, limits);
        if !taken {
            self.kernel.count_refused(slot, RefusalReason::AddressLimit);
        }
        taken
    }

    /// The client's own bytes among the first ones of a connection; `None` if there are none yet, or the connection was refused.
    pub(super) fn behind_proxy_header<'a>(&mut self, slot: u32, bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
        if !self.kernel.addresses.expects_header(slot) {
            return Some(bytes);
        }
        let mut header = self.kernel.addresses.take_header(slot);
        let mut rest = bytes;
        loop {
            let seen = if header.is_empty() { &*rest } else { &header };
            match proxy::read(seen) {
                Header::Absent => {
                    self.kernel.addresses.settle(slot);
                    if header.is_empty() {
                        return Some(rest);
                    }
                    // It only began like one: all of it is the client's.
                    header.extend_from_slice(rest);
                    let key = self.kernel.key(slot);
                    self.client_bytes(key, &mut header);
                    return None;
                }
                Header::Partial(_) if rest.is_empty() => {
                    self.kernel.addresses.keep_header(slot, header);
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
                    self.kernel.addresses.settle(slot);
                    if let Some(client) = client
                        && !self.is_from(slot, client)
                    {
                        self.kernel.close_now(slot);
                        return None;
                    }
                    return (!rest.is_empty()).then_some(rest);
                }
                Header::Garbage => {
                    self.kernel.count_refused(slot, RefusalReason::Malformed);
                    self.kernel.close_now(slot);
                    return None;
                }
            }
        }
    }

    /// A proxy that we believe says where the connection comes from. False if that address has too many.
    fn is_from(&mut self, slot: u32, client: SocketAddr) -> bool {
        self.kernel.addresses.set(slot, Some(client));
        // Behind one proxy there may be another, whose clients the handshake names.
        self.kernel.settings.proxies.contains(client.ip()) || self.takes_one_more_from(slot, client.ip())
    }

    /// A handshake that is in order: if it came from a proxy, here is its client. False if that one has too many; then it is told.
    pub(super) fn takes_handshake_from(&mut self, slot: u32, upgrade: &Upgrade) -> bool {
        let Some(client) = upgrade.forwarded_for else {
            return true;
        };
        let proxies = &self.kernel.settings.proxies;
        let from_proxy = match self.kernel.remote_addr(slot) {
            Some(current) => proxies.contains(current.ip()),
            None => proxies.contains_unix_socket(),
        };
        if !from_proxy || self.is_from(slot, SocketAddr::new(client, 0)) {
            return true;
        }
        let retry = self.kernel.retry_after(RETRY_AFTER_S);
        let mut response = Vec::new();
        let text = "too many connections from this address: try again later";
        head::final_response(&mut response, "429 Too Many Requests", &retry, text);
        self.kernel.append_unlimited(slot, &response);
        debug_assert!(matches!(self.kernel.conn(slot).stage, Stage::Head(_) | Stage::Http(_)));
        self.kernel.linger(slot);
        false
    }
}
