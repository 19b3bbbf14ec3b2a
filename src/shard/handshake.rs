//! From the first byte to an open connection: request heads, HTTP, hand-over to the home shard.

use std::rc::Rc;
use std::sync::Arc;

use super::core::{Command, Core};
use super::strangers::HEAD_BYTES_PER_US;
use crate::auth::Grant;
use crate::engine::SocketKey;
use crate::http::HttpConn;
use crate::lanes::Handoff;
use crate::metrics::{DropReason, RefusalReason};
use crate::router::UserHash;
use crate::session::{Migrating, Stage, Tally};
use crate::shared::NotAdmitted;
use crate::tls::looks_like_tls;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head::{self, Decision, Endpoint, Progress, Upgrade};
use crate::wire::ws::request::has_end;

impl Core {
    /// Bytes of a request head.
    pub(super) fn head_bytes(&mut self, slot: u32, bytes: &[u8]) {
        let Stage::Head(earlier) = &mut self.kernel.conn(slot).stage else {
            return;
        };
        // Nearly every head arrives whole and is read where it lies.
        let mut whole = std::mem::take(earlier);
        let seen = whole.len();
        let head = if seen == 0 {
            // Empty lines before a request are none of it (RFC 9112, 2.2).
            let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            &bytes[blank..]
        } else {
            whole.extend_from_slice(bytes);
            &whole
        };
        if head.is_empty() {
            return;
        }
        let header_bytes = self.kernel.settings.limits.header_bytes;
        // The first piece shows what speaks there. Then a head is not looked at again before its end has come, or one in many
        // pieces would cost the square of its length.
        let progress = if seen == 0 || has_end(head, seen) {
            self.strangers.spend(1 + (head.len() / HEAD_BYTES_PER_US) as u32);
            head::read(head, &*self.kernel.settings)
        } else {
            self.strangers.spend(1 + (bytes.len() / HEAD_BYTES_PER_US) as u32);
            Progress::Partial
        };
        match progress {
            Progress::Partial if head.len() <= header_bytes => {
                let head = if seen == 0 { head.to_vec() } else { whole };
                self.kernel.go(slot, Stage::Head(head));
            }
            Progress::Partial => {
                self.refuse_head(slot, "431 Request Header Fields Too Large", RefusalReason::HeadTooLarge)
            }
            Progress::Complete(len, _) if len > header_bytes => {
                self.refuse_head(slot, "431 Request Header Fields Too Large", RefusalReason::HeadTooLarge);
            }
            Progress::Complete(len, Decision::Upgrade(upgrade)) => {
                match self.kernel.shared.admit(&self.kernel.settings) {
                    Ok(()) => {
                        let rest = head[len..].to_vec();
                        self.upgrade(slot, upgrade, rest);
                    }
                    Err(reason) => self.become_http(slot, head, Some(reason)),
                }
            }
            Progress::Complete(_, Decision::Refuse(_) | Decision::Plain) => self.become_http(slot, head, None),
            Progress::Malformed if looks_like_tls(head) => {
                self.hint("a TLS client connected to the plain port: it must use ws:// or http://, or set tls.cert and tls.key");
                self.kernel.count_refused(slot, RefusalReason::Malformed);
                self.kernel.close_now(slot);
            }
            Progress::Malformed => self.refuse_head(slot, "400 Bad Request", RefusalReason::Malformed),
            Progress::TooManyFields => {
                self.refuse_head(slot, "431 Request Header Fields Too Large", RefusalReason::HeadTooLarge)
            }
        }
    }

    /// Answers a head that never became a request, and lets the answer arrive before the connection goes.
    pub(super) fn refuse_head(&mut self, slot: u32, status_line: &str, reason: RefusalReason) {
        let text = status_line.split_once(' ').map_or("", |(_, text)| text);
        self.refuse_head_saying(slot, status_line, text, reason);
    }

    /// As [`Core::refuse_head`], in these words.
    pub(super) fn refuse_head_saying(&mut self, slot: u32, status_line: &str, text: &str, reason: RefusalReason) {
        self.kernel.count_refused(slot, reason);
        let mut response = std::mem::take(&mut self.kernel.scratch);
        response.clear();
        head::final_response(&mut response, status_line, "", text);
        self.kernel.append_unlimited(slot, &response);
        self.kernel.scratch = response;
        self.kernel.go(slot, Stage::Lingering { finished: false });
        self.kernel
            .wheel
            .set(slot, self.kernel.now.mono_ms() + super::kernel::CLOSE_TIMEOUT_MS);
    }

