//! The user is known: the connection takes its permit and opens here, or goes to its home shard.
//!
//! Owned by the shard's thread. A permit of `limits.connections` is taken once, by the shard that
//! learns the user, and goes with the connection to its home shard.
//!
//! ```text
//! enter, or `auth` ─> take_permit ─┬─> open ──────────────────────────────────────────────┬─> Open
//!                                  └─> begin_migrating ─> hand_off ═> handle_adopted ─────┘
//! ```

use std::sync::Arc;

use super::Admission;
use crate::auth::Grant;
use crate::engine::SocketKey;
use crate::lanes::Handoff;
use crate::metrics::{DropReason, RefusalReason};
use crate::router::UserHash;
use crate::session::{Migrating, Stage, Tally};
use crate::shard::kernel::{Command, Happened, Kernel};
use crate::shared::NotAdmitted;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head::Policy;

impl Admission {
    /// The user became known by the handshake or by a token.
    pub(super) fn enter(&mut self, kernel: &mut Kernel, slot: u32, newcomer: Migrating) {
        if !self.take_permit(kernel, slot) {
            return self.refuse_permit(kernel, slot, newcomer.upgrade.is_some());
        }
        if kernel.homes.home(newcomer.hash) != kernel.me {
            return self.begin_migrating(kernel, slot, Box::new(newcomer));
        }
        if let Some(upgrade) = newcomer.upgrade {
            self.switch_protocols(kernel, slot, &upgrade);
        }
        self.open(kernel, slot, &newcomer.user, newcomer.hash, newcomer.grant);
        self.read_frames(kernel, slot, newcomer.rest);
    }

    /// `auth` in development mode: the client says its user's name. Returns what the home shard
    /// needs to know, if that is another one.
    pub(in crate::shard) fn authenticate(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        user: Option<&str>,
    ) -> Option<Box<Migrating>> {
        let Some(user) = user.filter(|user| kernel.settings.takes_user_id(user)) else {
            kernel.begin_close(slot, CloseReason::InvalidCredential);
            return None;
        };
        if let Some(known) = kernel.conn(slot).user {
            if kernel.users.name(known) == user {
                kernel.conn(slot).bad_frames = 0;
                kernel.send_welcome(slot);
            } else {
                kernel.begin_close(slot, CloseReason::NotPermitted);
            }
            return None;
        }
        if !matches!(kernel.conn(slot).stage, Stage::Authenticating) {
            return None;
        }
        if !self.take_permit(kernel, slot) {
            self.refuse_permit(kernel, slot, false);
            return None;
        }
        let hash = kernel.homes.hash(user);
        if kernel.homes.home(hash) == kernel.me {
            self.open(kernel, slot, user, hash, None);
            return None;
        }
        Some(Box::new(Migrating {
            user: user.to_owned(),
            hash,
            grant: None,
            upgrade: None,
            rest: Vec::new(),
        }))
    }

    /// The connection takes a permit of `limits.connections`. False if all are taken.
    fn take_permit(&mut self, kernel: &mut Kernel, slot: u32) -> bool {
        let taken = kernel.shared.take_permit(&kernel.settings);
        if taken {
            kernel.count_as(slot, Tally::Permit);
        }
        taken
    }

    /// All permits of `limits.connections` are taken: a client that is owed its `101` gets 503,
    /// another one close 3013.
    pub(super) fn refuse_permit(&mut self, kernel: &mut Kernel, slot: u32, owes_upgrade: bool) {
        kernel.count_refused(slot, RefusalReason::ConnectionLimit);
        if owes_upgrade {
            self.refuse_unavailable(kernel, slot, NotAdmitted::ConnectionLimit);
        } else {
            kernel.begin_close(slot, CloseReason::TooManyRequests);
        }
    }

    /// The user is known and lives here.
    fn open(&mut self, kernel: &mut Kernel, slot: u32, user: &str, hash: UserHash, grant: Option<Arc<Grant>>) {
        kernel.settle_address(slot);
        let index = kernel.users.join(hash, user, slot);
        kernel.tell_presence(index, kernel.users.devices(index).len());
        let now_ms = kernel.now.mono_ms();
        let conn = kernel.conn(slot);
        conn.grant = grant;
        conn.user = Some(index);
        conn.bad_frames = 0;
        // The client was heard just now: its silence while its token waited does not count.
        conn.last_seen_ms = now_ms;
        kernel.go(slot, Stage::Open);
        kernel.metrics().users.set(kernel.users.len() as u64);
        let interval_ms = kernel.settings.heartbeat.interval.as_millis() as u64;
        kernel.look_again(slot, now_ms + interval_ms);
        kernel.tell_connected(slot);
        kernel.send_welcome(slot);
        kernel.happened(Happened::Opened(slot));
    }

    /// The connection's frames are due. Bytes that came behind the head or the `auth` frame are the
    /// first of them.
    pub(super) fn read_frames(&mut self, kernel: &mut Kernel, slot: u32, rest: Vec<u8>) {
        let key = kernel.key(slot);
        kernel.happened(Happened::FramesDue { key, rest });
    }

