//! The turn: engine and core of one shard, inside its glommio executor.
//!
//! Owns the shard's thread. One turn: reap what completed → let the core act on it, on the inbox and on deadlines →
//! carry out its commands, hand its bytes to the engine, send its batches. All sends of a turn leave with the next
//! turn's one system call, or by one of their own before strangers and bulk senders have theirs.
//!
//! The task never relies on the executor's preemption: it looks at its inbox every turn and yields by its own clock
//! (see `docs/decisions/0001-glommio.md`).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use glommio::timer::Timer;

use super::core::{Command, Core, Notice};
use super::timers::DrainCount;
use crate::admin::Request;
use crate::engine::park::{FdReady, RingYield};
use crate::engine::{Engine, Event, SendStatus, SocketKey, Waker};
use crate::ids::ShardId;
use crate::lanes::{Inbox, Lanes, Mailboxes, ShardReply, ToShard};
use crate::router::HomeMap;
use crate::settings::Settings;
use crate::shared::Shared;

/// The longest wait inside the engine before the shard parks in the executor. Waiting there halves the cost of low and
/// middling load; a millisecond is what a foreign task of the executor may have to wait.
const ENGINE_WAIT: Duration = Duration::from_millis(1);
/// A parked shard turns this often all the same, so that its age tells whether it lives.
const PARK_MAX: Duration = Duration::from_secs(1);
/// The executor gets a look at its reactor this often under load. Nothing but the park timer lives there.
const YIELD_EVERY_NS: u64 = 10_000_000;
/// Lane items carried out in one turn, so that a flood from one shard does not starve this one's sockets.
const INBOX_ITEMS_PER_TURN: usize = 4096;
/// Bytes that one turn takes from sockets before it lets the rest of the shard, and the lanes, have their turn. A flood of
/// small messages is 2,500 of them, a millisecond or two of work, and well within what a lane holds. Not less: that a reader has
/// taken what was sent stands behind a burst's bytes in the engine's queue, and a burst that takes many turns would have its
/// reader pass for one who does not read.
const RECEIVED_BYTES_PER_TURN: usize = 256 * 1024;
/// A turn goes on to take what bulk senders sent until it has lasted this long. Long enough that what a turn costs by itself, a few
/// microseconds, is little of it, and about what a message beside a bulk sender waits for.
const BULK_UNTIL_NS: u64 = 100_000;
/// A turn that was long for others' sake takes so much of it all the same: whoever sends messages of more than a buffer is a bulk
/// sender, and these must not wait while others are busy.
const BULK_AT_LEAST_NS: u64 = 25_000;
/// How long the last sockets may take to close when the shard shall end.
const STOP_MAX_NS: u64 = 1_000_000_000;
/// Accepting is tried again this long after the process ran out of descriptors.
const ACCEPT_RETRY_MS: u64 = 100;

/// Everything that a shard needs to start.
#[derive(Debug)]
pub struct Plan {
    /// Which shard this is.
    pub shard: ShardId,
    /// Its listener, bound and listening.
    pub listener: OwnedFd,
    /// What comes to it.
    pub inbox: Inbox<ToShard>,
    /// What all threads may read.
    pub shared: Arc<Shared>,
    /// What it goes by at first.
    pub settings: Arc<Settings>,
    /// The user-to-shard lookup.
    pub homes: HomeMap,
    /// Seed of its ids and jitter.
    pub seed: u64,
    /// Where to the control thread it reports.
    pub reports: Reporter,
    /// All mailboxes, once every shard has its waker.
    pub mailboxes: Receiver<Mailboxes>,
}

/// The way to the control thread.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// Where reports go.
    pub sender: Sender<Report>,
    /// Wakes the control thread.
    pub waker: Waker,
}

impl Reporter {
    /// Tells the control thread, which outlives the shards; if it is gone all the same, there is nobody to tell.
    pub fn tell(&self, report: Report) {
        let _ = self.sender.send(report);
        self.waker.wake();
    }
}

/// What a shard tells the control thread.
#[derive(Debug)]
pub enum Report {
    /// The engine is made.
    Engine(ShardId, Waker),
    /// The shard accepts.
    Accepting(ShardId),
    /// An administrator asks, over a connection of this shard, from this address.
    Asked(ShardId, SocketKey, Option<SocketAddr>, Request),
    /// What came of a query, by its ticket.
    Replied(u32, ShardReply),
    /// Somebody shows a token that is signed with a key that is not known.
    KeysWanted,
    /// The drain is over here.
    Drained(ShardId, DrainCount),
    /// The shard has ended; `Err` says what broke.
    Ended(ShardId, std::io::Result<()>),
}

