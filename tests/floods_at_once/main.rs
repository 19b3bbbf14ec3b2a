//! Hostile clients, each kind by itself and all at once: the gateway holds no more sockets and
//! memory than its configuration says, and who behaves is served throughout, every message in
//! order.
//!
//! Every flood is a bounded loop; while it lasts, good users talk. Nothing is held to a time:
//! [`latency_under_flood`] measures that, and runs only when it is asked for.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: what they cannot do ends the test"
)]

#[path = "../common/mod.rs"]
mod common;

mod hostile;
mod kinds;
mod latency;
mod machine;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};

use common::client::Client;
use common::storm::Link;
use common::{Authority, Fleet, Gateway, Redis, eventually};
use hostile::Target;
use kinds::{FLOODS, Flood};
use machine::Machine;

on_both_engines! { each_by_itself, each_by_itself_over_tls, all_at_once, all_at_once_over_tls }

/// Good users talk in pairs, several messages at a time: pairs of this gateway, and of this one and
/// another.
const PAIRS: usize = 4;
const FAR_PAIRS: usize = 2;
const IN_A_ROW: u64 = 5;
/// What is configured, and what follows from it.
const SHARDS: usize = 2;
const HANDSHAKES: usize = 2_000;
const CONNECTIONS: usize = 200;
const HEADER_BYTES: usize = 8 * 1024;
const MESSAGE_BYTES: usize = 16 * 1024;
const OUTBOX_BYTES: usize = 128 * 1024;
/// Most that a TLS handshake may have sent before it is finished, and what its state takes.
const TLS_BYTES: usize = 96 * 1024;

/// Besides what every gateway of a fleet has: so many shards, and no rate, which is not what keeps
/// a flood from others.
fn arguments() -> Vec<String> {
    [
        ("limits-handshakes", HANDSHAKES),
        ("limits-connections", CONNECTIONS),
        ("limits-header-bytes", HEADER_BYTES),
        ("limits-message-bytes", MESSAGE_BYTES),
        ("limits-outbox-bytes", OUTBOX_BYTES),
    ]
    .into_iter()
    .flat_map(|(key, value)| [format!("--{key}"), value.to_string()])
    .collect()
}

/// Sockets besides those that limits count: accepted and not looked at yet, and closes under way,
/// which take a turn to be asked for and one to be done, of a turn's completions each, per shard.
const SOCKETS_BETWEEN: usize = SHARDS * (8 + 2 * 1024);
/// What one run of floods may make the gateway write to its log: peers must not fill a disk.
const LOG_LINES: usize = 50;
/// Descriptors that are no sockets of clients: rings, listeners, eventfds, logs.
const FILES: usize = 124;
/// What a shard has besides its connections: receive buffers, spare buffers, rings, tables as they
/// grow; of a debug build.
const SHARD_BYTES: usize = 16 << 20;

/// The most that the gateway may grow by, from what is configured: half a head and a receive's
/// bytes for each pending socket, a message and an outbox (and what that was copied from, while it
/// grows) for each connection. Answers that are not read and questions for presence may take more
/// (`SECURITY.md`), but so few clients have such that they find room in this.
fn bytes_max(pending_bytes: usize) -> usize {
    HANDSHAKES * (pending_bytes + 4096) + CONNECTIONS * (MESSAGE_BYTES + 2 * OUTBOX_BYTES) + SHARDS * SHARD_BYTES
}

// ---- Those who behave, and what is held to the limits ----

/// The gateway that is flooded, and another one that it shares a Redis with.
struct Site {
    flooded: Gateway,
    other: Gateway,
    links: [Link; 2],
    machine: Machine,
    _redis: Redis,
    _authority: Option<Authority>,
}

impl Site {
    fn start(engine: &str) -> Site {
        Site::start_with(engine, None)
    }

    fn start_with_tls(engine: &str) -> Site {
        Site::start_with(engine, Some(Authority::new()))
    }

    fn start_with(engine: &str, authority: Option<Authority>) -> Site {
        let redis = Redis::start();
        let arguments = arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let fleet = Fleet::new(redis.url()).with_args(&[&["--engine", engine], &arguments[..]].concat());
        let mut flooded = fleet.command("flooded");
        if let Some(authority) = &authority {
            let pair = authority.sign("server");
            flooded.args(["--tls-cert", pair.cert(), "--tls-key", pair.key()]);
        }
        let mut flooded = Gateway::try_spawn(flooded).unwrap_or_else(|ended| panic!("{ended:#?}"));
        flooded.tls = authority.as_ref().map(Authority::client);
        let other = fleet.gateway("other");
        for gateway in [&flooded, &other] {
            eventually("the gateways know each other", || {
                gateway.metric("shardgate_cluster_gateways", &[]) == 1.0
            });
        }
        Site {
            links: [&flooded, &other].map(Link::of),
            flooded,
            other,
            machine: Machine::watch(),
            _redis: redis,
            _authority: authority,
        }
    }

