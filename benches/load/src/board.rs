//! The messages between the coordinator and the generator threads while a run is on.
//!
//! Duty: the phase and its times downwards, counters upwards, as atomics that no thread waits for.
//! One eventfd per thread signals a change. Final results travel by value when a thread ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::spread::Spread;

/// The phase of the run. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Connections are made, up to the goal.
    Connect,
    /// All connections are decided; no load.
    Hold,
    /// The scenario does what it needs before there can be load.
    Prepare,
    /// Load, not measured.
    Warmup,
    /// Load, measured.
    Measure,
    /// Load, measured, while everyone is cut off and comes back; storm only, the others pass
    /// through.
    Storm,
    /// No new messages; those under way may arrive.
    Drain,
    /// Connections are closed.
    Close,
}

const PHASES: [Phase; 8] = [
    Phase::Connect,
    Phase::Hold,
    Phase::Prepare,
    Phase::Warmup,
    Phase::Measure,
    Phase::Storm,
    Phase::Drain,
    Phase::Close,
];

impl Phase {
    /// The phase after this one.
    pub(crate) fn next(self) -> Option<Self> {
        PHASES.get(self as usize + 1).copied()
    }
}

/// Written by the coordinator, read by all. Threads of other processes have a copy, see [`Orders`].
#[derive(Debug, Default)]
pub(crate) struct Board {
    phase: AtomicU8,
    /// How many connections of all threads together to make.
    goal: AtomicUsize,
    load_ns: AtomicU64,
    measure_ns: AtomicU64,
    drain_ns: AtomicU64,
    tick: AtomicU64,
}

/// A board as it travels to another process.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Orders {
    phase: Phase,
    goal: usize,
    load_ns: u64,
    measure_ns: u64,
    drain_ns: u64,
    tick: u64,
}

impl Board {
    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Enters `phase` at `now_ns` of the run's clock.
    pub(crate) fn set_phase(&self, phase: Phase, now_ns: u64) {
        match phase {
            Phase::Warmup => self.load_ns.store(now_ns, Ordering::Release),
            Phase::Measure => self.measure_ns.store(now_ns, Ordering::Release),
            Phase::Drain => self.drain_ns.store(now_ns, Ordering::Release),
            _ => {}
        }
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(crate) fn goal(&self) -> usize {
        self.goal.load(Ordering::Acquire)
    }

    pub(crate) fn set_goal(&self, goal: usize) {
        self.goal.store(goal, Ordering::Release);
    }

    /// When load began: open loop schedules count from here.
    pub(crate) fn load_ns(&self) -> u64 {
        self.load_ns.load(Ordering::Acquire)
    }

    /// When load ended: what was due before is still sent.
    pub(crate) fn drain_ns(&self) -> u64 {
        self.drain_ns.load(Ordering::Acquire)
    }

    /// When measuring began.
    pub(crate) fn measure_ns(&self) -> u64 {
        self.measure_ns.load(Ordering::Acquire)
    }

    /// The number of the second: with each one threads hand in the latencies of the last.
    pub(crate) fn tick(&self) -> u64 {
        self.tick.load(Ordering::Acquire)
    }

    pub(crate) fn set_tick(&self, tick: u64) {
        self.tick.store(tick, Ordering::Release);
    }

    pub(crate) fn orders(&self) -> Orders {
        Orders {
            phase: self.phase(),
            goal: self.goal(),
            load_ns: self.load_ns(),
            measure_ns: self.measure_ns(),
            drain_ns: self.drain_ns(),
            tick: self.tick(),
        }
    }

    /// Copies a board of another process.
    pub(crate) fn follow(&self, orders: Orders) {
        self.goal.store(orders.goal, Ordering::Release);
        self.load_ns.store(orders.load_ns, Ordering::Release);
        self.measure_ns.store(orders.measure_ns, Ordering::Release);
        self.drain_ns.store(orders.drain_ns, Ordering::Release);
        self.tick.store(orders.tick, Ordering::Release);
        // Last: who sees the phase may look at its time.
        self.phase.store(orders.phase as u8, Ordering::Release);
    }
}

/// One thread's counters, or one process', written by it once a turn.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) ready: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) errors: AtomicU64,
    /// Clients that will come back.
    pub(crate) away: AtomicU64,
    /// Connections that ended in a storm.
    pub(crate) cuts: AtomicU64,
    /// Wakes the thread.
    pub(crate) wake: OwnedFd,
}

/// Counters of threads at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Totals {
    pub(crate) ready: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) subscriptions: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) errors: u64,
    pub(crate) away: u64,
    pub(crate) cuts: u64,
}

impl Meter {
    pub(crate) fn new() -> std::io::Result<Self> {
        let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
        Ok(Self {
            ready: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            subscriptions: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            away: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            wake: rustix::event::eventfd(0, flags)?,
        })
    }

    /// Has the thread look at the board.
    pub(crate) fn wake(&self) {
        // Only a full counter can fail, and then the thread is being woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Shows what another process counted.
    pub(crate) fn show(&self, totals: Totals) {
        for (counter, n) in [
            (&self.ready, totals.ready),
            (&self.failed, totals.failed),
            (&self.dropped, totals.dropped),
            (&self.subscriptions, totals.subscriptions),
            (&self.sent, totals.sent),
            (&self.received, totals.received),
            (&self.errors, totals.errors),
            (&self.away, totals.away),
            (&self.cuts, totals.cuts),
        ] {
            counter.store(n, Ordering::Relaxed);
        }
    }
}

impl Totals {
    pub(crate) fn of(meters: &[Arc<Meter>]) -> Self {
        let sum = |field: fn(&Meter) -> &AtomicU64| {
            let counts = meters.iter().map(|meter| field(meter).load(Ordering::Relaxed));
            counts.sum()
        };
        Self {
            ready: sum(|m| &m.ready),
            failed: sum(|m| &m.failed),
            dropped: sum(|m| &m.dropped),
            subscriptions: sum(|m| &m.subscriptions),
            sent: sum(|m| &m.sent),
            received: sum(|m| &m.received),
            errors: sum(|m| &m.errors),
            away: sum(|m| &m.away),
            cuts: sum(|m| &m.cuts),
        }
    }
}

/// The counters of a thread, or of a whole process, for the coordinator.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Note {
    /// All connections up to this goal are decided.
    Connected(usize),
    /// The scenario did what it needs before load, or (false) found that it cannot.
    Prepared(bool),
    /// The latencies of this second.
    Latency(u64, Box<Spread>),
    /// Nothing is under way any more.
    Drained,
    /// The thread is at its end.
    Done,
    /// A process ended before its time, and why.
    Died(String),
}
