//! The load generator sees every fault. A scripted server loses, doubles, swaps, holds, damages and
//! misdelivers messages, closes connections and refuses them. Each fault has to be in the report
//! and in the exit status.
//!
//! Without this a green run of the generator proves nothing. The server acts on counts of messages,
//! never on time, and the initial messages of a closed loop with 8 in flight are enough for every
//! script.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: what they cannot do ends the test"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The answer to the key in the example of RFC 6455, which the generator uses.
const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// A generator that hangs is killed after this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server's one fault: with message number [`VICTIM`] of user 0, or with publication number
/// [`VICTIM`] on its way to the first subscriber.
#[derive(Clone, Copy, PartialEq)]
enum Script {
    Behave,
    /// Behaves, and writes every frame in two pieces.
    Split,
    Lose,
    Duplicate,
    Swap,
    Damage,
    Misdeliver,
    Refuse,
    CloseSender,
    CloseReceiver,
    ForgetAck,
    RefuseSubscriptions,
    /// Answers all of them but the last.
    ForgetSubscription,
    /// Holds everything until so many messages wait.
    HoldUntil(usize),
    HoldForever,
    Answer503,
    NeverWelcome,
}

const VICTIM: usize = 3;
/// The channels of [`run_fanout`]'s users, together.
const FANOUT_SUBSCRIPTIONS: usize = 6;

enum Input {
    Joined(String, TcpStream),
    Frame(String, Value),
}

fn text_frame(payload: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match payload.len() {
        length @ 0..126 => frame.push(length as u8),
        length => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload.as_bytes());
    frame
}

/// The opcode and payload of the next frame of a client.
fn read_frame(stream: &mut impl Read) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    assert_eq!(head[0] & 0xf0, 0x80, "one whole frame without reserved bits");
    assert_eq!(head[1] & 0x80, 0x80, "clients mask");
    let mut length = usize::from(head[1] & 0x7f);
    if length == 126 {
        let mut long = [0; 2];
        stream.read_exact(&mut long)?;
        length = usize::from(u16::from_be_bytes(long));
    }
    let mut mask = [0; 4];
    stream.read_exact(&mut mask)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    payload
        .iter_mut()
        .zip(mask.iter().cycle())
        .for_each(|(byte, mask)| *byte ^= mask);
    Ok((head[0] & 0x0f, payload))
}

/// Reads one connection until its end and passes on what it says.
fn serve(stream: TcpStream, script: Script, inputs: mpsc::Sender<Input>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut request)?, 0, "a whole request");
    }
    if script == Script::Answer503 {
        return writer.write_all(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n");
    }
    writer.write_all(HEAD.as_bytes())?;
    let in_query = request
        .split_once("?user=")
        .and_then(|(_, rest)| rest.split_whitespace().next());
    let mut user = in_query.map(str::to_owned);
    if user.is_none() {
        let (_, payload) = read_frame(&mut reader)?;
        let auth: Value = serde_json::from_slice(&payload)?;
        assert_eq!(auth["type"], "auth");
        user = auth["userId"].as_str().map(str::to_owned);
    }
    let user = user.expect("a user");
    if script != Script::NeverWelcome {
        inputs.send(Input::Joined(user.clone(), writer.try_clone()?)).ok();
    }
    loop {
        match read_frame(&mut reader)? {
            (1, payload) => {
                inputs
                    .send(Input::Frame(user.clone(), serde_json::from_slice(&payload)?))
                    .ok();
            }
            // The close frame of the generator, at its end: say the same and leave.
            (8, payload) => {
                writer.write_all(&[0x88, payload.len() as u8])?;
                return writer.write_all(&payload);
            }
            (opcode, _) => panic!("unexpected opcode {opcode}"),
        }
    }
}

