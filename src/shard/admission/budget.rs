//! The budget of one turn for connections that are not open yet, and for plain HTTP.
//!
//! Owned by the shard's thread. Steps of TLS handshakes, answers to plain requests, tokens, and
//! listening to pending sockets each have a queue, and each costs many times what a message does.
//! Work is counted by what it costs an ordinary core, and not by a clock, so that the simulation's
//! shards do the same as real ones. During a flood of all four kinds, a message waits for the one
//! budget that the queues share.

/// The budget of one turn for all queues, microseconds of an ordinary core. A turn has a cost of
/// its own of some ten microseconds, so a rush of handshakes loses little more than a tenth.
const TURN_US: u32 = 100;
/// The least that is left for the queues, whatever was spent before them. Eight accepts alone cost
/// more than a turn's budget, and accepted sockets must not wait for the end of a rush.
const LEAST_US: u32 = TURN_US / 2;
/// With more waiting steps, the shard accepts no more sockets. A rush of well-meaning clients then
/// waits in the listener's queue, and is not accepted only to be closed for its age. So few are
/// served within some ten milliseconds.
const WAITING_MAX: usize = 64;

// Costs of one step of each kind, microseconds.

/// An accept. Most of it is the kernel's work, and in a flood the oldest pending socket is closed
/// for it.
pub(super) const ACCEPT_US: u32 = 15;
/// Listening to a pending socket again. The accept brings one receive, and most heads come whole in
/// that one. Input of pending sockets stands in the kernel in one line with input of connections.
/// With thousands of pending sockets in that line, messages would take milliseconds.
pub(super) const LISTEN_US: u32 = 10;
/// Bytes of a request head that are read in a microsecond.
pub(super) const HEAD_BYTES_PER_US: usize = 512;
/// A step of a TLS handshake: a quarter of a millisecond for both with a key of P-256. A large RSA
/// key takes several milliseconds.
pub(super) const TLS_STEP_US: u32 = 120;
/// A call of hyper, which answers one request each time: one of the larger answers.
pub(super) const ANSWER_US: u32 = 40;
/// A token, its signature aside.
pub(super) const TOKEN_US: u32 = 3;

/// The pre-auth queues, each with a kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Queue {
    /// Steps of TLS handshakes.
    Tls,
    /// Plain HTTP connections with something to do.
    Http,
    /// Tokens that are not decided on.
    Credentials,
    /// Pending sockets whose next receive is due.
    Listen,
}

/// The rest of a turn's budget for pre-auth work.
#[derive(Debug, Default)]
pub(super) struct Budget {
    left_us: u32,
    /// The queue with which this turn begins.
    first: usize,
}

impl Budget {
    /// A new turn has its whole budget.
    pub(super) fn begin_turn(&mut self) {
        self.left_us = TURN_US;
        self.first = self.first.wrapping_add(1);
    }

    /// The queues in this turn's order. Each turn begins with another queue, so that none waits for
    /// the others' end.
    pub(super) fn begin_queues(&mut self) -> [Queue; 4] {
        self.left_us = self.left_us.max(LEAST_US);
        let mut queues = [Queue::Tls, Queue::Http, Queue::Credentials, Queue::Listen];
        let first = self.first % queues.len();
        queues.rotate_left(first);
        queues
    }

    /// True if this turn may do more.
    pub(super) fn may_go_on(&self) -> bool {
        self.left_us > 0
    }

    /// Counts a step. A turn's last step may cost more than was left.
    pub(super) fn spend(&mut self, cost_us: u32) {
        self.left_us = self.left_us.saturating_sub(cost_us);
    }

    /// True if so many steps wait that the shard shall accept no more sockets.
    pub(super) fn is_crowded(waiting: usize) -> bool {
        waiting > WAITING_MAX
    }
}
