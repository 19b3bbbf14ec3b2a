//! One turn of a shard: the same for the shard's thread, both simulations, the fuzzer and unit
//! tests.
//!
//! Owned by the shard's thread. A turn is generic over the engine and its surroundings, so the
//! calls are static.
//!
//! 1. The engine submits what the turn before left, and reaps what completed.
//! 2. The core sees what happened to sockets, what other threads sent, and deadlines.
//! 3. The core fans publications out.
//! 4. If a client waits for output and pre-auth or bulk work is pending, the output leaves now.
//! 5. Pre-auth work gets its share, then bulk senders get theirs.
//! 6. Commands are carried out, bytes go to the engine, batches go to the other threads.
//!
//! Mail to the control thread goes into its lane as well.

use std::time::Duration;

use super::core::{Command, Core};
use super::lifecycle::DrainCount;
use crate::engine::{Engine, Event, SendStatus};
use crate::ids::ShardId;
use crate::lanes::{Inbox, LifecycleToControl, ToShard};
use crate::shared::Now;

/// A turn goes on to take what bulk senders sent until it has lasted this long. A turn by itself
/// costs a few microseconds, which is little of this; and a message beside a bulk sender waits for
/// about as long.
const BULK_UNTIL_NS: u64 = 100_000;
/// A turn that was long for other reasons takes bulk data for at least this long. A sender of
/// messages larger than a buffer is a bulk sender, and must not wait while others are busy.
const BULK_AT_LEAST_NS: u64 = 25_000;
/// How long the last sockets may take to close when the shard shall end.
const STOP_MAX_NS: u64 = 1_000_000_000;
/// Accepting is tried again this long after the process ran out of descriptors.
const ACCEPT_RETRY_MS: u64 = 100;

/// What a turn asks of the thread that runs it, besides the engine.
pub trait Surroundings {
    /// The time now.
    fn now(&self) -> Now;

    /// Nanoseconds since the gateway's start.
    fn mono_ns(&self) -> u64;

    /// Makes another thread look into its inbox.
    fn wake(&self, thread: ShardId);
}

/// How much one turn takes before the rest of the shard has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Lane items carried out, so that a flood from one shard does not starve this one's sockets.
    pub inbox_items: usize,
    /// Bytes from sockets, those of bulk senders not counted.
    pub received_bytes: usize,
}

impl Default for Pace {
    /// A flood of small messages is 2,500 of them in 256 KiB: a millisecond or two of work, and
    /// well within what a lane holds. Less would not do: that a reader has taken what was sent
    /// stands behind a burst's bytes in the engine's queue. A burst that takes many turns would
    /// make its reader pass for one who does not read.
    fn default() -> Self {
        Pace {
            inbox_items: 4096,
            received_bytes: 256 * 1024,
        }
    }
}

/// What came of a turn.
#[derive(Debug)]
pub struct Turned {
    /// The time that the turn went by.
    pub now: Now,
    /// False if nothing had happened.
    pub was_busy: bool,
    /// The shard was told to stop, and its sockets are closed or had their time for it.
    pub is_over: bool,
    /// Accepting failed and is paused.
    pub accept_error: Option<std::io::Error>,
}

/// A shard without its engine: state, inbox, and what one turn leaves for the next.
#[derive(Debug)]
pub struct Shard {
    /// Everything the shard knows and decides.
    pub core: Core,
    /// The simulation changes it from turn to turn.
    pub pace: Pace,
    inbox: Inbox<ToShard>,
    /// Kept for its capacity.
    commands: Vec<Command>,
    accept_retry_ms: Option<u64>,
    accept_error: Option<std::io::Error>,
    stopping_since_ns: Option<u64>,
    reported_drained: bool,
}

impl Shard {
    /// A shard before its first turn.
    pub fn new(core: Core, inbox: Inbox<ToShard>) -> Self {
        Shard {
            core,
            pace: Pace::default(),
            inbox,
            commands: Vec::new(),
            accept_retry_ms: None,
            accept_error: None,
            stopping_since_ns: None,
            reported_drained: false,
        }
    }

    /// What comes from other threads.
    pub fn inbox(&self) -> &Inbox<ToShard> {
        &self.inbox
    }