/// The one thread that writes messages: what it was told to do, and how long it held what it held.
fn route(script: Script, inputs: mpsc::Receiver<Input>) -> Duration {
    let mut users: HashMap<String, TcpStream> = HashMap::new();
    // Subscribers by channel.
    let mut channels: HashMap<String, Vec<String>> = HashMap::new();
    let (mut count, mut subscriptions) = (0, 0);
    let mut later: Vec<(String, String)> = vec![];
    let (mut held_since, mut held_for) = (None, Duration::ZERO);
    let write = |users: &mut HashMap<String, TcpStream>, to: &str, bytes: &[u8]| {
        let socket = users.get_mut(to).expect("a user that joined");
        // The generator may have left.
        match script {
            Script::Split => {
                let (a, b) = bytes.split_at(bytes.len() / 2);
                socket
                    .set_nodelay(true)
                    .and_then(|()| socket.write_all(a))
                    .and_then(|()| socket.write_all(b))
                    .ok();
            }
            _ => drop(socket.write_all(bytes)),
        }
    };
    for input in inputs {
        let (from, frame) = match input {
            Input::Joined(user, mut socket) => {
                let welcome = r#"{"type":"welcome","connId":"c","userId":"u","gatewayId":"g","heartbeatMs":25000}"#;
                socket.write_all(&text_frame(welcome)).ok();
                users.insert(user, socket);
                continue;
            }
            Input::Frame(from, frame) => (from, frame),
        };
        let content = &frame["content"];
        let mut deliveries = match frame["type"].as_str() {
            Some("message") => {
                let to = frame["to"].as_str().expect("a receiver").to_owned();
                let message =
                    format!(r#"{{"type":"message","id":"m","from":"{from}","to":"{to}","content":{content},"ts":1}}"#);
                vec![(to, message)]
            }
            Some("publish") => {
                let channel = frame["channel"].as_str().expect("a channel");
                let publication = format!(
                    r#"{{"type":"publication","channel":"{channel}","id":"m","from":"{from}","content":{content},"ts":1}}"#
                );
                let subscribers = channels.get(channel).into_iter().flatten();
                subscribers.map(|to| (to.clone(), publication.clone())).collect()
            }
            Some("subscribe") => {
                let (channel, id) = (frame["channel"].as_str().expect("a channel"), &frame["id"]);
                subscriptions += 1;
                let answer = match script {
                    Script::RefuseSubscriptions => {
                        format!(r#"{{"type":"error","id":{id},"code":"unknownType","message":"what is that?"}}"#)
                    }
                    Script::ForgetSubscription if subscriptions == FANOUT_SUBSCRIPTIONS => continue,
                    _ => format!(r#"{{"type":"subscribed","channel":"{channel}","id":{id}}}"#),
                };
                write(&mut users, &from, &text_frame(&answer));
                channels.entry(channel.to_owned()).or_default().push(from);
                continue;
            }
            kind => panic!("unexpected type {kind:?}"),
        };
        let is_counted = from.ends_with('0') || frame["type"] == "publish";
        count += usize::from(is_counted);
        let is_victim = is_counted && count == VICTIM + 1;
        match script {
            Script::HoldForever => deliveries.clear(),
            Script::HoldUntil(n) => {
                let since = *held_since.get_or_insert_with(Instant::now);
                later.append(&mut deliveries);
                if later.len() >= n && held_for.is_zero() {
                    held_for = since.elapsed();
                }
                if !held_for.is_zero() {
                    deliveries = std::mem::take(&mut later);
                }
            }
            Script::Swap if is_victim => later.push(deliveries.remove(0)),
            Script::Swap if is_counted => deliveries.append(&mut later),
            Script::Lose if is_victim => drop(deliveries.remove(0)),
            Script::Duplicate if is_victim => deliveries.push(deliveries[0].clone()),
            Script::Damage if is_victim => deliveries[0].1 = deliveries[0].1.replace("abc", "abx"),
            Script::Misdeliver if is_victim => deliveries[0].0 = from.clone(),
            Script::Refuse if is_victim => {
                let refusal = r#"{"type":"error","code":"rateLimited","message":"slow down"}"#;
                deliveries = vec![(from.clone(), refusal.to_owned())];
            }
            Script::CloseSender if is_victim => {
                write(&mut users, &from, &[0x88, 2, 0x0b, 0xb9]);
                deliveries.clear();
            }
            Script::CloseReceiver if is_victim => write(&mut users, &deliveries[0].0, &[0x88, 2, 0x0b, 0xb9]),
            _ => {}
        }
        if let Some(id) = frame["id"].as_str()
            && !(script == Script::ForgetAck && is_victim)
        {
            let status = if frame["type"] == "publish" {
                "published"
            } else {
                "delivered"
            };
            let ack = format!(r#"{{"type":"ack","id":"{id}","messageId":"m","status":"{status}"}}"#);
            deliveries.push((from.clone(), ack));
        }
        for (to, text) in deliveries {
            write(&mut users, &to, &text_frame(&text));
        }
    }
    held_for
}

fn start_server(script: Script, connections: usize) -> (SocketAddr, thread::JoinHandle<Duration>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, inputs) = mpsc::channel();
    // So many come; when all have left, the router's channel closes.
    thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            let (stream, sender) = (stream.unwrap(), sender.clone());
            thread::spawn(move || serve(stream, script, sender));
        }
    });
    (address, thread::spawn(move || route(script, inputs)))
}

