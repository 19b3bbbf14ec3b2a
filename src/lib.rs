//! shardgate: a sharded WebSocket gateway for instant messaging and live updates.
//!
//! | room | duty |
//! | --- | --- |
//! | [`config`] | flags, environment and TOML file to one checked [`config::Config`] |
//! | [`engine`] | sockets only: io_uring and epoll behind one contract |

pub mod config;
pub mod engine;
