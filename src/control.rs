//! The control thread of one gateway: it starts the shards, watches them, drains and stops them.
//!
//! Owns the join handles of the shards and everything that concerns the gateway as a whole. Shards never wait for it.
//! Two gateways in one process share nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder};

use crate::config::{Config, ConfigError};
use crate::engine::{EpollEngine, RingEngine, Waker};
use crate::ids::ShardId;
use crate::lanes::{self, Mailbox, Parcel};
use crate::router::HomeMap;
use crate::runtime::StartError;
use crate::runtime::listener::{self, Claim};
use crate::runtime::preflight::{self, EngineKind, Host};
use crate::settings::Settings;
use crate::shard::run::{self, Plan, Report};
use crate::view::{STALLED_AFTER, View};

/// What a drain takes at the most if `drain.timeout` is less: `shutdown` and the close frames need time to leave.
const FAREWELL_MS: u64 = 1_000;
/// How often the control thread looks at the shards when nothing else happens.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// The executor's preemption must never fire: with it, glommio 0.9 parks although its task can run
/// (ARCHITECTURE.md, "Living with glommio").
const NO_PREEMPTION: Duration = Duration::from_secs(3600);
/// Registered memory and depth of the executor's own rings, which carry nothing but parking.
const EXECUTOR_IO_MEMORY: usize = 64 * 1024;
const EXECUTOR_RING_DEPTH: usize = 32;

/// How a gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// After a drain, everybody gone or told.
    Drained {
        /// Clients that went by themselves.
        left: u64,
        /// Clients that were closed.
        closed: u64,
    },
    /// At once, as asked.
    Stopped,
    /// A shard broke; the log says how.
    Broken,
}

/// What may be asked of a running gateway.
#[derive(Debug)]
enum Order {
    Drain,
    Stop,
    Reload(Box<Config>),
}

/// A running gateway. Dropping it stops it at once.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    view: Arc<View>,
    orders: Sender<Order>,
    control: Option<JoinHandle<Exit>>,
}

/// The means to order a gateway about from another thread.
#[derive(Debug, Clone)]
pub struct Handle {
    orders: Sender<Order>,
}

impl Handle {
    /// Begins a drain; a second call changes nothing.
    pub fn drain(&self) {
        let _ = self.orders.send(Order::Drain);
    }

    /// Ends the gateway at once.
    pub fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
    }

    /// Goes by this configuration from now on, as far as that is possible while running.
    pub fn reload(&self, config: Config) {
        let _ = self.orders.send(Order::Reload(Box::new(config)));
    }
}

