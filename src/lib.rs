//! shardgate: a sharded WebSocket gateway for instant messaging and live updates.
//!
//! The modules are the rooms of the map in `ARCHITECTURE.md`, at the root of the repository. Its
//! table says what each room does and which rooms it imports, the lowest first. `tests/imports.rs`
//! compares it with these modules and their imports.

pub mod address;
pub mod admin;
pub mod auth;
pub mod cluster;
pub mod config;
pub mod control;
pub mod engine;
pub mod http;
pub mod ids;
pub mod jws;
pub mod lanes;
pub mod logging;
pub mod metrics;
pub mod payload;
pub mod redis;
pub mod router;
pub mod runtime;
pub mod session;
pub mod settings;
pub mod shard;
pub mod shared;
pub mod tls;
pub mod wire;
