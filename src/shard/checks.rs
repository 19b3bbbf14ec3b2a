//! What must hold of a shard's tables, and what they still hold: for debug builds and for tests.

use super::core::Core;
use crate::session::{Stage, Tally};

impl Core {
    /// Asserts that the tables agree with each other. Debug builds do it on a sample of turns,
    /// simulations after each.
    ///
    /// # Panics
    /// They do not, which is a fault of ours.
    pub fn check_invariants(&self) {
        let (mut connections, mut of_users) = (0, 0);
        for (slot, conn) in self.kernel.connections.iter().enumerate() {
            connections += u64::from(conn.tally.is_connection());
            let is_held = !matches!(conn.stage, Stage::Free | Stage::Closed);
            assert_eq!(
                is_held,
                conn.tally != Tally::Nobody,
                "a socket that nothing counts: {conn:?}"
            );
            if let Some(user) = conn.user {
                of_users += 1;
                assert!(
                    self.kernel.users.devices(user).contains(&(slot as u32)),
                    "not in the user's list"
                );
                assert!(
                    matches!(conn.stage, Stage::Open),
                    "a user on a connection that is not open"
                );
            }
            assert!(
                conn.outbox.as_ref().is_none_or(|outbox| !outbox.is_empty()),
                "an empty outbox"
            );
        }
        assert_eq!(
            connections,
            self.kernel.metrics().connections.get(),
            "connections counted"
        );
        assert_eq!(of_users, self.kernel.users.connections(), "connections in users' lists");
        assert_eq!(
            self.kernel.users.len() as u64,
            self.kernel.metrics().users.get(),
            "users counted"
        );
        let pending = self
            .kernel
            .connections
            .iter()
            .filter(|conn| conn.tally.is_pending())
            .count();
        assert_eq!(pending, self.kernel.pending.len(), "pending sockets counted");
        self.channels.check_invariants(&self.kernel);
        self.kernel.addresses.check_invariants();
    }

    /// What this shard still holds, for tests that expect nothing.
    #[doc(hidden)]
    pub fn residue(&self) -> Outstanding {
        let connections = self.kernel.connections.iter();
        let held = self.channels.held();
        Outstanding {
            connections: connections.filter(|conn| !matches!(conn.stage, Stage::Free)).count(),
            users: self.kernel.users.len(),
            outboxes: self
                .kernel
                .connections
                .iter()
                .filter(|conn| conn.outbox.is_some())
                .count(),
            deadlines: self.kernel.wheel.len(),
            questions: self.presence.waiting(),
            crowded: self.lifecycle.asked(),
            asked: self.messages.asked(),
            commands: self.kernel.untaken(),
            requests: self.admission.held_inquiries(),
            credentials: self.admission.held_credentials(),
            pending: self.kernel.pending.len(),
            handshakes: self.admission.waiting_pre_auth(&self.kernel),
            channels: held.channels,
            interests: held.interests,
            fan_out: held.bytes,
        }
    }
}

/// What a shard holds.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Outstanding {
    pub connections: usize,
    pub users: usize,
    pub outboxes: usize,
    pub deadlines: usize,
    pub questions: usize,
    pub crowded: usize,
    pub asked: usize,
    pub commands: usize,
    pub requests: usize,
    pub credentials: usize,
    pub pending: usize,
    pub handshakes: usize,
    pub channels: usize,
    pub interests: usize,
    pub fan_out: usize,
}