    fn become_http(&mut self, slot: u32, head: &[u8], refused: Option<NotAdmitted>) {
        let http = HttpConn::new(Rc::clone(&self.http), refused);
        self.kernel.go(slot, Stage::Http(Box::new(http)));
        self.http_bytes(slot, head);
    }

    /// A handshake that is in order and admitted.
    pub(super) fn upgrade(&mut self, slot: u32, mut upgrade: Upgrade, rest: Vec<u8>) {
        if !self.takes_handshake_from(slot, &upgrade) {
            // One address must not use up what all others may.
            return self.kernel.shared.give_back(&self.kernel.settings);
        }
        if upgrade.refused {
            return self.close_browser(slot, &upgrade, CloseReason::InvalidCredential);
        }
        match (upgrade.token.take(), upgrade.user.take()) {
            (Some(token), _) => self.begin_verifying(slot, token, Some(upgrade), rest),
            (None, Some(user)) => self.enter(slot, user, None, Some(upgrade), rest),
            (None, None) => {
                // An echo has no user to become known: its place is due at once.
                let tally = match upgrade.endpoint {
                    Endpoint::Echo if !self.kernel.shared.take_place(&self.kernel.settings) => {
                        return self.refuse_place(slot, true);
                    }
                    Endpoint::Echo => Tally::Place,
                    Endpoint::Gateway => Tally::Stranger,
                };
                self.kernel.count_as(slot, tally);
                self.switch_protocols(slot, &upgrade);
                let timeout = match upgrade.endpoint {
                    Endpoint::Gateway => {
                        self.kernel.go(slot, Stage::Authenticating);
                        self.kernel.settings.auth_timeout
                    }
                    Endpoint::Echo => {
                        self.kernel.settle_address(slot);
                        self.kernel.go(slot, Stage::Echo);
                        self.kernel.settings.heartbeat.interval
                    }
                };
                self.kernel
                    .wheel
                    .set(slot, self.kernel.now.mono_ms() + timeout.as_millis() as u64);
                self.continue_with(slot, rest);
            }
        }
    }

    /// The user is known: goes on here, or on the home shard.
    pub(super) fn enter(
        &mut self,
        slot: u32,
        user: String,
        grant: Option<Arc<Grant>>,
        upgrade: Option<Upgrade>,
        rest: Vec<u8>,
    ) {
        if !self.take_place(slot) {
            return self.refuse_place(slot, upgrade.is_some());
        }
        let hash = self.kernel.homes.hash(&user);
        if self.kernel.homes.home(hash) != self.kernel.me {
            let migrating = Migrating {
                user,
                hash,
                grant,
                upgrade,
                rest,
            };
            return self.leave(slot, Box::new(migrating));
        }
        if let Some(upgrade) = upgrade {
            self.switch_protocols(slot, &upgrade);
        }
        self.open(slot, &user, hash, grant);
        self.continue_with(slot, rest);
    }

    /// A browser sees no status of a refused handshake, only that there is no connection, and would come again for ever. So it
    /// gets one, and its end with the reason.
    pub(super) fn close_browser(&mut self, slot: u32, upgrade: &Upgrade, reason: CloseReason) {
        self.kernel.count_as(slot, Tally::Stranger);
        self.switch_protocols(slot, upgrade);
        self.kernel.go(slot, Stage::Authenticating);
        self.kernel.begin_close(slot, reason);
    }

    fn switch_protocols(&mut self, slot: u32, upgrade: &Upgrade) {
        self.kernel.metrics().accepted.inc();
        let mut response = std::mem::take(&mut self.kernel.scratch);
        response.clear();
        head::switching_protocols(&mut response, &upgrade.accept, upgrade.subprotocol);
        self.kernel.append_unlimited(slot, &response);
        self.kernel.scratch = response;
        if let Some(outbox) = &mut self.kernel.conn(slot).outbox {
            outbox.keep_waiting();
        }
    }

