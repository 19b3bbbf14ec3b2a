//! What the log tells of connections at `debug`: who came, who went and why, who was refused.
//!
//! Owned by the shard. Peers cause these lines, so there are only so many per second; how many more there were is said as well. With
//! `debug` off they cost one comparison. No line has anything of a token.

use super::Kernel;
use crate::metrics::{CloseCause, RefusalReason};
use crate::tls::TlsError;

/// Lines per second and shard about connections, and as many about refusals: those come in floods, and must not keep the others out.
const LINES_PER_SECOND: u32 = 100;

/// Lines of one second.
#[derive(Debug, Default)]
struct Second {
    began_ms: u64,
    written: u32,
    suppressed: u64,
}

impl Second {
    /// May one more line be written?
    fn admits(&mut self) -> bool {
        self.written += 1;
        self.suppressed += u64::from(self.written > LINES_PER_SECOND);
        self.written <= LINES_PER_SECOND
    }

    /// Begins the next second if this one is over. Returns the lines that were not written.
    fn next(&mut self, now_ms: u64) -> u64 {
        if now_ms < self.began_ms + 1_000 {
            return 0;
        }
        let ended = std::mem::take(self);
        self.began_ms = now_ms;
        ended.suppressed
    }
}

/// What was told of late. Owned by the shard.
#[derive(Debug, Default)]
pub(in crate::shard) struct Journal {
    connections: Second,
    refusals: Second,
}

fn is_on() -> bool {
    log::log_enabled!(log::Level::Debug)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_number() {
        let mut second = Second::default();
        assert_eq!(second.next(5_000), 0);
        assert_eq!((0..1_000).filter(|_| second.admits()).count(), 100);
        assert_eq!(second.next(5_999), 0, "the second is not over");
        assert_eq!(second.next(6_000), 900);
        assert!(second.admits());
        assert_eq!(second.next(7_000), 0);
    }
}
