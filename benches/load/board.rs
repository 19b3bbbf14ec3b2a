//! What the coordinator and the generator threads tell each other while a run is on.
//!
//! Duty: the phase and its times downwards, counters upwards, as atomics that nobody waits for, and one eventfd per
//! thread to have a change noticed. Final results travel by value when a thread ends.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// What the run is doing. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// No new messages; those under way may arrive.
    Drain,
    /// Connections are closed.
    Close,
}

const PHASES: [Phase; 7] = [
    Phase::Connect,
    Phase::Hold,
    Phase::Prepare,
    Phase::Warmup,
    Phase::Measure,
    Phase::Drain,
    Phase::Close,
];

impl Phase {
    /// The phase after this one.
    pub(crate) fn next(self) -> Option<Self> {
        PHASES.get(self as usize + 1).copied()
    }
}

/// Written by the coordinator, read by all.
#[derive(Debug, Default)]
pub(crate) struct Board {
    phase: AtomicU8,
    /// How many connections of all threads together to make.
    goal: AtomicUsize,
    load_ns: AtomicU64,
    measure_ns: AtomicU64,
    drain_ns: AtomicU64,
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
}

/// One thread's counters, written by it once a turn.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) ready: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Wakes the thread.
    pub(crate) wake: OwnedFd,
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
            wake: rustix::event::eventfd(0, flags)?,
        })
    }

    /// Has the thread look at the board.
    pub(crate) fn wake(&self) {
        // Only a full counter can fail, and then the thread is being woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// What a thread tells the coordinator once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// All connections up to this goal are decided.
    Connected(usize),
    /// The scenario did what it needs before load, or (false) found that it cannot.
    Prepared(bool),
    /// Nothing is under way any more.
    Drained,
    /// The thread is at its end.
    Done,
}
