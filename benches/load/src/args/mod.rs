//! The command line.
//!
//! Duty: words to one checked [`Options`]. Wrong flags are refused by name, with the correct form.
//! Pure, but for the files that flags name: keys and scenarios.

mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, ValueEnum};

use crate::chat::Chat;
use crate::dialect::Dialect;
use crate::duration::parse as time;
use crate::kind::Kind;
use crate::message::USERS_MAX;
use crate::redis;
use crate::target::Targets;
use crate::tokens::Tokens;
use values::{CpuList, count_to, cpu_list, payload_bytes, per_second, user_prefix};

/// A source address carries so many connections: the ephemeral ports are 28,232 by default, and
/// some are taken.
pub(crate) const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// One publisher's order in one channel at one subscriber is 32 bytes: 512 MiB.
const STREAMS_MAX: usize = 1 << 24;

/// Messages per second of an open loop that was asked for without a rate.
const RATE: f64 = 1000.0;
/// Few messages show a storm's effect on others, and more would be load of their own.
const RATE_BESIDE_STORM: f64 = 200.0;

const AFTER_HELP: &str = "\
Compare runs: shardgate-load report A.json [B.json ...] --html FILE

Exit status: 0 all well; 1 something was lost, duplicated, reordered, damaged, closed, or failed to connect or to
subscribe; 2 the command line or this machine does not allow the run, or a process of --processes died.
docs/load.md says what the figures mean.";

/// How a connection says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Auth {
    /// `?user=NAME` (with tokens `?token=`)
    Query,
    /// An `auth` frame
    Message,
}

/// What breaks the connections of a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cut {
    /// Nothing here: somebody else restarts the gateway once "storm: waiting" is said
    Wait,
    /// The clients' sockets are reset, all at once
    Sockets,
    /// POST /admin/drain at the first gateway (--admin-token)
    Drain,
    /// DELETE /admin/users/.../connections for all of them, likewise: they are told to stay away
    Delete,
}

/// Load on a shardgate gateway: what it costs, how long it takes, and whether anything is lost
#[derive(Clone, Debug, Parser)]
#[command(name = "shardgate-load", after_help = AFTER_HELP, arg_required_else_help = true, max_term_width = 120)]
pub(crate) struct Options {
    #[arg(value_enum, value_name = "SCENARIO")]
    pub(crate) kind: Kind,

    /// Where a gateway is, like ws://127.0.0.1:8080/ws. Several: again, or with commas between them
    /// (a comma in a path: %2C). User i connects to gateway i % n, so that the two of a pair are on
    /// different ones. Instead of ws://, to compare (idle, direct, fanout): socketio+ws://,
    /// nats+ws://, nchan+ws://
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    #[arg(skip)]
    pub(crate) targets: Targets,

    #[command(flatten)]
    pub(crate) load: Load,
    #[command(flatten)]
    fanout: FanoutFlags,
    #[command(flatten)]
    pub(crate) storm: StormFlags,
    #[command(flatten)]
    mixed: MixedFlags,
    #[command(flatten)]
    pub(crate) connect: Connect,
    #[command(flatten)]
    pub(crate) generator: Generator,
    #[command(flatten)]
    pub(crate) output: Output,

