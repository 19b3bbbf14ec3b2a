//! Request heads: what they ask for, and the answers to handshakes.
//!
//! Owned by the shard's thread. A head that is no handshake, or none that can be admitted, goes to
//! [`super::http`]. A handshake that is in order goes on to [`super::credentials`] if it shows a
//! token, and to [`super::enter`] if it names its user. Otherwise it gets its `101`, and the user
//! becomes known by an `auth` frame.

use std::rc::Rc;

use super::Admission;
use super::budget::HEAD_BYTES_PER_US;
use crate::http::HttpConn;
use crate::metrics::RefusalReason;
use crate::session::{Migrating, Stage, Tally};
use crate::shard::kernel::Kernel;
use crate::shared::NotAdmitted;
use crate::tls::looks_like_tls;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head::{self, Decision, Endpoint, Progress, Upgrade};
use crate::wire::ws::request::has_end;

impl Admission {
    /// Bytes of a request head.
    pub(in crate::shard) fn head_bytes(&mut self, kernel: &mut Kernel, slot: u32, bytes: &[u8]) {
        let Stage::Head(earlier) = &mut kernel.conn(slot).stage else {
            return;
        };
        // Nearly every head comes whole, and is read where it lies.
        let mut whole = std::mem::take(earlier);
        let seen = whole.len();
        let head = if seen == 0 {
            // Empty lines before a request are no part of it (RFC 9112, 2.2).
            let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            &bytes[blank..]
        } else {
            whole.extend_from_slice(bytes);
            &whole
        };
        if head.is_empty() {
            return;
        }
        let header_bytes = kernel.settings.limits.header_bytes;
        // The first piece shows what protocol the peer speaks. After it, a head is not read again
        // before its end has come, or a head in many pieces would cost the square of its length.
        let progress = if seen == 0 || has_end(head, seen) {
            self.budget.spend(1 + (head.len() / HEAD_BYTES_PER_US) as u32);
            head::read(head, &*kernel.settings)
        } else {
            self.budget.spend(1 + (bytes.len() / HEAD_BYTES_PER_US) as u32);
            Progress::Partial
        };
        match progress {
            Progress::Partial if head.len() <= header_bytes => {
                let head = if seen == 0 { head.to_vec() } else { whole };
                kernel.go(slot, Stage::Head(head));
            }
            Progress::Partial => self.refuse_head(
                kernel,
                slot,
                "431 Request Header Fields Too Large",
                RefusalReason::HeadTooLarge,
            ),
            Progress::Complete(len, _) if len > header_bytes => {
                self.refuse_head(
                    kernel,
                    slot,
                    "431 Request Header Fields Too Large",
                    RefusalReason::HeadTooLarge,
                );
            }
            Progress::Complete(len, Decision::Upgrade(upgrade)) => {
                match kernel.shared.admit(&kernel.settings, kernel.now) {
                    Ok(()) => {
                        let rest = head[len..].to_vec();
                        self.upgrade(kernel, slot, upgrade, rest);
                    }
                    Err(reason) => self.become_http(kernel, slot, head, Some(reason)),
                }
            }
            Progress::Complete(_, Decision::Refuse(_) | Decision::Plain) => self.become_http(kernel, slot, head, None),
            Progress::Malformed if looks_like_tls(head) => {
                self.hint(
                    kernel,
                    "a TLS client connected to the plain port: it must use ws:// or http://, or set tls.cert and tls.key",
                );
                kernel.count_refused(slot, RefusalReason::Malformed);
                kernel.close_now(slot);
            }
            Progress::Malformed => self.refuse_head(kernel, slot, "400 Bad Request", RefusalReason::Malformed),
            Progress::TooManyFields => self.refuse_head(
                kernel,
                slot,
                "431 Request Header Fields Too Large",
                RefusalReason::HeadTooLarge,
            ),
        }
    }

    /// Answers a head that never became a request, and lets the answer arrive before the connection
    /// goes.
    pub(super) fn refuse_head(&mut self, kernel: &mut Kernel, slot: u32, status_line: &str, reason: RefusalReason) {
        let text = status_line.split_once(' ').map_or("", |(_, text)| text);
        self.refuse_head_saying(kernel, slot, status_line, text, reason);
    }

    /// As [`Admission::refuse_head`], in these words.
    pub(super) fn refuse_head_saying(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        status_line: &str,
        text: &str,
        reason: RefusalReason,
    ) {
        kernel.count_refused(slot, reason);
        kernel.append_written(slot, |out| head::final_response(out, status_line, "", text));
        kernel.linger(slot);
    }

    fn become_http(&mut self, kernel: &mut Kernel, slot: u32, head: &[u8], refused: Option<NotAdmitted>) {
        let http = HttpConn::new(Rc::clone(&self.http), refused);
        kernel.go(slot, Stage::Http(Box::new(http)));
        self.http_bytes(kernel, slot, head);
    }

