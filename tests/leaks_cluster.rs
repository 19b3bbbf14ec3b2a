//! Gateways of one system, started and ended again and again in one process: nothing is left of one
//! that ended, whether Redis was there, away or silent, and neither of one that could not start.
//!
//! One test function: descriptors and threads are counted for the whole process.

#![allow(clippy::unwrap_used)]

mod common;

use common::process::{open_files, threads};
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use common::client::upgrade_head;
use common::{Client, DEADLINE, Peer, Redis, eventually};
use shardgate::config::{self, Config, Loaded};
use shardgate::control::{Exit, Gateway};
use shardgate::runtime::StartError;
use shardgate::wire::framing::Encoded;
use shardgate::wire::ws::close::CloseReason;

/// glommio 0.9 never closes the eventfd of an executor that has ended (see `leaks`).
const SHARDS: usize = 2;

fn config(engine: &str, redis: &Redis, id: &str) -> Config {
    let url = redis.url();
    let base = ["--listen", "127.0.0.1:0", "--shards", "2", "--cpus", "none"];
    let own = ["--engine", engine, "--redis-url", &url, "--gateway-id", id];
    let more = ["--drain-timeout", "100ms", "--redis-start-timeout", "20s"];
    let args: Vec<OsString> = base.iter().chain(&own).chain(&more).map(OsString::from).collect();
    match config::load(args, Vec::<(OsString, OsString)>::new()) {
        Ok(Loaded::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn peer(gateway: &Gateway, user: &str) -> Peer {
    let mut client = Client::connect(gateway.local_addr());
    client.send_raw(upgrade_head(&format!("/ws?user={user}"), "").as_bytes());
    assert_eq!(client.read_head().status, 101);
    assert_eq!(client.recv_json()["userId"], user);
    Peer::follow(client, user)
}

fn end(gateway: Gateway, how: usize) {
    match how % 3 {
        0 => drop(gateway),
        1 => {
            gateway.handle().stop();
            assert_eq!(gateway.wait(), Exit::Stopped);
        }
        _ => {
            gateway.handle().drain();
            assert!(matches!(gateway.wait(), Exit::Drained { .. }));
        }
    }
}

/// Two lives, which end at different times and in different ways.
fn live(engine: &str, redis: &mut Redis, round: usize) {
    let [one, other] = ["gw1", "gw2"].map(|id| Gateway::start(&config(engine, redis, id)).unwrap());
    let mut alice = peer(&one, "alice");
    let bob = peer(&other, "bob");
    alice.tell_until("bob", round, "routed");
    one.handle().broadcast(Encoded::new(br#"{"type":"broadcast"}"#));
    other.handle().close_user("carol", CloseReason::Administrator);
    let paused = match round % 4 {
        1 => {
            redis.kill();
            eventually("it is noticed", || !one.shared().cluster.is_up());
            false
        }
        // Under way, and nobody answers.
        2 => {
            redis.pause();
            alice.send("somebody", 1);
            true
        }
        _ => false,
    };
    end(one, round);
    assert!(bob.is_open(), "the other one goes on");
    end(other, round + 1);
    alice.wait_for_end();
    bob.wait_for_end();
    if paused {
        redis.resume();
    } else if !redis.is_running() {
        redis.restart();
    }
}

/// Starts that fail, or are given up.
fn fail(engine: &str, redis: &Redis) {
    // Its id is taken: then its shards never were.
    let first = Gateway::start(&config(engine, redis, "gw3")).unwrap();
    let error = Gateway::start(&config(engine, redis, "gw3")).unwrap_err();
    assert!(matches!(error, StartError::IdTaken { .. }), "{error}");
    drop(first);
    // Nobody answers.
    let silent = Redis::not_yet(&[]);
    let door = TcpListener::bind(("127.0.0.1", silent.port())).unwrap();
    let mut hasty = config(engine, &silent, "gw3");
    hasty.redis.as_mut().unwrap().start_timeout = Duration::from_millis(50);
    let error = Gateway::start(&hasty).unwrap_err();
    assert!(matches!(error, StartError::NoRedis { .. }), "{error}");
    // Somebody else listens on its address, when it has joined the cluster and is about to do so
    // itself.
    let free = SocketAddr::from(([127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)], 8080));
    let before = redis.keys("");
    let mut late = config(engine, redis, "gw3");
    late.listen = free.into();
    let mut other = None;
    let told = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&free.into()).unwrap();
        socket.listen(1).unwrap();
        other = Some(socket);
    };
    let error = Gateway::start_with(&late, told, || {});
    let error = error.unwrap_err();
    assert!(matches!(error, StartError::AddressInUse { .. }), "{error}");
    assert!(
        threads().iter().all(|name| name.trim() != "control"),
        "it is still there"
    );
    assert_eq!(redis.keys(""), before, "what it wrote is still there");
    drop(other);
    // Somebody has enough of waiting, while it waits or before it does.
    let patient = config(engine, &silent, "gw3");
    for late in [true, false] {
        let (told, handle) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| {
                let told_at_once = |handle: shardgate::control::Handle| match late {
                    true => told.send(handle).unwrap(),
                    false => handle.stop(),
                };
                Gateway::start_with(&patient, told_at_once, || {})
            });
            if late {
                drop(door.accept().unwrap());
                handle.recv().unwrap().drain();
            }
            let error = starting.join().unwrap().unwrap_err();
            assert!(matches!(error, StartError::GivenUp), "{error}");
        });
    }
}

#[test]
fn nothing_is_left() {
    let engines = if common::gateway::has_ring() {
        &["ring", "epoll"][..]
    } else {
        &["epoll"]
    };
    let mut redis = Redis::start();
    for engine in engines {
        // What is made once for the process is made by now.
        live(engine, &mut redis, 0);
        let (files_before, threads_before) = (open_files().len(), threads().len());
        let mut allowed = files_before;
        for round in 0..9 {
            live(engine, &mut redis, round);
            allowed += 2 * SHARDS;
            if round % 4 == 0 {
                fail(engine, &redis);
                allowed += SHARDS;
            }
            // Rings are taken down by the kernel a moment after their last descriptor.
            let until = Instant::now() + DEADLINE;
            while open_files().len() > allowed || threads().len() > threads_before {
                assert!(
                    Instant::now() < until,
                    "{engine}, round {round}: {allowed} descriptors and {threads_before} threads are allowed, there are {:?} {:?}",
                    open_files(),
                    threads()
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            // Redis has no connection left but the one that asks.
            eventually("all have hung up", || {
                redis.info("clients", "connected_clients").as_deref() == Some("1")
            });
        }
    }
}
