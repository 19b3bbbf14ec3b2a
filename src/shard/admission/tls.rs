//! TLS handshakes: whose step is next, and what is refused.
//!
//! Owned by the shard's thread. TLS stands between the engine and the session: what arrives is
//! opened before anything looks at it, and what leaves is sealed when it is sent. Outboxes, limits
//! and hand-overs go by plain bytes.

use super::Admission;
use super::budget::TLS_STEP_US;
use super::tables::Records;
use crate::engine::SocketKey;
use crate::metrics::RefusalReason;
use crate::session::Stage;
use crate::shard::kernel::Kernel;
use crate::tls::{TlsError, looks_like_http};

/// The operator gets a hint about a wrong peer this often at most.
const HINT_EVERY_MS: u64 = 10_000;
/// The scratch buffer is kept at this size: what one receive completes.
const SCRATCH_BYTES_MAX: usize = 32 * 1024;

impl Admission {
    /// True if these bytes are kept for a later turn, because others wait or the budget is spent. A
    /// step of a handshake is the most expensive thing that a few bytes can ask for.
    pub(in crate::shard) fn puts_off(&mut self, kernel: &mut Kernel, key: SocketKey, bytes: &[u8]) -> bool {
        let conn = kernel.conn(key.slot);
        let Some(tls) = conn.tls.as_ref().filter(|tls| tls.is_handshaking()) else {
            return false;
        };
        if self.budget.may_go_on() && self.handshakes.waiting() == 0 {
            return false;
        }
        let waiting = if tls.has_answered() {
            &mut self.handshakes.answered
        } else {
            &mut self.handshakes.begun
        };
        waiting.push_back((key, bytes.to_vec()));
        // The receive is over when its bytes were looked at.
        conn.armed = true;
        true
    }

    /// The next bytes that wait for a step, if this turn may do one more.
    pub(in crate::shard) fn next_handshake(&mut self, kernel: &mut Kernel) -> Option<(SocketKey, Vec<u8>)> {
        while self.budget.may_go_on() {
            let (key, bytes) = self.handshakes.next_waiting()?;
            if let Some(conn) = kernel.connection(key) {
                conn.armed = false;
                return Some((key, bytes));
            }
        }
        None
    }

    /// Opens what a connection received that speaks TLS. `None` if there is nothing to understand.
    pub(in crate::shard) fn open_records(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        bytes: &mut [u8],
    ) -> Option<Records> {
        let conn = kernel.conn(slot);
        // These stages drop all input: it need not be understood.
        if matches!(
            conn.stage,
            Stage::Free | Stage::Migrating(_) | Stage::Lingering { .. } | Stage::Closed
        ) {
            return None;
        }
        let tls = conn.tls.as_mut()?;
        if !tls.has_begun() && looks_like_http(bytes) {
            self.refuse_plain_text(kernel, slot);
            return None;
        }
        let mut plain = std::mem::take(&mut self.handshakes.plain);
        let handshaking = tls.is_handshaking();
        if handshaking {
            self.handshakes.steps = self.handshakes.steps.wrapping_add(1);
            self.budget.spend(TLS_STEP_US);
        }
        let result = tls.read(bytes, &mut plain);
        let closed = tls.peer_has_closed();
        if !tls.is_flushed() {
            kernel.mark_dirty(slot);
        }
        Some(Records {
            plain,
            handshaking,
            closed,
            result,
        })
    }

    /// The plain bytes of [`Admission::open_records`] have been looked at.
    pub(in crate::shard) fn recycle_plain(&mut self, mut plain: Vec<u8>) {
        plain.clear();
        plain.shrink_to(SCRATCH_BYTES_MAX);
        self.handshakes.plain = plain;
    }

    /// Counts and tells that the peer's TLS is not sound, or that it speaks none.
    pub(in crate::shard) fn tls_failed(&mut self, kernel: &mut Kernel, slot: u32, handshaking: bool, error: &TlsError) {
        if handshaking {
            kernel.count_refused(slot, RefusalReason::Tls);
        }
        kernel.tell_tls(slot, handshaking, error);
    }

    /// A client speaks plain HTTP where TLS is spoken.
    fn refuse_plain_text(&mut self, kernel: &mut Kernel, slot: u32) {
        self.hint(
            kernel,
            "a plain-text client connected to the TLS port: it must use wss:// or https://",
        );
        kernel.conn(slot).tls = None;
        self.refuse_head_saying(
            kernel,
            slot,
            "400 Bad Request",
            "this port speaks TLS: use https:// or wss://",
            RefusalReason::PlainText,
        );
    }

    /// Counts a handshake as refused that ends before it is finished, whichever side is to blame. A
    /// peer that never sent a byte only looked whether the port is open, and is not counted.
    pub(in crate::shard) fn count_broken_handshake(&mut self, kernel: &mut Kernel, slot: u32) {
        let tls = &kernel.conn(slot).tls;
        if tls.as_ref().is_some_and(|tls| tls.has_begun() && tls.is_handshaking()) {
            kernel.count_refused(slot, RefusalReason::Tls);
        }
    }

    /// Tells the operator what clients do wrong, once in a while.
    pub(super) fn hint(&mut self, kernel: &Kernel, text: &str) {
        let now_ms = kernel.now.mono_ms();
        if now_ms >= self.handshakes.hint_due_ms {
            self.handshakes.hint_due_ms = now_ms + HINT_EVERY_MS;
            log::info!("{text}");
        }
    }
}
