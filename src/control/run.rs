//! The control thread's turn.
//!
//! Owns the thread, inside a tokio runtime of one thread. One turn: what shards say, what the store says, orders,
//! reports, then time; then requests go to the store and batches to the shards. It waits for any of these.

use std::fs::File;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use tokio::io::unix::AsyncFd;

use super::admin::{ANSWER_MAX, Desk, listener};
use super::jwks::FetchedKeys;
use super::link::Link;
use super::shards::Shards;
use super::watchdog::Watchdog;
use super::{Exit, Handle, Order};
use crate::config::{Config, DrainConfig};
use crate::engine::Waker;
use crate::http::{HttpContext, ListenerKind};
use crate::lanes::{Inbox, LifecycleToShard, ShardCommand, ToControl};
use crate::router::HomeMap;
use crate::runtime::admin::AdminSocket;
use crate::runtime::cpus::PinnedHere;
use crate::runtime::listener::Kept;
use crate::session::drain::DrainPlan;
use crate::settings::Settings;
use crate::shard::run::Report;
use crate::shared::{STALLED_AFTER, Shared};
use crate::tls::Certificates;

/// What a drain takes at the most if `drain.timeout` is less: `shutdown` and the close frames need time to leave.
const FAREWELL_MS: u64 = 1_000;
/// How long the clearing of presence may take when the clients have gone.
const LEAVE_MAX_MS: u64 = 2_000;
/// How often the control thread looks at the shards when nothing else happens.
const WATCH_EVERY_MS: u64 = 500;
/// How often it looks at the files of TLS: who renews a certificate does not wait for it, and three looks cost nothing.
const CERTIFICATES_EVERY_MS: u64 = 2_000;
/// How often the control thread looks whether the last connection between two shards has arrived, and the last answer has left.
const LAST_THINGS_EVERY_MS: u64 = 20;
/// Lane items taken in one turn, so that packets leave while more comes.
const INBOX_ITEMS_PER_TURN: usize = 4_096;
/// Events of the store taken in one turn.
const EVENTS_PER_TURN: usize = 256;

/// What the control thread starts with.
pub(super) struct ControlPlan {
    pub(super) config: Config,
    /// To this thread itself.
    pub(super) handle: Handle,
    pub(super) connections_possible: usize,
    pub(super) certificates: Option<Certificates>,
    pub(super) homes: HomeMap,
    pub(super) shared: Arc<Shared>,
    pub(super) seed: u64,
    pub(super) inbox: Inbox<ToControl>,
    pub(super) orders: Receiver<Order>,
    /// It shall end.
    pub(super) ending: Arc<AtomicBool>,
    pub(super) reports: Receiver<Report>,
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

/// Woken by other threads.
pub(super) struct Woken {
    waker: Waker,
    descriptor: AsyncFd<File>,
}

impl Woken {
    #[allow(
        deprecated,
        reason = "unsound only for types whose descriptor may change; a File's does not"
    )]
    pub(super) fn new(waker: Waker, descriptor: File) -> std::io::Result<Self> {
        Ok(Woken {
            waker,
            descriptor: AsyncFd::new(descriptor)?,
        })
    }

    /// Whoever wakes us after this has to mean it.
    pub(super) fn set_waiting(&self) {
        self.waker.set_waiting();
    }

    /// Until it shall end. For a thread that does nothing else when it is woken. Cancel-safe.
    pub(super) async fn ending(&self, ending: &AtomicBool) {
        loop {
            self.waker.set_waiting();
            if ending.load(Ordering::Acquire) {
                return;
            }
            self.woken().await;
        }
    }

    /// Until somebody wakes us. Cancel-safe.
    pub(super) async fn woken(&self) {
        if let Ok(mut ready) = self.descriptor.readable().await {
            let _ = ready.get_inner().read(&mut [0; 8]);
            ready.clear_ready();
        }
    }
}

/// A drain under way.
struct Drain {
    until_ms: u64,
    shards_left: usize,
    left: u64,
    closed: u64,
    /// The clients have gone, and now the gateway leaves its cluster: until when at most, and how it ends then.
    leaving: Option<(u64, Exit)>,
}

/// The state of the control thread while the gateway runs.
pub(super) struct Turns {
    shared: Arc<Shared>,
    connections_possible: usize,
    /// What the gateway goes by now; of what needs a restart, what it was started with.
    config: Config,
    certificates: Option<Certificates>,
    certificates_due_ms: u64,
    inbox: Inbox<ToControl>,
    orders: Receiver<Order>,
    reports: Receiver<Report>,
    woken: Woken,
    link: Option<Link>,
    keys: Option<FetchedKeys>,
    control: Control,
    desk: Rc<Desk>,
    /// Of `admin.listen`.
    http: Rc<HttpContext>,
    drain: Option<Drain>,
    stalled: Vec<bool>,
    watchdog: Option<Watchdog>,
}