    /// Connections besides the users' that publish; 0 unless the scenario is fanout.
    #[arg(skip)]
    pub(crate) publishers: usize,
    #[arg(skip)]
    pub(crate) channels: usize,
    /// Channels that each user subscribes to.
    #[arg(skip)]
    pub(crate) per_user: usize,
    /// Open loop with so many per second, or `None` for closed loop.
    #[arg(skip)]
    pub(crate) rate: Option<f64>,
    /// What the users of mixed do.
    #[arg(skip)]
    pub(crate) chat: Chat,
    /// Shown instead of the user's name.
    #[arg(skip)]
    pub(crate) tokens: Option<Tokens>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub(crate) struct Load {
    /// Connections, one user each; of fanout those that subscribe, of storm those that are cut
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count_to(USERS_MAX))]
    pub(crate) users: usize,
    /// Open loop: messages, publications or actions per second in all, each due at its time
    /// whatever became of those before it [default: 1000; storm 200; mixed as its file says]
    #[arg(long = "rate", value_name = "R", value_parser = per_second)]
    rate: Option<f64>,
    /// Closed loop: so many under way per connection, or per publisher; the next one leaves when
    /// one has arrived (at all its subscribers), or was answered (mixed)
    #[arg(long = "in-flight", value_name = "N", value_parser = count_to(100_000), conflicts_with = "rate")]
    pub(crate) in_flight: Option<usize>,
    /// Bytes of content of each message
    #[arg(long = "payload", value_name = "BYTES", default_value_t = 64, value_parser = payload_bytes)]
    pub(crate) payload_bytes: usize,
    /// Give every message and publication an id and check the acks (storm and mixed always do)
    #[arg(long)]
    pub(crate) ack: bool,
    /// How long to measure, like 10s, 500ms, 2m; of storm, how long to wait for everybody [default:
    /// 10s; storm 60s]
    #[arg(long = "duration", value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Load before the measurement
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub(crate) warmup: Duration,
    /// How long to wait at the end for what is under way
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(crate) drain_timeout: Duration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "fanout: users subscribe to channels, others publish; counted are deliveries")]
struct FanoutFlags {
    /// Connections that publish, besides the users [default: 1]
    #[arg(long, value_name = "N", value_parser = count_to(USERS_MAX))]
    publishers: Option<usize>,
    /// Users divide them among each other, round and round; publishers take them in turn [default:
    /// 1]
    #[arg(long, value_name = "N", value_parser = count_to(USERS_MAX))]
    channels: Option<usize>,
    /// Each user subscribes to so many, one behind the other [default: 1]
    #[arg(long, value_name = "N", value_parser = count_to(USERS_MAX))]
    per_user: Option<usize>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "storm: everyone is cut off and comes back")]
pub(crate) struct StormFlags {
    /// What cuts them off [default: wait]
    #[arg(long = "cut", value_enum, value_name = "HOW")]
    cut: Option<Cut>,
    /// Pairs that keep talking, besides the users: what the storm does to others [default: 1]
    #[arg(long = "pairs", value_name = "N", value_parser = count_to(1000))]
    pairs: Option<usize>,
    /// How long to look at those pairs before the storm, and after it [default: 3s]
    #[arg(long = "calm", value_name = "TIME", value_parser = time)]
    calm: Option<Duration>,
    /// The first wait before coming back is up to this; it doubles with each refusal (storm, mixed)
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = time)]
    pub(crate) backoff: Duration,
    /// No wait is longer, unless the server says so
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    pub(crate) backoff_max: Duration,
    /// For --cut drain and delete: the gateway's admin token, or @FILE
    #[arg(long, value_name = "TOKEN")]
    pub(crate) admin_token: Option<String>,
    /// For --cut drain and delete: where /admin/* is [default: at the first URL]
    #[arg(long, value_name = "http://HOST:PORT")]
    pub(crate) admin_url: Option<String>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "mixed: a day of chat")]
struct MixedFlags {
    /// What the users do, in TOML, like benches/scenarios/chat.toml, which is the default
    #[arg(long = "scenario", value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Of the random numbers that choose who does what, and of the jitter of coming back
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connections")]
pub(crate) struct Connect {
    /// How a user says who they are
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Auth::Query)]
    pub(crate) auth: Auth,
    /// Show a token instead, signed beforehand with this secret or private key (PEM)
    #[arg(long, value_name = "ALG:FILE")]
    token_key: Option<String>,
    /// Users are called TEXT00000000, TEXT00000001, ...
    #[arg(long, value_name = "TEXT", default_value = "load-", value_parser = user_prefix)]
    pub(crate) user_prefix: String,
    /// Connections begun per second [default: no limit]
    #[arg(long, value_name = "R", value_parser = per_second)]
    pub(crate) connect_rate: Option<f64>,
    /// Connections being set up, or subscriptions not answered, at the same time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count_to(usize::MAX))]
    pub(crate) connecting_max: usize,
    /// Give up when nothing connects, or no subscription is answered, for so long; and one attempt
    /// of coming back
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    pub(crate) connect_timeout: Duration,
    /// Connect so many before memory and CPU of connecting are measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) warmup_connections: usize,
    /// For wss:// URLs, and needed for them: no certificate is checked, no session resumed
    #[arg(long)]
    pub(crate) insecure_tls: bool,
    /// Source addresses 127.0.0.2 and up, loopback only [default: 1 per 20,000 users]
    #[arg(long = "sources", value_name = "N", value_parser = count_to(250))]
    sources_asked: Option<usize>,
    #[arg(skip)]
    pub(crate) sources: usize,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Generator")]
