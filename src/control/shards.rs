//! The shards' threads: started together, stopped and joined together.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder};

use crate::engine::{EpollEngine, RingEngine, Waker};
use crate::ids::ShardId;
use crate::lanes::mailbox::{self, Mailbox, Mailboxes};
use crate::lanes::{Inbox, LifecycleToControl, LifecycleToShard, Senders, ToControl, ToShard};
use crate::router::HomeMap;
use crate::runtime::preflight::{EngineKind, Host, out_of_memlock};
use crate::runtime::{StartError, cpus};
use crate::settings::Settings;
use crate::shard::run::{self, Plan, Startup};
use crate::shared::Shared;
use crate::shared::clock::Clock;

/// The executor's preemption must never fire: with it, glommio 0.9 parks although its task can run
/// (`docs/decisions/0001-glommio.md`).
const NO_PREEMPTION: Duration = Duration::from_secs(3600);
/// Registered memory and depth of the executor's own rings, which carry nothing but parking.
const EXECUTOR_IO_MEMORY: usize = 64 * 1024;
const EXECUTOR_RING_DEPTH: usize = 32;

/// What all shards have in common.
pub(super) struct ShardsPlan<'a> {
    pub(super) host: &'a Host,
    pub(super) clock: Clock,
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) homes: HomeMap,
}

/// The shards that run. Dropping it stops and joins them.
#[derive(Default)]
pub(super) struct Shards {
    threads: Vec<ExecutorJoinHandle<()>>,
    /// Empty until every shard has its waker; a shard that waits for them then ends by itself.
    mailboxes: Mailboxes,
}

impl Shards {
    /// Starts every shard and waits until all accept. On failure those that run are stopped and
    /// joined.
    ///
    /// # Errors
    /// What the first shard that did not start says; out of memlock is told as that.
    pub(super) fn start(
        plan: ShardsPlan<'_>,
        inboxes: Vec<Inbox<ToShard>>,
        senders: Senders,
        sockets: Vec<OwnedFd>,
        control: Waker,
    ) -> Result<Self, StartError> {
        let (engine, count) = (plan.host.engine, inboxes.len());
        let mut running = Shards::default();
        let result = running.start_all(plan, inboxes, senders, sockets, control);
        match result {
            Ok(()) => Ok(running),
            Err(error) => Err(running.explain(error, engine, count)),
        }
    }

    fn start_all(
        &mut self,
        plan: ShardsPlan<'_>,
        inboxes: Vec<Inbox<ToShard>>,
        senders: Senders,
        sockets: Vec<OwnedFd>,
        control: Waker,
    ) -> Result<(), StartError> {
        let shards = inboxes.len() as u16;
        let (mailboxes_sender, mailboxes_receiver) = bounded::<Mailboxes>(shards.into());
        let (startup_sender, startup) = unbounded();
        for (((shard, inbox), listener), cpu) in (0..shards).zip(inboxes).zip(sockets).zip(&plan.host.pinning.cpus) {
            let shard_plan = Plan {
                shard: ShardId(shard),
                listener,
                inbox,
                clock: plan.clock,
                shared: Arc::clone(&plan.shared),
                settings: Arc::clone(&plan.settings),
                homes: plan.homes.clone(),
                seed: getrandom::u64().map_err(no_random)?,
                startup: startup_sender.clone(),
                mailboxes: mailboxes_receiver.clone(),
            };
            let end = EndReport {
                shard: ShardId(shard),
                startup: startup_sender.clone(),
                control: senders.control(control.clone()),
                result: None,
            };
            let thread =
                spawn(shard_plan, end, *cpu, plan.host.engine).map_err(|cause| StartError::Shard { shard, cause })?;
            self.threads.push(thread);
        }
        drop(mailboxes_receiver);
        let wakers = collect_wakers(&startup, shards)?;
        let mailboxes = mailbox::mailboxes(senders, wakers, Some(control));
        for _ in 0..shards {
            let _ = mailboxes_sender.send(mailboxes.clone());
        }
        self.mailboxes = mailboxes;
        for _ in 0..shards {
            match startup.recv() {
                Ok(Startup::Ended(shard, result)) => return Err(ended_early(shard, result)),
                Ok(Startup::Engine(..) | Startup::Accepting(_)) => {}
                Err(_) => return Err(ended_early(ShardId(0), Ok(()))),
            }
        }
        Ok(())
    }

