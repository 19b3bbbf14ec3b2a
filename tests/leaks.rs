//! Gateways through the library: two in one process know nothing of each other, and nothing is left
//! of one that ended.
//!
//! One test function: descriptors and threads are counted for the whole process.

#![allow(clippy::unwrap_used)]

mod common;

use common::process::{open_files, threads};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Client, DEADLINE};
use shardgate::config::{self, Config, Loaded};
use shardgate::control::{Exit, Gateway};

fn config(args: &[&str]) -> Config {
    let base = ["--listen", "127.0.0.1:0", "--shards", "2", "--cpus", "none"];
    let args: Vec<OsString> = base.iter().chain(args).map(OsString::from).collect();
    match config::load(args, Vec::<(OsString, OsString)>::new()) {
        Ok(Loaded::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn connect(addr: SocketAddr, user: &str) -> Client {
    let mut client = Client::connect(addr);
    client.send_upgrade(&format!("/ws?user={user}"), "");
    assert_eq!(client.read_head().status, 101);
    assert_eq!(client.recv_json()["userId"], *user);
    client
}

/// glommio 0.9 never closes the eventfd of an executor that has ended: one descriptor per shard
/// that ever lived, which a program that starts its shards once does not notice. More than these
/// must not stay.
const SHARDS: usize = 2;

fn two_gateways_share_nothing(engine: &str) {
    let first = Gateway::start(&config(&["--engine", engine, "--gateway-id", "first"])).unwrap();
    let second = Gateway::start(&config(&["--engine", engine, "--gateway-id", "second"])).unwrap();
    assert_ne!(first.local_addr(), second.local_addr());
    let mut alice = connect(first.local_addr(), "alice");
    let mut bob = connect(second.local_addr(), "bob");
    let mut carol = connect(first.local_addr(), "carol");
    alice.send_message_expecting("bob", "1", "offline");
    alice.send_message_expecting("carol", "1", "delivered");
    assert_eq!(carol.recv_json()["content"], 1);
    bob.send_message_expecting("alice", "1", "offline");
    assert_eq!((first.shared().connections(), second.shared().connections()), (2, 1));
    // One ends, the other goes on.
    drop(first);
    alice.read_to_end();
    bob.send_message_expecting("bob2", "1", "offline");
    let dave = connect(second.local_addr(), "dave");
    bob.send_message_expecting("dave", "1", "delivered");
    drop(dave);
}

/// A gateway that stops lets nobody in: a crowd that comes back at once does not keep it alive.
fn a_crowd_cannot_keep_it_alive(engine: &str) {
    let gateway = Gateway::start(&config(&["--engine", engine])).unwrap();
    let addr = gateway.local_addr();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let over = &over;
            scope.spawn(move || {
                let mut sockets = Vec::new();
                let request = common::client::upgrade_head(&format!("/ws?user=back{thread}"), "");
                while !over.load(Ordering::Relaxed) {
                    if let Ok(mut socket) = std::net::TcpStream::connect(addr) {
                        // It may be gone already, which is what this is about.
                        let _ = std::io::Write::write_all(&mut socket, request.as_bytes());
                        sockets.push(socket);
                    }
                    if sockets.len() > 200 {
                        sockets.clear();
                    }
                }
            });
        }
        let clients: Vec<Client> = (0..4).map(|n| connect(addr, &format!("user{n}"))).collect();
        gateway.handle().stop();
        assert_eq!(gateway.wait(), Exit::Stopped);
        over.store(true, Ordering::Relaxed);
        drop(clients);
    });
}