pub(crate) struct Generator {
    /// Threads of each process; they divide users, publishers and rate among each other
    #[arg(long, visible_alias = "shards", value_name = "N", default_value_t = 1, value_parser = count_to(256))]
    pub(crate) threads: usize,
    /// Processes: for more connections than one may hold. The first starts the others. fanout takes
    /// no --in-flight with them
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = count_to(64))]
    pub(crate) processes: usize,
    /// Pin the generator, like 1 or 0-3,6: each thread to one of them in turn
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// Never sleep while load runs: exact send times for a whole core
    #[arg(long)]
    pub(crate) spin: bool,
    /// Which of the processes this is; said to those that the first one starts.
    #[arg(long, hide = true, default_value_t = 0)]
    pub(crate) process: usize,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Report")]
pub(crate) struct Output {
    /// The servers' processes: measures their CPU and memory. With several --url give one per
    /// gateway, in the same order
    #[arg(long = "pid", value_name = "PID", value_delimiter = ',')]
    pub(crate) pids: Vec<u32>,
    /// Redis behind the gateways, or redis://:PASSWORD@HOST:PORT: its commands and CPU per message
    /// and per connection
    #[arg(long, value_name = "HOST:PORT", value_parser = redis::Server::parse)]
    pub(crate) redis: Option<redis::Server>,
    /// Write the report as JSON, - for standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
    /// Write the report as one page that needs no network
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// No progress (without a terminal: lines such as "load begins", for scripts), no summary
    #[arg(long)]
    pub(crate) quiet: bool,
}

impl Options {
    /// How many connections are made.
    pub(crate) fn connections(&self) -> usize {
        self.load.users + self.publishers + 2 * self.pairs()
    }

    /// Pairs that talk beside a storm; their users are numbered before all others.
    pub(crate) fn pairs(&self) -> usize {
        match self.kind {
            Kind::Storm => self.storm.pairs.unwrap_or(1),
            _ => 0,
        }
    }

    pub(crate) fn cut(&self) -> Cut {
        self.storm.cut.unwrap_or(Cut::Wait)
    }

    pub(crate) fn calm(&self) -> Duration {
        self.storm.calm.unwrap_or(Duration::from_secs(3))
    }

    pub(crate) fn duration(&self) -> Duration {
        let default = if self.kind == Kind::Storm { 60 } else { 10 };
        self.load.duration.unwrap_or(Duration::from_secs(default))
    }

    /// Of closed loop.
    pub(crate) fn in_flight(&self) -> u32 {
        self.load.in_flight.unwrap_or(1) as u32
    }

    pub(crate) fn cpus(&self) -> &[usize] {
        self.generator.cpus.as_ref().map_or(&[], |list| &list.0)
    }

    pub(crate) fn seed(&self) -> u64 {
        self.mixed.seed
    }

    pub(crate) fn scenario_file(&self) -> Option<String> {
        let file = self.mixed.scenario.as_ref()?;
        Some(file.display().to_string())
    }

    /// Threads of all processes.
    pub(crate) fn workers(&self) -> usize {
        self.generator.threads * self.generator.processes
    }

    /// The threads of this process, by their number among all.
    pub(crate) fn own_workers(&self) -> std::ops::Range<usize> {
        let first = self.generator.process * self.generator.threads;
        first..first + self.generator.threads
    }

    /// Connections of this process.
    pub(crate) fn own_connections(&self) -> usize {
        self.own_workers().map(|worker| self.part(worker).1).sum()
    }

