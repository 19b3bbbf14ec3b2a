//! A shard by itself, for unit tests of this room.

use std::sync::Arc;

use super::Stage;
use super::core::{Command, Core};
use crate::config::Config;
use crate::engine::{SocketKey, Waker};
use crate::ids::ShardId;
use crate::lanes::{self, Lanes};
use crate::router::HomeMap;
use crate::settings::Settings;
use crate::shared::{Now, Shared};

/// The only shard of a gateway in development mode, at the beginning of its first turn.
pub(super) fn core(configure: impl FnOnce(&mut Config)) -> Core {
    let inboxes = lanes::inboxes(1);
    let shared = Shared::new("gw".into(), true, "model", vec![None], Arc::clone(&inboxes.depths));
    let lanes = Lanes::new(
        ShardId(0),
        lanes::mailboxes(inboxes.senders, vec![Waker::inert().unwrap()], None),
        inboxes.depths,
    );
    let mut config = Config::default();
    configure(&mut config);
    let settings = Arc::new(Settings::new(&config, 100).unwrap());
    let mut core = Core::new(Arc::new(shared), settings, HomeMap::new(1, [7; 16]), lanes, 1);
    at(&mut core, 0);
    core
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
    core.serve_strangers();
    assert!(matches!(core.conn(slot).stage, Stage::Open | Stage::Authenticating));
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