impl Turns {
    pub(super) fn new(
        plan: ControlPlan,
        woken: Woken,
        mut link: Option<Link>,
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
        let shared = Arc::clone(&plan.shared);
        let desk = Desk::new(
            plan.handle,
            mailboxes.clone(),
            plan.homes,
            shared,
            ANSWER_MAX,
            plan.seed,
        );
        if let Some(socket) = control.admin.take()
            && let Err(error) = listener::serve(socket, Rc::clone(&http), Rc::clone(&desk))
        {
            log::error!("admin.listen is not served: {error}");
        }
        if let Some(link) = &mut link {
            link.attach(control.shards.mailboxes(), &plan.shared);
        }
        Turns {
            connections_possible: plan.connections_possible,
            config: plan.config,
            certificates: plan.certificates,
            certificates_due_ms: 0,
            inbox: plan.inbox,
            orders: plan.orders,
            reports: plan.reports,
            woken,
            link,
            desk,
            http,
            keys,
            drain: None,
            stalled: vec![false; control.shards.count()],
            watchdog: Watchdog::of_environment(),
            control,
            shared: plan.shared,
        }
    }

    /// Until the gateway shall end; then it leaves the cluster. The shards are stopped and joined when `self` goes.
    pub(super) async fn live(mut self) -> Exit {
        let exit = loop {
            self.woken.waker.set_running();
            let now = self.shared.clock.now();
            self.shared.control_turn_ms.set(now.mono_ms());
            if let Some(link) = &mut self.link {
                link.begin_turn(now);
            }
            let busy = self.take_mail() | self.take_events();
            if let Some(exit) = self.take_orders().or_else(|| self.take_reports()) {
                break exit;
            }
            self.watch_shards(now.mono_ms());
            self.watch_certificates(now.mono_ms());
            self.carry_out_commands();
            self.take_keys();
            let mut due_ms = now.mono_ms() + WATCH_EVERY_MS;
            if let Some(watchdog) = &mut self.watchdog {
                due_ms = due_ms.min(watchdog.feed(&self.shared, now.mono_ms()));
            }
            if let Some(link) = &mut self.link {
                due_ms = link.end_turn().map_or(due_ms, |due| due.min(due_ms));
                while let Some((ticket, found)) = link.cluster.poll_whereabouts() {
                    self.desk.located(ticket, found);
                }
            }
            match self.drain_over(now.mono_ms()) {
                Ok(exit) => break exit,
                Err(look_ms) => due_ms = due_ms.min(look_ms),
            }
            if busy {
                // The store's connections want their turn, too.
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(due_ms).await;
        };
        // From here on nobody carries out anything.
        self.shared.close_desk();
        if let Some(link) = self.link.take() {
            link.leave(&self.shared.clock).await;
        }
        exit
    }

    async fn wait(&mut self, due_ms: u64) {
        self.woken.waker.set_waiting();
        // Whoever sends after this look sees that we wait.
        let has_keys = self.keys.as_ref().is_some_and(|keys| keys.fetcher.has_news());
        if has_keys || !(self.inbox.is_empty() && self.orders.is_empty() && self.reports.is_empty()) {
            return;
        }
        let now_ns = self.shared.clock.mono_ns();
        let time = Duration::from_nanos((due_ms * 1_000_000).saturating_sub(now_ns));
        if time.is_zero() {
            return tokio::task::yield_now().await;
        }
        let something = async {
            match &mut self.link {
                Some(link) => link.wait_event().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.woken.woken() => {}
            () = something => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    fn take_mail(&mut self) -> bool {
        let mut items = 0;
        while items < INBOX_ITEMS_PER_TURN
            && let Some(batch) = self.inbox.try_next()
        {
            let room = batch.room();
            items += batch.items.len();
            if let Some(link) = &mut self.link {
                link.cluster.handle_batch(batch);
            }
            if let Some(room) = room {
                self.inbox.done(room);
            }
        }
        items > 0
    }

    fn take_events(&mut self) -> bool {
        let mut events = 0;
        while events < EVENTS_PER_TURN
            && let Some(event) = self.link.as_mut().and_then(Link::next_event)
            && let Some(link) = &mut self.link
        {
            events += 1;
            link.cluster.handle_event(event);
        }
        events > 0
    }

    fn take_orders(&mut self) -> Option<Exit> {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Drain => {
                    if self.shared.begin_draining() {
                        self.drain = Some(self.begin_drain());
                    }
                }
                Order::Reload(config) => self.reload(*config),
                Order::Everywhere(command) => {
                    if let Some(link) = &mut self.link {
                        link.cluster.forward(&command);
                    }
                    self.command_shards(&command);
                }
                Order::Forward(command, told) => {
                    // Alone, there is nobody to be told.
                    let link = self.link.as_mut();
                    let _ = told.send(link.is_none_or(|link| link.cluster.forward(&command)));
                }
                Order::Administer(request, answered) => self.desk.take_own(request, answered),
                Order::Locate(ticket, user) => match &mut self.link {
                    Some(link) => link.cluster.inquire(ticket, user),
                    None => self.desk.located(ticket, Some(Vec::new())),
                },
                Order::Stop => return Some(Exit::Stopped),
            }
        }
        None
    }

    fn take_reports(&mut self) -> Option<Exit> {
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Asked(shard, conn, from, request) => self.desk.take(shard, conn, from, request),
                Report::Replied(ticket, reply) => self.desk.replied(ticket, reply),
                Report::Drained(_, count) => {
                    if let Some(drain) = &mut self.drain {
                        drain.shards_left -= 1;
                        drain.left += count.left;
                        drain.closed += count.closed;
                    }
                }
                Report::Ended(shard, result) => {
                    let cause = result.map_or_else(|cause| cause.to_string(), |()| "without being asked".into());
                    log::error!("shard {shard} has ended: {cause}; stopping the gateway");
                    return Some(Exit::Broken);
                }
                Report::KeysWanted => {
                    if let Some(keys) = &self.keys {
                        keys.fetcher.want();
                    }
                }
                Report::Engine(..) | Report::Accepting(_) => {}
            }
        }
        None
    }

