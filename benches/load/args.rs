//! The command line.
//!
//! Duty: words to one checked [`Options`]; what is wrong is refused by name, with what would be right. Pure.

use std::time::Duration;

use crate::message::{PAYLOAD_BYTES_MIN, USERS_MAX};
use crate::redis;
use crate::scenario::Kind;
use crate::target::Targets;
use crate::tokens::Tokens;

/// A source address carries so many connections: the ephemeral ports are 28,232 by default, and some are taken.
pub(crate) const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// One publisher's order in one channel at one subscriber is 32 bytes: 512 MiB.
const STREAMS_MAX: usize = 1 << 24;

pub(crate) const USAGE: &str = "\
shardgate-load SCENARIO --url ws://HOST:PORT/ws [--url ...] [flags]

Scenarios
  idle      connect and hold N authenticated connections
  direct    users are paired and send messages to each other
  fanout    users subscribe to channels, to which others publish; counted are deliveries: a publication to 1,000
            subscribers is 1,000 of sent, received, lost, per second and of the server's CPU per message

Several gateways
  --url URL[,URL...]      may be given several times: user i connects to gateway i % n, so the two users of a pair
                          are on different ones and every message of direct crosses (a comma in a path: %2C)

Load
  --users N               connections, one user each (100); of fanout those that subscribe
  --publishers N          fanout: connections that publish, besides the users (1)
  --channels N            fanout: channels; users divide them among each other, round and round, publishers take them in turn (1)
  --per-user N            fanout: each user subscribes to so many, one behind the other (1)
  --rate R                messages or publications per second in all, open loop; without it closed loop
  --in-flight N           closed loop: messages in flight per connection, or publications per publisher: the next one
                          leaves when one has arrived at all its subscribers (1)
  --payload BYTES         size of the content (64)
  --ack                   give every message and publication an id and check the acks
  --duration TIME         how long to measure: 10s, 500ms, 2m, or bare seconds (10s)
  --warmup TIME           load before the measurement (1s)
  --drain-timeout TIME    how long to wait at the end for what is in flight (10s)

Connections
  --auth query|message    user as ?user=NAME, or by an auth frame (query)
  --token-key ALG:FILE    show a token instead, signed beforehand with this secret or private key (PEM)
  --user-prefix TEXT      users are called TEXT00000000, TEXT00000001, ... (load-)
  --connect-rate R        connections begun per second (no limit)
  --connecting-max N      connections being set up, or subscriptions not answered, at the same time (256)
  --connect-timeout TIME  give up when nothing connects, or no subscription is answered, for so long (20s)
  --warmup-connections N  connect so many before memory and CPU of connecting are measured (0)
  --insecure-tls          for wss:// URLs, and needed for them: no certificate is checked, no session resumed
  --sources N             source addresses 127.0.0.2 and up, loopback only (1 per 20,000 users)

Generator
  --threads N             generator threads (1); fanout has one, as it knows when a publication is everywhere
  --cpus LIST             pin the generator: 1 or 0-3,6
  --spin                  never sleep while load runs: exact send times for a whole core

Report
  --pid PID[,PID...]      the server's process: measures its CPU and memory. Several are shown apart and as a sum;
                          with several --url give one per gateway, in the same order
  --redis HOST:PORT       Redis behind the gateways, or redis://:PASSWORD@HOST:PORT: its commands and CPU per message
                          and per connection, from INFO
  --json FILE             write the report as JSON, - for standard output
  --quiet                 no progress (without a terminal: a line \"load begins\"), no summary

Exit status: 0 all well; 1 something was lost, duplicated, reordered, damaged, closed, or failed to connect or to
subscribe; 2 the command line or this machine does not allow the run.
";

/// How a connection says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    /// `?user=NAME`.
    Query,
    /// An `auth` frame.
    Message,
}

