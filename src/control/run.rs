//! The control thread while the gateway runs: turns, and waits for what makes the next one due.
//!
//! Owns the thread, inside a tokio runtime of one thread. The turn itself is
//! [`turn`](super::turn)'s; orders, requests, keys and certificates are taken here, between its two
//! halves.

use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::admin::{ANSWER_MAX, AdminService, listener};
use super::handle::{Handle, Order};
use super::jwks::FetchedKeys;
use super::process;
use super::shards::Shards;
use super::turn::{ControlTurn, Exit, Stage};
use super::watchdog::Watchdog;
use super::woken::Woken;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::engine::Waker;
use crate::http::{HttpContext, ListenerKind};
use crate::lanes::{AdminRequest, AdminToControl, LifecycleToShard};
use crate::redis::Broker;
use crate::redis::pair::Pair;
use crate::router::HomeMap;
use crate::runtime::admin::AdminSocket;
use crate::runtime::cpus::PinnedHere;
use crate::runtime::listener::Kept;
use crate::settings::Settings;
use crate::shared::clock::Clock;
use crate::shared::{STALLED_AFTER, Shared};
use crate::tls::Certificates;

/// How often the control thread looks at the shards when nothing else happens.
const WATCH_EVERY_MS: u64 = 500;
/// How often it looks at the files of TLS: who renews a certificate does not wait for it, and three
/// looks cost nothing.
const CERTIFICATES_EVERY_MS: u64 = 2_000;

/// What the control thread starts with.
pub(super) struct ControlPlan {
    pub(super) config: Config,
    /// To this thread itself.
    pub(super) handle: Handle,
    pub(super) connections_possible: usize,
    pub(super) certificates: Option<Certificates>,
    pub(super) homes: HomeMap,
    pub(super) clock: Clock,
    pub(super) shared: Arc<Shared>,
    pub(super) seed: u64,
    pub(super) orders: Receiver<Order>,
    /// It shall end.
    pub(super) ending: Arc<AtomicBool>,
    pub(super) waker: Waker,
    /// Readable when the waker was used while we wait.
    pub(super) descriptor: File,
}

/// What it gets when the shards run.
pub(super) struct Control {
    shards: Shards,
    _held: (Kept, PinnedHere),
    admin: Option<AdminSocket>,
    /// What the shards began with.
    settings: Arc<Settings>,
}

impl Control {
    pub(super) fn new(
        shards: Shards,
        held: (Kept, PinnedHere),
        admin: Option<AdminSocket>,
        settings: Arc<Settings>,
    ) -> Self {
        Control {
            shards,
            _held: held,
            admin,
            settings,
        }
    }
}

/// The state of the control thread while the gateway runs.
pub(super) struct Turns {
    clock: Clock,
    shared: Arc<Shared>,
    connections_possible: usize,
    /// What the gateway goes by now; of what needs a restart, what it was started with.
    config: Config,
    certificates: Option<Certificates>,
    certificates_due_ms: u64,
    turn: ControlTurn<Pair<Broker>>,
    orders: Receiver<Order>,
    woken: Woken,
    keys: Option<FetchedKeys>,
    control: Control,
    admin: Rc<AdminService>,
    /// Of `admin.listen`.
    http: Rc<HttpContext>,
    stalled: Vec<bool>,
    process_due_ms: u64,
    watchdog: Option<Watchdog>,
}

impl Turns {
    pub(super) fn new(
        plan: ControlPlan,
        woken: Woken,
        mut turn: ControlTurn<Pair<Broker>>,
        keys: Option<FetchedKeys>,
        mut control: Control,
    ) -> Self {
        let settings = Arc::clone(&control.settings);
        let http = Rc::new(HttpContext::new(
            Arc::clone(&plan.shared),
            settings,
            ListenerKind::Admin,
            !plan.seed,
        ));
        let mailboxes = control.shards.mailboxes();
        let shared = (Arc::clone(&plan.shared), plan.clock);
        let admin = AdminService::new(
            plan.handle,
            mailboxes.clone(),
            plan.homes,
            shared,
            ANSWER_MAX,
            plan.seed,
        );
        if let Some(socket) = control.admin.take()
            && let Err(error) = listener::serve(socket, Rc::clone(&http), Rc::clone(&admin))
        {
            log::error!("admin.listen is not served: {error}");
        }
        turn.attach(control.shards.mailboxes());
        Turns {
            connections_possible: plan.connections_possible,
            config: plan.config,
            certificates: plan.certificates,
            certificates_due_ms: 0,
            turn,
            orders: plan.orders,
            woken,
            admin,
            http,
            keys,
            stalled: vec![false; control.shards.count()],
            watchdog: Watchdog::of_environment(),
            control,
            clock: plan.clock,
            shared: plan.shared,
            process_due_ms: 0,
        }
    }

