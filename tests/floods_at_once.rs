//! Hostile clients, each kind by itself and all at once: the gateway holds no more sockets and memory than its configuration
//! says, and who behaves is served throughout, every message in order.
//!
//! Every flood is a bounded loop; while it lasts, good users talk. Nothing is held to a time: [`latency_under_flood`] measures
//! that, and runs only when it is asked for.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

use common::authority::Secure;
use common::client::{Client, PING, TEXT, frame_bytes, text_bytes, upgrade_head};
use common::gateway::run_command;
use common::{DEADLINE, Gateway, eventually};
use rustls::{ClientConfig, ClientConnection};

on_both_engines! { each_by_itself, all_at_once, all_at_once_over_tls }

/// Good users talk in pairs, several messages at a time.
const PAIRS: usize = 4;
const IN_A_ROW: usize = 5;
/// What is configured, and what follows from it.
const SHARDS: usize = 2;
const HANDSHAKES: usize = 2_000;
const CONNECTIONS: usize = 200;
const HEADER_BYTES: usize = 8 * 1024;
const MESSAGE_BYTES: usize = 16 * 1024;
const OUTBOX_BYTES: usize = 128 * 1024;
/// Most that a TLS handshake may have sent before it is finished, and what its state takes.
const TLS_BYTES: usize = 96 * 1024;

fn arguments() -> Vec<String> {
    [
        ("shards", SHARDS),
        ("limits-handshakes", HANDSHAKES),
        ("limits-connections", CONNECTIONS),
        ("limits-header-bytes", HEADER_BYTES),
        ("limits-message-bytes", MESSAGE_BYTES),
        ("limits-outbox-bytes", OUTBOX_BYTES),
        // More than anybody can say here: the rate is not what keeps a flood from others.
        ("limits-messages-per-second", 1_000_000),
        ("limits-burst", 1_000_000),
    ]
    .into_iter()
    .flat_map(|(key, value)| [format!("--{key}"), value.to_string()])
    .collect()
}

/// Sockets besides those that limits count: accepted and not looked at yet, and closes under way, which take a turn to be asked for
/// and one to be done, of a turn's completions each, per shard.
const SOCKETS_BETWEEN: usize = SHARDS * (8 + 2 * 1024);
/// Descriptors that are no sockets of clients: rings, listeners, eventfds, logs.
const FILES: usize = 124;
/// What a shard has besides its connections: receive buffers, spare buffers, rings, tables as they grow; of a debug build.
const SHARD_BYTES: usize = 16 << 20;

/// The most that the gateway may grow by, from what is configured: half a head and a receive's bytes for each pending socket, a
/// message and an outbox (and what that was copied from, while it grows) for each connection.
fn bytes_max(pending_bytes: usize) -> usize {
    HANDSHAKES * (pending_bytes + 4096) + CONNECTIONS * (MESSAGE_BYTES + 2 * OUTBOX_BYTES) + SHARDS * SHARD_BYTES
}

// ---- The floods ----

/// Where, how, and whether it is over before its loops are.
#[derive(Clone)]
struct Target {
    addr: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    over: Arc<AtomicBool>,
    /// How much of each flood; 1 for a test.
    rounds: usize,
}

/// One hostile connection. Nothing that happens to it is an error.
struct Hostile {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Hostile {
    /// The bare socket.
    fn connect(target: &Target) -> Option<Hostile> {
        let stream = TcpStream::connect(target.addr).ok()?;
        // What the gateway does not read or answer is not waited for.
        stream.set_write_timeout(Some(Duration::from_millis(50))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        Some(Hostile { stream, tls: None })
    }

    /// With TLS if the gateway speaks it.
    fn secure(target: &Target) -> Option<Hostile> {
        let mut it = Hostile::connect(target)?;
        if let Some(config) = &target.tls {
            let mut tls = ClientConnection::new(Arc::clone(config), target.addr.ip().into()).ok()?;
            while tls.is_handshaking() {
                tls.complete_io(&mut it.stream).ok()?;
            }
            it.tls = Some(Box::new(tls));
        }
        Some(it)
    }

    /// A WebSocket of this user, after some answer to its handshake.
    fn upgraded(target: &Target, user: &str) -> Option<Hostile> {
        let mut it = Hostile::secure(target)?;
        let head = upgrade_head(&format!("/ws?user={user}"), "");
        (it.send(head.as_bytes()) && it.read()).then_some(it)
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        match &mut self.tls {
            None => self.stream.write_all(bytes).is_ok(),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream)
                .write_all(bytes)
                .is_ok(),
        }
    }

