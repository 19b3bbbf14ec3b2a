//! An engine in memory: the contract of `shardgate::engine::Engine`, with all the freedom that the
//! contract leaves used at random. Breaking the contract panics.
//!
//! [`Sockets`] is what the kernel holds for one shard. For a turn it is lent, with the wires, as a
//! [`ModelEngine`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use shardgate::engine::{Engine, EngineStats, Event, Payload, SendStatus, SocketKey};

use super::chance::Chance;
use super::reach::Reach;
use super::wire::{Said, Wire};

/// Which wire a descriptor stands for. Descriptors are tokens: nothing is ever read from them.
pub type Tokens = BTreeMap<RawFd, usize>;

/// New connections that one turn takes from the listener's queue.
const ACCEPTS_PER_TURN: usize = 64;
/// As `accept` fails without descriptors.
const EMFILE: i32 = 24;

#[derive(Debug)]
enum Happened {
    Accepted(SocketKey),
    AcceptPaused,
    Received(SocketKey, Vec<u8>),
    Sent(SocketKey, Payload),
    Ended(SocketKey, bool),
    Closed(SocketKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Receive {
    #[default]
    Nothing,
    Once,
    Stream,
}

#[derive(Debug, Default)]
struct Socket {
    generation: u32,
    /// `None`: the slot is free, or will be with `Closed`.
    wire: Option<usize>,
    token: Option<OwnedFd>,
    receive: Receive,
    sending: Option<(Payload, usize)>,
    ended: bool,
    closing: bool,
    /// It closes by a reset.
    resets: bool,
}

/// The sockets of one shard, and what happened to them.
#[derive(Debug, Default)]
pub struct Sockets {
    sockets: Vec<Socket>,
    free: Vec<u32>,
    /// Connections that were not accepted yet.
    backlog: VecDeque<(OwnedFd, usize)>,
    accept_paused: bool,
    accept_held: bool,
    events: VecDeque<Happened>,
    /// The bytes of bulk senders, a queue for each, and the bytes behind them.
    bulk: VecDeque<(SocketKey, VecDeque<Happened>)>,
    /// The bytes that the owner looks at.
    shown: Vec<u8>,
    syscalls: u64,
}

impl Sockets {
    /// A client connects to the listener.
    pub fn connect(&mut self, token: OwnedFd, wire: usize) {
        self.backlog.push_back((token, wire));
    }

    /// Connections that were not accepted yet are lost.
    pub fn close_listener(&mut self, wires: &mut [Wire]) {
        for (_, wire) in self.backlog.drain(..) {
            (wires[wire].gateway_fin, wires[wire].reset) = (true, true);
        }
    }

    /// Number of sockets in the slab.
    pub fn len(&self) -> usize {
        self.sockets.len() - self.free.len()
    }

    /// True if nothing is left: no socket, and none that wants to be accepted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.backlog.is_empty()
    }

    /// Sockets that are not being closed and whose peer is there, with their wires; true: a send is
    /// in flight, as far as the owner knows.
    pub fn open(&self) -> impl Iterator<Item = (usize, bool)> {
        let sending = self.sending();
        self.sockets.iter().filter_map(move |socket| {
            let wire = socket.wire.filter(|_| !socket.closing && !socket.ended)?;
            Some((wire, sending.contains(&wire)))
        })
    }

    /// Sockets that are not being closed, as far as the owner knows.
    pub fn held(&self) -> usize {
        let held = |socket: &&Socket| socket.wire.is_some() && !socket.closing;
        let unheard = |event: &&Happened| matches!(event, Happened::Accepted(_));
        self.sockets.iter().filter(held).count() - self.events.iter().filter(unheard).count()
    }

    /// True if a turn would find something.
    pub fn has_work(&self, wires: &[Wire]) -> bool {
        let accepts = !self.backlog.is_empty() && !self.accept_paused && !self.accept_held;
        accepts || !self.events.is_empty() || !self.bulk.is_empty() || self.sockets.iter().any(|s| s.has_work(wires))
    }

    /// Wires of sockets with a send in flight as far as the owner knows, also where the peer has
    /// ended its side.
    fn sending(&self) -> Vec<usize> {
        let sockets = self.sockets.iter().filter(|socket| socket.sending.is_some());
        let unheard = self.events.iter().filter_map(|event| match event {
            Happened::Sent(key, _) => self.wire_of(*key),
            _ => None,
        });
        sockets.filter_map(|socket| socket.wire).chain(unheard).collect()
    }

    fn get(&self, key: SocketKey) -> Option<&Socket> {
        let socket = self.sockets.get(key.slot as usize)?;
        (socket.generation == key.generation && socket.wire.is_some()).then_some(socket)
    }

    /// True until the owner closes it.
    fn is_open(&self, key: SocketKey) -> bool {
        self.get(key).is_some_and(|socket| !socket.closing)
    }

    fn open_socket(&mut self, key: SocketKey) -> Option<&mut Socket> {
        let is_open = self.is_open(key);
        self.sockets.get_mut(key.slot as usize).filter(|_| is_open)
    }

    fn wire_of(&self, key: SocketKey) -> Option<usize> {
        self.get(key)?.wire
    }

    fn insert(&mut self, token: OwnedFd, wire: usize) -> SocketKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(Socket::default());
            (self.sockets.len() - 1) as u32
        });
        let socket = &mut self.sockets[slot as usize];
        socket.wire = Some(wire);
        socket.token = Some(token);
        SocketKey {
            slot,
            generation: socket.generation,
        }
    }

    fn vacate(&mut self, slot: u32) -> Option<OwnedFd> {
        let socket = &mut self.sockets[slot as usize];
        let token = socket.token.take();
        *socket = Socket {
            generation: socket.generation + 1,
            ..Socket::default()
        };
        self.free.push(slot);
        token
    }

    fn is_bulk(&self, key: SocketKey) -> bool {
        self.bulk.iter().any(|(sender, _)| *sender == key)
    }

    /// Puts the bytes of a bulk sender, and those behind them, into its queue. `fills` gives a
    /// connection its queue.
    fn put_in_line(&mut self, event: Happened, fills: impl FnOnce() -> bool) -> Option<Happened> {
        let (Happened::Received(key, _) | Happened::Ended(key, _)) = event else {
            return Some(event);
        };
        if let Some((_, line)) = self.bulk.iter_mut().find(|(sender, _)| *sender == key) {
            line.push_back(event);
            return None;
        }
        let streams = self.get(key).is_some_and(|socket| socket.receive == Receive::Stream);
        if streams && matches!(event, Happened::Received(..)) && fills() {
            self.bulk.push_back((key, VecDeque::from([event])));
            return None;
        }
        Some(event)
    }

    fn end(&mut self, key: SocketKey, broken: bool) {
        let socket = &mut self.sockets[key.slot as usize];
        socket.ended = true;
        socket.receive = Receive::Nothing;
        self.events.push_back(Happened::Ended(key, broken));
    }

    fn begin_close(&mut self, key: SocketKey, resets: bool) {
        if let Some(socket) = self.open_socket(key) {
            socket.closing = true;
            socket.resets = resets;
            self.bulk.retain(|(sender, _)| *sender != key);
        }
    }
}

