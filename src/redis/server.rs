//! A server of Redis: where it is found, where it listens, which life of it. Pure.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::RedisAddress;

/// Why a server is unavailable, for the log and `/readyz`.
pub(super) type Cause = Arc<str>;

/// Where a server is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Location {
    /// Here.
    At(Endpoint),
    /// The master that the sentinels name.
    BySentinel,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    Tcp(RedisAddress),
    Socket(PathBuf),
}

impl From<RedisAddress> for Endpoint {
    fn from(address: RedisAddress) -> Endpoint {
        Endpoint::Tcp(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => address.fmt(f),
            Endpoint::Socket(path) => path.display().fmt(f),
        }
    }
}

/// The purpose of a connection to a master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Commands,
    Subscriptions,
    /// Only for a look at the server.
    Scout,
}

/// A server as one connection sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) at: Endpoint,
    /// The id of this life of the server; `None` if it gives none.
    pub(super) run_id: Option<Arc<str>>,
}

impl Server {
    pub(super) fn is(&self, other: &Server) -> bool {
        match (&self.run_id, &other.run_id) {
            (Some(one), Some(other)) => one == other,
            _ => self.at == other.at,
        }
    }
}
