//! The run as a whole: starts threads and processes, leads them through the phases, samples the
//! servers.
//!
//! Duty: time and order. It waits on one channel of notes with a deadline, never sleeps, and
//! touches no connection.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::admin;
use crate::args::{Cut, Options};
use crate::board::{Board, Meter, Note, Phase, Totals};
use crate::children::{self, Helper};
use crate::kind::Kind;
use crate::ledger::Ledger;
use crate::procfs;
use crate::progress::Progress;
use crate::redis;
use crate::series::{Row, Series};
use crate::sys::Clock;
use crate::tally::Tally;
use crate::workers;

const TICK_NS: u64 = 1_000_000_000;
/// Memory that the server allocates while it accepts and then frees is gone after this long.
const SETTLE_NS: u64 = 500_000_000;

/// Everybody who works in a run, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moment {
    /// One per `--pid`. A process that is gone has cost nothing more.
    pub(crate) servers: Vec<procfs::Sample>,
    /// Of all processes of the generator.
    pub(crate) generator_user_ns: u64,
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
    /// A moment later: memory is read here, and what gateways write down late about a new
    /// connection is in here.
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
    /// All seconds, from the first connection on.
    pub(crate) series: Vec<Row>,
    /// The scenario could do what it needs before load; there was no load otherwise.
    pub(crate) prepared: bool,
    /// Everything under way arrived before the deadline.
    pub(crate) drained: bool,
}

struct Coordinator {
    options: Arc<Options>,
    clock: Clock,
    board: Arc<Board>,
    /// One for each thread here, and for each other process.
    meters: Vec<Arc<Meter>>,
    helpers: Vec<Helper>,
    notes: mpsc::Receiver<Note>,
    connected: usize,
    prepared: usize,
    unprepared: usize,
    drained: usize,
    done: usize,
    /// A process that is gone: nothing that this run finds means anything.
    died: Option<String>,
    progress: Progress,
    series: Series,
    tick_ns: u64,
    measured: Measured,
    redis: Option<redis::Client>,
    redis_failure: Option<String>,
}

/// The threads and processes that are waited for at the end.
struct Crew {
    threads: Vec<JoinHandle<Tally>>,
    helpers: Vec<JoinHandle<Option<Tally>>>,
}

/// Messages received in the measured part, by second.
#[derive(Debug, Default)]
struct Measured {
    begin: u64,
    per_second: Vec<u64>,
    seconds: f64,
    received: u64,
}

/// Runs what `options` say.
///
/// # Errors
/// A server's process cannot be looked at, or Redis or a gateway does not answer. Or the kernel
/// gives no thread, process or descriptor, or one of the processes died.
pub(crate) fn run(options: Options) -> Result<Outcome, String> {
    let options = Arc::new(options);
    for pid in &options.output.pids {
        procfs::sample(&pid.to_string())?;
    }
    let redis = options.output.redis.as_ref().map(redis::Client::connect).transpose()?;
    let (clock, board) = (Clock::start(), Arc::new(Board::default()));
    let (sender, notes) = mpsc::channel();
    let cannot = |error: std::io::Error| format!("cannot start the generator: {error}");
    let ledger = Ledger::create(&options).map_err(cannot)?;
    let (mut meters, threads) = workers::start(&options, clock, &board, &ledger, &sender).map_err(cannot)?;
    let mut crew = Crew {
        threads,
        helpers: vec![],
    };
    let mut helpers = vec![];
    for number in 1..options.generator.processes {
        let meter = Arc::new(Meter::new().map_err(cannot)?);
        let (helper, thread) =
            children::start(number, clock, &ledger, Arc::clone(&meter), sender.clone()).map_err(cannot)?;
        meters.push(meter);
        helpers.push(helper);
        crew.helpers.push(thread);
    }
    // A thread that panics must not leave us waiting for a note of its.
    drop(sender);
    let pids: Vec<u32> = helpers.iter().map(|helper| helper.pid).collect();
    let coordinator = Coordinator {
        clock,
        board,
        meters,
        helpers,
        notes,
        connected: 0,
        prepared: 0,
        unprepared: 0,
        drained: 0,
        done: 0,
        died: None,
        progress: Progress::new(options.output.quiet, options.connections()),
        series: Series::new(&options.output.pids, &pids),
        tick_ns: TICK_NS,
        measured: Measured::default(),
        redis,
        redis_failure: None,
        options,
    };
    coordinator.lead(crew)
}

