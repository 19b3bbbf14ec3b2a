//! Plain HTTP, as much of it as a turn may do.
//!
//! Owned by the shard's thread. A request costs a shard many times what a message does, and a few
//! bytes in a pipeline hold a hundred requests. So hyper is called a few times per turn only, for
//! one answer each time. A connection with more to do waits in a queue: it is in the queue at most
//! once, and nothing is received from it meanwhile.

use super::Admission;
use super::budget::ANSWER_US;
use super::inquiries::ANSWER_TIMEOUT_MS;
use crate::engine::SocketKey;
use crate::http::{HttpConn, HttpProgress};
use crate::session::Stage;
use crate::shard::kernel::Kernel;

impl Admission {
    /// Bytes of a plain HTTP connection.
    pub(in crate::shard) fn http_bytes(&mut self, kernel: &mut Kernel, slot: u32, bytes: &[u8]) {
        if let Stage::Http(http) = &mut kernel.conn(slot).stage {
            http.push(bytes);
            self.put_off_http(kernel, slot);
        }
    }

    /// The client sends no more, but may still read.
    pub(in crate::shard) fn http_ended(&mut self, kernel: &mut Kernel, slot: u32) {
        if let Stage::Http(http) = &mut kernel.conn(slot).stage {
            http.end();
            self.put_off_http(kernel, slot);
        }
    }

    /// Everything queued of a plain HTTP connection has left.
    pub(in crate::shard) fn http_flushed(&mut self, kernel: &mut Kernel, slot: u32) {
        if matches!(&kernel.conn(slot).stage, Stage::Http(http) if http.is_blocked()) {
            self.put_off_http(kernel, slot);
        }
    }

    /// The connection has something to do: at once, if the budget allows it and no other connection
    /// waits.
    fn put_off_http(&mut self, kernel: &mut Kernel, slot: u32) {
        let key = kernel.key(slot);
        if self.budget.may_go_on() && self.requests.waiting.is_empty() {
            return self.go_on_http(kernel, slot);
        }
        if let Stage::Http(http) = &mut kernel.conn(slot).stage
            && !std::mem::replace(&mut http.put_off, true)
        {
            self.requests.waiting.push_back(key);
        }
    }

    /// Does the next step that waits, if this turn may do one more. Returns its connection, which
    /// receives again when the core has settled the step.
    pub(in crate::shard) fn continue_http(&mut self, kernel: &mut Kernel) -> Option<SocketKey> {
        while self.budget.may_go_on() {
            let key = self.requests.waiting.pop_front()?;
            if let Some(conn) = kernel.connection(key)
                && let Stage::Http(http) = &mut conn.stage
            {
                http.put_off = false;
                self.go_on_http(kernel, key.slot);
                return Some(key);
            }
        }
        None
    }

    fn go_on_http(&mut self, kernel: &mut Kernel, slot: u32) {
        self.budget.spend(ANSWER_US);
        self.drive_http(kernel, slot, HttpConn::go_on);
        if let Some(reason) = self.http.refused.take() {
            kernel.tell_refused(slot, reason);
        }
        if matches!(&kernel.conn(slot).stage, Stage::Http(http) if http.has_ended()) {
            self.end_http(kernel, slot);
        }
    }

    /// Ends a plain HTTP connection whose peer sends no more, as soon as no answer is owed.
    pub(super) fn end_http(&mut self, kernel: &mut Kernel, slot: u32) {
        if matches!(&kernel.conn(slot).stage, Stage::Http(http) if http.is_waiting() || http.is_blocked() || http.put_off)
        {
            return;
        }
        // Whatever hyper made of the end, no further request can come.
        if matches!(kernel.conn(slot).stage, Stage::Http(_) | Stage::Lingering { .. }) {
            kernel.linger(slot);
            kernel.close_when_flushed(slot);
        }
    }

    /// Lets hyper do one step, and carries out what came of it.
    pub(super) fn drive_http(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        drive: impl FnOnce(&mut HttpConn, &mut Vec<u8>) -> HttpProgress,
    ) {
        if kernel.conn(slot).outbox_bytes() > kernel.settings.limits.outbox_bytes {
            // The client asks again and again, and does not read the answers.
            kernel.close_now(slot);
            return;
        }
        let due = kernel.now.mono_ms() + kernel.settings.limits.handshake_timeout.as_millis() as u64;
        let mut out = std::mem::take(&mut kernel.scratch);
        out.clear();
        let Stage::Http(http) = &mut kernel.conn(slot).stage else {
            kernel.scratch = out;
            return;
        };
        let mut progress = drive(http, &mut out);
        let mut waits = false;
        while let Stage::Http(http) = &mut kernel.conn(slot).stage
            && let Some(request) = http.take_request()
        {
            match self.pass_on(kernel, slot, request) {
                Ok(()) => waits = true,
                Err(answer) => {
                    if let Stage::Http(http) = &mut kernel.conn(slot).stage {
                        progress = http.answer(answer, &mut out);
                    }
                }
            }
        }
        if !out.is_empty() {
            kernel.append_unlimited(slot, &out);
            // An answer buys time for the next request; bytes that trickle in do not.
            kernel.wheel.set(slot, due);
        }
        if waits {
            kernel.wheel.set(slot, kernel.now.mono_ms() + ANSWER_TIMEOUT_MS);
        }
        kernel.scratch = out;
        match progress {
            HttpProgress::Continue => {}
            HttpProgress::Close => return kernel.linger(slot),
            HttpProgress::Upgrade(upgrade, rest) => return self.upgrade(kernel, slot, upgrade, rest),
        }
        // With nothing on its way, no event would wake the connection.
        if kernel.conn(slot).is_flushed() && matches!(&kernel.conn(slot).stage, Stage::Http(http) if http.is_blocked())
        {
            self.put_off_http(kernel, slot);
        }
    }
}