    /// What other gateways want all shards to do.
    fn carry_out_commands(&mut self) {
        while let Some(command) = self.link.as_mut().and_then(|link| link.cluster.poll_command()) {
            self.command_shards(&command);
        }
    }

    fn command_shards(&self, command: &ShardCommand) {
        self.control.shards.mailboxes().post_all(|| command.clone());
    }

    fn begin_drain(&mut self) -> Drain {
        let DrainConfig { timeout, per_second } = self.config.drain;
        let (now_ms, timeout_ms) = (self.shared.clock.now().mono_ms(), timeout.as_millis() as u64);
        let connections = self.shared.connections();
        log::info!("draining {connections} connections for at most {timeout:?}");
        let plan = DrainPlan::new(connections, now_ms, timeout_ms, per_second);
        let told = plan.told_in_time(connections, now_ms);
        if told < connections {
            log::warn!(
                "drain.per_second = {per_second} leaves time to tell {told} of {connections} clients within drain.timeout = \
                 {timeout:?}: the others are closed at its end"
            );
        }
        self.control
            .shards
            .mailboxes()
            .post_all(|| LifecycleToShard::Drain(plan));
        Drain {
            // However short it is, what clients are told must get out.
            until_ms: now_ms + timeout_ms.max(FAREWELL_MS),
            shards_left: self.control.shards.count(),
            left: 0,
            closed: 0,
            leaving: None,
        }
    }

    /// The end of a drain, or when to look again. A gateway stays one of its cluster until its last client has gone: so every user is
    /// present and reachable until then.
    fn drain_over(&mut self, now_ms: u64) -> Result<Exit, u64> {
        let Some(drain) = &self.drain else {
            return Err(u64::MAX);
        };
        let (until_ms, exit, look_ms) = match drain.leaving {
            Some((until_ms, exit)) => (until_ms, exit, until_ms),
            // The next turn asks for what leaving takes.
            None => (now_ms + LEAVE_MAX_MS, self.clients_gone(drain, now_ms)?, now_ms),
        };
        if let Some(drain) = &mut self.drain {
            drain.leaving = Some((until_ms, exit));
        }
        let has_left = self.link.as_mut().is_none_or(Link::has_left);
        if has_left || now_ms >= until_ms {
            Ok(exit)
        } else {
            Err(look_ms)
        }
    }

    /// How the drain ends, once its clients are gone or time is up; or when to look again.
    fn clients_gone(&self, drain: &Drain, now_ms: u64) -> Result<Exit, u64> {
        // A connection between two shards has a place, though no shard knows it. Administrators who still wait for an answer, such as
        // the one who asked for this drain, get it.
        let over = drain.shards_left == 0 && self.shared.places() == 0 && self.shared.try_close_desk();
        if !over && now_ms < drain.until_ms {
            let look_ms = if drain.shards_left == 0 {
                now_ms + LAST_THINGS_EVERY_MS
            } else {
                drain.until_ms
            };
            return Err(look_ms.min(drain.until_ms));
        }
        if !over {
            log::warn!(
                "drain: time is up, closing {} connections; {} requests of administrators are not answered",
                self.shared.connections(),
                self.shared.close_desk()
            );
        }
        Ok(Exit::Drained {
            left: drain.left,
            closed: drain.closed + self.shared.connections(),
        })
    }

    /// Takes what the fetcher brought; the shards hear of it in any case, because somebody may wait for it.
    fn take_keys(&mut self) {
        let Some(keys) = &mut self.keys else {
            return;
        };
        let mut changed = false;
        let mut any = false;
        while let Some(fetched) = keys.fetcher.try_next() {
            any = true;
            changed |= keys.handle_fetched(fetched, &self.config, &self.shared);
        }
        if changed {
            self.settle();
        }
        if any {
            self.control
                .shards
                .mailboxes()
                .post_all(|| LifecycleToShard::KeysFetched);
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
        self.control
            .shards
            .mailboxes()
            .post_all(|| LifecycleToShard::Settings(Arc::clone(&settings)));
    }

    /// Reads the files of TLS, if there are any. What is no good changes nothing: a new certificate and its key are two
    /// files, and one of them is written first. True if something changed.
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

    /// Speaks when a shard stops turning, and when it turns again; wakes it, as a last resort against a lost wake.
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