/// Everything the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) kind: Kind,
    pub(crate) targets: Targets,
    pub(crate) users: usize,
    /// Connections besides the users' that publish; 0 unless the scenario is fanout.
    pub(crate) publishers: usize,
    pub(crate) channels: usize,
    /// Channels that each user subscribes to.
    pub(crate) per_user: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) in_flight: u32,
    pub(crate) payload_bytes: usize,
    pub(crate) ack: bool,
    pub(crate) duration: Duration,
    pub(crate) warmup: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) auth: Auth,
    /// Shown instead of the user's name.
    pub(crate) tokens: Option<Tokens>,
    pub(crate) user_prefix: String,
    pub(crate) connect_rate: Option<f64>,
    pub(crate) connecting_max: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) warmup_connections: usize,
    pub(crate) insecure_tls: bool,
    pub(crate) sources: usize,
    pub(crate) threads: usize,
    pub(crate) cpus: Vec<usize>,
    pub(crate) spin: bool,
    /// The gateways' processes; with several targets none, or one for each in their order.
    pub(crate) pids: Vec<u32>,
    pub(crate) redis: Option<redis::Server>,
    pub(crate) json: Option<String>,
    pub(crate) quiet: bool,
}

impl Options {
    /// How many connections are made.
    pub(crate) fn connections(&self) -> usize {
        self.users + self.publishers
    }
}

const FLAGS: [&str; 28] = [
    "--url",
    "--users",
    "--publishers",
    "--channels",
    "--per-user",
    "--rate",
    "--in-flight",
    "--payload",
    "--duration",
    "--warmup",
    "--drain-timeout",
    "--auth",
    "--token-key",
    "--user-prefix",
    "--connect-rate",
    "--connecting-max",
    "--connect-timeout",
    "--warmup-connections",
    "--sources",
    "--threads",
    "--cpus",
    "--pid",
    "--redis",
    "--json",
    // Without a value:
    "--ack",
    "--spin",
    "--quiet",
    "--insecure-tls",
];
const SWITCHES_FROM: usize = 24;