/// One life, ended in one of the three ways, with clients in every state of theirs.
fn live(engine: &str, round: usize) {
    let gateway = Gateway::start(&config(&["--engine", engine, "--drain-timeout", "100ms"])).unwrap();
    let addr = gateway.local_addr();
    let mut clients: Vec<Client> = (0..6).map(|n| connect(addr, &format!("user{n}"))).collect();
    clients.push(Client::connect(addr));
    let mut half_way = Client::connect(addr);
    half_way.send_raw(b"GET /ws HTTP/1.1\r\n");
    clients.push(half_way);
    let mut http = Client::connect(addr);
    http.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(http.read_response().status, 200);
    clients.push(http);
    let mut unknown = Client::connect(addr);
    unknown.send_upgrade("/ws", "");
    assert_eq!(unknown.read_head().status, 101);
    clients.push(unknown);
    clients[0].send_text(r#"{"type":"message","to":"user1","content":1}"#);
    // Subscribed, subscribing, and with something on its way.
    for (n, client) in clients.iter_mut().take(6).enumerate() {
        client.send_text(&common::channels::subscribe_text(&format!("room{}", n % 3)));
        client.send_text(&common::channels::publish_text("room0", "1", None));
    }
    clients[2].send_raw(&[0x81]);
    match round % 5 {
        0 | 2 => drop(gateway),
        1 | 3 => {
            gateway.handle().stop();
            assert_eq!(gateway.wait(), Exit::Stopped);
        }
        _ => {
            gateway.handle().drain();
            assert!(matches!(gateway.wait(), Exit::Drained { .. }));
        }
    }
    for mut client in clients {
        client.read_to_end();
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Channels made and left again and again, each under a name of its own, leave no memory behind.
fn channels_come_and_go(engine: &str) {
    const CHANNELS: usize = 100;
    let gateway = Gateway::start(&config(&["--engine", engine, "--limits-messages-per-second", "0"])).unwrap();
    let mut clients: Vec<Client> = (0..4)
        .map(|n| connect(gateway.local_addr(), &format!("user{n}")))
        .collect();
    let padding = "x".repeat(230);
    let mut round = |round: usize| {
        for (user, client) in clients.iter_mut().enumerate() {
            let names: Vec<String> = (0..CHANNELS).map(|n| format!("{round}-{user}-{n}-{padding}")).collect();
            let subscribe = names.iter().map(|name| common::channels::subscribe_text(name));
            let publish = names.iter().map(|name| common::channels::publish_text(name, "1", None));
            let unsubscribe = names.iter().map(|name| common::channels::unsubscribe_text(name));
            client.send_raw(&common::channels::frames(subscribe));
            for _ in 0..CHANNELS {
                assert_eq!(client.recv_json()["type"], "subscribed");
            }
            client.send_raw(&common::channels::frames(publish.chain(unsubscribe)));
            let mut left = CHANNELS;
            while left > 0 {
                left -= usize::from(client.recv_json()["type"] == "unsubscribed");
            }
        }
    };
    (0..10).for_each(&mut round);
    let before = resident_kib();
    (10..50).for_each(&mut round);
    let grown = resident_kib().saturating_sub(before);
    // 16,000 names of 240 bytes alone would be 4 MB.
    assert!(grown < 2048, "{grown} KiB more after 16,000 channels");
    common::eventually("the gauges are 0", || {
        let mut metrics = Client::connect(gateway.local_addr());
        metrics.send_raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let text = metrics.read_response().body;
        ["shardgate_channels{", "shardgate_subscriptions{"].iter().all(|gauge| {
            let mut shards = text.lines().filter(|line| line.starts_with(gauge)).peekable();
            assert!(shards.peek().is_some(), "no {gauge} in {text}");
            shards.all(|line| line.ends_with(" 0"))
        })
    });
}

#[test]
fn nothing_is_left() {
    let engines = if common::gateway::has_ring() {
        &["ring", "epoll"][..]
    } else {
        &["epoll"]
    };
    for engine in engines {
        two_gateways_share_nothing(engine);
        a_crowd_cannot_keep_it_alive(engine);
        channels_come_and_go(engine);
        // What is made once for the process, such as loggers and thread-local random sources, is
        // made by now.
        live(engine, 0);
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (files_before, threads_before) = (open_files().len(), threads().len());
        for round in 0..20 {
            live(engine, round);
            if round % 10 == 0 {
                let mut taken = config(&["--engine", engine]);
                taken.listen = other.local_addr().unwrap().into();
                assert!(
                    Gateway::start(&taken).is_err(),
                    "a start that fails leaves nothing either"
                );
            }
            // Rings are taken down by the kernel a moment after their last descriptor.
            let until = Instant::now() + DEADLINE;
            let allowed = files_before + SHARDS * (round + 1);
            while open_files().len() > allowed || threads().len() > threads_before {
                assert!(
                    Instant::now() < until,
                    "{engine}, round {round}: {allowed} descriptors and {threads_before} threads are allowed, there are {:?} {:?}",
                    open_files(),
                    threads()
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
