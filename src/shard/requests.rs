//! Plain HTTP, as much of it as a turn may do.
//!
//! Owned by the shard. A request costs a shard many times what a message does, and a few bytes in a pipeline are a hundred of
//! them. So hyper is asked a few times per turn only, for one answer each time, and whoever has more waits in a queue: a
//! connection is in it at most once, and nothing is received from it meanwhile.

use std::collections::VecDeque;

use super::core::Core;
use super::strangers::ANSWER_US;
use crate::engine::SocketKey;
use crate::http::{HttpConn, HttpProgress};
use crate::session::Stage;

/// A shard's.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Connections with something to do, in order.
    waiting: VecDeque<SocketKey>,
}

impl Requests {
    /// Connections that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl Core {
    /// Bytes of a plain HTTP connection.
    pub(super) fn http_bytes(&mut self, slot: u32, bytes: &[u8]) {
        if let Stage::Http(http) = &mut self.kernel.conn(slot).stage {
            http.push(bytes);
            self.put_off_http(slot);
        }
    }

    /// The client sends no more, but may still read.
    pub(super) fn http_ended(&mut self, slot: u32) {
        if let Stage::Http(http) = &mut self.kernel.conn(slot).stage {
            http.end();
            self.put_off_http(slot);
        }
    }

    /// The socket has taken what it got of a plain HTTP connection.
    pub(super) fn http_flushed(&mut self, slot: u32) {
        if matches!(&self.kernel.conn(slot).stage, Stage::Http(http) if http.is_blocked()) {
            self.put_off_http(slot);
        }
        let key = self.kernel.key(slot);
        self.kernel.rearm(key);
    }

    /// There is something to do for it: at once, if this turn still may and nobody waits.
    fn put_off_http(&mut self, slot: u32) {
        let key = self.kernel.key(slot);
        if self.strangers.may_go_on() && self.plain_http.waiting.is_empty() {
            return self.go_on_http(slot);
        }
        if let Stage::Http(http) = &mut self.kernel.conn(slot).stage
            && !std::mem::replace(&mut http.put_off, true)
        {
            self.plain_http.waiting.push_back(key);
        }
    }

    /// As much of what waits as this turn still may.
    pub(super) fn continue_http(&mut self) {
        while self.strangers.may_go_on()
            && let Some(key) = self.plain_http.waiting.pop_front()
        {
            if self.kernel.connection(key).is_some()
                && let Stage::Http(http) = &mut self.kernel.conn(key.slot).stage
            {
                http.put_off = false;
                self.go_on_http(key.slot);
                self.kernel.rearm(key);
            }
        }
    }

    fn go_on_http(&mut self, slot: u32) {
        self.strangers.spend(ANSWER_US);
        self.drive_http(slot, HttpConn::go_on);
        if let Some(reason) = self.http.refused.take() {
            self.kernel.tell_refused(slot, reason);
        }
        if matches!(&self.kernel.conn(slot).stage, Stage::Http(http) if http.has_ended()) {
            self.end_http(slot);
        }
    }

    /// Ends a plain HTTP connection whose peer sends no more, as soon as nothing is to be answered.
    pub(super) fn end_http(&mut self, slot: u32) {
        if matches!(&self.kernel.conn(slot).stage, Stage::Http(http) if http.is_waiting() || http.is_blocked() || http.put_off)
        {
            return;
        }
        // Whatever hyper thought of it, no further request can come.
        if matches!(self.kernel.conn(slot).stage, Stage::Http(_) | Stage::Lingering { .. }) {
            self.kernel.linger(slot);
            self.kernel.close_when_flushed(slot);
        }
    }

    pub(super) fn drive_http(&mut self, slot: u32, drive: impl FnOnce(&mut HttpConn, &mut Vec<u8>) -> HttpProgress) {
        if self.kernel.conn(slot).outbox_bytes() > self.kernel.settings.limits.outbox_bytes {
            // Asks again and again and does not read the answers.
            self.kernel.close_now(slot);
            return;
        }
        let due = self.kernel.now.mono_ms() + self.kernel.settings.limits.handshake_timeout.as_millis() as u64;
        let mut out = std::mem::take(&mut self.kernel.scratch);
        out.clear();
        let Stage::Http(http) = &mut self.kernel.conn(slot).stage else {
            return;
        };
        let mut progress = drive(http, &mut out);
        let mut waits = false;
        while let Stage::Http(http) = &mut self.kernel.conn(slot).stage
            && let Some(request) = http.take_request()
        {
            match self.pass_on(slot, request) {
                Ok(()) => waits = true,
                Err(answer) => {
                    if let Stage::Http(http) = &mut self.kernel.conn(slot).stage {
                        progress = http.answer(answer, &mut out);
                    }
                }
            }
        }
        if !out.is_empty() {
            self.kernel.append_unlimited(slot, &out);
            // An answer buys time for the next request; bytes that trickle in do not.
            self.kernel.wheel.set(slot, due);
        }
        if waits {
            self.kernel
                .wheel
                .set(slot, self.kernel.now.mono_ms() + super::admin::ANSWER_TIMEOUT_MS);
        }
        self.kernel.scratch = out;
        match progress {
            HttpProgress::Continue => {}
            HttpProgress::Close => return self.kernel.linger(slot),
            HttpProgress::Upgrade(upgrade, rest) => return self.upgrade(slot, upgrade, rest),
        }
        // With nothing on its way nobody would wake it.
        if self.kernel.conn(slot).is_flushed()
            && matches!(&self.kernel.conn(slot).stage, Stage::Http(http) if http.is_blocked())
        {
            self.put_off_http(slot);
        }
    }
}
