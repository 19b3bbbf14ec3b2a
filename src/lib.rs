//! shardgate: a sharded WebSocket gateway for instant messaging and live updates.
//!
//! | room | duty |
//! | --- | --- |
//! | [`config`] | flags, environment and TOML file to one checked [`config::Config`] |
//! | [`engine`] | sockets only: io_uring and epoll behind one contract |
//! | [`ids`] | names of shards, connections, users, messages |
//! | [`protocol`] | pure: frames, envelopes, request heads, close codes |

pub mod config;
pub mod engine;
pub mod ids;
pub mod protocol;
