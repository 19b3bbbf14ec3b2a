//! An administrator's request to one gateway reaches the cluster where the contract promises that.
//! Without Redis the answer is honest.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::admin::{Admin, TOKEN};
use common::{Client, Fleet, Gateway, Peer, Redis, SLOW_DRAIN, eventually};
use serde_json::{Value, json};

/// Two gateways that reach each other.
fn pair(redis: &Redis) -> (Fleet, [Gateway; 2]) {
    let fleet = Fleet::new(redis.url()).with_args(&["--admin-token", TOKEN]);
    let gateways = fleet.start();
    let [one, other] = [0, 1].map(|n: usize| Peer::connect(&gateways[n], &format!("end{n}")));
    let mut ends = [one, other];
    ends[0].tell_until("end1", "joined", "routed");
    ends[1].tell_until("end0", "joined", "routed");
    for end in ends {
        end.leave();
    }
    (fleet, gateways)
}

/// The gateways of a user, by id.
fn gateways_of(admin: &Admin, user: &str) -> Value {
    let (status, info) = admin.get(&format!("/admin/users/{user}"));
    assert_eq!((status, &info["userId"]), (200, &json!(user)), "{info}");
    let mut gateways = info["gateways"].as_array().unwrap().clone();
    gateways.sort_by_key(Value::to_string);
    Value::Array(gateways)
}

fn next_close(client: &mut Client) -> Option<u16> {
    client.recv_frame().close_code()
}

#[test]
fn users_of_both_are_seen_and_closed() {
    let redis = Redis::start();
    let (_fleet, gateways) = pair(&redis);
    let admins = [0, 1].map(|n: usize| Admin::of(&gateways[n]));
    let mut here: Vec<Client> = (0..2).map(|_| gateways[0].connect("alice")).collect();
    let mut there = gateways[1].connect("alice");
    let mut bob = gateways[1].connect("bob");
    let both = json!([{"gatewayId": "gw1", "connections": 2}, {"gatewayId": "gw2", "connections": 1}]);
    let mut both = both.as_array().unwrap().clone();
    both.sort_by_key(Value::to_string);
    for admin in &admins {
        eventually("both are seen", || gateways_of(admin, "alice") == json!(both));
        assert_eq!(gateways_of(admin, "nobody"), json!([]));
    }
    // Lists are of one gateway.
    assert_eq!(admins.each_ref().map(|admin| admin.list("").len()), [2, 2]);

    assert_eq!(
        admins[1].ask("DELETE", "/admin/users/alice/connections", ""),
        (200, json!({"closed": 1}))
    );
    for client in here.iter_mut().chain([&mut there]) {
        assert_eq!(next_close(client), Some(3503));
    }
    for admin in &admins {
        eventually("nobody is seen", || gateways_of(admin, "alice") == json!([]));
    }
    bob.expect_silence();
}