    fn gateways(&self) -> [&Gateway; 2] {
        [&self.flooded, &self.other]
    }

    /// What came and went between the gateways did so as if there were no flood.
    fn assert_links_held(&self) {
        if self.machine.stood_still()() {
            return;
        }
        for (link, gateway) in self.links.iter().zip(self.gateways()) {
            link.assert_held(gateway);
        }
    }

    fn count(&self, metric: &str, label: &str) -> f64 {
        self.flooded.metric(metric, &[label])
    }

    fn refused(&self, reason: &str) -> f64 {
        self.count("shardgate_handshakes_refused_total", &format!("reason=\"{reason}\""))
    }
}

/// Pairs of good users who talk, both ways, over TLS where the gateway speaks it.
struct Good {
    pairs: Vec<Pair>,
    over: Arc<AtomicBool>,
}

struct Pair {
    thread: JoinHandle<()>,
    /// Rounds whose messages all came to whom they were for, in order, and whose senders were told
    /// so.
    rounds: Arc<AtomicUsize>,
}

impl Good {
    fn start(site: &Site) -> Good {
        let over = Arc::new(AtomicBool::new(false));
        let pair = |n| {
            let (there, status) = if n < PAIRS {
                (&site.flooded, "delivered")
            } else {
                (&site.other, "routed")
            };
            let excused = site.machine.stood_still();
            let excused = move || status == "routed" && excused();
            let names = [format!("left{n}"), format!("right{n}")];
            let mut users = [site.flooded.connect(&names[0]), there.connect(&names[1])];
            let [left, right] = &mut users;
            wait_to_see(left, &names[1]);
            wait_to_see(right, &names[0]);
            let rounds = Arc::new(AtomicUsize::new(0));
            let (done, over) = (Arc::clone(&rounds), Arc::clone(&over));
            let thread = std::thread::spawn(move || {
                let mut ways = names.map(|name| Way {
                    to: name,
                    status,
                    last: None,
                });
                for round in 0.. {
                    if over.load(SeqCst) {
                        break;
                    }
                    let [left, right] = &mut users;
                    talk([left, right], &mut ways[1], round, &excused);
                    talk([right, left], &mut ways[0], round, &excused);
                    done.fetch_add(1, SeqCst);
                }
                users.into_iter().for_each(Client::close);
            });
            Pair { thread, rounds }
        };
        Good {
            pairs: (0..PAIRS + FAR_PAIRS).map(pair).collect(),
            over,
        }
    }

    /// Waits until every pair has told each other something that it had not begun before.
    fn wait_for_more(&self) {
        let rounds = |pair: &Pair| pair.rounds.load(SeqCst);
        let before: Vec<usize> = self.pairs.iter().map(rounds).collect();
        eventually("more messages of every pair", || {
            assert!(
                !self.pairs.iter().any(|pair| pair.thread.is_finished()),
                "somebody was not served"
            );
            self.pairs
                .iter()
                .zip(&before)
                .all(|(pair, before)| rounds(pair) > before + 1)
        });
    }

    fn stop(self) {
        self.over.store(true, SeqCst);
        self.pairs.into_iter().for_each(|pair| pair.thread.join().unwrap());
    }
}

/// A user of another gateway is found a moment after it came.
fn wait_to_see(client: &mut Client, user: &str) {
    eventually("the other one is seen", || {
        client.send_text(&format!(r#"{{"type":"presence","users":["{user}"],"id":"p"}}"#));
        client.recv_json()["users"][user] == true
    });
}

/// What goes from one user to another.
struct Way {
    to: String,
    /// What acks say.
    status: &'static str,
    /// The last message that came.
    last: Option<u64>,
}

/// Several messages one behind the other: each is acked once with the status that is due, and comes
/// in its turn. Acks of another gateway come in any order. A message that could not be sent for a
/// good excuse may be missing.
fn talk([from, to]: [&mut Client; 2], way: &mut Way, round: u64, excused: &dyn Fn() -> bool) {
    let numbers = round * IN_A_ROW..(round + 1) * IN_A_ROW;
    for n in numbers.clone() {
        from.send_text(&format!(
            r#"{{"type":"message","to":"{}","content":{n},"id":"{n}"}}"#,
            way.to
        ));
    }
    let mut unacked: BTreeSet<String> = numbers.clone().map(|n| n.to_string()).collect();
    let mut lost = BTreeSet::new();
    while !unacked.is_empty() {
        let ack = from.recv_json();
        let id = ack["id"].as_str().unwrap_or_default();
        assert!(unacked.remove(id), "{ack}");
        if ack["status"] != way.status {
            assert!(excused(), "{ack}");
            lost.insert(id.parse::<u64>().unwrap());
        }
    }
    for n in numbers.filter(|n| !lost.contains(n)) {
        while way.last != Some(n) {
            let message = to.recv_json();
            let came = message["content"].as_u64();
            assert!(came > way.last && came <= Some(n), "{message} after {:?}", way.last);
            // Only what was lost is passed over, and all of that only by those who have an excuse.
            assert!(came == Some(n) || excused(), "{message} instead of {n}");
            way.last = came;
        }
    }
}

/// The most that was seen.
#[derive(Debug, Default)]
struct Most {
    /// As the gateway counts them, and the descriptors that the kernel does.
    sockets: usize,
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
        let numbers = gateway.get("/metrics").body;
        let of_shards = numbers.lines().filter(|line| line.starts_with("shardgate_sockets{"));
        let sockets = of_shards.map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap());
        self.sockets = self.sockets.max(sockets.sum());
    }
}

