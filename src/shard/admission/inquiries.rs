//! Administrators' requests on their way to the control thread, and its answers on their way back.
//!
//! Owned by the shard's thread. Each request is counted in [`crate::shared::Gate::expect`]
//! until its answer has left, so that a drain waits for it.

use super::Admission;
use crate::admin::{AdminError, AdminReply, Request};
use crate::engine::SocketKey;
use crate::lanes::{AdminRequest, AdminToControl};
use crate::session::Stage;
use crate::shard::kernel::Kernel;

/// Requests that may wait for the control thread: administrators are few, and it answers in
/// milliseconds.
const REQUESTS_MAX: usize = 64;
/// How long a connection may wait for an answer. The control thread gives up sooner, and says so.
pub(super) const ANSWER_TIMEOUT_MS: u64 = 60_000;

impl Admission {
    /// Passes a request to the control thread.
    ///
    /// # Errors
    /// The answer, if too many wait or the gateway is ending.
    pub(super) fn pass_on(&mut self, kernel: &mut Kernel, slot: u32, request: Request) -> Result<(), AdminReply> {
        if self.inquiries.waiting >= REQUESTS_MAX {
            let words = "too many requests are under way on this shard: try again";
            return Err(AdminReply::refuse(AdminError::Unavailable, words));
        }
        if !kernel.shared.gate.expect() {
            return Err(AdminReply::ending());
        }
        self.inquiries.waiting += 1;
        let request = AdminRequest {
            conn: kernel.key(slot),
            from: kernel.remote_addr(slot),
            request,
        };
        kernel.lanes.push_control(AdminToControl::Request(Box::new(request)));
        Ok(())
    }

    /// The control thread has answered. The connection receives again when the core has settled
    /// this.
    pub(in crate::shard) fn handle_answer(&mut self, kernel: &mut Kernel, conn: SocketKey, answer: AdminReply) {
        self.inquiries.waiting -= 1;
        self.inquiries.leaving.push(conn);
        // The client may be gone.
        if !kernel
            .connection(conn)
            .is_some_and(|c| matches!(&c.stage, Stage::Http(http) if http.is_waiting()))
        {
            return;
        }
        let mut ended = false;
        self.drive_http(kernel, conn.slot, |http, out| {
            ended = http.has_ended();
            http.answer(answer, out)
        });
        if ended {
            self.end_http(kernel, conn.slot);
        }
    }

    /// Forgets the answers that have left, so that a drain does not wait for them any more.
    pub(in crate::shard) fn settle_answers(&mut self, kernel: &mut Kernel) {
        let mut leaving = std::mem::take(&mut self.inquiries.leaving);
        leaving.retain(|conn| {
            let is_leaving = Self::is_leaving(kernel, *conn);
            if !is_leaving {
                kernel.shared.gate.answered();
            }
            is_leaving
        });
        self.inquiries.leaving = leaving;
    }

