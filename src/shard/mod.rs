//! One shard: its connections, its users, and the turn that moves them.
//!
//! [`core::Core`] holds all state and decides everything; it makes no system call and reads no clock, so tests drive it
//! with bytes and virtual time. [`run`] owns the engine and the executor and carries out what the core decided.

pub mod core;
mod deliver;
mod frames;
mod handshake;
pub mod outbox;
pub mod run;
mod timers;
pub mod wheel;

use std::time::Duration;

use crate::config::origins::OriginPolicy;
use crate::config::{Heartbeat, Limits};
use crate::protocol::head::Policy;

/// What a shard goes by; replaced as a whole when the configuration is read again.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limits of connections, users and handshakes.
    pub limits: Limits,
    /// `limits.connections`, or what nofile permits less a reserve.
    pub connections_max: usize,
    /// Heartbeat times.
    pub heartbeat: Heartbeat,
    /// Time to show a credential.
    pub auth_timeout: Duration,
    /// Allowed origins.
    pub origins: OriginPolicy,
    /// Serve `/echo`.
    pub echo: bool,
}

impl Policy for Settings {
    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        self.origins.allows(origin, host)
    }

    fn serves_echo(&self) -> bool {
        self.echo
    }
}

#[cfg(test)]
impl Settings {
    pub(crate) fn for_tests() -> Self {
        Settings {
            limits: Limits {
                connections: None,
                message_bytes: 65_536,
                outbox_bytes: 1 << 20,
                channels_per_connection: 128,
                messages_per_second: 100,
                burst: 200,
                connections_per_user: 16,
                handshakes_per_second: 0,
                handshake_timeout: Duration::from_secs(10),
                header_bytes: 16_384,
            },
            connections_max: 1000,
            heartbeat: Heartbeat {
                interval: Duration::from_secs(25),
                timeout: Duration::from_secs(90),
            },
            auth_timeout: Duration::from_secs(5),
            origins: OriginPolicy::parse(&[]).unwrap(),
            echo: true,
        }
    }
}