/// Reads the words after the program's name.
///
/// # Errors
/// What is wrong and what would be right, as one line.
pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Options, String> {
    let mut words = words.into_iter();
    let scenario = words
        .next()
        .ok_or_else(|| format!("which scenario? There are {}", Kind::names()))?;
    let kind = Kind::from_name(&scenario)
        .ok_or_else(|| format!("there is no scenario {scenario:?}; there are {}", Kind::names()))?;
    let mut urls = vec![];
    let mut sources = None;
    let mut in_flight = None;
    let mut token_key = None;
    let mut audience = Audience::default();
    let mut options = Options {
        kind,
        targets: Targets::default(),
        users: 100,
        publishers: 0,
        channels: 1,
        per_user: 1,
        rate: None,
        in_flight: 1,
        payload_bytes: 64,
        ack: false,
        duration: Duration::from_secs(10),
        warmup: Duration::from_secs(1),
        drain_timeout: Duration::from_secs(10),
        auth: Auth::Query,
        tokens: None,
        user_prefix: "load-".to_owned(),
        connect_rate: None,
        connecting_max: 256,
        connect_timeout: Duration::from_secs(20),
        warmup_connections: 0,
        insecure_tls: false,
        sources: 1,
        threads: 1,
        cpus: vec![],
        spin: false,
        pids: vec![],
        redis: None,
        json: None,
        quiet: false,
    };
    while let Some(word) = words.next() {
        let (flag, inline) = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let Some(index) = FLAGS.iter().position(|known| *known == flag) else {
            return Err(unknown(&flag));
        };
        let value = match (index >= SWITCHES_FROM, inline) {
            (true, None) => String::new(),
            (true, Some(_)) => return Err(format!("{flag} takes no value")),
            (false, Some(value)) => value,
            (false, None) => words.next().ok_or_else(|| format!("{flag} needs a value"))?,
        };
        let say = |what: &str| format!("{flag} {value}: {what}");
        match flag.as_str() {
            "--url" => urls.push(value),
            "--users" => {
                options.users = count(&value)
                    .filter(|n| *n <= USERS_MAX)
                    .ok_or_else(|| say(&format!("must be 1 to {USERS_MAX}")))?;
            }
            "--publishers" | "--channels" | "--per-user" => {
                let n = count(&value).filter(|n| *n <= USERS_MAX);
                let n = n.ok_or_else(|| say(&format!("must be 1 to {USERS_MAX}")))?;
                *audience.field(&flag) = Some(n);
            }
            "--rate" => options.rate = Some(rate(&value).ok_or_else(|| say("must be a number above 0"))?),
            "--in-flight" => {
                let n = count(&value).filter(|n| *n <= 100_000);
                in_flight = Some(n.ok_or_else(|| say("must be 1 to 100000"))? as u32);
            }
            "--payload" => {
                options.payload_bytes = count(&value)
                    .filter(|n| (PAYLOAD_BYTES_MIN..=16 << 20).contains(n))
                    .ok_or_else(|| say(&format!("must be {PAYLOAD_BYTES_MIN} bytes (the numbers) to 16 MiB")))?;
            }
            "--duration" => options.duration = time(&value).ok_or_else(|| say(TIME_HELP))?,
            "--warmup" => options.warmup = time(&value).ok_or_else(|| say(TIME_HELP))?,
            "--drain-timeout" => options.drain_timeout = time(&value).ok_or_else(|| say(TIME_HELP))?,
            "--connect-timeout" => options.connect_timeout = time(&value).ok_or_else(|| say(TIME_HELP))?,
            "--auth" => {
                options.auth = match value.as_str() {
                    "query" => Auth::Query,
                    "message" => Auth::Message,
                    _ => return Err(say("must be query or message")),
                }
            }
            "--token-key" => token_key = Some(value),
            "--user-prefix" => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
                if value.len() > 100 || !value.chars().all(plain) {
                    return Err(say("must be at most 100 letters, digits, - _ . ~"));
                }
                options.user_prefix = value;
            }
            "--connect-rate" => {
                options.connect_rate = Some(rate(&value).ok_or_else(|| say("must be a number above 0"))?);
            }
            "--connecting-max" => {
                options.connecting_max = count(&value).ok_or_else(|| say("must be a whole number above 0"))?;
            }
            "--warmup-connections" => {
                options.warmup_connections = value.parse().map_err(|_| say("must be a whole number"))?;
            }
            "--sources" => {
                sources = Some(
                    count(&value)
                        .filter(|n| *n <= 250)
                        .ok_or_else(|| say("must be 1 to 250"))?,
                );
            }
            "--threads" => {
                options.threads = count(&value)
                    .filter(|n| *n <= 256)
                    .ok_or_else(|| say("must be 1 to 256"))?;
            }
            "--cpus" => options.cpus = cpu_list(&value).ok_or_else(|| say("must be like 1 or 0-3,6"))?,
            "--pid" => {
                for pid in value.split(',') {
                    options
                        .pids
                        .push(pid.parse().map_err(|_| say("must be the id of a process"))?);
                }
            }
            "--redis" if options.redis.is_some() => {
                return Err("--redis: the second one; the figures are those of one server".to_owned());
            }
            "--redis" => options.redis = Some(redis::Server::parse(&value).map_err(|why| format!("--redis: {why}"))?),
            "--json" => options.json = Some(value),
            "--ack" => options.ack = true,
            "--spin" => options.spin = true,
            "--quiet" => options.quiet = true,
            "--insecure-tls" => options.insecure_tls = true,
            _ => return Err(unknown(&flag)),
        }
    }
    options.targets = Targets::parse(&urls)?;
    if in_flight.is_some() && options.rate.is_some() {
        return Err("--in-flight is for closed loop and --rate makes it open: give one of them".to_owned());
    }
    options.in_flight = in_flight.unwrap_or(options.in_flight);
    audience.apply(&mut options)?;
    check(&mut options, sources)?;
    if let Some(key) = token_key {
        options.tokens = Some(Tokens::make(&key, &options.user_prefix, options.connections())?);
    }
    Ok(options)
}

const TIME_HELP: &str = "must be a time like 10s, 500ms, 2m, or seconds";

fn unknown(flag: &str) -> String {
    let nearest = FLAGS
        .iter()
        .min_by_key(|known| strsim::damerau_levenshtein(known, flag))
        .unwrap_or(&"--help");
    format!("unknown flag {flag}; did you mean {nearest}?")
}

/// The flags that only fanout has, as they were given.
#[derive(Default)]
struct Audience {
    publishers: Option<usize>,
    channels: Option<usize>,
    per_user: Option<usize>,
}

impl Audience {
    fn field(&mut self, flag: &str) -> &mut Option<usize> {
        match flag {
            "--publishers" => &mut self.publishers,
            "--channels" => &mut self.channels,
            _ => &mut self.per_user,
        }
    }

