//! An engine in memory: the contract of `shardgate::engine::Engine` as the core sees it, with all the freedom that the
//! contract leaves used at random. Breaking the contract panics.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use shardgate::engine::{Payload, SocketKey};

use super::chance::Chance;
use super::wire::Wire;

/// Which wire a descriptor stands for. Descriptors are tokens: nothing is ever read from them.
pub type Tokens = BTreeMap<RawFd, usize>;

#[derive(Debug)]
pub enum Happened {
    Accepted(SocketKey),
    Received(SocketKey, Vec<u8>),
    Sent(SocketKey, Payload),
    Ended(SocketKey, bool),
    Closed(SocketKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    Nothing,
    Once,
    Stream,
}

#[derive(Debug)]
struct Socket {
    generation: u32,
    /// `None`: the slot is free.
    wire: Option<usize>,
    token: Option<OwnedFd>,
    receive: Receive,
    sending: Option<(Payload, usize)>,
    ended: bool,
    closing: bool,
}

#[derive(Debug, Default)]
pub struct ModelEngine {
    sockets: Vec<Socket>,
    free: Vec<u32>,
    events: VecDeque<Happened>,
}

impl ModelEngine {
    pub fn next_event(&mut self) -> Option<Happened> {
        self.events.pop_front()
    }

    /// True if this comes of a socket that receives until its end: one that may be a bulk sender's.
    pub fn may_wait_in_line(&self, event: &Happened) -> bool {
        let Happened::Received(key, _) = event else {
            return false;
        };
        self.sockets
            .get(key.slot as usize)
            .is_some_and(|socket| socket.generation == key.generation && socket.receive == Receive::Stream)
    }

    /// True until the owner closes it.
    pub fn is_open(&self, key: SocketKey) -> bool {
        self.sockets
            .get(key.slot as usize)
            .is_some_and(|socket| socket.generation == key.generation && socket.wire.is_some() && !socket.closing)
    }

    /// Sockets in the slab.
    pub fn sockets(&self) -> usize {
        self.sockets.len() - self.free.len()
    }

    /// Wires of sockets with a send in flight, those whose peer has ended its side included.
    pub fn sending(&self) -> Vec<usize> {
        let sockets = self.sockets.iter().filter(|socket| socket.sending.is_some());
        sockets.filter_map(|socket| socket.wire).collect()
    }

    /// Sockets that are not being closed and whose peer is there, with their wires.
    pub fn open(&self) -> impl Iterator<Item = (SocketKey, usize, bool)> {
        self.sockets.iter().enumerate().filter_map(|(slot, socket)| {
            let key = SocketKey {
                slot: slot as u32,
                generation: socket.generation,
            };
            let wire = socket.wire.filter(|_| !socket.closing && !socket.ended)?;
            Some((key, wire, socket.sending.is_some()))
        })
    }

    /// Sockets that are not being closed.
    pub fn held(&self) -> usize {
        let held = |socket: &&Socket| socket.wire.is_some() && !socket.closing;
        self.sockets.iter().filter(held).count()
    }

