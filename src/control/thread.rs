//! The control thread from its start to its end: it fetches keys, joins the cluster, waits for its
//! shards, runs, leaves.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::jwks::{FetchedKeys, Fetcher};
use super::run::{Control, ControlPlan, Turns, leave, turn_alone};
use super::turn::{ControlTurn, Exit, JoinError};
use super::woken::Woken;
use crate::cluster::seal::Keyring;
use crate::cluster::{Cluster, Identity};
use crate::config::{Config, CredentialSource, RedisConfig};
use crate::jws::KeySet;
use crate::lanes::{Inbox, ToControl};
use crate::redis::Broker;
use crate::redis::pair::Pair;
use crate::runtime::{StartError, cpus};
use crate::shared::clock::Clock;

/// A control thread that has joined its cluster, if there is one, and waits for its shards. Should
/// it not get them, it leaves the cluster, and dropping this waits until it has.
pub(super) struct Joined {
    thread: Option<JoinHandle<Exit>>,
    keys: Option<Arc<KeySet>>,
    control: Option<oneshot::Sender<Control>>,
}

impl Joined {
    /// Starts the control thread and waits until it has joined.
    pub(super) fn spawn(plan: ControlPlan, inbox: Inbox<ToControl>) -> Result<Joined, StartError> {
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
                local.block_on(&runtime, live(plan, inbox, joined_sender, control_receiver))
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
    inbox: Inbox<ToControl>,
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
            Ok(fetcher) => {
                FetchedKeys::first(fetcher, &woken, &plan.ending, &plan.config, (&plan.shared, plan.clock)).await
            }
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
    let clock = plan.clock;
    let cluster = plan.config.redis.as_ref().map(|redis| cluster(&plan, redis));
    let mut turn = ControlTurn::new(Arc::clone(&plan.shared), inbox, cluster, clock.now());
    let end = tokio::select! {
        biased;
        () = woken.ending(&plan.ending) => Err(StartError::GivenUp),
        end = join(&mut turn, &clock, &plan.config) => end,
    };
    if let Err(error) = end {
        turn.finish(Exit::Broken);
        leave(&mut turn, &clock).await;
        let _ = joined.send(Err(error));
        return Exit::Broken;
    }
    let _ = joined.send(Ok(keys.as_ref().map(|keys| Arc::clone(&keys.set))));
    match control.await {
        Ok(control) => Turns::new(plan, woken, turn, keys, control).live().await,
        Err(_) => {
            // The shards could not start.
            turn.finish(Exit::Broken);
            leave(&mut turn, &clock).await;
            Exit::Broken
        }
    }
}

/// The cluster's rules and their store.
fn cluster(plan: &ControlPlan, redis: &RedisConfig) -> (Cluster, Pair<Broker>) {
    let identity = Identity {
        id: plan.config.gateway_id.clone(),
        seed: plan.seed,
        ttl_ms: plan.config.presence_ttl.as_millis() as u64,
    };
    let now = plan.clock.now();
    let keyring = Keyring::new(redis.keys.iter().map(|key| key.expose()), &redis.prefix);
    let cluster = Cluster::new(&identity, plan.homes.clone(), Arc::clone(&plan.shared), now).with_keyring(keyring);
    let counters = Arc::clone(&plan.shared.cluster.metrics.broker);
    let broker = Broker::start(redis.target.clone(), &redis.prefix, counters);
    (cluster, Pair::of_broker(broker))
}

/// Until this gateway is one of its cluster, if there is one.
async fn join(turn: &mut ControlTurn<Pair<Broker>>, clock: &Clock, config: &Config) -> Result<(), StartError> {
    let Some(redis) = &config.redis else {
        return Ok(());
    };
    let until_ms = clock.now().mono_ms() + redis.start_timeout.as_millis() as u64;
    loop {
        match turn.has_joined(until_ms) {
            Ok(true) => return Ok(()),
            Ok(false) => turn_alone(turn, clock, until_ms).await,
            Err(error) => return Err(explain(error, config, redis)),
        }
    }
}

fn explain(error: JoinError, config: &Config, redis: &RedisConfig) -> StartError {
    match error {
        JoinError::IdTaken => StartError::IdTaken {
            id: config.gateway_id.clone(),
        },
        JoinError::Partitions { other, theirs } => StartError::Partitions {
            other: other.to_string(),
            theirs,
            ours: config.channels.partitions,
        },
        JoinError::TimeIsUp { connected, cause } => {
            let what = if connected {
                "does not confirm lease or subscription"
            } else {
                "does not answer"
            };
            let silent = || format!("Redis at {} {what}", redis.target.servers);
            StartError::NoRedis {
                cause: cause.unwrap_or_else(silent),
                waited: redis.start_timeout,
            }
        }
    }
}