    /// One turn. `wait`: how long the engine may wait for something to happen.
    ///
    /// # Errors
    /// The engine broke.
    pub fn turn<E: Engine>(
        &mut self,
        engine: &mut E,
        around: &impl Surroundings,
        wait: Option<Duration>,
    ) -> std::io::Result<Turned> {
        // Without a wait the call into the kernel is work: it carries out all sends of the turn
        // before.
        let began_ns = wait.is_none().then(|| around.mono_ns());
        engine.turn(wait)?;
        let now = around.now();
        let began_ns = began_ns.unwrap_or(now.mono_ns);
        self.core.begin_turn(now);
        let mut was_busy = self.take_events(engine, now) | self.take_mail();
        self.core.handle_timeouts();
        let interactive = self.core.is_interactive();
        self.core.fan_out();
        // Replies then do not wait behind a flood.
        if interactive && (self.core.has_pre_auth() || engine.has_bulk()) {
            self.carry_out(engine);
            self.flush_lanes(around);
            engine.submit()?;
            self.core.count_deliveries(around.mono_ns());
        }
        self.core.serve_pre_auth();
        engine.hold_accepts(self.core.is_crowded());
        was_busy |= self.take_bulk(engine, around, began_ns);
        self.carry_out(engine);
        self.tell_drained();
        self.flush_lanes(around);
        self.finish(engine, began_ns, around.mono_ns());
        Ok(Turned {
            now,
            was_busy,
            is_over: self.is_over(engine, now.mono_ns),
            accept_error: self.accept_error.take(),
        })
    }

    /// True if another turn would find something to do without a wait.
    pub fn has_work(&self, engine: &mut impl Engine) -> bool {
        self.core.has_more() || engine.has_work() || !self.inbox.is_empty()
    }

    /// When the next turn is due though nothing happens, milliseconds of the gateway's clock.
    pub fn next_due_ms(&self) -> Option<u64> {
        [self.core.next_timeout_ms(), self.accept_retry_ms]
            .into_iter()
            .flatten()
            .min()
    }

    /// Tells the control thread what became of the shard's clients, once, when a drain is over
    /// here.
    fn tell_drained(&mut self) {
        if !self.reported_drained
            && let Some(DrainCount { open: 0, left, closed }) = self.core.drain_count()
            && !self.core.has_unfinished_sockets()
        {
            self.reported_drained = true;
            self.core.tell_control(LifecycleToControl::Drained { left, closed });
        }
    }

    /// Lets the core see what happened to sockets. Returns false if nothing did.
    fn take_events<E: Engine>(&mut self, engine: &mut E, now: Now) -> bool {
        let mut any = false;
        let mut received_bytes = 0;
        while received_bytes < self.pace.received_bytes
            && let Some(event) = engine.next_event()
        {
            any = true;
            match event {
                Event::Accepted { key } => self.core.handle_accepted(key, engine.peer_addr(key)),
                Event::Received { key, bytes } => {
                    received_bytes += bytes.len();
                    self.core.handle_received(key, bytes);
                }
                Event::Sent { key, payload } => self.core.handle_sent(key, payload),
                Event::Ended { key, error } => self.core.handle_ended(key, error.is_some()),
                Event::Closed { key } => self.core.handle_closed(key),
                Event::AcceptPaused { error } => {
                    self.core.metrics().accept_paused.inc();
                    self.core.handle_out_of_descriptors();
                    self.accept_retry_ms = Some(now.mono_ms() + ACCEPT_RETRY_MS);
                    self.accept_error = Some(error);
                }
            }
        }
        any
    }

    /// Lets the core see what bulk senders sent, as far as a turn may that began at `began_ns`.
    fn take_bulk<E: Engine>(&mut self, engine: &mut E, around: &impl Surroundings, began_ns: u64) -> bool {
        if !engine.has_bulk() {
            return false;
        }
        let until_ns = (began_ns + BULK_UNTIL_NS).max(around.mono_ns() + BULK_AT_LEAST_NS);
        while let Some(event) = engine.next_bulk() {
            match event {
                Event::Received { key, bytes } => self.core.handle_received(key, bytes),
                Event::Ended { key, error } => self.core.handle_ended(key, error.is_some()),
                other => debug_assert!(false, "{other:?} of a bulk sender"),
            }
            if around.mono_ns() > until_ns {
                break;
            }
        }
        true
    }

