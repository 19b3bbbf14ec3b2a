//! What a turn does for those who are not let in yet, and for plain HTTP: together no more than a share of it.
//!
//! Owned by the shard. Steps of TLS handshakes, answers to plain requests, tokens and listening to pending sockets each have a
//! queue, and each costs many times what a message does. Work is counted by what it costs an ordinary core, not by a clock, so
//! that the simulation's shards do the same as real ones; what the queues share is what messages wait for beside a flood of all.

use super::core::Core;

/// What one turn spends on all of them, microseconds of an ordinary core. A turn has a cost of its own of some ten microseconds,
/// so that little more than a tenth is lost to a rush of handshakes.
const TURN_US: u32 = 100;
/// With more of them waiting for their turns, no more are accepted: a rush of clients that mean well waits in the listener's queue,
/// and is not accepted only to be closed for its age. Few enough to be served within some ten milliseconds.
const WAITING_MAX: usize = 64;

/// What is left for the queues whatever was spent before: 8 accepts alone cost more than all, and who was accepted must not wait
/// for the end of a rush.
const LEAST_US: u32 = TURN_US / 2;

// What one of each costs, microseconds.

/// Accepting: most of it is the kernel's, and under a flood there is somebody else to close.
pub(super) const ACCEPT_US: u32 = 15;
/// Listening to a pending socket again. The accept brings one receive, and most heads are there whole at that one. What they say
/// waits in the kernel in one line with what connections say: with thousands of them in that line, messages would take
/// milliseconds.
pub(super) const LISTEN_US: u32 = 10;
/// Bytes of a request head that are read in a microsecond.
pub(super) const HEAD_BYTES_PER_US: usize = 512;
/// A step of a TLS handshake: a quarter of a millisecond for both with a key of P-256 (with a large RSA key it is several
/// milliseconds).
pub(super) const TLS_STEP_US: u32 = 120;
/// Asking hyper, which answers one request each time: one of the larger answers.
pub(super) const ANSWER_US: u32 = 40;
/// A token that needs no signature checked, and besides the signature.
pub(super) const TOKEN_US: u32 = 3;

/// A shard's.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    left_us: u32,
    /// Whose queue this turn begins with.
    first: usize,
}

impl Strangers {
    pub(super) fn begin_turn(&mut self) {
        self.left_us = TURN_US;
        self.first = self.first.wrapping_add(1);
    }

    /// True if this turn may do more for them.
    pub(super) fn may_go_on(&self) -> bool {
        self.left_us > 0
    }

    /// Counts what was done. The last one may cost more than was left.
    pub(super) fn spend(&mut self, cost_us: u32) {
        self.left_us = self.left_us.saturating_sub(cost_us);
    }
}

impl Core {
    /// Goes on with what strangers wait for. Each turn begins with another queue, so that none waits for the others' end.
    pub fn serve_strangers(&mut self) {
        const QUEUES: [fn(&mut Core); 4] = [
            Core::continue_handshakes,
            Core::continue_http,
            Core::verify_credentials,
            Core::arm_pending,
        ];
        self.trim_pending();
        let first = self.strangers.first;
        self.strangers.left_us = self.strangers.left_us.max(LEAST_US);
        for n in 0..QUEUES.len() {
            QUEUES[(first + n) % QUEUES.len()](self);
            self.settle();
        }
    }

    /// How many wait for their turns.
    pub(super) fn waiting_strangers(&self) -> usize {
        self.tls.waiting() + self.plain_http.waiting() + self.credentials.waiting() + self.kernel.pending.to_arm.len()
    }

    /// True if some do.
    pub fn has_strangers(&self) -> bool {
        self.waiting_strangers() > 0
    }

    /// True if so many do that nobody shall come.
    pub fn is_crowded(&self) -> bool {
        self.waiting_strangers() > WAITING_MAX
    }
}
