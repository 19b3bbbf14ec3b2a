//! TLS between engine and session: what arrives is read before it is looked at, what leaves is sealed when it is sent.
//!
//! All else of the shard knows plain bytes only: outboxes, limits and hand-overs go by them.

use std::collections::VecDeque;

use super::core::Core;
use super::strangers::TLS_STEP_US;
use crate::engine::{Payload, SocketKey};
use crate::metrics::{CloseCause, RefusalReason};
use crate::session::Stage;
use crate::tls::{Tls, TlsError, looks_like_http};

/// A peer that is simply wrong is worth a line, but not one for each try.
const HINT_EVERY_MS: u64 = 10_000;
/// The scratch buffer is kept at this size: what one receive completes.
const SCRATCH_BYTES_MAX: usize = 32 * 1024;

/// What came for more steps, in order: one receive's bytes for a pending socket, which receives nothing meanwhile.
type Waiting = VecDeque<(SocketKey, Vec<u8>)>;

/// What a shard keeps for TLS besides its connections'.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// So far: the last bit says whose step is next.
    steps: u32,
    /// Those that we have answered, and those that begin. Who has been answered is among the oldest: behind a flood of others that
    /// begin it would be closed for its age before its turn, and the answer would have been for nothing.
    answered: Waiting,
    begun: Waiting,
    /// What was read of one receive; kept for its capacity.
    plain: Vec<u8>,
    hint_due_ms: u64,
}

impl Handshakes {
    /// In turns, so that neither keeps the other out.
    fn next_waiting(&mut self) -> Option<(SocketKey, Vec<u8>)> {
        let (first, second) = match self.steps % 2 {
            0 => (&mut self.answered, &mut self.begun),
            _ => (&mut self.begun, &mut self.answered),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// Handshakes whose next step waits.
    pub(super) fn waiting(&self) -> usize {
        self.answered.len() + self.begun.len()
    }
}

impl Core {
    /// True if these bytes are kept for a later turn, because of all that were here before: a step of a handshake is the most
    /// expensive thing that a few bytes can ask for.
    pub(super) fn puts_off(&mut self, key: SocketKey, bytes: &[u8]) -> bool {
        let conn = &mut self.kernel.connections[key.slot as usize];
        let Some(tls) = conn.tls.as_ref().filter(|tls| tls.is_handshaking()) else {
            return false;
        };
        if self.strangers.may_go_on() && self.tls.waiting() == 0 {
            return false;
        }
        let waiting = if tls.has_answered() {
            &mut self.tls.answered
        } else {
            &mut self.tls.begun
        };
        waiting.push_back((key, bytes.to_vec()));
        // The receive is over when its bytes were looked at.
        conn.armed = true;
        true
    }

    /// As many steps of handshakes that wait as this turn still may.
    pub(super) fn continue_handshakes(&mut self) {
        while self.strangers.may_go_on()
            && let Some((key, mut bytes)) = self.tls.next_waiting()
        {
            if let Some(conn) = self.kernel.connection(key) {
                conn.armed = false;
                self.tls_bytes(key.slot, &mut bytes);
                self.kernel.rearm(key);
            }
        }
    }

    /// What a new connection begins with.
    pub(super) fn new_tls(&self) -> Option<Box<Tls>> {
        let server = self.kernel.settings.tls.as_ref()?;
        match Tls::new(server) {
            Ok(tls) => Some(Box::new(tls)),
            // Only a configuration of ours could be the reason.
            Err(error) => unreachable!("TLS cannot begin: {error}"),
        }
    }

    /// Bytes of a connection that speaks TLS.
    pub(super) fn tls_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        let conn = &mut self.kernel.connections[slot as usize];
        // What these stages would drop need not be understood either.
        if matches!(
            conn.stage,
            Stage::Free | Stage::Migrating(_) | Stage::Lingering { .. } | Stage::Closed
        ) {
            return;
        }
        let Some(tls) = &mut conn.tls else {
            return;
        };
        if !tls.has_begun() && looks_like_http(bytes) {
            return self.refuse_plain_text(slot);
        }
        let mut plain = std::mem::take(&mut self.tls.plain);
        let handshaking = tls.is_handshaking();
        if handshaking {
            self.tls.steps = self.tls.steps.wrapping_add(1);
            self.strangers.spend(TLS_STEP_US);
        }
        let read = tls.read(bytes, &mut plain);
        let closed = tls.peer_has_closed();
        if !tls.is_flushed() {
            self.kernel.mark_dirty(slot);
        }
        // What it said before something went wrong counts.
        if !plain.is_empty() {
            self.plain_bytes(slot, &mut plain);
            plain.clear();
            plain.shrink_to(SCRATCH_BYTES_MAX);
        }
        self.tls.plain = plain;
        match read {
            Err(error) => self.tls_failed(slot, handshaking, &error),
            Ok(()) if closed => self.peer_ended(self.kernel.key(slot), false),
            Ok(()) => {}
        }
    }

    /// The peer's TLS is no good, or none. It hears why by the alert that is queued.
    fn tls_failed(&mut self, slot: u32, handshaking: bool, error: &TlsError) {
        if handshaking {
            self.kernel.count_refused(slot, RefusalReason::Tls);
        }
        self.kernel.tell_tls(slot, handshaking, error);
        if matches!(self.kernel.conn(slot).stage, Stage::Closed) {
            return;
        }
        self.end(slot, CloseCause::Abrupt);
        let lost = self.kernel.drop_waiting(slot);
        self.kernel.count_lost(lost);
        self.kernel.linger(slot);
    }

    /// Somebody speaks plain HTTP where TLS is interactive.
    fn refuse_plain_text(&mut self, slot: u32) {
        self.hint("a plain-text client connected to the TLS port: it must use wss:// or https://");
        self.kernel.conn(slot).tls = None;
        self.refuse_head_saying(
            slot,
            "400 Bad Request",
            "this port speaks TLS: use https:// or wss://",
            RefusalReason::PlainText,
        );
    }

    /// A handshake that ends before it is finished was refused, whoever is to blame. Who never said a word only looked
    /// whether the port is open.
    pub(super) fn count_broken_handshake(&mut self, slot: u32) {
        let tls = &self.kernel.connections[slot as usize].tls;
        if tls.as_ref().is_some_and(|tls| tls.has_begun() && tls.is_handshaking()) {
            self.kernel.count_refused(slot, RefusalReason::Tls);
        }
    }

    /// Tells the operator what clients do wrong, once in a while.
    pub(super) fn hint(&mut self, text: &str) {
        let now_ms = self.kernel.now.mono_ms();
        if now_ms >= self.tls.hint_due_ms {
            self.tls.hint_due_ms = now_ms + HINT_EVERY_MS;
            log::info!("{text}");
        }
    }

    /// The next bytes to send on a connection that speaks TLS.
    pub(super) fn sealed_payload(&mut self, key: SocketKey) -> Option<Payload> {
        let conn = &mut self.kernel.connections[key.slot as usize];
        let tls = conn.tls.as_mut()?;
        if tls.wants_payload()
            && let Some(payload) = conn
                .outbox
                .as_mut()
                .and_then(|outbox| outbox.take(&mut self.kernel.spares))
        {
            tls.begin(payload);
        }
        if !tls.has_to_send() {
            return None;
        }
        match tls.seal(self.kernel.spares.buffer()) {
            Ok(wire) => Some(Payload::Own(wire)),
            Err(error) => {
                log::debug!("a TLS connection cannot go on: {error}");
                self.lose(key.slot);
                None
            }
        }
    }
}
