//! `direct`: users 2k and 2k+1 send messages to each other.
//!
//! Closed loop: each connection keeps N messages to its peer under way. It sends its next one when
//! one of them has arrived there. Both ends of a pair are on one thread, which sees the arrival.
//! (If the receiver answered instead, the messages of a pair would soon travel in one bunch. N = 1
//! would then measure batches of two.) A lost message is not replaced: a server that loses all of
//! them is seen standing still. Open loop: message k is due at `begin + k / rate`, the senders
//! taking turns. A message is late from the moment when it was due, not from when it could be sent.
//! While a socket takes no more, its due messages wait in a queue with their due times. In both,
//! `sent` and `received` count the same things, warm-up included: sent = received + lost.

use std::collections::VecDeque;

use crate::args::Options;
use crate::board::{Board, Phase};
use crate::message::{Numbers, Template};
use crate::net::{End, Net};
use crate::scenario::acks::{ACK, Acks};
use crate::scenario::behaviour::{SENDS_PER_TURN_MAX, Scenario};
use crate::scenario::schedule::Schedule;
use crate::sequence::{Arrival, Sequence};
use crate::sys::Clock;
use crate::tally::Tally;

/// One user. Its peer is the one whose index differs in the last bit.
#[derive(Debug, Default)]
struct User {
    sent: u32,
    received: u32,
    arrived: Sequence,
    acks: Acks,
    /// Due times of messages that the socket did not take yet.
    owed: VecDeque<u64>,
    /// Both of the pair are connected.
    live: bool,
}

/// One thread's pairs.
#[derive(Debug)]
pub(crate) struct Direct {
    users: Vec<User>,
    template: Template,
    /// How a message begins.
    message: &'static [u8],
    clock: Clock,
    ack: bool,
    in_flight: u32,
    /// `None` for closed loop.
    schedule: Option<Schedule>,
    measure_ns: u64,
    /// From the begin of the warm-up; closed loop until the drain, open loop until the end, to send
    /// what was due.
    running: bool,
    /// Users whose pair is connected.
    live: usize,
    /// Closed loop: the next connection to begin. Open loop: the next to send.
    turn: usize,
    /// Messages and acks that live pairs still wait for, owed messages included.
    waiting: u64,
    waiting_since_ns: u64,
}

impl Direct {
    /// Pairs for worker number `worker` with `connections` users.
    pub(crate) fn new(options: &Options, clock: Clock, worker: usize, connections: usize) -> Self {
        let schedule = |rate| Schedule::new(rate, worker, options.workers());
        Self {
            users: (0..connections).map(|_| User::default()).collect(),
            template: options.targets.dialect().message(
                &options.connect.user_prefix,
                options.load.payload_bytes,
                options.load.ack,
            ),
            message: options.targets.dialect().message_prefix(),
            clock,
            ack: options.load.ack,
            in_flight: options.in_flight(),
            schedule: options.rate.map(schedule),
            measure_ns: u64::MAX,
            running: false,
            live: 0,
            turn: connections,
            waiting: 0,
            waiting_since_ns: 0,
        }
    }

    /// When the next message of the open loop is due; `None` after the last.
    fn next_due_ns(&self) -> Option<u64> {
        let schedule = self.schedule.as_ref().filter(|_| self.running && self.live > 0)?;
        schedule.next_ns()
    }

    /// The next message of the open loop, if it was due by `now_ns`.
    fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        self.next_due_ns().filter(|due| *due <= now_ns)?;
        self.schedule.as_mut()?.take()
    }

    /// Sends one message of `index` that was due at `intended_ns`, or remembers that it is owed.
    fn send(&mut self, net: &mut Net, index: usize, intended_ns: u64, now_ns: u64) {
        if self.waiting == 0 {
            self.waiting_since_ns = now_ns;
        }
        self.waiting += 1 + u64::from(self.ack);
        if self.schedule.is_some() && intended_ns >= self.measure_ns {
            // Bytes that wait for the socket from here on wait for the server.
            net.tally.lag.record(now_ns.saturating_sub(intended_ns));
        }
        if net.is_blocked(index) {
            self.users[index].owed.push_back(intended_ns);
        } else {
            self.write(net, index, intended_ns);
        }
    }

    fn write(&mut self, net: &mut Net, index: usize, intended_ns: u64) {
        let (sender, to) = (net.user(index), net.user(index ^ 1));
        let user = &mut self.users[index];
        let numbers = Numbers {
            sequence: user.sent,
            sender,
            intended_ns,
        };
        user.sent += 1;
        net.tally.sent += 1;
        self.template.write(net.out(index), to, numbers.sequence, numbers);
    }

    /// Something that was waited for arrived.
    fn arrived(&mut self, net: &mut Net, now_ns: u64) {
        self.waiting = self.waiting.saturating_sub(1);
        net.tally.silence_ns = net.tally.silence_ns.max(now_ns.saturating_sub(self.waiting_since_ns));
        self.waiting_since_ns = now_ns;
    }

    fn handle_message(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        let numbers = match self.template.read(text) {
            Ok(numbers) => numbers,
            Err(_) => {
                net.tally.corrupted += 1;
                return;
            }
        };
        let peer = index ^ 1;
        if numbers.sender != net.user(peer) || numbers.sequence >= self.users[peer].sent {
            net.tally.misrouted += 1;
            return;
        }
        let user = &mut self.users[index];
        match user.arrived.arrive(numbers.sequence) {
            Arrival::InOrder => {}
            Arrival::Reordered => net.tally.reordered += 1,
            Arrival::Duplicate => {
                net.tally.duplicates += 1;
                return;
            }
        }
        user.received += 1;
        net.tally.received += 1;
        net.record_latency(
            peer,
            index,
            now_ns.saturating_sub(numbers.intended_ns),
            numbers.intended_ns >= self.measure_ns,
        );
        if !self.users[index].live {
            return;
        }
        self.arrived(net, now_ns);
        if self.running && self.schedule.is_none() {
            self.send(net, peer, now_ns, now_ns);
        }
    }

    fn handle_ack(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        let user = &mut self.users[index];
        let asked = if self.ack { user.sent } else { 0 };
        if user.acks.handle(text, asked, &mut net.tally) && user.live {
            self.arrived(net, now_ns);
        }
    }

    /// The messages that the pair of `index` still waits for.
    fn pair_waiting(&self, index: usize) -> u64 {
        let (a, b) = (&self.users[index], &self.users[index ^ 1]);
        let one = |from: &User, to: &User| {
            let owed = from.owed.len() as u64;
            let acks = if self.ack {
                owed + from.acks.missing(from.sent)
            } else {
                0
            };
            owed + acks + u64::from(from.sent - to.received)
        };
        one(a, b) + one(b, a)
    }
}

