//! A shard by itself, for unit tests of this room.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Stage;
use super::core::{Command, Core};
use super::turn::{Shard, Surroundings};
use crate::config::Config;
use crate::engine::{Engine, EngineStats, Event, Payload, SendStatus, SocketKey, Waker};
use crate::ids::ShardId;
use crate::lanes::mailbox::mailboxes;
use crate::lanes::{self, Inbox, ToControl};
use crate::router::HomeMap;
use crate::settings::Settings;
use crate::shared::{Now, Shared};

/// The only shard of a gateway in development mode, at the beginning of its first turn.
pub(super) fn core(configure: impl FnOnce(&mut Config)) -> Core {
    let mut core = shard(configure).0.core;
    at(&mut core, 0);
    core
}

/// The same before its first turn, and the inbox of its control thread.
fn shard(configure: impl FnOnce(&mut Config)) -> (Shard, Inbox<ToControl>) {
    let mut inboxes = lanes::inboxes(1);
    let shared = Shared::new("gw".into(), true, "model", vec![None], Arc::clone(&inboxes.depths));
    let waker = || Waker::inert().unwrap();
    let mailboxes = mailboxes(inboxes.senders, vec![waker()], Some(waker()));
    let lanes = mailboxes.lanes(ShardId(0), &inboxes.depths);
    let mut config = Config::default();
    configure(&mut config);
    let settings = Arc::new(Settings::new(&config, 100).unwrap());
    let core = Core::new(Arc::new(shared), settings, HomeMap::new(1, [7; 16]), lanes, 1);
    (Shard::new(core, inboxes.shards.swap_remove(0)), inboxes.control)
}

/// A shard and an engine in which only that happens which a test says.
pub(super) struct Bench {
    pub(super) shard: Shard,
    control: Inbox<ToControl>,
    pub(super) engine: Script,
    pub(super) now_ms: u64,
}

impl Bench {
    pub(super) fn new(configure: impl FnOnce(&mut Config)) -> Self {
        let (shard, control) = shard(configure);
        Bench {
            shard,
            control,
            engine: Script::default(),
            now_ms: 0,
        }
    }

    /// One turn in which this happens. Returns what the engine was asked to do, sends aside.
    pub(super) fn turn(&mut self, events: impl IntoIterator<Item = Happens>) -> Vec<Command> {
        self.engine.events.extend(events);
        self.shard.turn(&mut self.engine, &Stopped(self.now_ms), None).unwrap();
        self.shard.core.check_invariants();
        std::mem::take(&mut self.engine.asked)
    }
}

impl Bench {
    /// What the shard has sent to its control thread.
    pub(super) fn to_control(&self) -> Vec<ToControl> {
        let batches = std::iter::from_fn(|| self.control.try_next());
        batches.flat_map(|batch| batch.items).collect()
    }
}

/// Something that a test lets happen.
pub(super) enum Happens {
    Accepted(SocketKey),
    Received(SocketKey, Vec<u8>),
    Sent(SocketKey, Payload),
    Ended(SocketKey, bool),
    Closed(SocketKey),
}

/// An engine whose events a test has made up. Sends are in flight until the test says otherwise.
#[derive(Default)]
pub(super) struct Script {
    events: VecDeque<Happens>,
    shown: Vec<u8>,
    asked: Vec<Command>,
    pub(super) sends: Vec<(SocketKey, Payload)>,
}

impl Engine for Script {
    fn turn(&mut self, _: Option<Duration>) -> std::io::Result<()> {
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        Some(match self.events.pop_front()? {
            Happens::Accepted(key) => Event::Accepted { key },
            Happens::Received(key, bytes) => {
                self.shown = bytes;
                let bytes = &mut self.shown[..];
                Event::Received { key, bytes }
            }
            Happens::Sent(key, payload) => Event::Sent { key, payload },
            Happens::Ended(key, broken) => {
                let error = broken.then(|| std::io::ErrorKind::ConnectionReset.into());
                Event::Ended { key, error }
            }
            Happens::Closed(key) => Event::Closed { key },
        })
    }

    fn submit(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn has_bulk(&self) -> bool {
        false
    }

    fn next_bulk(&mut self) -> Option<Event<'_>> {
        None
    }

    fn adopt(&mut self, _: OwnedFd) -> std::io::Result<SocketKey> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn detach(&mut self, _: SocketKey) -> Option<OwnedFd> {
        None
    }

    fn receive_once(&mut self, key: SocketKey) {
        self.asked.push(Command::ReceiveOnce(key));
    }

    fn receive_stream(&mut self, key: SocketKey) {
        self.asked.push(Command::ReceiveStream(key));
    }

    fn send(&mut self, key: SocketKey, payload: Payload) -> SendStatus {
        self.sends.push((key, payload));
        SendStatus::InFlight
    }

    fn finish(&mut self, key: SocketKey) {
        self.asked.push(Command::Finish(key));
    }

    fn close(&mut self, key: SocketKey) {
        self.asked.push(Command::Close(key));
    }

    fn reset(&mut self, key: SocketKey) {
        self.asked.push(Command::Reset(key));
    }

    fn peer_addr(&self, _: SocketKey) -> Option<SocketAddr> {
        None
    }

    fn unacknowledged(&self, _: SocketKey) -> Option<usize> {
        None
    }

    fn resume_accept(&mut self) {}

    fn hold_accepts(&mut self, _: bool) {}

    fn has_work(&mut self) -> bool {
        !self.events.is_empty()
    }

    fn sockets(&self) -> usize {
        0
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }
}

/// A clock that stands still, milliseconds.
struct Stopped(u64);

impl Surroundings for Stopped {
    fn now(&self) -> Now {
        Now {
            mono_ns: self.0 * 1_000_000,
            wall_ms: self.0,
        }
    }

    fn mono_ns(&self) -> u64 {
        self.0 * 1_000_000
    }

    fn wake(&self, _: ShardId) {}
}

/// A turn begins at this time.
pub(super) fn at(core: &mut Core, now_ms: u64) {
    core.begin_turn(Now {
        mono_ns: now_ms * 1_000_000,
        wall_ms: now_ms,
    });
}

/// A connection in this slot, whose handshake names the user of `query`, if any.
pub(super) fn connect(core: &mut Core, slot: u32, query: &str) -> SocketKey {
    let key = SocketKey { slot, generation: 1 };
    core.handle_accepted(key, None);
    let head = format!(
        "GET /ws{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    core.handle_received(key, &mut head.into_bytes());
    core.serve_pre_auth();
    assert!(matches!(
        core.kernel.conn(slot).stage,
        Stage::Open | Stage::Authenticating
    ));
    key
}

/// Everything that waits is sent. Returns who got something, and what the engine is to do.
pub(super) fn carry_out(core: &mut Core) -> (Vec<SocketKey>, Vec<Command>) {
    let (mut told, mut commands) = (Vec::new(), Vec::new());
    core.poll_command(&mut commands);
    while let Some(key) = core.poll_dirty() {
        while let Some(payload) = core.poll_payload(key) {
            told.push(key);
            core.handle_sent(key, payload);
        }
    }
    (told, commands)
}