    /// Connections of a worker: the first one's number, and the count.
    pub(crate) fn part(&self, worker: usize) -> (usize, usize) {
        let unit = self.kind.unit();
        let groups = (self.connections() - self.publishers) / unit;
        let workers = self.workers();
        // Publishers are behind the users of each worker, or they would all be on the last ones.
        let at = |worker: usize| groups * worker / workers * unit + self.publishers * worker / workers;
        (at(worker), at(worker + 1) - at(worker))
    }
}

/// Shows reports in JSON beside each other, as one page that needs no network
#[derive(Debug, Parser)]
#[command(name = "shardgate-load report")]
pub(crate) struct Comparison {
    /// What --json wrote
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE")]
    pub(crate) html: PathBuf,
}

/// Reads the words after `report`.
///
/// # Errors
/// What is wrong and what would be right; asking for help is one, too.
pub(crate) fn parse_comparison(words: impl IntoIterator<Item = String>) -> Result<Comparison, clap::Error> {
    Comparison::try_parse_from(std::iter::once("shardgate-load report".to_owned()).chain(words))
}

/// Reads the words after the program's name.
///
/// # Errors
/// What is wrong and what would be right; asking for help is one, too.
pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Options, clap::Error> {
    let words = std::iter::once("shardgate-load".to_owned()).chain(words);
    let mut options = Options::try_parse_from(words)?;
    match check(&mut options) {
        Ok(()) => Ok(options),
        Err(why) => Err(Options::command().error(ErrorKind::ValueValidation, why)),
    }
}

/// Checks that need all flags.
fn check(options: &mut Options) -> Result<(), String> {
    options.targets = Targets::parse(&options.urls)?;
    only_for(options)?;
    if options.kind == Kind::Fanout {
        check_fanout(options)?;
    }
    if options.kind == Kind::Mixed {
        options.chat = match &options.mixed.scenario {
            Some(file) => Chat::read(file)?,
            None => Chat::default(),
        };
    }
    options.rate = match (options.load.in_flight, options.load.rate, options.kind) {
        (Some(_), ..) | (_, _, Kind::Idle) => None,
        (None, Some(rate), _) => Some(rate),
        (None, None, Kind::Storm) => Some(RATE_BESIDE_STORM),
        (None, None, Kind::Mixed) => Some(options.chat.rate),
        (None, None, Kind::Direct | Kind::Fanout) => Some(RATE),
    };
    check_users(options)?;
    check_tls(options)?;
    check_gateways(options)?;
    let (loopback, unit) = (options.targets.are_loopback(), options.kind.unit());
    options.connect.sources = match options.connect.sources_asked {
        Some(n) if n > 1 && !loopback => return Err(format!("--sources {n}: only for a target on 127.0.0.0/8")),
        Some(n) => n,
        None if loopback => options.connections().div_ceil(CONNECTIONS_PER_SOURCE).clamp(1, 250),
        None => 1,
    };
    let workers_max = match options.kind {
        // Users and publishers are divided apart, and every worker is to have somebody.
        Kind::Fanout => options.load.users.max(options.publishers),
        _ => options.connections() / unit,
    };
    options.generator.threads = options.generator.threads.min(workers_max);
    options.generator.processes = options.generator.processes.min(workers_max / options.generator.threads);
    if let Some(key) = &options.connect.token_key {
        options.tokens = Some(Tokens::make(key, &options.connect.user_prefix, options.connections())?);
    }
    check_dialect(options)
}

/// Refuses what only servers of the contract have.
fn check_dialect(options: &Options) -> Result<(), String> {
    let dialect = options.targets.dialect();
    if dialect == Dialect::Shardgate {
        return Ok(());
    }
    if options.load.ack || options.tokens.is_some() {
        return Err("--ack and --token-key: only servers of the contract have acks and tokens".to_owned());
    }
    if !matches!(options.kind, Kind::Idle | Kind::Direct | Kind::Fanout) {
        let name = options.kind.name();
        return Err(format!("{name}: only servers of the contract are asked to do that"));
    }
    if dialect == Dialect::Nchan && options.channels > 1 {
        return Err("--channels: with nchan+ws:// a connection has one, in its URL".to_owned());
    }
    Ok(())
}

