//! One generator thread: an epoll set, its connections and a scenario.
//!
//! Duty: the loop. It makes connections at the allowed pace, reads, hands frames to the scenario,
//! lets the scenario send due messages, and follows the phases of the board. One read buffer serves
//! all connections; the clock is read once per read. Frames are handled in the buffer: only a frame
//! cut by the end of a read is copied.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;

use rustix::event::{Timespec, epoll};
use rustix::net::RecvFlags;

use crate::args::Options;
use crate::board::{Board, Meter, Note, Phase};
use crate::conn::{Event, State};
use crate::dialect::Heard;
use crate::net::Net;
use crate::procfs;
use crate::scenario::Scenario;
use crate::sys::{self, Clock};
use crate::tally::Tally;
use crate::wire;

const READ_BUFFER_BYTES: usize = 256 * 1024;
const EVENTS_MAX: usize = 512;
/// A turn without events ends after this long, for pacing and timeouts.
const TURN_NS_MAX: u64 = 100_000_000;
/// The server has so long to answer our close frames.
const CLOSE_NS_MAX: u64 = 2_000_000_000;
const WAKE: u64 = u64::MAX;

/// Where one thread gets its orders and leaves its news.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) options: Arc<Options>,
    pub(crate) clock: Clock,
    pub(crate) board: Arc<Board>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) notes: mpsc::Sender<Note>,
}

/// The thread's loop and everything it owns.
pub(crate) struct Driver<S> {
    post: Post,
    net: Net,
    scenario: S,
    buffer: Vec<u8>,
    /// The plain bytes of `buffer`, with TLS.
    plain: Vec<u8>,
    phase: Phase,
    begun: usize,
    /// The goal that was reported as reached.
    reached: usize,
    prepared_told: bool,
    drained_told: bool,
    /// The second that latencies are recorded for.
    tick: u64,
    connect_ns: u64,
    cpu_ns: u64,
    /// Time that this thread waited for a CPU.
    starved_ns: u64,
    measure_ns: u64,
    /// Turns while measuring, and those among them in which nothing came.
    turns: (u64, u64),
    close_deadline_ns: u64,
}

