//! A start that waits for Redis: no client is let in before, and it can be given up.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use super::{Notified, PROGRAM, Starting};
use crate::common::gateway::{Ended, command};
use crate::common::{Gateway, Redis, eventually};

/// A gateway that waits for this Redis as long as it must, on an address that no other test has.
fn with_redis(redis: &Redis) -> (SocketAddr, Command) {
    let host = [127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)];
    let addr = SocketAddr::from((host, 8080));
    let mut gateway = command(PROGRAM);
    gateway.args(["--listen", &addr.to_string(), "--shards", "2", "--cpus", "none"]);
    gateway.args(["--redis-url", &redis.url(), "--redis-start-timeout", "10m"]);
    (addr, gateway)
}

#[track_caller]
fn assert_nobody_listens(addr: SocketAddr) {
    let error = TcpStream::connect(addr).expect_err("somebody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// Until Redis is there and lets it in, a gateway takes no connection that it could not serve.
#[test]
fn nobody_listens_before_redis_is_there() {
    let mut redis = Redis::not_yet(&[("min-replicas-to-write", "1")]);
    let (addr, mut command) = with_redis(&redis);
    let notified = Notified::new();
    command.env("NOTIFY_SOCKET", notified.path());
    let assert_not_ready = || {
        assert_nobody_listens(addr);
        notified.expect_nothing();
    };
    assert_not_ready();
    let door = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| Gateway::try_spawn(command));
        // A server that takes connections and stays silent; then no server at all.
        let silent = door.accept().unwrap();
        assert_not_ready();
        drop((silent, door));
        assert_not_ready();
        // A Redis that is there, and refuses every write.
        redis.restart();
        wait_until_refused(&redis);
        assert_not_ready();
        redis.set_config("min-replicas-to-write", "0");
        let gateway = starting.join().unwrap().unwrap_or_else(|ended| panic!("{ended:#?}"));
        assert_eq!(gateway.addr, addr);
        assert_eq!(gateway.get("/readyz").status, 200);
        let mut alice = gateway.connect("alice");
        alice.send_message_expecting("bob", "1", "offline");
        assert!(notified.next().starts_with("READY=1"));
    });
}

/// It waits for nothing after a signal to end.
#[test]
fn a_start_can_be_given_up() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for silent in [true, false] {
            let redis = Redis::not_yet(&[]);
            let door = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
            let (addr, command) = with_redis(&redis);
            let mut starting = Starting::spawn(command);
            // It waits now: for an answer that does not come, or for a server to connect to.
            let held = (door.accept().unwrap(), door);
            let held = silent.then_some(held);
            starting.signal(signal);
            assert_given_up(&starting.wait());
            assert_nobody_listens(addr);
            drop(held);
        }
    }
}

/// The same where Redis is there, and does not let it in.
#[test]
fn a_start_that_is_refused_can_be_given_up() {
    let redis = Redis::with_config(&[("min-replicas-to-write", "1")]);
    let (addr, command) = with_redis(&redis);
    let mut starting = Starting::spawn(command);
    wait_until_refused(&redis);
    starting.signal(libc::SIGTERM);
    assert_given_up(&starting.wait());
    assert_nobody_listens(addr);
    assert_eq!(redis.keys(""), Vec::<String>::new());
}

/// Waits until a Redis has refused something without carrying it out.
#[track_caller]
fn wait_until_refused(redis: &Redis) {
    eventually("something was refused", || {
        let stats = redis.cmd(&["INFO", "commandstats"]).good().text();
        let mut counts = stats
            .lines()
            .filter_map(|line| line.split_once("rejected_calls=").map(|(_, rest)| rest));
        counts.any(|count| !count.starts_with("0,"))
    });
}

#[track_caller]
fn assert_given_up(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for word in ["panicked", "listening on", "Ready"] {
        assert!(!ended.stderr.contains(word), "{word}: {ended:#?}");
    }
    assert!(ended.stderr.contains("told to end while starting"), "{ended:#?}");
}