/// Runs one shard to its end.
///
/// # Errors
/// The engine could not be made, or broke.
pub async fn run<E: Engine>(plan: Plan) -> std::io::Result<()> {
    let engine = E::new(plan.listener)?;
    let waker = engine.waker();
    plan.reports.tell(Report::Engine(plan.shard, waker.clone()));
    let Ok(mailboxes) = plan.mailboxes.recv() else {
        // Another shard could not start.
        return Ok(());
    };
    let lanes = Lanes::new(plan.shard, mailboxes, Arc::clone(&plan.shared.depths));
    let core = Core::new(Arc::clone(&plan.shared), plan.settings, plan.homes, lanes, plan.seed);
    let park = FdReady::new(engine.park_fd())?;
    let shard = Shard {
        engine,
        core,
        inbox: plan.inbox,
        waker,
        shared: plan.shared,
        reports: plan.reports,
        commands: Vec::new(),
        accept_retry_ms: None,
        reported_drained: false,
        park,
        ring_yield: RingYield::new()?,
    };
    shard.live(plan.shard).await
}

/// What an operator can do about an accept that fails.
fn remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "see limits.connections and the nofile limit",
        Some(libc::ENFILE) => "the host has no more files: see fs.file-max",
        Some(libc::ENOBUFS | libc::ENOMEM) => "the host has no memory for sockets: see net.ipv4.tcp_mem",
        _ => "trying again",
    }
}

struct Shard<E> {
    engine: E,
    core: Core,
    inbox: Inbox<ToShard>,
    waker: Waker,
    shared: Arc<Shared>,
    reports: Reporter,
    commands: Vec<Command>,
    accept_retry_ms: Option<u64>,
    reported_drained: bool,
    park: FdReady,
    ring_yield: RingYield,
}

impl<E: Engine> Shard<E> {
    async fn live(mut self, me: ShardId) -> std::io::Result<()> {
        self.reports.tell(Report::Accepting(me));
        let mut wait = None;
        let mut idle_turns = 0u32;
        let mut yielded_ns = 0;
        let mut stopping_since_ns = None;
        loop {
            // Without a wait the call into the kernel is work: it carries out all sends of the turn before.
            let began_ns = wait.is_none().then(|| self.shared.clock.mono_ns());
            self.engine.turn(wait)?;
            self.waker.set_running();
            let now = self.shared.clock.now();
            let began_ns = began_ns.unwrap_or(now.mono_ns);
            self.core.begin_turn(now);
            let mut busy = self.take_events() | self.take_mail();
            self.core.handle_timeouts();
            let interactive = self.core.is_interactive();
            self.core.fan_out();
            // Answers leave before what takes a share of the turn for those for whom nobody waits.
            if interactive && (self.core.has_strangers() || self.engine.has_bulk()) {
                self.carry_out();
                self.core.flush_lanes();
                self.engine.submit()?;
                self.core.count_deliveries(self.shared.clock.mono_ns());
            }
            self.core.serve_strangers();
            self.engine.hold_accepts(self.core.is_crowded());
            busy |= self.take_bulk(began_ns);
            if self.core.poll_keys_wanted() {
                self.reports.tell(Report::KeysWanted);
            }
            self.carry_out();
            self.core.flush_lanes();
            self.tell_notices(me);
            self.finish_turn(me, began_ns);
            if self.core.is_stopping() {
                let stopping_ns = *stopping_since_ns.get_or_insert(now.mono_ns);
                // What the kernel does not let go by then goes with the engine.
                if self.engine.sockets() == 0 || now.mono_ns - stopping_ns > STOP_MAX_NS {
                    return Ok(());
                }
            }
            if now.mono_ns - yielded_ns > YIELD_EVERY_NS {
                self.ring_yield.pass().await;
                yielded_ns = now.mono_ns;
            }
            idle_turns = if busy { 0 } else { idle_turns + 1 };
            if self.core.has_more() || self.engine.has_work() || !self.inbox.is_empty() {
                wait = None;
                continue;
            }
            let until_deadline = self.until_deadline(now.mono_ms());
            if idle_turns > 1 {
                self.park(until_deadline).await;
                yielded_ns = self.shared.clock.mono_ns();
                wait = None;
                continue;
            }
            self.waker.set_waiting();
            // Whoever sends after this look sees that we wait.
            wait = self.inbox.is_empty().then(|| ENGINE_WAIT.min(until_deadline));
        }
    }

    /// Lets the core see what happened to sockets. Returns false if nothing did.
    fn take_events(&mut self) -> bool {
        let mut any = false;
        let mut received_bytes = 0;
        while received_bytes < RECEIVED_BYTES_PER_TURN
            && let Some(event) = self.engine.next_event()
        {
            any = true;
            if let Event::Received { bytes, .. } = &event {
                received_bytes += bytes.len();
            }
            match event {
                Event::Accepted { key } => self.core.handle_accepted(key, self.engine.peer_addr(key)),
                Event::Received { key, bytes } => self.core.handle_received(key, bytes),
                Event::Sent { key, payload } => self.core.handle_sent(key, payload),
                Event::Ended { key, error } => self.core.handle_ended(key, error.is_some()),
                Event::Closed { key } => self.core.handle_closed(key),
                Event::AcceptPaused { error } => {
                    self.core.metrics().accept_paused.inc();
                    log::warn!("accepting paused: {error}; {}", remedy(&error));
                    self.core.handle_out_of_descriptors();
                    self.accept_retry_ms = Some(self.shared.clock.now().mono_ms() + ACCEPT_RETRY_MS);
                }
            }
        }
        any
    }