/// Ends the floods also when the test fails.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Lets these floods loose together and holds the gateways to their promises until the last of them
/// is done.
fn under(site: &Site, floods: &[Flood], pending_bytes: usize) {
    let what: Vec<&str> = floods.iter().map(|flood| flood.name).collect();
    let target = Target {
        addr: site.flooded.addr,
        tls: site.flooded.tls.clone(),
        over: Arc::default(),
        rounds: 1,
    };
    let mut before = Most::default();
    before.look(&site.flooded);
    let log_lines = site.flooded.log_lines();
    let good = Good::start(site);
    let mut most = Most::default();
    std::thread::scope(|scope| {
        let _over = Over(Arc::clone(&target.over));
        let running = let_loose(scope, floods, &target);
        loop {
            most.look(&site.flooded);
            good.wait_for_more();
            // Who comes now is served as well.
            site.flooded.connect("newcomer").close();
            for gateway in site.gateways() {
                let answer = gateway.get("/readyz");
                assert!(
                    answer.status == 200 || site.machine.stood_still()(),
                    "{what:?}: {answer:?}"
                );
            }
            if running.iter().all(ScopedJoinHandle::is_finished) {
                break;
            }
        }
    });
    good.stop();
    let log_lines = site.flooded.log_lines() - log_lines;
    assert!(log_lines <= LOG_LINES, "{what:?}: {log_lines} lines in the log");
    let grown = most.resident_bytes.saturating_sub(before.resident_bytes);
    eprintln!(
        "{what:?}: {} sockets and {} descriptors at most, grew by {} KiB",
        most.sockets,
        most.files,
        grown / 1024
    );
    let sockets_max = HANDSHAKES + CONNECTIONS;
    assert!(
        most.sockets <= sockets_max,
        "{what:?}: {} sockets, {sockets_max} are allowed",
        most.sockets
    );
    let files_max = sockets_max + SOCKETS_BETWEEN + FILES;
    assert!(
        most.files <= files_max,
        "{what:?}: {} descriptors, {files_max} are allowed",
        most.files
    );
    let bytes_max = bytes_max(pending_bytes);
    assert!(
        grown <= bytes_max,
        "{what:?}: grew by {grown} bytes, {bytes_max} are allowed"
    );
}

fn let_loose<'scope>(
    scope: &'scope Scope<'scope, '_>,
    floods: &[Flood],
    target: &Target,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let spawn = |flood: &Flood| {
        let (run, target) = (flood.run, target.clone());
        scope.spawn(move || {
            // Floods come from elsewhere: here they must not take the CPU from Redis and from the
            // kernel's own threads, which take packets from one socket of this machine to the
            // other. Linux counts this for the thread and for those that it makes.
            rustix::process::setpriority_process(None, 5).unwrap();
            run(&target);
        })
    };
    floods.iter().map(spawn).collect()
}

/// The floods have up to half the descriptors that this process may have: one gateway at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn each_by_itself(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let site = Site::start(engine);
    each(&site, HEADER_BYTES);
    assert!(site.refused("not_an_upgrade") >= 1.0 && site.refused("malformed") >= 1.0);
}

fn each_by_itself_over_tls(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let site = Site::start_with_tls(engine);
    each(&site, TLS_BYTES);
    assert!(site.refused("tls") >= 1.0);
}

fn each(site: &Site, pending_bytes: usize) {
    for flood in FLOODS {
        under(site, &[flood], pending_bytes);
    }
    assert!(site.refused("handshake_limit") >= HANDSHAKES as f64);
    assert!(site.refused("head_too_large") >= 1.0);
    // Redis was asked for many of those who were asked for. Where too many were, the client heard
    // so.
    let asked = site.count("shardgate_redis_operations_total", "kind=\"locate\"");
    assert!(asked >= 10_000.0, "{asked}");
    site.assert_links_held();
}

fn all_at_once(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let site = Site::start(engine);
    under(&site, &FLOODS, HEADER_BYTES);
    site.assert_links_held();
}

fn all_at_once_over_tls(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let site = Site::start_with_tls(engine);
    under(&site, &FLOODS, TLS_BYTES);
    site.assert_links_held();
    assert!(site.refused("tls") >= 1.0);
}
