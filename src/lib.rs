//! shardgate: a sharded WebSocket gateway for instant messaging and live updates.
//!
//! | room | duty |
//! | --- | --- |
//! | [`address`] | pure: where clients are, and how much one address may ask for |
//! | [`jws`] | pure: signatures of tokens, and the keys that verify them |
//! | [`config`] | flags, environment and TOML file to one checked [`config::Config`] |
//! | [`auth`] | pure: who a token speaks for, and what it permits |
//! | [`ids`] | names of shards, connections, users, messages |
//! | [`payload`] | bytes on their way out |
//! | [`wire`] | pure: frames, messages, request heads, close codes |
//! | [`tls`] | TLS of one connection, and the certificates |
//! | [`admin`] | pure: the admin API as data |
//! | [`session`] | pure: one connection's life |
//! | [`router`] | pure: who is where |
//! | [`logging`] | the log, which nobody waits for |
//! | [`metrics`] | names, and one table of counters per shard |
//! | [`settings`] | what shards go by |
//! | [`shared`] | what every thread may read |
//! | [`engine`] | sockets only: io_uring and epoll behind one contract |
//! | [`lanes`] | what threads say to each other |
//! | [`cluster`] | pure: many gateways as one system |
//! | [`redis`] | what a cluster asks of its store, carried out on Redis |
//! | [`http`] | plain HTTP on the public port |
//! | [`shard`] | one shard: its state, and the turn |
//! | [`control`] | the control thread: start, watch, drain, stop |
//! | [`runtime`] | the host: preflight, listeners, placement, signals |

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