impl Socket {
    fn has_work(&self, wires: &[Wire]) -> bool {
        let Some(wire) = self.wire.map(|wire| &wires[wire]) else {
            return false;
        };
        let sends = self.sending.is_some() && (wire.room() > 0 || wire.reset);
        let receives = self.receive != Receive::Nothing && !self.ended;
        let has_input = !wire.to_gateway.is_empty() || wire.reset || wire.client_fin;
        sends || self.closing || (receives && has_input)
    }
}

/// How kind the kernel is in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// All that can happen happens at once, and nothing fails.
    Eager,
    /// Things take any time.
    Lazy,
    /// And the process runs out of descriptors now and then.
    Hostile,
}

/// A ping that left, and for how long its receiver had been silent.
#[derive(Debug)]
pub struct Pinged {
    pub silent_ms: u64,
    /// As the turn began.
    pub silent_at_first_ms: u64,
    /// It may have waited behind another send.
    pub may_be_late: bool,
}

/// The engine of one turn.
pub struct ModelEngine<'a> {
    pub sockets: &'a mut Sockets,
    pub wires: &'a mut [Wire],
    pub tokens: &'a mut Tokens,
    pub chance: &'a mut Chance,
    pub reach: &'a mut Reach,
    pub mood: Mood,
    pub now_ms: u64,
    /// The core's output, as it leaves for the engine, by wire.
    pub said: Vec<(usize, Said)>,
    pub pinged: Vec<Pinged>,
    /// True if bytes moved, or a request was made.
    pub moved: bool,
    was_sending: Vec<usize>,
    /// When peers had last been seen as the turn began, and as deadlines were looked at.
    seen_at_first_ms: BTreeMap<usize, u64>,
    seen_before_ms: BTreeMap<usize, u64>,
}

