//! The load generator with several gateways and with Redis. Users are spread as reported, messages
//! between gateways are counted, and the work of Redis is reported without the generator's own
//! questions.

// A test's helpers are tests too: a failure of theirs ends the test.
#![allow(clippy::unwrap_used)]

use crate::common;

use common::gateway::{command, run_command};
use common::{Gateway, Redis};
use serde_json::{Value, json};

struct Ran {
    code: Option<i32>,
    report: Value,
    text: String,
}

/// Runs the generator; the report is null if it refused to run.
fn load(words: &str) -> Ran {
    let mut command = command(common::built::load_generator());
    command.args(words.split_whitespace()).args(["--json", "-"]);
    let ended = run_command(command);
    Ran {
        code: ended.code,
        report: serde_json::from_str(&ended.stdout).unwrap_or_default(),
        text: ended.stderr,
    }
}

fn url(gateway: &Gateway) -> String {
    format!("ws://{}/ws", gateway.addr)
}

/// A gateway without limits on messages, as a benchmark wants it.
fn gateway(id: &str, more: &[&str]) -> Gateway {
    let args = ["--gateway-id", id, "--shards", "1", "--limits-messages-per-second", "0"];
    Gateway::start(&[&args, more].concat())
}

#[test]
fn idle_users_are_spread_evenly() {
    let gateways = ["a", "b", "c"].map(|id| gateway(id, &[]));
    let [a, b, c] = gateways.each_ref().map(url);
    let pids = gateways.each_ref().map(Gateway::pid);
    let ran = load(&format!(
        "idle --users 30 --duration 100ms --url {a},{b} --url {c} --pid {} --pid {},{}",
        pids[0], pids[1], pids[2]
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let cross = &ran.report["crossGateway"];
    assert_eq!(cross["gateways"], 3, "{cross}");
    assert_eq!(cross["connections"], json!({"a": 10, "b": 10, "c": 10}));
    assert_eq!(
        (&cross["received"], &cross["latencyMicros"]["p50"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(ran.report["config"]["url"], format!("{a},{b},{c}"));
    assert_eq!(ran.report["redis"], Value::Null);
    assert!(ran.text.contains("3 at 3 addresses"), "{}", ran.text);

    let server = &ran.report["server"];
    let processes = server["processes"].as_array().unwrap();
    let told: Vec<u64> = processes.iter().map(|p| p["pid"].as_u64().unwrap()).collect();
    assert_eq!(told, pids.map(u64::from));
    let sum: u64 = processes.iter().map(|p| p["rssBytes"].as_u64().unwrap()).sum();
    assert_eq!(server["rssBytes"], sum);
    assert!(server["connectCpuMicrosPerConnection"].as_f64().unwrap() > 0.0);
}

/// Two gateways that do not know each other: a pair that is apart cannot talk.
#[test]
fn pairs_are_apart() {
    let (a, b) = (gateway("a", &[]), gateway("b", &[]));
    // The rule is by the number of the user, whichever thread has them.
    for more in ["", "--threads 2"] {
        let ran = load(&format!(
            "direct --users 4 --in-flight 1 --duration 500ms --warmup 0 --drain-timeout 500ms --ack {more} --url {} --url {}",
            url(&a),
            url(&b)
        ));
        let report = &ran.report;
        assert_eq!(ran.code, Some(1), "{}", ran.text);
        assert_eq!(report["crossGateway"]["connections"], json!({"a": 2, "b": 2}));
        assert_eq!((&report["sent"], &report["lost"]), (&json!(4), &json!(4)), "{report}");
        assert_eq!(report["received"], 0);
        let statuses = report["acks"]["byStatus"].as_object().unwrap();
        assert!(statuses.keys().all(|status| status == "offline"), "{statuses:?}");
    }
}

#[test]
fn one_gateway_behind_two_addresses_is_one_gateway() {
    let a = gateway("a", &[]);
    let ran = load(&format!(
        "direct --users 4 --duration 100ms --url {0} --url {0}?again",
        url(&a)
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let cross = &ran.report["crossGateway"];
    assert_eq!((&cross["gateways"], &cross["received"]), (&json!(1), &json!(0)));
    assert!(ran.report["latencyMicros"]["p50"].as_f64().unwrap() > 0.0);
    assert!(ran.text.contains("1 at 2 addresses"), "{}", ran.text);
}

#[test]
fn what_redis_does_is_told_without_our_questions() {
    let redis = Redis::with_config(&[("requirepass", "s3cret/%")]);
    let a = gateway("a", &[]);
    let place = format!("redis://:s3cret%2F%25@127.0.0.1:{}", redis.port());
    let ran = load(&format!(
        "idle --users 4 --duration 100ms --url {} --redis {place}",
        url(&a)
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let told = &ran.report["redis"];
    // This gateway does not know that Redis.
    assert_eq!((&told["commands"], &told["commandsTotal"]), (&json!({}), &json!(0)));
    assert_eq!(told["connect"]["commands"], json!({}));
    assert_eq!(told["connect"]["commandsPerConnection"], 0.0);
    assert_eq!(
        (&told["failure"], &told["commandsPerMessage"]),
        (&Value::Null, &Value::Null)
    );
    assert!(told["cpuSeconds"].as_f64().is_some());
    assert_eq!(told["address"], format!("127.0.0.1:{}", redis.port()));
    assert!(!ran.report.to_string().contains("s3cret") && !ran.text.contains("s3cret"));
}

#[test]
fn a_redis_that_cannot_be_asked_is_refused_before_the_run() {
    let mut redis = Redis::with_config(&[("requirepass", "s3cret")]);
    let port = redis.port();
    let try_it = |place: String| load(&format!("idle --url ws://127.0.0.1:9/ws --redis {place}"));
    for (place, part) in [
        (format!("127.0.0.1:{port}"), "wants a password"),
        (format!("redis://:wrong@127.0.0.1:{port}"), "WRONGPASS"),
    ] {
        let ran = try_it(place);
        assert_eq!((ran.code, &ran.report), (Some(2), &Value::Null));
        assert!(ran.text.contains(part) && !ran.text.contains("wrong"), "{}", ran.text);
    }
    redis.kill();
    let ran = try_it(format!("127.0.0.1:{port}"));
    assert_eq!(ran.code, Some(2));
    assert!(ran.text.contains("refused"), "{}", ran.text);
}

#[test]
fn figures_that_make_no_sense_are_refused() {
    let url = "--url ws://127.0.0.1:9/ws";
    for (words, part) in [
        (format!("idle {url} --url wss://127.0.0.1:10/ws"), "different schemes"),
        (format!("idle {url} {url}"), "twice"),
        (format!("idle {url},127.0.0.1:10"), "must be like ws://"),
        (format!("idle {url},ws://127.0.0.1:10 --pid 1"), "one per --url"),
        (format!("idle {url} --pid 4000000000"), "--pid"),
    ] {
        let ran = load(&words);
        assert_eq!(ran.code, Some(2), "{words}: {}", ran.text);
        assert!(ran.text.contains(part), "{words}: {}", ran.text);
    }
}

/// The users' locations are known for publishers on other threads and in other processes as well.
#[test]
fn publications_cross_two_gateways_whoever_has_the_publisher() {
    let redis = Redis::start();
    let redis_url = redis.url();
    let store = ["--redis-url", &redis_url, "--redis-prefix", "test-fanout:"];
    let (a, b) = (gateway("a", &store), gateway("b", &store));
    for how in ["--threads 3 --in-flight 2", "--threads 3", "--processes 3"] {
        let ran = load(&format!(
            "fanout --users 10 --publishers 2 --ack --duration 300ms {how} --url {},{}",
            url(&a),
            url(&b)
        ));
        assert_eq!(ran.code, Some(0), "{how}: {}", ran.text);
        let report = &ran.report;
        let number = |key: &str| report[key].as_u64().unwrap();
        assert_eq!(report["crossGateway"]["connections"], json!({"a": 6, "b": 6}), "{how}");
        assert_eq!(number("sent"), 10 * number("publications"), "{how}: {report}");
        // Of the ten, five are on the gateway of either publisher.
        let crossed = report["crossGateway"]["received"].as_u64().unwrap();
        assert_eq!(2 * crossed, number("received"), "{how}: {report}");
        assert_eq!(report["acks"]["byStatus"]["published"], report["publications"]);
        let at = |key: &str| report[key]["max"].as_f64().unwrap();
        assert_eq!(at("latencyMicros"), at("lastSubscriberMicros"), "{how}");
    }
}

/// The whole: every message goes from one gateway to the other.
#[test]
fn messages_cross_two_gateways_on_one_redis() {
    let redis = Redis::start();
    let redis_url = redis.url();
    let store = ["--redis-url", &redis_url, "--redis-prefix", "test-load:"];
    let (a, b) = (gateway("a", &store), gateway("b", &store));
    let ran = load(&format!(
        "direct --users 10 --duration 300ms --ack --url {},{} --pid {},{} --redis 127.0.0.1:{}",
        url(&a),
        url(&b),
        a.pid(),
        b.pid(),
        redis.port()
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let report = &ran.report;
    assert_eq!(report["crossGateway"]["connections"], json!({"a": 5, "b": 5}));
    assert_eq!(report["crossGateway"]["received"], report["received"]);
    assert_eq!(report["crossGateway"]["latencyMicros"], report["latencyMicros"]);
    assert_eq!(report["acks"]["byStatus"], json!({"routed": report["sent"]}));
    let commands = report["redis"]["commands"].as_object().unwrap();
    let publishes = ["publish", "spublish"].iter().filter_map(|name| commands.get(*name));
    assert!(publishes.filter_map(Value::as_u64).sum::<u64>() > 0, "{commands:?}");
    assert!(report["redis"]["commandsPerMessage"].as_f64().unwrap() > 0.0);
    assert!(report["redis"]["connect"]["commandsPerConnection"].as_f64().unwrap() > 0.0);
    assert!(ran.text.contains("all of them, latency as above"), "{}", ran.text);
}
