//! The run as a whole: starts the threads, leads them through the phases, samples the server, shows progress.
//!
//! Duty: time and order. It waits on one channel of notes with a deadline, never sleeps, and touches no connection.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::args::Options;
use crate::board::{Board, Meter, Note, Phase};
use crate::driver::{Driver, Post};
use crate::procfs;
use crate::redis;
use crate::scenario::{Direct, Fanout, Idle, Kind};
use crate::sys::{self, Clock};
use crate::tally::Tally;

const TICK_NS: u64 = 1_000_000_000;
/// What the server allocated and frees again while it accepts is gone after this long.
const SETTLE_NS: u64 = 500_000_000;

/// Counters of all threads at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    ready: u64,
    failed: u64,
    dropped: u64,
    sent: u64,
    received: u64,
    subscriptions: u64,
}

/// Everybody who works in a run, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moment {
    /// One per `--pid`. A process that is gone has cost nothing more.
    pub(crate) servers: Vec<procfs::Sample>,
    pub(crate) generator: procfs::Sample,
    /// None without `--redis`, or when it did not answer.
    pub(crate) redis: Option<redis::Sample>,
}

/// The turning points of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moments {
    /// Before the connections that are measured.
    pub(crate) base: Moment,
    /// When the last one was ready.
    pub(crate) connected: Moment,
    /// A moment later: memory is read here, and what gateways write down late about a new connection is in here.
    pub(crate) settled: Moment,
    /// When all are subscribed, and a moment later.
    pub(crate) subscribed: Moment,
    pub(crate) measure_begin: Moment,
    pub(crate) measure_end: Moment,
}

/// Everything that a report is made from.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    pub(crate) moments: Moments,
    /// Why there are no figures of Redis although they were asked for.
    pub(crate) redis_failure: Option<String>,
    /// Connections made between the samples `base` and `connected`, and how long that took.
    pub(crate) connected: u64,
    pub(crate) connect_seconds: f64,
    pub(crate) measured_seconds: f64,
    pub(crate) measured_received: u64,
    /// Messages received in each second of the measured part.
    pub(crate) per_second: Vec<u64>,
    /// The scenario could do what it needs before load; there was no load otherwise.
    pub(crate) prepared: bool,
    /// Everything under way arrived before the deadline.
    pub(crate) drained: bool,
}

struct Coordinator {
    options: Arc<Options>,
    clock: Clock,
    board: Arc<Board>,
    meters: Vec<Arc<Meter>>,
    notes: mpsc::Receiver<Note>,
    connected: usize,
    prepared: usize,
    unprepared: usize,
    drained: usize,
    done: usize,
    live_progress: bool,
    tick_ns: u64,
    last: Totals,
    per_second: Vec<u64>,
    redis: Option<redis::Client>,
    redis_failure: Option<String>,
}

/// Runs what `options` say.
///
/// # Errors
/// A server's process cannot be looked at, Redis cannot be asked, or the kernel gives no thread or descriptor.
pub(crate) fn run(options: Options) -> Result<Outcome, String> {
    let options = Arc::new(options);
    for pid in &options.pids {
        procfs::sample(&pid.to_string())?;
    }
    let redis = options.redis.as_ref().map(redis::Client::connect).transpose()?;
    if !options.cpus.is_empty() {
        sys::pin(&options.cpus)?;
    }
    let (sender, notes) = mpsc::channel();
    let mut coordinator = Coordinator {
        clock: Clock::start(),
        board: Arc::new(Board::default()),
        meters: vec![],
        notes,
        connected: 0,
        prepared: 0,
        unprepared: 0,
        drained: 0,
        done: 0,
        live_progress: !options.quiet && std::io::stderr().is_terminal(),
        tick_ns: TICK_NS,
        last: Totals::default(),
        per_second: vec![],
        redis,
        redis_failure: None,
        options,
    };
    let threads = coordinator
        .start(&sender)
        .map_err(|error| format!("cannot start the generator: {error}"))?;
    // A thread that panics must not leave us waiting for a note of its.
    drop(sender);
    coordinator.lead(threads)
}

impl Coordinator {
    fn start(&mut self, notes: &mpsc::Sender<Note>) -> std::io::Result<Vec<JoinHandle<Tally>>> {
        let unit = self.options.kind.unit();
        let groups = self.options.connections() / unit;
        let count = self.options.threads;
        (0..count)
            .map(|thread| {
                let (first, end) = (groups * thread / count * unit, groups * (thread + 1) / count * unit);
                let meter = Arc::new(Meter::new()?);
                self.meters.push(meter.clone());
                let post = Post {
                    options: self.options.clone(),
                    clock: self.clock,
                    board: self.board.clone(),
                    meter,
                    notes: notes.clone(),
                };
                std::thread::Builder::new()
                    .name(format!("load-{thread}"))
                    .spawn(move || drive(post, thread, first, end - first))
            })
            .collect()
    }