impl Gateway {
    /// Starts a gateway and returns when all its shards accept.
    ///
    /// # Errors
    /// What keeps it from running; nothing is left behind then.
    pub fn start(config: &Config) -> Result<Gateway, StartError> {
        let host = preflight::inspect(config)?;
        let listeners = listener::bind(config.listen, host.cpus.len(), config.listen_backlog)?;
        let (starter, view) = Starter::prepare(config, &host)?;
        let control = starter.start(&host, listeners.sockets, listeners.claim, config)?;
        let orders = control.orders_sender.clone();
        let control_cpu = config.control_cpu;
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Some(id) = control_cpu {
                    core_affinity::set_for_current(core_affinity::CoreId { id });
                }
                control.run()
            })
            .map_err(|cause| StartError::System {
                what: "cannot start the control thread",
                cause,
            })?;
        Ok(Gateway {
            addr: listeners.addr,
            view,
            orders,
            control: Some(thread),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it counts and says of itself.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// For ordering it about while [`Gateway::wait`] blocks.
    pub fn handle(&self) -> Handle {
        Handle {
            orders: self.orders.clone(),
        }
    }

    /// Waits for its end: every shard joined, every descriptor closed.
    pub fn wait(mut self) -> Exit {
        self.join()
    }

    fn join(&mut self) -> Exit {
        match self.control.take().map(JoinHandle::join) {
            Some(Ok(exit)) => exit,
            Some(Err(_)) | None => Exit::Broken,
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.control.is_some() {
            self.handle().stop();
            self.join();
        }
    }
}

/// What exists before the first shard does.
struct Starter {
    view: Arc<View>,
    settings: Arc<Settings>,
    inboxes: Vec<lanes::Inbox>,
    senders: Vec<Sender<Parcel>>,
}

impl Starter {
    fn prepare(config: &Config, host: &Host) -> Result<(Self, Arc<View>), StartError> {
        let (inboxes, senders, depths) = lanes::inboxes(host.cpus.len() as u16);
        let engine = match host.engine {
            EngineKind::Ring => <RingEngine as crate::engine::Engine>::NAME,
            EngineKind::Epoll => <EpollEngine as crate::engine::Engine>::NAME,
        };
        // No credential source can be configured yet: users name themselves.
        let development = true;
        let view = Arc::new(View::new(
            config.gateway_id.clone(),
            development,
            engine,
            host.cpus.clone(),
            depths,
        ));
        let starter = Starter {
            view: Arc::clone(&view),
            settings: Arc::new(Settings::new(config, host.connections_max)?),
            inboxes,
            senders,
        };
        Ok((starter, view))
    }

    /// Starts every shard and waits until all accept. On failure those that run are stopped and joined.
    fn start(
        self,
        host: &Host,
        sockets: Vec<OwnedFd>,
        claim: Option<Claim>,
        config: &Config,
    ) -> Result<Control, StartError> {
        let shards = host.cpus.len() as u16;
        let (reports_sender, reports) = unbounded();
        let (mailboxes_sender, mailboxes_receiver) = bounded::<Vec<Mailbox>>(shards.into());
        let no_random = |cause: getrandom::Error| StartError::System {
            what: "cannot get random numbers",
            cause: cause.into(),
        };
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(no_random)?;
        let homes = HomeMap::new(shards, key);
        let mut threads = Vec::new();
        for (((shard, inbox), listener), cpu) in (0..shards).zip(self.inboxes).zip(sockets).zip(&host.cpus) {
            let seed = getrandom::u64().map_err(no_random)?;
            let plan = Plan {
                shard: ShardId(shard),
                listener,
                inbox,
                view: Arc::clone(&self.view),
                settings: Arc::clone(&self.settings),
                homes: homes.clone(),
                seed,
                reports: reports_sender.clone(),
                mailboxes: mailboxes_receiver.clone(),
            };
            let thread = spawn(plan, *cpu, host.engine).map_err(|cause| StartError::Shard { shard, cause })?;
            threads.push(thread);
        }
        drop(reports_sender);
        let wakers = collect_wakers(&reports, shards)?;
        let mailboxes = lanes::mailboxes(self.senders, wakers);
        for _ in 0..shards {
            let _ = mailboxes_sender.send(mailboxes.clone());
        }
        for _ in 0..shards {
            match reports.recv() {
                Ok(Report::Ended(shard, result)) => return Err(ended_early(shard, result)),
                Ok(_) => {}
                Err(_) => return Err(ended_early(ShardId(0), Ok(()))),
            }
        }
        let (orders_sender, orders) = unbounded();
        Ok(Control {
            view: self.view,
            connections_possible: host.connections_possible,
            drain_timeout: config.drain_timeout,
            mailboxes,
            reports,
            orders,
            orders_sender,
            threads,
            _claim: claim,
        })
    }
}

fn ended_early(shard: ShardId, result: Result<(), String>) -> StartError {
    StartError::Shard {
        shard: shard.0,
        cause: result.err().unwrap_or_else(|| "it ended".into()),
    }
}

/// Waits for each shard's waker. A shard that fails drops the others' mailboxes, and they end by themselves.
fn collect_wakers(reports: &Receiver<Report>, shards: u16) -> Result<Vec<Waker>, StartError> {
    let mut wakers = BTreeMap::new();
    while wakers.len() < usize::from(shards) {
        match reports.recv() {
            Ok(Report::Engine(shard, waker)) => {
                wakers.insert(shard, waker);
            }
            Ok(Report::Ended(shard, result)) => return Err(ended_early(shard, result)),
            Ok(_) => {}
            Err(_) => return Err(ended_early(ShardId(0), Ok(()))),
        }
    }
    Ok(wakers.into_values().collect())
}

/// Tells the control thread that a shard has ended, also when it ends in a panic.
struct EndReport {
    shard: ShardId,
    reports: Sender<Report>,
    result: Option<Result<(), String>>,
}

impl Drop for EndReport {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err("it panicked".into()));
        let _ = self.reports.send(Report::Ended(self.shard, result));
    }
}

fn spawn(plan: Plan, cpu: Option<usize>, engine: EngineKind) -> Result<ExecutorJoinHandle<()>, String> {
    let placement = cpu.map_or(glommio::Placement::Unbound, glommio::Placement::Fixed);
    let shard = plan.shard;
    LocalExecutorBuilder::new(placement)
        .name(&format!("shard-{shard}"))
        .io_memory(EXECUTOR_IO_MEMORY)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .preempt_timer(NO_PREEMPTION)
        .spawn(move || async move {
            let mut end = EndReport {
                shard,
                reports: plan.reports.clone(),
                result: None,
            };
            let result = match engine {
                EngineKind::Ring => run::run::<RingEngine>(plan).await,
                EngineKind::Epoll => run::run::<EpollEngine>(plan).await,
            };
            end.result = Some(result.map_err(|error| error.to_string()));
        })
        .map_err(|error| error.to_string())
}

/// The state of the control thread.
struct Control {
    view: Arc<View>,
    connections_possible: usize,
    drain_timeout: Duration,
    mailboxes: Vec<Mailbox>,
    reports: Receiver<Report>,
    orders: Receiver<Order>,
    orders_sender: Sender<Order>,
    threads: Vec<ExecutorJoinHandle<()>>,
    _claim: Option<Claim>,
}