impl Coordinator {
    fn lead(mut self, crew: Crew) -> Result<Outcome, String> {
        let options = self.options.clone();
        let mut moments = Moments::default();
        if options.connect.warmup_connections > 0 {
            self.connect(options.connect.warmup_connections);
            self.wait(self.clock.now_ns() + SETTLE_NS, |_| false);
        }
        moments.base = self.sample();
        let (before, connect_ns) = (self.totals().ready, self.clock.now_ns());
        self.connect(options.connections());
        let connect_seconds = (self.clock.now_ns() - connect_ns) as f64 / 1e9;
        moments.connected = self.sample();
        let connected = self.totals().ready - before;
        self.enter(Phase::Hold);
        if !options.output.pids.is_empty() || self.redis.is_some() {
            self.wait(self.clock.now_ns() + SETTLE_NS, Self::all_gone);
        }
        moments.settled = self.sample();
        let prepared = !self.all_gone() && self.prepare(&mut moments);
        let drained = !prepared || self.load(&mut moments)?;
        self.enter(Phase::Close);
        self.wait(u64::MAX, |c| c.done == c.options.workers());
        self.progress.clear();
        let tally = self.gather(crew)?;
        Ok(Outcome {
            tally,
            moments,
            redis_failure: self.redis_failure,
            connected,
            connect_seconds,
            measured_seconds: self.measured.seconds,
            measured_received: self.measured.received,
            per_second: self.measured.per_second,
            series: self.series.finish(),
            prepared,
            drained,
        })
    }

    /// Warm-up, measurement and drain; whether everything under way arrived in time.
    fn load(&mut self, moments: &mut Moments) -> Result<bool, String> {
        let options = self.options.clone();
        self.progress.say("load begins");
        self.enter(Phase::Warmup);
        let warmup_ns = options.load.warmup.as_nanos() as u64;
        if options.kind != Kind::Idle && warmup_ns > 0 {
            self.wait(self.clock.now_ns() + warmup_ns, Self::all_gone);
            self.enter(Phase::Measure);
        } else {
            // Nothing may fall between the two.
            self.board.set_phase(Phase::Measure, self.board.load_ns());
            self.wake();
        }
        moments.measure_begin = self.sample();
        let begin_ns = self.clock.now_ns();
        self.tick_ns = begin_ns + TICK_NS;
        self.measured.begin = self.totals().received;
        if options.kind == Kind::Storm {
            self.storm()?;
        } else {
            self.wait(begin_ns + options.duration().as_nanos() as u64, Self::all_gone);
        }
        moments.measure_end = self.sample();
        let end_ns = self.clock.now_ns();
        self.measured.received = self.totals().received - self.measured.begin;
        self.measured.seconds = (end_ns - begin_ns) as f64 / 1e9;
        // The wait ends on the last tick or just before it.
        if end_ns + TICK_NS / 2 > self.tick_ns {
            let before: u64 = self.measured.per_second.iter().sum();
            self.measured.per_second.push(self.measured.received - before);
        }
        self.enter(Phase::Drain);
        let deadline = self.clock.now_ns() + options.load.drain_timeout.as_nanos() as u64;
        Ok(self.wait(deadline, |c| c.drained == c.options.workers()))
    }

    /// Calm, the cut, everybody's way back, and calm again.
    fn storm(&mut self) -> Result<(), String> {
        let options = self.options.clone();
        let calm_ns = options.calm().as_nanos() as u64;
        self.wait(self.clock.now_ns() + calm_ns, |_| false);
        self.enter(Phase::Storm);
        match options.cut() {
            Cut::Sockets => {}
            Cut::Wait => self.progress.say("storm: waiting for the gateway to go"),
            Cut::Drain => admin::drain(&options)?,
            Cut::Delete => admin::delete(&options)?,
        }
        let deadline = self.clock.now_ns() + options.duration().as_nanos() as u64;
        loop {
            let all_back = |c: &Self| {
                let totals = c.totals();
                totals.cuts > 0 && totals.away == 0
            };
            let is_late = self.clock.now_ns() >= deadline;
            if is_late || !self.wait(deadline, all_back) || self.died.is_some() {
                return Ok(());
            }
            let cuts = self.totals().cuts;
            // Gateways may go one after the other, and a drain takes its time.
            if !self.wait(self.clock.now_ns() + calm_ns, |c| c.totals().cuts > cuts) {
                return Ok(());
            }
        }
    }

