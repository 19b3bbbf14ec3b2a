//! The broker against real Redis servers: every operation, order, and what it says when servers
//! fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod cluster;
mod moves;
mod partitions;
mod sentinel;
mod single;
mod store;
mod tls;
