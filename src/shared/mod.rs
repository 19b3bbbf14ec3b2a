//! The state that every thread of a gateway may read: its identity, clock, counters and drain flag.
//!
//! One [`Shared`] per gateway, shared by `Arc`. It holds no table and no queue. It has counters
//! with one writer each, one flag, the one word of the admission rate, and rendered documents.

pub mod clock;
mod cluster;
mod gate;
mod rendering;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::ids::ShardId;
use crate::lanes::Depths;
use crate::metrics::{
    ClusterMetrics, Counter, GatewayNumbers, HttpMetrics, JwksMetrics, ProcessMetrics, RefusalReason, ShardMetrics,
};
use crate::settings::Settings;
pub use cluster::{ClusterHealth, ClusterView};
pub use gate::Gate;
pub use rendering::{Claim, RENDER_INTERVAL_MS, Reading, Rendering, Renderings};

/// A shard or control thread that has not turned for this long does not live: parked shards turn
/// once a second.
pub const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The backlog that a late shard may catch up with when it notifies clients of a drain. Shards wake
/// by the millisecond, and many clients may be due in one.
const TELL_SLACK_NS: u64 = 20_000_000;

/// One look at the clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Nanoseconds since the gateway's start; never goes back.
    pub mono_ns: u64,
    /// Unix milliseconds; goes where the host's clock goes.
    pub wall_ms: u64,
}

impl Now {
    /// Milliseconds since the gateway's start.
    pub fn mono_ms(self) -> u64 {
        self.mono_ns / 1_000_000
    }
}

/// Why a handshake that is in order is not taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// The gateway drains.
    Draining,
    /// `limits.connections` are open.
    ConnectionLimit,
    /// `limits.handshakes_per_second` was exceeded.
    AdmissionRate,
    /// The lane to the user's shard is full.
    LaneFull,
    /// The token was not looked at within `auth.timeout`.
    Unverified,
}

impl NotAdmitted {
    /// The text of the 503.
    pub fn text(self) -> &'static str {
        match self {
            NotAdmitted::Draining => "draining: try another gateway",
            NotAdmitted::ConnectionLimit => "the connection limit is reached: try again later",
            NotAdmitted::AdmissionRate => "too many handshakes at once: try again later",
            NotAdmitted::LaneFull => "overloaded: try again later",
            NotAdmitted::Unverified => "the token could not be verified in time: try again later",
        }
    }

    /// Bounds of `Retry-After`, seconds; a random number between them keeps clients from coming
    /// back together.
    pub fn retry_after_range(self) -> (u64, u64) {
        match self {
            NotAdmitted::Draining | NotAdmitted::AdmissionRate | NotAdmitted::LaneFull | NotAdmitted::Unverified => {
                (1, 5)
            }
            NotAdmitted::ConnectionLimit => (5, 30),
        }
    }
}

impl From<NotAdmitted> for RefusalReason {
    fn from(reason: NotAdmitted) -> Self {
        match reason {
            NotAdmitted::Draining => Self::Draining,
            NotAdmitted::ConnectionLimit => Self::ConnectionLimit,
            NotAdmitted::AdmissionRate => Self::AdmissionRate,
            NotAdmitted::LaneFull => Self::LaneFull,
            NotAdmitted::Unverified => Self::CredentialTimeout,
        }
    }
}

/// The state that every thread may read.
#[derive(Debug)]
pub struct Shared {
    /// Unique name of the gateway.
    pub gateway_id: String,
    /// No credential source is configured: users name themselves.
    pub development: bool,
    /// Name of the socket engine.
    pub engine: &'static str,
    /// The CPU of each shard, if pinned.
    pub cpus: Vec<Option<usize>>,
    /// The counters of each shard.
    pub shards: Box<[ShardMetrics]>,
    /// The counters of `admin.listen`. Written by the control thread.
    pub admin: HttpMetrics,
    /// Items under way between shards.
    pub depths: Arc<Depths>,
    /// The state of the cluster.
    pub cluster: ClusterView,
    /// What the kernel says about the process. Written by the control thread.
    pub process: ProcessMetrics,
    /// Keys from a URL.
    pub jwks: JwksMetrics,
    /// The renderings of `/metrics`.
    pub metrics: Renderings,
    /// The renderings of `/stats`.
    pub stats: Renderings,
    /// When the control thread last turned, milliseconds of the gateway's clock.
    pub control_turn_ms: Counter,
    draining: AtomicBool,
    last_health_check_ms: AtomicU64,
    /// Permits taken of `limits.connections`: from when the user is known to the end, also on the
    /// way between shards, where no shard's gauge counts a connection.
    permits: AtomicU64,
    /// When the next handshake is due by the admission rate, nanoseconds of the gateway's clock
    /// (GCRA).
    admission_due_ns: AtomicU64,
    /// When the next client may be notified of a drain, nanoseconds of the gateway's clock (GCRA).
    drain_due_ns: AtomicU64,
    /// The gate of administrators' requests.
    pub gate: Gate,
}

