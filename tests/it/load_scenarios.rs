//! The load generator's storms, days of chat and several processes, against real gateways:
//! everything is accounted for, and what is well is called well.

// A test's helpers are tests too: a failure of theirs ends the test.
#![allow(clippy::unwrap_used)]

use crate::common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr};

use common::admin::TOKEN;
use common::gateway::{command, run_command};
use common::{Gateway, Redis};
use serde_json::{Value, json};

struct Ran {
    code: Option<i32>,
    report: Value,
    text: String,
}

/// Runs the generator to its end; the report is null if it has none.
fn load(words: &str) -> Ran {
    Running::start(words).finish()
}

/// A generator that is at work.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    text: String,
}

impl Running {
    fn start(words: &str) -> Self {
        let mut command = command(common::built::load_generator());
        command.args(words.split_whitespace()).args(["--json", "-"]);
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            stderr,
            text: String::new(),
        }
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str) {
        while !self.text.contains(what) {
            let read = self.stderr.read_line(&mut self.text).unwrap();
            assert!(read > 0, "it never said {what:?}: {}", self.text);
        }
    }

    /// It ends by itself: every phase of a run has its time.
    fn finish(mut self) -> Ran {
        let mut stdout = self.child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut json = String::new();
            stdout.read_to_string(&mut json).unwrap();
            json
        });
        self.stderr.read_to_string(&mut self.text).unwrap();
        let json = reader.join().unwrap();
        Ran {
            code: self.child.wait().unwrap().code(),
            report: serde_json::from_str(&json).unwrap_or_default(),
            text: self.text,
        }
    }
}

impl Ran {
    fn number(&self, pointer: &str) -> u64 {
        let value = self.report.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no {pointer} in {}\n{}", self.report, self.text))
    }

    fn micros(&self, pointer: &str) -> f64 {
        let value = self.report.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no {pointer} in {}\n{}", self.report, self.text))
    }

    /// All went well, and every message is somewhere.
    #[track_caller]
    fn expect_ok(&self) {
        assert_eq!(self.code, Some(0), "{}\n{}", self.text, self.report);
        assert!(
            !self.text.contains('\r'),
            "only a terminal has a line that is written over"
        );
        for key in ["/lost", "/duplicates", "/reordered", "/corrupted", "/misrouted"] {
            assert_eq!(self.number(key), 0, "{key}: {}", self.text);
        }
        let ended = self.number("/received") + self.number("/lost") + self.number("/away");
        assert_eq!(self.number("/sent"), ended, "{}", self.report);
    }
}

fn url(gateway: &Gateway) -> String {
    format!("ws://{}/ws", gateway.addr)
}

/// A gateway without limits on messages.
fn gateway(more: &[&str]) -> Gateway {
    let args = ["--limits-messages-per-second", "0"];
    Gateway::start(&[&args, more].concat())
}

const QUICK: &str = "--warmup 0 --calm 300ms --backoff 50ms";

#[test]
fn a_crowd_whose_sockets_are_cut_comes_back_while_others_talk() {
    let it = gateway(&[]);
    let ran = load(&format!(
        "storm --cut sockets --users 60 --threads 2 {QUICK} --pid {} --url {}",
        it.pid(),
        url(&it)
    ));
    ran.expect_ok();
    let storm = &ran.report["storm"];
    assert_eq!(storm["cutByCode"], json!({"1006": 60}), "{storm}");
    assert_eq!((&storm["back"], &storm["missing"]), (&json!(60), &json!(0)));
    assert_eq!(
        storm["attemptsPerClient"]["counts"],
        json!({"1": 60}),
        "nobody was refused"
    );
    assert_eq!(ran.report["connections"]["comebacks"]["attempts"], 60);
    assert_eq!(ran.report["closes"], json!({}), "the pair stayed");
    let back = |share: &str| ran.micros(&format!("/storm/backSeconds/{share}"));
    assert!(back("p50") <= back("p90") && back("p90") <= back("p99") && back("p99") <= back("p100"));
    for when in ["before", "after"] {
        assert!(ran.micros(&format!("/storm/beside/{when}/p50")) > 0.0, "{storm}");
    }
    assert!(
        ran.text.contains("storm        60 cut off (1006: 60), 60 back"),
        "{}",
        ran.text
    );
    it.wait_until_empty();
}