#[test]
fn subscriptions_of_both_are_ended_and_codes_are_chosen() {
    let redis = Redis::start();
    let (_fleet, gateways) = pair(&redis);
    let admin = Admin::of(&gateways[0]);
    let mut clients = [0, 1].map(|n: usize| gateways[n].connect("alice"));
    for client in &mut clients {
        client.send_text(r#"{"type":"subscribe","channel":"room"}"#);
        assert_eq!(client.recv_json()["type"], "subscribed");
    }
    let ended = json!({"type": "unsubscribed", "channel": "room", "reason": "admin"});
    let answer = admin.ask("DELETE", "/admin/users/alice/channels/room", "");
    assert_eq!(answer, (200, json!({"closed": 1})));
    for client in &mut clients {
        assert_eq!(client.recv_json(), ended);
    }
    let answer = admin.ask("DELETE", "/admin/users/alice/connections?code=3011", "");
    assert_eq!(answer, (200, json!({"closed": 1})));
    for client in &mut clients {
        assert_eq!(next_close(client), Some(3011));
    }
    redis.pause();
    eventually("Redis is away", || {
        let (status, refused) = admin.ask("DELETE", "/admin/users/alice/channels/room", "");
        let words = refused["error"]["message"].as_str().unwrap_or_default();
        status == 503 && words.contains("0 subscriptions of this gateway were ended")
    });
}

#[test]
fn messages_publications_and_broadcasts_go_everywhere() {
    let redis = Redis::start();
    let (_fleet, gateways) = pair(&redis);
    let admin = Admin::of(&gateways[0]);
    let mut clients: Vec<Client> = (0..8).map(|n| gateways[n % 2].connect(&format!("user{n}"))).collect();
    eventually("both know", || {
        (0..8).all(|n| gateways_of(&admin, &format!("user{n}")) != json!([]))
    });
    let content = r#"{ "a" :	[1e400]}"#;
    for (n, client) in clients.iter_mut().enumerate() {
        // In the order of the requests, and true.
        for turn in 0..20 {
            let body = format!(r#"{{"to":"user{n}","content":[{turn},{content}]}}"#);
            let (status, sent) = admin.ask("POST", "/admin/messages", &body);
            let expected = if n % 2 == 0 { "delivered" } else { "routed" };
            assert_eq!((status, &sent["status"]), (200, &json!(expected)));
            let text = client.recv_text();
            let id = sent["messageId"].as_str().unwrap();
            let begin = format!(
                r#"{{"type":"message","id":"{id}","from":"","to":"user{n}","content":[{turn},{content}],"ts":"#
            );
            assert!(text.starts_with(&begin), "{text}");
        }
    }
    let offline = admin.ask("POST", "/admin/messages", r#"{"to":"nobody","content":1}"#).1;
    assert_eq!(offline["status"], "offline");

    for client in &mut clients {
        client.send_text(r#"{"type":"subscribe","channel":"room","id":"s"}"#);
        assert_eq!(client.recv_json()["type"], "subscribed");
    }
    let sent = admin.ask(
        "POST",
        "/admin/publish",
        &format!(r#"{{"channel":"room","content":{content}}}"#),
    );
    assert_eq!(sent.0, 200, "{}", sent.1);
    for client in &mut clients {
        let text = client.recv_text();
        assert!(
            text.contains(r#""from":"","#) && text.contains(&format!(r#""content":{content},"#)),
            "{text}"
        );
        assert!(text.contains(sent.1["messageId"].as_str().unwrap()), "{text}");
    }

    let sent = admin.ask("POST", "/admin/broadcast", r#"{"content":"all"}"#);
    assert_eq!((sent.0, &sent.1["recipients"]), (200, &json!(4)));
    for client in &mut clients {
        let text = client.recv_json();
        assert_eq!(
            (&text["type"], &text["id"], &text["content"]),
            (&json!("broadcast"), &sent.1["messageId"], &json!("all"))
        );
        client.expect_silence();
    }
}

/// A silent Redis keeps no request waiting for long, and only so many at a time.
#[test]
fn with_a_silent_redis_requests_end() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--admin-token", TOKEN]);
    let gateway = fleet.gateway("gw1");
    let admin = Admin::of(&gateway);
    let mut waiting: Vec<Client> = (0..200).map(|_| gateway.tcp()).collect();
    redis.pause();
    for client in &mut waiting {
        let fields = format!("Host: localhost\r\n{}", admin.authorization());
        client.send_raw(format!("GET /admin/users/alice HTTP/1.1\r\n{fields}\r\n").as_bytes());
    }
    let mut refused = 0;
    for client in &mut waiting {
        let answer = client.read_response();
        assert_eq!(answer.status, 503, "{answer:?}");
        refused += u32::from(answer.body.contains("too many requests are under way"));
    }
    // Of two shards, 64 on each may wait.
    assert!((1..=136).contains(&refused), "{refused}");
    redis.resume();
    eventually("Redis is back", || admin.get("/admin/users/alice").0 == 200);
    // All permits are free again.
    for client in &mut waiting {
        client.send_raw(
            format!(
                "GET /admin/connections HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
                admin.authorization()
            )
            .as_bytes(),
        );
        assert_eq!(client.read_response().status, 200);
    }
}

/// When all clients have gone, a drain still waits for pending administrators' requests.
#[test]
fn a_drain_waits_for_answers() {
    for own_door in [false, true] {
        let redis = Redis::start();
        let url = redis.url();
        // One shard, which learns of the question before it learns that alice has gone.
        let mut args = vec!["--shards", "1", "--admin-token", TOKEN];
        args.extend(SLOW_DRAIN);
        args.extend(["--redis-url", &url]);
        if own_door {
            args.extend(["--admin-listen", "127.0.0.1:0"]);
        }
        let mut gateway = Gateway::start(&args);
        let door = match own_door {
            false => gateway.addr,
            true => {
                let line = gateway.wait_for_log("administration on ");
                line.rsplit_once(' ').unwrap().1.parse().unwrap()
            }
        };
        let crowd = gateway.crowd(60);
        gateway.signal(libc::SIGTERM);
        eventually("it drains", || gateway.get("/readyz").status == 503);
        redis.pause();
        let mut waiting = Client::connect(door);
        let fields = format!("Host: localhost\r\n{}\r\n", Admin::at(door).authorization());
        // Together, so that the second one is being carried out when the first one is answered.
        let requests = format!("GET /livez HTTP/1.1\r\n{fields}GET /admin/users/bob HTTP/1.1\r\n{fields}");
        waiting.send_raw(requests.as_bytes());
        assert_eq!(waiting.read_response().status, 200);
        drop(crowd);
        let answer = waiting.read_response();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains("the other gateways cannot be asked"), "{answer:?}");
        assert_eq!(gateway.wait_for_exit(), 0);
        assert!(waiting.is_at_end());
    }
}

#[test]
fn without_redis_the_truth_is_told() {
    let mut redis = Redis::start();
    let (_fleet, gateways) = pair(&redis);
    let admin = Admin::of(&gateways[0]);
    let mut alice = gateways[0].connect("alice");
    let mut bob = gateways[0].connect("bob");
    redis.kill();
    eventually("Redis is missed", || gateways[0].get("/health").status == 503);
    let refused = |method: &str, path: &str, body: &str| {
        let (status, error) = admin.ask(method, path, body);
        assert_eq!(
            (status, &error["error"]["code"]),
            (503, &json!("unavailable")),
            "{path} {error}"
        );
        error["error"]["message"].as_str().unwrap().to_owned()
    };
    // The local part is done.
    let sent = admin.ask("POST", "/admin/messages", r#"{"to":"alice","content":1}"#).1;
    assert_eq!(
        (&sent["status"], &alice.recv_json()["content"]),
        (&json!("delivered"), &json!(1))
    );
    let failed = admin.ask("POST", "/admin/messages", r#"{"to":"carol","content":1}"#).1;
    assert_eq!(failed["status"], "failed");
    refused("POST", "/admin/publish", r#"{"channel":"room","content":1}"#);
    refused("GET", "/admin/users/alice", "");
    assert!(refused("POST", "/admin/broadcast", r#"{"content":2}"#).starts_with("2 connections"));
    assert_eq!(
        (alice.recv_json()["content"].clone(), bob.recv_json()["content"].clone()),
        (json!(2), json!(2))
    );
    assert!(refused("DELETE", "/admin/users/alice/connections", "").starts_with("1 connections"));
    assert_eq!(next_close(&mut alice), Some(3503));
    assert_eq!(admin.list("").len(), 1);
    redis.restart();
    eventually("Redis is back", || admin.get("/admin/users/bob").0 == 200);
    assert_eq!(
        gateways_of(&admin, "bob"),
        json!([{"gatewayId": "gw1", "connections": 1}])
    );
}