    /// Whether they make sense together, and with the rest.
    fn apply(self, options: &mut Options) -> Result<(), String> {
        if options.kind != Kind::Fanout {
            return match (self.publishers, self.channels, self.per_user) {
                (None, None, None) => Ok(()),
                _ => Err("--publishers, --channels and --per-user mean something to fanout only".to_owned()),
            };
        }
        options.publishers = self.publishers.unwrap_or(1);
        options.channels = self.channels.unwrap_or(1);
        options.per_user = self.per_user.unwrap_or(1);
        let (users, channels, per_user) = (options.users, options.channels, options.per_user);
        if per_user > channels {
            return Err(format!("--per-user {per_user}: there are only {channels} channels"));
        }
        if channels > users.saturating_mul(per_user) {
            return Err(format!(
                "--channels {channels}: {users} users with {per_user} each leave some without a subscriber"
            ));
        }
        if options.connections() > USERS_MAX {
            return Err(format!(
                "--publishers: with the users more than {USERS_MAX} connections"
            ));
        }
        let streams = users.saturating_mul(options.publishers).saturating_mul(per_user);
        if streams > STREAMS_MAX {
            return Err(format!(
                "--users x --publishers x --per-user is {streams}: at most {STREAMS_MAX} orders can be watched"
            ));
        }
        if options.threads > 1 {
            return Err(format!(
                "--threads {}: fanout has one thread, which knows when a publication has arrived everywhere;                  for more load run several generators with different --user-prefix",
                options.threads
            ));
        }
        Ok(())
    }
}

/// What only shows when all flags are known.
fn check(options: &mut Options, sources: Option<usize>) -> Result<(), String> {
    let unit = options.kind.unit();
    if !options.users.is_multiple_of(unit) {
        return Err(format!(
            "--users {}: {} needs a multiple of {unit}",
            options.users,
            options.kind.name()
        ));
    }
    if options.warmup_connections >= options.users && options.warmup_connections > 0 {
        let n = options.warmup_connections;
        return Err(format!(
            "--warmup-connections {n}: must be less than the {} users",
            options.users
        ));
    }
    if options.kind == Kind::Idle && (options.rate.is_some() || options.ack) {
        return Err("--rate and --ack mean nothing to idle, which sends no messages".to_owned());
    }
    if options.targets.are_tls() != options.insecure_tls {
        return Err(match options.insecure_tls {
            true => "--insecure-tls: is for wss:// URLs".to_owned(),
            false => {
                "--url wss://: this generator checks no certificate; say --insecure-tls if that is fine".to_owned()
            }
        });
    }
    check_gateways(options)?;
    let loopback = options.targets.are_loopback();
    match sources {
        Some(n) if n > 1 && !loopback => {
            return Err(format!("--sources {n}: only for a target on 127.0.0.0/8"));
        }
        Some(n) => options.sources = n,
        None if loopback => options.sources = options.connections().div_ceil(CONNECTIONS_PER_SOURCE).min(250),
        None => {}
    }
    options.threads = options.threads.min(options.users / unit);
    Ok(())
}

/// Whether targets, users and processes fit together.
fn check_gateways(options: &Options) -> Result<(), String> {
    let (targets, users, pids) = (options.targets.len(), options.users, &options.pids);
    if users < targets {
        return Err(format!(
            "--users {users}: fewer than the {targets} gateways of --url; some would have nobody"
        ));
    }
    if let Some(pid) = pids
        .iter()
        .enumerate()
        .find_map(|(i, pid)| pids[..i].contains(pid).then_some(pid))
    {
        return Err(format!("--pid {pid} is there twice: it would be counted twice"));
    }
    if targets > 1 && !pids.is_empty() && pids.len() != targets {
        return Err(format!(
            "--pid: {} for {targets} gateways; give one per --url in the same order, or none",
            pids.len()
        ));
    }
    Ok(())
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|n| *n > 0)
}

fn rate(text: &str) -> Option<f64> {
    text.parse().ok().filter(|r: &f64| r.is_finite() && *r > 0.0)
}

fn time(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor)
        .ok()
        .filter(|d| d.as_secs() < 30 * 86_400)
}

fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = vec![];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= rustix::thread::CpuSet::MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Options, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_full_line() {
        let options = parse_line(
            "direct --url=ws://127.0.0.1:9/ws --users 40000 --rate 1e4 --duration 500ms --cpus 1,3-4 --ack --threads 2",
        )
        .unwrap();
        assert_eq!(options.kind, Kind::Direct);
        assert_eq!(
            (options.users, options.rate, options.ack),
            (40_000, Some(10_000.0), true)
        );
        assert_eq!(
            (options.duration, options.cpus),
            (Duration::from_millis(500), vec![1, 3, 4])
        );
        assert_eq!((options.sources, options.threads), (2, 2));
        assert_eq!(options.targets.urls(), "ws://127.0.0.1:9/ws");
        assert!(options.pids.is_empty() && options.redis.is_none());
    }

    #[test]
    fn several_gateways() {
        let options = parse_line(
            "direct --url ws://127.0.0.1:9,ws://127.0.0.1:10 --url=ws://127.0.0.1:11 --pid 1,2 --pid 3 --redis 127.0.0.1:6",
        )
        .unwrap();
        assert_eq!((options.targets.len(), options.pids), (3, vec![1, 2, 3]));
        assert_eq!(options.redis.map(|redis| redis.host).as_deref(), Some("127.0.0.1:6"));
    }

    #[test]
    fn mistakes_are_named() {
        let url = "--url ws://127.0.0.1:9/ws";
        for (line, part) in [
            (String::new(), "direct"),
            ("flood".to_owned(), "idle"),
            ("idle".to_owned(), "--url"),
            (format!("direct {url} --usres 2"), "--users"),
            (format!("direct {url} --users 3"), "multiple of 2"),
            (format!("direct {url} --users 0"), "1 to"),
            (format!("direct {url} --payload 10"), "28"),
            (format!("direct {url} --duration ten"), "10s"),
            (format!("direct {url} --ack=1"), "no value"),
            (format!("direct {url} --rate"), "needs a value"),
            (format!("direct {url} --cpus 3-1"), "0-3,6"),
            (format!("idle {url} --rate 5"), "idle"),
            (format!("direct {url} --rate 5 --in-flight 2"), "one of them"),
            (format!("idle {url} --users 10 --warmup-connections 10"), "less than"),
            (format!("direct {url} --channels 2"), "fanout only"),
            (format!("fanout {url} --publishers 0"), "1 to"),
            (format!("fanout {url} --per-user 2"), "only 1 channels"),
            (
                format!("fanout {url} --users 3 --channels 7 --per-user 2"),
                "without a subscriber",
            ),
            (
                format!("fanout {url} --users 100000 --publishers 200"),
                "20000000: at most",
            ),
            (format!("fanout {url} --threads 2"), "one thread"),
            ("idle --url http://127.0.0.1/ws".to_owned(), "ws://"),
            ("idle --url wss://127.0.0.1/ws".to_owned(), "--insecure-tls"),
            (format!("idle {url} --insecure-tls"), "wss://"),
            ("idle --url ws://10.0.0.1:9/ws --sources 2".to_owned(), "127.0.0.0/8"),
            (
                format!("idle {url} --url ws://10.0.0.1:9/ws --sources 2"),
                "127.0.0.0/8",
            ),
            (format!("idle {url},wss://127.0.0.1:10/ws"), "different schemes"),
            (format!("idle {url},ws://127.0.0.1:10 --users 1"), "2 gateways"),
            (format!("idle {url},ws://127.0.0.1:10 --pid 7"), "one per --url"),
            (format!("idle {url} --pid 7,8 --pid 7"), "--pid 7 is there twice"),
            (format!("idle {url} --pid 7,x"), "id of a process"),
            (format!("idle {url} --redis redis://:secret@:1"), "must be like"),
            (format!("idle {url} --redis rediss://127.0.0.1:1"), "no TLS"),
            (format!("idle {url} --redis 127.0.0.1:1 --redis 127.0.0.1:2"), "second"),
        ] {
            let why = parse_line(&line).err().unwrap_or_default();
            assert!(why.contains(part), "{line:?} -> {why:?}");
        }
    }

    #[test]
    fn publishers_are_connections_besides_the_users() {
        let line = "fanout --url ws://127.0.0.1:9 --users 20000 --publishers 4 --channels 20001 --per-user 2";
        let options = parse_line(line).unwrap();
        assert_eq!((options.connections(), options.sources), (20_004, 2));
        assert_eq!((options.channels, options.per_user), (20_001, 2));
        let options = parse_line("direct --url ws://127.0.0.1:9").unwrap();
        assert_eq!((options.connections(), options.publishers), (100, 0));
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("3", 3_000),
            ("0.5", 500),
        ] {
            assert_eq!(time(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert!(["", "s", "-1", "1y", "1e30"].iter().all(|text| time(text).is_none()));
    }
}