    fn lead(mut self, threads: Vec<JoinHandle<Tally>>) -> Result<Outcome, String> {
        let options = self.options.clone();
        let mut moments = Moments::default();
        if options.warmup_connections > 0 {
            self.connect(options.warmup_connections);
            self.wait(self.clock.now_ns() + SETTLE_NS, |_| false);
        }
        moments.base = self.sample();
        let (before, connect_ns) = (self.totals().ready, self.clock.now_ns());
        self.connect(options.connections());
        let connect_seconds = (self.clock.now_ns() - connect_ns) as f64 / 1e9;
        moments.connected = self.sample();
        let connected = self.totals().ready - before;
        self.enter(Phase::Hold);
        if !options.pids.is_empty() || self.redis.is_some() {
            self.wait(self.clock.now_ns() + SETTLE_NS, Self::all_gone);
        }
        moments.settled = self.sample();
        let mut measured = (0, 0.0);
        let mut drained = true;
        let prepared = !self.all_gone() && self.prepare(&mut moments);
        if prepared {
            if !options.quiet && !self.live_progress {
                // For scripts that do something while it lasts.
                eprintln!("load begins");
            }
            self.enter(Phase::Warmup);
            let warmup_ns = options.warmup.as_nanos() as u64;
            if options.kind != Kind::Idle && warmup_ns > 0 {
                self.wait(self.clock.now_ns() + warmup_ns, Self::all_gone);
                self.enter(Phase::Measure);
            } else {
                // Nothing may fall between the two.
                self.board.set_phase(Phase::Measure, self.board.load_ns());
                self.wake();
            }
            moments.measure_begin = self.sample();
            let (begin, begin_ns) = (self.totals(), self.clock.now_ns());
            self.last = begin;
            self.tick_ns = begin_ns + TICK_NS;
            self.wait(begin_ns + options.duration.as_nanos() as u64, Self::all_gone);
            moments.measure_end = self.sample();
            let (end, end_ns) = (self.totals(), self.clock.now_ns());
            // The wait ends on the last tick or just before it.
            if end_ns + TICK_NS / 2 > self.tick_ns {
                self.per_second.push(end.received - self.last.received);
            }
            measured = (end.received - begin.received, (end_ns - begin_ns) as f64 / 1e9);
            self.enter(Phase::Drain);
            let deadline = self.clock.now_ns() + options.drain_timeout.as_nanos() as u64;
            drained = self.wait(deadline, |c| c.drained == c.meters.len());
        }
        self.enter(Phase::Close);
        self.wait(u64::MAX, |c| c.done == c.meters.len());
        if self.live_progress {
            eprint!("\r\x1b[K");
        }
        let mut tally = Tally::new();
        for thread in threads {
            tally.merge(thread.join().map_err(|_| "a generator thread panicked")?);
        }
        Ok(Outcome {
            tally,
            moments,
            redis_failure: self.redis_failure,
            connected,
            connect_seconds,
            measured_seconds: measured.1,
            measured_received: measured.0,
            per_second: self.per_second,
            prepared,
            drained,
        })
    }

    /// Has connections made up to `goal`, until all are decided or nothing happens for too long.
    fn connect(&mut self, goal: usize) {
        self.connected = 0;
        self.board.set_goal(goal);
        self.wake();
        self.wait_while_moving(|now| now.ready + now.failed, |c| c.connected == c.meters.len());
    }

    /// Has the scenario do what it needs before load; false if it cannot. Load without it would measure something else.
    fn prepare(&mut self, moments: &mut Moments) -> bool {
        self.enter(Phase::Prepare);
        let answered = self.wait_while_moving(|now| now.subscriptions, |c| c.prepared == c.meters.len());
        let well = answered && self.unprepared == 0;
        if well && self.options.kind == Kind::Fanout {
            if !self.options.pids.is_empty() {
                self.wait(self.clock.now_ns() + SETTLE_NS, Self::all_gone);
            }
            moments.subscribed = self.sample();
        }
        well
    }

    /// Waits until `is_over` (true), or until the count of what was done did not grow for too long.
    fn wait_while_moving(&mut self, done: fn(&Totals) -> u64, is_over: fn(&Self) -> bool) -> bool {
        let patience_ns = self.options.connect_timeout.as_nanos() as u64;
        let mut last = u64::MAX;
        while last != done(&self.totals()) {
            last = done(&self.totals());
            if self.wait(self.clock.now_ns() + patience_ns, is_over) {
                return true;
            }
        }
        false
    }

