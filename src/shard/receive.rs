//! Input of sockets, to the service that understands it, and the pre-auth queues.
//!
//! Owned by the shard's thread. TLS stands between the socket and the session: opened bytes go to
//! admission while the connection is on its way in, and are read as frames after that.
//!
//! ```text
//! socket ─> PROXY header ─> TLS ─┬─> admission: head, plain HTTP
//!                                └─> frames
//! ```
//!
//! Invariant *settled first*: a receive is armed when everything that the bytes before it caused is
//! settled. A connection that leaves for its home shard has no receive armed, so no byte of it is
//! lost.

use super::Stage;
use super::admission::{ClientBytes, Queue};
use super::core::Core;
use super::kernel::Command;
use crate::engine::SocketKey;
use crate::metrics::CloseCause;
use crate::tls::TlsError;

impl Core {
    /// Bytes arrived.
    pub fn handle_received(&mut self, key: SocketKey, bytes: &mut [u8]) {
        let now_ms = self.kernel.now.mono_ms();
        self.kernel.metrics().bytes_received.add(bytes.len() as u64);
        let Some(conn) = self.kernel.connection(key) else {
            return;
        };
        conn.last_seen_ms = now_ms;
        conn.unheard = 0;
        conn.armed = false;
        // The header of a proxy comes before the client's first byte, TLS or not.
        match self.admission.behind_proxy_header(&mut self.kernel, key.slot, bytes) {
            ClientBytes::Here(bytes) => self.client_bytes(key, bytes),
            ClientBytes::Kept(mut bytes) => self.client_bytes(key, &mut bytes),
            ClientBytes::None => self.kernel.rearm(key),
        }
    }

    /// Bytes of the client's own.
    fn client_bytes(&mut self, key: SocketKey, bytes: &mut [u8]) {
        if self.kernel.conn(key.slot).tls.is_some() {
            if self.admission.puts_off(&mut self.kernel, key, bytes) {
                return;
            }
            self.tls_bytes(key.slot, bytes);
        } else {
            self.plain_bytes(key.slot, bytes);
        }
        self.receive_again(key);
    }

    /// Settles what the last bytes caused; then the connection receives more, if its stage wants
    /// any.
    pub(super) fn receive_again(&mut self, key: SocketKey) {
        self.settle();
        self.kernel.rearm(key);
    }

    /// Bytes of HTTP or WebSocket.
    pub(super) fn plain_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        match self.kernel.conn(slot).stage {
            Stage::Head(_) => self.admission.head_bytes(&mut self.kernel, slot, bytes),
            Stage::Http(_) => self.admission.http_bytes(&mut self.kernel, slot, bytes),
            Stage::Authenticating | Stage::Open | Stage::Echo | Stage::Closing { .. } => {
                return self.frame_bytes(slot, bytes);
            }
            Stage::Free
            | Stage::Migrating(_)
            | Stage::Verifying(_)
            | Stage::Doomed(_)
            | Stage::Lingering { .. }
            | Stage::Closed => return,
        }
        // Frames that came behind a handshake are looked at before anything else of the same
        // receive.
        self.settle();
    }

    /// Bytes of a connection that speaks TLS.
    fn tls_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        let Some(mut opened) = self.admission.open_records(&mut self.kernel, slot, bytes) else {
            return;
        };
        // Bytes count that came before something went wrong.
        if !opened.plain.is_empty() {
            self.plain_bytes(slot, &mut opened.plain);
        }
        self.admission.recycle_plain(opened.plain);
        match opened.result {
            Err(error) => self.tls_failed(slot, opened.handshaking, &error),
            Ok(()) if opened.closed => self.peer_ended(self.kernel.key(slot), false),
            Ok(()) => {}
        }
    }

    /// The peer's TLS is not sound. It hears why by the alert that is queued.
    fn tls_failed(&mut self, slot: u32, handshaking: bool, error: &TlsError) {
        self.admission.tls_failed(&mut self.kernel, slot, handshaking, error);
        if matches!(self.kernel.conn(slot).stage, Stage::Closed) {
            return;
        }
        self.end(slot, CloseCause::Abrupt);
        let lost = self.kernel.drop_waiting(slot);
        self.kernel.count_lost(lost);
        self.kernel.linger(slot);
    }

    /// The peer ended its side, or the socket broke.
    pub(super) fn peer_ended(&mut self, key: SocketKey, broken: bool) {
        let Some(conn) = self.kernel.connection(key) else {
            return;
        };
        // A peer that speaks TLS says that it is done. An end without that may be anybody's.
        let done = !broken && conn.tls.as_ref().is_none_or(|tls| tls.peer_has_closed());
        match conn.stage {
            Stage::Http(_) if done => return self.admission.http_ended(&mut self.kernel, key.slot),
            // The peer may still read what is queued for it.
            Stage::Closing { .. } | Stage::Lingering { .. } if !broken => {
                return self.kernel.close_when_flushed(key.slot);
            }
            _ => self.admission.count_broken_handshake(&mut self.kernel, key.slot),
        }
        self.end(key.slot, CloseCause::Abrupt);
        self.kernel.abandon(key.slot, broken);
    }

    /// Does as much pre-auth work as this turn may.
    pub fn serve_pre_auth(&mut self) {
        self.trim_pending();
        for queue in self.admission.begin_queues() {
            while self.serve_next(queue) {}
        }
    }

    /// Does one step of this queue, and settles it. False if this turn may do none.
    fn serve_next(&mut self, queue: Queue) -> bool {
        match queue {
            Queue::Tls => {
                let Some((key, mut bytes)) = self.admission.next_handshake(&mut self.kernel) else {
                    return false;
                };
                self.tls_bytes(key.slot, &mut bytes);
                self.receive_again(key);
                true
            }
            Queue::Http => {
                let Some(key) = self.admission.continue_http(&mut self.kernel) else {
                    return false;
                };
                self.receive_again(key);
                true
            }
            Queue::Credentials => {
                let went_on = self.admission.verify_next(&mut self.kernel);
                self.settle();
                went_on
            }
            Queue::Listen => self.admission.listen_to_next(&mut self.kernel),
        }
    }

    /// True if pre-auth work waits for its turn.
    pub fn has_pre_auth(&self) -> bool {
        self.admission.waiting_pre_auth(&self.kernel) > 0
    }

    /// True if so much pre-auth work waits that no more sockets shall be accepted.
    pub fn is_crowded(&self) -> bool {
        self.admission.is_crowded(&self.kernel)
    }

    /// Closes the oldest pending sockets while there are too many: at each accept, and once a turn
    /// for those that ended.
    pub(super) fn trim_pending(&mut self) {
        while self.admission.pending_over(&self.kernel) > 0 && self.close_oldest() {}
    }

    /// There are no descriptors left: the oldest pending sockets make room.
    pub fn handle_out_of_descriptors(&mut self) {
        let mut left = self.admission.pending_without_descriptors(&self.kernel);
        while left > 0 && self.close_oldest() {
            left -= 1;
        }
    }

    /// Closes the oldest pending socket. False if none may go.
    fn close_oldest(&mut self) -> bool {
        let Some(oldest) = self.admission.give_up_oldest(&mut self.kernel) else {
            return false;
        };
        self.end(oldest.slot, CloseCause::Abrupt);
        if oldest.was_answered {
            self.kernel.abandon(oldest.slot, false);
        } else {
            self.kernel.close_by(oldest.slot, Command::Reset);
        }
        true
    }
}