    /// The connection goes to its user's shard as soon as everything queued here is sent.
    pub(in crate::shard) fn begin_migrating(&mut self, kernel: &mut Kernel, slot: u32, migrating: Box<Migrating>) {
        kernel.settle_address(slot);
        kernel.go(slot, Stage::Migrating(migrating));
        kernel.await_close(slot);
        kernel.flushed(slot);
    }

    /// The socket is out of the engine, and goes into the lane. A full lane is told to the client.
    pub(in crate::shard) fn hand_off(&mut self, kernel: &mut Kernel, hand_off: Handoff) {
        let home = kernel.homes.home(hand_off.hash);
        let hand_off = Box::new(hand_off);
        if let Err(hand_off) = kernel.lanes.try_hand_over(home, hand_off) {
            kernel.metrics().dropped(DropReason::HandOverLaneFull);
            kernel.metrics().refused(RefusalReason::LaneFull);
            // Back into the engine, to be told.
            kernel.command(Command::Adopt(hand_off));
        }
    }

    /// The engine took a socket that another shard handed over, or that could not be handed over.
    pub(in crate::shard) fn handle_adopted(&mut self, kernel: &mut Kernel, key: SocketKey, hand_off: Handoff) {
        let Handoff {
            user,
            hash,
            grant,
            upgrade,
            rest,
            connected_at_ms,
            remote,
            messages_in,
            rate,
            tls,
            socket: _,
        } = hand_off;
        let slot = key.slot;
        let refused = if kernel.homes.home(hash) != kernel.me {
            Some(NotAdmitted::LaneFull)
        } else if kernel.shared.is_draining() && upgrade.is_some() {
            Some(NotAdmitted::Draining)
        } else {
            None
        };
        let conn = kernel.occupy(key, Stage::Authenticating);
        conn.connected_at_ms = connected_at_ms;
        conn.messages_in = messages_in;
        conn.rate = rate;
        conn.tls = tls;
        // The other shard counted its handshake.
        kernel.addresses.set(slot, remote);
        kernel.count_as(slot, Tally::Permit);
        match (refused, upgrade) {
            (Some(reason), Some(_)) => {
                if reason == NotAdmitted::Draining {
                    kernel.count_refused(slot, reason.into());
                }
                self.refuse_unavailable(kernel, slot, reason);
            }
            (Some(_), None) => {
                // Its `101` is sent: the close code says come back.
                kernel.begin_close(slot, CloseReason::TooManyRequests);
            }
            (None, upgrade) => {
                if let Some(upgrade) = upgrade {
                    self.switch_protocols(kernel, slot, &upgrade);
                }
                self.open(kernel, slot, &user, hash, grant);
                self.read_frames(kernel, slot, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::drain::DrainPlan;
    use crate::shard::tests as testing;
    use crate::wire::ws::head::{Endpoint, Upgrade};

    /// A handshake whose `101` was still owed was never accepted: its loss between two shards is no
    /// closed connection.
    #[test]
    fn a_lost_hand_over_is_closed_only_if_it_was_accepted() {
        let mut core = testing::core(|_| ());
        core.begin_drain(DrainPlan::new(1, 0, 1_000, 0));
        let upgrade = Upgrade {
            endpoint: Endpoint::Gateway,
            accept: String::new(),
            subprotocol: false,
            user: None,
            forwarded_for: None,
            token: None,
            browser: false,
            refused: false,
        };
        for (upgrade, left) in [(Some(upgrade), 0), (None, 1)] {
            assert!(core.kernel.shared.take_permit(&core.kernel.settings));
            core.handle_lost(&Handoff {
                socket: None,
                user: "alice".into(),
                hash: core.kernel.homes.hash("alice"),
                grant: None,
                upgrade,
                rest: Vec::new(),
                remote: None,
                tls: None,
                connected_at_ms: 0,
                messages_in: 0,
                rate: Default::default(),
            });
            let count = core.drain_count().unwrap();
            assert_eq!((count.left, core.kernel.shared.permits()), (left, 0));
        }
    }

    /// A shard that is told to stop in the turn in which a connection leaves it closes the
    /// connection.
    #[test]
    fn a_connection_that_was_closed_does_not_leave() {
        let conn = SocketKey { slot: 0, generation: 1 };
        let mut core = testing::core(|_| ());
        core.handle_accepted(conn, None);
        assert!(core.kernel.shared.take_permit(&core.kernel.settings));
        core.kernel.count_as(0, Tally::Permit);
        let migrating = Migrating {
            user: "alice".into(),
            hash: core.kernel.homes.hash("alice"),
            grant: None,
            upgrade: None,
            rest: Vec::new(),
        };
        core.admission.begin_migrating(&mut core.kernel, 0, Box::new(migrating));
        core.stop();
        let (_, commands) = testing::carry_out(&mut core);
        assert!(
            matches!(commands[..], [Command::Detach(_), Command::Close(_)]),
            "{commands:?}"
        );
        core.handle_detached(conn, std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(core.residue(), Default::default());
        assert_eq!(
            (core.kernel.metrics().sockets.get(), core.kernel.shared.permits()),
            (0, 0)
        );
    }
}
