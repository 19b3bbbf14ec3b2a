//! Two gateways in one process, through the library, are as much one system as two programs are;
//! and what an administrator may order, broadcasts and closing a user's connections, reaches all of
//! it exactly once.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: what they cannot do ends the test"
)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;

use bytes::Bytes;
use common::client::{TEXT, upgrade_head};
use common::{Client, Peer, Redis, SLOW_DRAIN, eventually};
use shardgate::config::{self, Loaded};
use shardgate::control::{Exit, Gateway};
use shardgate::wire::codec::Codec;
use shardgate::wire::framing::Encoded;
use shardgate::wire::message::{Broadcast, ServerMessage};
use shardgate::wire::ws::close::CloseReason;
use uuid::Uuid;

on_both_engines! {
    messages_both_ways, a_broadcast_reaches_everybody_once, all_connections_of_a_user_are_closed,
    orders_while_redis_is_away, orders_while_redis_does_not_answer, orders_while_redis_goes_and_comes, orders_without_redis,
    one_drains_and_the_other_goes_on, the_program_itself_administers,
}

#[track_caller]
fn start(engine: &str, args: &[&str]) -> Gateway {
    let base = ["--listen", "127.0.0.1:0", "--shards", "2", "--cpus", "none", "--echo"];
    let more = ["--limits-messages-per-second", "0", "--engine", engine];
    let args: Vec<OsString> = base.iter().chain(&more).chain(args).map(OsString::from).collect();
    match config::load(args, Vec::<(OsString, OsString)>::new()) {
        Ok(Loaded::Run(config)) => Gateway::start(&config).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Two gateways that are one system.
#[track_caller]
fn pair(engine: &str, redis: &Redis, args: &[&str]) -> [Gateway; 2] {
    let (url, prefix) = (redis.url(), format!("test{:08x}:", fastrand::u32(..)));
    ["gw1", "gw2"].map(|id| {
        let own = ["--redis-url", &url, "--redis-prefix", &prefix, "--gateway-id", id];
        start(engine, &[&own, args].concat())
    })
}

#[track_caller]
fn upgrade(gateway: &Gateway, path: &str) -> Client {
    let mut client = Client::connect(gateway.local_addr());
    client.send_raw(upgrade_head(path, "").as_bytes());
    assert_eq!(client.read_head().status, 101);
    client
}

#[track_caller]
fn connect(gateway: &Gateway, user: &str) -> Client {
    let mut client = upgrade(gateway, &format!("/ws?user={user}"));
    assert_eq!(client.recv_json()["userId"], user);
    client
}

#[track_caller]
fn peer(gateway: &Gateway, user: &str) -> Peer {
    Peer::follow(connect(gateway, user), user)
}

/// Orders that did not reach the other gateways.
#[track_caller]
fn orders_dropped(gateway: &Gateway) -> u64 {
    let text = common::numbers_from_now_on(|| {
        let mut client = Client::connect(gateway.local_addr());
        client.send_raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        client.read_response()
    })
    .body;
    let series = "shardgate_dropped_total{shard=\"control\",kind=\"order\",reason=\"redis_away\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value
        .unwrap_or_else(|| panic!("no {series}in\n{text}"))
        .parse()
        .unwrap()
}

/// A broadcast, and the text that a client reads from it.
fn broadcast(content: &str) -> (Encoded, String) {
    let (id, ts) = (Uuid::from_u128(fastrand::u128(..)), 1_700_000_000_000);
    let mut body = Vec::new();
    let broadcast = Broadcast { id, content, ts_ms: ts };
    Codec::Json.encode(&mut body, &ServerMessage::Broadcast(broadcast));
    let text = format!(r#"{{"type":"broadcast","id":"{id}","content":{content},"ts":{ts}}}"#);
    assert_eq!(body, text.as_bytes());
    (Encoded::new(&body), text)
}

/// Waits until both say of each other's users that they are online: messages and orders pass both
/// ways.
#[track_caller]
fn wait_until_joined(gateways: &[Gateway; 2]) {
    let mut ends = [0, 1].map(|n| peer(&gateways[n], &format!("end{n}")));
    let [one, other] = &mut ends;
    one.tell_until(&other.user, "joined", "routed");
    other.tell_until(&one.user, "joined", "routed");
    for end in ends {
        end.leave();
    }
}

fn messages_both_ways(engine: &str) {
    let redis = Redis::start();
    let gateways = pair(engine, &redis, &[]);
    let mut alice = peer(&gateways[0], "alice");
    let mut bob = peer(&gateways[1], "bob");
    alice.wait_to_see("bob", true);
    bob.wait_to_see("alice", true);
    for n in 0..200 {
        assert_eq!(alice.tell("bob", n), "routed");
        assert_eq!(bob.tell("alice", n), "routed");
    }
    let all: Vec<u64> = (0..200).collect();
    assert_eq!(alice.numbers_from("bob"), all);
    assert_eq!(bob.numbers_from("alice"), all);
    assert_eq!(alice.tell("nobody", 0), "offline");
    // Also on the sender's gateway.
    let here = peer(&gateways[0], "bob");
    assert_eq!(alice.tell("bob", "both"), "delivered");
    here.wait_for("both");
    bob.wait_for("both");
    assert_eq!([0, 1].map(|n| gateways[n].shared().connections()), [2, 1]);
    bob.leave();
    here.leave();
    alice.wait_to_see("bob", false);
}

fn a_broadcast_reaches_everybody_once(engine: &str) {
    let redis = Redis::start();
    let gateways = pair(engine, &redis, &[]);
    wait_until_joined(&gateways);
    // Users on both shards of both gateways, some with two devices here, or one here and one there.
    let mut clients: Vec<Client> = (0..60)
        .map(|n| connect(&gateways[n % 2], &format!("user{}", n / 3)))
        .collect();
    let mut strangers: Vec<Client> = (0..4).map(|n| upgrade(&gateways[n % 2], "/ws")).collect();
    let mut echoes: Vec<Client> = (0..4).map(|n| upgrade(&gateways[n % 2], "/echo")).collect();
    // Headers of all three lengths, and JSON that nobody may touch.
    let contents = [
        "1".to_owned(),
        r#"{ "a" :	[ 1e400 ,"\ud800\/ä€😀"],"a":null}"#.to_owned(),
        format!("\"{}\"", "€".repeat(10_000)),
        format!("\"{}\"", "x".repeat(100_000)),
    ];
    let from = |gateway: &Gateway| -> Vec<String> {
        let handle = gateway.handle();
        let sent = contents.iter().map(|content| {
            let (frame, text) = broadcast(content);
            handle.broadcast(frame);
            text
        });
        sent.collect()
    };
    let sent = [from(&gateways[0]), from(&gateways[1])];
    for client in &mut clients {
        // Those of one gateway in the order given.
        let mut missing = sent.each_ref().map(|texts| texts.iter());
        for _ in 0..2 * contents.len() {
            let frame = client.recv_frame();
            assert_eq!(frame.opcode, TEXT);
            let next = missing
                .iter_mut()
                .find(|texts| texts.as_slice().first().is_some_and(|t| *t == frame.text()));
            let next = next.unwrap_or_else(|| panic!("twice, out of order or changed: {:.200}", frame.text()));
            next.next();
        }
        client.expect_silence();
    }
    // Who has not said who they are does not hear, and neither does an echo.
    for (n, stranger) in strangers.iter_mut().enumerate() {
        stranger.send_text(&format!(r#"{{"type":"auth","userId":"late{n}"}}"#));
        assert_eq!(stranger.recv_json()["type"], "welcome");
        stranger.expect_silence();
    }
    for echo in &mut echoes {
        echo.send_text("echo");
        assert_eq!(echo.recv_text(), "echo");
    }
    for client in &mut clients {
        client.expect_silence();
    }
    assert_eq!([0, 1].map(|n| orders_dropped(&gateways[n])), [0, 0]);
}

fn all_connections_of_a_user_are_closed(engine: &str) {
    let redis = Redis::start();
    let gateways = pair(engine, &redis, &[]);
    wait_until_joined(&gateways);
    let mut others: Vec<Client> = (0..40)
        .map(|n| connect(&gateways[n % 2], &format!("bob{}", n / 2)))
        .collect();
    let mut watchers = [0, 1].map(|n| peer(&gateways[n], "watcher"));
    for (round, from) in [0, 1, 0].into_iter().enumerate() {
        // On both; then on both, by the other; then only where the order does not come from.
        let places: &[usize] = if round == 2 { &[1] } else { &[0, 1] };
        let bobs: Vec<Client> = (0..6)
            .map(|n| connect(&gateways[places[n % places.len()]], "bob"))
            .collect();
        for watcher in &mut watchers {
            watcher.wait_to_see("bob", true);
        }
        gateways[from].handle().close_user("bob", CloseReason::Administrator);
        for mut bob in bobs {
            let reason = bob.expect_close(3503);
            assert!(reason.contains("administrator"), "{reason}");
        }
        for watcher in &mut watchers {
            watcher.wait_to_see("bob", false);
            watcher.tell_until("bob", 1, "offline");
        }
        for other in &mut others {
            other.expect_silence();
        }
    }
    // Nobody is there to be closed; and whoever comes afterwards may stay.
    gateways[0].handle().close_user("bob", CloseReason::Administrator);
    for nonsense in ["", "b\nb", &"b".repeat(129), &"b".repeat(1000)] {
        gateways[0].handle().close_user(nonsense, CloseReason::Administrator);
    }
    let (frame, text) = broadcast("\"after the orders\"");
    gateways[0].handle().broadcast(frame);
    for other in &mut others {
        assert_eq!(other.recv_text(), text);
    }
    let mut bobs = [0, 1].map(|n| connect(&gateways[n], "bob"));
    for bob in &mut bobs {
        bob.expect_silence();
    }
    assert_eq!([0, 1].map(|n| orders_dropped(&gateways[n])), [0, 0]);
}

fn orders_while_redis_is_away(engine: &str) {
    let mut redis = Redis::start();
    let gateways = pair(engine, &redis, &[]);
    wait_until_joined(&gateways);
    let mut here: Vec<Client> = (0..6).map(|n| connect(&gateways[0], &format!("user{n}"))).collect();
    let mut there: Vec<Client> = (0..6).map(|n| connect(&gateways[1], &format!("user{n}"))).collect();
    redis.kill();
    eventually("both have noticed", || {
        gateways.iter().all(|g| !g.shared().cluster.is_up())
    });
    let before = [0, 1].map(|n| orders_dropped(&gateways[n]));

    let (frame, text) = broadcast("\"only here\"");
    gateways[0].handle().broadcast(frame);
    gateways[0].handle().close_user("user0", CloseReason::Administrator);
    for client in &mut here {
        assert_eq!(client.recv_text(), text);
    }
    here.remove(0).expect_close(3503);
    eventually("both orders are counted", || {
        orders_dropped(&gateways[0]) == before[0] + 2
    });
    for client in here.iter_mut().chain(&mut there) {
        client.expect_silence();
    }
    assert_eq!(orders_dropped(&gateways[1]), before[1]);

    // What was dropped does not come late.
    redis.restart();
    eventually("both are back", || gateways.iter().all(|g| g.shared().cluster.is_up()));
    wait_until_joined(&gateways);
    let (frame, text) = broadcast("\"everywhere\"");
    gateways[0].handle().broadcast(frame);
    for client in here.iter_mut().chain(&mut there) {
        assert_eq!(client.recv_text(), text);
        client.expect_silence();
    }
    gateways[0].handle().close_user("user0", CloseReason::Administrator);
    there.remove(0).expect_close(3503);
    assert_eq!(orders_dropped(&gateways[0]), before[0] + 2);
}

/// It stands still, and nobody knows yet: an order is on its way to it when it is given up.
fn orders_while_redis_does_not_answer(engine: &str) {
    let redis = Redis::start();
    let gateways = pair(engine, &redis, &[]);
    wait_until_joined(&gateways);
    let mut here = connect(&gateways[0], "alice");
    let mut there = connect(&gateways[1], "bob");
    redis.pause();
    let (frame, first) = broadcast("\"nobody knows\"");
    gateways[0].handle().broadcast(frame);
    assert_eq!(here.recv_text(), first, "local clients do not wait for Redis");
    eventually("the order is given up", || orders_dropped(&gateways[0]) >= 1);
    redis.resume();
    eventually("both are back", || gateways.iter().all(|g| g.shared().cluster.is_up()));
    wait_until_joined(&gateways);
    let (frame, second) = broadcast("\"again\"");
    gateways[0].handle().broadcast(frame);
    assert_eq!(here.recv_text(), second);
    // Redis may have had the first one already; then it comes before, and once.
    let mut text = there.recv_text();
    if text == first {
        text = there.recv_text();
    }
    assert_eq!(text, second);
    here.expect_silence();
    there.expect_silence();
}

/// Orders are given all the time while Redis goes away and comes back empty. Every local client
/// gets each once and in order, every client of the other gateway at most once and in order; and
/// each that did not go out is counted.
fn orders_while_redis_goes_and_comes(engine: &str) {
    let mut redis = Redis::start();
    let gateways = pair(engine, &redis, &["--limits-outbox-bytes", "67108864"]);
    wait_until_joined(&gateways);
    let clients = [0, 1].map(|n| connect(&gateways[n], "listener"));
    let (heard_sender, heard) = mpsc::channel();
    let readers = clients.map(|mut client| {
        let heard = heard_sender.clone();
        let sender_is_here = client.stream.peer_addr().unwrap() == gateways[0].local_addr();
        std::thread::spawn(move || {
            let mut numbers = Vec::new();
            loop {
                let content = client.recv_json()["content"].take();
                match content.as_u64() {
                    Some(number) => {
                        numbers.push(number);
                        if sender_is_here {
                            let _ = heard.send(());
                        }
                    }
                    None => return numbers,
                }
            }
        })
    });
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let handle = gateways[0].handle();
        let over = &over;
        let orders = scope.spawn(move || {
            let mut sent = 0u64;
            while !over.load(SeqCst) {
                handle.broadcast(broadcast(&sent.to_string()).0);
                sent += 1;
                // As fast as they are carried out, and not faster.
                heard.recv_timeout(common::DEADLINE).unwrap();
            }
            sent
        });
        let end = Over(over);
        for _ in 0..5 {
            redis.kill();
            eventually("it is noticed", || gateways.iter().all(|g| !g.shared().cluster.is_up()));
            redis.restart();
            eventually("both are back", || gateways.iter().all(|g| g.shared().cluster.is_up()));
            wait_until_joined(&gateways);
        }
        drop(end);
        orders.join().unwrap()
    });
    gateways[0].handle().broadcast(broadcast("\"end\"").0);
    let [here, there] = readers.map(|reader| reader.join().unwrap());
    let all: Vec<u64> = (0..sent).collect();
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    for number in &here {
        *times.entry(*number).or_default() += 1;
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "twice to local clients: {twice:?}");
    assert_eq!(here, all, "each once and in order");
    common::peer::assert_rising("the other gateway", &there);
    let (came, dropped) = (there.len() as u64, orders_dropped(&gateways[0]));
    eprintln!("{sent} sent, {came} came, {dropped} counted as dropped");
    assert!(came < sent, "Redis was away");
    assert!(dropped > 0);
}

fn orders_without_redis(engine: &str) {
    let gateways = ["gw1", "gw2"].map(|id| start(engine, &["--gateway-id", id]));
    let mut here: Vec<Client> = (0..6)
        .map(|n| connect(&gateways[0], &format!("user{}", n / 2)))
        .collect();
    let mut there: Vec<Client> = (0..6)
        .map(|n| connect(&gateways[1], &format!("user{}", n / 2)))
        .collect();
    let (frame, text) = broadcast(r#"{"only":"here"}"#);
    gateways[0].handle().broadcast(frame);
    for client in &mut here {
        assert_eq!(client.recv_text(), text);
        client.expect_silence();
    }
    gateways[0].handle().close_user("user0", CloseReason::Administrator);
    for mut client in here.drain(..2) {
        client.expect_close(3503);
    }
    for client in here.iter_mut().chain(&mut there) {
        client.expect_silence();
    }
    here[0].send_message_expecting("user0", "1", "offline");
    assert_eq!([0, 1].map(|n| gateways[n].shared().connections()), [4, 6]);
    // There is nobody whom they did not reach.
    assert_eq!([0, 1].map(|n| orders_dropped(&gateways[n])), [0, 0]);
}

fn one_drains_and_the_other_goes_on(engine: &str) {
    let redis = Redis::start();
    let [first, second] = pair(engine, &redis, &SLOW_DRAIN);
    // They are told first, one a second.
    let crowd: Vec<Peer> = (0..60).map(|n| peer(&first, &format!("crowd{n}"))).collect();
    let mut alice = peer(&first, "alice");
    let mut anna = peer(&first, "anna");
    let mut bob = peer(&second, "bob");
    let carol = peer(&second, "carol");
    bob.wait_to_see_all(&["alice", "anna"], true);
    alice.wait_to_see("bob", true);

    first.handle().drain();
    eventually("it drains", || first.shared().is_draining());
    assert_eq!(bob.tell("alice", "from afar"), "routed");
    alice.wait_for("from afar");
    assert!(bob.presence(&["alice", "anna"]).unwrap().values().all(|there| *there));
    assert_eq!(alice.tell("anna", "local"), "delivered");
    anna.wait_for("local");
    assert_eq!(anna.tell("bob", "to the other"), "routed");
    bob.wait_for("to the other");
    // What is ordered is ordered for those who are still there, too.
    second.handle().close_user("alice", CloseReason::Administrator);
    assert_eq!(alice.wait_for_close(), 3503);
    first.handle().close_user("carol", CloseReason::Administrator);
    assert_eq!(carol.wait_for_close(), 3503);
    assert!(anna.is_open() && bob.is_open());
    alice.leave();
    anna.leave();
    drop(crowd);
    let Exit::Drained { left, closed } = first.wait() else {
        panic!("not drained");
    };
    assert_eq!(left + closed, 62);

    assert_eq!(bob.tell("bob", "still here"), "delivered");
    let dave = peer(&second, "dave");
    assert_eq!(bob.tell("dave", "welcome"), "delivered");
    dave.wait_for("welcome");
    assert_eq!(second.shared().connections(), 2);
    bob.leave();
    dave.leave();
    second.handle().drain();
    assert!(matches!(second.wait(), Exit::Drained { closed: 0, .. }));
    // Who leaves in order leaves nothing.
    assert_eq!(redis.keys(""), Vec::<String>::new());
}

/// What administrators may ask, the program of the gateway may ask without a token, or any
/// listener.
fn the_program_itself_administers(engine: &str) {
    let redis = Redis::start();
    let gateways = pair(engine, &redis, &[]);
    wait_until_joined(&gateways);
    let bob = peer(&gateways[1], "bob");
    let ask = |method: &str, path: &str, body: &'static str| {
        let request = shardgate::admin::Request {
            method: method.into(),
            path: path.into(),
            query: "".into(),
            body: Bytes::from_static(body.as_bytes()),
        };
        let answer = gateways[0].handle().administer(request).blocking_recv().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        (answer.status, json)
    };
    eventually("bob is found", || {
        ask("POST", "/admin/messages", r#"{"to":"bob","content":"hi"}"#).1["status"] == "routed"
    });
    assert_eq!(bob.wait_for("hi")["from"], "");
    assert_eq!(ask("GET", "/admin/users/bob", "").1["gateways"][0]["gatewayId"], "gw2");
    assert_eq!(ask("GET", "/admin/nothing", "").0, 404);
    let [first, second] = gateways;
    let handle = first.handle();
    drop((first, second, bob));
    let request = shardgate::admin::Request {
        method: "GET".into(),
        path: "/admin/connections".into(),
        query: "".into(),
        body: Bytes::new(),
    };
    assert!(handle.administer(request).blocking_recv().is_err());
}