    /// The user is known: the connection takes a place of `limits.connections`. False if all are taken.
    pub(super) fn take_place(&mut self, slot: u32) -> bool {
        let taken = self.kernel.shared.take_place(&self.kernel.settings);
        if taken {
            self.kernel.count_as(slot, Tally::Place);
        }
        taken
    }

    /// All places of `limits.connections` are taken: a client that is owed its `101` gets 503, another one close 3013.
    pub(super) fn refuse_place(&mut self, slot: u32, owes_upgrade: bool) {
        self.kernel.count_refused(slot, RefusalReason::ConnectionLimit);
        if owes_upgrade {
            self.refuse_unavailable(slot, NotAdmitted::ConnectionLimit);
        } else {
            self.kernel.begin_close(slot, CloseReason::TooManyRequests);
        }
    }

    /// The user is known and lives here.
    pub(super) fn open(&mut self, slot: u32, user: &str, hash: UserHash, grant: Option<Arc<Grant>>) {
        self.kernel.settle_address(slot);
        let index = self.kernel.users.join(hash, user, slot);
        self.kernel.tell_presence(index, self.kernel.users.devices(index).len());
        let limit = self.lifecycle.connections_limit(&self.kernel, grant.as_ref());
        let now_ms = self.kernel.now.mono_ms();
        let conn = self.kernel.conn(slot);
        conn.grant = grant;
        conn.user = Some(index);
        conn.bad_frames = 0;
        // It has shown who it is, however long that was looked at.
        conn.last_seen_ms = now_ms;
        self.kernel.go(slot, Stage::Open);
        self.kernel.metrics().users.set(self.kernel.users.len() as u64);
        let interval = self.kernel.settings.heartbeat.interval.as_millis() as u64;
        self.kernel.look_again(slot, self.kernel.now.mono_ms() + interval);
        self.kernel.tell_connected(slot);
        self.kernel.send_welcome(slot);
        if limit > 0 {
            self.lifecycle.limit_devices(&mut self.kernel, index, limit);
        }
        self.lifecycle.drain_newcomer(&mut self.kernel, slot);
    }

    /// Frames that came behind the head belong to the WebSocket stream.
    fn continue_with(&mut self, slot: u32, mut rest: Vec<u8>) {
        self.settle();
        if !rest.is_empty() {
            self.frame_bytes(slot, &mut rest);
        }
        let key = self.kernel.key(slot);
        self.kernel.rearm(key);
    }

    /// The connection goes to its user's shard as soon as everything queued here is sent.
    pub(super) fn leave(&mut self, slot: u32, migrating: Box<Migrating>) {
        self.kernel.settle_address(slot);
        self.kernel.go(slot, Stage::Migrating(migrating));
        self.kernel
            .wheel
            .set(slot, self.kernel.now.mono_ms() + super::kernel::CLOSE_TIMEOUT_MS);
        self.kernel.flushed(slot);
    }

    /// The socket is out of the engine: off it goes. A full lane is told to the client.
    pub(super) fn hand_off(&mut self, hand_off: Handoff) {
        let home = self.kernel.homes.home(hand_off.hash);
        let hand_off = Box::new(hand_off);
        if let Err(hand_off) = self.kernel.lanes.try_hand_over(home, hand_off) {
            self.kernel.metrics().dropped(DropReason::HandOverLaneFull);
            self.kernel.metrics().refused(RefusalReason::LaneFull);
            // Back into the engine, to be told.
            self.kernel.command(Command::Adopt(hand_off));
        }
    }

    /// The engine took a socket that another shard handed over, or that could not be handed over.
    pub fn handle_adopted(&mut self, key: SocketKey, hand_off: Handoff) {
        let Handoff {
            user,
            hash,
            grant,
            upgrade,
            rest,
            connected_at_ms,
            remote,
            messages_in,
            rate,
            tls,
            socket: _,
        } = hand_off;
        let slot = key.slot;
        let refused = if self.kernel.homes.home(hash) != self.kernel.me {
            Some(NotAdmitted::LaneFull)
        } else if self.kernel.shared.is_draining() && upgrade.is_some() {
            Some(NotAdmitted::Draining)
        } else {
            None
        };
        let conn = self.kernel.occupy(key, Stage::Authenticating);
        conn.connected_at_ms = connected_at_ms;
        conn.messages_in = messages_in;
        conn.rate = rate;
        conn.tls = tls;
        self.handed_over_from(slot, remote);
        self.kernel.count_as(slot, Tally::Place);
        match (refused, upgrade) {
            (Some(reason), Some(_)) => {
                if reason == NotAdmitted::Draining {
                    self.kernel.count_refused(slot, reason.into());
                }
                self.refuse_unavailable(slot, reason);
            }
            (Some(_), None) => {
                // Its 101 is sent: the close code says come back.
                self.kernel.begin_close(slot, CloseReason::TooManyRequests);
            }
            (None, upgrade) => {
                if let Some(upgrade) = upgrade {
                    self.switch_protocols(slot, &upgrade);
                }
                self.open(slot, &user, hash, grant);
                self.continue_with(slot, rest);
            }
        }
        self.settle();
    }