    /// Lets the core see what bulk senders sent, as far as a turn may that began at `began_ns`.
    fn take_bulk(&mut self, began_ns: u64) -> bool {
        if !self.engine.has_bulk() {
            return false;
        }
        let until_ns = (began_ns + BULK_UNTIL_NS).max(self.shared.clock.mono_ns() + BULK_AT_LEAST_NS);
        while let Some(event) = self.engine.next_bulk() {
            match event {
                Event::Received { key, bytes } => self.core.handle_received(key, bytes),
                Event::Ended { key, error } => self.core.handle_ended(key, error.is_some()),
                other => debug_assert!(false, "{other:?} of a bulk sender"),
            }
            if self.shared.clock.mono_ns() > until_ns {
                break;
            }
        }
        true
    }

    /// Lets the core act on what came from other threads, as much as one turn may take.
    fn take_mail(&mut self) -> bool {
        let mut items = 0;
        while items < INBOX_ITEMS_PER_TURN {
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

    /// Does what the core wants done: commands first, since they may bring more bytes to send, and the other way round.
    fn carry_out(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        loop {
            while self.core.poll_command(&mut commands) {
                for command in commands.drain(..) {
                    self.carry_out_one(command);
                }
            }
            let mut sent_any = false;
            while let Some(key) = self.core.poll_dirty() {
                while let Some(payload) = self.core.poll_payload(key) {
                    match self.engine.send(key, payload) {
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
            self.core.handle_probed(key, self.engine.unacknowledged(key));
        }
    }

    fn carry_out_one(&mut self, command: Command) {
        match command {
            Command::ReceiveOnce(key) => self.engine.receive_once(key),
            Command::ReceiveStream(key) => self.engine.receive_stream(key),
            Command::Finish(key) => self.engine.finish(key),
            Command::Close(key) => self.engine.close(key),
            Command::Reset(key) => self.engine.reset(key),
            Command::Abandon(key) => {
                let bytes = self.engine.unacknowledged(key).unwrap_or(0);
                self.core.handle_unacknowledged(key, bytes);
                self.engine.close(key);
            }
            Command::Detach(key) => {
                if let Some(socket) = self.engine.detach(key) {
                    self.core.handle_detached(key, socket);
                }
            }
            Command::Adopt(hand_off) => {
                if self.core.is_stopping() {
                    return self.core.handle_lost();
                }
                let mut hand_off = *hand_off;
                match hand_off.socket.take().map(|socket| self.engine.adopt(socket)) {
                    Some(Ok(key)) => self.core.handle_adopted(key, hand_off),
                    Some(Err(error)) => {
                        log::warn!("a connection was lost between shards: {error}");
                        self.core.handle_lost();
                    }
                    None => {}
                }
            }
        }
    }

    /// Tells the control thread what the turn brought for it.
    fn tell_notices(&mut self, me: ShardId) {
        while let Some(notice) = self.core.poll_notice() {
            self.reports.tell(match notice {
                Notice::Asked(conn, from, request) => Report::Asked(me, conn, from, request),
                Notice::Replied(ticket, reply) => Report::Replied(ticket, reply),
            });
        }
    }

    fn finish_turn(&mut self, me: ShardId, began_ns: u64) {
        let now_ns = self.shared.clock.mono_ns();
        self.core.end_turn(began_ns, now_ns);
        let stats = self.engine.stats();
        let metrics = self.core.metrics();
        metrics.syscalls.set(stats.syscalls);
        metrics.buffers_exhausted.set(stats.buffers_exhausted);
        metrics.short_sends.set(stats.short_sends);
        if self.accept_retry_ms.is_some_and(|due| due <= now_ns / 1_000_000) {
            self.accept_retry_ms = None;
            self.engine.resume_accept();
        }
        if !self.reported_drained
            && let Some(count) = self.core.drain_count()
            && count.open == 0
            && !self.core.has_unfinished_sockets()
        {
            self.reported_drained = true;
            self.reports.tell(Report::Drained(me, count));
        }
    }

    fn until_deadline(&self, now_ms: u64) -> Duration {
        let due = [self.core.next_timeout_ms(), self.accept_retry_ms]
            .into_iter()
            .flatten()
            .min();
        // A millisecond more: the clock's fraction was cut off, and waking early would spin.
        due.map_or(PARK_MAX, |due| {
            Duration::from_millis(due.saturating_sub(now_ms) + 1).min(PARK_MAX)
        })
    }

    /// Parks in the executor until something happens or the deadline comes.
    async fn park(&mut self, until_deadline: Duration) {
        self.waker.set_parked();
        if !self.inbox.is_empty() || !self.engine.prepare_park() {
            self.waker.set_running();
            return;
        }
        let mut timer = std::pin::pin!(async { Timer::new(until_deadline).await });
        let park = &mut self.park;
        poll_fn(|cx| {
            if park.poll_ready(cx).is_ready() || timer.as_mut().poll(cx).is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        self.engine.unpark();
        self.waker.set_running();
    }
}
