//! The harness of all integration tests: the real program as a child process, and a client that can
//! misbehave.
//!
//! Nothing here sleeps where it could wait for an event, and nothing waits longer than
//! [`DEADLINE`]. A child is killed by its own process id and always reaped.

#![allow(dead_code, unused_imports, reason = "every test file uses another part of it")]
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "helpers of tests are tests too, and no library"
)]

pub mod admin;
pub mod authority;
pub mod built;
pub mod channels;
pub mod client;
pub mod fleet;
pub mod gateway;
pub mod namespace;
pub mod peer;
pub mod process;
pub mod redis;
pub mod storm;
pub mod tokens;

use std::time::{Duration, Instant};

pub use admin::Admin;
pub use authority::{Authority, Pair};
pub use client::{Client, Frame, Response, url_encode};
pub use fleet::Fleet;
pub use gateway::{Gateway, SLOW_DRAIN, run_to_exit};
pub use peer::Peer;
pub use redis::{Cluster, Redis, Reply, Sentinels};

/// The longest wait before something counts as never. It is long, because machines that build and
/// test at the same time are slow. Only a failing test waits for all of it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The key of the examples in RFC 6455, and what the server must answer.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Polls until the condition is true, for events without notice.
#[track_caller]
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !happened() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Polls numbers until the answer is from after this call: the gateway renders them for all, and
/// not for each request.
#[track_caller]
pub fn numbers_from_now_on(mut ask: impl FnMut() -> Response) -> Response {
    let unix_ms = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_millis()
    };
    let called = unix_ms();
    // A rendering within the millisecond of the call may be from before the call.
    while unix_ms() == called {
        std::thread::sleep(Duration::from_micros(100));
    }
    let mut answer = None;
    eventually("numbers from after the call", || {
        let latest = ask();
        let rendered_at = latest.field("shardgate-rendered-at");
        let rendered_at: u128 = rendered_at.unwrap_or_else(|| panic!("{latest:?}")).parse().unwrap();
        answer = Some(latest);
        rendered_at > called
    });
    answer.unwrap()
}

/// Like [`eventually`], without a pause: for tests that act in the instant after.
#[track_caller]
pub fn at_once_when(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !happened() {
        assert!(Instant::now() < until, "never happened: {what}");
    }
}

/// Makes a `#[test]` per engine from functions that take the engine's name. If the kernel has no
/// io_uring of the needed kind, the tests of that engine print so and pass.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod ring {
            $(#[test] fn $name() { if $crate::common::gateway::has_ring() { super::$name("ring") } })+
        }
        mod epoll {
            $(#[test] fn $name() { super::$name("epoll") })+
        }
    };
}