/// Whether every flag means something to the scenario.
fn only_for(options: &Options) -> Result<(), String> {
    let (fanout, storm) = (&options.fanout, &options.storm);
    let of_load = options.load.rate.is_some() || options.load.in_flight.is_some() || options.load.ack;
    let of_fanout = fanout.publishers.is_some() || fanout.channels.is_some() || fanout.per_user.is_some();
    let of_storm = storm.cut.is_some() || storm.pairs.is_some() || storm.calm.is_some();
    match options.kind {
        Kind::Idle if of_load => {
            Err("--rate, --in-flight and --ack mean nothing to idle, which sends no messages".to_owned())
        }
        Kind::Storm if options.load.in_flight.is_some() => {
            Err("--in-flight: the pairs beside a storm send at a --rate, or they would wait for it to pass".to_owned())
        }
        kind if of_fanout && kind != Kind::Fanout => {
            Err("--publishers, --channels and --per-user mean something to fanout only".to_owned())
        }
        kind if of_storm && kind != Kind::Storm => {
            Err("--cut, --pairs and --calm mean something to storm only".to_owned())
        }
        kind if options.mixed.scenario.is_some() && kind != Kind::Mixed => {
            Err("--scenario means something to mixed only".to_owned())
        }
        Kind::Storm if matches!(options.cut(), Cut::Drain | Cut::Delete) != storm.admin_token.is_some() => {
            Err("--cut drain and --cut delete need --admin-token, which nothing else does".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_fanout(options: &mut Options) -> Result<(), String> {
    let flags = &options.fanout;
    let (publishers, channels) = (flags.publishers.unwrap_or(1), flags.channels.unwrap_or(1));
    let (users, per_user) = (options.load.users, flags.per_user.unwrap_or(1));
    (options.publishers, options.channels, options.per_user) = (publishers, channels, per_user);
    if per_user > channels {
        return Err(format!("--per-user {per_user}: there are only {channels} channels"));
    }
    if channels > users.saturating_mul(per_user) {
        return Err(format!(
            "--channels {channels}: {users} users with {per_user} each leave some without a subscriber"
        ));
    }
    let streams = users.saturating_mul(publishers).saturating_mul(per_user);
    if streams > STREAMS_MAX {
        return Err(format!(
            "--users x --publishers x --per-user is {streams}: at most {STREAMS_MAX} orders can be watched"
        ));
    }
    let processes = options.generator.processes;
    if processes > 1 && options.load.in_flight.is_some() {
        return Err(format!(
            "--processes {processes}: not with --in-flight, as a publisher of fanout cannot wait for subscribers in another \
             process; say --threads instead, or --rate"
        ));
    }
    Ok(())
}

fn check_users(options: &Options) -> Result<(), String> {
    let (users, unit) = (options.load.users, options.kind.unit());
    if !users.is_multiple_of(unit) {
        let name = options.kind.name();
        return Err(format!("--users {users}: {name} needs a multiple of {unit}"));
    }
    if options.connections() > USERS_MAX {
        return Err(format!(
            "--users {users}: with the others more than {USERS_MAX} connections"
        ));
    }
    let warmup = options.connect.warmup_connections;
    if warmup >= users && warmup > 0 {
        return Err(format!(
            "--warmup-connections {warmup}: must be less than the {users} users"
        ));
    }
    Ok(())
}

fn check_tls(options: &Options) -> Result<(), String> {
    match (options.targets.are_tls(), options.connect.insecure_tls) {
        (false, true) => Err("--insecure-tls: is for wss:// URLs".to_owned()),
        (true, false) => {
            Err("--url wss://: this generator checks no certificate; say --insecure-tls if that is fine".to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether targets, users and processes fit together.
fn check_gateways(options: &Options) -> Result<(), String> {
    let (targets, users, pids) = (options.targets.len(), options.load.users, &options.output.pids);
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

#[cfg(test)]
mod tests;