impl Shared {
    /// The state of a gateway that starts now.
    pub fn new(
        gateway_id: String,
        development: bool,
        engine: &'static str,
        cpus: Vec<Option<usize>>,
        depths: Arc<Depths>,
    ) -> Self {
        Shared {
            gateway_id,
            development,
            engine,
            shards: cpus.iter().map(|_| ShardMetrics::default()).collect(),
            cpus,
            admin: HttpMetrics::default(),
            depths,
            cluster: ClusterView::default(),
            process: ProcessMetrics::default(),
            jwks: JwksMetrics::default(),
            metrics: Renderings::default(),
            stats: Renderings::default(),
            control_turn_ms: Counter::default(),
            draining: AtomicBool::new(false),
            last_health_check_ms: AtomicU64::new(0),
            permits: AtomicU64::new(0),
            admission_due_ns: AtomicU64::new(0),
            drain_due_ns: AtomicU64::new(0),
            gate: Gate::default(),
        }
    }

    /// True from the beginning of a drain.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Begins a drain; returns false if one had begun.
    pub fn begin_draining(&self) -> bool {
        !self.draining.swap(true, Ordering::AcqRel)
    }

    /// May one more client be notified of the drain, at one per `every_ns` on the whole gateway?
    /// `Ok` counts it as notified.
    ///
    /// # Errors
    /// When to try again, nanoseconds of the gateway's clock.
    pub fn may_tell(&self, now_ns: u64, every_ns: u64) -> Result<(), u64> {
        // One by one where there is time between two: a limit of ten per second is a tenth of a
        // second each.
        let slack_ns = if every_ns < TELL_SLACK_NS { TELL_SLACK_NS } else { 0 };
        let earliest_ns = now_ns.saturating_sub(slack_ns);
        let next = |due: u64| (due.max(earliest_ns) <= now_ns).then(|| due.max(earliest_ns) + every_ns);
        self.drain_due_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .map(drop)
    }

    /// WebSocket connections of all shards.
    pub fn connections(&self) -> u64 {
        self.shards.iter().map(|shard| shard.connections.get()).sum()
    }

    /// Permits taken of `limits.connections`: connections of all shards, and those on their way
    /// between two.
    pub fn permits(&self) -> u64 {
        self.permits.load(Ordering::Relaxed)
    }

    /// Users of all shards; a user lives on one shard.
    pub fn users(&self) -> u64 {
        self.shards.iter().map(|shard| shard.users.get()).sum()
    }

    /// When health was last requested, Unix milliseconds.
    pub fn last_health_check_ms(&self) -> Option<u64> {
        Some(self.last_health_check_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// May one more handshake go on now? If so it counts against the admission rate. Its permit is
    /// another matter: see [`Shared::take_permit`].
    ///
    /// # Errors
    /// The reason to refuse it.
    pub fn admit(&self, settings: &Settings, now: Now) -> Result<(), NotAdmitted> {
        if self.is_draining() {
            return Err(NotAdmitted::Draining);
        }
        let rate = settings.limits.handshakes_per_second;
        if rate > 0 {
            let interval_ns = 1_000_000_000 / u64::from(rate);
            // One second's worth may come at once.
            let now = now.mono_ns + 1_000_000_000;
            let admitted = self
                .admission_due_ns
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
                    let due = due.max(now - 1_000_000_000) + interval_ns;
                    (due <= now).then_some(due)
                });
            if admitted.is_err() {
                return Err(NotAdmitted::AdmissionRate);
            }
        }
        Ok(())
    }

    /// Undoes an admission of which nothing came.
    pub fn give_back(&self, settings: &Settings) {
        let rate = settings.limits.handshakes_per_second;
        if rate > 0 {
            self.admission_due_ns
                .fetch_sub(1_000_000_000 / u64::from(rate), Ordering::Relaxed);
        }
    }

