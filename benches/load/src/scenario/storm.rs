//! `storm`: everyone is cut off at once and comes back, as clients do.
//!
//! The users only stay connected. Users 2k and 2k+1 of the first few, `--pairs` of them, are the
//! pairs beside. They send messages to each other all the time, at a rate, and show the storm's
//! effect on others. `--cut sockets` spares them; when a gateway goes, they are in the storm like
//! the rest, and come back first of all.
//!
//! After the cut every client goes by [`Returns`]: back-off with jitter, `Retry-After`,
//! `reconnectAfterMs`, and its close code. With several gateways each attempt goes to the next one,
//! as behind a balancer.
//!
//! A message of a pair is lost only if both of its users stayed connected until the end; see
//! [`Stream`].

use std::time::Duration;

use crate::args::{Cut, Options};
use crate::board::{Board, Phase};
use crate::conn::{Failure, envelope};
use crate::message::{Numbers, Template, parse_ack_id};
use crate::net::{End, Net};
use crate::reconnect::{Patience, Returns, Todo, comes_back};
use crate::scenario::behaviour::{SENDS_PER_TURN_MAX, Scenario};
use crate::scenario::schedule::Schedule;
use crate::sequence::Arrival;
use crate::stream::Stream;
use crate::sys::Clock;
use crate::tally::{Tally, count};

/// Answers to a handshake that another attempt would not change.
const FOR_GOOD: [&str; 3] = ["http 400", "http 401", "http 403"];

/// The code that counts connections which we closed at the server's request, among the codes of
/// those that the server closed.
const LEFT: u16 = 1000;

/// Where a client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// It never was connected, or may not come back.
    #[default]
    Out,
    There,
    /// It is to come back.
    Away,
}

/// One thread's users; those of pairs are the first.
#[derive(Debug)]
pub(crate) struct Storm {
    places: Vec<Place>,
    away: u64,
    returns: Returns,
    /// From each user of a pair to the other.
    streams: Vec<Stream>,
    template: Template,
    clock: Clock,
    cut: Cut,
    schedule: Schedule,
    running: bool,
    /// The next user of a pair to send.
    turn: usize,
    measure_ns: u64,
}

impl Storm {
    /// The users of worker number `worker`, the first of whom has number `first_user`.
    pub(crate) fn new(options: &Options, clock: Clock, worker: usize, first_user: usize, connections: usize) -> Self {
        let beside = (2 * options.pairs()).saturating_sub(first_user).min(connections);
        // The pairs are in the first workers: these share the rate.
        let workers = (0..options.workers()).filter(|worker| options.part(*worker).0 < 2 * options.pairs());
        let rate = options.rate.unwrap_or(1.0);
        Self {
            places: vec![Place::Out; connections],
            away: 0,
            returns: Returns::new(Patience::of(options), options.seed() + worker as u64, connections),
            streams: (0..beside).map(|_| Stream::default()).collect(),
            template: Template::message(&options.connect.user_prefix, options.load.payload_bytes, true),
            clock,
            cut: options.cut(),
            schedule: Schedule::new(rate, worker, workers.count()),
            running: false,
            turn: 0,
            measure_ns: u64::MAX,
        }
    }

    fn next_due_ns(&self) -> Option<u64> {
        let running = self.running && !self.streams.is_empty();
        running.then(|| self.schedule.next_ns()).flatten()
    }

    /// Sends what was due at `intended_ns`, if there is anybody to do so.
    fn send(&mut self, net: &mut Net, intended_ns: u64, now_ns: u64) {
        let index = self.turn;
        self.turn = (self.turn + 1) % self.streams.len();
        if self.places[index] != Place::There {
            return;
        }
        if intended_ns >= self.measure_ns {
            net.tally.lag.record(now_ns.saturating_sub(intended_ns));
        }
        let (sender, to) = (net.user(index), net.user(index ^ 1));
        let sequence = self.streams[index].send(self.places[index ^ 1] == Place::There);
        net.tally.sent += 1;
        let numbers = Numbers {
            sequence,
            sender,
            intended_ns,
        };
        self.template.write(net.out(index), to, sequence, numbers);
        net.flush();
    }

    fn handle_message(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        let Ok(numbers) = self.template.read(text) else {
            net.tally.corrupted += 1;
            return;
        };
        let peer = index ^ 1;
        let stream = self.streams.get_mut(peer).filter(|_| numbers.sender == net.user(peer));
        match stream.and_then(|stream| stream.arrive(numbers.sequence)) {
            None => {
                net.tally.misrouted += 1;
                return;
            }
            Some(Arrival::Duplicate) => {
                net.tally.duplicates += 1;
                return;
            }
            Some(Arrival::Reordered) => net.tally.reordered += 1,
            Some(Arrival::InOrder) => {}
        }
        net.tally.received += 1;
        let latency_ns = now_ns.saturating_sub(numbers.intended_ns);
        let measured = numbers.intended_ns >= self.measure_ns;
        net.record_latency(peer, index, latency_ns, measured);
        if measured {
            net.tally.storm.beside.push((numbers.intended_ns, latency_ns));
        }
    }

