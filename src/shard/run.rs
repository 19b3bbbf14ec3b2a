//! The thread of one shard, inside its glommio executor: engine, clock, and parking.
//!
//! Owns the shard's thread. What a turn does is in [`super::turn`]; this decides when the next one
//! comes. All sends of a turn leave with the next turn's one system call, or by one of their own
//! before pre-auth work and bulk senders have theirs.
//!
//! The task never relies on the executor's preemption: it looks at its inbox every turn and yields
//! by its own clock (see `docs/decisions/0001-glommio.md`).

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use glommio::timer::Timer;

use super::core::Core;
use super::turn::{Shard, Surroundings};
use crate::engine::park::{FdReady, RingYield};
use crate::engine::{SystemEngine, Waker};
use crate::ids::ShardId;
use crate::lanes::mailbox::Mailboxes;
use crate::lanes::{Inbox, ToShard};
use crate::router::HomeMap;
use crate::settings::Settings;
use crate::shared::clock::Clock;
use crate::shared::{Now, Shared};

/// The longest wait inside the engine before the shard parks in the executor. Waiting there halves
/// the cost of low and middling load; a millisecond is what a foreign task of the executor may have
/// to wait.
const ENGINE_WAIT: Duration = Duration::from_millis(1);
/// A parked shard turns this often all the same, so that its age tells whether it lives.
const PARK_MAX: Duration = Duration::from_secs(1);
/// The executor gets a look at its reactor this often under load. Nothing but the park timer lives
/// there.
const YIELD_EVERY_NS: u64 = 10_000_000;
/// Everything that a shard needs to start.
#[derive(Debug)]
pub struct Plan {
    /// Which shard this is.
    pub shard: ShardId,
    /// Its listener, bound and listening.
    pub listener: OwnedFd,
    /// Mail of other threads.
    pub inbox: Inbox<ToShard>,
    /// The gateway's clock.
    pub clock: Clock,
    /// What all threads may read.
    pub shared: Arc<Shared>,
    /// The first settings.
    pub settings: Arc<Settings>,
    /// The user-to-shard lookup.
    pub homes: HomeMap,
    /// Seed of its ids and jitter.
    pub seed: u64,
    /// Tells the thread that starts it.
    pub startup: Sender<Startup>,
    /// All mailboxes, once every shard has its waker.
    pub mailboxes: Receiver<Mailboxes>,
}

/// What a shard tells the thread that starts it.
#[derive(Debug)]
pub enum Startup {
    /// The engine is made.
    Engine(ShardId, Waker),
    /// The shard accepts.
    Accepting(ShardId),
    /// The shard has ended; `Err` says what broke.
    Ended(ShardId, std::io::Result<()>),
}

/// Runs one shard to its end.
///
/// # Errors
/// The engine could not be made, or broke.
pub async fn run<E: SystemEngine>(plan: Plan) -> std::io::Result<()> {
    let engine = E::new(plan.listener)?;
    let waker = engine.waker();
    // The only error is that the start was given up, which the mailboxes tell.
    let _ = plan.startup.send(Startup::Engine(plan.shard, waker.clone()));
    let Ok(mailboxes) = plan.mailboxes.recv() else {
        // Another shard could not start.
        return Ok(());
    };
    let lanes = mailboxes.lanes(plan.shard, &plan.shared.depths);
    let core = Core::new(Arc::clone(&plan.shared), plan.settings, plan.homes, lanes, plan.seed);
    let park = FdReady::new(engine.park_fd())?;
    let runner = Runner {
        engine,
        shard: Shard::new(core, plan.inbox),
        waker,
        around: Around {
            clock: plan.clock,
            mailboxes,
        },
        park,
        ring_yield: RingYield::new()?,
    };
    let _ = plan.startup.send(Startup::Accepting(plan.shard));
    runner.live().await
}

/// What a turn asks of this thread.
struct Around {
    clock: Clock,
    mailboxes: Mailboxes,
}

impl Surroundings for Around {
    fn now(&self) -> Now {
        self.clock.now()
    }

    fn mono_ns(&self) -> u64 {
        self.clock.mono_ns()
    }

    fn wake(&self, thread: ShardId) {
        self.mailboxes.wake(thread);
    }
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

struct Runner<E> {
    engine: E,
    shard: Shard,
    waker: Waker,
    around: Around,
    park: FdReady,
    ring_yield: RingYield,
}

impl<E: SystemEngine> Runner<E> {
    async fn live(mut self) -> std::io::Result<()> {
        let mut wait = None;
        let mut idle_turns = 0u32;
        let mut yielded_ns = 0;
        loop {
            let turned = self.shard.turn(&mut self.engine, &self.around, wait)?;
            if let Some(error) = &turned.accept_error {
                log::warn!("accepting paused: {error}; {}", remedy(error));
            }
            if turned.is_over {
                return Ok(());
            }
            let now = turned.now;
            if now.mono_ns - yielded_ns > YIELD_EVERY_NS {
                self.ring_yield.pass().await;
                yielded_ns = now.mono_ns;
            }
            idle_turns = if turned.was_busy { 0 } else { idle_turns + 1 };
            if self.shard.has_work(&mut self.engine) {
                wait = None;
                continue;
            }
            let until_deadline = self.until_deadline(now.mono_ms());
            if idle_turns > 1 {
                self.park(until_deadline).await;
                yielded_ns = self.around.mono_ns();
                wait = None;
                continue;
            }
            self.waker.set_waiting();
            // A sender that comes after this look sees that the shard waits.
            let is_quiet = self.shard.inbox().is_empty();
            wait = is_quiet.then(|| ENGINE_WAIT.min(until_deadline));
        }
    }

    fn until_deadline(&self, now_ms: u64) -> Duration {
        // A millisecond more: the clock's fraction was cut off, and waking early would spin.
        self.shard.next_due_ms().map_or(PARK_MAX, |due| {
            Duration::from_millis(due.saturating_sub(now_ms) + 1).min(PARK_MAX)
        })
    }

    /// Parks in the executor until something happens or the deadline comes.
    async fn park(&mut self, until_deadline: Duration) {
        self.waker.set_parked();
        if !self.shard.inbox().is_empty() || !self.engine.prepare_park() {
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