    /// False at the end.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = match &mut self.tls {
            None => self.stream.read(&mut bytes),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(&mut bytes),
        };
        matches!(read, Ok(1..))
    }

    fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

impl Target {
    fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Does it so many times, unless it is over before.
    fn repeat(&self, times: usize, mut once: impl FnMut(usize)) {
        for n in 0..times * self.rounds {
            if !self.goes_on() {
                return;
            }
            once(n);
        }
    }

    /// Connections of this user, one after another, that send this again and again.
    fn pour(&self, user: &str, connections: usize, bytes: &[u8], times: usize) {
        self.repeat(connections, |_| {
            if let Some(mut client) = Hostile::upgraded(self, user) {
                let _ = (0..times).all(|_| self.goes_on() && client.send(bytes));
            }
        });
    }
}

type Flood = fn(&Target);

const FLOODS: [(&str, Flood); 11] = [
    ("half-open sockets", half_open),
    ("heads that come byte by byte", slow_loris),
    ("giant heads", giant_heads),
    ("heads that two parsers read differently", smuggled_heads),
    ("pings", pings),
    ("fragments of nothing", fragments),
    ("frames that are none", malformed_frames),
    ("questions whose answers are not read", no_reading),
    ("connects and resets", resets),
    ("TLS handshakes that break", broken_tls),
    ("pages asked for in a pipeline", pages),
];

/// Five times what the gateway holds of such.
fn half_open(target: &Target) {
    let mut silent = VecDeque::new();
    target.repeat(5 * HANDSHAKES, |_| {
        if silent.len() == 5 * HANDSHAKES {
            silent.pop_front();
        }
        silent.extend(TcpStream::connect(target.addr));
    });
    // All of them stay until the gateway has taken most of them from the listeners' queues, and so has closed this one.
    if target.goes_on()
        && let Some(early) = silent.get_mut(2 * HANDSHAKES)
    {
        early.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = early.read(&mut [0]);
    }
}

fn slow_loris(target: &Target) {
    let head = upgrade_head("/ws?user=loris", "");
    let mut clients: Vec<Hostile> = Vec::new();
    target.repeat(40, |n| {
        clients.extend((clients.len()..200).filter_map(|_| Hostile::connect(target)));
        let byte = head.as_bytes()[n % (head.len() - 1)];
        clients.retain_mut(|client| client.send(&[byte]));
    });
}

fn giant_heads(target: &Target) {
    let field = vec![b'x'; 64 * 1024];
    target.repeat(100, |_| {
        if let Some(mut client) = Hostile::secure(target) {
            let _ = client.send(b"GET /ws HTTP/1.1\r\nX: ") && (0..16).all(|_| client.send(&field));
        }
    });
}

fn smuggled_heads(target: &Target) {
    let fields = [
        "Host: other\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "X: one\r\n two\r\n",
        "X: a\0b\r\n",
        "X : a\r\n",
    ];
    target.repeat(300, |n| {
        if let Some(mut client) = Hostile::secure(target) {
            let head = upgrade_head("/ws?user=smuggler", fields[n % fields.len()]);
            let _ = client.send(head.as_bytes()) && client.read();
        }
    });
}

fn pings(target: &Target) {
    let bytes = frame_bytes(0x80 | PING, &[b'x'; 125]).repeat(500);
    target.pour("pinger", 20, &bytes, 50);
}