    fn enter(&mut self, phase: Phase) {
        self.board.set_phase(phase, self.clock.now_ns());
        self.wake();
    }

    fn wake(&self) {
        self.meters.iter().for_each(|meter| meter.wake());
    }

    /// Waits until `is_over` (true) or the deadline (false), ticking once a second.
    fn wait(&mut self, deadline_ns: u64, is_over: impl Fn(&Self) -> bool) -> bool {
        loop {
            if is_over(self) {
                return true;
            }
            let now_ns = self.clock.now_ns();
            if now_ns >= self.tick_ns {
                self.tick();
                continue;
            }
            if now_ns >= deadline_ns {
                return false;
            }
            match self
                .notes
                .recv_timeout(Duration::from_nanos(deadline_ns.min(self.tick_ns) - now_ns))
            {
                Ok(Note::Connected(goal)) => self.connected += usize::from(goal == self.board.goal()),
                Ok(Note::Prepared(well)) => {
                    self.prepared += 1;
                    self.unprepared += usize::from(!well);
                }
                Ok(Note::Drained) => self.drained += 1,
                Ok(Note::Done) => self.done += 1,
                Err(RecvTimeoutError::Timeout) => {}
                // All threads are gone; joining them says why.
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn tick(&mut self) {
        self.tick_ns += TICK_NS;
        let now = self.totals();
        let (sent, received) = (now.sent - self.last.sent, now.received - self.last.received);
        if self.board.phase() == Phase::Measure {
            self.per_second.push(received);
        }
        if self.live_progress {
            let phase = format!("{:?}", self.board.phase()).to_lowercase();
            let made = now.ready - self.last.ready;
            let mut line = format!(
                "{phase}: {} of {} ready (+{made}/s)",
                now.ready,
                self.options.connections()
            );
            if now.subscriptions > 0 {
                line += &format!(", {} subscriptions", now.subscriptions);
            }
            if now.sent > 0 {
                line += &format!(", sent {sent}/s, received {received}/s");
            }
            for (n, what) in [(now.failed, "failed"), (now.dropped, "dropped")] {
                if n > 0 {
                    line += &format!(", {n} {what}");
                }
            }
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        }
        self.last = now;
    }

    /// No connection is left that could do anything.
    fn all_gone(&self) -> bool {
        let totals = self.totals();
        totals.ready == totals.dropped
    }

    fn totals(&self) -> Totals {
        let sum = |field: fn(&Meter) -> &AtomicU64| self.meters.iter().map(|meter| field(meter).load(Relaxed)).sum();
        Totals {
            ready: sum(|m| &m.ready),
            failed: sum(|m| &m.failed),
            dropped: sum(|m| &m.dropped),
            sent: sum(|m| &m.sent),
            received: sum(|m| &m.received),
            subscriptions: sum(|m| &m.subscriptions),
        }
    }

    /// The servers, if we were told their processes, Redis, and ourselves.
    fn sample(&mut self) -> Moment {
        let look = |pid: &u32| procfs::sample(&pid.to_string()).unwrap_or_default();
        let redis = match self.redis.as_mut().map(redis::Client::sample) {
            Some(Ok(sample)) => Some(sample),
            Some(Err(why)) => {
                // A connection that failed once is out of step: ask no more.
                self.redis = None;
                self.redis_failure = Some(why);
                None
            }
            None => None,
        };
        Moment {
            servers: self.options.pids.iter().map(look).collect(),
            generator: procfs::sample("self").unwrap_or_default(),
            redis,
        }
    }
}

fn drive(post: Post, thread: usize, first: usize, connections: usize) -> Tally {
    let options = post.options.clone();
    if let [_, _, ..] = options.cpus[..] {
        // The process may run on these CPUs already; one of them for each thread keeps them apart.
        let _ = sys::pin(&[options.cpus[thread % options.cpus.len()]]);
    }
    let first_user = first as u32;
    let tally = match options.kind {
        Kind::Idle => Driver::new(post, Idle, first_user, connections).map(Driver::run),
        Kind::Direct => {
            let scenario = Direct::new(&options, post.clock, thread, connections);
            Driver::new(post, scenario, first_user, connections).map(Driver::run)
        }
        Kind::Fanout => {
            let scenario = Fanout::new(&options, post.clock);
            Driver::new(post, scenario, first_user, connections).map(Driver::run)
        }
    };
    tally.unwrap_or_else(|error| panic!("no epoll set for a generator thread: {error}"))
}