impl<'a> ModelEngine<'a> {
    pub fn new(
        sockets: &'a mut Sockets,
        (wires, tokens): (&'a mut [Wire], &'a mut Tokens),
        (chance, reach): (&'a mut Chance, &'a mut Reach),
        mood: Mood,
        now_ms: u64,
    ) -> Self {
        ModelEngine {
            was_sending: sockets.sending(),
            sockets,
            wires,
            tokens,
            chance,
            reach,
            mood,
            now_ms,
            said: Vec::new(),
            pinged: Vec::new(),
            moved: false,
            seen_at_first_ms: BTreeMap::new(),
            seen_before_ms: BTreeMap::new(),
        }
    }

    fn is_eager(&self) -> bool {
        self.mood == Mood::Eager
    }

    /// True in `percent` of cases, where the kernel is hostile.
    fn fails(&mut self, percent: usize) -> bool {
        self.mood == Mood::Hostile && self.chance.percent(percent)
    }

    /// Takes connections from the listener's queue.
    fn accept(&mut self) {
        if self.sockets.backlog.is_empty() || self.sockets.accept_paused {
            return;
        }
        if self.fails(3) {
            self.moved = true;
            self.sockets.accept_paused = true;
            return self.sockets.events.push_back(Happened::AcceptPaused);
        }
        let most = match self.sockets.accept_held {
            // One may be under way.
            true => self.chance.below(2),
            false => ACCEPTS_PER_TURN,
        };
        for _ in 0..most {
            let Some((token, wire)) = self.sockets.backlog.pop_front() else {
                break;
            };
            self.moved = true;
            let key = self.sockets.insert(token, wire);
            self.sockets.sockets[key.slot as usize].receive = Receive::Once;
            self.sockets.events.push_back(Happened::Accepted(key));
        }
    }

    /// Lets the kernel work for a while: bytes come in and go out in pieces of any size.
    fn work(&mut self) {
        self.accept();
        for slot in 0..self.sockets.sockets.len() as u32 {
            let socket = &self.sockets.sockets[slot as usize];
            let Some(wire) = socket.wire else {
                continue;
            };
            if !self.is_eager() && self.chance.percent(30) {
                continue;
            }
            let key = SocketKey {
                slot,
                generation: socket.generation,
            };
            // Sends first, so that a socket that closes may still get something out.
            self.go_on_sending(key, wire);
            if self.sockets.sockets[slot as usize].closing {
                if self.is_eager() || self.chance.percent(50) {
                    self.go_on_closing(key, wire);
                }
            } else {
                self.receive(key, wire);
            }
        }
    }

    fn go_on_sending(&mut self, key: SocketKey, wire: usize) {
        let eager = self.is_eager();
        let is_bulk = self.sockets.is_bulk(key);
        let socket = &mut self.sockets.sockets[key.slot as usize];
        let Some((payload, sent)) = &mut socket.sending else {
            return;
        };
        let wire = &mut self.wires[wire];
        let rest = &payload.as_slice()[*sent..];
        let most = rest.len().min(wire.room());
        let len = if eager { most } else { self.chance.below(most + 1) };
        if !wire.reset && len > 0 {
            wire.to_client.extend(&rest[..len]);
            *sent += len;
            self.moved = true;
            if *sent == payload.as_slice().len()
                && let Some((payload, _)) = socket.sending.take()
            {
                self.sockets.events.push_back(Happened::Sent(key, payload));
            }
        } else if wire.reset && !socket.closing {
            self.moved = true;
            // `Ended` comes at most once: after it, and before that of a bulk sender, a send that
            // fails comes back as sent.
            let had_ended = socket.ended;
            if let Some((payload, _)) = socket.sending.take()
                && (had_ended || is_bulk)
            {
                self.sockets.events.push_back(Happened::Sent(key, payload));
            }
            if !had_ended {
                self.sockets.end(key, true);
            }
        }
    }

    fn go_on_closing(&mut self, key: SocketKey, wire: usize) {
        self.moved = true;
        let wire = &mut self.wires[wire];
        // Closing with unread input resets: what the client has not read may be lost to it.
        let resets = self.sockets.sockets[key.slot as usize].resets;
        if resets || (!wire.to_gateway.is_empty() && self.chance.percent(50)) {
            let kept = self.chance.below(wire.to_client.len() + 1);
            wire.to_client.truncate(kept);
        }
        wire.to_gateway.clear();
        wire.gateway_fin = true;
        wire.reset = true;
        // The slot is free when the owner has the event of it.
        let socket = &mut self.sockets.sockets[key.slot as usize];
        socket.wire = None;
        if let Some(token) = socket.token.take() {
            self.tokens.remove(&token.as_raw_fd());
        }
        self.sockets.events.push_back(Happened::Closed(key));
    }