    fn is_leaving(kernel: &mut Kernel, conn: SocketKey) -> bool {
        let Some(conn) = kernel.connection(conn) else {
            return false;
        };
        match &conn.stage {
            // A large answer goes in pieces, and the outbox may hold no more than one of them.
            Stage::Http(http) => !conn.is_flushed() || http.is_blocked() || http.put_off,
            // An answer leaves until the peer's end, as closing may destroy what the peer has not
            // read. The peer has `CLOSE_TIMEOUT_MS` for that.
            Stage::Lingering { .. } | Stage::Closing { .. } => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::AdminError;
    use crate::lanes::ToControl;
    use crate::shard::core::Command;
    use crate::shard::tests::{Bench, Happens};
    use crate::shard::wheel::TICK_MS;

    const TOKEN: &str = "a-token-for-tests-of-32-bytes-00";
    const CONN: SocketKey = SocketKey { slot: 0, generation: 1 };

    /// A shard whose only connection brought an administrator's request, which the control thread
    /// has.
    fn asked(fields: &str) -> Bench {
        let mut bench = Bench::new(|config| config.admin.token = Some(TOKEN.to_owned().into()));
        let head = format!(
            "GET /admin/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n{fields}\r\n"
        );
        bench.turn([Happens::Accepted(CONN), Happens::Received(CONN, head.into_bytes())]);
        let mail = bench.to_control();
        let [ToControl::Admin(AdminToControl::Request(asked))] = &mail[..] else {
            panic!("nobody asked: {mail:?}");
        };
        assert_eq!((asked.conn, asked.from), (CONN, None));
        assert_eq!(&*asked.request.path, "/admin/connections");
        bench
    }

    fn answer(bench: &mut Bench) {
        bench
            .shard
            .core
            .handle_answer(CONN, AdminReply::refuse(AdminError::Timeout, "later"));
    }

    /// Closes the gate if it may.
    fn is_idle(bench: &Bench) -> bool {
        bench.shard.core.kernel.shared.gate.try_close()
    }

    #[test]
    fn an_answer_is_due_until_it_has_left() {
        let mut bench = asked("");
        assert!(!is_idle(&bench));
        answer(&mut bench);
        bench.turn([]);
        assert!(!is_idle(&bench), "still in flight");
        let (key, payload) = bench.engine.sends.remove(0);
        assert!(payload.as_slice().starts_with(b"HTTP/1.1 504"));
        bench.turn([Happens::Sent(key, payload)]);
        assert!(is_idle(&bench));
    }

    /// Closing its socket at once might destroy what it has not read.
    #[test]
    fn a_last_answer_is_due_until_its_reader_has_gone() {
        let mut bench = asked("Connection: close\r\n");
        answer(&mut bench);
        bench.turn([]);
        let (key, payload) = bench.engine.sends.remove(0);
        let commands = bench.turn([Happens::Sent(key, payload)]);
        assert!(matches!(commands[..], [Command::Finish(CONN), ..]), "{commands:?}");
        assert!(!is_idle(&bench));
        let commands = bench.turn([Happens::Ended(CONN, false)]);
        assert!(matches!(commands[..], [Command::Close(CONN)]), "{commands:?}");
        assert!(is_idle(&bench));
    }

    #[test]
    fn a_client_that_has_gone_is_owed_nothing() {
        let mut bench = asked("");
        bench.turn([Happens::Ended(CONN, true)]);
        bench.turn([Happens::Closed(CONN)]);
        // The request is carried out all the same.
        assert!(!is_idle(&bench));
        answer(&mut bench);
        bench.turn([]);
        assert_eq!(bench.shard.core.residue(), Default::default());
        assert!(is_idle(&bench));
    }

    /// The control thread gives up sooner and says so. Should it say nothing at all, no connection
    /// waits for ever.
    #[test]
    fn without_an_answer_a_connection_ends() {
        let mut bench = asked("");
        let commands = loop {
            // The wheel wants a look now and then without anything being due.
            bench.now_ms = bench.shard.next_due_ms().unwrap();
            let commands = bench.turn([]);
            if !commands.is_empty() {
                break commands;
            }
        };
        assert!(matches!(commands[..], [Command::Close(CONN)]), "{commands:?}");
        assert!(
            (ANSWER_TIMEOUT_MS..ANSWER_TIMEOUT_MS + 2 * TICK_MS).contains(&bench.now_ms),
            "{}",
            bench.now_ms
        );
        // An answer that comes too late finds no connection.
        answer(&mut bench);
        bench.turn([Happens::Closed(CONN)]);
        assert!(bench.engine.sends.is_empty());
        assert_eq!(bench.shard.core.residue(), Default::default());
        assert!(is_idle(&bench));
    }

    #[test]
    fn a_closed_gate_refuses_at_once() {
        let mut bench = asked("");
        assert_eq!(bench.shard.core.kernel.shared.gate.close(), 1);
        let request = Request {
            method: "GET".into(),
            path: "/admin/connections".into(),
            query: "".into(),
            body: Default::default(),
        };
        let core = &mut bench.shard.core;
        assert_eq!(
            core.admission.pass_on(&mut core.kernel, 0, request),
            Err(AdminReply::ending())
        );
        bench.turn([]);
        assert!(bench.to_control().is_empty());
    }
}