fn fragments(target: &Target) {
    let bytes = [frame_bytes(TEXT, b"\""), frame_bytes(0, b"").repeat(5_000)].concat();
    target.pour("empty", 10, &bytes, 20);
    // Of one message that never ends, a byte each.
    let bytes = [frame_bytes(TEXT, b"\""), frame_bytes(0, b"x").repeat(MESSAGE_BYTES + 1)].concat();
    target.pour("crumbs", 10, &bytes, 1);
}

fn malformed_frames(target: &Target) {
    target.pour("grammar", 50, &text_bytes("{").repeat(100), 10);
    target.pour("bits", 50, &frame_bytes(0xff, b"x").repeat(100), 10);
}

fn no_reading(target: &Target) {
    let question = format!(
        r#"{{"type":"message","to":"deaf","content":"{}","id":"c"}}"#,
        "x".repeat(8_000)
    );
    target.pour("deaf", 20, &text_bytes(&question).repeat(10), 20);
}

fn resets(target: &Target) {
    target.repeat(3_000, |n| {
        if let Some(mut client) = Hostile::connect(target) {
            if n % 3 == 1 {
                client.send(b"GET /ws");
            }
            client.reset();
        }
    });
    target.repeat(200, |_| {
        if let Some(client) = Hostile::upgraded(target, "fleeting") {
            client.reset();
        }
    });
}

fn broken_tls(target: &Target) {
    let hello = target.tls.as_ref().map(|config| {
        let mut tls = ClientConnection::new(Arc::clone(config), target.addr.ip().into()).unwrap();
        let mut flight = Vec::new();
        tls.write_tls(&mut flight).unwrap();
        flight
    });
    let hello = hello.unwrap_or_else(|| b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec());
    target.repeat(1_500, |n| {
        let Some(mut client) = Hostile::connect(target) else {
            return;
        };
        let _ = match n % 4 {
            // Half a hello; a hello, and away before or after the answer; a hello, and nonsense.
            0 => client.send(&hello[..hello.len() / 2]),
            1 => client.send(&hello),
            2 => client.send(&hello) && client.read(),
            _ => client.send(&hello) && client.send(&[0x17; 600]) && client.read(),
        };
    });
}

fn pages(target: &Target) {
    let bytes = b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50);
    target.repeat(10, |_| {
        if let Some(mut client) = Hostile::secure(target) {
            let _ = (0..10).all(|_| client.send(&bytes));
        }
    });
}

// ---- Those who behave, and what is held to the limits ----

