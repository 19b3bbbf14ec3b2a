//! When a gateway is ready, and its notices to systemd.

use super::Notified;
use crate::common::Gateway;
use crate::common::admin::{Admin, TOKEN};

#[test]
fn ready_comes_when_all_shards_accept() {
    let gateway = Gateway::start(&["--shards", "4"]);
    let log = gateway.log();
    let listening = log.find("listening on").unwrap();
    let ready = log.find("Ready").unwrap();
    assert!(listening < ready, "{log}");
    for n in 0..16 {
        gateway.connect(&format!("user{n}")).close();
    }
}

/// The end has one notice, whoever asks for it and however often.
#[test]
fn systemd_is_told() {
    type TokenArgs = fn(&Gateway);
    let by_signal: TokenArgs = |gateway| gateway.signal(libc::SIGTERM);
    let by_administrator: TokenArgs = |gateway| {
        assert_eq!(Admin::of(gateway).ask("POST", "/admin/drain", "").0, 202);
    };
    for wishes in [[by_signal, by_administrator], [by_administrator, by_signal]] {
        let notified = Notified::new();
        let path = notified.path();
        let args = ["--admin-token", TOKEN, "--drain-timeout", "10m"];
        let mut gateway = Gateway::start_with_env(&args, &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
        let mut alice = gateway.connect("alice");
        assert!(notified.next().contains("READY=1"));
        notified.expect_nothing();
        wishes[0](&gateway);
        assert!(notified.next().contains("STOPPING=1"));
        assert_eq!(alice.recv_json()["type"], "shutdown");
        wishes[1](&gateway);
        alice.expect_close(3001);
        assert_eq!(gateway.wait_for_exit(), 0);
        notified.expect_nothing();
    }
}

/// `WatchdogSec=`: twice in its time, from `Ready` to the end of a drain.
#[test]
fn systemd_hears_that_the_gateway_lives() {
    let notified = Notified::new();
    let path = notified.path();
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut gateway = Gateway::start_with_env(&["--drain-timeout", "10m"], &env);
    let mut alice = gateway.connect("alice");
    let first = [notified.next(), notified.next(), notified.next()].concat();
    assert!(first.contains("READY=1") && first.contains("WATCHDOG=1"), "{first}");
    gateway.signal(libc::SIGTERM);
    assert_eq!(alice.recv_json()["type"], "shutdown");
    while !notified.next().contains("STOPPING=1") {}
    assert!(notified.next().contains("WATCHDOG=1"));
    // A gateway whose shards stand still is none: systemd gets no more notices.
    alice.close();
    assert_eq!(gateway.wait_for_exit(), 0);
    // It is for another process, so no watchdog is fed.
    let notified = Notified::new();
    let path = notified.path();
    let env = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "1000"),
        ("WATCHDOG_PID", "1"),
    ];
    let gateway = Gateway::start_with_env(&[], &env);
    assert!(notified.next().contains("READY=1"));
    gateway.connect("alice").close();
    notified.expect_nothing();
}