    /// The counters of all threads and processes.
    fn gather(&mut self, crew: Crew) -> Result<Tally, String> {
        if let Some(why) = self.died.take() {
            // The remaining processes see the end of their input.
            self.helpers.clear();
            return Err(why);
        }
        let mut tally = workers::join(crew.threads)?;
        for (helper, thread) in self.helpers.iter().zip(crew.helpers) {
            let told = thread.join().ok().flatten();
            let pid = helper.pid;
            tally.merge(
                told.ok_or_else(|| format!("a process of the generator (pid {pid}) died before it told its result"))?,
            );
        }
        // Latencies that it may have sent before.
        while let Ok(note) = self.notes.try_recv() {
            self.hear(note);
        }
        Ok(tally)
    }

    /// Has connections made up to `goal`, until all are decided or nothing happens for too long.
    fn connect(&mut self, goal: usize) {
        self.connected = 0;
        self.board.set_goal(goal);
        self.wake();
        self.wait_while_moving(|now| now.ready + now.failed, |c| c.connected == c.options.workers());
    }

    /// Has the scenario do what it needs before load; false if it cannot. Load without it would
    /// measure something else.
    fn prepare(&mut self, moments: &mut Moments) -> bool {
        self.enter(Phase::Prepare);
        let answered = self.wait_while_moving(|now| now.subscriptions, |c| c.prepared == c.options.workers());
        let well = answered && self.unprepared == 0;
        if well && self.options.kind == Kind::Fanout {
            if !self.options.output.pids.is_empty() {
                self.wait(self.clock.now_ns() + SETTLE_NS, Self::all_gone);
            }
            moments.subscribed = self.sample();
        }
        well
    }

    /// Waits until `is_over` (true), or until the count of what was done did not grow for too long.
    fn wait_while_moving(&mut self, done: fn(&Totals) -> u64, is_over: fn(&Self) -> bool) -> bool {
        let patience_ns = self.options.connect.connect_timeout.as_nanos() as u64;
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

    /// Has everybody look at the board.
    fn wake(&mut self) {
        self.meters.iter().for_each(|meter| meter.wake());
        let orders = self.board.orders();
        self.helpers.iter_mut().for_each(|helper| helper.send(orders));
    }

    /// Waits until `is_over` (true) or the deadline (false), ticking once a second.
    fn wait(&mut self, deadline_ns: u64, is_over: impl Fn(&Self) -> bool) -> bool {
        loop {
            if is_over(self) || self.died.is_some() {
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
            let wait = Duration::from_nanos(deadline_ns.min(self.tick_ns) - now_ns);
            match self.notes.recv_timeout(wait) {
                Ok(note) => self.hear(note),
                Err(RecvTimeoutError::Timeout) => {}
                // All threads are gone; joining them says why.
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn hear(&mut self, note: Note) {
        match note {
            Note::Connected(goal) => self.connected += usize::from(goal == self.board.goal()),
            Note::Prepared(well) => {
                self.prepared += 1;
                self.unprepared += usize::from(!well);
            }
            Note::Latency(row, latency) => self.series.add_latency(row as usize, &latency),
            Note::Drained => self.drained += 1,
            Note::Done => self.done += 1,
            Note::Died(why) => drop(self.died.get_or_insert(why)),
        }
    }

    fn tick(&mut self) {
        let now_ns = self.clock.now_ns();
        // A question to a server may have taken longer than a second.
        self.tick_ns = (self.tick_ns + TICK_NS).max(now_ns);
        let (phase, totals) = (self.board.phase(), self.totals());
        self.series.tick(now_ns, phase, &totals);
        self.board.set_tick(self.series.rows.len() as u64);
        self.wake();
        if (Phase::Measure..=Phase::Storm).contains(&phase) {
            let before: u64 = self.measured.per_second.iter().sum();
            let received = totals.received - self.measured.begin - before;
            self.measured.per_second.push(received);
        }
        if let Some(row) = self.series.rows.last() {
            self.progress.show(phase, row, &totals, self.series.newest_latency());
        }
    }

    /// No connection is left that could do anything.
    fn all_gone(&self) -> bool {
        let totals = self.totals();
        totals.ready == totals.dropped && totals.away == 0
    }

    fn totals(&self) -> Totals {
        Totals::of(&self.meters)
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
        let own = procfs::sample("self").into_iter();
        let helpers = self.helpers.iter().map(|helper| look(&helper.pid));
        Moment {
            servers: self.options.output.pids.iter().map(look).collect(),
            generator_user_ns: own.chain(helpers).map(|sample| sample.user_ns).sum(),
            redis,
        }
    }
}
