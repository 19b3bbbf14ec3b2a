//! One shard: its connections, its users, and the turn that moves them.
//!
//! [`core::Core`] holds all state and decides everything; it makes no system call and reads no clock, so tests drive it
//! with bytes and virtual time. [`run`] owns the engine and the executor and carries out what the core decided.

mod admin;
mod admission;
mod channels;
mod checks;
pub mod core;
mod dispatch;
mod frames;
mod kernel;
mod lifecycle;
mod messages;
mod presence;
mod receive;
pub mod run;
#[cfg(test)]
mod tests;
pub mod turn;

pub use kernel::wheel;

use crate::http::HttpConn;

/// One connection of a shard.
pub type Connection = crate::session::Connection<HttpConn>;

/// Where it is in its life.
pub type Stage = crate::session::Stage<HttpConn>;
