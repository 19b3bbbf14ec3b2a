//! The promises of the gateway, each held by the real program: one promise a file. All are one
//! binary, as each binary compiles the harness and links the gateway anew. `cargo test --test it
//! drain::` runs one file.
//!
//! Files that measure their own process, or that documents tell people to run, are binaries of
//! their own beside this one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
#[macro_use]
mod common;

mod address_limits;
mod admin;
mod admin_cluster;
mod admin_listen;
mod admin_openapi;
mod auth_dev;
mod auth_jwks;
mod auth_tokens;
mod channel_limits;
mod channel_order;
mod channel_permissions;
mod channels;
mod channels_cluster;
mod channels_redis_away;
mod channels_redis_cluster;
mod chaos;
mod cluster_key;
mod cluster_slot_migration;
mod crash_expiry;
mod drain;
mod drain_cluster;
mod duplicate_gateway_id;
mod examples;
mod fanout_head_of_line;
mod floods;
mod framing;
mod handshake;
mod head_of_line;
mod heartbeat;
mod http;
mod limits;
mod load_gateways;
mod load_scenarios;
mod load_selftest;
mod logging;
mod messages;
mod multi_device;
mod order;
mod presence_contract;
mod presence_lost;
mod presence_storm;
mod pubsub_killed;
mod redis_fixture;
mod redis_restart;
mod sentinel_failover;
mod sighup;
mod slow_consumer;
mod slow_redis;
mod slow_subscriber;
mod stale_cache;
mod start;
mod tls;
mod tls_files;
mod tuning;
mod two_gateways;