    /// Until the gateway has ended and left its cluster. The shards are stopped and joined when
    /// `self` goes.
    pub(super) async fn live(mut self) -> Exit {
        while !self.turn.is_over() {
            self.woken.set_running();
            let now = self.clock.now();
            let busy = self.turn.begin(now);
            self.take_orders();
            self.take_admin_mail();
            self.watch_shards(now.mono_ms());
            self.watch_certificates(now.mono_ms());
            if now.mono_ms() >= self.process_due_ms {
                self.process_due_ms = now.mono_ms() + WATCH_EVERY_MS;
                process::read(&self.shared.process);
            }
            self.take_keys();
            let mut due_ms = now.mono_ms() + WATCH_EVERY_MS;
            if let Some(watchdog) = &mut self.watchdog {
                due_ms = due_ms.min(watchdog.feed(&self.shared, now));
            }
            due_ms = self.turn.end().map_or(due_ms, |due| due.min(due_ms));
            while let Some((ticket, found)) = self.turn.cluster_mut().and_then(Cluster::poll_whereabouts) {
                self.admin.located(ticket, found);
            }
            if busy {
                // The store's connections want their turn, too.
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(due_ms).await;
        }
        leave(&mut self.turn, &self.clock).await;
        self.turn.exit()
    }

    async fn wait(&mut self, due_ms: u64) {
        if self.turn.is_over() {
            return;
        }
        self.woken.set_waiting();
        // Whoever sends after this look sees that we wait.
        let has_keys = self.keys.as_ref().is_some_and(|keys| keys.fetcher.has_news());
        if has_keys || !(self.turn.is_inbox_empty() && self.orders.is_empty()) {
            return;
        }
        let now_ns = self.clock.mono_ns();
        let time = Duration::from_nanos((due_ms * 1_000_000).saturating_sub(now_ns));
        if time.is_zero() {
            return tokio::task::yield_now().await;
        }
        let something = async {
            match self.turn.store_mut() {
                Some(store) => store.ready().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.woken.woken() => {}
            () = something => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Drain => self.turn.begin_drain(&self.config.drain),
                Order::Reload(config) => self.reload(*config),
                Order::Everywhere(command) => self.turn.command_everywhere(&command),
                Order::Forward(command, told) => {
                    // Alone, there is nobody to be told.
                    let cluster = self.turn.cluster_mut();
                    let _ = told.send(cluster.is_none_or(|cluster| cluster.forward(&command)));
                }
                Order::Administer(request, answered) => self.admin.take_own(request, answered),
                Order::Locate(ticket, user) => match self.turn.cluster_mut() {
                    Some(cluster) => cluster.inquire(ticket, user),
                    None => self.admin.located(ticket, Some(Vec::new())),
                },
                Order::Stop => self.turn.finish(Exit::Stopped),
            }
        }
    }

    /// Takes what shards sent that concerns more than the cluster and the drain.
    fn take_admin_mail(&mut self) {
        while let Some((shard, mail)) = self.turn.poll_admin() {
            match mail {
                AdminToControl::Request(asked) => {
                    let AdminRequest { conn, from, request } = *asked;
                    self.admin.take(shard, conn, from, request);
                }
                AdminToControl::Reply(ticket, reply) => self.admin.replied(ticket, reply),
            }
        }
        if self.turn.poll_keys_wanted()
            && let Some(keys) = &self.keys
        {
            keys.fetcher.want();
        }
    }

    /// Takes what the fetcher brought; the shards hear of it in any case, because somebody may wait
    /// for it.
    fn take_keys(&mut self) {
        let Some(keys) = &mut self.keys else {
            return;
        };
        let mut changed = false;
        let mut any = false;
        while let Some(fetched) = keys.fetcher.try_next() {
            any = true;
            changed |= keys.handle_fetched(fetched, &self.config, (&self.shared, self.clock));
        }
        if changed {
            self.settle();
        }
        if any {
            self.turn.post_all(|| LifecycleToShard::KeysFetched);
        }
    }

    fn reload(&mut self, config: Config) {
        self.config = config;
        self.read_certificates();
        self.settle();
    }

    /// Lets all shards go by the configuration and the certificates of now.
    fn settle(&self) {
        let possible = self.connections_possible;
        let wanted = self.config.limits.connections.unwrap_or(possible);
        if wanted > possible {
            log::warn!("limits.connections is {wanted}, but nofile permits {possible}: going by that");
        }
        let connections_max = wanted.min(possible);
        let keys = self.keys.as_ref().map(|keys| &keys.set);
        let tls = self
            .certificates
            .as_ref()
            .map(|certificates| Arc::clone(certificates.server()));
        let settings = match Settings::with_keys(&self.config, connections_max, keys) {
            Ok(settings) => Arc::new(settings.with_tls(tls)),
            Err(error) => return log::error!("configuration not changed: {error}"),
        };
        self.http.settings.replace(Arc::clone(&settings));
        self.turn.post_all(|| LifecycleToShard::Settings(Arc::clone(&settings)));
    }

    /// Reads the files of TLS, if there are any. What is no good changes nothing: a new certificate
    /// and its key are two files, and one of them is written first. True if something changed.
    fn read_certificates(&mut self) -> bool {
        let Some(files) = &self.config.tls else {
            return self.certificates.take().is_some();
        };
        let read = match &mut self.certificates {
            Some(certificates) => certificates.read_again(files),
            none => Certificates::read(files).map(|certificates| {
                *none = Some(certificates);
                true
            }),
        };
        match read {
            Ok(changed) => {
                if changed {
                    log::info!("new connections get the certificate in {:?}", files.cert);
                }
                changed
            }
            Err(error) => {
                log::error!("TLS not changed: {error}");
                false
            }
        }
    }

    /// Reads the files of TLS again when they have changed.
    fn watch_certificates(&mut self, now_ms: u64) {
        if now_ms < self.certificates_due_ms {
            return;
        }
        self.certificates_due_ms = now_ms + CERTIFICATES_EVERY_MS;
        let changed = self.certificates.as_mut().is_some_and(Certificates::have_changed);
        if changed && self.read_certificates() {
            self.settle();
        }
    }

    /// Speaks when a shard stops turning, and when it turns again; wakes it, as a last resort
    /// against a lost wake.
    fn watch_shards(&mut self, now_ms: u64) {
        let limit = STALLED_AFTER.as_millis() as u64;
        for (shard, age) in self.shared.turn_ages(now_ms) {
            if age > limit {
                if !self.stalled[shard] {
                    log::error!("shard {shard} has not turned for {age} ms");
                }
                self.control.shards.mailboxes().shards[shard].wake();
            } else if self.stalled[shard] {
                log::warn!("shard {shard} turns again");
            }
            self.stalled[shard] = age > limit;
        }
    }
}

/// Turns once, without orders and reports: while there are no shards yet, or nobody carries out
/// anything any more. Waits until `until_ms` at the longest.
pub(super) async fn turn_alone(turn: &mut ControlTurn<Pair<Broker>>, clock: &Clock, until_ms: u64) {
    let busy = turn.begin(clock.now());
    let due_ms = turn.end().map_or(until_ms, |due| due.min(until_ms));
    // The store's connections want their turn, however short the time.
    tokio::task::yield_now().await;
    if busy || turn.stage() == Stage::Gone {
        return;
    }
    let time = Duration::from_millis(due_ms.saturating_sub(clock.now().mono_ms()));
    if let Some(store) = turn.store_mut() {
        let _ = tokio::time::timeout(time, store.ready()).await;
    }
}

/// Gives back the lease, as far as Redis lets us in time.
pub(super) async fn leave(turn: &mut ControlTurn<Pair<Broker>>, clock: &Clock) {
    while turn.stage() != Stage::Gone {
        let until_ms = clock.now().mono_ms() + WATCH_EVERY_MS;
        turn_alone(turn, clock, until_ms).await;
    }
}
