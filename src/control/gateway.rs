//! A gateway: how it starts, what the rest of the program sees of it, and how it ends.
//!
//! Owned by the thread that started it. It holds the control thread, which holds everything else.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use super::handle::{Handle, OnDrain, Order};
use super::run::{Control, ControlPlan};
use super::shards::{Shards, ShardsPlan, no_random};
use super::thread::Joined;
use super::turn::Exit;
use crate::config::{Config, ConfigError, EngineChoice, Listen};
use crate::engine::Waker;
use crate::lanes::{self, Inboxes};
use crate::router::HomeMap;
use crate::runtime::admin::AdminSocket;
use crate::runtime::preflight::{self, Host};
use crate::runtime::{self, Needed, StartError, cpus, listener};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::shared::clock::Clock;
use crate::tls::Certificates;

/// How long the rings of a start that failed may be on their way out, and how often it is looked
/// whether they have gone.
const RINGS_GO: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A running gateway. Dropping it stops it at once.
#[derive(Debug)]
pub struct Gateway {
    listen: Listen,
    admin: Option<Listen>,
    shared: Arc<Shared>,
    handle: Handle,
    control: Option<JoinHandle<Exit>>,
}

/// One try to start a gateway: what it needs, and what outlives the try.
struct Start<'a> {
    config: &'a Config,
    host: Host,
    handle: Handle,
    orders: Receiver<Order>,
    /// The control thread's: readable when its waker was used.
    descriptor: File,
}

impl Start<'_> {
    fn run(mut self, told: impl FnOnce(Handle)) -> Result<Gateway, StartError> {
        let (config, handle) = (self.config, self.handle);
        let shards = self.host.pinning.cpus.len() as u16;
        let listeners = listener::bind(&config.listen, shards.into())?;
        let listen = listeners.at.clone();
        if config.auth.is_development() && !config.insecure && !listen.is_local() {
            return Err(StartError::OpenDevelopmentMode {
                name: config.listen.clone(),
                at: listen,
            });
        }
        let admin_socket = config.admin.listen.as_ref().map(runtime::admin::bind).transpose()?;
        let admin = admin_socket.as_ref().and_then(AdminSocket::listen);
        // A gateway that has just ended at this address has let its CPUs go by now.
        let pinned = cpus::settle(&mut self.host.pinning, config);
        let host = self.host;
        let Inboxes {
            shards: inboxes,
            control: inbox,
            senders,
            depths,
        } = lanes::inboxes(shards);
        let clock = Clock::start();
        let shared = Arc::new(Shared::new(
            config.gateway_id.clone(),
            config.auth.is_development(),
            host.engine.name(),
            host.pinning.cpus.clone(),
            depths,
        ));
        // Before anything is waited for.
        Settings::new(config, host.connections_max)?;
        warn_of_short_secret(config);
        let certificates = config.tls.as_ref().map(Certificates::read).transpose()?;
        let tls = certificates
            .as_ref()
            .map(|certificates| Arc::clone(certificates.server()));
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(no_random)?;
        let homes = HomeMap::new(shards, key).with_partitions(config.channels.partitions);

        told(handle.clone());
        let plan = ControlPlan {
            config: config.clone(),
            handle: handle.clone(),
            connections_possible: host.connections_possible,
            certificates,
            homes: homes.clone(),
            clock,
            shared: Arc::clone(&shared),
            seed: getrandom::u64().map_err(no_random)?,
            orders: self.orders,
            ending: Arc::clone(&handle.ending),
            waker: handle.waker.clone(),
            descriptor: self.descriptor,
        };
        // It joins the cluster, then waits for the shards.
        let control = Joined::spawn(plan, inbox)?;
        let settings = Arc::new(Settings::with_keys(config, host.connections_max, control.keys())?.with_tls(tls));

        let (sockets, kept) = listeners.listen(config.listen_backlog)?;
        let shards = Shards::start(
            ShardsPlan {
                host: &host,
                clock,
                shared: Arc::clone(&shared),
                settings: Arc::clone(&settings),
                homes,
            },
            inboxes,
            senders,
            sockets,
            handle.waker.clone(),
        )?;
        Ok(Gateway {
            listen,
            admin,
            shared,
            handle,
            control: control.serve(Control::new(shards, (kept, pinned), admin_socket, settings)),
        })
    }
}