    fn receive(&mut self, key: SocketKey, wire: usize) {
        let socket = &mut self.sockets.sockets[key.slot as usize];
        if socket.receive == Receive::Nothing || socket.ended {
            return;
        }
        let wire = &mut self.wires[wire];
        if wire.reset && (wire.to_gateway.is_empty() || self.chance.percent(50)) {
            self.moved = true;
            wire.to_gateway.clear();
            self.sockets.end(key, true);
        } else if !wire.to_gateway.is_empty() {
            self.moved = true;
            let most = wire.to_gateway.len().min(4096);
            let len = if self.chance.percent(60) {
                most
            } else {
                1 + self.chance.below(most)
            };
            let bytes: Vec<u8> = wire.to_gateway.drain(..len).collect();
            if socket.receive == Receive::Once {
                socket.receive = Receive::Nothing;
            }
            self.sockets.events.push_back(Happened::Received(key, bytes));
        } else if wire.client_fin {
            self.moved = true;
            self.sockets.end(key, false);
        }
    }

    /// As the owner sees it; `None` if the socket was closed meanwhile.
    fn show(&mut self, happened: Happened, is_bulk: bool) -> Option<Event<'_>> {
        Some(match happened {
            Happened::Accepted(key) => Event::Accepted { key },
            Happened::AcceptPaused => {
                self.reach.accepts_paused += 1;
                let error = io::Error::from_raw_os_error(EMFILE);
                Event::AcceptPaused { error }
            }
            Happened::Received(key, bytes) => {
                let wire = self.sockets.wire_of(key).filter(|_| self.sockets.is_open(key))?;
                let seen_ms = std::mem::replace(&mut self.wires[wire].last_seen_ms, self.now_ms);
                let seen = match is_bulk {
                    true => &mut self.seen_before_ms,
                    false => &mut self.seen_at_first_ms,
                };
                seen.entry(wire).or_insert(seen_ms);
                self.sockets.shown = bytes;
                let bytes = &mut self.sockets.shown[..];
                Event::Received { key, bytes }
            }
            Happened::Sent(key, payload) => Event::Sent { key, payload },
            Happened::Ended(key, broken) => {
                self.sockets.get(key).filter(|socket| !socket.closing)?;
                let error = broken.then(|| io::ErrorKind::ConnectionReset.into());
                Event::Ended { key, error }
            }
            Happened::Closed(key) => {
                self.sockets.vacate(key.slot);
                Event::Closed { key }
            }
        })
    }

    /// True if the owner shall see it: it has not closed the socket meanwhile.
    fn is_due(&self, happened: &Happened) -> bool {
        match happened {
            Happened::Received(key, _) | Happened::Ended(key, _) => self.sockets.is_open(*key),
            _ => true,
        }
    }

    fn note_said(&mut self, wire: usize, bytes: &[u8]) {
        let was_welcome = self.wires[wire].said_welcome();
        for said in self.wires[wire].said.push(bytes) {
            if said == Said::Ping {
                let last_ms = self.wires[wire].last_seen_ms;
                let seen_ms = *self.seen_before_ms.get(&wire).unwrap_or(&last_ms);
                // Devices are asked in the middle of what came, where there are too many.
                let at_first_ms = *self.seen_at_first_ms.get(&wire).unwrap_or(&seen_ms);
                self.pinged.push(Pinged {
                    silent_ms: self.now_ms - seen_ms,
                    silent_at_first_ms: self.now_ms - at_first_ms,
                    may_be_late: self.was_sending.contains(&wire),
                });
                self.wires[wire].watched_from_ms = self.now_ms;
            }
            self.said.push((wire, said));
        }
        if self.wires[wire].said_welcome() && !was_welcome {
            // It counts as seen from when its token was found good.
            self.wires[wire].watched_from_ms = self.now_ms;
        }
    }
}