/// A drain under way.
struct Drain {
    until_ms: u64,
    shards_left: usize,
    left: u64,
    closed: u64,
}

impl Control {
    fn run(self) -> Exit {
        let exit = self.watch();
        for mailbox in &self.mailboxes {
            mailbox.post(Parcel::Stop);
        }
        for thread in self.threads {
            if let Err(error) = thread.join() {
                log::error!("a shard could not be joined: {error}");
            }
        }
        exit
    }

    /// Until the gateway shall end.
    fn watch(&self) -> Exit {
        let mut drain: Option<Drain> = None;
        let mut stalled = vec![false; self.mailboxes.len()];
        loop {
            let now_ms = self.view.clock.now().mono_ms();
            self.view.control_turn_ms.set(now_ms);
            let mut wait = WATCH_EVERY;
            if let Some(drain) = &drain {
                if drain.shards_left == 0 || now_ms >= drain.until_ms {
                    if drain.shards_left > 0 {
                        log::warn!("drain: time is up, closing {} connections", self.view.connections());
                    }
                    return Exit::Drained {
                        left: drain.left,
                        closed: drain.closed + self.view.connections(),
                    };
                }
                wait = wait.min(Duration::from_millis(drain.until_ms - now_ms));
            }
            crossbeam_channel::select! {
                recv(self.orders) -> order => match order {
                    Ok(Order::Drain) => {
                        if self.view.begin_draining() {
                            drain = Some(self.begin_drain());
                        }
                    }
                    Ok(Order::Reload(config)) => self.reload(&config),
                    Ok(Order::Stop) | Err(_) => return Exit::Stopped,
                },
                recv(self.reports) -> report => match report {
                    Ok(Report::Drained(_, count)) => {
                        if let Some(drain) = &mut drain {
                            drain.shards_left -= 1;
                            drain.left += count.left;
                            drain.closed += count.closed;
                        }
                    }
                    Ok(Report::Ended(shard, result)) => {
                        let cause = result.err().unwrap_or_else(|| "without being asked".into());
                        log::error!("shard {shard} has ended: {cause}; stopping the gateway");
                        return Exit::Broken;
                    }
                    Ok(Report::Engine(..) | Report::Accepting(_)) => {}
                    Err(_) => return Exit::Broken,
                },
                default(wait) => {}
            }
            self.watch_shards(&mut stalled);
        }
    }

    fn begin_drain(&self) -> Drain {
        let now_ms = self.view.clock.now().mono_ms();
        let until_ms = now_ms + self.drain_timeout.as_millis() as u64;
        log::info!(
            "draining {} connections for at most {:?}",
            self.view.connections(),
            self.drain_timeout
        );
        for mailbox in &self.mailboxes {
            mailbox.post(Parcel::Drain { until_ms });
        }
        Drain {
            // However short it is, what clients are told must get out.
            until_ms: until_ms.max(now_ms + FAREWELL_MS),
            shards_left: self.mailboxes.len(),
            left: 0,
            closed: 0,
        }
    }

    fn reload(&self, config: &Config) {
        let possible = self.connections_possible;
        let wanted = config.limits.connections.unwrap_or(possible);
        if wanted > possible {
            log::warn!("limits.connections is {wanted}, but nofile permits {possible}: going by that");
        }
        let connections_max = wanted.min(possible);
        let settings = match Settings::new(config, connections_max) {
            Ok(settings) => Arc::new(settings),
            Err(error) => return log::error!("configuration not changed: {error}"),
        };
        for mailbox in &self.mailboxes {
            mailbox.post(Parcel::Settings(Arc::clone(&settings)));
        }
    }

    /// Speaks when a shard stops turning, and when it turns again; wakes it, as a last resort against a lost wake.
    fn watch_shards(&self, stalled: &mut [bool]) {
        let now_ms = self.view.clock.now().mono_ms();
        let limit = STALLED_AFTER.as_millis() as u64;
        for (shard, age) in self.view.turn_ages(now_ms) {
            if age > limit {
                if !stalled[shard] {
                    log::error!("shard {shard} has not turned for {age} ms");
                }
                self.mailboxes[shard].wake();
            } else if stalled[shard] {
                log::warn!("shard {shard} turns again");
            }
            stalled[shard] = age > limit;
        }
    }
}

/// A configuration that cannot be reloaded leaves the running one in place.
pub fn log_reload(result: Result<(Config, Vec<&'static str>), ConfigError>, handle: &Handle) -> Option<Config> {
    match result {
        Ok((config, need_restart)) => {
            log::set_max_level(config.log_level);
            log::info!("configuration read again");
            if !need_restart.is_empty() {
                log::warn!("changed, but only a restart applies it: {}", need_restart.join(", "));
            }
            handle.reload(config.clone());
            Some(config)
        }
        Err(error) => {
            log::error!("configuration not changed: {error}");
            None
        }
    }
}