    /// Takes a permit of `limits.connections`, to be given back with [`Shared::release`]. False if
    /// all are taken.
    pub fn take_permit(&self, settings: &Settings) -> bool {
        let limit = settings.connections_max as u64;
        let more = |taken| (taken < limit).then_some(taken + 1);
        self.permits
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    /// Gives back the permit of a connection, once.
    pub fn release(&self) {
        let before = self.permits.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a permit given back twice");
    }

    /// Is this gateway fit for new clients?
    ///
    /// # Errors
    /// The reasons in words.
    pub fn readiness(&self, settings: &Settings, now: Now) -> Result<(), String> {
        self.last_health_check_ms.store(now.wall_ms, Ordering::Relaxed);
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push("draining".to_string());
        }
        let connections = self.permits();
        if connections >= settings.connections_max as u64 {
            reasons.push(format!(
                "overloaded: {connections} connections, the limit is {}",
                settings.connections_max
            ));
        }
        for (from, to, _) in self.lanes() {
            if self.depths.is_full(from, to) {
                let (from, to) = (self.end_name(from), self.end_name(to));
                reasons.push(format!("overloaded: the lane from shard {from} to shard {to} is full"));
            }
        }
        reasons.extend(self.cluster.trouble());
        if let Err(stalled) = self.liveness(now) {
            reasons.push(stalled);
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(reasons.join("; "))
        }
    }

    /// Does every thread turn?
    ///
    /// # Errors
    /// Which one does not, and since when.
    pub fn liveness(&self, now: Now) -> Result<(), String> {
        let now_ms = now.mono_ms();
        let limit = STALLED_AFTER.as_millis() as u64;
        for (shard, age) in self.turn_ages(now_ms) {
            if age > limit {
                return Err(format!("shard {shard} has not turned for {age} ms"));
            }
        }
        let age = now_ms.saturating_sub(self.control_turn_ms.get());
        if age > limit {
            return Err(format!("the control thread has not turned for {age} ms"));
        }
        Ok(())
    }

    /// How long ago each shard's last turn began, milliseconds.
    pub fn turn_ages(&self, now_ms: u64) -> impl Iterator<Item = (usize, u64)> {
        self.shards
            .iter()
            .map(move |shard| now_ms.saturating_sub(shard.last_turn_ms.get()))
            .enumerate()
    }

    /// All lanes: from, to, items under way. Lanes of the control thread are listed only if there
    /// is a cluster.
    pub fn lanes(&self) -> impl Iterator<Item = (ShardId, ShardId, u32)> {
        let shards = self.shards.len() as u16;
        let ends = if self.cluster.is_alone() { shards } else { shards + 1 };
        (0..ends).flat_map(move |from| {
            (0..ends)
                .filter(move |to| *to != from)
                .map(move |to| (ShardId(from), ShardId(to)))
                .map(|(from, to)| (from, to, self.depths.get(from, to)))
        })
    }

    /// The name of a lane's end: a shard's number, or `control`.
    pub fn end_name(&self, end: ShardId) -> String {
        if end.index() < self.shards.len() {
            end.to_string()
        } else {
            "control".into()
        }
    }
}

/// What is known of the gateway at one time.
#[derive(Debug)]
pub struct SharedAt {
    /// The gateway.
    pub shared: Arc<Shared>,
    /// The time.
    pub now: Now,
}

impl GatewayNumbers for SharedAt {
    fn engine(&self) -> &str {
        self.shared.engine
    }

    fn id(&self) -> &str {
        &self.shared.gateway_id
    }

    fn uptime_ms(&self) -> u64 {
        self.now.mono_ms()
    }

    fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    fn redis_answers(&self) -> Option<bool> {
        (!self.shared.cluster.is_alone()).then(|| self.shared.cluster.health().redis_answers())
    }

    fn turn_ages_ms(&self) -> Box<dyn Iterator<Item = (usize, u64)> + '_> {
        Box::new(self.shared.turn_ages(self.now.mono_ms()))
    }

    fn lanes(&self) -> Box<dyn Iterator<Item = (String, String, u32)> + '_> {
        let named = |(from, to, depth)| (self.shared.end_name(from), self.shared.end_name(to), depth);
        Box::new(self.shared.lanes().map(named))
    }

    fn jwks(&self) -> &JwksMetrics {
        &self.shared.jwks
    }

    fn shards(&self) -> &[ShardMetrics] {
        &self.shared.shards
    }

    fn cluster(&self) -> &ClusterMetrics {
        &self.shared.cluster.metrics
    }

    fn process(&self) -> &ProcessMetrics {
        &self.shared.process
    }

    fn admin(&self) -> &HttpMetrics {
        &self.shared.admin
    }
}
