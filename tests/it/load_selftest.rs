//! The load generator counts exactly. A real gateway is behind a proxy that drops, doubles, swaps,
//! holds and cuts the gateway's frames, by plan. The report has to have each of these faults, as
//! often as it was made and no more.
//!
//! `load_generator` proves the same with a scripted server, fault by fault. Here everything else
//! goes on as it should, in every scenario, with hundreds of messages around the faults.

// A test's helpers are tests too: a failure of theirs ends the test.
#![allow(clippy::unwrap_used)]

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::Gateway;
use common::gateway::{command, run_command};
use serde_json::Value;

/// The fate of a frame on its way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Drop,
    Double,
    /// It leaves behind the next one of its kind on the same connection.
    Swap,
    /// Everything on this connection waits so long, and this with it.
    Hold(Duration),
    /// A close frame with this code leaves instead, and nothing more.
    Close(u16),
}

/// The faults of all connections together, by the number of the frame among those whose text begins
/// so.
struct Plan {
    kind: &'static str,
    /// Frames of this kind so far.
    count: AtomicU64,
    faults: Vec<(u64, Fault)>,
    /// How long frames were held, as the proxy saw it.
    held: Mutex<Duration>,
    /// The gateway gets no notice of a client's end, as when the network in between went.
    hides_ends: bool,
}

impl Plan {
    /// Every `every`th frame of this kind suffers, `times` times. Swapped pairs must not meet.
    fn new(kind: &'static str, fault: Fault, every: u64, times: u64) -> Arc<Self> {
        Arc::new(Self {
            kind,
            count: AtomicU64::new(0),
            faults: (1..=times).map(|n| (n * every, fault)).collect(),
            held: Mutex::default(),
            hides_ends: false,
        })
    }

    /// No frame suffers, but connections that are gone stay open towards the gateway.
    fn hiding_ends() -> Arc<Self> {
        Arc::new(Self {
            kind: "nothing",
            count: AtomicU64::new(0),
            faults: vec![],
            held: Mutex::default(),
            hides_ends: true,
        })
    }

    fn fault(&self, text: &[u8]) -> Option<Fault> {
        if !text.starts_with(format!(r#"{{"type":"{}""#, self.kind).as_bytes()) {
            return None;
        }
        let number = self.count.fetch_add(1, Relaxed);
        self.faults
            .iter()
            .find(|(at, _)| *at == number)
            .map(|(_, fault)| *fault)
    }
}

/// Starts a proxy to `gateway`; it lives as long as the test.
fn proxy(gateway: SocketAddr, plan: &Arc<Plan>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let plan = Arc::clone(plan);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(gateway).unwrap());
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let hides_ends = plan.hides_ends;
            thread::spawn(move || pass(from, to, hides_ends));
            let plan = Arc::clone(&plan);
            // It ends with either side's connection.
            thread::spawn(move || drop(spoil(server, client, &plan)));
        }
    });
    address
}

