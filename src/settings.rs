//! What shards go by, made of the configuration and of what the host permits.
//!
//! Immutable; shared by `Arc`, and replaced as a whole when the configuration is read again.

use std::time::Duration;

use crate::config::origins::{OriginError, OriginPolicy};
use crate::config::{Config, Heartbeat, Limits};
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

impl Settings {
    /// What `config` says, with at most `connections_max` connections.
    ///
    /// # Errors
    /// The origins cannot be understood.
    pub fn new(config: &Config, connections_max: usize) -> Result<Self, OriginError> {
        Ok(Settings {
            limits: config.limits,
            connections_max,
            heartbeat: config.heartbeat,
            auth_timeout: config.auth_timeout,
            origins: OriginPolicy::parse(&config.origins)?,
            echo: config.echo,
        })
    }
}

impl Policy for Settings {
    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        self.origins.allows(origin, host)
    }

    fn serves_echo(&self) -> bool {
        self.echo
    }
}