    /// Answers 503 to a handshake that had been admitted.
    pub(super) fn refuse_unavailable(&mut self, slot: u32, reason: NotAdmitted) {
        let retry = self.kernel.retry_after(reason.retry_after_range());
        self.refuse_upgrade(slot, "503 Service Unavailable", &retry, reason.text());
    }

    /// Refuses a handshake that had been admitted and is owed its `101`.
    pub(super) fn refuse_upgrade(&mut self, slot: u32, status_line: &str, extra: &str, text: &str) {
        // It never was a WebSocket connection: nothing of that kind ends.
        if self.kernel.conn(slot).tally == Tally::Place {
            self.kernel.shared.release();
            self.kernel.count_as(slot, Tally::Ended);
        }
        let mut response = Vec::new();
        head::final_response(&mut response, status_line, extra, text);
        self.kernel.append_unlimited(slot, &response);
        self.kernel.linger(slot);
        let key = self.kernel.key(slot);
        self.kernel.rearm(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests as testing;
    use super::*;
    use crate::session::drain::DrainPlan;

    /// What this thread has worked so far, whatever else the machine does.
    fn worked() -> Duration {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
    }

    /// A handshake whose `101` was still owed was never accepted: its loss between two shards is no closed connection.
    #[test]
    fn a_lost_hand_over_is_closed_only_if_it_was_accepted() {
        let mut core = testing::core(|_| ());
        core.begin_drain(DrainPlan::new(1, 0, 1_000, 0));
        let upgrade = Upgrade {
            endpoint: Endpoint::Gateway,
            accept: String::new(),
            subprotocol: false,
            user: None,
            forwarded_for: None,
            token: None,
            browser: false,
            refused: false,
        };
        for (upgrade, left) in [(Some(upgrade), 0), (None, 1)] {
            assert!(core.kernel.shared.take_place(&core.kernel.settings));
            core.handle_lost(&Handoff {
                socket: None,
                user: "alice".into(),
                hash: core.kernel.homes.hash("alice"),
                grant: None,
                upgrade,
                rest: Vec::new(),
                remote: None,
                tls: None,
                connected_at_ms: 0,
                messages_in: 0,
                rate: Default::default(),
            });
            let count = core.drain_count().unwrap();
            assert_eq!((count.left, core.kernel.shared.places()), (left, 0));
        }
    }

    /// A shard that is told to stop in the turn in which a connection leaves it closes the connection.
    #[test]
    fn a_connection_that_was_closed_does_not_leave() {
        let conn = SocketKey { slot: 0, generation: 1 };
        let mut core = testing::core(|_| ());
        core.handle_accepted(conn, None);
        assert!(core.kernel.shared.take_place(&core.kernel.settings));
        core.kernel.count_as(0, Tally::Place);
        let migrating = Migrating {
            user: "alice".into(),
            hash: core.kernel.homes.hash("alice"),
            grant: None,
            upgrade: None,
            rest: Vec::new(),
        };
        core.leave(0, Box::new(migrating));
        core.stop();
        let (_, commands) = testing::carry_out(&mut core);
        assert!(
            matches!(commands[..], [Command::Detach(_), Command::Close(_)]),
            "{commands:?}"
        );
        core.handle_detached(conn, std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(core.residue(), Default::default());
        assert_eq!(
            (core.kernel.metrics().sockets.get(), core.kernel.shared.places()),
            (0, 0)
        );
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
        core.serve_strangers();
        let said = core.poll_payload(conn).unwrap();
        assert!(said.as_slice().starts_with(b"HTTP/1.1 200"));
    }
}