    fn insert(&mut self, token: OwnedFd, wire: usize) -> SocketKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(Socket {
                generation: 0,
                wire: None,
                token: None,
                receive: Receive::Nothing,
                sending: None,
                ended: false,
                closing: false,
            });
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
            wire: None,
            token: None,
            receive: Receive::Nothing,
            sending: None,
            ended: false,
            closing: false,
        };
        self.free.push(slot);
        token
    }

    fn open_socket(&mut self, key: SocketKey) -> Option<&mut Socket> {
        let is_open = self.is_open(key);
        self.sockets.get_mut(key.slot as usize).filter(|_| is_open)
    }

    pub fn wire_of(&self, key: SocketKey) -> Option<usize> {
        let socket = self.sockets.get(key.slot as usize)?;
        socket.wire.filter(|_| socket.generation == key.generation)
    }

    pub fn accept(&mut self, token: OwnedFd, wire: usize) {
        let key = self.insert(token, wire);
        self.sockets[key.slot as usize].receive = Receive::Once;
        self.events.push_back(Happened::Accepted(key));
    }

    pub fn adopt(&mut self, token: OwnedFd, tokens: &Tokens) -> SocketKey {
        let wire = tokens[&token.as_raw_fd()];
        self.insert(token, wire)
    }

    pub fn detach(&mut self, key: SocketKey) -> Option<OwnedFd> {
        let socket = self.open_socket(key)?;
        assert!(
            socket.receive == Receive::Nothing && socket.sending.is_none(),
            "detached with something armed or in flight"
        );
        self.vacate(key.slot)
    }

    pub fn receive_once(&mut self, key: SocketKey) {
        if let Some(socket) = self.open_socket(key) {
            assert!(socket.receive == Receive::Nothing, "two receives on one socket");
            socket.receive = Receive::Once;
        }
    }

    pub fn receive_stream(&mut self, key: SocketKey) {
        if let Some(socket) = self.open_socket(key) {
            assert!(socket.receive == Receive::Nothing, "two receives on one socket");
            socket.receive = Receive::Stream;
        }
    }

    /// `Some` gives the payload back at once: the kernel took everything.
    pub fn send(
        &mut self,
        key: SocketKey,
        payload: Payload,
        wires: &mut [Wire],
        chance: &mut Chance,
    ) -> Option<Payload> {
        assert!(!payload.as_slice().is_empty(), "a send of nothing");
        let Some(socket) = self.open_socket(key) else {
            return Some(payload);
        };
        assert!(socket.sending.is_none(), "two sends in flight on one socket");
        let Some(wire) = socket.wire.map(|wire| &mut wires[wire]) else {
            return Some(payload);
        };
        assert!(!wire.gateway_fin, "sent behind FIN");
        if wire.room() >= payload.as_slice().len() && !wire.reset && chance.percent(50) {
            wire.to_client.extend(payload.as_slice());
            return Some(payload);
        }
        socket.sending = Some((payload, 0));
        None
    }

    pub fn finish(&mut self, key: SocketKey, wires: &mut [Wire]) {
        if let Some(socket) = self.open_socket(key) {
            assert!(socket.sending.is_none(), "FIN with a send in flight");
            if let Some(wire) = socket.wire {
                wires[wire].gateway_fin = true;
            }
        }
    }

    pub fn close(&mut self, key: SocketKey) {
        if let Some(socket) = self.open_socket(key) {
            socket.closing = true;
        }
    }

    /// Lets the kernel work for a while: bytes come in and go out in pieces of any size. Returns true if anything moved.
    pub fn work(&mut self, wires: &mut [Wire], tokens: &mut Tokens, chance: &mut Chance, eager: bool) -> bool {
        let mut moved = false;
        for slot in 0..self.sockets.len() as u32 {
            let socket = &mut self.sockets[slot as usize];
            let Some(index) = socket.wire else {
                continue;
            };
            if !eager && chance.percent(30) {
                continue;
            }
            let key = SocketKey {
                slot,
                generation: socket.generation,
            };
            let wire = &mut wires[index];
            // Sends first, so that a socket that closes may still get something out.
            if let Some((payload, sent)) = &mut socket.sending {
                let rest = &payload.as_slice()[*sent..];
                let most = rest.len().min(wire.room());
                let len = if eager { most } else { chance.below(most + 1) };
                if !wire.reset && len > 0 {
                    wire.to_client.extend(&rest[..len]);
                    *sent += len;
                    moved = true;
                    if *sent == payload.as_slice().len()
                        && let Some((payload, _)) = socket.sending.take()
                    {
                        self.events.push_back(Happened::Sent(key, payload));
                    }
                } else if wire.reset && !socket.closing {
                    moved = true;
                    // `Ended` comes at most once: after it, a send that fails comes back as sent.
                    if socket.ended {
                        if let Some((payload, _)) = socket.sending.take() {
                            self.events.push_back(Happened::Sent(key, payload));
                        }
                    } else {
                        socket.sending = None;
                        socket.ended = true;
                        socket.receive = Receive::Nothing;
                        self.events.push_back(Happened::Ended(key, true));
                    }
                }
            }
            if socket.closing {
                if eager || chance.percent(50) {
                    moved = true;
                    // Closing with unread input resets: what the client has not read may be lost to it.
                    if !wire.to_gateway.is_empty() && chance.percent(50) {
                        let kept = chance.below(wire.to_client.len() + 1);
                        wire.to_client.truncate(kept);
                    }
                    wire.to_gateway.clear();
                    wire.gateway_fin = true;
                    wire.reset = true;
                    if let Some(token) = self.vacate(slot) {
                        tokens.remove(&token.as_raw_fd());
                    }
                    self.events.push_back(Happened::Closed(key));
                }
                continue;
            }
            if socket.receive == Receive::Nothing || socket.ended {
                continue;
            }
            if wire.reset && (wire.to_gateway.is_empty() || chance.percent(50)) {
                moved = true;
                wire.to_gateway.clear();
                socket.ended = true;
                socket.receive = Receive::Nothing;
                self.events.push_back(Happened::Ended(key, true));
            } else if !wire.to_gateway.is_empty() {
                moved = true;
                let most = wire.to_gateway.len().min(4096);
                let len = if chance.percent(60) {
                    most
                } else {
                    1 + chance.below(most)
                };
                let bytes: Vec<u8> = wire.to_gateway.drain(..len).collect();
                if socket.receive == Receive::Once {
                    socket.receive = Receive::Nothing;
                }
                self.events.push_back(Happened::Received(key, bytes));
            } else if wire.client_fin {
                moved = true;
                socket.ended = true;
                socket.receive = Receive::Nothing;
                self.events.push_back(Happened::Ended(key, false));
            }
        }
        moved
    }
}