impl Scenario for Direct {
    fn handle_text(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        if text.starts_with(self.message) {
            self.handle_message(net, index, text, now_ns);
        } else if text.starts_with(ACK) {
            self.handle_ack(net, index, text, now_ns);
        } else {
            // Another order of keys, or another kind of frame.
            match crate::conn::envelope(text).kind.as_str() {
                "message" => self.handle_message(net, index, text, now_ns),
                "ack" => self.handle_ack(net, index, text, now_ns),
                _ => net.tally.note_other(text),
            }
        }
    }

    fn handle_phase(&mut self, net: &mut Net, phase: Phase, board: &Board) {
        match phase {
            Phase::Warmup => {
                for index in 0..self.users.len() {
                    self.users[index].live = net.is_ready(index) && net.is_ready(index ^ 1);
                }
                self.live = self.users.iter().filter(|user| user.live).count();
                if let Some(schedule) = &mut self.schedule {
                    schedule.begin(board.load_ns());
                }
                self.running = true;
                self.turn = 0;
            }
            Phase::Measure => self.measure_ns = board.measure_ns(),
            Phase::Drain => {
                if let Some(schedule) = &mut self.schedule {
                    schedule.end(board.drain_ns());
                }
                self.running = self.schedule.is_some();
            }
            Phase::Close => {
                while self.take_due(u64::MAX).is_some() {
                    net.tally.unsent += 1;
                }
                self.running = false;
            }
            Phase::Connect | Phase::Hold | Phase::Prepare | Phase::Storm => {}
        }
    }

    fn handle_timeout(&mut self, net: &mut Net, now_ns: u64) {
        if !self.running {
            return;
        }
        if self.schedule.is_none() {
            // Closed loop: set the connections going, a few per turn.
            let mut sends = 0;
            while self.turn < self.users.len() && sends < SENDS_PER_TURN_MAX {
                if self.users[self.turn].live {
                    let now_ns = self.clock.now_ns();
                    for _ in 0..self.in_flight {
                        self.send(net, self.turn, now_ns, now_ns);
                    }
                    sends += self.in_flight;
                }
                self.turn += 1;
            }
            return;
        }
        let mut now_ns = now_ns;
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some(due_ns) = self.take_due(now_ns) else {
                break;
            };
            let n = self.users.len();
            let Some(step) = (0..n).find(|step| self.users[(self.turn + step) % n].live) else {
                break;
            };
            let index = (self.turn + step) % n;
            self.turn = (index + 1) % n;
            self.send(net, index, due_ns, now_ns);
            net.flush();
            now_ns = self.clock.now_ns();
        }
    }

    fn poll_timeout(&self, _net: &Net) -> Option<u64> {
        if !self.running {
            return None;
        }
        match self.next_due_ns() {
            Some(due) => Some(due),
            None => (self.turn < self.users.len()).then_some(0),
        }
    }

    fn handle_writable(&mut self, net: &mut Net, index: usize, _now_ns: u64) {
        while !net.is_blocked(index)
            && let Some(intended_ns) = self.users[index].owed.pop_front()
        {
            self.write(net, index, intended_ns);
        }
    }

    fn handle_gone(&mut self, _net: &mut Net, index: usize, _end: &End, _now_ns: u64) {
        if self.users[index].live {
            // The messages under way here will not be waited for: they are lost, and counted so at
            // the end.
            self.waiting = self.waiting.saturating_sub(self.pair_waiting(index));
            self.users[index].live = false;
            self.users[index ^ 1].live = false;
            self.live -= 2;
        }
    }

    fn is_drained(&self) -> bool {
        self.waiting == 0 && self.next_due_ns().is_none()
    }

    fn finish(&mut self, tally: &mut Tally, now_ns: u64) {
        if self.waiting > 0 {
            tally.silence_ns = tally.silence_ns.max(now_ns.saturating_sub(self.waiting_since_ns));
        }
        for index in 0..self.users.len() {
            let user = &self.users[index];
            tally.lost += user.arrived.lost(self.users[index ^ 1].sent);
            tally.unsent += user.owed.len() as u64;
            if self.ack {
                tally.acks_missing += user.acks.missing(user.sent);
            }
        }
    }
}
