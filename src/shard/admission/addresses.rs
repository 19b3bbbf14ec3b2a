//! Where each connection comes from, what proxies say about it, and what one address may ask for.
//!
//! Owned by the shard's thread.
//!
//! A handshake is open from the accept until the user is known or the connection has gone: the
//! request head, TLS, plain HTTP and the wait for `auth` all count. A handshake through a proxy
//! counts once its client is known: by the PROXY header, or by `X-Forwarded-For`. Plain HTTP
//! through a proxy is not counted, as many clients share its connections.

use core::net::{IpAddr, SocketAddr};

use super::Admission;
use super::tables::ClientBytes;
use crate::address::limits::AddressLimits;
use crate::address::proxy::{self, Header};
use crate::metrics::RefusalReason;
use crate::session::Stage;
use crate::shard::kernel::Kernel;
use crate::wire::ws::head::{self, Upgrade};

/// Bounds of `Retry-After`, seconds: the limits are per second, or end with a handshake.
const RETRY_AFTER_S: (u64, u64) = (1, 5);

impl Admission {
    /// A connection that was accepted from here. False if this address has too many.
    pub(super) fn came_from(&mut self, kernel: &mut Kernel, slot: u32, peer: Option<SocketAddr>) -> bool {
        kernel.addresses.set(slot, peer);
        let Some(peer) = peer else {
            // It has gone already, or came by a Unix socket.
            if kernel.settings.proxies.contains_unix_socket() {
                kernel.addresses.expect_header(slot);
            }
            return true;
        };
        if kernel.settings.proxies.contains(peer.ip()) {
            kernel.addresses.expect_header(slot);
            return true;
        }
        self.takes_one_more_from(kernel, slot, peer.ip())
    }

    fn takes_one_more_from(&mut self, kernel: &mut Kernel, slot: u32, address: IpAddr) -> bool {
        let limits = AddressLimits {
            handshakes: kernel.settings.limits.handshakes_per_address,
            connects_per_second: kernel.settings.limits.connects_per_address,
        };
        let now_us = kernel.now.mono_ns / 1000;
        let taken = kernel.addresses.enter(slot, address, now_us, limits);
        if !taken {
            kernel.count_refused(slot, RefusalReason::AddressLimit);
        }
        taken
    }

    /// Takes the PROXY header off the first bytes of a connection, if a proxy may have sent one.
    pub(in crate::shard) fn behind_proxy_header<'a>(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        bytes: &'a mut [u8],
    ) -> ClientBytes<'a> {
        if !kernel.addresses.expects_header(slot) {
            return ClientBytes::Here(bytes);
        }
        let mut header = kernel.addresses.take_header(slot);
        let mut rest = bytes;
        loop {
            let seen = if header.is_empty() { &*rest } else { &header };
            match proxy::read(seen) {
                Header::Absent => {
                    kernel.addresses.settle(slot);
                    if header.is_empty() {
                        return ClientBytes::Here(rest);
                    }
                    // It only began like one: all of it is the client's.
                    header.extend_from_slice(rest);
                    return ClientBytes::Kept(header);
                }
                Header::Partial(_) if rest.is_empty() => {
                    kernel.addresses.keep_header(slot, header);
                    return ClientBytes::None;
                }
                // Only what belongs to the header is taken, a step at a time: the fixed part, then
                // what that announces.
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
                    kernel.addresses.settle(slot);
                    if let Some(client) = client
                        && !self.is_from(kernel, slot, client)
                    {
                        kernel.close_now(slot);
                        return ClientBytes::None;
                    }
                    if rest.is_empty() {
                        return ClientBytes::None;
                    }
                    return ClientBytes::Here(rest);
                }
                Header::Garbage => {
                    kernel.count_refused(slot, RefusalReason::Malformed);
                    kernel.close_now(slot);
                    return ClientBytes::None;
                }
            }
        }
    }

    /// A proxy that we believe says where the connection comes from. False if that address has too
    /// many.
    fn is_from(&mut self, kernel: &mut Kernel, slot: u32, client: SocketAddr) -> bool {
        kernel.addresses.set(slot, Some(client));
        // Behind one proxy there may be another, whose clients the handshake names.
        kernel.settings.proxies.contains(client.ip()) || self.takes_one_more_from(kernel, slot, client.ip())
    }

    /// Notes the client of a valid handshake that came through a proxy. False if the client's
    /// address has too many; then the client is told.
    pub(super) fn admits_client_of(&mut self, kernel: &mut Kernel, slot: u32, upgrade: &Upgrade) -> bool {
        let Some(client) = upgrade.forwarded_for else {
            return true;
        };
        let proxies = &kernel.settings.proxies;
        let from_proxy = match kernel.remote_addr(slot) {
            Some(current) => proxies.contains(current.ip()),
            None => proxies.contains_unix_socket(),
        };
        if !from_proxy || self.is_from(kernel, slot, SocketAddr::new(client, 0)) {
            return true;
        }
        let retry = kernel.retry_after(RETRY_AFTER_S);
        let text = "too many connections from this address: try again later";
        kernel.append_written(slot, |out| {
            head::final_response(out, "429 Too Many Requests", &retry, text);
        });
        debug_assert!(matches!(kernel.conn(slot).stage, Stage::Head(_) | Stage::Http(_)));
        kernel.linger(slot);
        false
    }
}
