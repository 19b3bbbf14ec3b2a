//! Lines of the log about single connections.

use super::Kernel;
use super::journal::is_on;
use crate::metrics::{CloseCause, RefusalReason};
use crate::tls::TlsError;

impl Kernel {
    /// A connection is open, and its user known.
    pub(in crate::shard) fn tell_connected(&mut self, slot: u32) {
        if is_on()
            && self.journal.connections.admits()
            && let Some(user) = self.conn(slot).user
        {
            let (id, user) = (self.connections[slot as usize].id, self.users.name(user));
            log::debug!(user, address:% = self.address_text(slot), connection:% = id; "connected");
        }
    }

    /// A connection ends; it still has its user, if it had one.
    pub(in crate::shard) fn tell_ended(&mut self, slot: u32, ending: CloseCause) {
        if !is_on() || !self.journal.connections.admits() {
            return;
        }
        let conn = &self.connections[slot as usize];
        let user = conn.user.map_or("", |user| self.users.name(user));
        let (code, reason) = match ending {
            CloseCause::Ours(reason) => (reason.code(), reason.text()),
            CloseCause::Peer(code) => (code.unwrap_or(1005), "closed by the client"),
            CloseCause::Abrupt => (1006, "the connection was lost"),
        };
        log::debug!(
            user, address:% = self.address_text(slot), connection:% = conn.id, code, reason;
            "disconnected"
        );
    }

    /// Counts a handshake that is refused, and tells of it.
    pub(in crate::shard) fn count_refused(&mut self, slot: u32, reason: RefusalReason) {
        self.metrics().refused(reason);
        self.tell_refused(slot, reason);
    }

    /// A handshake is refused, and counted elsewhere.
    pub(in crate::shard) fn tell_refused(&mut self, slot: u32, reason: RefusalReason) {
        if is_on() && self.journal.refusals.admits() {
            log::debug!(address:% = self.address_text(slot), reason = reason.label(); "refused");
        }
    }

    /// TLS failed, at the handshake or later.
    pub(in crate::shard) fn tell_tls(&mut self, slot: u32, handshaking: bool, error: &TlsError) {
        if is_on() && self.journal.refusals.admits() {
            let what = if handshaking {
                "a TLS handshake failed"
            } else {
                "a TLS connection broke"
            };
            log::debug!(address:% = self.address_text(slot); "{what}: {error}");
        }
    }

    /// Says what was not said in the second that is over.
    pub(in crate::shard) fn close_journal(&mut self) {
        let now_ms = self.now.mono_ms();
        for (what, second) in [
            ("connections that came or went", &mut self.journal.connections),
            ("refusals", &mut self.journal.refusals),
        ] {
            let suppressed = second.next(now_ms);
            if suppressed > 0 {
                log::debug!(suppressed; "{suppressed} more {what}");
            }
        }
    }

    fn address_text(&self, slot: u32) -> String {
        self.remote_addr(slot)
            .map_or_else(|| "unknown".into(), |address| address.to_string())
    }
}
