//! What floods do to the latency of those who behave.

use std::process::{Command, Stdio};
use std::sync::Arc;

use super::Over;
use super::hostile::Target;
use super::kinds::{FLOODS, Flood};
use crate::HANDSHAKES;
use crate::common::gateway::run_command;
use crate::common::{Gateway, Redis};

/// What messages of those who behave take: quiet, beside floods that are none of their gateway's
/// business, and under floods. `docs/testing.md` has the command.
///
/// With `GATEWAY_CPUS` the gateway has those CPUs and nobody else has. On the others floods get
/// only what its users leave, and so does a second gateway: what messages take while floods go
/// there is what floods do to the machine, and the rest is what they do to the gateway. What counts
/// is the middle one of the p99 of all seconds of all rounds: a machine that stands still for fifty
/// milliseconds spoils one second, and p99 of the whole run as well.
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
            .map(|flood| (flood.name, std::slice::from_ref(flood)))
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

/// Two gateways, each with a Redis of its own to ask, and which CPUs are neither's own.
struct Bench {
    gateway: Gateway,
    elsewhere: Gateway,
    others: Vec<usize>,
    _redis: [Redis; 2],
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
        let redis = [(); 2].map(|()| Redis::start());
        let start = |cpus: &str, redis: &Redis| {
            let shards = shards.to_string();
            let own = ["--engine", engine, "--cpus", cpus, "--shards", &shards];
            Gateway::start(&[&own[..], &["--redis-url", &redis.url()]].concat())
        };
        let (gateway, elsewhere) = (start(&cpus, &redis[0]), start("none", &redis[1]));
        for pid in [elsewhere.pid(), redis[0].pid(), redis[1].pid()] {
            for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
                let thread = thread.unwrap().file_name().into_string().unwrap();
                make_way(rustix::process::Pid::from_raw(thread.parse().unwrap()), &others);
            }
        }
        Bench {
            gateway,
            elsewhere,
            others,
            _redis: redis,
        }
    }

    fn measure(&self) -> Row {
        measure(&self.gateway, &self.others)
    }

    fn measure_under(&self, floods: &[Flood], flooded: &Gateway) -> Row {
        let target = Target {
            addr: flooded.addr,
            tls: None,
            over: Arc::default(),
            rounds: usize::MAX / (5 * HANDSHAKES),
        };
        std::thread::scope(|scope| {
            let _over = Over(Arc::clone(&target.over));
            for flood in floods {
                let target = target.clone();
                scope.spawn(move || {
                    make_way(None, &self.others);
                    (flood.run)(&target);
                });
            }
            self.measure()
        })
    }
}

/// Lets a thread, or the calling one, run on these CPUs only, and there only when nobody else wants
/// to. Without any it stays as it is.
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
    let mut command = Command::new(crate::common::built::load_generator());
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