impl Engine for ModelEngine<'_> {
    fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        assert_eq!(wait, None, "virtual time does not wait");
        self.sockets.syscalls += 1;
        self.work();
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        loop {
            let happened = self.sockets.events.pop_front()?;
            if !self.is_due(&happened) {
                continue;
            }
            // It filled its buffer, whatever the size of that.
            let fills = || self.mood != Mood::Eager && self.chance.percent(15);
            if let Some(happened) = self.sockets.put_in_line(happened, fills) {
                return self.show(happened, false);
            }
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.reach.early_submits += 1;
        self.sockets.syscalls += 1;
        Ok(())
    }

    fn has_bulk(&self) -> bool {
        !self.sockets.bulk.is_empty()
    }

    fn next_bulk(&mut self) -> Option<Event<'_>> {
        let (key, mut line) = self.sockets.bulk.pop_front()?;
        let happened = line.pop_front()?;
        self.reach.bulk += 1;
        // Its line is there only while it has something; then the next one's comes.
        if !line.is_empty() {
            self.sockets.bulk.push_back((key, line));
        }
        self.show(happened, true)
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<SocketKey> {
        self.moved = true;
        let wire = self.tokens[&socket.as_raw_fd()];
        if self.fails(5) {
            self.reach.lost += 1;
            self.tokens.remove(&socket.as_raw_fd());
            let wire = &mut self.wires[wire];
            wire.to_gateway.clear();
            (wire.gateway_fin, wire.reset) = (true, true);
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        self.wires[wire].last_seen_ms = self.now_ms;
        self.wires[wire].watched_from_ms = self.now_ms;
        Ok(self.sockets.insert(socket, wire))
    }

    fn detach(&mut self, key: SocketKey) -> Option<OwnedFd> {
        self.moved = true;
        assert!(!self.sockets.is_bulk(key), "detached with bytes waiting");
        let socket = self.sockets.open_socket(key)?;
        assert!(
            socket.receive == Receive::Nothing && socket.sending.is_none(),
            "detached with something armed or in flight"
        );
        self.sockets.vacate(key.slot)
    }

    fn receive_once(&mut self, key: SocketKey) {
        self.moved = true;
        if let Some(socket) = self.sockets.open_socket(key) {
            assert!(socket.receive == Receive::Nothing, "two receives on one socket");
            socket.receive = Receive::Once;
        }
    }

    fn receive_stream(&mut self, key: SocketKey) {
        self.moved = true;
        if let Some(socket) = self.sockets.open_socket(key) {
            assert!(socket.receive == Receive::Nothing, "two receives on one socket");
            socket.receive = Receive::Stream;
        }
    }

    fn send(&mut self, key: SocketKey, payload: Payload) -> SendStatus {
        assert!(!payload.as_slice().is_empty(), "a send of nothing");
        self.moved = true;
        if let Some(wire) = self.sockets.wire_of(key) {
            self.note_said(wire, payload.as_slice());
        }
        let Some(socket) = self.sockets.open_socket(key) else {
            return SendStatus::Done(payload);
        };
        assert!(socket.sending.is_none(), "two sends in flight on one socket");
        let Some(wire) = socket.wire.map(|wire| &mut self.wires[wire]) else {
            return SendStatus::Done(payload);
        };
        assert!(!wire.gateway_fin, "sent behind FIN");
        if wire.room() >= payload.as_slice().len() && !wire.reset && self.chance.percent(50) {
            wire.to_client.extend(payload.as_slice());
            return SendStatus::Done(payload);
        }
        socket.sending = Some((payload, 0));
        SendStatus::InFlight
    }

    fn finish(&mut self, key: SocketKey) {
        self.moved = true;
        if let Some(socket) = self.sockets.open_socket(key) {
            assert!(socket.sending.is_none(), "FIN with a send in flight");
            if let Some(wire) = socket.wire {
                self.wires[wire].gateway_fin = true;
            }
        }
    }

    fn close(&mut self, key: SocketKey) {
        self.moved = true;
        self.sockets.begin_close(key, false);
    }

    fn reset(&mut self, key: SocketKey) {
        self.moved = true;
        self.reach.resets += 1;
        self.sockets.begin_close(key, true);
    }

    fn peer_addr(&self, _: SocketKey) -> Option<SocketAddr> {
        None
    }

    fn unacknowledged(&self, key: SocketKey) -> Option<usize> {
        let wire = &self.wires[self.sockets.wire_of(key)?];
        Some(wire.to_client.len())
    }

    fn resume_accept(&mut self) {
        self.moved = true;
        assert!(self.sockets.accept_paused, "it was not paused");
        self.sockets.accept_paused = false;
    }

    fn hold_accepts(&mut self, hold: bool) {
        self.reach.held_accepts += u64::from(hold);
        self.sockets.accept_held = hold;
    }

    fn has_work(&mut self) -> bool {
        self.sockets.has_work(self.wires)
    }

    fn sockets(&self) -> usize {
        self.sockets.len()
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            syscalls: self.sockets.syscalls,
            ..EngineStats::default()
        }
    }
}