struct Ran {
    code: Option<i32>,
    report: Value,
    text: String,
    held_micros: f64,
}

/// Runs the generator with two users against a server with this script.
fn run(script: Script, flags: &str) -> Ran {
    run_scenario("direct --users 2", 2, script, flags)
}

/// The same with three users, who subscribe to two of three channels each, and one who publishes.
fn run_fanout(script: Script, flags: &str) -> Ran {
    run_scenario("fanout --users 3 --channels 3 --per-user 2", 4, script, flags)
}

fn run_scenario(scenario: &str, connections: usize, script: Script, flags: &str) -> Ran {
    let (address, router) = start_server(script, connections);
    let mut child = Command::new(env!("CARGO_BIN_EXE_shardgate-load"))
        .args(scenario.split_whitespace())
        .args(["--duration", "200ms", "--warmup", "0", "--json", "-"])
        .args(["--url", &format!("ws://{address}/ws")])
        .args(flags.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (sender, finished) = mpsc::channel();
    let reader = thread::spawn(move || {
        let (mut json, mut text) = (String::new(), String::new());
        stdout.read_to_string(&mut json).unwrap();
        stderr.read_to_string(&mut text).unwrap();
        sender.send(()).ok();
        (json, text)
    });
    if finished.recv_timeout(PATIENCE).is_err() {
        child.kill().unwrap();
        panic!("the generator hangs");
    }
    let (json, text) = reader.join().unwrap();
    let code = child.wait().unwrap().code();
    let report = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error} in {json:?}, {text}"));
    let held_micros = if code.is_some() {
        router.join().unwrap().as_secs_f64() * 1e6
    } else {
        0.0
    };
    Ran {
        code,
        report,
        text,
        held_micros,
    }
}

const CLOSED: &str = "--in-flight 8 --drain-timeout 200ms";

impl Ran {
    /// Asserts the exit status and the counts; all others of the counts must be 0.
    #[track_caller]
    fn expect(self, code: i32, counts: &[(&str, u64)]) -> Self {
        for key in ["lost", "duplicates", "reordered", "corrupted", "misrouted", "unsent"] {
            let expected = counts.iter().find(|(name, _)| *name == key).map_or(0, |(_, n)| *n);
            assert_eq!(self.report[key], expected, "{key}: {}\n{}", self.report, self.text);
        }
        let number = |key: &str| self.report[key].as_u64().unwrap();
        assert!(number("sent") > 8, "{}", self.report);
        assert_eq!(number("sent"), number("received") + number("lost") + number("unsent"));
        assert_eq!(self.code, Some(code), "{}", self.text);
        self
    }
}

#[test]
fn a_good_server_passes() {
    let ran = run(Script::Behave, "--in-flight 8").expect(0, &[]);
    assert_eq!(ran.report["drained"], true);
    assert_eq!(ran.report["connections"]["ready"], 2);
    assert!(ran.report["latencyMicros"]["p999"].as_f64().unwrap() > 0.0);
    assert!(ran.text.ends_with("ok\n"), "{}", ran.text);
}

#[test]
fn frames_in_pieces_are_put_together() {
    run(Script::Split, "--in-flight 8 --payload 3000 --auth message --ack").expect(0, &[]);
}

#[test]
fn an_open_loop_sends_what_was_asked() {
    let ran = run(Script::Behave, "--rate 500 --ack").expect(0, &[]);
    // 200 ms at 500/s, however late this machine let it run.
    assert!(ran.report["sent"].as_u64().unwrap() >= 100, "{}", ran.report);
    assert_eq!(ran.report["acks"]["byStatus"]["delivered"], ran.report["sent"]);
}

#[test]
fn a_loss_is_seen() {
    let ran = run(Script::Lose, CLOSED).expect(1, &[("lost", 1)]);
    assert_eq!(ran.report["drained"], false);
    assert!(ran.text.ends_with("FAILED\n"), "{}", ran.text);
}

#[test]
fn a_duplicate_is_seen() {
    run(Script::Duplicate, CLOSED).expect(1, &[("duplicates", 1)]);
}

#[test]
fn a_reordering_is_seen() {
    run(Script::Swap, CLOSED).expect(1, &[("reordered", 1)]);
}

#[test]
fn damage_is_seen() {
    run(Script::Damage, CLOSED).expect(1, &[("corrupted", 1), ("lost", 1)]);
}

#[test]
fn misdelivery_is_seen() {
    run(Script::Misdeliver, CLOSED).expect(1, &[("misrouted", 1), ("lost", 1)]);
}