/// Pairs of good users who talk, both ways, over TLS where the gateway speaks it.
struct Good {
    pairs: Vec<JoinHandle<()>>,
    /// Messages that came to whom they were for, in order, and whose senders were told so.
    told: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Good {
    fn start(gateway: &Gateway) -> Good {
        let (told, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let pair = |n| {
            let names = [format!("left{n}"), format!("right{n}")];
            let mut users = names.clone().map(|name| gateway.connect(&name));
            let (told, over) = (Arc::clone(&told), Arc::clone(&over));
            std::thread::spawn(move || {
                for round in 0.. {
                    if over.load(SeqCst) {
                        break;
                    }
                    let [left, right] = &mut users;
                    talk(left, right, &names[1], round);
                    talk(right, left, &names[0], round);
                    told.fetch_add(2 * IN_A_ROW, SeqCst);
                }
                users.into_iter().for_each(Client::close);
            })
        };
        Good {
            pairs: (0..PAIRS).map(pair).collect(),
            told,
            over,
        }
    }

    fn wait_for_more(&self, messages: usize) {
        let goal = self.told.load(SeqCst) + messages;
        eventually("more messages", || {
            assert!(
                !self.pairs.iter().any(JoinHandle::is_finished),
                "somebody was not served"
            );
            self.told.load(SeqCst) >= goal
        });
    }

    fn stop(self) {
        self.over.store(true, SeqCst);
        self.pairs.into_iter().for_each(|pair| pair.join().unwrap());
    }
}

/// Several messages one behind the other: each is acked as delivered, and comes in its turn.
fn talk(from: &mut Client, to: &mut Client, name: &str, round: usize) {
    let numbers = round * IN_A_ROW..(round + 1) * IN_A_ROW;
    for n in numbers.clone() {
        from.send_text(&format!(
            r#"{{"type":"message","to":"{name}","content":{n},"id":"{n}"}}"#
        ));
    }
    for n in numbers {
        let ack = from.recv_json();
        assert_eq!(
            (&ack["id"], &ack["status"]),
            (&n.to_string().into(), &"delivered".into()),
            "{ack}"
        );
        let message = to.recv_json();
        assert_eq!(message["content"], n, "{message}");
    }
}

/// The most that was seen.
#[derive(Debug, Default)]
struct Most {
    files: usize,
    resident_bytes: usize,
}

impl Most {
    fn look(&mut self, gateway: &Gateway) {
        let dir = format!("/proc/{}", gateway.pid());
        let status = std::fs::read_to_string(format!("{dir}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        self.resident_bytes = self.resident_bytes.max(kib * 1024);
        self.files = self.files.max(std::fs::read_dir(format!("{dir}/fd")).unwrap().count());
    }
}

/// Ends the floods also when the test fails.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Lets these floods loose together and holds the gateway to its promises until the last of them is done.
fn under(gateway: &Gateway, floods: &[(&str, Flood)], pending_bytes: usize) {
    let what: Vec<&str> = floods.iter().map(|(name, _)| *name).collect();
    let target = Target {
        addr: gateway.addr,
        tls: gateway.tls.clone(),
        over: Arc::default(),
        rounds: 1,
    };
    let mut before = Most::default();
    before.look(gateway);
    let good = Good::start(gateway);
    let mut most = Most::default();
    std::thread::scope(|scope| {
        let _over = Over(Arc::clone(&target.over));
        let running = let_loose(scope, floods, &target);
        loop {
            most.look(gateway);
            good.wait_for_more(2 * PAIRS * IN_A_ROW);
            // Who comes now is served as well.
            gateway.connect("newcomer").close();
            if running.iter().all(ScopedJoinHandle::is_finished) {
                break;
            }
        }
    });
    good.stop();
    let files_max = HANDSHAKES + CONNECTIONS + SOCKETS_BETWEEN + FILES;
    assert!(
        most.files <= files_max,
        "{what:?}: {} descriptors, {files_max} are allowed",
        most.files
    );
    let grown = most.resident_bytes.saturating_sub(before.resident_bytes);
    let bytes_max = bytes_max(pending_bytes);
    eprintln!(
        "{what:?}: {} descriptors at most, grew by {} KiB",
        most.files,
        grown / 1024
    );
    assert!(
        grown <= bytes_max,
        "{what:?}: grew by {grown} bytes, {bytes_max} are allowed"
    );
}

fn let_loose<'scope>(
    scope: &'scope Scope<'scope, '_>,
    floods: &[(&str, Flood)],
    target: &Target,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let spawn = |&(_, flood): &(&str, Flood)| {
        let target = target.clone();
        scope.spawn(move || flood(&target))
    };
    floods.iter().map(spawn).collect()
}

/// The floods have up to half the descriptors that this process may have: one gateway at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn each_by_itself(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let gateway = Gateway::start(&[&["--engine", engine], &arguments[..]].concat());
    for flood in FLOODS {
        under(&gateway, &[flood], HEADER_BYTES);
    }
    let refused =
        |reason: &str| gateway.metric("shardgate_handshakes_refused_total", &[&format!("reason=\"{reason}\"")]);
    assert!(refused("handshake_limit") >= HANDSHAKES as f64);
    assert!(refused("head_too_large") >= 1.0 && refused("not_an_upgrade") >= 1.0 && refused("malformed") >= 1.0);
}

fn all_at_once(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let gateway = Gateway::start(&[&["--engine", engine], &arguments[..]].concat());
    under(&gateway, &FLOODS, HEADER_BYTES);
}

fn all_at_once_over_tls(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let it = Secure::start(engine, &arguments);
    under(&it.gateway, &FLOODS, TLS_BYTES);
    assert!(it.refused("tls") >= 1.0);
}

// ---- Latency ----

/// What messages of those who behave take: quiet, beside floods that are none of their gateway's business, and under floods.
/// `docs/testing.md` has the command.
///
/// With `GATEWAY_CPUS` the gateway has those CPUs and nobody else has. On the others floods get only what its users leave, and
/// so does a second gateway: what messages take while floods go there is what floods do to the machine, and the rest is what
/// they do to the gateway. What counts is the middle one of the p99 of all seconds of all rounds: a machine that stands still for
/// fifty milliseconds spoils one second, and p99 of the whole run as well.
#[test]
#[ignore = "measures, for release builds; docs/testing.md has the command"]
fn latency_under_flood() {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (named, rounds) = (setting("FLOOD", ""), setting("ROUNDS", "2").parse().unwrap());
    for engine in setting("ENGINES", "ring epoll").split_whitespace() {
        let bench = Bench::new(engine);
        let all = ("all at once", &FLOODS[..]);
        let floods = FLOODS
            .iter()
            .map(|flood| (flood.0, std::slice::from_ref(flood)))
            .chain([all]);
        let floods: Vec<_> = floods.filter(|(name, _)| name.contains(&named)).collect();
        let mut quiet = Row::default();
        let mut rows: Vec<[Row; 2]> = floods.iter().map(|_| Default::default()).collect();
        for _ in 0..rounds {
            quiet.add(bench.measure());
            for ((_, flood), [elsewhere, here]) in floods.iter().zip(&mut rows) {
                elsewhere.add(bench.measure_under(flood, &bench.elsewhere));
                here.add(bench.measure_under(flood, &bench.gateway));
            }
        }
        println!("{engine} | p50 µs | p99 µs | p99 µs, worst second | p99 of turns µs");
        println!("quiet | {quiet}");
        for ((name, _), [elsewhere, here]) in floods.iter().zip(rows) {
            println!("{name}, elsewhere | {elsewhere}");
            println!("{name} | {here}");
        }
    }
}

/// What the generator saw, second by second, and what turns of a shard took meanwhile.
#[derive(Default)]
struct Row {
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    turns: Turns,
}

impl Row {
    fn add(&mut self, other: Row) {
        self.p50_us.extend(other.p50_us);
        self.p99_us.extend(other.p99_us);
        self.turns.add(other.turns, 1.0);
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values
        };
        let (p50, p99) = (sorted(&self.p50_us), sorted(&self.p99_us));
        let (middle, worst) = (p99.len() / 2, p99.len() - 1);
        write!(
            f,
            "{} | {} | {} | {}",
            p50[middle],
            p99[middle],
            p99[worst],
            self.turns.p99_us()
        )
    }
}

/// Two gateways, and which CPUs are neither's own.
struct Bench {
    gateway: Gateway,
    elsewhere: Gateway,
    others: Vec<usize>,
}

impl Bench {
    fn new(engine: &str) -> Bench {
        let cpus = std::env::var("GATEWAY_CPUS").unwrap_or_else(|_| "none".to_owned());
        let (shards, others) = match cpus.as_str() {
            "none" => (2, Vec::new()),
            list => {
                let own: Vec<usize> = list.split(',').map(|cpu| cpu.parse().unwrap()).collect();
                let all = core_affinity::get_core_ids().unwrap().into_iter().map(|core| core.id);
                (own.len(), all.filter(|cpu| !own.contains(cpu)).collect())
            }
        };
        let start = |cpus: &str| Gateway::start(&["--engine", engine, "--cpus", cpus, "--shards", &shards.to_string()]);
        let (gateway, elsewhere) = (start(&cpus), start("none"));
        for thread in std::fs::read_dir(format!("/proc/{}/task", elsewhere.pid())).unwrap() {
            let thread = thread.unwrap().file_name().into_string().unwrap();
            make_way(rustix::process::Pid::from_raw(thread.parse().unwrap()), &others);
        }
        Bench {
            gateway,
            elsewhere,
            others,
        }
    }