/// The client's bytes pass unchanged.
fn pass(mut from: TcpStream, mut to: TcpStream, hides_end: bool) {
    let _ = std::io::copy(&mut from, &mut to);
    if hides_end {
        // The gateway's bytes are read to the end, and the test's end ends it.
        let _ = std::io::copy(&mut to, &mut std::io::sink());
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// The gateway's frames suffer the faults.
fn spoil(mut from: TcpStream, mut to: TcpStream, plan: &Plan) -> std::io::Result<()> {
    let mut head = vec![];
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if from.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    to.write_all(&head)?;
    let mut swapped: Option<Vec<u8>> = None;
    loop {
        let Some((frame, text_at)) = read_frame(&mut from)? else {
            return to.shutdown(std::net::Shutdown::Both);
        };
        match plan.fault(&frame[text_at..]) {
            Some(Fault::Drop) => continue,
            Some(Fault::Double) => to.write_all(&[&frame[..], &frame].concat())?,
            Some(Fault::Swap) => swapped = Some(frame),
            Some(Fault::Hold(time)) => {
                let begin = Instant::now();
                thread::sleep(time);
                let mut held = plan.held.lock().unwrap();
                *held = (*held).max(begin.elapsed());
                to.write_all(&frame)?;
            }
            Some(Fault::Close(code)) => {
                let [high, low] = code.to_be_bytes();
                to.write_all(&[0x88, 2, high, low])?;
                return to.shutdown(std::net::Shutdown::Both);
            }
            None => {
                to.write_all(&frame)?;
                let is_of_kind = frame[text_at..].starts_with(format!(r#"{{"type":"{}""#, plan.kind).as_bytes());
                if is_of_kind && let Some(earlier) = swapped.take() {
                    to.write_all(&earlier)?;
                }
            }
        }
    }
}

/// A whole frame of a server, and where its payload begins; `None` at the end.
fn read_frame(from: &mut TcpStream) -> std::io::Result<Option<(Vec<u8>, usize)>> {
    let mut frame = vec![0; 2];
    if from.read(&mut frame[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut frame[1..])?;
    let mut length = usize::from(frame[1]);
    if length == 126 {
        let mut long = [0; 2];
        from.read_exact(&mut long)?;
        frame.extend(long);
        length = usize::from(u16::from_be_bytes(long));
    }
    let text_at = frame.len();
    frame.resize(text_at + length, 0);
    from.read_exact(&mut frame[text_at..])?;
    Ok(Some((frame, text_at)))
}

struct Ran {
    code: Option<i32>,
    report: Value,
    text: String,
}

/// Runs the generator through a proxy with this plan.
fn load(words: &str, plan: &Arc<Plan>) -> Ran {
    let gateway = Gateway::start(&["--shards", "1", "--limits-messages-per-second", "0"]);
    let address = proxy(gateway.addr, plan);
    let mut command = command(common::built::load_generator());
    command
        .args(words.split_whitespace())
        .args(["--warmup", "0", "--drain-timeout", "500ms", "--json", "-"])
        .args(["--url", &format!("ws://{address}/ws")]);
    let ended = run_command(command);
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stderr));
    Ran {
        code: ended.code,
        report,
        text: ended.stderr,
    }
}

impl Ran {
    fn number(&self, key: &str) -> u64 {
        self.report[key].as_u64().unwrap()
    }

    /// Asserts these counts, that all others are 0, that everything is accounted for, and the exit
    /// status.
    #[track_caller]
    fn expect(&self, counts: &[(&str, u64)]) {
        for key in ["lost", "duplicates", "reordered", "corrupted", "misrouted", "unsent"] {
            let expected = counts.iter().find(|(name, _)| *name == key).map_or(0, |(_, n)| *n);
            assert_eq!(self.number(key), expected, "{key}: {}\n{}", self.report, self.text);
        }
        let ended = ["received", "lost", "away"]
            .map(|key| self.number(key))
            .iter()
            .sum::<u64>();
        assert_eq!(self.number("sent"), ended, "{}", self.report);
        assert!(self.number("received") > 100, "{}", self.report);
        assert_eq!(self.code, Some(i32::from(!counts.is_empty())), "{}", self.text);
    }
}

const FAULTS: [(Fault, &str); 3] = [
    (Fault::Drop, "lost"),
    (Fault::Double, "duplicates"),
    (Fault::Swap, "reordered"),
];

#[test]
fn messages_of_pairs() {
    for (fault, what) in FAULTS {
        let plan = Plan::new("message", fault, 20, 3);
        let ran = load("direct --users 2 --rate 300 --duration 1s", &plan);
        ran.expect(&[(what, 3)]);
    }
}

#[test]
fn deliveries_of_a_channel() {
    for how in ["", "--threads 2", "--processes 2"] {
        for (fault, what) in FAULTS {
            let plan = Plan::new("publication", fault, 40, 3);
            let ran = load(&format!("fanout --users 3 --rate 100 --duration 1s {how}"), &plan);
            ran.expect(&[(what, 3)]);
        }
    }
}

/// The publications under way to a subscriber whose connection ends are lost with it, and not
/// waited for.
#[test]
fn deliveries_to_one_who_goes() {
    for how in [
        "--rate 100 --publishers 2 --threads 3",
        "--rate 100 --publishers 2 --processes 3",
        "--in-flight 2 --publishers 2 --threads 3",
    ] {
        let plan = Plan::new("publication", Fault::Close(1001), 60, 1);
        let ran = load(&format!("fanout --users 3 {how} --duration 1s"), &plan);
        assert_eq!(
            (ran.code, &ran.report["closes"]["1001"]),
            (Some(1), &1.into()),
            "{how}: {}",
            ran.text
        );
        assert_eq!(ran.number("sent"), ran.number("received") + ran.number("lost"));
        assert!(ran.number("lost") > 0, "{how}: the one in whose place the end came");
        let publications = ran.number("publications");
        assert!(ran.number("received") >= 2 * publications, "{how}: {}", ran.report);
        assert!(ran.number("sent") < 3 * publications, "{how}: {}", ran.report);
        assert_eq!(ran.report["drained"], true, "{how}: {}", ran.report);
    }
}

#[test]
fn messages_beside_a_storm() {
    for (fault, what) in FAULTS {
        let plan = Plan::new("message", fault, 20, 3);
        let ran = load("storm --users 10 --cut sockets --calm 400ms --backoff 50ms", &plan);
        ran.expect(&[(what, 3)]);
        assert_eq!(ran.report["storm"]["back"], 10, "{}", ran.text);
    }
}

/// No client comes or goes here, or messages dropped unnoticed would rightly be away.
fn chat(weights: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let shipped = std::fs::read_to_string("benches/scenarios/chat.toml").unwrap();
    let (head, _) = shipped.split_once("[weights]").unwrap();
    let file = dir.path().join("chat.toml");
    std::fs::write(&file, format!("{head}[weights]\n{weights}")).unwrap();
    let words = format!("mixed --rate 400 --duration 1s --scenario {}", file.display());
    (dir, words)
}

#[test]
fn messages_of_a_chat() {
    let (_dir, words) = chat("message = 1\npresence = 1");
    for (fault, what) in FAULTS {
        let plan = Plan::new("message", fault, 20, 3);
        load(&format!("{words} --users 2"), &plan).expect(&[(what, 3)]);
    }
}

/// The gateway is not at fault for what it cannot know yet. For connections whose network is gone
/// it acks `delivered` and reports presence. Messages to these reach no other connection.
#[test]
fn a_chat_whose_networks_go_without_a_word() {
    let (dir, words) = chat("message = 50\npresence = 8\nvanish = 1");
    let file = dir.path().join("chat.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text
        .replace("away_least = \"1s\"", "away_least = \"2200ms\"")
        .replace("away_most = \"5s\"", "away_most = \"2600ms\"");
    std::fs::write(&file, text).unwrap();
    let words = words.replace("--duration 1s", "--duration 8s");
    let ran = load(&format!("{words} --users 60"), &Plan::hiding_ends());
    ran.expect(&[]);
    let mixed = &ran.report["mixed"];
    assert!(mixed["actions"]["vanish"].as_u64() > Some(20), "{mixed}");
    assert!(ran.number("away") > 20, "{}", ran.report);
}

#[test]
fn publications_of_a_chat() {
    let (_dir, words) = chat("publish = 1");
    for (fault, what) in [(Fault::Drop, "lost"), (Fault::Double, "duplicates")] {
        let plan = Plan::new("publication", fault, 40, 3);
        load(&format!("{words} --users 4"), &plan).expect(&[(what, 3)]);
    }
    // Two consecutive publications at one connection may be of different publishers, whose order is
    // not promised.
    let plan = Plan::new("publication", Fault::Swap, 40, 3);
    let ran = load(&format!("{words} --users 2"), &plan);
    assert!(ran.number("reordered") <= 3, "{}", ran.report);
    assert_eq!(ran.number("lost") + ran.number("duplicates"), 0, "{}", ran.report);
}

#[test]
fn answers_that_do_not_come() {
    let (_dir, words) = chat("message = 1\npresence = 1");
    let plan = Plan::new("presence", Fault::Drop, 20, 3);
    let ran = load(&format!("{words} --users 4"), &plan);
    assert_eq!(ran.report["acks"]["missing"], 3, "{}", ran.report);
    assert_eq!((ran.code, ran.number("lost")), (Some(1), 0));
    let plan = Plan::new("ack", Fault::Double, 20, 3);
    let ran = load(&format!("{words} --users 4"), &plan);
    assert_eq!((ran.code, &ran.report["acks"]["unexpected"]), (Some(1), &3.into()));
}

#[test]
fn a_stall_is_in_every_latency_that_it_made() {
    let time = Duration::from_millis(300);
    let plan = Plan::new("message", Fault::Hold(time), 50, 1);
    let ran = load("direct --users 2 --rate 300 --duration 1500ms", &plan);
    ran.expect(&[]);
    let held_micros = plan.held.lock().unwrap().as_secs_f64() * 1e6;
    let max = ran.report["latencyMicros"]["max"].as_f64().unwrap();
    assert!(
        max >= held_micros * 0.999,
        "{max} of {held_micros}: three digits are kept"
    );
    // Every other message of 450 is to the held client, and 45 of them became due meanwhile: a
    // tenth of all. Were they timed from when they could be sent, one would be slow.
    let p99 = ran.report["latencyMicros"]["p99"].as_f64().unwrap();
    assert!(p99 > held_micros / 2.0, "{}", ran.report["latencyMicros"]);
    let rows = ran.report["series"].as_array().unwrap();
    let seen = rows
        .iter()
        .filter(|row| row["maxMicros"].as_f64() >= Some(held_micros * 0.99))
        .count();
    assert!(seen >= 1, "{rows:?}");
}

#[test]
fn who_is_told_to_stay_away_stays_away() {
    let plan = Plan::new("welcome", Fault::Close(3500), 14, 4);
    let ran = load(
        "storm --users 12 --cut sockets --calm 300ms --backoff 50ms --duration 5s",
        &plan,
    );
    // 14 were welcome first; the first one that came back then was refused for good.
    assert_eq!(ran.report["connections"]["ready"], 14, "{}", ran.report);
    assert_eq!(
        ran.report["connections"]["comebacks"]["refused"]["closed 3500"], 1,
        "{}",
        ran.report
    );
    assert_eq!(ran.report["storm"]["stayedAway"]["3500"], 1, "{}", ran.report);
    assert_eq!(ran.report["storm"]["back"], 11);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn who_is_asked_to_reconnect_comes_back() {
    // One of the pair is closed with 3011 in the middle of its talk, when the others are back.
    let plan = Plan::new("message", Fault::Close(3011), 300, 1);
    let ran = load("storm --users 4 --cut sockets --calm 1s --backoff 50ms", &plan);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(ran.report["storm"]["cutByCode"]["3011"], 1, "{}", ran.report);
    assert_eq!(ran.report["storm"]["back"], 5);
    ran.expect(&[]);
}