    /// Lets the core act on what came from other threads, as much as one turn may take.
    fn take_mail(&mut self) -> bool {
        let mut items = 0;
        while items < self.pace.inbox_items {
            let Some(batch) = self.inbox.try_next() else {
                break;
            };
            let room = batch.room();
            items += self.core.handle_batch(batch);
            if let Some(room) = room {
                self.inbox.done(room);
            }
        }
        items > 0
    }

    /// Does what the core wants done: commands first, since they may bring more bytes to send, and
    /// the other way round.
    fn carry_out<E: Engine>(&mut self, engine: &mut E) {
        let mut commands = std::mem::take(&mut self.commands);
        loop {
            while self.core.poll_command(&mut commands) {
                for command in commands.drain(..) {
                    self.carry_out_one(engine, command);
                }
            }
            let mut sent_any = false;
            while let Some(key) = self.core.poll_dirty() {
                while let Some(payload) = self.core.poll_payload(key) {
                    match engine.send(key, payload) {
                        SendStatus::InFlight => break,
                        SendStatus::Done(payload) => self.core.handle_sent(key, payload),
                    }
                }
                sent_any = true;
            }
            if !sent_any {
                break;
            }
        }
        self.commands = commands;
        while let Some(key) = self.core.poll_probe() {
            self.core.handle_probed(key, engine.unacknowledged(key));
        }
    }

    fn carry_out_one<E: Engine>(&mut self, engine: &mut E, command: Command) {
        match command {
            Command::ReceiveOnce(key) => engine.receive_once(key),
            Command::ReceiveStream(key) => engine.receive_stream(key),
            Command::Finish(key) => engine.finish(key),
            Command::Close(key) => engine.close(key),
            Command::Reset(key) => engine.reset(key),
            Command::Abandon(key) => {
                let bytes = engine.unacknowledged(key).unwrap_or(0);
                self.core.handle_unacknowledged(key, bytes);
                engine.close(key);
            }
            Command::Detach(key) => {
                if let Some(socket) = engine.detach(key) {
                    self.core.handle_detached(key, socket);
                }
            }
            Command::Adopt(hand_off) => {
                let mut hand_off = *hand_off;
                if self.core.is_stopping() {
                    return self.core.handle_lost(&hand_off);
                }
                match hand_off.socket.take().map(|socket| engine.adopt(socket)) {
                    Some(Ok(key)) => self.core.handle_adopted(key, hand_off),
                    Some(Err(error)) => {
                        log::warn!("a connection was lost between shards: {error}");
                        self.core.handle_lost(&hand_off);
                    }
                    None => {}
                }
            }
        }
    }

    /// Sends what there is for other threads.
    fn flush_lanes(&mut self, around: &impl Surroundings) {
        self.core.flush_lanes();
        while let Some(thread) = self.core.poll_wake() {
            around.wake(thread);
        }
    }

    fn finish<E: Engine>(&mut self, engine: &mut E, began_ns: u64, now_ns: u64) {
        self.core.end_turn(began_ns, now_ns);
        let stats = engine.stats();
        let metrics = self.core.metrics();
        metrics.syscalls.set(stats.syscalls);
        metrics.buffers_exhausted.set(stats.buffers_exhausted);
        metrics.short_sends.set(stats.short_sends);
        if self.accept_retry_ms.is_some_and(|due| due <= now_ns / 1_000_000) {
            self.accept_retry_ms = None;
            engine.resume_accept();
        }
    }

    fn is_over<E: Engine>(&mut self, engine: &E, now_ns: u64) -> bool {
        if !self.core.is_stopping() {
            return false;
        }
        let since_ns = *self.stopping_since_ns.get_or_insert(now_ns);
        // Sockets that the kernel still holds by then go with the engine.
        engine.sockets() == 0 || now_ns - since_ns > STOP_MAX_NS
    }
}