    fn measure(&self) -> Row {
        measure(&self.gateway, &self.others)
    }

    fn measure_under(&self, floods: &[(&str, Flood)], flooded: &Gateway) -> Row {
        let target = Target {
            addr: flooded.addr,
            tls: None,
            over: Arc::default(),
            rounds: usize::MAX / (5 * HANDSHAKES),
        };
        std::thread::scope(|scope| {
            let _over = Over(Arc::clone(&target.over));
            for &(_, flood) in floods {
                let target = target.clone();
                scope.spawn(move || {
                    make_way(None, &self.others);
                    flood(&target);
                });
            }
            self.measure()
        })
    }
}

/// Lets a thread, or the calling one, run on these CPUs only, and there only when nobody else wants to. Without any it stays as
/// it is.
fn make_way(thread: Option<rustix::process::Pid>, cpus: &[usize]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    rustix::thread::sched_setaffinity(thread, &set).unwrap();
    let thread = thread.map_or(0, rustix::process::Pid::as_raw_pid);
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameters, which live across it; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const parameters) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// 100 users, 1,000 messages per second between them, for six seconds, from these CPUs or any.
fn measure(gateway: &Gateway, cpus: &[usize]) -> Row {
    let json = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardgate-load"));
    let url = format!("ws://{}/ws", gateway.addr);
    command.args(["direct", "--users", "100", "--rate", "1000", "--duration", "6s"]);
    command.args(["--url", &url, "--json"]).arg(json.path());
    if !cpus.is_empty() {
        let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        command.args(["--cpus", &cpus.join(",")]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let turns = Turns::so_far(gateway);
    let ended = run_command(command);
    let mut meanwhile = Turns::so_far(gateway);
    meanwhile.add(turns, -1.0);
    let text = std::fs::read_to_string(json.path()).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!(report["lost"], 0, "messages were lost");
    let seconds = report["series"].as_array().unwrap().iter();
    let seconds: Vec<_> = seconds.filter(|second| second["phase"] == "measure").collect();
    let of_each = |key: &str| seconds.iter().filter_map(|second| second[key].as_f64()).collect();
    Row {
        p50_us: of_each("p50Micros"),
        p99_us: of_each("p99Micros"),
        turns: meanwhile,
    }
}

/// How many turns of a shard took how long: what the gateway itself makes a message wait.
#[derive(Default)]
struct Turns(Vec<(String, f64)>);

impl Turns {
    fn so_far(gateway: &Gateway) -> Turns {
        let text = gateway.numbers("/metrics").body;
        let buckets = text.lines().filter_map(|line| {
            let series = line.strip_prefix("shardgate_loop_turn_seconds_bucket{shard=\"0\",le=\"")?;
            let (limit, turns) = series.split_once("\"} ")?;
            Some((limit.to_owned(), turns.parse().unwrap()))
        });
        Turns(buckets.collect())
    }

    fn add(&mut self, other: Turns, times: f64) {
        if self.0.is_empty() {
            *self = other;
            return;
        }
        for ((_, turns), (_, others)) in self.0.iter_mut().zip(other.0) {
            *turns += times * others;
        }
    }

    /// The end of the bucket that 99 % of the turns are within.
    fn p99_us(&self) -> f64 {
        let all = self.0.last().map_or(0.0, |(_, turns)| *turns);
        let bucket = self.0.iter().find(|(_, turns)| *turns >= 0.99 * all);
        bucket.map_or(f64::NAN, |(limit, _)| {
            limit.parse::<f64>().unwrap_or(f64::INFINITY) * 1e6
        })
    }
}