    /// A client is not connected any more, and does or does not come back.
    fn lose(&mut self, net: &mut Net, index: usize, stays_away: Option<String>, now_ns: u64) {
        if self.places[index] == Place::There {
            if net.storm {
                net.tally.storm.begin_ns.get_or_insert(now_ns);
            }
            if let Some(stream) = self.streams.get_mut(index) {
                stream.interrupt_sender();
            }
            if let Some(stream) = self.streams.get_mut(index ^ 1) {
                stream.interrupt_receiver();
            }
        }
        self.away -= u64::from(self.places[index] == Place::Away);
        match stays_away {
            Some(reason) => {
                count(&mut net.tally.storm.stayed_away, &reason);
                self.places[index] = Place::Out;
                self.returns.forget(index);
            }
            None => {
                self.places[index] = Place::Away;
                self.away += 1;
            }
        }
    }

    fn begin(&mut self, net: &mut Net) {
        net.storm = true;
        if self.cut == Cut::Sockets {
            for index in (self.streams.len()..self.places.len())
                .filter(|index| net.is_ready(*index))
                .collect::<Vec<_>>()
            {
                net.cut(index);
            }
        }
    }
}

impl Scenario for Storm {
    fn handle_text(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        let envelope = envelope(text);
        match envelope.kind.as_str() {
            "message" => self.handle_message(net, index, text, now_ns),
            "ack" if index < self.streams.len() => {
                let status = envelope.status.unwrap_or_default();
                let number = envelope.id.and_then(|id| parse_ack_id(id.as_bytes()));
                match number.filter(|number| *number < self.streams[index].sent()) {
                    Some(number) => self.streams[index].answer(number, matches!(&*status, "delivered" | "routed")),
                    None => net.tally.acks_unexpected += 1,
                }
                count(&mut net.tally.acks, &status);
            }
            "shutdown" => {
                net.tally.note_other(text);
                let after = Duration::from_millis(envelope.reconnect_after_ms.unwrap_or_default());
                self.returns.shutdown(index, after, now_ns);
            }
            _ => net.tally.note_other(text),
        }
    }

    fn handle_phase(&mut self, net: &mut Net, phase: Phase, board: &Board) {
        match phase {
            Phase::Warmup => {
                self.schedule.begin(board.load_ns());
                self.running = true;
            }
            Phase::Measure => self.measure_ns = board.measure_ns(),
            Phase::Storm => self.begin(net),
            Phase::Drain => self.schedule.end(board.drain_ns()),
            Phase::Close => self.running = false,
            Phase::Connect | Phase::Hold | Phase::Prepare => {}
        }
    }

    fn handle_timeout(&mut self, net: &mut Net, now_ns: u64) {
        while let Some((index, todo)) = self.returns.poll(now_ns) {
            match todo {
                Todo::Leave if net.is_ready(index) => {
                    // As the server asked: this is an end like any other of the storm, and its time
                    // to come back is now.
                    *net.tally.storm.cuts.entry(LEFT).or_default() += 1;
                    net.say_close(index);
                    self.lose(net, index, None, now_ns);
                    self.returns.lost(index, now_ns);
                }
                Todo::Leave => {}
                Todo::Begin => {
                    let attempt = self.returns.attempt(index, now_ns);
                    net.begin_again(index, attempt - 1, now_ns);
                }
                Todo::GiveUp => net.end(index, "timed out".into()),
            }
        }
        let mut now_ns = now_ns;
        for _ in 0..SENDS_PER_TURN_MAX {
            if self.next_due_ns().is_none_or(|due_ns| due_ns > now_ns) {
                break;
            }
            let Some(due_ns) = self.schedule.take() else { break };
            self.send(net, due_ns, now_ns);
            now_ns = self.clock.now_ns();
        }
    }

    fn poll_timeout(&self, _net: &Net) -> Option<u64> {
        self.next_due_ns().into_iter().chain(self.returns.next_ns()).min()
    }

    fn handle_ready(&mut self, net: &mut Net, index: usize, now_ns: u64) {
        if self.places[index] == Place::Away {
            self.away -= 1;
            let attempts = self.returns.ready(index);
            net.tally.storm.back_ns.push(now_ns);
            *net.tally.storm.attempts.entry(attempts).or_default() += 1;
        }
        self.places[index] = Place::There;
    }

    fn handle_gone(&mut self, net: &mut Net, index: usize, end: &End, now_ns: u64) {
        match end {
            // It left as it was asked to, and is on its way back.
            End::Left => {}
            End::Closed(code) if !comes_back(*code) => self.lose(net, index, Some(code.to_string()), now_ns),
            End::Closed(_) | End::Broken => {
                self.lose(net, index, None, now_ns);
                self.returns.lost(index, now_ns);
            }
            End::Refused(Failure {
                close_code: Some(code), ..
            }) if !comes_back(*code) => self.lose(net, index, Some(code.to_string()), now_ns),
            End::Refused(failure) if FOR_GOOD.contains(&&*failure.why) => {
                self.lose(net, index, Some(failure.why.clone()), now_ns);
            }
            End::Refused(failure) => self.returns.refused(index, failure.retry_after, now_ns),
        }
    }

    fn away(&self) -> u64 {
        self.away
    }

    fn is_drained(&self) -> bool {
        self.next_due_ns().is_none() && self.streams.iter().all(|stream| stream.waiting() == 0)
    }

    fn finish(&mut self, tally: &mut Tally, _now_ns: u64) {
        tally.storm.missing = self.away;
        for stream in &self.streams {
            let missing = stream.finish();
            tally.lost += missing.lost;
            tally.away += missing.away;
        }
    }
}