    /// The error with the cause that its thread kept, where the executor could not be made. Joins
    /// all threads.
    fn explain(mut self, error: StartError, engine: EngineKind, count: usize) -> StartError {
        let StartError::Shard { shard, cause } = error else {
            return error;
        };
        self.mailboxes.post_all(|| LifecycleToShard::Stop);
        let mut causes = BTreeMap::from([(shard, cause)]);
        for (at, thread) in self.threads.drain(..).enumerate() {
            if let Err(GlommioError::IoError(cause)) = thread.join() {
                causes.insert(at as u16, cause);
            }
        }
        let mut known = causes.into_iter();
        let told = known.find(|(_, cause)| cause.raw_os_error().is_some());
        match told.or_else(|| known.next()) {
            Some((_, cause)) if cause.raw_os_error() == Some(libc::ENOMEM) => out_of_memlock(engine, count),
            Some((shard, cause)) => StartError::Shard { shard, cause },
            None => StartError::Shard {
                shard,
                cause: io::Error::other("it ended"),
            },
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// The way to the inboxes.
    pub(super) fn mailboxes(&self) -> &Mailboxes {
        &self.mailboxes
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        // Shards without mailboxes end by themselves.
        self.mailboxes.post_all(|| LifecycleToShard::Stop);
        for thread in self.threads.drain(..) {
            if let Err(error) = thread.join() {
                log::error!("a shard could not be joined: {error}");
            }
        }
    }
}

pub(super) fn no_random(cause: getrandom::Error) -> StartError {
    StartError::System {
        what: "cannot get random numbers",
        cause: cause.into(),
    }
}

fn ended_early(shard: ShardId, result: io::Result<()>) -> StartError {
    StartError::Shard {
        shard: shard.0,
        cause: result.err().unwrap_or_else(|| io::Error::other("it ended")),
    }
}

/// Waits for each shard's waker. A shard that fails drops the others' mailboxes, and they end by
/// themselves.
fn collect_wakers(startup: &Receiver<Startup>, shards: u16) -> Result<Vec<Waker>, StartError> {
    let mut wakers = BTreeMap::new();
    while wakers.len() < usize::from(shards) {
        match startup.recv() {
            Ok(Startup::Engine(shard, waker)) => {
                wakers.insert(shard, waker);
            }
            Ok(Startup::Ended(shard, result)) => return Err(ended_early(shard, result)),
            Ok(Startup::Accepting(_)) => {}
            Err(_) => return Err(ended_early(ShardId(0), Ok(()))),
        }
    }
    Ok(wakers.into_values().collect())
}

/// Tells that a shard has ended, also when it ends in a panic or its executor cannot be made: the
/// thread that starts the shards, and the control thread, as the shard does not know which of them
/// still waits.
struct EndReport {
    shard: ShardId,
    startup: Sender<Startup>,
    control: Mailbox<ToControl>,
    result: Option<io::Result<()>>,
}

impl Drop for EndReport {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            let words = if std::thread::panicking() {
                "it panicked"
            } else {
                "it did not begin"
            };
            Err(io::Error::other(words))
        });
        let cause = result.as_ref().err().map(|cause| cause.to_string().into());
        // Once all shards accept, nobody receives this.
        let _ = self.startup.send(Startup::Ended(self.shard, result));
        self.control.post(self.shard, LifecycleToControl::Ended { cause });
    }
}

fn spawn(plan: Plan, end: EndReport, cpu: Option<usize>, engine: EngineKind) -> io::Result<ExecutorJoinHandle<()>> {
    let shard = plan.shard;
    // The shard pins itself: glommio looks for CPUs in /sys, and panics where there is none.
    LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .name(&format!("shard-{shard}"))
        .io_memory(EXECUTOR_IO_MEMORY)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .preempt_timer(NO_PREEMPTION)
        .spawn(move || async move {
            let result = match cpu.map_or(Ok(()), cpus::pin) {
                Err(cause) => Err(cause),
                Ok(()) => match engine {
                    EngineKind::Ring => run::run::<RingEngine>(plan).await,
                    EngineKind::Epoll => run::run::<EpollEngine>(plan).await,
                },
            };
            let mut end = end;
            end.result = Some(result);
        })
        .map_err(|error| match error {
            GlommioError::IoError(cause) => cause,
            other => io::Error::other(other.to_string()),
        })
}
