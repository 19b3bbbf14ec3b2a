//! The link to the other gateways: the cluster's rules, and the store that carries out what they ask.
//!
//! Owned by the control thread. Here is where a gateway joins before its first shard runs, and leaves after its last
//! client has gone.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::Exit;
use super::jwks::{FetchedKeys, Fetcher};
use super::run::{Control, ControlPlan, Turns, Woken};
use crate::cluster::seal::Keyring;
use crate::cluster::store::StoreEvent;
use crate::cluster::{Cluster, Identity, Subscription};
use crate::config::{Config, CredentialSource, RedisConfig};
use crate::jws::KeySet;
use crate::lanes::{Lanes, Mailboxes, control_id};
use crate::redis::pair::BrokerPair;
use crate::runtime::{StartError, cpus};
use crate::shared::{Clock, Now, Shared};

/// How long giving back the lease may take.
const FINISH_MAX: Duration = Duration::from_millis(500);

/// A control thread that has joined its cluster, if there is one, and waits for its shards. Should it not get them, it
/// leaves the cluster, and dropping this waits until it has.
pub(super) struct Joined {
    thread: Option<JoinHandle<Exit>>,
    keys: Option<Arc<KeySet>>,
    control: Option<oneshot::Sender<Control>>,
}

impl Joined {
    /// Starts the control thread and waits until it has joined.
    pub(super) fn spawn(plan: ControlPlan) -> Result<Joined, StartError> {
        let system = |what: &'static str| move |cause: std::io::Error| StartError::System { what, cause };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("cannot make the control thread's runtime"))?;
        let (joined_sender, joined) = oneshot::channel();
        let (control, control_receiver) = oneshot::channel();
        let control_cpu = plan.config.control_cpu;
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Some(Err(error)) = control_cpu.map(cpus::pin) {
                    log::warn!("the control thread is not pinned: {error}");
                }
                let local = LocalSet::new();
                local.block_on(&runtime, live(plan, joined_sender, control_receiver))
            })
            .map_err(system("cannot start the control thread"))?;
        match joined.blocking_recv() {
            Ok(Ok(keys)) => Ok(Joined {
                thread: Some(thread),
                keys,
                control: Some(control),
            }),
            Ok(Err(error)) => {
                drop(control);
                let _ = thread.join();
                Err(error)
            }
            Err(_) => Err(StartError::System {
                what: "the control thread ended",
                cause: std::io::Error::other("it panicked"),
            }),
        }
    }

    /// The keys that tokens are verified with, if they come from a URL.
    pub(super) fn keys(&self) -> Option<&Arc<KeySet>> {
        self.keys.as_ref()
    }

    /// Gives it its shards.
    pub(super) fn serve(mut self, control: Control) -> Option<JoinHandle<Exit>> {
        if let Some(sender) = self.control.take() {
            // If it is gone, joining it tells.
            let _ = sender.send(control);
        }
        self.thread.take()
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // That there will be no shards.
        drop(self.control.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn live(
    plan: ControlPlan,
    joined: oneshot::Sender<Result<Option<Arc<KeySet>>, StartError>>,
    control: oneshot::Receiver<Control>,
) -> Exit {
    let descriptor = plan.descriptor.try_clone();
    let woken = match descriptor.and_then(|descriptor| Woken::new(plan.waker.clone(), descriptor)) {
        Ok(woken) => woken,
        Err(cause) => {
            let what = "cannot watch the control thread's waker";
            let _ = joined.send(Err(StartError::System { what, cause }));
            return Exit::Broken;
        }
    };
    let mut keys = None;
    if let CredentialSource::Jwks(url) = &plan.config.auth.source {
        let first = match Fetcher::start(url, plan.waker.clone()) {
            Ok(fetcher) => FetchedKeys::first(fetcher, &woken, &plan.ending, &plan.config, &plan.shared).await,
            Err(cause) => {
                let what = "cannot start the thread that fetches keys";
                Err(StartError::System { what, cause })
            }
        };
        match first {
            Ok(first) => keys = Some(first),
            Err(error) => {
                let _ = joined.send(Err(error));
                return Exit::Broken;
            }
        }
    }
    let mut link = None;
    if let Some(redis) = &plan.config.redis {
        let mut joining = Link::new(&plan, redis);
        let end = tokio::select! {
            biased;
            () = woken.ending(&plan.ending) => Err(StartError::GivenUp),
            end = joining.join(&plan.shared.clock, &plan.config, redis.start_timeout) => end,
        };
        if let Err(error) = end {
            joining.leave(&plan.shared.clock).await;
            let _ = joined.send(Err(error));
            return Exit::Broken;
        }
        link = Some(joining);
    }
    let _ = joined.send(Ok(keys.as_ref().map(|keys| Arc::clone(&keys.set))));
    let clock = plan.shared.clock;
    match control.await {
        Ok(control) => Turns::new(plan, woken, link, keys, control).live().await,
        Err(_) => {
            // The shards could not start.
            if let Some(link) = link {
                link.leave(&clock).await;
            }
            Exit::Broken
        }
    }
}

/// The cluster's rules and their store.
pub(super) struct Link {
    pub(super) cluster: Cluster,
    broker: BrokerPair,
    /// Came while we waited.
    event: Option<StoreEvent>,
}

impl Link {
    fn new(plan: &ControlPlan, redis: &RedisConfig) -> Self {
        let identity = Identity {
            id: plan.config.gateway_id.clone(),
            seed: plan.seed,
            ttl_ms: plan.config.presence_ttl.as_millis() as u64,
        };
        let now = plan.shared.clock.now();
        let keyring = Keyring::new(redis.keys.iter().map(|key| key.expose()), &redis.prefix);
        let counters = Arc::clone(&plan.shared.cluster.metrics.broker);
        Link {
            cluster: Cluster::new(&identity, plan.homes.clone(), Arc::clone(&plan.shared), now).with_keyring(keyring),
            broker: BrokerPair::start(redis.target.clone(), &redis.prefix, counters),
            event: None,
        }
    }

    /// Until this gateway is one of the cluster.
    async fn join(&mut self, clock: &Clock, config: &Config, timeout: Duration) -> Result<(), StartError> {
        let until_ms = clock.now().mono_ms() + timeout.as_millis() as u64;
        while !self.cluster.is_member() || !self.cluster.knows_others() {
            if self.cluster.is_id_taken() {
                let id = config.gateway_id.clone();
                return Err(StartError::IdTaken { id });
            }
            let now_ms = clock.now().mono_ms();
            if now_ms >= until_ms {
                if self.cluster.is_id_held() {
                    let id = config.gateway_id.clone();
                    return Err(StartError::IdTaken { id });
                }
                let servers = config.redis.as_ref().map(|redis| redis.target.servers.to_string());
                let what = if self.cluster.is_connected() {
                    "does not confirm lease or subscription"
                } else {
                    "does not answer"
                };
                let silent = || format!("Redis at {} {what}", servers.unwrap_or_default());
                return Err(StartError::NoRedis {
                    cause: self.cluster.trouble().map_or_else(silent, str::to_string),
                    waited: timeout,
                });
            }
            self.turn(clock, until_ms).await;
        }
        match self.cluster.odd_one() {
            Some((other, theirs)) => Err(StartError::Partitions {
                other: other.to_string(),
                theirs: *theirs,
                ours: config.channels.partitions,
            }),
            None => Ok(()),
        }
    }

    /// One turn without shards: asks, waits until `until_ms` at the longest, takes what came.
    async fn turn(&mut self, clock: &Clock, until_ms: u64) {
        self.begin_turn(clock.now());
        let due_ms = self.end_turn().map_or(until_ms, |due| due.min(until_ms));
        let time = Duration::from_millis(due_ms.saturating_sub(clock.now().mono_ms()));
        // The store's connections want their turn, however short the time.
        tokio::task::yield_now().await;
        let _ = tokio::time::timeout(time, self.wait_event()).await;
        self.begin_turn(clock.now());
        while let Some(event) = self.next_event() {
            self.cluster.handle_event(event);
        }
    }

    /// The shards are there.
    pub(super) fn attach(&mut self, mailboxes: &Mailboxes, shared: &Shared) {
        let me = control_id(shared.shards.len() as u16);
        self.cluster
            .attach(Lanes::new(me, mailboxes.clone(), Arc::clone(&shared.depths)));
    }

    pub(super) fn begin_turn(&mut self, now: Now) {
        self.cluster.begin_turn(now);
    }

    /// Carries out what the turn brought. Returns when the next one is due, if nothing happens.
    pub(super) fn end_turn(&mut self) -> Option<u64> {
        self.cluster.end_turn();
        while let Some(subscription) = self.cluster.poll_subscription() {
            match subscription {
                Subscription::Begin(channel) => self.broker.subscribe(channel),
                Subscription::End(channel) => self.broker.unsubscribe(&channel),
                Subscription::Renew(channel) => self.broker.renew(&channel),
            }
        }
        while let Some(request) = self.cluster.poll_request() {
            self.broker.submit(request);
        }
        self.cluster.poll_timeout()
    }

    pub(super) fn next_event(&mut self) -> Option<StoreEvent> {
        self.event.take().or_else(|| self.broker.try_next_event())
    }

    /// Until the store says something. Cancel-safe.
    pub(super) async fn wait_event(&mut self) {
        if self.event.is_none() {
            self.event = Some(self.broker.next_event().await);
        }
    }

    /// Nobody is here any more: says so, and tells whether nothing of this gateway is written down any more, or cannot be cleared.
    pub(super) fn has_left(&mut self) -> bool {
        self.cluster.leave();
        self.cluster.has_left() || !self.cluster.is_member()
    }

    /// Gives back the lease, as far as Redis lets us in time.
    pub(super) async fn leave(mut self, clock: &Clock) {
        self.cluster.finish();
        let until_ms = clock.now().mono_ms() + FINISH_MAX.as_millis() as u64;
        while !self.cluster.is_idle() && self.cluster.is_member() && clock.now().mono_ms() < until_ms {
            self.turn(clock, until_ms).await;
        }
    }
}
