//! One shard: its connections, its users, and the turn that moves them.
//!
//! [`core::Core`] holds all state and decides everything; it makes no system call and reads no clock, so tests drive it
//! with bytes and virtual time. [`run`] owns the engine and the executor and carries out what the core decided.

mod addresses;
mod admin;
mod channels;
mod checks;
pub mod core;
mod credentials;
mod dispatch;
mod frames;
mod handshake;
mod kernel;
mod lifecycle;
mod messages;
mod pending;
mod presence;
mod requests;
pub mod run;
mod strangers;
#[cfg(test)]
mod tests;
mod tls;
pub mod turn;

pub use kernel::wheel;

use crate::http::HttpConn;

/// One connection of a shard.
pub type Connection = crate::session::Connection<HttpConn>;

/// Where it is in its life.
pub type Stage = crate::session::Stage<HttpConn>;