    /// A handshake that is in order and admitted.
    pub(super) fn upgrade(&mut self, kernel: &mut Kernel, slot: u32, mut upgrade: Upgrade, rest: Vec<u8>) {
        if !self.admits_client_of(kernel, slot, &upgrade) {
            // One address must not use up the rate of all others.
            return kernel.shared.give_back(&kernel.settings);
        }
        if upgrade.refused {
            return self.close_browser(kernel, slot, &upgrade, CloseReason::InvalidCredential);
        }
        match (upgrade.token.take(), upgrade.user.take()) {
            (Some(token), _) => self.begin_verifying(kernel, slot, token, Some(upgrade), rest),
            (None, Some(user)) => {
                let newcomer = Migrating {
                    hash: kernel.homes.hash(&user),
                    user,
                    grant: None,
                    upgrade: Some(upgrade),
                    rest,
                };
                self.enter(kernel, slot, newcomer);
            }
            (None, None) => {
                // An echo has no user to become known: it takes its permit at once.
                let tally = match upgrade.endpoint {
                    Endpoint::Echo if !kernel.shared.take_permit(&kernel.settings) => {
                        return self.refuse_permit(kernel, slot, true);
                    }
                    Endpoint::Echo => Tally::Permit,
                    Endpoint::Gateway => Tally::PreAuth,
                };
                kernel.count_as(slot, tally);
                self.switch_protocols(kernel, slot, &upgrade);
                let timeout = match upgrade.endpoint {
                    Endpoint::Gateway => {
                        kernel.go(slot, Stage::Authenticating);
                        kernel.settings.auth_timeout
                    }
                    Endpoint::Echo => {
                        kernel.settle_address(slot);
                        kernel.go(slot, Stage::Echo);
                        kernel.settings.heartbeat.interval
                    }
                };
                kernel
                    .wheel
                    .set(slot, kernel.now.mono_ms() + timeout.as_millis() as u64);
                self.read_frames(kernel, slot, rest);
            }
        }
    }

    /// Opens a refused connection of a browser, and closes it with the reason. A browser does not
    /// show a script the status of a refused handshake, and the script would come again for ever.
    pub(super) fn close_browser(&mut self, kernel: &mut Kernel, slot: u32, upgrade: &Upgrade, reason: CloseReason) {
        kernel.count_as(slot, Tally::PreAuth);
        self.switch_protocols(kernel, slot, upgrade);
        kernel.go(slot, Stage::Authenticating);
        kernel.begin_close(slot, reason);
    }

    /// Queues the `101`.
    pub(super) fn switch_protocols(&mut self, kernel: &mut Kernel, slot: u32, upgrade: &Upgrade) {
        kernel.metrics().accepted.inc();
        kernel.append_written(slot, |out| {
            head::switching_protocols(out, &upgrade.accept, upgrade.subprotocol);
        });
        if let Some(outbox) = &mut kernel.conn(slot).outbox {
            outbox.keep_waiting();
        }
    }

    /// Answers 503 to a handshake that had been admitted.
    pub(super) fn refuse_unavailable(&mut self, kernel: &mut Kernel, slot: u32, reason: NotAdmitted) {
        let retry = kernel.retry_after(reason.retry_after_range());
        self.refuse_upgrade(kernel, slot, "503 Service Unavailable", &retry, reason.text());
    }

    /// Refuses a handshake that had been admitted and is owed its `101`.
    pub(super) fn refuse_upgrade(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        status_line: &str,
        extra: &str,
        text: &str,
    ) {
        // It never was a WebSocket connection: nothing of that kind ends.
        if kernel.conn(slot).tally == Tally::Permit {
            kernel.shared.release();
            kernel.count_as(slot, Tally::Ended);
        }
        kernel.append_written(slot, |out| head::final_response(out, status_line, extra, text));
        kernel.linger(slot);
        let key = kernel.key(slot);
        kernel.rearm(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::engine::SocketKey;
    use crate::shard::tests as testing;

    /// How long this thread has worked so far, whatever else the machine does.
    fn worked() -> Duration {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
    }

    /// A head in many pieces costs about what it costs whole, and not the square of its length.
    #[test]
    fn a_head_in_many_pieces_is_read_once() {
        let conn = SocketKey { slot: 0, generation: 1 };
        let fields = format!("X: {}\r\n", "x".repeat(6000)).repeat(90);
        let head = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        let mut core = testing::core(|config| config.limits.header_bytes = 1 << 20);
        core.handle_accepted(conn, None);
        let began = worked();
        for piece in head.as_bytes().chunks(64) {
            core.handle_received(conn, &mut piece.to_vec());
        }
        let took = worked() - began;
        assert!(took < Duration::from_secs(2), "{took:?}");
        core.serve_pre_auth();
        let said = core.poll_payload(conn).unwrap();
        assert!(said.as_slice().starts_with(b"HTTP/1.1 200"));
    }
}