#[test]
fn who_is_refused_comes_when_the_gateway_said() {
    let it = gateway(&["--limits-handshakes-per-second", "40"]);
    let words = "storm --cut sockets --users 70 --connect-rate 30";
    let ran = load(&format!("{words} {QUICK} --url {}", url(&it)));
    ran.expect_ok();
    let refused = ran.number("/connections/comebacks/refused/http 503");
    // Forty are admitted at once and one more every 25 ms, while all come within the first 50.
    assert!((1..=40).contains(&refused), "{}", ran.report);
    assert_eq!(ran.number("/connections/comebacks/attempts"), 70 + refused);
    assert!(
        ran.micros("/storm/backSeconds/p50") < 1.0 && ran.micros("/storm/backSeconds/p100") >= 1.0,
        "{}",
        ran.text
    );
    assert!(ran.number("/storm/attemptsPerClient/max") >= 2);
}

#[test]
fn a_crowd_comes_back_to_a_gateway_that_was_killed_and_started_again() {
    let mut it = gateway(&[]);
    let address = it.addr.to_string();
    let mut running = Running::start(&format!("storm --users 40 {QUICK} --url {}", url(&it)));
    running.wait_for("storm: waiting for the gateway to go");
    it.kill();
    drop(it);
    let _again = gateway(&["--listen", &address]);
    let ran = running.finish();
    ran.expect_ok();
    let storm = &ran.report["storm"];
    // The pair was in it, too.
    assert_eq!((&storm["cut"], &storm["back"]), (&json!(42), &json!(42)), "{storm}");
    let comebacks = &ran.report["connections"]["comebacks"];
    let refused: u64 = comebacks["refused"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    // How many came too early is a matter of how fast a gateway starts.
    assert_eq!(comebacks["attempts"], 42 + refused, "{comebacks}");
}

#[test]
fn a_drain_moves_its_users_to_the_other_gateway() {
    let (mut a, b) = (gateway(&["--drain-timeout", "2s"]), gateway(&[]));
    let mut running = Running::start(&format!("storm --users 20 {QUICK} --url {} --url {}", url(&a), url(&b)));
    running.wait_for("storm: waiting");
    a.signal(libc::SIGTERM);
    let ran = running.finish();
    assert_eq!(a.wait_for_exit(), 0);
    ran.expect_ok();
    let storm = &ran.report["storm"];
    // Every other one of the users and of the pair.
    assert_eq!((&storm["cut"], &storm["back"]), (&json!(11), &json!(11)), "{storm}");
    let codes = storm["cutByCode"].as_object().unwrap();
    assert!(
        codes.keys().all(|code| ["1000", "3001"].contains(&&**code)),
        "{codes:?}"
    );
    assert_eq!(ran.report["otherFrames"]["shutdown"], 11);
    assert!(b.metric("shardgate_connections_accepted_total", &[]) >= 22.0);
}

/// As an administrator begins it, with the address to go to.
#[test]
fn the_generator_asks_for_a_drain_and_for_the_end_of_users() {
    let admin = ["--admin-token", TOKEN, "--drain-timeout", "2s"];
    let (mut a, b) = (gateway(&admin), gateway(&[]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let words = format!(
        "storm --users 10 {QUICK} --url {} --admin-token @{}",
        url(&a),
        file.display()
    );
    let ran = load(&format!("{words} --cut delete"));
    ran.expect_ok();
    let storm = &ran.report["storm"];
    assert_eq!(
        (&storm["cutByCode"], &storm["stayedAway"]),
        (&json!({"3503": 10}), &json!({"3503": 10}))
    );
    assert_eq!((&storm["back"], &storm["missing"]), (&json!(0), &json!(0)));

    let ran = load(&format!("{words} --cut drain --url {}", url(&b)));
    assert_eq!(a.wait_for_exit(), 0);
    ran.expect_ok();
    assert_eq!(
        (&ran.report["storm"]["cut"], &ran.report["storm"]["back"]),
        (&json!(6), &json!(6))
    );

    let ran = load(&format!(
        "storm --users 2 {QUICK} --cut drain --admin-token no --url {}",
        url(&b)
    ));
    assert_eq!((ran.code, &ran.report), (Some(2), &Value::Null));
    assert!(ran.text.contains("/admin/drain: 404"), "{}", ran.text);
}

#[test]
fn a_storm_that_does_not_come_is_no_success() {
    let it = gateway(&[]);
    let ran = load(&format!("storm --users 4 {QUICK} --duration 300ms --url {}", url(&it)));
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    assert!(ran.text.contains("NO STORM"), "{}", ran.text);
}

#[test]
fn nobody_is_told_ready_who_never_came_back() {
    let mut it = gateway(&[]);
    let words = format!(
        "storm --users 10 {QUICK} --duration 1s --drain-timeout 200ms --url {}",
        url(&it)
    );
    let mut running = Running::start(&words);
    running.wait_for("storm: waiting");
    it.kill();
    let ran = running.finish();
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    let storm = &ran.report["storm"];
    assert_eq!(
        (&storm["cut"], &storm["back"], &storm["missing"]),
        (&json!(12), &json!(0), &json!(12))
    );
    assert_eq!(storm["backSeconds"]["p50"], Value::Null);
    assert_eq!(ran.report["lost"], 0, "what was under way was away");
}

/// A file like the one that ships, with people who are not away for long.
fn chat(dir: &tempfile::TempDir) -> String {
    let text = std::fs::read_to_string("benches/scenarios/chat.toml").unwrap();
    let text = text
        .replace("away_least = \"1s\"", "away_least = \"50ms\"")
        .replace("away_most = \"5s\"", "away_most = \"500ms\"")
        .replace("users_per_channel = 20", "users_per_channel = 8");
    let file = dir.path().join("chat.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_day_of_chat_is_accounted_for() {
    let (it, dir) = (gateway(&[]), tempfile::tempdir().unwrap());
    for how in ["--rate 600 --threads 2", "--in-flight 2"] {
        let ran = load(&format!(
            "mixed --users 40 --duration 2s --warmup 0 {how} --scenario {} --url {}",
            chat(&dir),
            url(&it)
        ));
        ran.expect_ok();
        let mixed = &ran.report["mixed"];
        for action in [
            "message",
            "publish",
            "presence",
            "subscribe",
            "unsubscribe",
            "leave",
            "vanish",
        ] {
            assert!(ran.number(&format!("/mixed/actions/{action}")) > 0, "{mixed}");
        }
        for kind in ["message", "publish", "presence", "subscribe", "unsubscribe"] {
            assert!(ran.micros(&format!("/mixed/answerMicros/{kind}/p50")) > 0.0, "{mixed}");
        }
        assert_eq!((&mixed["presenceWrong"], &mixed["statusWrong"]), (&json!(0), &json!(0)));
        assert!(
            ran.number("/received") > 100 && ran.number("/away") > 0,
            "{}",
            ran.report
        );
        let left = ran.number("/mixed/actions/leave") + ran.number("/mixed/actions/vanish");
        assert!(ran.number("/connections/comebacks/attempts") <= left);
        assert_eq!(ran.number("/acks/missing") + ran.number("/acks/unexpected"), 0);
    }
    it.wait_until_empty();
}

/// Whenever the run ends, some client is on the way back then, and it is asked for nothing that is
/// not waited for.
#[test]
fn a_chat_ends_while_people_come_back() {
    let (it, dir) = (gateway(&[]), tempfile::tempdir().unwrap());
    let file = chat(&dir);
    let text = std::fs::read_to_string(&file).unwrap();
    let (head, _) = text.split_once("[weights]").unwrap();
    let head = head.replace("\"50ms\"", "\"1ms\"").replace("\"500ms\"", "\"20ms\"");
    std::fs::write(&file, format!("{head}[weights]\nmessage = 1\nleave = 1\nvanish = 1\n")).unwrap();
    for _ in 0..5 {
        let ran = load(&format!(
            "mixed --users 40 --duration 500ms --warmup 0 --rate 600 --scenario {file} --url {}",
            url(&it)
        ));
        ran.expect_ok();
        let comebacks = &ran.report["connections"]["comebacks"];
        assert_eq!(comebacks["attempts"], comebacks["ready"], "{comebacks}");
        assert!(comebacks["ready"].as_u64() > Some(50), "{comebacks}");
    }
}

#[test]
fn a_day_of_chat_crosses_gateways() {
    let (redis, dir) = (Redis::start(), tempfile::tempdir().unwrap());
    let redis_url = redis.url();
    let store = ["--redis-url", &redis_url, "--redis-prefix", "test-chat:"];
    let (a, b) = (gateway(&store), gateway(&store));
    let ran = load(&format!(
        "mixed --users 24 --duration 2s --warmup 0 --rate 300 --scenario {} --url {} --url {}",
        chat(&dir),
        url(&a),
        url(&b)
    ));
    ran.expect_ok();
    assert!(ran.number("/crossGateway/received") > 50, "{}", ran.report);
}

#[test]
fn processes_are_one_generator() {
    let it = gateway(&[]);
    let ran = load(&format!(
        "direct --users 24 --processes 3 --threads 2 --rate 600 --ack --duration 1s --url {}",
        url(&it)
    ));
    ran.expect_ok();
    let report = &ran.report;
    assert_eq!(
        (&report["connections"]["ready"], &report["config"]["processes"]),
        (&json!(24), &json!(3))
    );
    // Two seconds at 600 per second, together.
    assert!((1150..=1250).contains(&ran.number("/sent")), "{report}");
    assert_eq!(report["acks"]["byStatus"]["delivered"], report["sent"]);
    // Latencies of other processes are in the series as well.
    let rows = report["series"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["p99Micros"].as_f64() > Some(0.0)), "{rows:?}");
    it.wait_until_empty();
}

#[test]
fn a_storm_over_processes_has_one_begin() {
    let it = gateway(&[]);
    let ran = load(&format!(
        "storm --cut sockets --users 30 --processes 2 {QUICK} --url {}",
        url(&it)
    ));
    ran.expect_ok();
    assert_eq!(ran.report["storm"]["back"], 30);
    let most = ran.micros("/storm/backSeconds/p100");
    assert!(most < 20.0, "clocks of processes are one clock: {most}");
}

#[test]
fn a_process_that_dies_is_an_error_that_is_said() {
    let it = gateway(&[]);
    let mut running = Running::start(&format!(
        "idle --users 8 --processes 2 --duration 60s --url {}",
        url(&it)
    ));
    running.wait_for("load begins");
    let pid = running.child.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let child: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    // SAFETY: kill takes no pointers; the process is a child that its parent, which waits in vain,
    // has not reaped.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
    let ran = running.finish();
    assert_eq!((ran.code, &ran.report), (Some(2), &Value::Null));
    let said = format!("process 1 of the generator (pid {child}) died: signal: 9");
    assert!(ran.text.contains(&said), "{}", ran.text);
    it.wait_until_empty();
}

#[test]
fn reports_are_pages_and_stand_beside_each_other() {
    let (it, dir) = (gateway(&[]), tempfile::tempdir().unwrap());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for name in ["one", "two"] {
        let mut command = command(common::built::load_generator());
        command.args([
            "direct",
            "--users",
            "4",
            "--duration",
            "1500ms",
            "--quiet",
            "--url",
            &url(&it),
        ]);
        command.args(["--pid", &it.pid().to_string()]);
        command.args([
            "--json",
            &file(&format!("{name}.json")),
            "--html",
            &file(&format!("{name}.html")),
        ]);
        let ended = run_command(command);
        assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (Some(0), "", ""));
        let report: Value =
            serde_json::from_str(&std::fs::read_to_string(file(&format!("{name}.json"))).unwrap()).unwrap();
        let rows = report["series"].as_array().unwrap();
        assert!(rows.len() >= 2, "{rows:?}");
        assert!(
            rows.iter()
                .any(|row| row["phase"] == "measure" && row["serverRssBytes"].as_u64() > Some(0))
        );
    }
    let page = std::fs::read_to_string(file("one.html")).unwrap();
    for title in ["Latency by share", "Messages per second", "CPU", "Memory of the server"] {
        assert!(page.contains(title), "{title}");
    }
    assert!(
        !page.contains("<script") && !page.contains("Nothing measured"),
        "{page}"
    );
    let mut both = command(common::built::load_generator());
    both.args([
        "report",
        &file("one.json"),
        &file("two.json"),
        "--html",
        &file("both.html"),
    ]);
    let ended = run_command(both);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let page = std::fs::read_to_string(file("both.html")).unwrap();
    assert!(page.contains("<th>one</th><th>two</th>"), "{page}");
    let mut bad = command(common::built::load_generator());
    bad.args(["report", &file("one.html"), "--html", &file("bad.html")]);
    let ended = run_command(bad);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("one.html"), "{ended:?}");
}