#[test]
fn an_error_frame_is_seen() {
    let ran = run(Script::Refuse, CLOSED).expect(1, &[("lost", 1)]);
    assert_eq!(ran.report["errors"]["rateLimited"], 1);
    assert!(ran.text.contains("slow down"), "{}", ran.text);
}

#[test]
fn a_close_frame_is_seen() {
    let ran = run(Script::CloseSender, CLOSED);
    assert_eq!(ran.report["closes"]["3001"], 1, "{}", ran.report);
    assert!(ran.report["lost"].as_u64().unwrap() > 0);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn a_missing_ack_is_seen() {
    let ran = run(Script::ForgetAck, &format!("{CLOSED} --ack")).expect(1, &[]);
    assert_eq!(ran.report["acks"]["missing"], 1);
}

#[test]
fn a_stall_is_in_the_latency_of_all_that_were_due() {
    let ran = run(Script::HoldUntil(20), "--rate 200").expect(0, &[]);
    // Both sides measured the same stall; the generator's began earlier and ended later.
    assert!(ran.held_micros > 0.0);
    assert!(
        ran.report["latencyMicros"]["max"].as_f64().unwrap() >= ran.held_micros,
        "{}",
        ran.report
    );
    assert!(
        ran.report["longestSilenceMicros"].as_f64().unwrap() >= ran.held_micros,
        "{}",
        ran.report
    );
}

#[test]
fn a_server_that_stands_still_is_not_waited_for() {
    let ran = run(Script::HoldForever, "--rate 200 --drain-timeout 200ms");
    assert_eq!(ran.report["received"], 0);
    assert_eq!(ran.report["lost"], ran.report["sent"]);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn refused_connections_are_counted_by_reason() {
    let ran = run(Script::Answer503, "");
    assert_eq!(ran.report["connections"]["failed"], 2);
    assert_eq!(ran.report["connections"]["failures"]["http 503"], 2);
    assert_eq!((ran.code, &ran.report["sent"]), (Some(1), &Value::from(0)));
}

#[test]
fn a_server_without_a_welcome_is_given_up() {
    let ran = run(Script::NeverWelcome, "--connect-timeout 200ms");
    assert_eq!(ran.report["connections"]["failures"]["timed out"], 2, "{}", ran.report);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn an_unknown_scenario_is_refused_with_those_that_exist() {
    let output = Command::new(env!("CARGO_BIN_EXE_shardgate-load"))
        .arg("tsunami")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text.contains("tsunami") && text.contains("idle") && text.contains("direct"),
        "{text}"
    );
}

#[test]
fn publications_reach_all_subscribers() {
    for flags in [
        "",
        "--in-flight 8 --ack --payload 3000 --auth message",
        "--rate 100 --ack",
        "--in-flight 8 --ack --threads 3",
        "--rate 100 --ack --threads 2",
        "--rate 100 --ack --processes 3",
    ] {
        let ran = run_fanout(Script::Behave, flags).expect(0, &[]);
        let report = &ran.report;
        assert_eq!(report["subscriptions"], FANOUT_SUBSCRIPTIONS, "{report}");
        assert_eq!(report["connections"]["ready"], 4);
        let publications = report["publications"].as_u64().unwrap();
        assert_eq!(report["sent"], 2 * publications, "two of three users are in a channel");
        let acks = if flags.contains("--ack") { publications } else { 0 };
        assert_eq!(report["acks"]["byStatus"]["published"].as_u64().unwrap_or(0), acks);
        let at = |key: &str, quantile: &str| report[key][quantile].as_f64().unwrap();
        assert!(at("latencyMicros", "p50") <= at("lastSubscriberMicros", "max"));
        assert_eq!(at("latencyMicros", "max"), at("lastSubscriberMicros", "max"));
        assert!(ran.text.ends_with("ok\n"), "{}", ran.text);
    }
}

/// A fanout on one thread, on several, and in several processes, where the publisher and two of
/// three users are apart.
const FANOUT_HOW: [&str; 3] = [
    CLOSED,
    "--in-flight 8 --drain-timeout 200ms --threads 3",
    "--rate 200 --drain-timeout 200ms --processes 3",
];

#[test]
fn each_fault_of_a_delivery_is_seen() {
    for (script, counts) in [
        (Script::Lose, &[("lost", 1)][..]),
        (Script::Duplicate, &[("duplicates", 1)]),
        (Script::Damage, &[("corrupted", 1), ("lost", 1)]),
        (Script::Misdeliver, &[("misrouted", 1), ("lost", 1)]),
        (Script::Refuse, &[("lost", 2)]),
    ] {
        for how in FANOUT_HOW {
            let ran = run_fanout(script, how).expect(1, counts);
            let lost = counts.iter().any(|(what, _)| *what == "lost");
            assert_eq!(ran.report["drained"], !lost, "{how}: {}", ran.report);
        }
    }
}

#[test]
fn publications_are_ordered_by_channel() {
    for how in FANOUT_HOW {
        run_scenario("fanout --users 3", 4, Script::Swap, how).expect(1, &[("reordered", 1)]);
        // The one that overtakes is in another channel.
        run_fanout(Script::Swap, how).expect(0, &[]);
    }
}

#[test]
fn a_publication_has_arrived_when_the_last_subscriber_has_it() {
    // One publication at a time, and one that does not arrive everywhere: the publisher waits for
    // ever.
    for how in ["", "--threads 2", "--threads 3"] {
        let flags = format!("--in-flight 1 --drain-timeout 200ms {how}");
        let ran = run_scenario("fanout --users 3", 4, Script::Lose, &flags);
        assert_eq!(ran.report["publications"], VICTIM + 1, "{how}: {}", ran.report);
        assert_eq!((ran.code, &ran.report["lost"]), (Some(1), &Value::from(1)));
        assert_eq!(ran.report["sent"], 3 * (VICTIM + 1));
    }
}

#[test]
fn a_publication_that_a_subscriber_left_has_arrived_when_the_others_have_it() {
    for how in ["--in-flight 1", "--in-flight 1 --threads 3", "--rate 200 --processes 3"] {
        let ran = run_scenario("fanout --users 3", 4, Script::CloseReceiver, how);
        let number = |key: &str| ran.report[key].as_u64().unwrap();
        assert_eq!(ran.report["closes"]["3001"], 1, "{}", ran.report);
        assert_eq!(number("sent"), number("received") + number("lost"));
        let publications = number("publications");
        assert!(publications > VICTIM as u64 + 1, "{how}: {}", ran.report);
        assert!(
            number("sent") < 3 * publications,
            "nobody is expected to hear what came later"
        );
        assert_eq!(
            (ran.code, &ran.report["drained"]),
            (Some(1), &Value::from(true)),
            "{how}: {}",
            ran.report
        );
    }
}

#[test]
fn publishers_in_other_processes_are_heard_in_order() {
    for how in [
        "--in-flight 4 --threads 4",
        "--rate 300 --threads 3",
        "--rate 300 --threads 2 --processes 2",
    ] {
        let scenario = "fanout --users 5 --publishers 3 --channels 2 --per-user 2";
        let ran = run_scenario(scenario, 8, Script::Behave, how).expect(0, &[]);
        let number = |key: &str| ran.report[key].as_u64().unwrap();
        assert_eq!(number("sent"), 5 * number("publications"), "{how}: everybody hears all");
        assert_eq!(ran.report["drained"], true, "{how}: {}", ran.report);
    }
}

#[test]
fn a_server_that_holds_all_publications_loses_them_all() {
    let flags = "--rate 200 --drain-timeout 200ms --processes 2";
    let ran = run_scenario("fanout --users 4 --publishers 2", 6, Script::HoldForever, flags);
    let lost = 4 * ran.report["publications"].as_u64().unwrap();
    let ran = ran.expect(1, &[("lost", lost)]);
    assert_eq!(ran.report["received"], 0);
}

#[test]
fn a_missing_ack_of_a_publication_is_seen() {
    for how in FANOUT_HOW {
        let ran = run_fanout(Script::ForgetAck, &format!("{how} --ack")).expect(1, &[]);
        assert_eq!(ran.report["acks"]["missing"], 1);
    }
}

#[test]
fn without_all_subscriptions_there_is_no_load() {
    for (script, confirmed, reason, count) in [
        (Script::RefuseSubscriptions, 0, "unknownType", FANOUT_SUBSCRIPTIONS),
        (Script::ForgetSubscription, FANOUT_SUBSCRIPTIONS - 1, "no answer", 1),
    ] {
        for how in ["", "--threads 3", "--processes 2"] {
            let ran = run_fanout(script, &format!("--connect-timeout 200ms {how}"));
            assert_eq!(ran.report["subscriptions"], confirmed, "{}", ran.report);
            assert_eq!(ran.report["subscriptionFailures"][reason], count, "{}", ran.report);
            assert_eq!((ran.code, &ran.report["publications"]), (Some(1), &Value::from(0)));
            assert_eq!(
                ran.report["generator"]["saturated"], false,
                "there was nothing to be busy with"
            );
            let told = format!("NOT SUBSCRIBED, so there was no load: {reason}: {count}\n");
            assert!(ran.text.contains(&told), "{}", ran.text);
        }
    }
}