impl<S: Scenario> Driver<S> {
    /// A thread for `connections` users, the first of them with number `first_user`.
    ///
    /// # Errors
    /// The kernel gives no epoll set.
    pub(crate) fn new(post: Post, scenario: S, first_user: u32, connections: usize) -> std::io::Result<Self> {
        let net = Net::new(post.options.clone(), first_user, connections)?;
        epoll::add(
            &net.epoll,
            &post.meter.wake,
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            connect_ns: post.clock.now_ns(),
            post,
            net,
            scenario,
            buffer: vec![0; READ_BUFFER_BYTES],
            plain: vec![],
            phase: Phase::Connect,
            begun: 0,
            reached: 0,
            prepared_told: false,
            drained_told: false,
            tick: 0,
            cpu_ns: 0,
            starved_ns: 0,
            measure_ns: 0,
            turns: (0, 0),
            close_deadline_ns: u64::MAX,
        })
    }

    /// Runs until the connections are closed and returns what was counted.
    pub(crate) fn run(mut self) -> Tally {
        sys::exact_timers();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.follow_board();
            let now_ns = self.post.clock.now_ns();
            self.begin_connections(now_ns);
            self.scenario.handle_timeout(&mut self.net, now_ns);
            self.net.flush();
            self.tell(now_ns);
            let is_over = self.net.open == 0 && self.scenario.is_over();
            if self.phase == Phase::Close && (is_over || now_ns >= self.close_deadline_ns) {
                break;
            }
            let timeout = self.timeout(now_ns);
            events.clear();
            match epoll::wait(
                &self.net.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll_wait on our own descriptors: {error}"),
            }
            // A new phase goes before what it caused: whoever ends a storm's connections announced
            // it first.
            self.follow_board();
            self.turns.0 += 1;
            self.turns.1 += u64::from(events.is_empty());
            for event in &events {
                match event.data.u64() {
                    WAKE => {
                        let _ = rustix::io::read(&self.post.meter.wake, &mut [0; 8]);
                    }
                    index => self.handle_event(index as usize, event.flags),
                }
            }
            self.handle_ends();
        }
        let _ = self.post.notes.send(Note::Done);
        self.scenario.finish(&mut self.net.tally, self.post.clock.now_ns());
        self.net.tally
    }

    fn handle_ends(&mut self) {
        let now_ns = self.post.clock.now_ns();
        while let Some((index, end)) = self.net.gone.pop() {
            // At the end everybody leaves.
            if self.phase < Phase::Close {
                self.scenario.handle_gone(&mut self.net, index, &end, now_ns);
            }
        }
    }

    fn timeout(&self, now_ns: u64) -> Timespec {
        let loaded = (Phase::Warmup..=Phase::Drain).contains(&self.phase);
        let wait_ns = if self.post.options.generator.spin && loaded {
            0
        } else if self.phase == Phase::Connect
            && self.begun < self.share()
            && self.post.options.connect.connect_rate.is_some()
        {
            1_000_000
        } else {
            self.scenario
                .poll_timeout(&self.net)
                .map_or(TURN_NS_MAX, |due| due.saturating_sub(now_ns).min(TURN_NS_MAX))
        };
        Timespec {
            tv_sec: 0,
            tv_nsec: wait_ns as _,
        }
    }

    /// This thread's part of the goal.
    fn share(&self) -> usize {
        let (goal, all) = (self.post.board.goal(), self.post.options.connections());
        (self.net.conns.len() * goal).div_ceil(all).min(self.net.conns.len())
    }

    fn begin_connections(&mut self, now_ns: u64) {
        let share = self.share();
        if self.phase != Phase::Connect || self.begun >= share {
            return;
        }
        let options = self.post.options.clone();
        let allowed = options.connect.connect_rate.map_or(share, |rate| {
            let seconds = (now_ns - self.connect_ns) as f64 / 1e9;
            share.min((seconds * rate / options.workers() as f64) as usize + 1)
        });
        let at_once = options.connect.connecting_max.div_ceil(options.workers());
        while self.begun < allowed && self.begun - self.decided() < at_once {
            self.net.begin(self.begun, now_ns);
            self.begun += 1;
        }
    }

    /// Connections that are ready or failed.
    fn decided(&self) -> usize {
        (self.net.tally.ready + self.net.tally.failed()) as usize
    }

    /// Once a second: what arrived since the last time.
    fn hand_in_latency(&mut self) {
        let tick = self.post.board.tick();
        if tick != self.tick {
            if !self.net.tally.fresh.is_empty() {
                let latency = std::mem::take(&mut self.net.tally.fresh);
                let _ = self.post.notes.send(Note::Latency(self.tick, Box::new(latency)));
            }
            self.tick = tick;
        }
    }

    fn tell(&mut self, now_ns: u64) {
        let (meter, tally) = (&self.post.meter, &self.net.tally);
        meter.ready.store(tally.ready, Relaxed);
        meter.failed.store(tally.failed(), Relaxed);
        meter.dropped.store(tally.dropped(), Relaxed);
        meter.subscriptions.store(tally.subscriptions, Relaxed);
        meter.sent.store(tally.sent, Relaxed);
        meter.received.store(tally.received, Relaxed);
        meter.away.store(self.scenario.away(), Relaxed);
        meter.cuts.store(tally.storm.cuts.values().sum(), Relaxed);
        meter.errors.store(tally.errors.values().sum(), Relaxed);
        self.hand_in_latency();
        let goal = self.post.board.goal();
        if self.phase == Phase::Connect
            && goal > self.reached
            && self.begun >= self.share()
            && self.decided() >= self.begun
        {
            self.reached = goal;
            self.connect_ns = now_ns;
            let _ = self.post.notes.send(Note::Connected(goal));
        }
        if self.phase == Phase::Prepare
            && !self.prepared_told
            && let Some(well) = self.scenario.prepared()
        {
            self.prepared_told = true;
            let _ = self.post.notes.send(Note::Prepared(well));
        }
        if self.phase == Phase::Drain && !self.drained_told && self.scenario.is_drained() {
            self.drained_told = true;
            let _ = self.post.notes.send(Note::Drained);
        }
    }

    /// Acts on new phases, one after the other: the coordinator may be several ahead.
    fn follow_board(&mut self) {
        let target = self.post.board.phase();
        while let Some(phase) = self.phase.next().filter(|phase| *phase <= target) {
            self.enter(phase);
        }
    }

    fn enter(&mut self, phase: Phase) {
        if phase == Phase::Drain {
            self.count_own_cost();
        }
        self.phase = phase;
        match phase {
            Phase::Hold => self.give_up_connecting(),
            Phase::Measure => {
                self.cpu_ns = sys::thread_cpu_ns();
                self.starved_ns = procfs::starved_ns();
                self.measure_ns = self.post.clock.now_ns();
                self.turns = (0, 0);
            }
            Phase::Close => {
                self.close_deadline_ns = self.post.clock.now_ns() + CLOSE_NS_MAX;
                for index in 0..self.net.conns.len() {
                    match self.net.conns[index].state {
                        State::Ready => self.net.say_close(index),
                        State::Closing | State::Closed => {}
                        _ => self.net.end(index, "not ready when the run ended".into()),
                    }
                }
            }
            _ => {}
        }
        self.scenario.handle_phase(&mut self.net, phase, &self.post.board);
    }

    /// How long this thread worked and waited in the measured part.
    fn count_own_cost(&mut self) {
        let cpu_ns = sys::thread_cpu_ns() - self.cpu_ns;
        let wall_ns = (self.post.clock.now_ns() - self.measure_ns).max(1) as f64;
        let tally = &mut self.net.tally;
        tally.cpu_ns = cpu_ns;
        tally.starved = (procfs::starved_ns() - self.starved_ns) as f64 / wall_ns;
        // Spinning uses a whole core by design: then the turns tell.
        tally.busiest = if self.post.options.generator.spin {
            1.0 - self.turns.1 as f64 / self.turns.0.max(1) as f64
        } else {
            cpu_ns as f64 / wall_ns
        };
    }

    /// A connection that is not ready by now counts as failed.
    fn give_up_connecting(&mut self) {
        for index in 0..self.begun {
            if !matches!(
                self.net.conns[index].state,
                State::Ready | State::Closing | State::Closed
            ) {
                self.net.end(index, "timed out".into());
            }
        }
    }

    fn handle_event(&mut self, index: usize, flags: epoll::EventFlags) {
        if self.net.conns[index].state == State::Connecting {
            self.net.connected(index);
            self.net.flush();
            return;
        }
        if flags.contains(epoll::EventFlags::OUT) && self.net.writable(index) {
            self.scenario
                .handle_writable(&mut self.net, index, self.post.clock.now_ns());
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            self.read(index);
        }
        self.net.flush();
    }

    fn read(&mut self, index: usize) {
        let Some(socket) = &self.net.conns[index].socket else {
            return;
        };
        match rustix::net::recv(socket.as_fd(), &mut self.buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.net.end(index, "end of stream without a close frame".into()),
            Ok((bytes, _)) => {
                let now_ns = self.post.clock.now_ns();
                let buffer = std::mem::take(&mut self.buffer);
                let mut plain = std::mem::take(&mut self.plain);
                match self.net.open(index, &buffer[..bytes], &mut plain) {
                    Ok(false) => self.handle_bytes(index, &buffer[..bytes], now_ns),
                    Ok(true) => self.handle_bytes(index, &plain, now_ns),
                    Err(why) => self.net.end(index, why.into()),
                }
                plain.clear();
                self.plain = plain;
                self.buffer = buffer;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => self.net.end(index, std::io::Error::from(error).to_string().into()),
        }
    }

    fn handle_bytes(&mut self, index: usize, bytes: &[u8], now_ns: u64) {
        let mut joined = std::mem::take(&mut self.net.conns[index].partial);
        let input = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        let mut at = 0;
        loop {
            let dialect = self.post.options.targets.dialect();
            match dialect.handle_input(&mut self.net.conns[index].state, &input[at..]) {
                Ok(Some((taken, event))) => {
                    at += taken;
                    self.handle(index, event, now_ns);
                }
                Ok(None) => break,
                Err(why) => {
                    self.net.end(index, why);
                    return;
                }
            }
        }
        if at < input.len() {
            self.net.conns[index].partial = input[at..].to_vec();
        }
    }

    fn handle_text(&mut self, index: usize, mut frame: &[u8], now_ns: u64) {
        let dialect = self.post.options.targets.dialect();
        while !frame.is_empty() {
            let (text, rest) = dialect.first(frame);
            match dialect.hear(text) {
                Heard::ForScenario => self.scenario.handle_text(&mut self.net, index, text, now_ns),
                Heard::Answer(answer) => drop(wire::write_frame(self.net.out(index), wire::TEXT, answer)),
                Heard::Ignored => {}
            }
            frame = rest;
        }
    }

    fn handle(&mut self, index: usize, event: Event<'_>, now_ns: u64) {
        match event {
            Event::Text(text) => self.handle_text(index, text, now_ns),
            Event::Upgraded => {
                self.net.upgraded(index);
                if self.post.options.targets.dialect().is_silent() {
                    self.net.conns[index].state = State::Ready;
                    self.handle(index, Event::Ready(None), now_ns);
                }
            }
            Event::Ready(gateway) => {
                self.net.ready(index, gateway, now_ns);
                self.scenario.handle_ready(&mut self.net, index, now_ns);
            }
            Event::Ping(payload) => {
                self.net.tally.pings += 1;
                wire::write_frame(self.net.out(index), wire::PONG, payload);
            }
            Event::Pong => {}
            Event::Close(code) => self.net.close_received(index, code),
        }
    }
}