impl Gateway {
    /// Starts a gateway and returns when all its shards accept, as one of the cluster if there is
    /// one.
    ///
    /// # Errors
    /// What keeps it from running; nothing is left behind then.
    pub fn start(config: &Config) -> Result<Gateway, StartError> {
        Gateway::start_with(config, |_| {}, || {})
    }

    /// Like [`Gateway::start`]; `told` gets the handle before anything is waited for, so that a
    /// start can be given up: it may wait for Redis for as long as `redis.start_timeout`.
    /// `on_drain` is called once, when a drain is first asked for, before it begins: by whatever
    /// thread asks, which is the control thread if an administrator does, so it must be quick.
    ///
    /// # Errors
    /// What keeps it from running, [`StartError::GivenUp`] among it; nothing is left behind then.
    pub fn start_with(
        config: &Config,
        told: impl FnOnce(Handle),
        on_drain: impl Fn() + Send + Sync + 'static,
    ) -> Result<Gateway, StartError> {
        let (waker, descriptor) = Waker::with_descriptor().map_err(|cause| StartError::System {
            what: "cannot make the control thread's waker",
            cause,
        })?;
        let (orders_sender, orders) = unbounded();
        let handle = Handle {
            orders: orders_sender,
            ending: Arc::new(AtomicBool::new(false)),
            on_drain: OnDrain(Arc::new(on_drain)),
            waker,
        };
        let mut told = Some(told);
        let mut start = |config: &Config| {
            let host = preflight::inspect(config)?;
            let descriptor = descriptor.try_clone().map_err(|cause| StartError::System {
                what: "cannot copy a descriptor",
                cause,
            })?;
            let start = Start {
                config,
                host,
                handle: handle.clone(),
                orders: orders.clone(),
                descriptor,
            };
            start.run(|handle| {
                if let Some(told) = told.take() {
                    told(handle);
                }
            })
        };
        match start(config) {
            // Another process of this user takes of it, too, which nobody could see before.
            Err(error @ StartError::Memlock(Needed { with_rings: true, .. }))
                if config.engine == EngineChoice::Auto =>
            {
                log::warn!("using the epoll engine: {error}");
                let epoll = Config {
                    engine: EngineChoice::Epoll,
                    ..config.clone()
                };
                // The kernel still takes down the rings that were made, and counts them meanwhile.
                let until = Instant::now() + RINGS_GO;
                loop {
                    match start(&epoll) {
                        Err(StartError::Memlock(_)) if Instant::now() < until => std::thread::sleep(TRY_AGAIN),
                        result => break result,
                    }
                }
            }
            result => result,
        }
    }

    /// Where it listens, with the port that the kernel chose if none was given.
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// The address that it listens on; of a Unix socket, which has none, the unspecified one.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.listen {
            Listen::Tcp(addr) => *addr,
            Listen::Name(..) | Listen::Unix(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }

    /// Where administrators are listened to, if that is not the public listener.
    pub fn admin_listen(&self) -> Option<&Listen> {
        self.admin.as_ref()
    }

    /// What it counts and says of itself.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// For ordering it about while [`Gateway::wait`] blocks.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
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
            self.handle.stop();
            self.join();
        }
    }
}

/// It works, so the gateway serves; that a secret is weak shows nowhere else until it is guessed.
fn warn_of_short_secret(config: &Config) {
    if let Some(short) = config.auth.short_secret() {
        log::warn!("auth.key: {short}");
    }
}

/// A configuration that cannot be reloaded leaves the running one in place.
pub fn log_reload(result: Result<(Config, Vec<&'static str>), ConfigError>, handle: &Handle) -> Option<Config> {
    match result {
        Ok((config, need_restart)) => {
            log::set_max_level(config.log_level);
            log::info!("configuration read again");
            warn_of_short_secret(&config);
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
